//! Growing what is on the node: the device first, then the file system in it.

use std::path::Path;

use tracing::info;

use super::stage::needs_sys_resource;
use crate::execute::fault;
use crate::host::images::{BTRFS_LEAST_GROWN, Grown};
use crate::loop_driver::Driver;
use crate::loop_driver::ask;
use crate::loop_driver::errors::Failure;
use crate::loop_driver::store::{Content, Id};
use crate::proto::csi;

impl Driver {
    /// Lets a volume that is staged or published at a path have the size of its image; returns it. Its lock is held.
    pub(super) async fn expand(
        &self,
        id: &Id,
        path: Option<&Path>,
        range: Option<csi::CapacityRange>,
    ) -> Result<u64, Failure> {
        let mut volume = self.volume(Some(id), id.as_str())?;
        let (required, limit) = ask::bounds(range)?;
        if required.is_some_and(|required| required > volume.bytes) {
            let problem =
                format!("the volume {id} has {} bytes; it is grown by ControllerExpandVolume", volume.bytes);
            return Err(Failure::OutOfRange(problem));
        }
        if limit.is_some_and(|limit| limit < volume.bytes) {
            let problem = format!("the volume {id} has {} bytes, and does not shrink", volume.bytes);
            return Err(Failure::OutOfRange(problem));
        }
        let place = self.place_as_before(id).await?;
        let path = self.shown_at(id, &place, path).await?;
        self.take_size(id).await?;
        if let Content::Directory(_) = volume.content {
            self.keep_limited(&volume).await?;
        }
        if let (Content::FileSystem(fs_type), Some(device)) = (volume.content, place.device()?)
            && volume.grown < volume.bytes
        {
            match self.images().grow_mounted(fs_type, &device.node(), &path, volume.bytes).await? {
                Grown::Whole => {}
                Grown::NeedsSysResource => return Err(needs_sys_resource(id)),
                Grown::TooSmall => return Err(too_small(id)),
            }
            fault::reached("expand:grown");
            volume.grown = volume.bytes;
            self.store().volumes.put(volume.clone()).await?;
            info!(volume = %id, bytes = volume.bytes, "file system grown");
        }
        Ok(volume.bytes)
    }
}

/// Says that a btrfs of this size does not grow on this kernel. A failed precondition, not OUT_OF_RANGE: the volume can be used
/// as it is, and with that answer it comes up for its pods (kubelets and volumed take it so).
fn too_small(id: &Id) -> Failure {
    Failure::Precondition(format!(
        "the volume {id} and its device are larger, but the kernel grows no btrfs to less than {} MiB \
         (BTRFS_IOC_RESIZE: EINVAL). Make the volume at least that large, and unpublish and unstage it: it grows when it is \
         staged again. Until then what is in it stays as large as it was",
        BTRFS_LEAST_GROWN >> 20
    ))
}
