//! Shows a published block device to a pod, and takes it away again (kubelet.md 1.11): a bind on a file, a lock, a link.
//!
//! Every step looks first and can be taken twice. A refusal changes nothing.

mod device;
mod lock;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

use super::device_users::{self, Through};
use super::files::temporary_name;
use super::loops::{self, Loop};
use super::mount_table::Shared;
use super::path::{BENEATH, Root};
use super::unmount::{self, new_device_each_time};
use super::unmounter::Unmounters;
use super::{BlockMap, DeviceUsers, Directory, HostError, Seen, Tree, Unmount};
use crate::model::{MountIdentity, MountTable, MountsAt, RootPath};
use device::{Device, number};

/// A descriptor that names a file and neither opens nor follows it.
const NAME: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// As a kubelet makes them (kubelet.md 3).
const MODE: u32 = 0o750;

const A_DEVICE: &str = "a block device";

/// The host as these operations need it.
#[derive(Debug, Clone)]
pub(super) struct Blocks {
    pub(super) root: Arc<Root>,
    pub(super) table: Shared,
    pub(super) unmounters: Arc<Unmounters>,
    /// The maps at work: one that hung and was given up must not go on after a later one.
    pub(super) at_work: Arc<Mutex<BTreeSet<RootPath>>>,
}

/// A turn at one map, until dropped.
#[derive(Debug)]
pub(super) struct Turn {
    at_work: Arc<Mutex<BTreeSet<RootPath>>>,
    map: RootPath,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.at_work.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.map);
    }
}

/// A block device that is bound on a map file.
#[derive(Debug)]
struct Bound {
    node: OwnedFd,
    number: (u32, u32),
    mount: MountIdentity,
}

impl Blocks {
    /// Takes a map's turn.
    ///
    /// # Errors
    /// `Busy`: an earlier call for it has not come to its end.
    pub(super) fn turn(&self, map: &RootPath) -> Result<Turn, HostError> {
        if !self.at_work.lock().unwrap_or_else(PoisonError::into_inner).insert(map.clone()) {
            let holder = "an earlier call of volumed itself, which the kernel has not answered".to_owned();
            return Err(HostError::Busy { path: self.root.absolute(map), holder });
        }
        Ok(Turn { at_work: Arc::clone(&self.at_work), map: map.clone() })
    }

    /// Maps (`Host::map_block`).
    ///
    /// # Errors
    /// What was made before the failure stays, for another try or for `unmap`.
    pub(super) fn map(&self, block: &BlockMap) -> Result<(), HostError> {
        let device = self.find(&block.published)?;
        self.check_link(&block.link)?;
        match self.bound(&block.map)? {
            Some(bound) if bound.number == device.number => {}
            Some(bound) => return Err(self.other_device(&block.map, &bound, device.number)),
            None => self.bind(&block.map, &device)?,
        }
        let Some(bound) = self.bound(&block.map)? else {
            return Err(self.wrong_mount(&block.map, "nothing, though the device was bound there".to_owned()));
        };
        self.lock(&block.map, &bound)?;
        // Until it was locked, the number could become another device's.
        let again = self.find(&block.published)?;
        if again.number != bound.number {
            return Err(self.other_device(&block.map, &bound, again.number));
        }
        self.link(&block.link, &device.shown)
    }

    /// Unmaps (`Host::unmap_block`), in a kubelet's order.
    ///
    /// # Errors
    /// `WrongKind`, `WrongMount`, and `Busy` of the device: nothing was changed.
    pub(super) fn unmap(&self, block: &BlockMap, users: DeviceUsers) -> Result<(), HostError> {
        let bound = self.bound(&block.map)?;
        self.check_link(&block.link)?;
        if bound.is_none() {
            self.check_file(&block.map)?;
        }
        let tagged = self.tagged(&block.map)?;
        let number = bound.as_ref().map(|bound| bound.number).or(tagged.first().map(Loop::device));
        if let DeviceUsers::Count { driver } = users {
            // With neither bind nor lock, what the driver shows now is all there is to ask about.
            let number = number.or_else(|| Some(self.find(&block.published).ok()?.number));
            number.map_or(Ok(()), |number| self.check_unused(block, number, driver))?;
        }
        for lock in tagged.into_iter().chain(self.kubelet_s(&block.map, number)?) {
            loops::let_go(&lock, &self.unmounters, loops::LIMIT)?;
        }
        self.unlink(&block.link)?;
        if let Some(Bound { mount, node, .. }) = bound {
            // A descriptor on the mount would keep it busy.
            drop(node);
            let (root, table) = (&self.root, &self.table);
            unmount::unmount(
                root,
                table,
                &self.unmounters,
                &block.map,
                (&mount, Unmount::Plain),
                unmount::LIMIT,
            )?;
        }
        self.check_file(&block.map)?;
        self.root.unlink(&block.map)
    }

    fn mounts(&self) -> Result<Arc<MountTable>, HostError> {
        self.table.look_here()
    }

    fn wrong_mount(&self, path: &RootPath, found: String) -> HostError {
        HostError::WrongMount { path: self.root.absolute(path), found }
    }

    fn other_device(&self, map: &RootPath, bound: &Bound, published: (u32, u32)) -> HostError {
        let ((a, b), (c, d)) = (bound.number, published);
        self.wrong_mount(map, format!("device {a}:{b} is bound there, published is {c}:{d}"))
    }

