//! The wish: what the manifests say of each volume.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{
    DiskSource, DriverName, FsKind, KeySource, ObjectRef, PodUid, PublicationId, SecretMap, VolumeKey,
    VolumeMode,
};

/// What was decided about every publication that a manifest or a record names. Only `desired` makes one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// The manifests were read at least once: what is not listed below is not wanted.
    pub is_read: bool,
    /// By volume. A recorded publication that is not in here is not decided about yet: nothing moves, as if held.
    pub volumes: BTreeMap<VolumeKey, Arc<WantVolume>>,
}

/// What is wanted of one volume.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantVolume {
    /// By the place it is shown at.
    pub publications: BTreeMap<PublicationId, Want>,
}

/// The wish for one publication. Absence is a decision of its own, never a gap in a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Want {
    /// Bring it up and keep it up.
    Wanted(Arc<Wanted>),
    /// Nothing goes up, nothing comes down, nothing is repaired.
    Held(Hold),
    /// Known to be unwanted: take it down.
    Absent,
}

/// A publication to bring up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The pod.
    pub pod: PodIdentity,
    /// The names under which the pod's spec lists the volume (one claim may be listed twice).
    pub names: BTreeSet<String>,
    /// The claim that led here.
    pub claim: Option<ObjectRef>,
    /// The pod's manifest file.
    pub manifest: Option<PathBuf>,
    /// By type.
    pub volume: WantedVolume,
}

/// A wanted volume by its type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WantedVolume {
    /// Driven by a CSI driver.
    Csi(Box<CsiWant>),
    /// A directory of the host that a PersistentVolume names.
    Local(Box<LocalWant>),
    /// A block device: the host's own, or a disk of a storage system.
    Device(Box<DeviceWant>),
    /// A directory that an NFS server exports.
    Nfs(Box<NfsWant>),
    /// An empty directory on disk.
    EmptyDir {
        /// The group that it is given to.
        ownership: Option<Ownership>,
    },
    /// The host's own path: nothing is made or mounted, the container uses it as it is.
    HostPath {
        /// Absolute, without `..`.
        path: PathBuf,
    },
}

/// A wanted local volume (kubelet.md 4.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalWant {
    /// The host's directory: absolute, without `..`.
    pub path: PathBuf,
    /// As written: what is shown to the pod has those of every mount.
    pub mount_flags: Vec<String>,
    /// Kubernetes' name of `accessModes[0]`; ReadWriteOnce when there is none.
    pub access_mode: String,
    /// The pod's readOnly.
    pub read_only: bool,
    /// As of a CSI volume.
    pub single_pod: bool,
    /// The pod's fsGroup, for what nobody else on this node has.
    pub ownership: Option<Ownership>,
}

/// A wanted block device (kubelet.md 4.6, 4.8, 4.9): mounted once for the node and bound for each pod, or shown raw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceWant {
    /// The disk.
    pub disk: DiskSource,
    /// With a file system, or raw.
    pub volume_mode: VolumeMode,
    /// What a blank device is formatted with, and what another has to have; `None`: ext4, and whatever it has.
    pub fs_type: Option<FsKind>,
    /// As written.
    pub mount_flags: Vec<String>,
    /// Kubernetes' name of `accessModes[0]`; ReadWriteOnce when there is none.
    pub access_mode: String,
    /// The pod's readOnly.
    pub read_only: bool,
    /// The PV lists no mode but ReadOnlyMany, or its options say `ro`: nobody writes, not even a log is replayed.
    pub source_read_only: bool,
    /// As of a CSI volume.
    pub single_pod: bool,
    /// As of a local directory.
    pub ownership: Option<Ownership>,
    /// The PV's capacity: a smaller device is not formatted, and a larger one lets the file system grow.
    pub size: Option<SizeWant>,
    /// The file system grows as soon as the device does (`volumed.io/auto-grow`).
    pub auto_grow: bool,
    /// It is encrypted at rest (`volumed.io/encryption`), with the key from here.
    pub key: Option<KeySource>,
    /// The Secret with that key, and the passwords for an iSCSI target.
    pub secrets: Arc<SecretMap>,
}

/// A wanted NFS volume (kubelet.md 4.7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NfsWant {
    /// Host name or address; an IPv6 address without brackets.
    pub server: String,
    /// The server's path: absolute, without `..`.
    pub path: String,
    /// The PV's, as written: mount.nfs reads them.
    pub mount_flags: Vec<String>,
    /// Kubernetes' name of `accessModes[0]`; ReadWriteOnce when there is none.
    pub access_mode: String,
    /// The source's readOnly, or the pod's, or the PV lists no mode but ReadOnlyMany.
    pub read_only: bool,
    /// As of a CSI volume.
    pub single_pod: bool,
}

