//! The truth: what was done, as far as it is verified.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Serialize;

use super::{
    DriverName, DriverState, ExpansionRecord, MountIdentity, PodUid, PublicationId, PublishArguments,
    RecordedVolume, SpecName, StageArguments, VolumeKey, VolumeMode,
};

/// Everything that is or may be there.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// By volume; only volumes with a record.
    pub volumes: BTreeMap<VolumeKey, Have>,
    /// By name.
    pub drivers: BTreeMap<DriverName, DriverState>,
    /// What lies on disk without a record of ours.
    pub foreign: Vec<Foreign>,
    /// Whose records stand at a place: what is wanted there under another key waits until it is gone.
    pub places: BTreeMap<PublicationId, BTreeSet<VolumeKey>>,
    /// The volumes of each driver that are on this node, or are about to be: what max_volumes_per_node counts.
    pub on_node: BTreeMap<DriverName, BTreeSet<VolumeKey>>,
}

impl Actual {
    /// Replaces what is known of one volume and keeps `places` in step.
    pub fn set(&mut self, key: &VolumeKey, have: Option<Have>) {
        if let Some(old) = self.volumes.remove(key) {
            if let RecordedVolume::Csi { driver, .. } = &old.volume {
                self.release(driver, key);
            }
            for id in old.publications.keys() {
                if let Some(keys) = self.places.get_mut(id) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.places.remove(id);
                    }
                }
            }
        }
        if let Some(have) = have {
            if let RecordedVolume::Csi { driver, .. } = &have.volume {
                self.reserve(driver, key);
            }
            for id in have.publications.keys() {
                self.places.entry(id.clone()).or_default().insert(key.clone());
            }
            self.volumes.insert(key.clone(), have);
        }
    }
}

impl Actual {
    /// Counts a volume as being on this node: its first step begins.
    pub fn reserve(&mut self, driver: &DriverName, key: &VolumeKey) {
        self.on_node.entry(driver.clone()).or_default().insert(key.clone());
    }

    /// Counts it no longer: nothing was recorded of it, or nothing is left.
    pub fn release(&mut self, driver: &DriverName, key: &VolumeKey) {
        if let Some(here) = self.on_node.get_mut(driver) {
            here.remove(key);
            if here.is_empty() {
                self.on_node.remove(driver);
            }
        }
    }
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Have {
    /// What it is.
    pub volume: RecordedVolume,
    /// Its staging; `None` when none was intended.
    pub staging: Option<HaveStaging>,
    /// Its publications.
    pub publications: BTreeMap<PublicationId, Box<HavePublication>>,
    /// The size that it is known to have on this node, bytes.
    pub size: Option<u64>,
    /// A growth that was begun and is not known to be done.
    pub expansion: Option<Box<ExpansionRecord>>,
}

/// `Yes` is an outcome recorded in this boot and a mount table equal to it; everything else in a record is `Uncertain`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Presence {
    /// Not there: nothing was sent.
    No,
    /// Verified.
    Yes,
    /// May be there: not mounted for those who wait, to be cleaned up for those who tidy.
    Uncertain,
}

/// A staging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HaveStaging {
    /// Whether it is there.
    pub presence: Presence,
    /// What was sent.
    pub arguments: StageArguments,
    /// The outcome of the last call is open: only the same arguments may be sent (csi.md 2.3).
    pub frozen: bool,
    /// An undo was begun: it has to be finished before anything goes up.
    pub undoing: bool,
    /// What forbids any call (design rule 10).
    pub obstacle: Option<Obstacle>,
    /// The driver answered OK and left no mount.
    pub not_a_mount_point: bool,
    /// The file system there does not answer any more (a FUSE server that died): to be undone and done again.
    pub dead: bool,
    /// The mount that the call left, as it was recorded: a foreign publication of the same is one of this volume.
    pub mount: Option<MountIdentity>,
}

/// A publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HavePublication {
    /// Whether it is there.
    pub presence: Presence,
    /// What was sent; `None` for types without calls.
    pub arguments: Option<PublishArguments>,
    /// As for staging.
    pub frozen: bool,
    /// As for staging.
    pub undoing: bool,
    /// As for staging.
    pub obstacle: Option<Obstacle>,
    /// As for staging.
    pub not_a_mount_point: bool,
    /// The file system there does not answer any more (a FUSE server that died): to be undone and done again.
    pub dead: bool,
}

/// Something at the path that is not ours, so that nobody is called (design rule 10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Obstacle {
    /// Another mount covers the recorded one.
    Covered {
        /// What was recorded.
        recorded: Option<MountIdentity>,
        /// The mount on top.
        by: MountIdentity,
    },
    /// Another mount is there in place of the recorded one.
    Replaced {
        /// What was recorded.
        recorded: Option<MountIdentity>,
        /// What is there.
        found: MountIdentity,
    },
    /// Something is mounted below the path.
    Below {
        /// Where.
        point: PathBuf,
    },
    /// Where a block volume's device is bound for its pod, another mount is there or lies on top.
    OnMap {
        /// Where.
        point: PathBuf,
        /// What was published.
        recorded: Option<MountIdentity>,
        /// What is there, or on top.
        found: MountIdentity,
    },
}

impl std::fmt::Display for Obstacle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Covered { recorded: Some(recorded), by } => {
                write!(f, "another mount lies on top: {by}; recorded was {recorded}")
            }
            Self::Covered { recorded: None, by } => write!(f, "several mounts lie there; on top is {by}"),
            Self::Replaced { recorded: Some(recorded), found } => {
                write!(f, "another mount is there: {found}; recorded was {recorded}")
            }
            Self::Replaced { recorded: None, found } => {
                write!(f, "a mount is there that was not recorded: {found}")
            }
            Self::Below { point } => write!(f, "something is mounted below it, at {}", point.display()),
            Self::OnMap { point, recorded, found } => {
                let point = point.display();
                write!(f, "another mount is at {point}, where the pod's device was bound: {found}")?;
                recorded.as_ref().map_or(Ok(()), |recorded| write!(f, "; published was {recorded}"))
            }
        }
    }
}

/// A volume on disk without a record of ours: shown, never touched; a publication holds its volume's staging.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Foreign {
    /// Its directory.
    pub path: PathBuf,
    /// The volume, when `vol_data.json` says which.
    pub key: Option<VolumeKey>,
    /// What it is, when `vol_data.json` says that.
    #[serde(skip)]
    pub volume: Option<RecordedVolume>,
    /// File system or block.
    #[serde(skip)]
    pub volume_mode: VolumeMode,
    /// The staging or target path that its driver was told.
    #[serde(skip)]
    pub target: PathBuf,
    /// The pod and name it is published to; `None` for a staging.
    pub publication: Option<(PodUid, String, SpecName)>,
    /// Whether something is mounted at or below it.
    pub mounted: bool,
    /// What is mounted at `target`, if it is alone there.
    #[serde(skip)]
    pub mount: Option<MountIdentity>,
}
