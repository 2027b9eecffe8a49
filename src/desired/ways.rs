//! The ways from one object to those that name it, kept from reading to reading: a reading costs what it changed.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::PersistentVolume;
use k8s_openapi::api::storage::v1::VolumeAttachment;

use super::changes::{FullName, differing};
use super::index::{claim_name, volume_name};
use crate::manifest::Objects;

/// By what is named: the names of those that name it.
#[derive(Debug, Default)]
pub(super) struct Ways {
    /// PVs by the claim that their claimRef names.
    pub(super) reserved: Named<FullName, String>,
    /// Claims by the PV that their spec.volumeName names.
    pub(super) namers: Named<String, FullName>,
    /// PVs by CSI driver and handle.
    pub(super) handles: Named<(String, String), String>,
    /// Attachments, to any node, by driver and PV.
    pub(super) attachments: Named<(String, String), String>,
}

type Named<K, V> = BTreeMap<K, BTreeSet<V>>;

impl Ways {
    /// Takes in what changed from one reading to the next.
    pub(super) fn update(&mut self, old: &Objects, new: &Objects) {
        for change in differing(&old.volumes, &new.volumes) {
            let (before, now) = (change.before.map(|v| &*v.object), change.now.map(|v| &*v.object));
            lead(&mut self.reserved, before.and_then(reserved_for), now.and_then(reserved_for), change.key);
            lead(&mut self.handles, before.and_then(handle), now.and_then(handle), change.key);
        }
        for change in differing(&old.claims, &new.claims) {
            let named = |claim| volume_name(claim).map(str::to_owned);
            let before = change.before.and_then(|claim| named(&claim.object));
            let now = change.now.and_then(|claim| named(&claim.object));
            lead(&mut self.namers, before, now, change.key);
        }
        for change in differing(&old.attachments, &new.attachments) {
            let before = change.before.and_then(|attachment| attached(&attachment.object));
            let now = change.now.and_then(|attachment| attached(&attachment.object));
            lead(&mut self.attachments, before, now, change.key);
        }
    }
}

/// Leads to `name` from `now` on, and no longer from what it named before.
fn lead<K: Ord, V: Ord + Clone>(ways: &mut Named<K, V>, before: Option<K>, now: Option<K>, name: &V) {
    if let Some(before) = before
        && let Some(names) = ways.get_mut(&before)
    {
        names.remove(name);
        if names.is_empty() {
            ways.remove(&before);
        }
    }
    if let Some(now) = now {
        ways.entry(now).or_default().insert(name.clone());
    }
}

/// Returns the claim that a PV's claimRef names.
pub(super) fn reserved_for(volume: &PersistentVolume) -> Option<FullName> {
    let claim = volume.spec.as_ref()?.claim_ref.as_ref().and_then(claim_name)?;
    Some((claim.0.to_owned(), claim.1.to_owned()))
}

/// Returns a PV's CSI driver and handle.
pub(super) fn handle(volume: &PersistentVolume) -> Option<(String, String)> {
    let csi = volume.spec.as_ref()?.csi.as_ref()?;
    Some((csi.driver.clone(), csi.volume_handle.clone()))
}

/// Returns the driver and the PV of an attachment.
pub(super) fn attached(attachment: &VolumeAttachment) -> Option<(String, String)> {
    let volume = attachment.spec.source.persistent_volume_name.clone()?;
    Some((attachment.spec.attacher.clone(), volume))
}
