//! CSI volumes: directories and `vol_data.json` as a kubelet makes them, and the driver's calls (kubelet.md 5).

mod block;
mod calls;
mod tokens;

use calls::{Target, capability, failure, not_grown, undone};

use super::{Answer, Call, ExpandError, Place, Site, VolumeType, host_failure, own, pod_directories};
use crate::BoxFuture;
use crate::host::{DeviceUsers, Directory, Progress, Removal, Tree};
use crate::model::{
    Effect, ExpandArguments, Failure, MountsAt, PublicationId, PublishArguments, PublishStep, RootPath,
    SecretMap, StageArguments, StageStep, StagingKind, VOL_DATA, VolData, VolumeMode,
};
use crate::proto::csi as wire;

/// The type.
#[derive(Debug)]
pub(super) struct Csi;

impl VolumeType for Csi {
    fn stage<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        step: &'a StageStep,
    ) -> BoxFuture<'a, Result<Vec<String>, Failure>> {
        Box::pin(async move {
            let target = Target::of(call)?;
            let arguments = &step.arguments;
            prepare_staging(site, &target, arguments).await?;
            if arguments.kind == StagingKind::DirectoryOnly {
                return Ok(Vec::new());
            }
            let request = wire::NodeStageVolumeRequest {
                volume_id: target.handle.to_owned(),
                publish_context: arguments.publish_context.clone(),
                staging_target_path: path_text(&arguments.staging_path),
                volume_capability: Some(capability(&arguments.capability)),
                secrets: step.secrets.reveal().clone(),
                volume_context: arguments.volume_context.clone(),
            };
            target.sent(target.driver.stage(request)).await.map_err(|error| failure(&error))?;
            Ok(Vec::new())
        })
    }

    fn publish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        step: &'a PublishStep,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let target = Target::of(call)?;
            let arguments = step.plan.arguments.as_ref().ok_or_else(no_arguments)?;
            prepare_publication(site, &target, &step.id, arguments).await?;
            let mut volume_context = arguments.volume_context.clone();
            let mut secrets = step.secrets.reveal().clone();
            if let Some(requests) = &step.tokens {
                let tokens = tokens::read(&*site.host, requests).await?;
                let into = if requests.in_secrets { &mut secrets } else { &mut volume_context };
                into.insert(tokens::KEY.to_owned(), tokens);
            }
            let request = wire::NodePublishVolumeRequest {
                volume_id: target.handle.to_owned(),
                publish_context: arguments.publish_context.clone(),
                staging_target_path: arguments.staging_path.as_deref().map(path_text).unwrap_or_default(),
                target_path: path_text(&arguments.target_path),
                volume_capability: Some(capability(&arguments.capability)),
                readonly: arguments.read_only,
                secrets,
                volume_context,
            };
            target.sent(target.driver.publish(request)).await.map_err(|error| failure(&error))
        })
    }

    fn finish_publication<'a>(
        &'a self,
        site: &'a Site,
        step: &'a PublishStep,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let arguments = step.plan.arguments.as_ref().ok_or_else(no_arguments)?;
            match (arguments.capability.volume_mode, step.ownership) {
                (VolumeMode::Block, _) => block::map(site, &step.id).await,
                (VolumeMode::Filesystem, Some(ownership)) => {
                    own(site, site.layout.csi_target(&step.id), ownership, progress).await
                }
                (VolumeMode::Filesystem, None) => Ok(()),
            }
        })
    }

    fn expand<'a>(
        &'a self,
        _site: &'a Site,
        call: &'a Call,
        arguments: &'a ExpandArguments,
        secrets: &'a SecretMap,
    ) -> BoxFuture<'a, Result<(), ExpandError>> {
        Box::pin(async move {
            let open = |failure| ExpandError { state: crate::model::ExpansionState::Open, failure };
            let target = Target::of(call).map_err(open)?;
            let request = wire::NodeExpandVolumeRequest {
                volume_id: target.handle.to_owned(),
                volume_path: path_text(&arguments.volume_path),
                capacity_range: Some(wire::CapacityRange {
                    required_bytes: i64::try_from(arguments.required_bytes).unwrap_or(i64::MAX),
                    limit_bytes: 0,
                }),
                staging_target_path: arguments.staging_path.as_deref().map(path_text).unwrap_or_default(),
                volume_capability: Some(capability(&arguments.capability)),
                secrets: secrets.reveal().clone(),
            };
            target.sent(target.driver.expand(request)).await.map_err(|error| not_grown(&error))
        })
    }

    fn unpublish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        place: Place<'a>,
        forced: bool,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            let target = Target::of(call)?;
            let arguments = place.arguments.ok_or_else(no_arguments)?;
            if arguments.capability.volume_mode == VolumeMode::Block {
                let users = match forced {
                    true => DeviceUsers::Ignored,
                    false => DeviceUsers::Count { driver: target.driver.pid() },
                };
                block::unmap(site, place.id, users).await?;
            }
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
        place: Place<'a>,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let mode = place.arguments.map(|arguments| arguments.capability.volume_mode);
            if mode == Some(VolumeMode::Block) {
                return block::clean_publication(site, place.id).await;
            }
            let publication = site.layout.publication(place.id);
            let if_empty = pod_directories(&publication);
            clean(site, site.layout.csi_target(place.id), publication, if_empty).await
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
            if call.driver.as_ref().is_some_and(|line| !line.stages) {
                // It lost the capability since it staged: a kubelet only tidies then, and so nothing may be mounted.
                return Ok(Answer::NotFound);
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
            let Some(staging) = site.layout.relative(&arguments.staging_path) else { return Ok(()) };
            if arguments.capability.volume_mode == VolumeMode::Block {
                return block::clean_staging(site, staging).await;
            }
            let Some(volume) = staging.parent() else { return Ok(()) };
            // The driver's directory above stays, as a kubelet leaves it.
            clean(site, staging, volume, Vec::new()).await
        })
    }
}

