//! What is done to a volume, and the one vocabulary of how that ends (design 5).

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::{
    ExpandArguments, Millis, MountIdentity, ObjectRef, Ownership, PodIdentity, PublicationId,
    PublishArguments, RecordedVolume, SecretMap, SizeWant, StageArguments, TokenRequests, VolumeKey,
};

/// One step on one volume. Every step can be taken twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// NodeStageVolume, or only its directory.
    Stage(Box<StageStep>),
    /// NodePublishVolume, or what the volume type has in its place.
    Publish(Box<PublishStep>),
    /// NodePublishVolume again for what is published (requiresRepublish): a failure changes nothing (csi.md 10, 31).
    Republish(Box<PublishStep>),
    /// NodeExpandVolume for a volume that is published.
    Expand(Box<ExpandStep>),
    /// NodeUnpublishVolume, or what the volume type has in its place.
    Unpublish {
        /// The volume.
        key: VolumeKey,
        /// Where.
        id: PublicationId,
        /// Even if a process has it: the operator said so.
        force: bool,
    },
    /// NodeUnstageVolume, or only its directory.
    Unstage {
        /// The volume.
        key: VolumeKey,
        /// Even if somebody has it: the operator said so.
        force: bool,
    },
}

/// What `Step::Stage` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageStep {
    /// The volume.
    pub key: VolumeKey,
    /// For a new record.
    pub volume: RecordedVolume,
    /// What to send.
    pub arguments: StageArguments,
    /// With it.
    pub secrets: Arc<SecretMap>,
    /// The publications that will follow: their intents are written with this step's, in one synced record.
    pub planned: BTreeMap<PublicationId, PublicationPlan>,
    /// A kubelet's mount of this very volume, which is taken over by staging it again (design 4).
    pub adopt: Option<MountIdentity>,
    /// A device that has fewer bytes is not formatted.
    pub least_bytes: u64,
}

/// What `Step::Publish` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishStep {
    /// The volume.
    pub key: VolumeKey,
    /// For a new record.
    pub volume: RecordedVolume,
    /// Where.
    pub id: PublicationId,
    /// What to send and to remember.
    pub plan: PublicationPlan,
    /// With it.
    pub secrets: Arc<SecretMap>,
    /// Tokens to be read and sent with it.
    pub tokens: Option<TokenRequests>,
    /// The group that everything in it is given to.
    pub ownership: Option<Ownership>,
    /// What it is to grow to before the pod gets it, if this node does not know it to be that large.
    pub growth: Option<Growth>,
    /// It is to be repeated while the pod lives (requiresRepublish).
    pub repeats: bool,
    /// What lies there is a kubelet's, of this very publication, and is taken over by publishing it again (design 4).
    pub adopt: Option<Adoption>,
}

/// A kubelet's publication that is taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// Its mount; `None` where nothing is mounted (an emptyDir, or a driver that mounts nothing).
    pub mount: Option<MountIdentity>,
}

/// What a volume is to grow to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Growth {
    /// How large it is to be, and what is known of how large it is.
    pub size: SizeWant,
    /// Nobody writes here, so it is not grown for this pod; how large it is is noted for the pod that will.
    pub read_only: bool,
    /// What to send.
    pub arguments: ExpandArguments,
    /// With it.
    pub secrets: Arc<SecretMap>,
}

/// What `Step::Expand` does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpandStep {
    /// The volume.
    pub key: VolumeKey,
    /// What to send.
    pub arguments: ExpandArguments,
    /// With it.
    pub secrets: Arc<SecretMap>,
}

/// A publication's intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicationPlan {
    /// Whose it is.
    pub pod: PodIdentity,
    /// The names in the pod's spec.
    pub names: std::collections::BTreeSet<String>,
    /// The claim that led here.
    pub claim: Option<ObjectRef>,
    /// The pod's manifest file.
    pub manifest: Option<std::path::PathBuf>,
    /// `None` for types without calls.
    pub arguments: Option<PublishArguments>,
}

impl Step {
    /// Returns the volume it works on.
    pub fn key(&self) -> &VolumeKey {
        match self {
            Self::Stage(step) => &step.key,
            Self::Publish(step) | Self::Republish(step) => &step.key,
            Self::Expand(step) => &step.key,
            Self::Unpublish { key, .. } | Self::Unstage { key, .. } => key,
        }
    }

