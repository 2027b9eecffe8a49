//! Objects -> Desired: which volume each pod wants, claims resolved, absence decided.
//!
//! `Resolver` looks at one reading alone; `Absences` looks at readings over time and decides what is to be taken down.

mod absence;
mod affinity;
mod annotations;
mod brake;
mod changes;
mod claim;
mod csi;
mod fc;
mod group;
mod hold;
mod index;
mod iscsi;
mod local;
mod lun;
mod modes;
mod nfs;
mod node;
mod pod;
pub mod quantity;
mod resolve;
mod resolver;
mod secrets;
mod size;
mod source;
mod tokens;
mod ways;

#[cfg(test)]
mod absence_properties;
#[cfg(test)]
mod absence_tests;
#[cfg(test)]
mod bench;
#[cfg(test)]
mod brake_tests;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::model::{
    BrakeStatus, Desired, Hold, Link, ManifestSource, ObjectRef, PodIdentity, PodUid, Problem, PublicationId,
    PublicationRecord, ReadingState, VolumeKey, Wanted,
};

pub use absence::Absences;
pub use node::{Node, TokenFiles};
pub use resolver::Resolver;

/// What the manifests of one reading come to, before absence is decided.
#[derive(Debug, Clone, Default)]
pub struct Resolved {
    /// The reading it came from.
    pub reading: ReadingState,
    /// The manifests' problems and those found on the way, sorted.
    pub problems: Vec<Problem>,
    /// Every pod of the manifests, the broken ones too (all their volumes held).
    pub pods: Arc<ResolvedPods>,
}

/// What each pod came to.
pub type ResolvedPods = BTreeMap<PodUid, Arc<ResolvedPod>>;

/// A pod and the volumes that its containers use.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    pub volumes: BTreeMap<String, Box<ResolvedVolume>>,
}

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolvedWant {
    /// Two names of one claim in one pod give the same key and id; `wanted.names` then has both.
    Wanted {
        /// The volume.
        key: VolumeKey,
        /// Its place.
        id: PublicationId,
        /// How.
        wanted: Arc<Wanted>,
    },
    /// Not now.
    Held(Hold),
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
    /// It is verified to be there: what is up is not exchanged under a living pod.
    pub up: bool,
}

/// What `Absences::settle` decided.
#[derive(Debug, Default)]
pub struct Settled {
    /// For plan.
    pub desired: Desired,
    /// Set while the brake holds something.
    pub brake: Option<BrakeStatus>,
    /// Ask again at this moment (ms of the same clock), even if nothing changes.
    pub again_at_ms: Option<u64>,
    /// Set while an absence waits for a second complete reading: one begun at or after this moment (ms of the same clock)
    /// confirms all that wait. Reading is the manifests' own affair; this only says when it helps.
    pub confirm_after_ms: Option<u64>,
}
