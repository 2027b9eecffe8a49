//! Two readings' objects -> the questions whose answers may differ.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::index::{claim_name, volume_name};
use crate::manifest::{Objects, Sourced};

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

/// Returns the questions to which the new objects may give another answer than the old ones. Both versions of an object that
/// changed count: what it says now, and what it said.
pub(super) fn questions(old: &Objects, new: &Objects) -> BTreeSet<Question> {
    let mut questions = BTreeSet::new();
    for (name, claim) in differing(&old.claims, &new.claims) {
        questions.insert(Question::Claim(name.clone()));
        questions.extend(volume_name(&claim.object).map(|volume| Question::NamersOf(volume.to_owned())));
    }
    for (name, volume) in differing(&old.volumes, &new.volumes) {
        questions.insert(Question::Volume(name.clone()));
        let Some(spec) = &volume.object.spec else { continue };
        let claim = spec.claim_ref.as_ref().and_then(claim_name);
        questions.extend(claim.map(|(ns, name)| Question::ReservedFor((ns.to_owned(), name.to_owned()))));
        let csi = spec.csi.as_ref();
        questions.extend(csi.map(|c| Question::OwnerOfHandle(c.driver.clone(), c.volume_handle.clone())));
    }
    for (name, _) in differing(&old.drivers, &new.drivers) {
        questions.insert(Question::Driver(name.clone()));
    }
    for (name, _) in differing(&old.secrets, &new.secrets) {
        questions.insert(Question::Secret(name.clone()));
    }
    for (_, attachment) in differing(&old.attachments, &new.attachments) {
        let spec = &attachment.object.spec;
        let volume = spec.source.persistent_volume_name.clone();
        questions.extend(volume.map(|volume| Question::Attachment(spec.attacher.clone(), volume)));
    }
    questions
}

/// Returns what is in one of two maps only, and both versions of what differs. Pointers decide: an object that was read again
/// counts as another.
pub(super) fn differing<'a, K: Ord, T>(
    old: &'a BTreeMap<K, Sourced<T>>,
    new: &'a BTreeMap<K, Sourced<T>>,
) -> impl Iterator<Item = (&'a K, &'a Sourced<T>)> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let mut changed_from = None;
    // Both are sorted by key, and go side by side.
    std::iter::from_fn(move || {
        loop {
            if let Some(version) = changed_from.take() {
                return Some(version);
            }
            let (Some((old_key, before)), Some((new_key, now))) = (old.peek(), new.peek()) else {
                return old.next().or_else(|| new.next());
            };
            match old_key.cmp(new_key) {
                Ordering::Less => return old.next(),
                Ordering::Greater => return new.next(),
                Ordering::Equal => {
                    let is_same = is_same(before, now);
                    let before = old.next();
                    let now = new.next();
                    if !is_same {
                        changed_from = before;
                        return now;
                    }
                }
            }
        }
    })
}

fn is_same<T>(a: &Sourced<T>, b: &Sourced<T>) -> bool {
    Arc::ptr_eq(&a.object, &b.object) && a.stale == b.stale && a.source == b.source
}
