//! CSI volumes: directories and `vol_data.json` as a kubelet makes them, and the driver's four calls (kubelet.md 5).

#[cfg(test)]
#[path = "csi_tests.rs"]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::{Answer, Call, Site, VolumeType, host_failure, pod_directories};
use crate::BoxFuture;
use crate::csi::{CallError, Code, Driver};
use crate::host::{Directory, Removal, Tree};
use crate::model::{
    BlockedCause, Capability, DriverName, Effect, Failure, Lifecycle, MountsAt, PublicationId,
    PublishArguments, RecordedVolume, Retry, RootPath, SecretMap, StageArguments, StagingKind, VOL_DATA,
    VolData,
};
use crate::proto::csi as wire;

/// The type.
#[derive(Debug)]
pub(super) struct Csi;

/// A call older than this no longer counts against its driver's limit (design 5).
const SLOT_AGE: Duration = Duration::from_secs(5);

impl VolumeType for Csi {
    fn stage<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        arguments: &'a StageArguments,
        secrets: &'a SecretMap,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let target = Target::of(call)?;
            let staging = site.layout.csi_staging(target.name, target.handle);
            let volume = site.layout.csi_volume(target.name, target.handle);
            // Staging is repeated where an earlier try left its mount: then the directory lies below it.
            let mounts = site.host.mounts().await.map_err(|error| host_failure(&error, Effect::NotDone))?;
            let directories = match mounts.at(&arguments.staging_path) {
                MountsAt::None => vec![directory(&staging, 0o750)],
                MountsAt::One(_) | MountsAt::Stacked(_) => Vec::new(),
            };
            // A kubelet writes the file only when there is something to undo (kubelet.md 5.2).
            let files = match arguments.kind {
                StagingKind::Call => {
                    vec![(
                        volume.join(VOL_DATA),
                        VolData::staging(target.name, target.handle).to_bytes(),
                        0o644,
                    )]
                }
                StagingKind::DirectoryOnly => Vec::new(),
            };
            create(site, directories, files).await?;
            if arguments.kind == StagingKind::DirectoryOnly {
                return Ok(());
            }
            let request = wire::NodeStageVolumeRequest {
                volume_id: target.handle.to_owned(),
                publish_context: arguments.publish_context.clone(),
                staging_target_path: path_text(&arguments.staging_path),
                volume_capability: Some(capability(&arguments.capability)),
                secrets: secrets.reveal().clone(),
                volume_context: arguments.volume_context.clone(),
            };
            target.sent(target.driver.stage(request)).await.map_err(|error| failure(&error))
        })
    }

    fn publish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        id: &'a PublicationId,
        arguments: Option<&'a PublishArguments>,
        secrets: &'a SecretMap,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let target = Target::of(call)?;
            let arguments = arguments.ok_or_else(no_arguments)?;
            let publication = site.layout.publication(id);
            let data = VolData::publication(id, target.name, target.handle, &site.node, target.lifecycle);
            let files = vec![(publication.join(VOL_DATA), data.to_bytes(), 0o644)];
            // The target itself is the driver's to make (csi.md 2.7).
            create(site, vec![directory(&publication, 0o750)], files).await?;
            let request = wire::NodePublishVolumeRequest {
                volume_id: target.handle.to_owned(),
                publish_context: arguments.publish_context.clone(),
                staging_target_path: arguments.staging_path.as_deref().map(path_text).unwrap_or_default(),
                target_path: path_text(&arguments.target_path),
                volume_capability: Some(capability(&arguments.capability)),
                readonly: arguments.read_only,
                secrets: secrets.reveal().clone(),
                volume_context: arguments.volume_context.clone(),
            };
            target.sent(target.driver.publish(request)).await.map_err(|error| failure(&error))
        })
    }

    fn unpublish<'a>(
        &'a self,
        _site: &'a Site,
        call: &'a Call,
        _id: &'a PublicationId,
        arguments: Option<&'a PublishArguments>,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            let target = Target::of(call)?;
            let arguments = arguments.ok_or_else(no_arguments)?;
            let request = wire::NodeUnpublishVolumeRequest {
                volume_id: target.handle.to_owned(),
                target_path: path_text(&arguments.target_path),
            };
            undone(target.sent(target.driver.unpublish(request)).await)
        })
    }

    fn clean_publication<'a>(
        &'a self,
        site: &'a Site,
        id: &'a PublicationId,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let publication = site.layout.publication(id);
            let if_empty = pod_directories(&publication);
            clean(site, site.layout.csi_target(id), publication, if_empty).await
        })
    }

    fn unstage<'a>(
        &'a self,
        _site: &'a Site,
        call: &'a Call,
        arguments: &'a StageArguments,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            if arguments.kind == StagingKind::DirectoryOnly {
                return Ok(Answer::Done);
            }
            let target = Target::of(call)?;
            let request = wire::NodeUnstageVolumeRequest {
                volume_id: target.handle.to_owned(),
                staging_target_path: path_text(&arguments.staging_path),
            };
            undone(target.sent(target.driver.unstage(request)).await)
        })
    }

    fn clean_staging<'a>(
        &'a self,
        site: &'a Site,
        arguments: &'a StageArguments,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let staging = site.layout.relative(&arguments.staging_path);
            let (Some(staging), Some(volume)) = (staging.clone(), staging.and_then(|path| path.parent()))
            else {
                return Ok(());
            };
            // The driver's directory above stays, as a kubelet leaves it.
            clean(site, staging, volume, Vec::new()).await
        })
    }
}

