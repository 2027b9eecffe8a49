//! What the operator sees. Reconcile changes only what a pass touched; control renders it.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

use super::{
    Blocked, DriverName, DriverState, Event, Foreign, Hold, ManifestSource, Millis, ObjectRef, PodIdentity,
    PodUid, Presence, Problem, PublicationId, ReadingState, Scope, VolumeKey,
};

/// Everything shown, kept up to date by reconcile.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Passes since the daemon started; 0: the state is not yet reconstructed.
    pub pass: u64,
    /// The reading of the manifests that this status reflects.
    pub reading: ReadingState,
    /// Grows with every pass that changed more than how far steps got: what the manifests say, what is wished, or a hold.
    /// While it stays, nothing has become hopeless that was not.
    pub turn: u64,
    /// What is wrong with the manifests.
    pub problems: Vec<Problem>,
    /// Pods of the manifests, and pods that are gone but still have a volume.
    pub pods: BTreeMap<PodUid, Arc<PodStatus>>,
    /// Volumes wanted or recorded.
    pub volumes: BTreeMap<VolumeKey, VolumeStatus>,
    /// Drivers known.
    pub drivers: BTreeMap<DriverName, DriverState>,
    /// On disk without a record of ours.
    pub foreign: Vec<Foreign>,
    /// Set while the mass-delete brake holds something.
    pub brake: Option<BrakeStatus>,
    /// What the operator paused.
    pub paused: Vec<Scope>,
}

/// A pod and its volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodStatus {
    /// Its names.
    pub identity: PodIdentity,
    /// Where its manifest is; `None` once that is gone.
    pub source: Option<ManifestSource>,
    /// The pod is being deleted, or its manifest is gone.
    pub leaving: bool,
    /// Why the whole pod is held: its manifest is broken.
    pub hold: Option<Hold>,
    /// The volumes that its containers use, by name in the spec, and those still to be taken down.
    pub volumes: BTreeMap<String, Box<PodVolumeStatus>>,
}

/// A volume as a pod's spec names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodVolumeStatus {
    /// The claim it names.
    pub claim: Option<ObjectRef>,
    /// What it came to; `None` while it is held.
    pub resolved: Option<(VolumeKey, PublicationId)>,
    /// The first links of the causal chain: manifest, claim.
    pub links: Vec<Link>,
    /// Why it is held.
    pub hold: Option<Hold>,
    /// Requested or PV capacity in bytes, for lists.
    pub capacity: Option<u64>,
    /// `ReadWriteOnce`, ...
    pub access_mode: Option<String>,
}

/// One link of the chain that `volumectl explain` prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// `manifest`, `claim`, `driver`, `attach`, `stage`, `publish`.
    pub step: String,
    /// Whether it holds.
    pub state: LinkState,
    /// What is so.
    pub detail: String,
}

/// The states of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinkState {
    /// Done.
    Good,
    /// Not possible now; see Blocked.
    Failed,
    /// Its turn has not come.
    Waiting,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStatus {
    /// `kubernetes.io/csi`, ...
    pub plugin: &'static str,
    /// Driver and handle of a CSI volume.
    pub csi: Option<(DriverName, String)>,
    /// Server and path of an NFS volume.
    pub nfs: Option<(String, String)>,
    /// The staging: whether the type has one, where, and whether it is there.
    pub staging: Option<(PathBuf, Presence)>,
    /// The driver staged without a mount.
    pub staging_not_a_mount_point: bool,
    /// By place.
    pub publications: BTreeMap<PublicationId, Box<PublicationStatus>>,
    /// Publications that are gone while the volume is still staged: until it is not, their pods are shown as leaving.
    pub released: Vec<PublicationId>,
    /// Steps that cannot proceed.
    pub blocked: Vec<Blocked>,
    /// The step under way.
    pub in_progress: Option<InProgress>,
    /// What is edited and takes effect at the next bring-up.
    pub pending_change: Option<String>,
    /// The last ten events.
    pub events: VecDeque<Event>,
    /// When the state shown last changed.
    pub since: Millis,
}

/// One publication.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationStatus {
    /// The pod.
    pub pod: PodIdentity,
    /// Names in the pod's spec.
    pub names: Vec<String>,
    /// Where the pod finds it; for hostPath the host's own path.
    pub path: PathBuf,
    /// `published`, `held` or `released`: what is wished.
    pub desired: &'static str,
    /// Whether it is there.
    pub presence: Presence,
    /// The driver answered OK and left no mount: "not a mount point".
    pub not_a_mount_point: bool,
    /// Why it is held.
    pub hold: Option<Hold>,
}

/// A step under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InProgress {
    /// `stage`, ...
    pub step: &'static str,
    /// For publish and unpublish.
    pub publication: Option<PublicationId>,
    /// How far it got, in words, where it says so.
    pub detail: Option<String>,
    /// How its last try ended, if it failed: the reason stays known while it is tried again.
    pub again: Option<Box<Blocked>>,
    /// ms since the epoch.
    pub since: Millis,
}

/// What the brake holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrakeStatus {
    /// Publications held.
    pub held: usize,
    /// Why.
    pub reason: String,
    /// ms since the epoch.
    pub since: Millis,
}
