//! Staging: the image attached, and its file system mounted. Unstaging: the reverse, never lazily.

use std::path::{Path, PathBuf};

use tracing::{info, warn};

use super::directory::check_flags;
use super::place::Place;
use crate::execute::fault;
use crate::host::images::{Allocation, Attached, Attributes, FsType, Going, Grown, Mounted, read_only};
use crate::loop_driver::Driver;
use crate::loop_driver::ask::{Access, Capability};
use crate::loop_driver::errors::Failure;
use crate::loop_driver::store::{Asked, Content, Id, Volume};

impl Driver {
    /// Stages a volume. Its lock is held.
    pub(super) async fn stage(&self, id: &Id, given: &Path, capability: &Capability) -> Result<(), Failure> {
        let volume = self.volume(Some(id), id.as_str())?;
        check_access(&volume, &capability.access)?;
        check_flags(id, volume.content.is_directory(), &capability.access)?;
        let path = self.directory(given).await?;
        let place = self.place_at_rest(id).await?;
        let asked = capability.asked(false);
        let mut usage = self.store().usage(id).await;
        let before = usage.staging.clone();
        let at = before.as_ref().map_or(&path, |(at, _)| at);
        if self.is_staged(&volume, at, &place).await? {
            if *at != path {
                return Err(Failure::Precondition(format!("the volume {id} is staged at {}", at.display())));
            }
            let differs = match &before {
                Some((_, before)) => before.differs_from(&asked),
                // What was asked is lost. Read-only is what is published, not what is staged.
                None => self.seen_otherwise(&path, &asked, false).await?,
            };
            if let Some(what) = differs {
                return Err(Failure::Exists(format!("the volume {id} is staged there with {what}")));
            }
            let device = self.kept_device(&volume, &place)?;
            if before.is_none() || usage.device != device {
                usage.staging = Some((path.clone(), asked));
                usage.device = device;
                self.store().set_usage(id, &usage).await?;
            }
            return self.settle(volume, &place, &path, &capability.access).await;
        }
        if let Some(at) = place.elsewhere(&path) {
            let same = |(at, before): &(PathBuf, Asked)| *at == path && before.differs_from(&asked).is_none();
            let was_here = before.as_ref().is_some_and(same);
            if let Some(mount) = place.mounts.iter().find(|mount| !mount.read_only).filter(|_| was_here) {
                // Somebody unmounted it under its publications, which still have it.
                // A publication may have more attributes.
                self.images().bind(&mount.point, &path, Attributes::only(&asked.flags)).await?;
                info!(volume = %id, path = %path.display(), "staged again");
                return self.settle(volume, &place, &path, &capability.access).await;
            }
            return Err(Failure::Precondition(format!("the volume {id} is mounted at {}", at.display())));
        }
        usage.staging = Some((path.clone(), asked));
        self.store().set_usage(id, &usage).await?;
        fault::reached("stage:intent");
        match volume.content {
            Content::Block => {
                usage.device = Some(self.attach_block(&volume).await?);
                self.store().set_usage(id, &usage).await?;
            }
            Content::FileSystem(_) | Content::Directory(_) => {
                self.show_volume(volume, &place, &path, &capability.access).await?;
            }
        }
        fault::reached("stage:outcome");
        info!(volume = %id, path = %path.display(), "staged");
        Ok(())
    }

    /// Returns whether a volume is staged where it was written down.
    async fn is_staged(&self, volume: &Volume, at: &Path, place: &Place) -> Result<bool, Failure> {
        match volume.content {
            Content::Block => Ok(place.device()?.is_some()),
            Content::FileSystem(_) | Content::Directory(_) => {
                let there = self.images().mount_at(at).await?;
                Ok(there.is_some_and(|mount| place.at(at).is_some_and(|ours| ours.id == mount.id)))
            }
        }
    }

    /// Returns the number of the device that stays by itself and has to be written down.
    fn kept_device(&self, volume: &Volume, place: &Place) -> Result<Option<u32>, Failure> {
        match volume.content {
            Content::Block => Ok(place.device()?.map(Attached::number)),
            Content::FileSystem(_) | Content::Directory(_) => Ok(None),
        }
    }

    /// Mounts a volume at a place where nothing is.
    pub(super) async fn show_volume(
        &self,
        volume: Volume,
        place: &Place,
        at: &Path,
        access: &Access,
    ) -> Result<(), Failure> {
        if let Some(there) = self.images().mount_at(at).await? {
            let problem = format!("{} is mounted at {} already", there.source, at.display());
            return Err(Failure::Precondition(problem));
        }
        match volume.content {
            Content::FileSystem(fs_type) => self.mount_volume(volume, fs_type, place, at, access).await,
            Content::Directory(_) => self.show_directory(&volume, at, access).await,
            Content::Block => Err(Failure::Lost(format!("the volume {} has no file system", volume.id))),
        }
    }

