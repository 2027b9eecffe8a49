//! Whether anybody uses a directory that is to be deleted (design rule 1): mounts of every mount namespace, and every
//! process's open files, working and root directories.
//!
//! Paths differ from namespace to namespace, so places are compared as file system and path inside it. What cannot be
//! looked at makes the answer `Busy`, not "nobody".

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, Statx, StatxFlags};

use super::mounts::{Mounts, inside, survey};
use super::processes::{Task, is_gone, tasks};
use super::writers::{Counts, is_for_writing};
use crate::host::path::{DIRECTORY, names, open_within};
use crate::host::unmount::new_device_each_time;
use crate::host::{mount_table, raw};
use crate::model::Mount;

/// A directory, independent of where it is mounted.
#[derive(Debug)]
pub(in crate::host) struct Place {
    /// Its path in our namespace.
    absolute: PathBuf,
    /// The file system, as mountinfo numbers it.
    device: (u32, u32),
    /// The path inside the file system.
    inside: PathBuf,
    /// The file system, as stat numbers it (btrfs has another number for each subvolume).
    stat_device: (u32, u32),
}

/// Why a directory cannot be called unused.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::host) struct InUse(pub(in crate::host) String);

impl Place {
    /// Finds out where a directory lies, by our own mount table.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(in crate::host) fn of(directory: &impl std::os::fd::AsFd, absolute: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        let table = mount_table::parse(&std::fs::read("/proc/thread-self/mountinfo")?)?;
        let mount = table.into_iter().map(|line| line.mount).find(|m| m.id == stat.stx_mnt_id);
        let inside = mount.as_ref().and_then(|m| inside(m, absolute));
        let (Some(mount), Some(inside)) = (mount, inside) else {
            return Err(io::Error::other("its mount is not in the mount table"));
        };
        Ok(Self {
            absolute: absolute.to_owned(),
            device: mount.device,
            inside,
            stat_device: (stat.stx_dev_major, stat.stx_dev_minor),
        })
    }

    /// Looks for a user of the directory or of anything below it (design rule 1).
    ///
    /// # Errors
    /// The first user found, or what could not be looked at.
    pub(in crate::host) fn check_unused(&self, directory: &OwnedFd) -> Result<(), InUse> {
        self.check(directory, |_mounts| Counts::Users)
    }

    /// Looks for somebody who can write to the directory or to anything below it, but for what is staged at a path: a mount
    /// that shows it and is not read-only, a mount in it, which hides what it is on, or a file that is open for writing.
    ///
    /// # Errors
    /// The first one found, or what could not be looked at.
    pub(in crate::host) fn check_not_written(
        &self,
        directory: &OwnedFd,
        staged: Option<&Path>,
    ) -> Result<(), InUse> {
        self.check(directory, |mounts| Counts::writers(mounts, staged, |mount| self.is_shown_by(mount)))
    }

    fn check(&self, directory: &OwnedFd, counts: impl FnOnce(&Mounts) -> Counts) -> Result<(), InUse> {
        let tasks = tasks().map_err(|e| InUse(format!("an unknown user: cannot list /proc: {e}")))?;
        let mounts = survey(&tasks)?;
        let counts = counts(&mounts);
        self.check_mounts(&mounts, &counts)?;
        let mut unplaced = Unplaced::new();
        tasks.iter().try_for_each(|task| self.check_task(task, &mounts, &counts, &mut unplaced))?;
        if unplaced.is_empty() { Ok(()) } else { find_inodes(directory, &unplaced, 0) }
    }

    /// Whether a mount shows the directory, or something in it.
    fn is_shown_by(&self, mount: &Mount) -> bool {
        self.contains(mount.device, &mount.root)
    }

    fn contains(&self, device: (u32, u32), inside: &Path) -> bool {
        device == self.device && inside.starts_with(&self.inside)
    }

    fn check_mounts(&self, mounts: &Mounts, counts: &Counts) -> Result<(), InUse> {
        for (ids, task) in mounts.namespaces.values() {
            for mount in ids.iter().filter_map(|id| mounts.by_id.get(id)) {
                let found = || {
                    InUse(format!(
                        "the mount at {} in the mount namespace of {}",
                        mount.point.display(),
                        task.name()
                    ))
                };
                // Shown somewhere: a container has it, or a directory in it, under another path.
                if self.is_shown_by(mount) && counts.mount(mount, mounts) {
                    return Err(found());
                }
                // Or covered somewhere. The namespace's own root mount has no parent that can be seen.
                let Some(parent) = mounts.by_id.get(&mount.parent).filter(|p| p.id != mount.id) else {
                    continue;
                };
                match inside(parent, &mount.point) {
                    Some(at) if self.contains(parent.device, &at) => return Err(found()),
                    None if parent.device == self.device => return Err(found()),
                    Some(_) | None => {}
                }
            }
        }
        Ok(())
    }

    fn check_task(
        &self,
        task: &Task,
        mounts: &Mounts,
        counts: &Counts,
        unplaced: &mut Unplaced,
    ) -> Result<(), InUse> {
        for name in ["cwd", "root", "exe"] {
            let Some(target) = task.link(name)? else { continue };
            // Who works in it writes nothing by that.
            if self.link_is_inside(task, name, &target, mounts, unplaced)? && counts.all() {
                return Err(InUse(task.name()));
            }
        }
        if task.tid != task.pid && raw::same_files(task.pid, task.tid) == Some(true) {
            return Ok(());
        }
        let list = match std::fs::read_dir(task.directory.join("fd")) {
            Ok(list) => list,
            Err(e) if is_gone(&e) => return Ok(()),
            Err(e) => return Err(task.hidden("fd", &e)),
        };
        for entry in list {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) if is_gone(&e) => return Ok(()),
                Err(e) => return Err(task.hidden("fd", &e)),
            };
            let name = Path::new("fd").join(entry.file_name());
            let Some(name) = name.to_str() else { continue };
            let Some(target) = task.link(name)? else { continue };
            if target.to_str().is_some_and(|t| t.starts_with("mnt:[")) {
                // A namespace without a process can have any mount.
                if !mounts.namespaces.contains_key(target.as_os_str()) {
                    return Err(InUse(format!("an unknown user: {} holds a mount namespace", task.name())));
                }
                continue;
            }
            // Sockets, pipes and the like have no path.
            if !target.is_absolute() {
                continue;
            }
            // The descriptor that this look began with.
            if task.pid == std::process::id() && target == self.absolute {
                continue;
            }
            if self.file_is_inside(task, &entry.file_name(), &target, mounts, counts, unplaced)? {
                return Err(InUse(task.name()));
            }
        }
        Ok(())
    }

    /// Judges an open file by its mount, which fdinfo says without asking the file system.
    fn file_is_inside(
        &self,
        task: &Task,
        fd: &std::ffi::OsStr,
        target: &Path,
        mounts: &Mounts,
        counts: &Counts,
        unplaced: &mut Unplaced,
    ) -> Result<bool, InUse> {
        let info = match std::fs::read_to_string(task.directory.join("fdinfo").join(fd)) {
            Ok(info) => info,
            Err(e) if is_gone(&e) => return Ok(false),
            Err(e) => return Err(task.hidden("fdinfo", &e)),
        };
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
        match id.and_then(|id| mounts.by_id.get(&id)) {
            Some(mount) => Ok((counts.all() || is_for_writing(&info)) && self.path_is_inside(mount, target)),
            // A mount of no namespace: the kernel's own, or one that was unmounted lazily.
            None => self.note_unplaced(task, &Path::new("fd").join(fd), unplaced),
        }
    }

    /// Judges a directory that has no fdinfo. Where its path lies on a network or FUSE file system, which may never
    /// answer, it is not asked: an emptyDir is on none.
    fn link_is_inside(
        &self,
        task: &Task,
        name: &str,
        target: &Path,
        mounts: &Mounts,
        unplaced: &mut Unplaced,
    ) -> Result<bool, InUse> {
        let namespace = task.link("ns/mnt")?;
        let ids = namespace.and_then(|n| mounts.namespaces.get(n.as_os_str())).map(|(ids, _)| ids.as_slice());
        let on = ids
            .unwrap_or_default()
            .iter()
            .filter_map(|id| mounts.by_id.get(id))
            .filter(|m| target.starts_with(&m.point))
            .max_by_key(|m| m.point.as_os_str().len());
        if on.is_some_and(|m| new_device_each_time(&m.fs_type) && m.device != self.device) {
            return Ok(false);
        }
        match task_stat(task, Path::new(name)) {
            Ok(stat) => match mounts.by_id.get(&stat.stx_mnt_id) {
                Some(mount) => Ok(self.path_is_inside(mount, target)),
                None => self.note_unplaced(task, Path::new(name), unplaced),
            },
            Err(e) if is_gone(&e) => Ok(false),
            Err(e) => Err(task.hidden(name, &e)),
        }
    }

    /// A path on a known mount. One that is not below its mount point is of no known place: taken for ours if it could be.
    fn path_is_inside(&self, mount: &Mount, target: &Path) -> bool {
        match inside(mount, target) {
            Some(at) => self.contains(mount.device, &at),
            None => mount.device == self.device,
        }
    }

    /// Remembers a file on a mount of no namespace, which may be anywhere on our file system.
    fn note_unplaced(&self, task: &Task, link: &Path, unplaced: &mut Unplaced) -> Result<bool, InUse> {
        match task_stat(task, link) {
            Ok(stat) if (stat.stx_dev_major, stat.stx_dev_minor) == self.stat_device => {
                unplaced.entry(stat.stx_ino).or_insert_with(|| task.name());
                Ok(false)
            }
            Ok(_) => Ok(false),
            Err(e) if is_gone(&e) => Ok(false),
            Err(e) => Err(task.hidden("an open file", &e)),
        }
    }
}

