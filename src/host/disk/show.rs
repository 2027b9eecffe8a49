//! A disk shown raw: its node bound on a file below the root.

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::super::detached::attach;
use super::super::path::{BENEATH, Root};
use super::super::wanted::Waits;
use super::device::Device;
use super::error::{DiskError, failed};
use super::mount::At;
use crate::model::DiskIdentity;

/// As a kubelet makes such files (kubelet.md 3).
const MODE: u32 = 0o750;

/// Binds the node of a disk on a file, which is made where there is none.
///
/// # Errors
/// `OtherDisk`; `OtherMount` where another device is shown; `Failed`. Nothing is bound.
pub(super) fn show(device: &Device, identity: &DiskIdentity, at: &At) -> Result<(), DiskError> {
    device.must_be(identity)?;
    let root = Root::existing(&at.root).map_err(failed("open the root directory", &at.root))?;
    let absolute = at.absolute();
    let io = |e: Errno| failed("show the disk at", &absolute)(e);
    let (parent, name) = root.open_parent(&at.path).map_err(io)?;
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let how = BENEATH | ResolveFlags::NO_XDEV;
    let file = match rustix::fs::openat2(&parent, &name, flags, Mode::from_raw_mode(MODE), how) {
        Ok(file) => file,
        // Something is bound there.
        Err(Errno::XDEV) => return is_shown(device, at, &parent, &name),
        Err(e) => return Err(io(e)),
    };
    let stat = rustix::fs::fstat(&file).map_err(io)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size != 0 {
        let why = "there is something that volumed did not make".to_owned();
        return Err(DiskError::Failed { doing: "show the disk at".to_owned(), path: absolute, why });
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&device.fd, "", flags).map_err(io)?;
    let (_waits, wanted) = Waits::new();
    attach(&tree, &file, &wanted).map_err(io)
}

/// Makes sure that what is bound is this device.
fn is_shown(
    device: &Device,
    at: &At,
    parent: &std::os::fd::OwnedFd,
    name: &std::ffi::OsStr,
) -> Result<(), DiskError> {
    let absolute = at.absolute();
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let stat = stat.map_err(failed("look at", &absolute))?;
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice && number == device.number {
        return Ok(());
    }
    let found = "something else is mounted there".to_owned();
    Err(DiskError::OtherMount { path: device.path.clone(), at: absolute, found })
}
