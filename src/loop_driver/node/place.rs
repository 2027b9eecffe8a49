//! Where a volume is on this node: asked of the loop devices and the mount table, never remembered. (Of directories:
//! `directory`.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use crate::host::images::{Attached, Going};
use crate::loop_driver::Driver;
use crate::loop_driver::errors::Failure;
use crate::loop_driver::store::{Content, Id, Use};
use crate::model::{Mount, MountTable};

/// Where a volume is.
#[derive(Debug, Default)]
pub(in crate::loop_driver) struct Place {
    /// The loop devices over its image, ours first: one, unless somebody else attached it too.
    pub(in crate::loop_driver) devices: Vec<Attached>,
    /// How many of them are ours: attached by this driver for this volume, and to go as its content asks for.
    ours: usize,
    /// The mounts of its file system by a device of ours, or of its directory: staged and published.
    pub(in crate::loop_driver) mounts: Vec<Mount>,
    /// The files on which a device of ours is bound.
    pub(in crate::loop_driver) binds: Vec<Mount>,
    /// The targets on which a device is bound that was ours: somebody else detached it, and its number may be another's now.
    pub(in crate::loop_driver) stale: Vec<Mount>,
}

impl Place {
    /// Takes the mounts of a directory, which needs no device.
    pub(super) fn of_directory(mounts: Vec<Mount>) -> Self {
        Self { mounts, ..Self::default() }
    }

    /// Returns the mount at a path, of either kind.
    pub(in crate::loop_driver) fn at(&self, path: &Path) -> Option<&Mount> {
        self.mounts.iter().chain(&self.binds).find(|mount| mount.point == path)
    }

    /// As `at`, also what shows nothing of the volume any more: to be taken away.
    pub(in crate::loop_driver) fn left_at(&self, path: &Path) -> Option<&Mount> {
        self.at(path).or_else(|| self.stale.iter().find(|mount| mount.point == path))
    }

    /// Returns where else it is shown, or was.
    pub(in crate::loop_driver) fn elsewhere(&self, than: &Path) -> Option<PathBuf> {
        let mut all = self.mounts.iter().chain(&self.binds).chain(&self.stale);
        all.find(|mount| mount.point != than).map(|mount| mount.point.clone())
    }

    /// Returns our devices.
    pub(in crate::loop_driver) fn ours(&self) -> &[Attached] {
        self.devices.get(..self.ours).unwrap_or_default()
    }

    /// Returns our one device, to be used.
    ///
    /// # Errors
    /// `Precondition`: somebody else has the image too, or there are two of ours, of which nobody knows which is meant.
    pub(in crate::loop_driver) fn device(&self) -> Result<Option<&Attached>, Failure> {
        let (ours, others) = self.devices.split_at(self.ours.min(self.devices.len()));
        match (ours, others) {
            ([], []) => Ok(None),
            ([one], _) => Ok(Some(one)),
            ([], [other, ..]) => {
                let node = other.node();
                Err(Failure::Precondition(format!("somebody else has the image, by {}", node.display())))
            }
            ([one, other, ..], _) => Err(Failure::Precondition(format!(
                "both {} and {} have the image; detach the one that nobody uses",
                one.node().display(),
                other.node().display()
            ))),
        }
    }

    fn of(
        mut devices: Vec<Attached>,
        volume: &str,
        going: Going,
        usage: Option<&Use>,
        table: &MountTable,
    ) -> Self {
        let is_ours = |device: &Attached| device.is_for(volume) && device.going() == going;
        devices.sort_by_key(|device| !is_ours(device));
        let ours: Vec<&Attached> = devices.iter().filter(|device| is_ours(device)).collect();
        let nodes: Vec<String> = ours.iter().map(|device| device.node().display().to_string()).collect();
        let names: Vec<String> = ours.iter().map(|device| format!("loop{}", device.number())).collect();
        let ours = ours.len();
        let was_ours = |mount: &Mount| {
            let noted = usage.filter(|usage| usage.targets.contains_key(&mount.point));
            noted
                .and_then(|usage| usage.device)
                .is_some_and(|number| is_node_of(mount, &format!("loop{number}")))
        };
        let (mut mounts, mut binds, mut stale) = (Vec::new(), Vec::new(), Vec::new());
        for mount in table.iter() {
            // A file system of the kernel's own has our node's name for its source only if somebody gave it on purpose.
            if nodes.contains(&mount.source) && mount.fs_type != "tmpfs" && mount.fs_type != "devtmpfs" {
                mounts.push(mount.clone());
            } else if names.iter().any(|name| is_node_of(mount, name)) {
                binds.push(mount.clone());
            } else if was_ours(mount) {
                stale.push(mount.clone());
            }
        }
        Self { devices, ours, mounts, binds, stale }
    }
}

