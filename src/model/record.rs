//! The durable truth about one volume: what may have been done, written before it is done (design 5).

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{
    DiskSource, DriverName, ExpandArguments, Lifecycle, MountIdentity, ObjectRef, PodIdentity, PublicationId,
    PublicationPlan, PublishArguments, StageArguments, VolumeKey,
};

/// The kernel's random id of this boot (`/proc/sys/kernel/random/boot_id`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub String);

/// Everything known durably about one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    /// 1
    pub version: u32,
    /// The volume.
    pub key: VolumeKey,
    /// What is needed to take it down without any manifest.
    pub volume: RecordedVolume,
    /// The staging call, if one was ever intended and not undone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging: Option<StagingRecord>,
    /// The publications that were ever intended and not undone.
    #[serde(default)]
    // Boxed here and in `Have` and `Status`: a map's node has room for eleven values, and most volumes have one.
    pub publications: BTreeMap<PublicationId, Box<PublicationRecord>>,
    /// The size that the volume is known to have on this node, bytes; only for drivers that expand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// A growth that was begun and is not known to be done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expansion: Option<Box<ExpansionRecord>>,
}

impl VolumeRecord {
    /// The format written today.
    pub const VERSION: u32 = 1;

    /// Starts a record with nothing done.
    pub fn new(key: VolumeKey, volume: RecordedVolume) -> Self {
        Self {
            version: Self::VERSION,
            key,
            volume,
            staging: None,
            publications: BTreeMap::new(),
            size: None,
            expansion: None,
        }
    }

    /// Returns whether nothing is left to remember.
    pub fn is_spent(&self) -> bool {
        self.staging.is_none() && self.publications.is_empty()
    }
}

/// The volume by its type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum RecordedVolume {
    /// Driven by a CSI driver.
    Csi {
        /// Who drives it.
        driver: DriverName,
        /// The driver's id of the volume.
        handle: String,
        /// Whether it lives with its pod.
        lifecycle: Lifecycle,
    },
    /// A directory that volumed made.
    EmptyDir,
    /// A directory of the host's.
    Local {
        /// Which.
        path: PathBuf,
    },
    /// A block device.
    Device {
        /// Which.
        disk: DiskSource,
        /// Where its key comes from, if it is encrypted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<KeySource>,
    },
    /// A directory that an NFS server exports.
    Nfs {
        /// Host name or address; an IPv6 address without brackets.
        server: String,
        /// The server's path.
        path: String,
    },
}

/// Where the key of an encrypted disk comes from: never the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeySource {
    /// The value `key` of a Secret.
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// A credential that systemd passes to the unit (LoadCredential=).
    Credential(String),
}

impl std::fmt::Display for KeySource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Secret { namespace, name } => write!(f, "Secret {namespace}/{name}"),
            Self::Credential(name) => write!(f, "the credential {name}"),
        }
    }
}

impl RecordedVolume {
    /// Returns where the key of an encrypted disk comes from.
    pub fn key(&self) -> Option<&KeySource> {
        match self {
            Self::Device { key, .. } => key.as_ref(),
            Self::Csi { .. } | Self::EmptyDir | Self::Local { .. } | Self::Nfs { .. } => None,
        }
    }

    /// Returns the disk of a volume that is on one.
    pub fn disk(&self) -> Option<&DiskSource> {
        match self {
            Self::Device { disk, .. } => Some(disk),
            Self::Csi { .. } | Self::EmptyDir | Self::Local { .. } | Self::Nfs { .. } => None,
        }
    }

    /// Returns the driver of a volume that has one.
    pub fn driver(&self) -> Option<&DriverName> {
        match self {
            Self::Csi { driver, .. } => Some(driver),
            Self::EmptyDir | Self::Local { .. } | Self::Device { .. } | Self::Nfs { .. } => None,
        }
    }
}

/// How far a call got.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum CallState {
    /// Written down ahead of its turn, together with the staging it waits for. In the boot that wrote it nothing was sent.
    Planned,
    /// The call was or may have been sent, and is not known to have succeeded.
    Intended {
        /// The last call ended in a final code (csi.md 2.3): other arguments may be sent without undoing it first.
        #[serde(default)]
        settled: bool,
    },
    /// Succeeded and was seen in the mount table.
    Done {
        /// What was found at the path.
        mount: RecordedMount,
    },
    /// The opposite call was or may have been sent, and is not known to have succeeded.
    Undoing,
}

/// What a succeeded call left at its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RecordedMount {
    /// This mount.
    Mount(MountIdentity),
    /// "No mount here": some drivers mount nothing, and that is accepted as by a kubelet.
    NotAMountPoint,
}

/// A growth: one per volume and node (kubelet.md 8).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpansionRecord {
    /// What is sent until it is answered for good.
    pub arguments: ExpandArguments,
    /// How the last call ended.
    pub state: ExpansionState,
    /// What the driver said, where it refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub said: String,
}

/// How far a growth got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExpansionState {
    /// Sent or about to be, and not answered for good: the same size is asked for again (csi.md 10, 26).
    Open,
    /// Answered with a final error: another size may be asked for.
    Refused,
    /// FAILED_PRECONDITION: not asked for again before the volume has left the node.
    InUse,
}

/// A staging: one per volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StagingRecord {
    /// The boot in which `state` was written.
    pub boot: BootId,
    /// How far it got.
    pub state: CallState,
    /// What is sent, again and again until it is answered.
    pub arguments: StageArguments,
}

/// A publication: one per pod and volume directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublicationRecord {
    /// The boot in which `state` was written.
    pub boot: BootId,
    /// How far it got.
    pub state: CallState,
    /// Whose it is, for status and for events when the manifest is gone.
    pub pod: PodIdentity,
    /// The names under which the pod's spec lists the volume.
    pub names: BTreeSet<String>,
    /// The claim that led here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claim: Option<ObjectRef>,
    /// The manifest file that the pod came from: tells the brake which directory lost it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<PathBuf>,
    /// What is sent; `None` for volume types without calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<PublishArguments>,
    /// The operator approved the takedown (`volumectl approve`): it goes although the brake would hold it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub approved: bool,
    /// The operator made it volumed's without a manifest (`volumectl adopt`): it stays until a manifest wants it, or
    /// `volumectl release`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub adopted: bool,
    /// The operator gave it up (`volumectl release`): what is kept though nobody wants it is taken down.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub released: bool,
}

impl PublicationRecord {
    /// Starts the record of a publication.
    pub fn new(plan: &PublicationPlan, boot: BootId, state: CallState) -> Self {
        Self {
            boot,
            state,
            pod: plan.pod.clone(),
            names: plan.names.clone(),
            claim: plan.claim.clone(),
            manifest: plan.manifest.clone(),
            arguments: plan.arguments.clone(),
            approved: false,
            adopted: false,
            released: false,
        }
    }
}
