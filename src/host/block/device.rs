//! The device that a driver published, and the number of one.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::super::HostError;
use super::super::path::descriptor_path;
use super::{A_DEVICE, Blocks};
use crate::model::RootPath;

/// A block device that a driver published.
#[derive(Debug)]
pub(super) struct Device {
    /// Names its node.
    pub(super) node: OwnedFd,
    pub(super) number: (u32, u32),
    /// What the pod's link leads to.
    pub(super) shown: PathBuf,
}

impl Blocks {
    /// Finds the device that a driver published.
    pub(super) fn find(&self, published: &RootPath) -> Result<Device, HostError> {
        let failed = |e| self.root.failed("find the published device", published, A_DEVICE, e);
        self.check_mount(published)?;
        let node = self.name(published).map_err(failed)?;
        let stat = rustix::fs::fstat(&node).map_err(failed)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => {
                Ok(Device { node, number: number(&stat), shown: self.root.absolute(published) })
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&node, "", Vec::new()).map_err(failed)?;
                self.behind(published, OsStr::from_bytes(target.as_bytes()))
            }
            other => Err(self.root.wrong_kind(published, other, A_DEVICE)),
        }
    }

    /// Finds the device behind a driver's symlink. It must not lie below the root, where pods can write.
    fn behind(&self, published: &RootPath, target: &OsStr) -> Result<Device, HostError> {
        const DOING: &str = "follow the published link to";
        let absolute = self.root.absolute(published);
        let wrong =
            |found| HostError::WrongKind { path: absolute.clone(), found, expected: "a link to a device" };
        let target = plain(absolute.parent().unwrap_or(Path::new("/")), Path::new(target));
        if target.starts_with(self.root.path()) {
            return Err(wrong("a symlink to something below the root directory"));
        }
        let failed = |source: io::Error| HostError::Io { doing: DOING, path: target.clone(), source };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let how = ResolveFlags::NO_MAGICLINKS;
        let node = rustix::fs::openat2(rustix::fs::CWD, &target, flags, Mode::empty(), how)
            .map_err(|e| failed(e.into()))?;
        let stat = rustix::fs::fstat(&node).map_err(|e| failed(e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice {
            return Err(wrong("a symlink to something else"));
        }
        let shown = descriptor_path(&node).map_err(failed)?;
        if shown.starts_with(self.root.path()) {
            return Err(wrong("a symlink to something below the root directory"));
        }
        Ok(Device { node, number: number(&stat), shown })
    }
}

/// Returns the number of a device node.
pub(super) fn number(stat: &rustix::fs::Stat) -> (u32, u32) {
    (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev))
}

/// Returns where a link in a directory without symlinks above it leads, by its text alone.
fn plain(directory: &Path, target: &Path) -> PathBuf {
    let mut path = PathBuf::new();
    for part in directory.join(target).components() {
        match part {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            Component::RootDir | Component::Normal(_) | Component::Prefix(_) => path.push(part),
        }
    }
    path
}