/// A wanted CSI volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CsiWant {
    /// Who drives it.
    pub driver: DriverName,
    /// The driver's id; for inline volumes the kubelet's (`csi-` and a hash).
    pub handle: String,
    /// Whether it lives with its pod.
    pub lifecycle: Lifecycle,
    /// File system or block.
    pub volume_mode: VolumeMode,
    /// Empty: the driver's default.
    pub fs_type: String,
    /// As written.
    pub mount_flags: Vec<String>,
    /// Kubernetes' name of `accessModes[0]`; ReadWriteOnce when there is none.
    pub access_mode: String,
    /// volumeAttributes, as written.
    pub volume_context: BTreeMap<String, String>,
    /// The pod's readOnly: what the driver is told.
    pub read_only: bool,
    /// The PV says `csi.readOnly`, or lists no mode but ReadOnlyMany: with `read_only` it decides that nobody writes here, so
    /// that neither the ownership nor the size is changed.
    pub source_read_only: bool,
    /// The PV's modes are exactly ReadWriteOncePod: at most one pod of this node has it (csi.md 10, 24).
    pub single_pod: bool,
    /// The pod's fsGroup.
    pub fs_group: Option<FsGroup>,
    /// CSIDriver.requiresRepublish: NodePublish is repeated while the pod lives.
    pub republish: bool,
    /// CSIDriver.tokenRequests, when there are any.
    pub tokens: Option<TokenRequests>,
    /// The size to grow to on this node; `None` for inline volumes and PVs without a capacity.
    pub size: Option<SizeWant>,
    /// What podInfoOnMount adds; `None` when it is off.
    pub pod_info: Option<PodInfo>,
    /// Whether a publish_context is needed.
    pub attach: Attach,
    /// For NodeStage.
    pub stage_secrets: Arc<SecretMap>,
    /// For NodePublish.
    pub publish_secrets: Arc<SecretMap>,
    /// For NodeExpand.
    pub expand_secrets: Arc<SecretMap>,
}

/// A pod's fsGroup, as it concerns one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FsGroup {
    /// The group, which a driver with VOLUME_MOUNT_GROUP is handed whatever fsGroupPolicy says (csi.md 2.10).
    pub ownership: Ownership,
    /// fsGroupPolicy, file-system type and access modes ask for a change of ownership if the driver does not do it.
    pub change: bool,
}

/// A group that everything in a volume is given to (kubelet.md 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ownership {
    /// The group's number.
    pub group: u32,
    /// fsGroupChangePolicy OnRootMismatch: nothing is done where the root directory is already right.
    pub on_root_mismatch: bool,
}

/// The service-account tokens that a driver asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenRequests {
    /// Put among the secrets, not into the volume context (CSIDriver.serviceAccountTokenInSecrets).
    pub in_secrets: bool,
    /// By audience: the file that the configuration names for the pod's service account, and for how many seconds a token
    /// that does not say so itself is valid from the file's change on.
    pub files: BTreeMap<String, (PathBuf, i64)>,
}

/// What the manifests say about a volume's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SizeWant {
    /// The PV's capacity, bytes: what the volume is to have.
    pub capacity: u64,
    /// The claim's `status.capacity`, bytes, where a manifest has one: what the file system has, unless this node knows better.
    pub claimed: Option<u64>,
    /// The claim says that expansion is under way for all nodes (kubelet.md 8, RWX with allocatedResources): NodeExpand is
    /// called once on this node even if `claimed` is already the capacity.
    pub every_node: bool,
}

/// Whether a CSI volume outlives its pod (kubelet.md 3, volumeLifecycleMode).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lifecycle {
    /// A PersistentVolume.
    Persistent,
    /// Inline in the pod: published only, never staged or attached.
    Ephemeral,
}

impl Lifecycle {
    /// Returns the word in `vol_data.json`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Persistent => "Persistent",
            Self::Ephemeral => "Ephemeral",
        }
    }
}

/// What is known of the volume's attachment, from CSIDriver and VolumeAttachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attach {
    /// CSIDriver says attachRequired: false, or the volume is inline.
    NotRequired,
    /// A VolumeAttachment says attached, with this publish_context.
    Attached(BTreeMap<String, String>),
    /// CSIDriver says attachRequired: true, and no VolumeAttachment says attached.
    Missing,
    /// No CSIDriver says anything and there is no VolumeAttachment: missing if the driver reports PUBLISH_UNPUBLISH_VOLUME.
    MissingIfGated,
}

/// The pod fields that drivers with podInfoOnMount get (csi.md 2.10).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodInfo {
    /// `spec.serviceAccountName`; `default` when the manifest names none.
    pub service_account: String,
}

/// A pod by all its names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PodIdentity {
    /// `metadata.uid`, or volumed's own from namespace and name.
    pub uid: PodUid,
    /// `metadata.namespace`, `default` when there is none.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl std::fmt::Display for PodIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pod/{}/{}", self.namespace, self.name)
    }
}

/// Why nothing moves, and what would change that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hold {
    /// For programs.
    pub code: HoldCode,
    /// What is so: names the file, object and field.
    pub detail: String,
    /// What to do about it.
    pub remedy: String,
}

/// The kinds of reasons to hold a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HoldCode {
    /// An object that the volume needs is not in any manifest.
    ObjectMissing,
    /// An object that the volume needs is invalid or contradicts another.
    ObjectInvalid,
    /// The claim is not bound to a PV.
    ClaimUnbound,
    /// A source or feature that volumed does not support yet.
    NotSupported,
    /// The pod's manifest went away, and is not yet known to stay away.
    ManifestMissing,
    /// Not every manifest could be read.
    ReadingIncomplete,
    /// Too many went away at once: an operator is to approve.
    Brake,
    /// An emptyDir that its pod no longer lists is kept until the pod goes.
    EmptyDirKept,
    /// Taken over by the operator without a manifest: kept until it is released.
    Adopted,
    /// The PV or claim behind a volume that is up was edited to mean another volume: used at the next bring-up.
    PendingEdit,
}

impl HoldCode {
    /// Returns the code as it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ObjectMissing => "object-missing",
            Self::ObjectInvalid => "object-invalid",
            Self::ClaimUnbound => "claim-unbound",
            Self::NotSupported => "not-supported",
            Self::ManifestMissing => "manifest-missing",
            Self::ReadingIncomplete => "reading-incomplete",
            Self::Brake => "brake",
            Self::EmptyDirKept => "empty-dir-kept",
            Self::Adopted => "adopted",
            Self::PendingEdit => "pending-edit",
        }
    }
}
