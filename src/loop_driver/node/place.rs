//! Where a volume is on this node: asked of the loop devices and the mount table, never remembered.

use std::path::{Path, PathBuf};

use crate::host::images::Attached;
use crate::loop_driver::Driver;
use crate::loop_driver::errors::Failure;
use crate::loop_driver::store::Id;
use crate::model::{Mount, MountTable};

/// Where a volume is.
#[derive(Debug, Default)]
pub(in crate::loop_driver) struct Place {
    /// The loop devices over its image: one, unless somebody else attached it too.
    pub(in crate::loop_driver) devices: Vec<Attached>,
    /// The mounts of its file system: staged and published.
    pub(in crate::loop_driver) mounts: Vec<Mount>,
    /// The files on which its device is bound.
    pub(in crate::loop_driver) binds: Vec<Mount>,
}

impl Place {
    /// Returns the mount at a path, of either kind.
    pub(in crate::loop_driver) fn at(&self, path: &Path) -> Option<&Mount> {
        self.mounts.iter().chain(&self.binds).find(|mount| mount.point == path)
    }

    /// Returns where else it is shown.
    pub(in crate::loop_driver) fn elsewhere(&self, than: &Path) -> Option<PathBuf> {
        let mut all = self.mounts.iter().chain(&self.binds);
        all.find(|mount| mount.point != than).map(|mount| mount.point.clone())
    }

    fn of(devices: Vec<Attached>, table: &MountTable) -> Self {
        let nodes: Vec<String> = devices.iter().map(|device| device.node().display().to_string()).collect();
        let names: Vec<String> = devices.iter().map(|device| format!("loop{}", device.number())).collect();
        let (mut mounts, mut binds) = (Vec::new(), Vec::new());
        for mount in table.iter() {
            // A file system of the kernel's own has our node's name for its source only if somebody gave it on purpose.
            if nodes.contains(&mount.source) && mount.fs_type != "tmpfs" && mount.fs_type != "devtmpfs" {
                mounts.push(mount.clone());
            } else if mount
                .root
                .file_name()
                .is_some_and(|name| names.iter().any(|ours| name == ours.as_str()))
                && matches!(mount.fs_type.as_str(), "devtmpfs" | "tmpfs")
            {
                binds.push(mount.clone());
            }
        }
        Self { devices, mounts, binds }
    }
}

impl Driver {
    /// Finds a volume on this node. One without an image is nowhere.
    pub(in crate::loop_driver) async fn place(&self, id: &Id) -> Result<Place, Failure> {
        let image = self.store().volume_image(id);
        let Some(file) = self.images().look(&image).await? else { return Ok(Place::default()) };
        let devices = self.images().attached(&image, file.id).await?;
        if devices.is_empty() {
            return Ok(Place::default());
        }
        Ok(Place::of(devices, &*self.images().mounts().await?))
    }
}
