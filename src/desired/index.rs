//! The objects of one reading, found by what others call them. Every look-up is noted: a pod is resolved again only when an answer that it got may be another now (`Resolver`).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, VolumeAttachment};

use super::changes::Question;
use super::hold;
use super::node::Node;
use super::ways::Ways;
use crate::manifest::{Objects, Sourced};
use crate::model::{Hold, ObjectRef, Problem, SecretMap};

/// Namespace and name.
pub(super) type Name<'a> = (&'a str, &'a str);

/// A Secret's values, read once however many volumes need it.
pub(super) type SecretMemo = BTreeMap<(String, String), Result<Arc<SecretMap>, Hold>>;

/// The objects and the ways to find them.
#[derive(Debug)]
pub(super) struct Index<'a> {
    // Private: whoever reads them unasked would not be resolved again when they change.
    objects: &'a Objects,
    ways: &'a Ways,
    pub(super) node: &'a Node,
    pub(super) secrets: RefCell<SecretMemo>,
    asked: RefCell<BTreeSet<Question>>,
}

impl<'a> Index<'a> {
    /// Takes the objects of a reading and the ways among them, for this node.
    pub(super) fn new(objects: &'a Objects, ways: &'a Ways, node: &'a Node) -> Self {
        Self { objects, ways, node, secrets: RefCell::default(), asked: RefCell::default() }
    }

    /// Returns what was asked since the last call.
    pub(super) fn take_asked(&self) -> BTreeSet<Question> {
        self.asked.take()
    }

    fn note(&self, question: Question) {
        self.asked.borrow_mut().insert(question);
    }

