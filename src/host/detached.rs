//! A file system as a mount that is attached nowhere yet, with its options, and the moment when everybody sees it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MoveMountFlags};

use super::HostError;
use super::options::Options;
use super::wanted::Wanted;

const MOUNTING: &str = "mount the file system at";

/// Why a mount could not be made.
pub(super) enum Unmade {
    /// An option was refused.
    Option(String),
    /// Something else, or an option that only this file system does not go with.
    Other(Errno, HostError),
}

impl Unmade {
    /// Takes it as an error of the host.
    pub(super) fn error(self, at: &Path) -> HostError {
        match self {
            Self::Option(refused) => {
                HostError::Io { doing: MOUNTING, path: at.to_owned(), source: io::Error::other(refused) }
            }
            Self::Other(_, error) => error,
        }
    }
}

/// Makes a mount that is attached nowhere yet, if it is still wanted.
pub(super) fn make(
    source: &Path,
    fs_type: &str,
    options: &Options,
    at: &Path,
    wanted: &Wanted,
) -> Result<OwnedFd, Unmade> {
    let other = |errno: Errno, source: io::Error| {
        Unmade::Other(errno, HostError::Io { doing: MOUNTING, path: at.to_owned(), source })
    };
    wanted.check().map_err(|e| other(e, e.into()))?;
    let context =
        rustix::mount::fsopen(fs_type, FsOpenFlags::FSOPEN_CLOEXEC).map_err(|e| other(e, e.into()))?;
    let worded = |e: Errno| {
        let (said, source) = (said(&context), io::Error::from(e));
        if said.is_empty() { source } else { io::Error::other(format!("{source}: {said}")) }
    };
    for option in &options.own {
        let set = match option.split_once('=') {
            Some((key, value)) => rustix::mount::fsconfig_set_string(context.as_fd(), key, value),
            None => rustix::mount::fsconfig_set_flag(context.as_fd(), option.as_str()),
        };
        set.map_err(|e| {
            Unmade::Option(format!("the kernel refuses the mount option {option}: {}", worded(e)))
        })?;
    }
    let configure = || -> Result<OwnedFd, Errno> {
        rustix::mount::fsconfig_set_string(context.as_fd(), "source", source)?;
        if options.read_only {
            rustix::mount::fsconfig_set_flag(context.as_fd(), "ro")?;
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, options.attributes)
    };
    configure().map_err(|e| other(e, worded(e)))
}

/// Opens what is at a path for its place alone: nothing at the end of it is followed.
///
/// # Errors
/// The kernel's.
pub(super) fn place(path: &Path, kind: OFlags) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC | kind;
    rustix::fs::open(path, flags, Mode::empty())
}

/// Lets everybody see a mount, if it is still wanted: one that came after its call was given up would be nobody's.
///
/// # Errors
/// The kernel's; nothing is mounted.
pub(super) fn attach(mount: &OwnedFd, at: &OwnedFd, wanted: &Wanted) -> Result<(), Errno> {
    wanted.check()?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", at, "", flags)
}

/// Reads what the kernel has to say about a file system that it would not mount: `e ext4: Unknown parameter 'nonsense'`.
fn said(context: &OwnedFd) -> String {
    let mut words = Vec::new();
    let mut line = [0; 512];
    while let Ok(length) = rustix::io::read(context, &mut line) {
        let text = line.get(..length).unwrap_or_default();
        let text = text.strip_prefix(b"e ").or(text.strip_prefix(b"w ")).unwrap_or(text);
        words.push(String::from_utf8_lossy(text).trim().to_owned());
        if length == 0 || words.len() > 8 {
            break;
        }
    }
    words.retain(|word| !word.is_empty());
    words.join("; ")
}
