//! Which objects a reading may have changed. To join all files because one of them is another would cost as much as reading all
//! of them anew.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::join::Present;
use super::objects::Key;
use super::versions::{Contents, Entry};
use crate::model::ObjectRef;

/// The files that say something else than before, and the objects that they define or defined.
#[derive(Debug, Default)]
pub(super) struct Touched {
    files: BTreeSet<Arc<Path>>,
    pub(super) keys: HashSet<Key>,
    /// One of them does not say all that it should.
    broken: bool,
}

impl Touched {
    /// Notes a file with what it said, or says now.
    pub(super) fn note(&mut self, path: &Arc<Path>, contents: &Contents) {
        self.files.insert(Arc::clone(path));
        self.keys.extend(contents.versions.iter().map(|version| version.good.key.clone()));
        self.broken |= !contents.broken.is_empty();
    }

    /// Joins these files alone, if that comes to the same as joining all: every object of theirs is whole, and nobody else
    /// defines it or has its name. To be asked only while each object is defined once. `is_missing`: no file defines it now.
    pub(super) fn join<'a>(
        &self,
        contents: &'a BTreeMap<Arc<Path>, Contents>,
        before: &HashMap<Key, Entry>,
        is_missing: impl Fn(&Key) -> bool,
    ) -> Option<HashMap<&'a Key, Present<'a>>> {
        if self.broken {
            return None;
        }
        let is_elsewhere = |key: &Key, entry: &Entry| {
            let here = entry.source().is_some_and(|good| self.files.contains(&*good.source.file));
            !here && !is_missing(key)
        };
        let mut present = HashMap::new();
        let mut named: HashSet<&ObjectRef> = HashSet::new();
        for version in self.files.iter().filter_map(|path| contents.get(path)).flat_map(|c| &c.versions) {
            let good = &version.good;
            let is_first = named.insert(&good.reference)
                && present.insert(&good.key, Present::Version(version)).is_none()
                && before.get(&good.key).is_none_or(|entry| !is_elsewhere(&good.key, entry));
            if !is_first {
                return None;
            }
        }
        // Of all objects only pods are known by something else than their names.
        let has_name = |(key, entry): (&Key, &Entry)| {
            matches!(key, Key::Pod(_)) && named.contains(entry.reference()) && is_elsewhere(key, entry)
        };
        let pods = present.keys().any(|key| matches!(key, Key::Pod(_)));
        (!pods || !before.iter().any(has_name)).then_some(present)
    }
}