/// Open files of our file system whose paths say nothing: inode and user.
type Unplaced = BTreeMap<u64, String>;

/// Looks for these inodes in a directory and below it.
fn find_inodes(directory: &OwnedFd, wanted: &Unplaced, depth: usize) -> Result<(), InUse> {
    /// A descriptor is held for each level.
    const DEEPEST: usize = 64;
    let unknown = |e: rustix::io::Errno| InUse(format!("an unknown user: its content cannot be read: {e}"));
    let check = |inode: u64| match wanted.get(&inode) {
        Some(user) => Err(InUse(user.clone())),
        None => Ok(()),
    };
    check(rustix::fs::fstat(directory).map_err(unknown)?.st_ino)?;
    let again = rustix::fs::openat(directory, ".", DIRECTORY, Mode::empty()).map_err(unknown)?;
    for (name, _kind) in names(again).map_err(unknown)? {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stat = match rustix::fs::statat(directory, &name, flags) {
            Ok(stat) => stat,
            Err(rustix::io::Errno::NOENT) => continue,
            Err(e) => return Err(unknown(e)),
        };
        check(stat.st_ino)?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            if depth == DEEPEST {
                return Err(InUse("an unknown user: its directories are too deep to be searched".to_owned()));
            }
            find_inodes(&open_within(directory, &name, DIRECTORY).map_err(unknown)?, wanted, depth + 1)?;
        }
    }
    Ok(())
}

/// Returns mount, device and inode behind a link of `/proc`.
fn task_stat(task: &Task, link: &Path) -> io::Result<Statx> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::MNT_ID | StatxFlags::INO;
    Ok(rustix::fs::statx(rustix::fs::CWD, task.directory.join(link), flags, wanted)?)
}
