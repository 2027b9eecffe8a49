//! How an operation on the host fails.

use std::io;
use std::path::PathBuf;

/// An operation on the host that failed. Display names the path.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// "make the directory", "read", ...
        doing: &'static str,
        /// What it was about.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A directory that must go has something in it.
    #[error("{} is not empty", path.display())]
    NotEmpty {
        /// Which.
        path: PathBuf,
    },
    /// A symlink, a mount or something of the wrong kind is where a plain directory or file is to be.
    #[error("{} is {found}, not {expected}", path.display())]
    WrongKind {
        /// Where.
        path: PathBuf,
        /// "a symlink", "a mount point", ...
        found: &'static str,
        /// "a directory", ...
        expected: &'static str,
    },
    /// Another mount than the expected one, or more than one.
    #[error("{} is not the recorded mount: {found}", path.display())]
    WrongMount {
        /// Where.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Somebody uses it.
    #[error("{} is in use by {holder}", path.display())]
    Busy {
        /// What.
        path: PathBuf,
        /// Who: pid and command, or the mount and its namespace.
        holder: String,
    },
    /// A disk is refused, or an operation on it failed.
    #[error(transparent)]
    Disk(Box<super::DiskError>),
    /// An export of an NFS server cannot be mounted.
    #[error(transparent)]
    Nfs(Box<super::NfsError>),
    /// A disk of a storage system is not connected, or not disconnected.
    #[error(transparent)]
    Lun(Box<super::LunError>),
    /// The kernel did not answer in time; whether it was done is not known.
    #[error("cannot {doing} {}: no answer within {seconds} s", path.display())]
    Deadline {
        /// As for `Io`.
        doing: &'static str,
        /// As for `Io`.
        path: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
}

impl HostError {
    /// Returns whether a failed `Host::format_disk` may have written to the device: mkfs was started, or nobody knows, because
    /// the child process that did the work died or was given up.
    pub fn may_have_written(&self) -> bool {
        match self {
            Self::Disk(error) => error.may_have_written(),
            // An earlier child hangs there: no new one was started.
            Self::Busy { .. } => false,
            Self::Io { .. }
            | Self::NotEmpty { .. }
            | Self::WrongKind { .. }
            | Self::WrongMount { .. }
            | Self::Nfs(_)
            | Self::Lun(_)
            | Self::Deadline { .. } => true,
        }
    }
}
