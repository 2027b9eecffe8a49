//! What a block volume has instead of a mount: a device bound on a file of its own, and the pod's link (kubelet.md 1.11, 5.6).

use super::calls::Target;
use crate::host::{BlockMap, DeviceUsers, Removal};
use crate::model::{Effect, Failure, PublicationId, RootPath, SpecName, VOL_DATA, VolData};
use crate::volumes::{Site, host_failure, pod_directories};

/// Returns the `vol_data.json` of the volume that is staged at a path.
pub(super) fn data(site: &Site, target: &Target<'_>, staging: &RootPath) -> Option<(RootPath, Vec<u8>, u32)> {
    spec_of(staging).map(|spec| data_file(site, target, &spec))
}

/// Returns a volume's `vol_data.json`: there from the first call on, so that what may be staged is found.
pub(super) fn data_file(site: &Site, target: &Target<'_>, spec: &SpecName) -> (RootPath, Vec<u8>, u32) {
    let file = site.layout.block_volume(spec).join("data").join(VOL_DATA);
    (file, VolData::block(spec, target.name, target.handle, &site.node).to_bytes(), 0o644)
}

fn spec_of(staging: &RootPath) -> Option<SpecName> {
    staging.as_path().file_name().and_then(|name| SpecName::new(name.to_str()?).ok())
}

/// Shows the published device to the pod.
pub(super) async fn map(site: &Site, id: &PublicationId) -> Result<(), Failure> {
    site.host.map_block(places(site, id)).await.map_err(|error| host_failure(&error, Effect::MayBeDone))
}

/// Takes the device from the pod.
pub(super) async fn unmap(site: &Site, id: &PublicationId, users: DeviceUsers) -> Result<(), Failure> {
    let unmapped = site.host.unmap_block(places(site, id), users).await;
    unmapped.map_err(|error| host_failure(&error, Effect::NotDone))
}

/// Removes what a publication leaves, when nothing is published any more.
pub(super) async fn clean_publication(site: &Site, id: &PublicationId) -> Result<(), Failure> {
    let target = site.layout.block_target(id);
    let mut if_empty = pod_directories(&site.layout.block_link(id));
    // The last pod's takes the directory of the volume's targets with it.
    if_empty.extend(target.parent());
    let removal = Removal { empty_files: vec![target], if_empty, ..Removal::default() };
    site.host.remove(removal).await.map_err(|error| host_failure(&error, Effect::MayBeDone))
}

/// Removes what the volume leaves, when nothing is staged any more.
pub(super) async fn clean_staging(site: &Site, staging: RootPath) -> Result<(), Failure> {
    let may_be_done = |error| host_failure(&error, Effect::MayBeDone);
    let spec = spec_of(&staging);
    let first = Removal { directories: vec![staging], ..Removal::default() };
    site.host.remove(first).await.map_err(may_be_done)?;
    let Some(spec) = spec else { return Ok(()) };
    let volume = site.layout.block_volume(&spec);
    let (data, maps) = (volume.join("data"), volume.join("dev"));
    let rest = Removal {
        files: vec![data.join(VOL_DATA)],
        directories: vec![maps, data, volume],
        ..Removal::default()
    };
    site.host.remove(rest).await.map_err(may_be_done)
}

fn places(site: &Site, id: &PublicationId) -> BlockMap {
    BlockMap {
        published: site.layout.block_target(id),
        map: site.layout.block_map(id),
        link: site.layout.block_link(id),
    }
}