/// A CSI volume and who to call for it.
struct Target<'a> {
    name: &'a DriverName,
    handle: &'a str,
    lifecycle: Lifecycle,
    driver: &'a Arc<dyn Driver>,
    slots: &'a Arc<Semaphore>,
}

impl<'a> Target<'a> {
    fn of(call: &'a Call) -> Result<Self, Failure> {
        match (&call.volume, &call.driver) {
            (RecordedVolume::Csi { driver: name, handle, lifecycle }, Some(line)) => {
                Ok(Self { name, handle, lifecycle: *lifecycle, driver: &line.client, slots: &line.slots })
            }
            (RecordedVolume::Csi { .. } | RecordedVolume::EmptyDir, _) => Err(Failure::not_done(
                "no-driver",
                "there is no driver to call",
                "report this as a fault of volumed",
            )),
        }
    }

    /// Makes a call: waits for a slot, gives the slot back when the call is 5 s old, gives up at the driver's deadline.
    async fn sent(&self, call: BoxFuture<'_, Result<(), CallError>>) -> Result<(), CallError> {
        let permit = self.slots.acquire().await;
        let deadline = self.driver.deadline();
        let timed = tokio::time::timeout(deadline, call);
        tokio::pin!(timed);
        let early = tokio::select! {
            biased;
            // Both are cancel-safe: `timed` is polled on below, the sleep is only a mark in time.
            answer = &mut timed => Some(answer),
            () = tokio::time::sleep(SLOT_AGE) => None,
        };
        drop(permit);
        let answer = match early {
            Some(answer) => answer,
            None => timed.await,
        };
        answer.unwrap_or_else(|_elapsed| {
            Err(CallError {
                method: "call",
                code: Code::DEADLINE_EXCEEDED,
                message: format!("no answer within {} s", deadline.as_secs()),
                sent: true,
            })
        })
    }
}

fn no_arguments() -> Failure {
    Failure::not_done("no-arguments", "the record has no arguments", "report this as a fault of volumed")
}

fn directory(path: &RootPath, mode: u32) -> Directory {
    Directory { path: path.clone(), mode, exact: false }
}

async fn create(
    site: &Site,
    directories: Vec<Directory>,
    files: Vec<(RootPath, Vec<u8>, u32)>,
) -> Result<(), Failure> {
    site.host.create(Tree { directories, files }).await.map_err(|error| host_failure(&error, Effect::NotDone))
}

/// Removes the mount's directory first, so that `vol_data.json` stays as long as there is something it describes.
async fn clean(
    site: &Site,
    mount: RootPath,
    volume: RootPath,
    if_empty: Vec<RootPath>,
) -> Result<(), Failure> {
    let may_be_done = |error| host_failure(&error, Effect::MayBeDone);
    let first = Removal { directories: vec![mount], ..Removal::default() };
    site.host.remove(first).await.map_err(may_be_done)?;
    let rest = Removal {
        files: vec![volume.join(VOL_DATA)],
        directories: vec![volume],
        if_empty,
        ..Removal::default()
    };
    site.host.remove(rest).await.map_err(may_be_done)
}

fn path_text(path: &std::path::Path) -> String {
    // Made of the root, which is UTF-8 (checked at start), and of checked names.
    path.to_string_lossy().into_owned()
}

fn capability(capability: &Capability) -> wire::VolumeCapability {
    use wire::volume_capability::{AccessMode, AccessType, MountVolume};
    wire::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume {
            fs_type: capability.fs_type.clone(),
            mount_flags: capability.mount_flags.clone(),
            volume_mount_group: String::new(),
        })),
        access_mode: Some(AccessMode { mode: capability.access_mode.number() }),
    }
}

fn undone(answer: Result<(), CallError>) -> Result<Answer, Failure> {
    match answer {
        Ok(()) => Ok(Answer::Done),
        Err(error) if error.code == Code::NOT_FOUND => Ok(Answer::NotFound),
        Err(error) => {
            let failure = failure(&error);
            // What came up must come down: nothing but success ends an undo (csi.md 2.3).
            let retry = match failure.retry {
                Retry::WhenChanged => Retry::Slow,
                Retry::Backoff | Retry::Slow => failure.retry,
            };
            Err(Failure { retry, ..failure })
        }
    }
}

/// Says what a failed call means (csi.md 2.2).
fn failure(error: &CallError) -> Failure {
    let (retry, remedy) = match error.code {
        Code::INVALID_ARGUMENT | Code::OUT_OF_RANGE => (
            Retry::Slow,
            "the driver says that the request is wrong: look at the PV, its attributes and mountOptions",
        ),
        Code::UNIMPLEMENTED => {
            (Retry::Slow, "the driver does not have this call: look at its version and flags")
        }
        Code::PERMISSION_DENIED | Code::UNAUTHENTICATED => {
            (Retry::Backoff, "look at the Secret that the PV names: the driver refuses its content")
        }
        Code::NOT_FOUND => {
            (Retry::Backoff, "the driver does not know the volume: look at the PV's volumeHandle")
        }
        Code::UNAVAILABLE => (Retry::Backoff, "look whether the driver runs, and at its log"),
        _ => (Retry::Backoff, "look at the driver's log"),
    };
    Failure {
        effect: if error.sent { Effect::MayBeDone } else { Effect::NotDone },
        settled: error.code.is_final(),
        retry,
        cause: BlockedCause::new(error.code.name(), format!("{}: {}", error.method, error.message)),
        remedy: remedy.to_owned(),
    }
}
