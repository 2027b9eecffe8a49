//! What the files say together: of two definitions the first file's counts.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::Stale;
use super::objects::{Good, Key};
use super::versions::{Contents, Entry, Version};
use crate::model::{ObjectRef, Problem};

/// What the files of one reading say under a key.
#[derive(Debug)]
pub(super) enum Present<'a> {
    Version(&'a Version),
    /// Not as any file says it.
    Made(Entry),
}

impl Present<'_> {
    pub(super) fn reference(&self) -> &ObjectRef {
        match self {
            Self::Version(version) => &version.good.reference,
            Self::Made(entry) => entry.reference(),
        }
    }

    /// Whether an entry is that already.
    pub(super) fn is(&self, entry: &Entry) -> bool {
        match (self, entry) {
            (Self::Version(version), Entry::Version(other)) => version.is(other),
            (Self::Version(_), Entry::Broken(..)) => false,
            (Self::Made(made), entry) => made.is(entry),
        }
    }

    pub(super) fn entry(&self) -> Entry {
        match self {
            Self::Version(version) => Entry::Version(Version::clone(version)),
            Self::Made(entry) => entry.clone(),
        }
    }
}

/// The files joined.
#[derive(Debug)]
pub(super) struct Joined<'a> {
    pub(super) present: HashMap<&'a Key, Present<'a>>,
    /// Each object is defined once, and whole.
    pub(super) plain: bool,
}

/// Joins the files. `before`: what the set had.
pub(super) fn join<'a>(
    contents: &'a BTreeMap<Arc<Path>, Contents>,
    before: &HashMap<Key, Entry>,
    problems: &mut Vec<Problem>,
) -> Joined<'a> {
    let mut plain = true;
    let mut present = HashMap::with_capacity(before.len());
    let mut named: HashMap<&ObjectRef, &Good> = HashMap::with_capacity(before.len());
    for version in contents.values().flat_map(|c| &c.versions) {
        let good: &Good = &version.good;
        let first = match present.get(&good.key) {
            Some(Present::Version(first)) => Some(&*first.good),
            Some(Present::Made(_)) | None => named.get(&good.reference).copied(),
        };
        if let Some(first) = first {
            plain = false;
            problems.push(defined_twice(good, first));
        } else {
            named.insert(&good.reference, good);
            present.insert(&good.key, Present::Version(version));
        }
    }
    for (key, reference, problem) in contents.values().flat_map(|c| &c.broken) {
        plain = false;
        if present.contains_key(key) || named.contains_key(reference) {
            continue;
        }
        // It may have moved here and been edited at once: then the good version is the set's own.
        let entry = match good_before(before, key, reference) {
            Some(good) => Entry::Version(Version { good, stale: Some(Stale::Broken(problem.to_string())) }),
            None => Entry::Broken(reference.clone(), Box::new(problem.clone())),
        };
        present.insert(key, Present::Made(entry));
    }
    Joined { present, plain }
}

fn good_before(before: &HashMap<Key, Entry>, key: &Key, reference: &ObjectRef) -> Option<Arc<Good>> {
    match before.get(key)? {
        Entry::Version(version) if version.good.reference == *reference => Some(Arc::clone(&version.good)),
        Entry::Version(_) | Entry::Broken(..) => None,
    }
}

fn defined_twice(second: &Good, first: &Good) -> Problem {
    let field = if second.reference == first.reference { "metadata.name" } else { "metadata.uid" };
    let detail =
        format!("is used twice: {} defines {} with it, and comes first", first.source, first.reference);
    problem_of(
        second,
        field,
        detail,
        format!("remove one of the two, here or in {}", first.source.file.display()),
    )
}

pub(super) fn waits_for(heir: &Good, holder: &Good) -> Problem {
    let detail = format!(
        "was the UID of {} in {}, which is not yet known to be gone",
        holder.reference, holder.source
    );
    problem_of(heir, "metadata.uid", detail, "wait, or give the pod a UID of its own".to_owned())
}

fn problem_of(good: &Good, field: &str, detail: String, remedy: String) -> Problem {
    Problem {
        path: good.source.file.clone(),
        position: Some((good.source.line, 1)),
        object: Some(good.reference.clone()),
        field: Some(field.to_owned()),
        detail,
        remedy,
        warning: false,
    }
}
