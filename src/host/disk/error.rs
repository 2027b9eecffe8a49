//! Why an operation on a disk did not come to its end. It crosses from the child process to the daemon, so errors of the kernel
//! are text in it.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::HostError;
use crate::error::Chain;
use crate::model::{Content, DiskIdentity, FileSystem, FsUuid};

/// An operation on a disk that was refused, or that failed. Display names the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum DiskError {
    /// There is no block device at the path.
    #[error("{} is {found}, not a block device", path.display())]
    NoDevice {
        /// The path as it was given.
        path: PathBuf,
        /// "nothing", "a directory", ...
        found: String,
    },
    /// Another disk has the path now.
    #[error(
        "{} is another disk: recorded is the one with {recorded}, found was one with {found}", path.display()
    )]
    OtherDisk {
        /// The device.
        path: PathBuf,
        /// Which was recorded.
        recorded: DiskIdentity,
        /// Which is there.
        found: DiskIdentity,
    },
    /// Not the file system that was recorded.
    #[error(
        "{} has not the file system that was recorded: that was {recorded}, found was {found}", path.display()
    )]
    OtherContent {
        /// The device.
        path: PathBuf,
        /// Which was recorded.
        recorded: FileSystem,
        /// What is there.
        found: Content,
    },
    /// A device that was to be formatted has something on it, or may have. Nothing was written.
    #[error("{} is not formatted: on it is {found}{}", path.display(), erasing(path, found))]
    NotBlank {
        /// The device.
        path: PathBuf,
        /// What is there.
        found: Content,
    },
    /// A device that was to be formatted may have on it what an interrupted mkfs left, or somebody's data. Nothing was written.
    #[error(
        "{} is not formatted: on it is {found}; an mkfs that was interrupted may have left that, but {identity} is not \
         enough to tell this disk from another; if nobody needs what is on it, erase it by hand (wipefs --all {}, then \
         blkdiscard --zeroout {})", path.display(), path.display(), path.display()
    )]
    Unproven {
        /// The device.
        path: PathBuf,
        /// What is there.
        found: Content,
        /// All by which the disk is known.
        identity: DiskIdentity,
    },
    /// Whether somebody has it cannot be found out. Nothing was written.
    #[error("{} is not formatted: who has it open cannot be seen: {what}; volumed needs the capability CAP_SYS_PTRACE", path.display())]
    Unseen {
        /// The device.
        path: PathBuf,
        /// What could not be looked at, and the kernel's words.
        what: String,
    },
    /// The kernel lets nobody write to it. Nothing was written.
    #[error("{} is not formatted: it is read-only", path.display())]
    ReadOnly {
        /// The device.
        path: PathBuf,
    },
    /// It has not the size that was asked for. Nothing was written.
    #[error("{} is not formatted: it has {bytes} bytes, and {least} were asked for", path.display())]
    TooSmall {
        /// The device.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The least that was asked for.
        least: u64,
    },
    /// Somebody has it. Nothing was written.
    #[error("{} is in use by {holder}", path.display())]
    InUse {
        /// The device.
        path: PathBuf,
        /// Who, as far as that can be found out.
        holder: String,
    },
    /// Two looks at it, one after the other, saw different things. Nothing was written.
    #[error("{} changed while it was looked at: first it had {first}, then {then}", path.display())]
    Changed {
        /// The device.
        path: PathBuf,
        /// What the first look saw.
        first: Content,
        /// What the second look saw.
        then: Content,
    },
    /// mkfs was started, and what is on the device is not what was asked for.
    #[error("{} was formatted, but then had {found} and not {asked}", path.display())]
    MadeWrong {
        /// The device.
        path: PathBuf,
        /// What mkfs was told.
        asked: FileSystem,
        /// What was read back.
        found: Content,
    },
    /// mkfs was started and did not get to its end: what is on the device is not known.
    #[error("cannot make a file system on {}: {said}", path.display())]
    NotMade {
        /// The device.
        path: PathBuf,
        /// What it said.
        said: String,
    },
    /// luksFormat was started and did not get to its end: what is on the device is not known.
    #[error("cannot encrypt {}: {said}", path.display())]
    NotEncrypted {
        /// The device.
        path: PathBuf,
        /// What it said.
        said: String,
    },
    /// The key opens nothing of the encryption. Nothing was written.
    #[error(
        "the key does not open the encryption of {}; look whether the Secret is the one it was made with", path.display()
    )]
    WrongKey {
        /// The device, or the open one.
        path: PathBuf,
    },
    /// Not the encryption that was recorded.
    #[error(
        "{} has not the encryption that was recorded: that was LUKS with the UUID {recorded}, found was {found}",
        path.display()
    )]
    OtherEncryption {
        /// The device.
        path: PathBuf,
        /// Which was recorded.
        recorded: FsUuid,
        /// What is there, in words.
        found: String,
    },
    /// The name of an open device is another's.
    #[error("{} is not the open encryption that was recorded: {found}", path.display())]
    OtherMapping {
        /// `/dev/mapper/NAME`
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// The file system has errors that no check mends by itself: it is not mounted.
    #[error("the file system on {} has errors; check it by hand (fsck {}): {said}", path.display(), path.display())]
    Errors {
        /// The device.
        path: PathBuf,
        /// What the check said.
        said: String,
    },
    /// The kernel does not take the mount options.
    #[error("cannot mount {} at {}: {why}", path.display(), at.display())]
    Options {
        /// The device.
        path: PathBuf,
        /// Where.
        at: PathBuf,
        /// Which option, and the kernel's words.
        why: String,
    },
    /// Something else is mounted there, or not the file system of this device.
    #[error("{} is not the mount of {}: {found}", at.display(), path.display())]
    OtherMount {
        /// The device.
        path: PathBuf,
        /// Where.
        at: PathBuf,
        /// What is there.
        found: String,
    },
    /// It was grown, and is not as large as its device.
    #[error("the file system on {} was grown and has {bytes} bytes, its device {device}", path.display())]
    NotWhole {
        /// The device.
        path: PathBuf,
        /// The size that was read back.
        bytes: u64,
        /// The device's size.
        device: u64,
    },
    /// The kernel or a tool failed; nothing was written by us.
    #[error("cannot {doing} {}: {why}", path.display())]
    Failed {
        /// "read", "find the program", ...
        doing: String,
        /// What it was about.
        path: PathBuf,
        /// The reason.
        why: String,
    },
}

