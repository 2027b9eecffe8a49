//! Mount table + records -> what is there. Pure, but for `at_start`, which reads what earlier runs left.
//!
//! `Yes` means an outcome recorded in this boot and a mount table equal to it, "no mount here" included. Every other record
//! is uncertain: one rule for restart, crash and reboot (design 4).

mod foreign;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use foreign::foreign;
use foreign::place;

use crate::host::{FoundVolume, Host, HostError};
use crate::model::{
    BootId, CallState, Foreign, Have, HavePublication, HaveStaging, Layout, Mount, MountTable, MountsAt,
    Obstacle, Presence, Problem, PublicationId, PublicationRecord, RecordedMount, RecordedVolume,
    StagingRecord, VolData, VolumeKey, VolumeMode, VolumeRecord,
};
use crate::record::{Store, StoreError};

/// What a start finds.
#[derive(Debug)]
pub struct Found {
    /// By volume.
    pub records: BTreeMap<VolumeKey, VolumeRecord>,
    /// Records that cannot be read.
    pub damaged: Vec<Problem>,
    /// On disk without a record.
    pub foreign: Vec<Foreign>,
    /// The mount table it was compared with.
    pub mounts: Arc<MountTable>,
}

/// A start that could not find out what is there.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// The records.
    #[error("cannot read the records")]
    Records(#[source] StoreError),
    /// The root directory or the mount table.
    #[error("cannot look at the host")]
    Host(#[source] HostError),
}

/// Reads what earlier runs, and others, left.
///
/// # Errors
/// When the records, the root directory or the mount table cannot be read at all. Nothing is changed.
pub async fn at_start(host: &dyn Host, store: &dyn Store, layout: &Layout) -> Result<Found, ObserveError> {
    let loaded = store.load().await.map_err(ObserveError::Records)?;
    let mounts = host.mounts().await.map_err(ObserveError::Host)?;
    let on_disk = host.volumes_on_disk().await.map_err(ObserveError::Host)?;
    let mut records: BTreeMap<_, _> =
        loaded.records.into_iter().map(|record| (record.key.clone(), record)).collect();
    doubt_disputed(&mut records, &on_disk, layout);
    let foreign = foreign(&on_disk, &records, &mounts, layout);
    Ok(Found { records, damaged: loaded.damaged, foreign, mounts })
}

/// What volumes are looked at with.
#[derive(Debug, Clone, Copy)]
pub struct Site<'a> {
    /// What is mounted.
    pub mounts: &'a MountTable,
    /// Mount points whose file system does not answer any more.
    pub dead: &'a BTreeMap<PathBuf, String>,
    /// This boot.
    pub boot: &'a BootId,
    /// The paths.
    pub layout: &'a Layout,
}

/// Looks at one volume.
pub fn volume(record: &VolumeRecord, site: Site<'_>) -> Have {
    Have {
        volume: record.volume.clone(),
        staging: record.staging.as_ref().map(|staging| self::staging(staging, site)),
        publications: record
            .publications
            .iter()
            .map(|(id, publication)| (id.clone(), Box::new(self::publication(id, publication, site))))
            .collect(),
        size: record.size,
        expansion: record.expansion.clone(),
    }
}

fn staging(record: &StagingRecord, site: Site<'_>) -> HaveStaging {
    let path = &record.arguments.staging_path;
    let look = look(&record.state, record.boot == *site.boot, path, site);
    HaveStaging {
        presence: look.presence,
        arguments: record.arguments.clone(),
        frozen: look.frozen,
        undoing: record.state == CallState::Undoing,
        obstacle: look.obstacle,
        // Without a call there is nothing to be mounted.
        not_a_mount_point: look.not_a_mount_point && record.arguments.kind == crate::model::StagingKind::Call,
        dead: look.dead,
        mount: match &record.state {
            CallState::Done { mount: RecordedMount::Mount(mount) } => Some(mount.clone()),
            CallState::Done { mount: RecordedMount::NotAMountPoint }
            | CallState::Planned
            | CallState::Intended { .. }
            | CallState::Undoing => None,
        },
    }
}

fn publication(id: &PublicationId, record: &PublicationRecord, site: Site<'_>) -> HavePublication {
    let target = match &record.arguments {
        Some(arguments) => arguments.target_path.clone(),
        None => site.layout.absolute(&site.layout.target(id)),
    };
    let look = look(&record.state, record.boot == *site.boot, &target, site);
    let is_block = record.arguments.as_ref().is_some_and(|a| a.capability.volume_mode == VolumeMode::Block);
    // A block device is there for the pod when it is bound on its map too (kubelet.md 1.11).
    let (mapped, on_map) = if is_block {
        look_at_map(&record.state, site.layout.absolute(&site.layout.block_map(id)), site.mounts)
    } else {
        (true, None)
    };
    HavePublication {
        presence: match look.presence {
            Presence::Yes if !mapped => Presence::Uncertain,
            presence => presence,
        },
        arguments: record.arguments.clone(),
        frozen: look.frozen,
        undoing: record.state == CallState::Undoing,
        obstacle: look.obstacle.or(on_map),
        not_a_mount_point: look.not_a_mount_point && record.arguments.is_some(),
        dead: look.dead,
    }
}

