//! What the two sides say to each other: one request as JSON on the child's stdin, replies as JSON lines on its stdout.
//!
//! Both sides are the same program (`/proc/self/exe`), so there are no versions. Paths travel as `OsString`: JSON text has no
//! place for names that are not UTF-8, and a volume may hold any name.

use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::host::{Usage, bind, disk, lun, nfs};

/// What the child is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    /// `Host::set_ownership`.
    Ownership {
        /// The root directory: absolute, without symlinks.
        root: OsString,
        /// The volume, relative to it.
        path: OsString,
        /// The group's number.
        group: u32,
        /// Nothing is done where the volume's root directory is already right.
        on_root_mismatch: bool,
    },
    /// `Host::usage`: one `Usage` for each path.
    Usage(Vec<OsString>),
    /// `Host::dead_mounts`: one `Alive` for each mount point.
    Alive(Vec<OsString>),
    /// `Host::bind`.
    Bind(bind::Ask),
    /// `Host::mount_nfs`.
    Nfs(nfs::Ask),
    /// `Host::inspect_disk` and what follows from it.
    Disk(disk::Ask),
    /// `Luns`
    Lun(lun::Ask),
}

/// What the child says. Errors of the kernel are errnos: both sides are on one machine.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Reply {
    /// So many files were looked at until now.
    SoFar(u64),
    /// All of them are right.
    Owned,
    /// The first file that could not be made right.
    Failed {
        /// What failed.
        doing: Doing,
        /// Relative to the volume; empty for the volume itself.
        path: OsString,
        /// Why.
        errno: i32,
    },
    /// How full the file system at the path of this index is.
    Usage(usize, Result<Usage, i32>),
    /// Whether the file system at the mount point of this index answers.
    Alive(usize, Result<(), i32>),
    /// Whether it is shown.
    Bound(Result<(), bind::Refusal>),
    /// Whether the export is mounted.
    Nfs(Result<(), nfs::Refusal>),
    /// What comes now may last so many seconds.
    Lasts(u64),
    /// How the work on a disk ended.
    Disk(Box<Result<disk::Answer, disk::DiskError>>),
    /// How the work on the connection with a storage system ended.
    Lun(Result<lun::Answer, lun::Refusal>),
}

/// What an ownership child was about to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Doing {
    /// Open the volume, from the root directory on.
    Enter,
    /// Open a file or directory in it.
    Open,
    /// Read a directory.
    List,
    /// chown.
    Group,
    /// chmod.
    Mode,
}

impl Doing {
    /// Returns the words for `HostError::Io`.
    pub(super) fn words(self) -> &'static str {
        match self {
            Self::Enter => "enter the volume",
            Self::Open => "look at",
            Self::List => "list",
            Self::Group => "change the group of",
            Self::Mode => "change the mode of",
        }
    }
}