    /// Attaches a block volume's image, which is not attached yet; returns the device's number.
    async fn attach_block(&self, volume: &Volume) -> Result<u32, Failure> {
        let image = self.store().volume_image(&volume.id);
        self.allocate(volume).await?;
        let device = self.images().attach(&image, volume.id.as_str(), Going::WhenTold).await?;
        self.has_device(&volume.id, device.number());
        fault::reached("stage:attach");
        Ok(device.number())
    }

    /// Gives a thick image the blocks back that its user discarded. (`promised` has kept room for them.)
    async fn allocate(&self, volume: &Volume) -> Result<(), Failure> {
        if volume.allocation == Allocation::Thick {
            self.images().allocate(&self.store().volume_image(&volume.id)).await?;
        }
        Ok(())
    }

    /// Attaches a volume's image, mounts its file system and lets it fill the image.
    async fn mount_volume(
        &self,
        mut volume: Volume,
        fs_type: FsType,
        place: &Place,
        at: &Path,
        access: &Access,
    ) -> Result<(), Failure> {
        let image = self.store().volume_image(&volume.id);
        if self.images().look(&image).await?.is_none_or(|file| file.length < volume.bytes) {
            let problem = format!("the image of the volume {} is gone or too short", volume.id);
            return Err(Failure::Lost(problem));
        }
        if let Some(device) = place.device()? {
            let node = device.node();
            return Err(Failure::Precondition(format!("somebody has {} open", node.display())));
        }
        // Offline it needs no capability, but has no journal either.
        if fs_type == FsType::Ext4 && volume.grown < volume.bytes && !self.images().grows_mounted_ext4() {
            self.images().grow_unmounted_ext4_with_data(&image).await?;
            fault::reached("stage:grown");
            volume.grown = volume.bytes;
            self.store().volumes.put(volume.clone()).await?;
        }
        self.allocate(&volume).await?;
        let device = self.images().attach(&image, volume.id.as_str(), Going::WithItsMount).await?;
        self.has_device(&volume.id, device.number());
        fault::reached("stage:attach");
        let options = match access {
            Access::Mount { flags, .. } => options(flags, volume.allocation),
            Access::Block => Vec::new(),
        };
        match self.images().mount(&device, fs_type, &options, at).await? {
            Mounted::Done => {}
            Mounted::OptionsRefused(why) => return Err(Failure::Invalid(why)),
        }
        fault::reached("stage:mount");
        self.fill_and_give(volume, fs_type, &device.node(), at, access).await
    }

    /// Does what an earlier call may have left undone after it mounted a volume's file system.
    pub(super) async fn settle(
        &self,
        volume: Volume,
        place: &Place,
        at: &Path,
        access: &Access,
    ) -> Result<(), Failure> {
        match (volume.content, place.ours().first()) {
            (Content::FileSystem(fs_type), Some(device)) => {
                if volume.grown < volume.bytes {
                    self.take_size(&volume.id).await?;
                }
                self.fill_and_give(volume, fs_type, &device.node(), at, access).await
            }
            (Content::Directory(_), _) => self.limit_and_give(&volume, at, access).await,
            (Content::Block, _) | (Content::FileSystem(_), None) => Ok(()),
        }
    }

    /// Lets a mounted file system fill its device and gives what is in it to its group, unless both was done. One that is
    /// mounted read-only stays as it is.
    async fn fill_and_give(
        &self,
        mut volume: Volume,
        fs_type: FsType,
        node: &Path,
        at: &Path,
        access: &Access,
    ) -> Result<(), Failure> {
        let Access::Mount { flags, group, .. } = access else { return Ok(()) };
        if read_only(flags) {
            return Ok(());
        }
        if volume.grown < volume.bytes
            && self.images().grow_mounted(fs_type, node, at, volume.bytes).await? == Grown::Whole
        {
            volume.grown = volume.bytes;
            self.store().volumes.put(volume.clone()).await?;
        }
        if let Some(group) = *group {
            self.images().give_to_group(at, group, &self.progress(volume.id)).await?;
        }
        Ok(())
    }

    /// Unstages a volume. Its lock is held.
    pub(super) async fn unstage(&self, id: &Id, given: &Path) -> Result<(), Failure> {
        let Some(path) = self.images().real_directory(given).await? else {
            return self.forget_staging(id, given).await;
        };
        let there = self.images().mount_at(&path).await?;
        if self.store().volumes.get(id).is_none() {
            // Of a volume that nobody knows nothing can be staged but what is somebody else's.
            return if there.is_none() { Ok(()) } else { Err(Failure::no_volume(id.as_str())) };
        }
        let place = self.place_as_before(id).await?;
        if let Some(there) = there {
            if place.at(&path).is_none_or(|ours| ours.id != there.id) {
                let problem =
                    format!("{} is mounted at {}, not the volume {id}", there.source, path.display());
                return Err(Failure::Precondition(problem));
            }
            if let Some(at) = place.elsewhere(&path) {
                return Err(Failure::Precondition(format!("it is still published at {}", at.display())));
            }
            self.images().unmount(&there).await?;
            fault::reached("unstage:unmount");
            info!(volume = %id, path = %path.display(), "unstaged");
        }
        self.forget_staging(id, &path).await
    }

