//! What is known of an object: the version that counts, the last good one, or only that it is there and broken.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::objects::{Good, Key, Object, Parsed};
use super::{Objects, Sourced, Stale};
use crate::model::{Millis, ObjectRef, PodUid, Problem};

/// A version of an object that counts.
#[derive(Debug, Clone)]
pub(super) struct Version {
    pub(super) good: Arc<Good>,
    pub(super) stale: Option<Stale>,
}

/// What a file is taken to say.
#[derive(Debug, Clone, Default)]
pub(super) struct Contents {
    pub(super) versions: Vec<Version>,
    /// Objects that are invalid and have no good version in this file.
    pub(super) broken: Vec<(Key, ObjectRef, Problem)>,
    /// It may say more: a part of it was never understood.
    pub(super) unknown: bool,
    /// What all of it was taken from, unless something was changed since or there is more to it than that.
    of: Option<Arc<Parsed>>,
}

/// What the set has under a key.
#[derive(Debug, Clone)]
pub(super) enum Entry {
    Version(Version),
    Broken(ObjectRef, Box<Problem>),
}

impl Version {
    /// Whether they are the same reading of the same object.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.good, &other.good) && self.stale == other.stale
    }
}

impl Contents {
    /// Returns whether it is certainly all that a file says, and was.
    pub(super) fn is_of(&self, parsed: &Arc<Parsed>) -> bool {
        self.of.as_ref().is_some_and(|of| Arc::ptr_eq(of, parsed))
    }

    /// Takes what the file says now.
    pub(super) fn take(&mut self, parsed: &Arc<Parsed>) {
        if !self.is_of(parsed) {
            *self = from_parsed(parsed, self);
            self.of = parsed.bad.is_empty().then(|| Arc::clone(parsed));
        }
    }

    /// Nothing of it is known to be so any more.
    pub(super) fn make_stale(&mut self, why: &str) {
        self.of = None;
        for version in &mut self.versions {
            version.stale = Some(Stale::Broken(why.to_owned()));
        }
    }
}

/// A parsed file: its good objects, and of the bad ones the last good versions that this file had.
fn from_parsed(parsed: &Parsed, old: &Contents) -> Contents {
    let mut new = Contents {
        versions: parsed.good.iter().map(|g| Version { good: Arc::clone(g), stale: None }).collect(),
        ..Contents::default()
    };
    if parsed.bad.is_empty() {
        return new;
    }
    let mut nameless = None;
    for bad in &parsed.bad {
        let Some(problem) = bad.problems.first() else { continue };
        let Some((key, reference)) = &bad.identity else {
            nameless = nameless.or(Some(problem));
            continue;
        };
        let last_good = old.versions.iter().find(|v| v.good.key == *key || v.good.reference == *reference);
        match last_good {
            Some(version) => {
                let good = Arc::clone(&version.good);
                new.versions.push(Version { good, stale: Some(Stale::Broken(problem.to_string())) });
            }
            None => new.broken.push((key.clone(), reference.clone(), problem.clone())),
        }
    }
    // A document that does not say which object it is may be any that the file had, or one that was moved into it.
    if let Some(problem) = nameless {
        new.unknown = true;
        let have: BTreeSet<Key> = new.versions.iter().map(|v| v.good.key.clone()).collect();
        for version in old.versions.iter().filter(|v| !have.contains(&v.good.key)) {
            let good = Arc::clone(&version.good);
            new.versions.push(Version { good, stale: Some(Stale::Broken(problem.to_string())) });
        }
    }
    new
}

impl Entry {
    pub(super) fn reference(&self) -> &ObjectRef {
        match self {
            Self::Version(version) => &version.good.reference,
            Self::Broken(reference, _) => reference,
        }
    }

    /// Whether they say the same.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Version(version), Self::Version(other)) => version.is(other),
            (Self::Broken(reference, problem), Self::Broken(of, other)) => {
                reference == of && problem == other
            }
            (Self::Version(_), Self::Broken(..)) | (Self::Broken(..), Self::Version(_)) => false,
        }
    }

    pub(super) fn source(&self) -> Option<&Good> {
        match self {
            Self::Version(version) => Some(&version.good),
            Self::Broken(..) => None,
        }
    }

    pub(super) fn gone_since(self, since: Millis) -> Self {
        match self {
            Self::Version(Version { good, .. }) => {
                let when = jiff::Timestamp::from_millisecond(since).unwrap_or_default();
                let stale = format!("its manifest is gone from {} since {when}", good.source.file.display());
                Self::Version(Version { good, stale: Some(Stale::Gone(stale)) })
            }
            broken @ Self::Broken(..) => broken,
        }
    }
}

/// Takes an entry out of the objects.
pub(super) fn withdraw(objects: &mut Objects, key: &Key, entry: &Entry) {
    let version = match (entry, key) {
        (Entry::Version(version), _) => version,
        (Entry::Broken(..), Key::Pod(uid)) => {
            objects.broken_pods.remove(uid);
            return;
        }
        (Entry::Broken(..), Key::Other { .. }) => return,
    };
    let ObjectRef { namespace, name, .. } = &version.good.reference;
    let pair = || (namespace.clone(), name.clone());
    match &version.good.object {
        Object::Pod(_) => {
            if let Key::Pod(uid) = key {
                objects.pods.remove(uid);
            }
        }
        Object::Claim(_) => drop(objects.claims.remove(&pair())),
        Object::Volume(_) => drop(objects.volumes.remove(name)),
        Object::Class(_) => drop(objects.classes.remove(name)),
        Object::Secret(_) => drop(objects.secrets.remove(&pair())),
        Object::Driver(_) => drop(objects.drivers.remove(name)),
        Object::Attachment(_) => drop(objects.attachments.remove(name)),
    }
}

/// Puts an entry among the objects.
pub(super) fn publish(objects: &mut Objects, key: &Key, entry: &Entry) {
    let version = match (entry, key) {
        (Entry::Version(version), _) => version,
        (Entry::Broken(reference, problem), Key::Pod(uid)) => {
            objects.broken_pods.insert(uid.clone(), (reference.clone(), Problem::clone(problem)));
            return;
        }
        (Entry::Broken(..), Key::Other { .. }) => return,
    };
    let good = &version.good;
    let name = || good.reference.name.clone();
    let pair = || (good.reference.namespace.clone(), good.reference.name.clone());
    match &good.object {
        Object::Pod(pod) => {
            if let Key::Pod(uid) = key {
                put(&mut objects.pods, PodUid::clone(uid), pod, version);
            }
        }
        Object::Claim(claim) => put(&mut objects.claims, pair(), claim, version),
        Object::Volume(volume) => put(&mut objects.volumes, name(), volume, version),
        Object::Class(class) => put(&mut objects.classes, name(), class, version),
        Object::Secret(secret) => put(&mut objects.secrets, pair(), secret, version),
        Object::Driver(driver) => put(&mut objects.drivers, name(), driver, version),
        Object::Attachment(attachment) => put(&mut objects.attachments, name(), attachment, version),
    }
}

fn put<K: Ord, T>(map: &mut BTreeMap<K, Sourced<T>>, key: K, object: &Arc<T>, version: &Version) {
    let source = version.good.source.clone();
    map.insert(key, Sourced { object: Arc::clone(object), source, stale: version.stale.clone() });
}