    /// Finds a claim.
    ///
    /// # Errors
    /// The hold, when it is in no manifest or only its last good version is known.
    pub(super) fn claim(
        &self,
        (namespace, name): Name<'_>,
        by: &str,
    ) -> Result<&'a PersistentVolumeClaim, Hold> {
        let full_name = (namespace.to_owned(), name.to_owned());
        let found = self.objects.claims.get(&full_name);
        self.note(Question::Claim(full_name));
        valid(&ObjectRef::new("PersistentVolumeClaim", namespace, name), found, by)
    }

    /// Finds a PV.
    ///
    /// # Errors
    /// As for a claim.
    pub(super) fn volume(&self, name: &str, by: &str) -> Result<(&'a str, &'a PersistentVolume), Hold> {
        self.note(Question::Volume(name.to_owned()));
        let found = self.objects.volumes.get_key_value(name);
        let object = valid(&ObjectRef::new("PersistentVolume", "", name), found.map(|(_, v)| v), by)?;
        Ok((found.map_or("", |(name, _)| name), object))
    }

    /// Finds a CSIDriver; none is an answer, too.
    ///
    /// # Errors
    /// The hold, when only its last good version is known.
    pub(super) fn driver(&self, name: &str) -> Result<Option<&'a CSIDriver>, Hold> {
        self.note(Question::Driver(name.to_owned()));
        let Some(found) = self.objects.drivers.get(name) else { return Ok(None) };
        match hold::stale(&ObjectRef::new("CSIDriver", "", name), found) {
            Some(hold) => Err(hold),
            None => Ok(Some(&*found.object)),
        }
    }

    /// Finds the VolumeAttachment of a PV to this node; one that is not attached is none.
    ///
    /// # Errors
    /// The hold, when only its last good version is known.
    pub(super) fn attached(&self, driver: &str, volume: &str) -> Result<Option<&'a VolumeAttachment>, Hold> {
        self.note(Question::Attachment(driver.to_owned(), volume.to_owned()));
        let names = self.ways.attachments.get(&(driver.to_owned(), volume.to_owned()));
        let here = names.into_iter().flatten().filter_map(|name| {
            let attachment = self.objects.attachments.get(name)?;
            (attachment.object.spec.node_name == self.node.name).then_some((name, attachment))
        });
        // Of several, the first that is attached.
        let Some((name, found)) = here.min_by_key(|(_, attachment)| !is_attached(attachment)) else {
            return Ok(None);
        };
        if let Some(hold) = hold::stale(&ObjectRef::new("VolumeAttachment", "", name), found) {
            return Err(hold);
        }
        Ok(is_attached(found).then_some(&*found.object))
    }

    /// Finds a Secret.
    pub(super) fn secret(&self, name: &(String, String)) -> Option<&'a Sourced<Secret>> {
        self.note(Question::Secret(name.clone()));
        self.objects.secrets.get(name)
    }

    /// Returns the PVs whose claimRef names a claim, by name.
    pub(super) fn reserved_for(&self, claim: Name<'_>) -> Vec<&'a str> {
        let claim = (claim.0.to_owned(), claim.1.to_owned());
        let names = self.ways.reserved.get(&claim);
        self.note(Question::ReservedFor(claim));
        names.into_iter().flatten().map(String::as_str).collect()
    }

    /// Returns one of the PVs that `reserved_for` named. What it says is a part of that answer.
    pub(super) fn reserver(&self, volume: &str) -> Option<&'a PersistentVolume> {
        self.objects.volumes.get(volume).map(|volume| &*volume.object)
    }

    /// Returns the claims whose spec.volumeName names a PV, by name.
    pub(super) fn namers_of(&self, volume: &str) -> Vec<Name<'a>> {
        self.note(Question::NamersOf(volume.to_owned()));
        let names = self.ways.namers.get(volume).into_iter().flatten();
        names.map(|(namespace, name)| (namespace.as_str(), name.as_str())).collect()
    }

    /// Returns the PV that a driver's handle belongs to: the first by name of all that have it.
    pub(super) fn owner_of_handle(&self, driver: &str, handle: &str) -> Option<&'a str> {
        let handle = (driver.to_owned(), handle.to_owned());
        let names = self.ways.handles.get(&handle);
        self.note(Question::OwnerOfHandle(handle.0, handle.1));
        Some(names?.first()?.as_str())
    }

    /// Returns the problems that only show when the objects are seen together.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let mut problems = Vec::new();
        for ((driver, handle), names) in self.ways.handles.iter().filter(|(_, names)| names.len() > 1) {
            let mut names = names.iter();
            let Some(first) = names.next() else { continue };
            for (name, volume) in names.filter_map(|name| Some((name, self.objects.volumes.get(name)?))) {
                problems.push(Problem {
                    path: volume.source.file.clone(),
                    position: Some((volume.source.line, 1)),
                    object: Some(ObjectRef::new("PersistentVolume", "", name)),
                    field: Some("spec.csi.volumeHandle".to_owned()),
                    detail: same_handle(name, first, driver, handle),
                    remedy: SAME_HANDLE_REMEDY.to_owned(),
                    warning: false,
                });
            }
        }
        problems
    }
}

/// What to do about two PVs with one handle.
pub(super) const SAME_HANDLE_REMEDY: &str = "give each PersistentVolume a handle of its own, or remove one";

/// Says that two PVs are one volume (csi.md 10, 32).
pub(super) fn same_handle(second: &str, first: &str, driver: &str, handle: &str) -> String {
    format!(
        "PersistentVolume {second} has the same driver {driver} and handle {handle:?} as PersistentVolume {first}"
    )
}

/// Returns the PV that a claim names.
pub(super) fn volume_name(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.spec.as_ref()?.volume_name.as_deref().filter(|v| !v.is_empty())
}

/// Returns the claim that a claimRef names; without a namespace it is `default`, as for every object here.
pub(super) fn claim_name(reference: &ObjectReference) -> Option<Name<'_>> {
    let name = reference.name.as_deref().filter(|n| !n.is_empty())?;
    Some((reference.namespace.as_deref().filter(|n| !n.is_empty()).unwrap_or("default"), name))
}

fn is_attached(attachment: &Sourced<VolumeAttachment>) -> bool {
    attachment.object.status.as_ref().is_some_and(|s| s.attached)
}

fn valid<'a, T>(object: &ObjectRef, found: Option<&'a Sourced<T>>, by: &str) -> Result<&'a T, Hold> {
    let found = found.ok_or_else(|| hold::missing(object, by))?;
    match hold::stale(object, found) {
        Some(hold) => Err(hold),
        None => Ok(&*found.object),
    }
}
