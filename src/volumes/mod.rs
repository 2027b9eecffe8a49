//! One file per volume type behind one trait.

mod csi;
mod empty_dir;

use std::fmt::Debug;
use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::BoxFuture;
use crate::csi::Driver;
use crate::error::Chain;
use crate::host::{Host, HostError};
use crate::model::{
    BlockedCause, Effect, Failure, Layout, PublicationId, PublishArguments, RecordedVolume, Retry, RootPath,
    SecretMap, StageArguments,
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
}

/// A line to a driver.
#[derive(Debug, Clone)]
pub struct DriverLine {
    /// Who is called.
    pub client: Arc<dyn Driver>,
    /// Its free slots.
    pub slots: Arc<Semaphore>,
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
    /// Brings the volume to the node.
    fn stage<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        arguments: &'a StageArguments,
        secrets: &'a SecretMap,
    ) -> BoxFuture<'a, Result<(), Failure>>;

    /// Shows it to a pod.
    fn publish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        id: &'a PublicationId,
        arguments: Option<&'a PublishArguments>,
        secrets: &'a SecretMap,
    ) -> BoxFuture<'a, Result<(), Failure>>;

    /// Takes it from a pod.
    fn unpublish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        id: &'a PublicationId,
        arguments: Option<&'a PublishArguments>,
    ) -> BoxFuture<'a, Result<Answer, Failure>>;

    /// Removes our own files and empty directories of a publication, now that nothing is mounted there.
    fn clean_publication<'a>(
        &'a self,
        site: &'a Site,
        id: &'a PublicationId,
    ) -> BoxFuture<'a, Result<(), Failure>>;

    /// Takes it from the node.
    fn unstage<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        arguments: &'a StageArguments,
    ) -> BoxFuture<'a, Result<Answer, Failure>>;

    /// Removes our own files and empty directories of a staging, now that nothing is mounted there.
    fn clean_staging<'a>(
        &'a self,
        site: &'a Site,
        arguments: &'a StageArguments,
    ) -> BoxFuture<'a, Result<(), Failure>>;
}

/// Returns the type of a volume.
pub fn of(volume: &RecordedVolume) -> &'static dyn VolumeType {
    match volume {
        RecordedVolume::Csi { .. } => &csi::Csi,
        RecordedVolume::EmptyDir => &empty_dir::EmptyDir,
    }
}

/// Returns the directories from a publication's own up to its pod's, which go when they are empty.
fn pod_directories(publication: &RootPath) -> Vec<RootPath> {
    // <spec> -> <plugin> -> volumes -> <uid>
    std::iter::successors(publication.parent(), RootPath::parent).take(3).collect()
}

/// Returns the failure of a step that the host refused.
pub fn host_failure(error: &HostError, effect: Effect) -> Failure {
    Failure {
        effect,
        settled: false,
        retry: Retry::Backoff,
        cause: BlockedCause::new("host", Chain(error).to_string()),
        remedy: "mend what the message names; volumed tries again by itself".to_owned(),
    }
}
