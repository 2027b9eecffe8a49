//! What a crash left behind is put in order before anybody is served: steps that were begun are finished or undone, loop devices
//! of nobody go. Nothing is unmounted. (Frozen file systems thaw before that: `Driver::open`.)

use std::collections::BTreeMap;

use tracing::{info, warn};

use super::Driver;
use super::errors::Failure;
use super::store::{Content, IMAGE, Id, State, Volume, VolumeState};
use crate::error::Chain;
use crate::host::images::{Attached, FileId, Going};

impl Driver {
    /// Puts everything in order. What cannot be now is tried again by the call that meets it.
    pub(super) async fn repair(&self) {
        for group in self.store().groups.all() {
            if group.state != State::Ready {
                tell("group", &group.id, self.discard_group(&group.id).await);
            }
        }
        for snapshot in self.store().snapshots.all() {
            if snapshot.state != State::Ready {
                tell("snapshot", &snapshot.id, self.discard_snapshot(&snapshot.id).await);
            } else if self.is_orphan(&snapshot) {
                warn!(snapshot = %snapshot.id, "its group is gone; it stays until it is deleted by itself");
            }
        }
        for volume in self.store().volumes.all() {
            tell("volume", &volume.id, self.repair_volume(&volume).await);
        }
        if let Err(failure) = self.collect_devices().await {
            warn!("loop devices that nobody uses may be left: {}", Chain(&failure));
        }
    }

    async fn repair_volume(&self, volume: &Volume) -> Result<(), Failure> {
        let id = &volume.id;
        match volume.state {
            VolumeState::Creating | VolumeState::Deleting => return self.discard_volume(id).await,
            VolumeState::Growing { to } => {
                let length = match volume.content {
                    Content::Directory(_) => self.limit_of(volume).await?,
                    Content::FileSystem(_) | Content::Block => {
                        let image = self.store().volume_image(id);
                        self.images().look(&image).await?.map_or(0, |file| file.length)
                    }
                };
                let mut volume = volume.clone();
                volume.state = VolumeState::Ready;
                if length >= to {
                    volume.bytes = to;
                    volume.grown = volume.content.grown(volume.grown, to);
                }
                info!(volume = %id, bytes = volume.bytes, "its growth was interrupted");
                self.store().volumes.put(volume).await?;
            }
            VolumeState::Ready => {}
        }
        self.take_size(id).await
    }

    /// Lets those of our loop devices go that stay by themselves and that nobody uses: over an image that is gone, or over
    /// that of a volume which is not staged.
    async fn collect_devices(&self) -> Result<(), Failure> {
        let mut images: BTreeMap<FileId, Id> = BTreeMap::new();
        for volume in self.store().volumes.all() {
            if let Some(file) = self.images().look(&self.store().volume_image(&volume.id)).await? {
                images.insert(file.id, volume.id);
            }
        }
        for device in self.images().all_attached(IMAGE).await? {
            let volume = images.get(&device.file());
            // Over the image of another driver like this one.
            if volume.is_none() && !device.lost_its_image(self.store().directory()) {
                continue;
            }
            if device.going() == Going::WhenTold && !self.is_used(volume, &device).await? {
                let device_node = device.node();
                match self.images().detach(&device).await {
                    Ok(()) => info!(device = %device_node.display(), "a loop device that nobody uses went"),
                    Err(error) => {
                        warn!(device = %device_node.display(), "a loop device stays: {}", Chain(&error));
                    }
                }
            }
        }
        Ok(())
    }

    async fn is_used(&self, volume: Option<&Id>, device: &Attached) -> Result<bool, Failure> {
        let Some(id) = volume else {
            // Its image is gone: whoever still sees the device sees what was in it.
            let name = format!("loop{}", device.number());
            let mounts = self.images().mounts().await?;
            let shown = mounts.iter().any(|mount| {
                mount.source == format!("/dev/{name}")
                    || mount.root.file_name().is_some_and(|root| root == name.as_str())
            });
            return Ok(shown);
        };
        let place = self.place(id).await?;
        let shown = !place.mounts.is_empty() || !place.binds.is_empty();
        // Of what could not be written down on a full host nothing is known.
        Ok(shown || self.store().usage(id).await.staging.is_some() || !self.store().is_noted(id))
    }
}

fn tell(what: &str, id: &Id, done: Result<(), Failure>) {
    if let Err(failure) = done {
        warn!("the {what} {id} is not in order: {}", Chain(&failure));
    }
}
