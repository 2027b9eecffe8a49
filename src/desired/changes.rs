//! Two readings' objects -> the questions whose answers may differ.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::index::volume_name;
use super::ways::{attached, handle, reserved_for};
use crate::manifest::{Objects, Sourced};
use crate::model::side_by_side;

/// A namespace and a name.
pub(super) type FullName = (String, String);

/// What the look-up of a pod's volumes can ask of the objects: one for each way through `Index`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Question {
    /// A claim.
    Claim(FullName),
    /// A PV.
    Volume(String),
    /// A CSIDriver.
    Driver(String),
    /// A Secret.
    Secret(FullName),
    /// The attachment to this node, of a driver's PV.
    Attachment(String, String),
    /// The PVs whose claimRef names a claim.
    ReservedFor(FullName),
    /// The claims that name a PV.
    NamersOf(String),
    /// The PV that a driver's handle belongs to.
    OwnerOfHandle(String, String),
}

/// An object that is not what it was: what it said, and what it says.
#[derive(Debug)]
pub(super) struct Change<'a, K, T> {
    pub(super) key: &'a K,
    pub(super) before: Option<&'a Sourced<T>>,
    pub(super) now: Option<&'a Sourced<T>>,
}

impl<'a, K, T> Change<'a, K, T> {
    fn versions(&self) -> impl Iterator<Item = &'a T> {
        self.before.into_iter().chain(self.now).map(|version| &*version.object)
    }
}

/// Returns the questions to which the new objects may give another answer than the old ones. Both versions of an object that
/// changed count.
pub(super) fn questions(old: &Objects, new: &Objects) -> BTreeSet<Question> {
    let mut questions = BTreeSet::new();
    for change in differing(&old.claims, &new.claims) {
        questions.insert(Question::Claim(change.key.clone()));
        let volumes = change.versions().filter_map(volume_name);
        questions.extend(volumes.map(|volume| Question::NamersOf(volume.to_owned())));
    }
    for change in differing(&old.volumes, &new.volumes) {
        questions.insert(Question::Volume(change.key.clone()));
        questions.extend(change.versions().filter_map(reserved_for).map(Question::ReservedFor));
        let handles = change.versions().filter_map(handle);
        questions.extend(handles.map(|(driver, handle)| Question::OwnerOfHandle(driver, handle)));
    }
    for change in differing(&old.drivers, &new.drivers) {
        questions.insert(Question::Driver(change.key.clone()));
    }
    for change in differing(&old.secrets, &new.secrets) {
        questions.insert(Question::Secret(change.key.clone()));
    }
    for change in differing(&old.attachments, &new.attachments) {
        let attached = change.versions().filter_map(attached);
        questions.extend(attached.map(|(driver, volume)| Question::Attachment(driver, volume)));
    }
    questions
}

/// Returns what differs between two maps. Pointers decide: an object that was read again counts as another.
pub(super) fn differing<'a, K: Ord, T>(
    old: &'a BTreeMap<K, Sourced<T>>,
    new: &'a BTreeMap<K, Sourced<T>>,
) -> impl Iterator<Item = Change<'a, K, T>> {
    side_by_side(old, new)
        .filter(|(_, before, now)| before.zip(*now).is_none_or(|(before, now)| !is_same(before, now)))
        .map(|(key, before, now)| Change { key, before, now })
}

fn is_same<T>(a: &Sourced<T>, b: &Sourced<T>) -> bool {
    Arc::ptr_eq(&a.object, &b.object) && a.stale == b.stale && a.source == b.source
}
