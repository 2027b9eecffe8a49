//! Block devices that carry, or shall carry, a file system: whole operations, each in a child process.
//!
//! A device may not answer for good (a dead iSCSI session, a multipath device that queues), so not even its opening is done in
//! volumed. The child opens the device, locks it, does everything with that one descriptor and closes it; the tools that it
//! runs die with it, and it with volumed. A device whose child hangs stays locked for as long. A child that is done waits a moment
//! for the next operation, and remembers what a look at a device found: the mount that follows asks blkid again only if a byte has
//! changed since. What formats always asks anew.
//!
//! What may be formatted is decided here once more, whatever the caller decided before (design 6, rule 2): `judge` has the rules,
//! from what `blkid` says and what `places` reads.

mod blkid;
mod btrfs;
mod check;
mod cryptsetup;
mod device;
mod dm;
mod encrypted;
mod error;
mod format;
mod identity;
mod judge;
mod linux;
mod luks;
mod mount;
mod places;
mod show;
mod superblock;
mod work;

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::{Checked, DiskIdentity, FileSystem, Mount, MountIdentity, RootPath};

pub(super) use device::Opinions;
pub use encrypted::{EncryptedDisks, LuksOpened};
pub use error::DiskError;
pub(super) use work::{Answer, Ask, Work, answer};

/// How long a look at a device may take: blkid has a minute, the lock 20 s, a disk that spins up its time.
pub(super) const LOOK: Duration = Duration::from_secs(150);

/// How long a mount may take once it was checked: the kernel replays the log.
const MOUNT: Duration = Duration::from_secs(300);

/// A mounted file system to be grown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskGrowth {
    /// Its device.
    pub device: PathBuf,
    /// Which disk was recorded.
    pub identity: DiskIdentity,
    /// Which file system was recorded.
    pub file_system: FileSystem,
    /// Where it is mounted.
    pub at: RootPath,
}

/// A file system of a device that was mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMounted {
    /// What the check found.
    pub checked: Checked,
    /// The mount, as the table shows it.
    pub mount: MountIdentity,
    /// It was mounted there already.
    pub already: bool,
    /// It takes all of its device, as far as its superblock says, which may be behind.
    pub fills: bool,
}

/// Returns whether the disk under a mounted file system was taken away. The file system does not say so: what is in memory of it
/// can still be read.
pub(super) fn is_gone(mount: &Mount) -> bool {
    let there = match mount.device {
        // A btrfs has a number of its own, and may have several disks.
        (0, _) => return btrfs::is_gone(&mount.source),
        (major, minor) => std::fs::symlink_metadata(format!("/sys/dev/block/{major}:{minor}")),
    };
    there.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
}

/// Returns how long mkfs and resize may take on so many bytes: five minutes and a second for each GiB.
fn limit(bytes: u64) -> Duration {
    Duration::from_secs(300 + (bytes >> 30))
}