    /// Returns what it is, without its arguments: the unit of retry and backoff.
    pub fn kind(&self) -> StepKind {
        match self {
            Self::Stage(_) => StepKind::Stage,
            Self::Publish(step) => StepKind::Publish(step.id.clone()),
            Self::Republish(step) => StepKind::Republish(step.id.clone()),
            Self::Expand(_) => StepKind::Expand,
            Self::Unpublish { id, .. } => StepKind::Unpublish(id.clone()),
            Self::Unstage { .. } => StepKind::Unstage,
        }
    }
}

/// A step of one volume without its arguments.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StepKind {
    /// Get a publish_context.
    Attach,
    /// Bring to the node.
    Stage,
    /// Show to a pod.
    Publish(PublicationId),
    /// Show to it again.
    Republish(PublicationId),
    /// Grow.
    Expand,
    /// Take from a pod.
    Unpublish(PublicationId),
    /// Take from the node.
    Unstage,
}

impl StepKind {
    /// Returns the field's word for it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Stage => "stage",
            Self::Publish(_) => "publish",
            Self::Republish(_) => "republish",
            Self::Expand => "expand",
            Self::Unpublish(_) => "unpublish",
            Self::Unstage => "unstage",
        }
    }

    /// Returns the publication it is about.
    pub fn publication(&self) -> Option<&PublicationId> {
        match self {
            Self::Publish(id) | Self::Republish(id) | Self::Unpublish(id) => Some(id),
            Self::Attach | Self::Stage | Self::Expand | Self::Unstage => None,
        }
    }
}

/// A step that did what it was to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It made the change.
    Changed,
    /// Nothing outside the record was left to do.
    AlreadyThere,
}

/// What a failed step may have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing was sent or changed.
    NotDone,
    /// Something was sent: the effect may be there, whatever the error said.
    MayBeDone,
}

/// When a failed step is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Retry {
    /// 500 ms doubling to 2 min, with jitter.
    Backoff,
    /// 500 ms doubling to 10 s: what is waited for ends without a sign (a process that has the volume).
    Soon,
    /// 2 min from the first time on: the driver said the call itself is wrong (INVALID_ARGUMENT; csi.md 10, 30).
    Slow,
    /// When the cause changes: a manifest, the driver, the mount table, or `volumectl retry`.
    WhenChanged,
}

/// A step that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What may have been left.
    pub effect: Effect,
    /// The call ended in a final code (csi.md 2.3): other arguments may be sent without undoing it first.
    pub settled: bool,
    /// When to try again.
    pub retry: Retry,
    /// What happened, without secrets.
    pub cause: BlockedCause,
    /// What an operator can do.
    pub remedy: String,
}

impl Failure {
    /// A step that was not begun because something is in its way; tried again with backoff.
    pub fn not_done(code: &str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            effect: Effect::NotDone,
            settled: false,
            retry: Retry::Backoff,
            cause: BlockedCause::new(code, detail),
            remedy: remedy.into(),
        }
    }
}

/// What is told of a volume that its driver makes larger only while nobody uses it.
pub const GROWS_UNUSED: &str = "remove the pods that use the volume: it grows when it comes up again";

/// Why a step cannot proceed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BlockedCause {
    /// For programs: the gRPC code's name (`UNAVAILABLE`), or a word such as `driver-not-registered`.
    pub code: String,
    /// For people.
    pub detail: String,
}

impl BlockedCause {
    /// Names a cause.
    pub fn new(code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { code: code.into(), detail: detail.into() }
    }
}

/// A step that cannot proceed: the one source for volumectl, events, metrics and the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Blocked {
    /// `attach`, `stage`, ...: `StepKind::name`, or `resolve` for what the manifests leave open.
    pub step: String,
    /// The publication it is about; `None` for the whole volume.
    pub publication: Option<PublicationId>,
    /// Why.
    pub cause: BlockedCause,
    /// Since when, ms since the epoch.
    pub since: Millis,
    /// How often it was tried.
    pub attempts: u32,
    /// When it is tried again, ms since the epoch; `None`: when something changes.
    pub next_try: Option<Millis>,
    /// What an operator can do.
    pub remedy: String,
}
