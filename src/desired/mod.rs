//! Objects -> Desired: which volume each pod wants, claims resolved, absence decided.

use std::collections::BTreeMap;

use crate::manifest::Manifests;
use crate::model::{
    BrakeStatus, Desired, Hold, Link, ManifestSource, ObjectRef, PodIdentity, PodUid, Problem, PublicationId,
    PublicationRecord, ReadingState, VolumeKey, Wanted,
};

/// What the manifests of one reading come to, before absence is decided.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    /// The reading it came from.
    pub reading: ReadingState,
    /// The manifests' problems and those found on the way, sorted.
    pub problems: Vec<Problem>,
    /// Every pod of the manifests, the broken ones too (all their volumes held).
    pub pods: BTreeMap<PodUid, ResolvedPod>,
}

/// A pod and the volumes that its containers use.
#[derive(Debug, Clone)]
pub struct ResolvedPod {
    /// Its names.
    pub identity: PodIdentity,
    /// Its manifest.
    pub source: ManifestSource,
    /// `metadata.deletionTimestamp` is set: its volumes are absent at once.
    pub leaving: bool,
    /// Set for a pod whose manifest is stale or broken: every recorded publication of it that is not wanted below is held.
    pub held: Option<Hold>,
    /// By name in the spec.
    pub volumes: BTreeMap<String, ResolvedVolume>,
}

/// A volume of a pod.
#[derive(Debug, Clone)]
pub struct ResolvedVolume {
    /// The claim it names.
    pub claim: Option<ObjectRef>,
    /// `manifest` and `claim` links of the causal chain.
    pub links: Vec<Link>,
    /// PV capacity in bytes.
    pub capacity: Option<u64>,
    /// Kubernetes' name of the first access mode.
    pub access_mode: Option<String>,
    /// What it came to.
    pub want: ResolvedWant,
}

/// What a volume of a pod came to.
#[derive(Debug, Clone)]
pub enum ResolvedWant {
    /// Two names of one claim in one pod give the same key and id; `wanted.names` then has both.
    Wanted {
        /// The volume.
        key: VolumeKey,
        /// Its place.
        id: PublicationId,
        /// How.
        wanted: Box<Wanted>,
    },
    /// Not now.
    Held(Hold),
}

/// Looks the volumes of every pod up. Pure.
pub fn resolve(_manifests: &Manifests, _node: &str) -> Resolved {
    Resolved::default()
}

/// A publication that a record names.
#[derive(Debug, Clone, Copy)]
pub struct Recorded<'a> {
    /// The volume.
    pub key: &'a VolumeKey,
    /// Its place.
    pub id: &'a PublicationId,
    /// What the record says of it.
    pub record: &'a PublicationRecord,
}

/// Decides absence over time: two complete readings, `removal_grace` apart, and the mass-delete brake (design 3).
#[derive(Debug, Default)]
pub struct Absences {}

/// What `Absences::settle` decided.
#[derive(Debug, Default)]
pub struct Settled {
    /// For plan.
    pub desired: Desired,
    /// Set while the brake holds something.
    pub brake: Option<BrakeStatus>,
    /// Ask again at this moment (ms of the same clock), even if nothing changes.
    pub again_at_ms: Option<u64>,
}

impl Absences {
    /// Takes the grace between two readings and how long the brake holds, ms.
    pub fn new(_removal_grace_ms: u64, _brake_release_after_ms: Option<u64>) -> Self {
        Self::default()
    }

    /// Decides for every recorded publication. `now_ms` is tokio time since the daemon's start, `wall` ms since the epoch.
    pub fn settle<'a>(
        &mut self,
        _resolved: &Resolved,
        _recorded: impl IntoIterator<Item = Recorded<'a>>,
        _now_ms: u64,
        _wall: crate::model::Millis,
    ) -> Settled {
        Settled::default()
    }

    /// Returns the publications that the brake holds: what `volumectl approve` writes into the records.
    pub fn braked(&self) -> Vec<PublicationId> {
        Vec::new()
    }
}
