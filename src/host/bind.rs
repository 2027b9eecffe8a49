//! Directories of the host shown below the root: bind mounts with their attributes from the first moment (kubelet.md 4.12).
//!
//! Where a server or a symlink may be on the way to the directory, a child process goes there: it can be given up.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};
use serde::{Deserialize, Serialize};

use super::options::{Attributes, of_the_file_system, read_only};
use super::path::Root;
use super::{HostError, raw};
use crate::model::{MountTable, RootPath, has_server};

/// A directory of the host, and where it is to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Absolute. Symlinks on the way are followed, as a kubelet does.
    pub source: PathBuf,
    /// A directory that is there, empty.
    pub target: RootPath,
    /// Nobody can write to it there.
    pub read_only: bool,
    /// Options of mount(8): those that every mount has.
    pub options: Vec<String>,
}

/// The same, for a child process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    root: OsString,
    source: OsString,
    target: OsString,
    read_only: bool,
    options: Vec<String>,
}

/// Why a directory is not shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Refusal {
    /// There is a symlink on the way, and nobody said that it may be followed.
    Symlink,
    /// The source cannot be opened, or is no directory.
    Source(i32),
    /// The target cannot be, or nothing can be mounted there.
    Target(i32),
    /// Something else is mounted on the target.
    Covered,
    /// These options are a file system's.
    Options(Vec<String>),
}

impl Bind {
    /// Returns whether the way to the source may lead over a file system with a server.
    pub(super) fn may_hang(&self, table: &MountTable) -> bool {
        table.iter().any(|mount| self.source.starts_with(&mount.point) && has_server(&mount.fs_type))
    }

    pub(super) fn ask(&self, root: &Path) -> Ask {
        Ask {
            root: root.into(),
            source: self.source.clone().into(),
            target: self.target.as_path().into(),
            read_only: self.read_only,
            options: self.options.clone(),
        }
    }

    /// Shows it, following no symlink on the way to the source.
    pub(super) fn show(&self, root: &Root) -> Result<(), Refusal> {
        show(root, &self.source, &self.target, (self.read_only, &self.options), ResolveFlags::NO_SYMLINKS)
    }

    /// Puts a refusal in words.
    pub(super) fn refused(&self, root: &Path, refusal: Refusal) -> HostError {
        let (source, target) = (self.source.clone(), root.join(self.target.as_path()));
        let io = |doing, path, source| HostError::Io { doing, path, source };
        match refusal {
            Refusal::Source(errno) if Errno::from_raw_os_error(errno) == Errno::NOTDIR => {
                HostError::WrongKind { path: source, found: "no directory", expected: "a directory" }
            }
            Refusal::Source(errno) => io("open", source, io::Error::from_raw_os_error(errno)),
            Refusal::Symlink => io("open", source, Errno::LOOP.into()),
            Refusal::Target(errno) => io("bind at", target, io::Error::from_raw_os_error(errno)),
            Refusal::Covered => {
                HostError::WrongMount { path: target, found: "another directory is shown there".to_owned() }
            }
            Refusal::Options(options) => {
                let problem = format!(
                    "the mount options {} are a file system's, and a directory has the ones of its own",
                    options.join(",")
                );
                io("show", source, io::Error::new(io::ErrorKind::InvalidInput, problem))
            }
        }
    }
}

/// What the child does.
pub(super) fn answer(ask: &Ask) -> Result<(), Refusal> {
    let root = Root::existing(Path::new(&ask.root)).map_err(|e| Refusal::Target(e.raw_os_error()))?;
    let Some(target) = RootPath::new(Path::new(&ask.target)) else {
        return Err(Refusal::Target(Errno::INVAL.raw_os_error()));
    };
    show(&root, Path::new(&ask.source), &target, (ask.read_only, &ask.options), ResolveFlags::empty())
}

fn show(
    root: &Root,
    source: &Path,
    target: &RootPath,
    (nobody_writes, options): (bool, &[String]),
    resolve: ResolveFlags,
) -> Result<(), Refusal> {
    let others: Vec<String> = of_the_file_system(options).into_iter().collect();
    if !others.is_empty() {
        return Err(Refusal::Options(others));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::openat2(rustix::fs::CWD, source, flags, Mode::empty(), resolve);
    let source = source.map_err(|e| match e {
        Errno::LOOP if resolve.contains(ResolveFlags::NO_SYMLINKS) => Refusal::Symlink,
        e => Refusal::Source(e.raw_os_error()),
    })?;
    let failed = |e: Errno| Refusal::Target(e.raw_os_error());
    let target = match root.open_at(target, flags) {
        Ok(target) => target,
        // Something is mounted there: an earlier try's, or a kubelet's.
        Err(Errno::XDEV) => {
            let there = root.open_mounted(target).map_err(failed)?;
            return if is_same(&source, &there).map_err(failed)? { Ok(()) } else { Err(Refusal::Covered) };
        }
        Err(e) => return Err(failed(e)),
    };
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&source, "", flags).map_err(|e| Refusal::Source(e.raw_os_error()))?;
    let (set, clear) = Attributes::also(options, nobody_writes || read_only(options)).bits();
    raw::set_attributes(tree.as_fd(), set, clear)
        .map_err(|e| Refusal::Target(e.raw_os_error().unwrap_or(Errno::IO.raw_os_error())))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", &target, "", flags).map_err(failed)
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> Result<bool, Errno> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}
