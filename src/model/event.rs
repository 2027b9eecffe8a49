//! What happened, told once; telemetry makes journal lines of it.

use std::path::PathBuf;

use super::{
    BlockedCause, DriverName, Hold, Millis, ObjectRef, PodIdentity, Problem, PublicationId, VolumeKey,
};

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// ms since the epoch.
    pub at: Millis,
    /// What.
    pub kind: EventKind,
}

/// Where events are told. Cheap to clone; telling never waits.
#[derive(Clone)]
pub struct Events(std::sync::Arc<dyn Fn(Event) + Send + Sync>);

impl Events {
    /// Takes what is done with each event.
    pub fn new(tell: impl Fn(Event) + Send + Sync + 'static) -> Self {
        Self(std::sync::Arc::new(tell))
    }

    /// Tells an event.
    pub fn tell(&self, event: Event) {
        (self.0)(event);
    }
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

/// The kinds of things that happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventKind {
    /// A step ended well and changed something.
    StepDone {
        /// The volume.
        key: VolumeKey,
        /// `stage`, `publish`, ...
        step: &'static str,
        /// For publish and unpublish.
        publication: Option<PublicationId>,
        /// For publish and unpublish.
        pod: Option<PodIdentity>,
        /// The claim that led to the publication.
        claim: Option<ObjectRef>,
        /// Who drives it.
        driver: Option<DriverName>,
        /// Milliseconds from start to end.
        took_ms: u64,
        /// The driver answered OK and left no mount.
        not_a_mount_point: bool,
    },
    /// A step failed and will be tried again.
    StepFailed {
        /// The volume.
        key: VolumeKey,
        /// `stage`, `publish`, ...
        step: &'static str,
        /// For publish and unpublish.
        publication: Option<PublicationId>,
        /// For publish and unpublish.
        pod: Option<PodIdentity>,
        /// The claim that led to the publication.
        claim: Option<ObjectRef>,
        /// Who drives it.
        driver: Option<DriverName>,
        /// Why.
        cause: BlockedCause,
        /// How often it was tried.
        attempts: u32,
        /// Milliseconds until the next try; `None`: when something changes.
        next_try_ms: Option<u64>,
    },
    /// A volume of a pod is held.
    Held {
        /// The pod.
        pod: PodIdentity,
        /// The volume's name in the pod's spec.
        volume: String,
        /// Why.
        hold: Hold,
    },
    /// Something about a volume that an operator should know: a check that mended its file system, a growth, a name that does not
    /// last.
    Noted {
        /// The volume.
        key: VolumeKey,
        /// What.
        note: String,
    },
    /// A mount that was there is gone; it is made again.
    Vanished {
        /// The volume.
        key: VolumeKey,
        /// Where.
        path: PathBuf,
    },
    /// The file system of a volume does not answer any more; it is mounted anew when its driver, or its disk, is there.
    Died {
        /// The volume.
        key: VolumeKey,
        /// Where.
        path: PathBuf,
        /// What the kernel says.
        reason: String,
    },
    /// What somebody else made is volumed's now.
    Adopted {
        /// The volume.
        key: VolumeKey,
        /// Where.
        path: PathBuf,
    },
    /// A driver registered, came back, or was replaced by a newer instance.
    DriverReady {
        /// Who.
        driver: DriverName,
        /// Its socket.
        endpoint: PathBuf,
    },
    /// A driver does not answer or went away; its volumes stay.
    DriverGone {
        /// Who.
        driver: DriverName,
        /// Why.
        reason: String,
    },
    /// A driver says that it is not ready or not well; it is called all the same unless it is starting up.
    DriverUnwell {
        /// Who.
        driver: DriverName,
        /// What its Probe said.
        reason: String,
    },
    /// A driver that was not well is.
    DriverWell {
        /// Who.
        driver: DriverName,
    },
    /// Something is wrong with a published volume.
    VolumeUnwell {
        /// The volume.
        key: VolumeKey,
        /// The driver that said so, if one did.
        driver: Option<DriverName>,
        /// What; cut, without control characters.
        reason: String,
    },
    /// Nothing is wrong with it any more.
    VolumeWell {
        /// The volume.
        key: VolumeKey,
        /// The driver that said so, if one did.
        driver: Option<DriverName>,
    },
    /// A plugin asked to be registered and was refused.
    RegistrationRefused {
        /// The registration socket.
        socket: PathBuf,
        /// Why; the same text the plugin got.
        reason: String,
    },
    /// Something in the manifests cannot be used.
    ManifestProblem(Problem),
    /// A problem of the manifests is gone.
    ManifestProblemGone(Problem),
    /// The mass-delete brake holds volumes.
    BrakeApplied {
        /// How many.
        held: usize,
        /// Why.
        reason: String,
    },
    /// A volume on disk without a record of ours was found.
    ForeignFound {
        /// Its directory.
        path: PathBuf,
    },
    /// The state that earlier runs left was read.
    Reconstructed {
        /// Records read.
        records: usize,
        /// Whether the host was booted since.
        rebooted: bool,
    },
}
