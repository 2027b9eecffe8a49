//! The arguments of the calls that have an effect: frozen in the record, sent again unchanged (csi.md 10, 5).

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How many nodes and writers; numbers as in csi.md 2.8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum AccessMode {
    /// 1
    SingleNodeWriter,
    /// 3
    MultiNodeReaderOnly,
    /// 5
    MultiNodeMultiWriter,
    /// 6
    SingleNodeSingleWriter,
    /// 7
    SingleNodeMultiWriter,
}

impl AccessMode {
    /// Returns the number on the wire.
    pub fn number(self) -> i32 {
        match self {
            Self::SingleNodeWriter => 1,
            Self::MultiNodeReaderOnly => 3,
            Self::MultiNodeMultiWriter => 5,
            Self::SingleNodeSingleWriter => 6,
            Self::SingleNodeMultiWriter => 7,
        }
    }

    /// Returns what a kubelet sends for a Kubernetes access mode (csi.md 2.8); `None` for an unknown one.
    pub fn from_kubernetes(mode: &str, multi_writer_capable: bool) -> Option<Self> {
        match (mode, multi_writer_capable) {
            ("ReadWriteOnce", true) => Some(Self::SingleNodeMultiWriter),
            ("ReadWriteOncePod", true) => Some(Self::SingleNodeSingleWriter),
            ("ReadWriteOnce" | "ReadWriteOncePod", false) => Some(Self::SingleNodeWriter),
            ("ReadOnlyMany", _) => Some(Self::MultiNodeReaderOnly),
            ("ReadWriteMany", _) => Some(Self::MultiNodeMultiWriter),
            _ => None,
        }
    }
}

/// How a volume is shown: its PV's `volumeMode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum VolumeMode {
    /// Mounted in a directory.
    #[default]
    Filesystem,
    /// As a raw block device.
    Block,
}

impl VolumeMode {
    /// Returns whether it is the default, which records leave out.
    pub fn is_filesystem(&self) -> bool {
        *self == Self::Filesystem
    }
}

/// A volume capability as sent in Stage, Publish and Expand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capability {
    /// File system or block; the three that follow are empty for block.
    #[serde(default, skip_serializing_if = "VolumeMode::is_filesystem")]
    pub volume_mode: VolumeMode,
    /// The pod's fsGroup, in decimal, for drivers with VOLUME_MOUNT_GROUP; else empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mount_group: String,
    /// Empty: the driver's default.
    pub fs_type: String,
    /// The PV's mountOptions as written, order and duplicates kept.
    pub mount_flags: Vec<String>,
    /// From `accessModes[0]`.
    pub access_mode: AccessMode,
}

/// Whether the driver is called to stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StagingKind {
    /// STAGE_UNSTAGE_VOLUME: NodeStageVolume and NodeUnstageVolume.
    Call,
    /// Without it a kubelet makes an empty `globalmount` and calls nothing (kubelet.md 5.2).
    DirectoryOnly,
}

/// NodeStageVolume without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageArguments {
    /// Whether there is a call at all.
    pub kind: StagingKind,
    /// Absolute.
    pub staging_path: PathBuf,
    /// From the VolumeAttachment, verbatim.
    pub publish_context: BTreeMap<String, String>,
    /// How it is to be used.
    pub capability: Capability,
    /// The PV's volumeAttributes, verbatim.
    pub volume_context: BTreeMap<String, String>,
}

/// NodePublishVolume without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishArguments {
    /// Absolute; the driver makes it, its parent is ours.
    pub target_path: PathBuf,
    /// Absolute; `None` without STAGE_UNSTAGE_VOLUME and for inline volumes.
    pub staging_path: Option<PathBuf>,
    /// From the VolumeAttachment, verbatim.
    pub publish_context: BTreeMap<String, String>,
    /// How it is to be used.
    pub capability: Capability,
    /// The pod's readOnly, not the PV's (csi.md 2.10).
    pub read_only: bool,
    /// The volume's attributes and, with podInfoOnMount, the pod's.
    pub volume_context: BTreeMap<String, String>,
}

/// NodeExpandVolume without its secrets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpandArguments {
    /// Where the volume is published.
    pub volume_path: PathBuf,
    /// Where it is staged; `None` for drivers without staging.
    pub staging_path: Option<PathBuf>,
    /// The size to reach, in bytes.
    pub required_bytes: u64,
    /// How it is used.
    pub capability: Capability,
}
