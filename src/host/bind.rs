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
use super::path::{self, Root};
use super::wanted::{Waits, Wanted};
use super::{HostError, raw};
use crate::model::{Mount, MountTable, MountsAt, RootPath, has_server};

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
    /// The number of the device that it lay on when it was shown before, in this boot: another one is refused, since the disk is
    /// not mounted there any more.
    pub before: Option<(u32, u32)>,
    /// The source is a volume's own mount for the node, below the root, and nothing but that mount is shown: the options that are
    /// a file system's are that mount's.
    pub staged: bool,
}

/// The same, for a child process.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    root: OsString,
    source: OsString,
    target: OsString,
    read_only: bool,
    options: Vec<String>,
    before: Option<(u32, u32)>,
    staged: bool,
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
    /// It is below the root, or the root is below it.
    Root,
    /// The volume is not mounted for the node any more.
    NotMounted,
    /// It lies on another file system than before.
    OtherFileSystem,
    /// Something lies in the target.
    NotEmpty,
    /// These options are a file system's.
    Options(Vec<String>),
}

impl Bind {
    /// Returns whether the way to the source or the target may lead over a file system with a server.
    pub(super) fn may_hang(&self, root: &Path, table: &MountTable) -> bool {
        // An automount becomes what nobody knows.
        let may = |mount: &Mount| has_server(&mount.fs_type) || mount.fs_type == "autofs";
        let on_the_way = |point: &Path| match table.at(point) {
            MountsAt::None => false,
            MountsAt::One(mount) => may(mount),
            MountsAt::Stacked(mounts) => mounts.iter().any(may),
        };
        let target = root.join(self.target.as_path());
        self.source.ancestors().chain(target.ancestors()).any(on_the_way)
    }

    pub(super) fn ask(&self, root: &Path) -> Ask {
        Ask {
            root: root.into(),
            source: self.source.clone().into(),
            target: self.target.as_path().into(),
            read_only: self.read_only,
            options: self.options.clone(),
            before: self.before,
            staged: self.staged,
        }
    }

    /// Shows it if it is still wanted, following no symlink on the way to the source.
    pub(super) fn show(&self, root: &Root, wanted: &Wanted) -> Result<(), Refusal> {
        show(root, self, ResolveFlags::NO_SYMLINKS, wanted)
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
                HostError::WrongMount { path: target, found: "it is shown there otherwise".to_owned() }
            }
            Refusal::NotEmpty => HostError::NotEmpty { path: target },
            Refusal::Root => {
                let found = "the root directory of volumed, or above or below it";
                HostError::WrongKind { path: source, found, expected: "a directory of its own" }
            }
            Refusal::NotMounted => {
                HostError::WrongMount { path: source, found: "not mounted any more".to_owned() }
            }
            Refusal::OtherFileSystem => {
                let found =
                    "on another file system than when it was shown before: is its disk mounted?".to_owned();
                HostError::WrongMount { path: source, found }
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
    let bind = Bind {
        source: ask.source.clone().into(),
        target,
        read_only: ask.read_only,
        options: ask.options.clone(),
        before: ask.before,
        staged: ask.staged,
    };
    // Who does not wait any more kills this process.
    let (_waits, wanted) = Waits::new();
    show(&root, &bind, ResolveFlags::empty(), &wanted)
}

fn show(root: &Root, bind: &Bind, resolve: ResolveFlags, wanted: &Wanted) -> Result<(), Refusal> {
    let Bind { source, target, .. } = bind;
    let others: Vec<String> = of_the_file_system(&bind.options).into_iter().collect();
    if !others.is_empty() && !bind.staged {
        return Err(Refusal::Options(others));
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::openat2(rustix::fs::CWD, source, flags, Mode::empty(), resolve);
    let source = source.map_err(|e| match e {
        Errno::LOOP if resolve.contains(ResolveFlags::NO_SYMLINKS) => Refusal::Symlink,
        e => Refusal::Source(e.raw_os_error()),
    })?;
    let real = path::descriptor_path(&source).map_err(|_| Refusal::Source(Errno::IO.raw_os_error()))?;
    if bind.staged {
        if !path::is_mount_root(&source).map_err(|e| Refusal::Source(e.raw_os_error()))? {
            return Err(Refusal::NotMounted);
        }
    } else if root.path().starts_with(&real) || real.starts_with(root.path()) {
        return Err(Refusal::Root);
    }
    let found = rustix::fs::fstat(&source).map_err(|e| Refusal::Source(e.raw_os_error()))?.st_dev;
    let found = (rustix::fs::major(found), rustix::fs::minor(found));
    if bind.before.is_some_and(|before| before != found) {
        return Err(Refusal::OtherFileSystem);
    }
    let attributes = Attributes::also(&bind.options, bind.read_only || read_only(&bind.options));
    let failed = |e: Errno| Refusal::Target(e.raw_os_error());
    let target = match root.open_at(target, flags) {
        Ok(target) => target,
        // Something is mounted there: an earlier try's, or a kubelet's.
        Err(Errno::XDEV) => {
            let there = root.open_mounted(target).map_err(failed)?;
            let same =
                is_same(&source, &there).map_err(failed)? && attributes.are_on(&there).map_err(failed)?;
            return if same { Ok(()) } else { Err(Refusal::Covered) };
        }
        Err(e) => return Err(failed(e)),
    };
    let inside =
        rustix::fs::openat(&target, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    if !inside.and_then(path::names).map_err(failed)?.is_empty() {
        return Err(Refusal::NotEmpty);
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&source, "", flags).map_err(|e| Refusal::Source(e.raw_os_error()))?;
    let (set, clear) = attributes.bits();
    // What is mounted below the source later must not appear below the target, nor be unmounted from there.
    raw::set_attributes(tree.as_fd(), set, clear, libc::MS_PRIVATE)
        .map_err(|e| Refusal::Target(e.raw_os_error().unwrap_or(Errno::IO.raw_os_error())))?;
    wanted.check().map_err(failed)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&tree, "", &target, "", flags).map_err(failed)
}

fn is_same(one: &OwnedFd, other: &OwnedFd) -> Result<bool, Errno> {
    let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
    Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
}
