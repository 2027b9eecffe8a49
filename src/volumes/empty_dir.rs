//! emptyDir on disk: a directory of mode 0777 and the kubelet's `ready` marker (kubelet.md 4.2).

use super::{Answer, Call, Place, Site, VolumeType, host_failure, own, pod_directories};
use crate::BoxFuture;
use crate::host::{Directory, HostError, Progress, Removal, Tree};
use crate::model::{Effect, Failure, PublishStep, RootPath, StageStep};

/// The type.
#[derive(Debug)]
pub(super) struct EmptyDir;

const READY: &str = "ready";

impl VolumeType for EmptyDir {
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
        _call: &'a Call,
        step: &'a PublishStep,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let id = &step.id;
            let volume = site.layout.publication(id);
            let marker = site.layout.empty_dir_marker(&id.pod, &id.spec);
            let mut directories = Vec::new();
            // The plugin's directory is 0755 here and 0750 for CSI (kubelet.md 3, "Seen on a real root").
            directories.extend(volume.parent().map(|path| Directory { path, mode: 0o755, exact: false }));
            directories.push(Directory { path: volume, mode: 0o777, exact: true });
            directories.push(Directory { path: marker.clone(), mode: 0o750, exact: false });
            let tree = Tree { directories, files: vec![(marker.join(READY), Vec::new(), 0o644)] };
            site.host.create(tree).await.map_err(|error| host_failure(&error, Effect::MayBeDone))
        })
    }

    fn finish_publication<'a>(
        &'a self,
        site: &'a Site,
        step: &'a PublishStep,
        progress: &'a Progress,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            match step.ownership {
                Some(ownership) => own(site, site.layout.publication(&step.id), ownership, progress).await,
                None => Ok(()),
            }
        })
    }

    fn unpublish<'a>(
        &'a self,
        site: &'a Site,
        _call: &'a Call,
        place: Place<'a>,
        _forced: bool,
    ) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            let volume = site.layout.publication(place.id);
            site.host.remove_empty_dir(volume).await.map(|()| Answer::Done).map_err(|error| match error {
                // Somebody has it. If that was seen only on the way, what is left is all the more to be kept.
                HostError::Busy { .. } => host_failure(&error, Effect::NotDone),
                _ => host_failure(&error, Effect::MayBeDone),
            })
        })
    }

    fn clean_publication<'a>(
        &'a self,
        site: &'a Site,
        place: Place<'a>,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let id = place.id;
            let marker = site.layout.empty_dir_marker(&id.pod, &id.spec);
            // <name> -> kubernetes.io~empty-dir -> plugins; the pod's own directory comes with the volume's.
            let mut if_empty: Vec<RootPath> =
                std::iter::successors(marker.parent(), RootPath::parent).take(2).collect();
            if_empty.extend(pod_directories(&site.layout.publication(id)));
            let removal = Removal {
                files: vec![marker.join(READY)],
                directories: vec![marker],
                if_empty,
                ..Removal::default()
            };
            site.host.remove(removal).await.map_err(|error| host_failure(&error, Effect::MayBeDone))
        })
    }
}