    /// Refuses to ask what is mounted at a path where that may never be answered, and where mounts are stacked.
    fn check_mount(&self, path: &RootPath) -> Result<Option<MountIdentity>, HostError> {
        match self.mounts()?.at(&self.root.absolute(path)) {
            MountsAt::None => Ok(None),
            MountsAt::One(mount) if new_device_each_time(&mount.fs_type) => {
                Err(self.wrong_mount(path, format!("there is {}, not {A_DEVICE}", mount.identity())))
            }
            MountsAt::One(mount) => Ok(Some(mount.identity())),
            MountsAt::Stacked(mounts) => {
                Err(self.wrong_mount(path, format!("{} mounts are stacked there", mounts.len())))
            }
        }
    }

    /// Names what is at a path: in a mount on it, but in none on the way.
    fn name(&self, path: &RootPath) -> Result<OwnedFd, Errno> {
        let (parent, name) = self.root.open_parent(path)?;
        rustix::fs::openat2(&parent, &name, NAME, Mode::empty(), BENEATH)
    }

    /// Returns the device that is bound on a map file; an error where something else is mounted.
    fn bound(&self, map: &RootPath) -> Result<Option<Bound>, HostError> {
        let Some(mount) = self.check_mount(map)? else { return Ok(None) };
        let failed = |e| self.root.failed("look at the bound device", map, A_DEVICE, e);
        let node = self.name(map).map_err(failed)?;
        let stat = rustix::fs::fstat(&node).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
            return Err(self.wrong_mount(map, format!("there is {mount}, not {A_DEVICE}")));
        }
        Ok(Some(Bound { node, number: number(&stat), mount }))
    }

    /// Refuses anything but nothing, or an empty file, where nothing is mounted.
    fn check_file(&self, map: &RootPath) -> Result<Seen, HostError> {
        self.root.look_for(map, &[Seen::Absent, Seen::EmptyFile], "an empty file")
    }

    /// Makes the map file and binds the device on it.
    fn bind(&self, map: &RootPath, device: &Device) -> Result<(), HostError> {
        let failed = |e| self.root.failed("bind a device on", map, "an empty file", e);
        if self.check_file(map)? == Seen::Absent {
            self.make_parent(map)?;
        }
        let (parent, name) = self.root.open_parent(map).map_err(failed)?;
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let how = BENEATH | ResolveFlags::NO_XDEV;
        let mode = Mode::from_raw_mode(MODE);
        let file = rustix::fs::openat2(&parent, &name, flags, mode, how).map_err(failed)?;
        rustix::fs::fchmod(&file, mode).map_err(failed)?;
        // By descriptors: exactly this node on exactly this file. Attached, it reaches the root's peers as any mount does.
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(&device.node, "", flags).map_err(failed)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(&tree, "", &file, "", flags).map_err(failed)
    }

    fn make_parent(&self, path: &RootPath) -> Result<(), HostError> {
        let directories = path.parent().map(|path| Directory { path, mode: MODE, exact: false });
        self.root.create(&Tree { directories: directories.into_iter().collect(), files: Vec::new() })
    }

    /// Says who has a device that is to be taken away, its driver apart. Where other pods share it, only who opened it by this
    /// pod's paths.
    fn check_unused(
        &self,
        block: &BlockMap,
        number: (u32, u32),
        driver: Option<u32>,
    ) -> Result<(), HostError> {
        let map = self.root.absolute(&block.map);
        let published = self.root.absolute(&block.published);
        let table = self.mounts()?;
        let beside = map.parent().into_iter().flat_map(|directory| table.below(directory));
        let shared = beside.into_iter().any(|mount| mount.point != map);
        let through = shared.then_some(Through { paths: [&map, &published] });
        let holder = device_users::first(number, through.as_ref(), driver).map_err(|source| {
            HostError::Io { doing: "look who has the device at", path: map.clone(), source }
        })?;
        holder.map_or(Ok(()), |holder| Err(HostError::Busy { path: map, holder }))
    }

    /// Refuses anything but nothing, or a symlink, at the link's place.
    fn check_link(&self, link: &RootPath) -> Result<Seen, HostError> {
        self.root.look_for(link, &[Seen::Absent, Seen::Symlink], "a symlink")
    }

    /// Makes the link, or lets it lead where it should; at every moment it is there or not, never half.
    fn link(&self, link: &RootPath, to: &Path) -> Result<(), HostError> {
        let failed = |e| self.root.failed("make the link", link, "a symlink", e);
        self.make_parent(link)?;
        let (parent, name) = self.root.open_parent(link).map_err(failed)?;
        match rustix::fs::readlinkat(&parent, &name, Vec::new()) {
            Ok(found) if found.as_bytes() == to.as_os_str().as_bytes() => return Ok(()),
            Ok(_) | Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e)),
        }
        let temporary = temporary_name(&name);
        remove_name(&parent, &temporary).map_err(failed)?;
        rustix::fs::symlinkat(to, &parent, &temporary).map_err(failed)?;
        rustix::fs::renameat(&parent, &temporary, &parent, &name).map_err(|e| {
            // Best effort: `unlink` knows the name too.
            let _gone = remove_name(&parent, &temporary);
            failed(e)
        })
    }

    /// Removes the link, which `check_link` looked at, and what a crash left of making it.
    fn unlink(&self, link: &RootPath) -> Result<(), HostError> {
        let failed = |e| self.root.failed("remove the link", link, "a symlink", e);
        let (parent, name) = match self.root.open_parent(link) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        [temporary_name(&name), name].iter().try_for_each(|name| remove_name(&parent, name)).map_err(failed)
    }
}

/// Removes a symlink, or nothing.
fn remove_name(parent: &OwnedFd, name: &OsStr) -> Result<(), Errno> {
    match rustix::fs::readlinkat(parent, name, Vec::new()) {
        Ok(_) => {}
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(e),
    }
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::NOENT) => Ok(()),
        done => done,
    }
}
