//! One file per volume type behind one trait.

mod csi;
mod device;
mod empty_dir;
mod local;
mod lun;
mod nfs;

use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::BoxFuture;
use crate::csi::Driver;
use crate::error::Chain;
use crate::host::{Host, HostError, Progress, Removal};
use crate::model::{
    BlockedCause, DiskIdentity, Effect, ExpandArguments, ExpansionState, Failure, KnownContent, Layout,
    MountsAt, Ownership, PublicationId, PublishArguments, PublishStep, RecordedVolume, Retry, RootPath,
    SecretMap, StageArguments, StageStep,
};

/// Where a volume type works.
#[derive(Debug, Clone)]
pub struct Site {
    /// The kernel.
    pub host: Arc<dyn Host>,
    /// The paths.
    pub layout: Layout,
    /// This node's name.
    pub node: String,
}

/// Whom it calls, for which volume.
#[derive(Debug)]
pub struct Call {
    /// The volume.
    pub volume: RecordedVolume,
    /// Its driver; `None` for types without one.
    pub driver: Option<DriverLine>,
    /// The device number of what was published at the same place earlier in this boot; `None` where it says nothing (btrfs has
    /// other ones in stat).
    pub shown_on: Option<(u32, u32)>,
    /// The disk behind it, for types that have one: what was made sure of before it was staged.
    pub disk: Option<Disk>,
}

/// A disk with what is known to be on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Its node; of an encrypted one that of what is inside.
    pub node: PathBuf,
    /// That of the whole device, encrypted or not.
    pub device: PathBuf,
    /// What is known by that node.
    pub identity: DiskIdentity,
    /// What is on it.
    pub content: KnownContent,
}

/// A line to a driver.
#[derive(Debug, Clone)]
pub struct DriverLine {
    /// Who is called.
    pub client: Arc<dyn Driver>,
    /// Its free slots.
    pub slots: Arc<Semaphore>,
    /// Whether it has STAGE_UNSTAGE_VOLUME now.
    pub stages: bool,
}

/// How an undo was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// OK.
    Done,
    /// The driver does not know the volume: done, if nothing is there (csi.md 2.7, 11).
    NotFound,
}

/// What a volume type does in each step. The record is written, and the path looked at, by `execute`.
pub trait VolumeType: Send + Sync + Debug {
    /// Brings the volume to the node; returns what an operator should know of it.
    fn stage<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        step: &'a StageStep,
    ) -> BoxFuture<'a, Result<Vec<String>, Failure>>;

    /// Shows it to a pod, or shows it again.
    fn publish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        step: &'a PublishStep,
    ) -> BoxFuture<'a, Result<(), Failure>>;

    /// Does what the pod needs besides, once the volume is seen at its path: ownership, the device's place.
    fn finish_publication<'a>(
        &'a self,
        site: &'a Site,
        step: &'a PublishStep,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), Failure>>;

    /// Makes it larger; an error is the driver's. Many are as large as what they lie on.
    fn expand<'a>(
        &'a self,
        _site: &'a Site,
        _call: &'a Call,
        _arguments: &'a ExpandArguments,
        _secrets: &'a SecretMap,
    ) -> BoxFuture<'a, Result<(), ExpandError>> {
        Box::pin(async { Ok(()) })
    }

    /// Takes it from a pod. `forced`: even if a process has it. What is recorded as mounted there is unmounted by `execute`, which
    /// knows it (design 5, "Undo"); many need no more.
    fn unpublish<'a>(
        &'a self,
        _site: &'a Site,
        _call: &'a Call,
        _place: Place<'a>,
        _forced: bool,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async { Ok(Answer::Done) })
    }

    /// Removes our own files and empty directories of a publication, now that nothing is mounted there: mostly the target and what
    /// is above it.
    fn clean_publication<'a>(
        &'a self,
        site: &'a Site,
        place: Place<'a>,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let target = site.layout.publication(place.id);
            let if_empty = pod_directories(&target);
            let removal = Removal { directories: vec![target], if_empty, ..Removal::default() };
            site.host.remove(removal).await.map_err(|error| host_failure(&error, Effect::MayBeDone))
        })
    }

    /// Takes it from the node; what is not staged has nothing to take.
    fn unstage<'a>(
        &'a self,
        _site: &'a Site,
        _call: &'a Call,
        _arguments: &'a StageArguments,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async { Ok(Answer::Done) })
    }

    /// Removes our own files and empty directories of a staging, now that nothing is mounted there.
    fn clean_staging<'a>(
        &'a self,
        _site: &'a Site,
        _arguments: &'a StageArguments,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async { Ok(()) })
    }
}

