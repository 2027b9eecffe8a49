//! Local volumes: a directory of the host, shown to pods by bind mounts (kubelet.md 4.6). Nothing is staged, and what the
//! directory holds is never touched but for its group.

use super::{Call, Site, VolumeType, host_failure, own, vanished};
use crate::BoxFuture;
use crate::host::{Bind, Directory, HostError, Progress, Tree};
use crate::model::{Effect, Failure, MountsAt, PublishStep, RecordedVolume, Retry, StageStep};

/// The type.
#[derive(Debug)]
pub(super) struct Local;

impl VolumeType for Local {
    fn stage<'a>(
        &'a self,
        _site: &'a Site,
        _call: &'a Call,
        _step: &'a StageStep,
    ) -> BoxFuture<'a, Result<Vec<String>, Failure>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn publish<'a>(
        &'a self,
        site: &'a Site,
        call: &'a Call,
        step: &'a PublishStep,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let (RecordedVolume::Local { path }, Some(arguments)) = (&call.volume, &step.plan.arguments)
            else {
                return Err(Failure::not_done(
                    "no-arguments",
                    "the record is not that of a local volume",
                    "report this as a fault of volumed",
                ));
            };
            let target = site.layout.publication(&step.id);
            let not_done = |error: HostError| failure(&error, Effect::NotDone);
            let shown = &arguments.target_path;
            let mounts = site.host.mounts().await.map_err(not_done)?;
            let is_free = matches!(mounts.at(shown), MountsAt::None);
            drop(mounts);
            // An earlier try may have left its mount: the directory lies below it.
            if is_free {
                let directory = Directory { path: target.clone(), mode: 0o750, exact: false };
                let tree = Tree { directories: vec![directory], files: Vec::new() };
                site.host.create(tree).await.map_err(not_done)?;
            }
            let bind = Bind {
                source: path.clone(),
                target,
                read_only: arguments.read_only,
                options: arguments.capability.mount_flags.clone(),
                before: call.shown_on,
                staged: false,
            };
            let Err(error) = site.host.bind(bind).await else { return Ok(()) };
            // A child may have mounted it and died before it said so.
            let mounts = site.host.mounts().await;
            let is_there = mounts.is_ok_and(|mounts| !matches!(mounts.at(shown), MountsAt::None));
            let is_known = !matches!(error, HostError::Deadline { .. } | HostError::Busy { .. });
            Err(failure(&error, if is_known && !is_there { Effect::NotDone } else { Effect::MayBeDone }))
        })
    }

    fn finish_publication<'a>(
        &'a self,
        site: &'a Site,
        step: &'a PublishStep,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            vanished(site, step).await?;
            match step.ownership {
                Some(ownership) => own(site, site.layout.publication(&step.id), ownership, progress).await,
                None => Ok(()),
            }
        })
    }
}

/// Says what to do about a directory that cannot be shown.
fn failure(error: &HostError, effect: Effect) -> Failure {
    let remedy = match error {
        HostError::WrongMount { .. } => {
            "mount the disk that spec.local.path lies on, or remove the pods that use the volume: then it is shown as it is now"
        }
        HostError::WrongKind { .. } => "let spec.local.path of the PersistentVolume name a directory",
        HostError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            "make the directory that spec.local.path names, or mount what it lies on; volumed goes on by itself"
        }
        _ => return host_failure(error, effect),
    };
    Failure { retry: Retry::Soon, remedy: remedy.to_owned(), ..host_failure(error, effect) }
}