/// Returns whether a mount shows a device's node.
fn is_node_of(mount: &Mount, name: &str) -> bool {
    matches!(mount.fs_type.as_str(), "devtmpfs" | "tmpfs")
        && mount.root.file_name().is_some_and(|root| root == name)
}

impl Driver {
    /// Finds a volume on this node, with all loop devices over its image, by whatever path they were given it; and with those
    /// that we attached to what had the image's place before, so that what is still mounted of it can be taken down.
    pub(in crate::loop_driver) async fn place(&self, id: &Id) -> Result<Place, Failure> {
        if let Some(place) = self.place_of_directory(id).await? {
            return Ok(place);
        }
        let image = self.store().volume_image(id);
        let file = self.images().look(&image).await?;
        let usage = self.store().usage(id).await;
        let mut devices = Vec::new();
        // Ours may be over a file that had the image's place before; what is used nowhere has no such device.
        if file.is_none() || usage.staging.is_some() || !usage.targets.is_empty() {
            devices = self.images().attached_for(id.as_str(), &image, file.map(|file| file.id)).await?;
        }
        if let Some(file) = file.filter(|_| devices.is_empty()) {
            devices = self.images().attached(&image, file.id).await?;
        }
        self.placed(id, devices, Some(&usage)).await
    }

    /// As `place`, before something that nobody may disturb. A device of ours that goes with a mount that is gone is
    /// waited for a moment: somebody, udev for one, looks at it.
    pub(in crate::loop_driver) async fn place_at_rest(&self, id: &Id) -> Result<Place, Failure> {
        const TRIES: u32 = 100;
        let mut place = self.place(id).await?;
        for _ in 1..TRIES {
            let goes =
                |device: &Attached| device.going() == Going::WithItsMount && device.is_for(id.as_str());
            if !place.mounts.is_empty() || !place.binds.is_empty() || !place.devices.iter().any(goes) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
            place = self.place(id).await?;
        }
        Ok(place)
    }

    /// As `place`, but where our device that it had last is still over its image, only that one counts. To ask all loop
    /// devices of a host takes longer than the rest of a publication.
    pub(in crate::loop_driver) async fn place_as_before(&self, id: &Id) -> Result<Place, Failure> {
        let last = self.devices().get(id).copied();
        let Some(last) = last else { return self.place(id).await };
        let image = self.store().volume_image(id);
        let Some(file) = self.images().look(&image).await? else { return self.place(id).await };
        match self.images().attached_by(last, &image, file.id).await? {
            Some(device) if device.is_for(id.as_str()) && device.going() == self.going(id) => {
                self.placed(id, vec![device], None).await
            }
            Some(_) | None => self.place(id).await,
        }
    }

    /// When a volume's device goes.
    fn going(&self, id: &Id) -> Going {
        match self.store().volumes.get(id).map(|volume| volume.content) {
            Some(Content::Block) => Going::WhenTold,
            Some(Content::FileSystem(_) | Content::Directory(_)) | None => Going::WithItsMount,
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

    async fn placed(&self, id: &Id, devices: Vec<Attached>, usage: Option<&Use>) -> Result<Place, Failure> {
        if devices.is_empty() && usage.is_none_or(|usage| usage.device.is_none()) {
            self.devices().remove(id);
            return Ok(Place::default());
        }
        let table = self.images().mounts().await?;
        let place = Place::of(devices, id.as_str(), self.going(id), usage, &table);
        match place.ours() {
            [] => drop(self.devices().remove(id)),
            [first, ..] => self.has_device(id, first.number()),
        }
        Ok(place)
    }

    fn devices(&self) -> MutexGuard<'_, BTreeMap<Id, u32>> {
        self.inner.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
