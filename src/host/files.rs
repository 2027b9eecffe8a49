//! Small files below the root: read whole, and written beside their place before they take it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::path::{FILE, open_within};

/// Reads a regular file of at most this many bytes. `None`: it is missing, longer, or something else.
pub(super) fn read_small(at: impl AsFd, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let fd = match open_within(at, name, FILE) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::LOOP | Errno::XDEV | Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let stat = rustix::fs::fstat(&fd)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let mut content = Vec::new();
    let length = File::from(fd).take(limit.saturating_add(1)).read_to_end(&mut content)?;
    Ok((u64::try_from(length).unwrap_or(u64::MAX) <= limit).then_some(content))
}

/// The name under which a file is written before it takes its place. Known, so that a leftover can be removed.
pub(super) fn temporary_name(name: &OsStr) -> OsString {
    let mut temporary = OsString::from(".");
    if name.len() + 1 + SUFFIX.len() > NAME_MAX {
        // A PersistentVolume's name may fill a whole file name: its hash stands in for it.
        temporary.push(
            Sha256::digest(name.as_encoded_bytes()).iter().map(|b| format!("{b:02x}")).collect::<String>(),
        );
    } else {
        temporary.push(name);
    }
    temporary.push(SUFFIX);
    temporary
}

/// Returns whether a name is one of those: neither a pod's volume nor a PersistentVolume can have it.
pub(super) fn is_temporary(name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b".") && name.ends_with(SUFFIX.as_bytes())
}

/// The end of each such name.
const SUFFIX: &str = ".volumed";

/// The longest file name that Linux file systems take, in bytes.
const NAME_MAX: usize = 255;

/// Writes a file under a name that must be free; what a crash left there is removed first, whatever it is but a directory.
pub(super) fn write_new(at: &OwnedFd, name: &OsStr, content: &[u8], mode: u32) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let make = || rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o600));
    let fd = match make() {
        Err(Errno::EXIST) => {
            rustix::fs::unlinkat(at, name, AtFlags::empty())?;
            make()?
        }
        made => made?,
    };
    rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode))?;
    File::from(fd).write_all(content)
}