    /// Lets a block volume's device go and forgets where the volume was staged.
    async fn forget_staging(&self, id: &Id, path: &Path) -> Result<(), Failure> {
        let Some(volume) = self.store().volumes.get(id) else { return Ok(()) };
        let mut usage = self.store().usage(id).await;
        if usage.staging.as_ref().is_some_and(|(at, _)| at != path) {
            // Staged elsewhere: there is nothing of it here.
            return Ok(());
        }
        // To look for a device that has just gone takes long; a file system whose publications went as noted needs none of it.
        let place = if volume.content == Content::Block || !usage.targets.is_empty() {
            self.place_as_before(id).await?
        } else {
            Place::default()
        };
        if volume.content == Content::Block {
            if let Some(at) = place.elsewhere(Path::new("")) {
                return Err(Failure::Precondition(format!("it is still published at {}", at.display())));
            }
            for device in place.ours() {
                self.images().detach(device).await?;
                info!(volume = %id, device = %device.node().display(), "unstaged");
            }
            self.refuse_leaving(id, &place).await?;
            usage.device = None;
        }
        let noted = usage.targets.len();
        // On a full host it could not be noted that they went.
        usage.targets.retain(|target, _| place.at(target).is_some());
        if usage.staging.take().is_some() || usage.targets.len() != noted {
            self.note_gone(id, &usage).await;
        }
        Ok(())
    }

    /// Refuses while a device that was told to go is still held by somebody: what is written to it still arrives.
    async fn refuse_leaving(&self, id: &Id, place: &Place) -> Result<(), Failure> {
        if place.devices.iter().all(|device| place.ours().contains(device) || !device.is_for(id.as_str())) {
            return Ok(());
        }
        let place = self.place_at_rest(id).await?;
        match place.devices.iter().find(|device| device.is_for(id.as_str())) {
            None => Ok(()),
            Some(device) => Err(Failure::Precondition(format!(
                "somebody has {} of the volume {id} open; it goes with them",
                device.node().display()
            ))),
        }
    }

    /// Finds the directory that the caller has to have made.
    pub(super) async fn directory(&self, given: &Path) -> Result<PathBuf, Failure> {
        let found = self.images().real_directory(given).await?;
        found.ok_or_else(|| Failure::Precondition(format!("there is no directory {}", given.display())))
    }
}

/// Refuses what a volume was not made for.
pub(super) fn check_access(volume: &Volume, access: &Access) -> Result<(), Failure> {
    match (volume.content, access) {
        (Content::Block, Access::Block) => Ok(()),
        (Content::FileSystem(found) | Content::Directory(found), Access::Mount { fs_type, .. })
            if fs_type.is_none_or(|wanted| wanted == found) =>
        {
            Ok(())
        }
        (Content::FileSystem(found) | Content::Directory(found), Access::Mount { .. }) => {
            Err(Failure::Invalid(format!("the volume {} has the file system {}", volume.id, found.name())))
        }
        (Content::Block, Access::Mount { .. }) => {
            Err(Failure::Invalid(format!("the volume {} is a block device", volume.id)))
        }
        (Content::FileSystem(_), Access::Block) => {
            Err(Failure::Invalid(format!("the volume {} has a file system", volume.id)))
        }
        (Content::Directory(_), Access::Block) => {
            Err(Failure::Invalid(format!("the volume {} is a directory, and no block device", volume.id)))
        }
    }
}

/// The options of a mount. What is deleted in a thin volume is given back to the host, in a thick one it is not.
pub(super) fn options(flags: &[String], allocation: Allocation) -> Vec<String> {
    let mut options = flags.to_vec();
    let said = |option: &str| option == "nodiscard" || option == "discard" || option.starts_with("discard=");
    if !flags.iter().flat_map(|flag| flag.split(',')).any(said) {
        options.push(match allocation {
            Allocation::Thin => "discard".to_owned(),
            Allocation::Thick => "nodiscard".to_owned(),
        });
    }
    options
}

/// Says that growth waits for the next staging.
pub(super) fn needs_sys_resource(id: &Id) -> Failure {
    warn!(volume = %id, "ext4 grows online only with CAP_SYS_RESOURCE");
    Failure::Precondition(format!(
        "the volume {id} and its device are larger, but its ext4 cannot be grown while it is mounted: the kernel asks for \
         CAP_SYS_RESOURCE, which this driver does not have here (EXT4_IOC_RESIZE_FS: EPERM). Give it the capability, or \
         unpublish and unstage the volume: it grows when it is staged again. xfs and btrfs need no capability"
    ))
}