impl DiskError {
    /// Returns whether a failed `format` may have written something: only then an mkfs, or luksFormat, was started.
    pub fn may_have_written(&self) -> bool {
        match self {
            Self::MadeWrong { .. } | Self::NotMade { .. } | Self::NotEncrypted { .. } => true,
            Self::NoDevice { .. }
            | Self::OtherDisk { .. }
            | Self::OtherContent { .. }
            | Self::NotBlank { .. }
            | Self::Unproven { .. }
            | Self::Unseen { .. }
            | Self::ReadOnly { .. }
            | Self::TooSmall { .. }
            | Self::InUse { .. }
            | Self::Changed { .. }
            | Self::WrongKey { .. }
            | Self::OtherEncryption { .. }
            | Self::OtherMapping { .. }
            | Self::Errors { .. }
            | Self::Options { .. }
            | Self::OtherMount { .. }
            | Self::NotWhole { .. }
            | Self::Failed { .. } => false,
        }
    }
}

impl From<HostError> for DiskError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Disk(error) => *error,
            HostError::Io { doing, path, source } => {
                Self::Failed { doing: doing.to_owned(), path, why: Chain(&source).to_string() }
            }
            HostError::Busy { path, holder } => Self::InUse { path, holder },
            HostError::Deadline { doing, path, seconds } => {
                Self::Failed { doing: doing.to_owned(), path, why: format!("no answer within {seconds} s") }
            }
            HostError::Nfs(error) => Self::Failed {
                doing: "use".to_owned(),
                path: error.mount.path.clone().into(),
                why: error.to_string(),
            },
            HostError::Lun(error) => {
                Self::Failed { doing: "use".to_owned(), path: error.lun.to_string().into(), why: error.said }
            }
            HostError::NotEmpty { ref path }
            | HostError::WrongKind { ref path, .. }
            | HostError::WrongMount { ref path, .. } => {
                Self::Failed { doing: "use".to_owned(), path: path.clone(), why: Chain(&error).to_string() }
            }
        }
    }
}

/// Takes what the kernel said of a path.
pub(super) fn failed<E: Into<std::io::Error>>(
    doing: &str,
    path: &std::path::Path,
) -> impl Fn(E) -> DiskError {
    let (doing, path) = (doing.to_owned(), path.to_owned());
    move |error| DiskError::Failed { doing: doing.clone(), path: path.clone(), why: error.into().to_string() }
}

/// How to make a device blank, where it is known what would be lost: what cannot be read is not to be erased for that.
fn erasing(path: &std::path::Path, found: &Content) -> String {
    if matches!(found, Content::Unclear { .. }) {
        return String::new();
    }
    let path = path.display();
    format!(
        "; if nobody needs that, erase it by hand (wipefs --all {path}, then blkdiscard --zeroout {path})"
    )
}
