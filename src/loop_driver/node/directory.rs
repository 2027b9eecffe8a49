//! Volumes that are directories on this node: bound to where they are staged, and from there to their pods.

use std::path::Path;

use super::place::Place;
use crate::execute::fault;
use crate::host::images::{Attributes, of_the_file_system, read_only};
use crate::loop_driver::Driver;
use crate::loop_driver::ask::Access;
use crate::loop_driver::errors::Failure;
use crate::loop_driver::store::{Content, Id, Volume};

impl Driver {
    /// Finds the mounts of a volume that is a directory; `None`: it is an image.
    pub(super) async fn place_of_directory(&self, id: &Id) -> Result<Option<Place>, Failure> {
        let volume = self.store().volumes.get(id);
        let Some(content @ Content::Directory(_)) = volume.map(|volume| volume.content) else {
            return Ok(None);
        };
        let mounts = self.images().shown(&self.store().volume_place(id, content)).await?;
        Ok(Some(Place::of_directory(mounts)))
    }

    /// Shows a volume's directory at a place where nothing is mounted.
    ///
    /// # Errors
    /// `Precondition`: the kernel would not keep it to its size.
    pub(super) async fn show_directory(
        &self,
        volume: &Volume,
        at: &Path,
        access: &Access,
    ) -> Result<(), Failure> {
        let Access::Mount { flags, .. } = access else { return Ok(()) };
        let data = self.keep_limited(volume).await?;
        self.images().bind(&data, at, Attributes::exactly(flags)).await?;
        fault::reached("stage:mount");
        self.give(volume, at, access).await
    }

    /// Does what an earlier call may have left undone after it showed a volume's directory.
    pub(super) async fn limit_and_give(
        &self,
        volume: &Volume,
        at: &Path,
        access: &Access,
    ) -> Result<(), Failure> {
        self.keep_limited(volume).await?;
        self.give(volume, at, access).await
    }

    async fn give(&self, volume: &Volume, at: &Path, access: &Access) -> Result<(), Failure> {
        match access {
            Access::Mount { flags, group: Some(group), .. } if !read_only(flags) => {
                Ok(self.images().give_to_group(at, *group, &self.progress(volume.id.clone())).await?)
            }
            Access::Mount { .. } | Access::Block => Ok(()),
        }
    }
}

/// Refuses options of the file system for a directory: they would be those of everything on the host's.
pub(super) fn check_flags(id: &Id, is_directory: bool, access: &Access) -> Result<(), Failure> {
    let (true, Access::Mount { flags, .. }) = (is_directory, access) else { return Ok(()) };
    let own: Vec<String> = of_the_file_system(flags).into_iter().collect();
    if own.is_empty() {
        return Ok(());
    }
    Err(Failure::Invalid(format!(
        "the volume {id} is a directory, and the mount options {} are those of a whole file system; leave them away, or use \
         backing: image",
        own.join(",")
    )))
}