/// Makes the staging directory and its `vol_data.json`.
async fn prepare_staging(
    site: &Site,
    target: &Target<'_>,
    arguments: &StageArguments,
) -> Result<(), Failure> {
    let Some(staging) = site.layout.relative(&arguments.staging_path) else {
        return Err(Failure::not_done(
            "obstacle",
            format!("{} is not below the root directory", arguments.staging_path.display()),
            "start volumed with the root directory that staged the volume",
        ));
    };
    // Staging is repeated where an earlier try left its mount: then the directory lies below it.
    let mounts = site.host.mounts().await.map_err(|error| host_failure(&error, Effect::NotDone))?;
    // Of a block volume nothing is staged without the call; for a file system a kubelet makes the directory all the same.
    let nothing =
        (arguments.capability.volume_mode, arguments.kind) == (VolumeMode::Block, StagingKind::DirectoryOnly);
    let directories = match mounts.at(&arguments.staging_path) {
        MountsAt::None if !nothing => vec![directory(&staging, 0o750)],
        MountsAt::None | MountsAt::One(_) | MountsAt::Stacked(_) => Vec::new(),
    };
    let files = match (arguments.capability.volume_mode, arguments.kind) {
        (VolumeMode::Block, _) => block::data(site, target, &staging).into_iter().collect(),
        // A kubelet writes the file only when there is something to undo (kubelet.md 5.2).
        (VolumeMode::Filesystem, StagingKind::DirectoryOnly) => Vec::new(),
        (VolumeMode::Filesystem, StagingKind::Call) => {
            let data = VolData::staging(target.name, target.handle).to_bytes();
            staging.parent().map(|volume| (volume.join(VOL_DATA), data, 0o644)).into_iter().collect()
        }
    };
    create(site, directories, files).await
}

/// Makes the target's parent and `vol_data.json`. The target itself is the driver's to make (csi.md 2.7).
async fn prepare_publication(
    site: &Site,
    target: &Target<'_>,
    id: &PublicationId,
    arguments: &PublishArguments,
) -> Result<(), Failure> {
    match arguments.capability.volume_mode {
        VolumeMode::Block => {
            let directories = site.layout.block_target(id).parent();
            let directories = directories.iter().map(|parent| directory(parent, 0o750)).collect();
            create(site, directories, vec![block::data_file(site, target, &id.spec)]).await
        }
        VolumeMode::Filesystem => {
            let publication = site.layout.publication(id);
            let data = VolData::publication(id, target.name, target.handle, &site.node, target.lifecycle);
            let files = vec![(publication.join(VOL_DATA), data.to_bytes(), 0o644)];
            create(site, vec![directory(&publication, 0o750)], files).await
        }
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