/// A recorded publication.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Whose.
    pub id: &'a PublicationId,
    /// What was sent; `None` for types without calls.
    pub arguments: Option<&'a PublishArguments>,
}

/// Why a volume did not grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpandError {
    /// How the growth stands now.
    pub state: ExpansionState,
    /// The failure of the step.
    pub failure: Failure,
}

pub use device::failure as disk_failure;

/// Returns the type of a volume.
pub fn of(volume: &RecordedVolume) -> &'static dyn VolumeType {
    match volume {
        RecordedVolume::Csi { .. } => &csi::Csi,
        RecordedVolume::EmptyDir => &empty_dir::EmptyDir,
        RecordedVolume::Local { .. } => &local::Local,
        RecordedVolume::Device { .. } => &device::Device,
        RecordedVolume::Nfs { .. } => &nfs::Nfs,
    }
}

/// Returns the directories from a publication's own up to its pod's, which go when they are empty.
fn pod_directories(publication: &RootPath) -> Vec<RootPath> {
    // <spec> -> <plugin> -> volumes -> <uid>
    std::iter::successors(publication.parent(), RootPath::parent).take(3).collect()
}

/// Refuses what was unmounted again at once: it must not pass for a driver's volume without a mount, since the pod would write to
/// the host's own disk.
async fn vanished(site: &Site, step: &PublishStep) -> Result<(), Failure> {
    let target = site.layout.absolute(&site.layout.publication(&step.id));
    let mounts = site.host.mounts().await.map_err(|error| host_failure(&error, Effect::MayBeDone))?;
    if !matches!(mounts.at(&target), MountsAt::None) {
        return Ok(());
    }
    Err(Failure {
        effect: Effect::MayBeDone,
        settled: true,
        retry: Retry::Backoff,
        cause: BlockedCause::new(
            "vanished",
            format!("{} was unmounted as soon as it was mounted", target.display()),
        ),
        remedy: "find out who unmounts it; volumed goes on by itself".to_owned(),
    })
}

/// Gives a volume's files to the pod's group.
async fn own(site: &Site, path: RootPath, ownership: Ownership, progress: &Progress) -> Result<(), Failure> {
    let done = site.host.set_ownership(path, ownership, progress.clone()).await;
    done.map_err(|error| host_failure(&error, Effect::MayBeDone))
}

/// Returns the failure of a step that the host refused.
pub fn host_failure(error: &HostError, effect: Effect) -> Failure {
    let (code, retry, remedy) = match error {
        HostError::Busy { .. } => ("in-use", Retry::Soon, IN_USE_REMEDY),
        HostError::Io { .. }
        | HostError::NotEmpty { .. }
        | HostError::WrongKind { .. }
        | HostError::WrongMount { .. }
        | HostError::Disk(_)
        | HostError::Nfs(_)
        | HostError::Lun(_)
        | HostError::Deadline { .. } => {
            ("host", Retry::Backoff, "mend what the message names; volumed tries again by itself")
        }
    };
    Failure {
        effect,
        settled: false,
        retry,
        cause: BlockedCause::new(code, Chain(error).to_string()),
        remedy: remedy.to_owned(),
    }
}

/// What is told of a volume that somebody still has.
pub const IN_USE_REMEDY: &str =
    "stop who has it; volumed goes on by itself, or at once after volumectl release --force";