/// Returns whether a published device is bound for its pod, and what forbids calls: what lies on the map is the same mount as
/// the driver's. Of a device that the driver showed without a mount, `Host::map_block` alone can tell.
fn look_at_map(state: &CallState, map: PathBuf, mounts: &MountTable) -> (bool, Option<Obstacle>) {
    let recorded = match state {
        CallState::Done { mount: RecordedMount::Mount(recorded) } => Some(recorded),
        CallState::Done { mount: RecordedMount::NotAMountPoint }
        | CallState::Planned
        | CallState::Intended { .. }
        | CallState::Undoing => None,
    };
    let found = match mounts.at(&map) {
        MountsAt::None => return (false, None),
        MountsAt::One(mount) if recorded.is_none_or(|recorded| mount.identity() == *recorded) => {
            return (true, None);
        }
        MountsAt::One(mount) => Some(mount.identity()),
        MountsAt::Stacked(stack) => stack.last().map(Mount::identity),
    };
    let recorded = recorded.cloned();
    (false, found.map(|found| Obstacle::OnMap { point: map, recorded, found }))
}

struct Look {
    presence: Presence,
    frozen: bool,
    obstacle: Option<Obstacle>,
    not_a_mount_point: bool,
    dead: bool,
}

/// Compares what a record says of a path with what is mounted there.
fn look(state: &CallState, this_boot: bool, path: &Path, site: Site<'_>) -> Look {
    let mounts = site.mounts;
    if *state == CallState::Planned && this_boot {
        return Look {
            presence: Presence::No,
            frozen: false,
            obstacle: None,
            not_a_mount_point: false,
            dead: false,
        };
    }
    let recorded = match state {
        CallState::Done { mount } => Some(mount),
        CallState::Planned | CallState::Intended { .. } | CallState::Undoing => None,
    };
    let equal = match (mounts.at(path), recorded) {
        (MountsAt::None, Some(RecordedMount::NotAMountPoint)) => true,
        (MountsAt::One(mount), Some(RecordedMount::Mount(recorded))) => mount.identity() == *recorded,
        (MountsAt::None | MountsAt::One(_) | MountsAt::Stacked(_), _) => false,
    };
    let dead = site.dead.contains_key(path) && matches!(mounts.at(path), MountsAt::One(_));
    Look {
        // What another boot recorded says nothing of this one's mounts.
        presence: if equal && this_boot && !dead { Presence::Yes } else { Presence::Uncertain },
        frozen: !matches!(state, CallState::Intended { settled: true }),
        obstacle: obstacle(recorded, this_boot, path, mounts),
        not_a_mount_point: this_boot && matches!(recorded, Some(RecordedMount::NotAMountPoint)),
        dead,
    }
}

/// Returns what forbids any call for a path (design rule 10).
fn obstacle(
    recorded: Option<&RecordedMount>,
    this_boot: bool,
    path: &Path,
    mounts: &MountTable,
) -> Option<Obstacle> {
    if let Some(below) = mounts.below(path).next() {
        return Some(Obstacle::Below { point: below.point.clone() });
    }
    match (mounts.at(path), recorded) {
        (MountsAt::None, _) => None,
        // The outcome was lost: the only mount there is the call's. Before the first call in a boot the intent is written
        // anew, so a mount under another boot's record was made by somebody else.
        (MountsAt::One(_), None) if this_boot => None,
        (MountsAt::One(mount), Some(RecordedMount::Mount(recorded))) => {
            let found = mount.identity();
            (!found.same_but_device(recorded))
                .then(|| Obstacle::Replaced { recorded: Some(recorded.clone()), found })
        }
        (MountsAt::One(mount), Some(RecordedMount::NotAMountPoint) | None) => {
            Some(Obstacle::Replaced { recorded: None, found: mount.identity() })
        }
        (MountsAt::Stacked(stack), recorded) => {
            let recorded = match recorded {
                Some(RecordedMount::Mount(mount)) => Some(mount.clone()),
                Some(RecordedMount::NotAMountPoint) | None => None,
            };
            stack.last().map(|top| Obstacle::Covered { recorded, by: top.identity() })
        }
    }
}

/// Takes back what a record claims where `vol_data.json` says that the path is another volume's (design 4).
fn doubt_disputed(records: &mut BTreeMap<VolumeKey, VolumeRecord>, on_disk: &[FoundVolume], layout: &Layout) {
    let mut stagings = BTreeMap::new();
    let mut publications = BTreeMap::new();
    for found in on_disk {
        let Some(data) = &found.vol_data else { continue };
        match place(found) {
            Some(id) => {
                publications.insert(id, data);
            }
            // What a block volume's says is compared for each of its pods.
            None if found.part.is_block() => {}
            None => {
                stagings.insert(layout.absolute(&found.path), data);
            }
        }
    }
    // As if another boot had recorded it: not verified, and only the recorded mount itself may be called for.
    let doubt = |boot: &mut BootId| *boot = BootId("disputed by vol_data.json".to_owned());
    for record in records.values_mut() {
        let RecordedVolume::Csi { driver, handle, lifecycle } = &record.volume else { continue };
        if let Some(staging) = &mut record.staging {
            let data = staging.arguments.staging_path.parent().and_then(|path| stagings.get(path));
            if data.is_some_and(|data| !VolData::staging(driver, handle).disagreements(data).is_empty()) {
                doubt(&mut staging.boot);
            }
        }
        for (id, publication) in &mut record.publications {
            let ours = VolData::publication(id, driver, handle, "", *lifecycle);
            // That of a block volume says nothing of its lifecycle, which can only be persistent.
            let disagrees = |data: &&VolData| {
                let said = |key: &&str| data.get(key).is_some() || *key != "volumeLifecycleMode";
                ours.disagreements(data).iter().any(said)
            };
            if publications.get(id).is_some_and(disagrees) {
                doubt(&mut publication.boot);
            }
        }
    }
}
