//! Where a volume is on this node: asked of the loop devices and the mount table, never remembered.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

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
    /// Finds a volume on this node, with all loop devices over its image. One without an image is nowhere.
    pub(in crate::loop_driver) async fn place(&self, id: &Id) -> Result<Place, Failure> {
        let image = self.store().volume_image(id);
        let Some(file) = self.images().look(&image).await? else { return Ok(Place::default()) };
        let devices = self.images().attached(&image, file.id).await?;
        self.placed(id, devices).await
    }

    /// As `place`, but where the device that it had last is still over its image, only that one counts. To ask all loop
    /// devices of a host takes longer than the rest of a publication.
    pub(in crate::loop_driver) async fn place_as_before(&self, id: &Id) -> Result<Place, Failure> {
        let last = self.devices().get(id).copied();
        let Some(last) = last else { return self.place(id).await };
        let image = self.store().volume_image(id);
        let Some(file) = self.images().look(&image).await? else { return Ok(Place::default()) };
        match self.images().attached_by(last, &image, file.id).await? {
            Some(device) => self.placed(id, vec![device]).await,
            None => self.place(id).await,
        }
    }

    /// Remembers where to look first.
    pub(super) fn has_device(&self, id: &Id, number: u32) {
        self.devices().insert(id.clone(), number);
    }

    /// Returns whether a volume had a loop device when it was looked for last: false means that it has none of ours.
    pub(in crate::loop_driver) fn had_device(&self, id: &Id) -> bool {
        self.devices().contains_key(id)
    }

    async fn placed(&self, id: &Id, devices: Vec<Attached>) -> Result<Place, Failure> {
        let Some(first) = devices.first() else {
            self.devices().remove(id);
            return Ok(Place::default());
        };
        self.has_device(id, first.number());
        Ok(Place::of(devices, &*self.images().mounts().await?))
    }

    fn devices(&self) -> MutexGuard<'_, BTreeMap<Id, u32>> {
        self.inner.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
