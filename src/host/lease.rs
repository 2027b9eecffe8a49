//! What is asked of the kernel about files and directories without a name for who has them: is somebody writing this manifest,
//! has anybody this image, is this still the same directory.
//!
//! A lease is only a probe (design 3, "Fail-safe"): the kernel refuses a read lease while a writer has the file open, so a file
//! is never read half written, and a write lease while anybody has. It is set and dropped at once; who comes in between is not
//! kept waiting longer than that.

#![expect(unsafe_code, reason = "nobody wraps F_SETLEASE, and sigaction is unsafe by its nature")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::OnceLock;
use std::time::UNIX_EPOCH;

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use rustix::fs::{Mode, OFlags};

use crate::model::{Birth, DirectoryIdentity};

/// The kernel's answer to the probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lease {
    /// Nobody has the file open: for writing, or at all, as it was asked.
    Granted,
    /// Somebody has, or had a moment ago: IN_CLOSE_WRITE comes shortly before the kernel lets go.
    Refused,
    /// This file system has no leases, or none for us: compare size and times before and after the reading.
    Unsupported,
}

/// File systems that answer "try again" when it is their server who does not give a lease: NFS, SMB 1, SMB 2 and 3.
const WITHOUT_LEASES: [u32; 3] = [0x6969, 0xFF53_4D42, 0xFE53_4D42];

/// Asks whether somebody has the file open for writing.
///
/// # Errors
/// When the file system cannot be told, or SIGIO could not be ignored (without that a writer could end this process).
pub fn probe(file: &File) -> io::Result<Lease> {
    ask(file, libc::F_RDLCK)
}

/// Asks whether anybody has the file open but by this one opening of it: a process, a loop device, another opening of our own.
/// Who only looked it up (O_PATH) does not count.
///
/// # Errors
/// As `probe`.
pub fn probe_alone(file: &File) -> io::Result<Lease> {
    ask(file, libc::F_WRLCK)
}

fn ask(file: &File, kind: libc::c_int) -> io::Result<Lease> {
    ignore_sigio()?;
    let file_system = u32::try_from(rustix::fs::fstatfs(file)?.f_type & 0xFFFF_FFFF).unwrap_or_default();
    if WITHOUT_LEASES.contains(&file_system) {
        return Ok(Lease::Unsupported);
    }
    match set_lease(file, kind) {
        Ok(()) => {
            set_lease(file, libc::F_UNLCK)?;
            Ok(Lease::Granted)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Lease::Refused),
        // EINVAL: no leases here. EACCES: the file is another user's and we lack CAP_LEASE. Either way something else tells.
        Err(_) => Ok(Lease::Unsupported),
    }
}

/// Opens what a path leads to, symlinks followed, without touching it: a FIFO does not block and a device is not started.
///
/// # Errors
/// When the path leads nowhere or may not be walked.
pub fn open_untouched(path: &Path) -> io::Result<File> {
    let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    Ok(File::from(fd))
}

/// Opens for reading what `open_untouched` found, that very inode. Only for regular files.
///
/// # Errors
/// When it may not be read, or another process holds a write lease on it (`WouldBlock`).
pub fn open_for_reading(untouched: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", untouched.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Opens a directory to list it.
///
/// # Errors
/// When there is none or it may not be read.
pub fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NONBLOCK;
    Ok(File::from(rustix::fs::open(path, flags, Mode::empty())?))
}

/// Returns the names in a directory, in no order.
///
/// # Errors
/// When the listing could not be read to its end; then no part of it may be used.
pub fn names(directory: &File) -> io::Result<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStringExt;
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory.as_fd())? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(std::ffi::OsString::from_vec(name));
        }
    }
    Ok(names)
}

/// Says which directory this is (design 3): inode and birth time; where there is none, inode and f_fsid.
///
/// # Errors
/// When the kernel does not tell.
pub fn identity(directory: &File) -> io::Result<DirectoryIdentity> {
    use std::os::unix::fs::MetadataExt;
    let metadata = directory.metadata()?;
    let birth = match metadata.created().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok()) {
        Some(since) => Birth::Time(i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)),
        None => Birth::FileSystem(rustix::fs::fstatvfs(directory)?.f_fsid),
    };
    Ok(DirectoryIdentity { inode: metadata.ino(), birth })
}

/// `fcntl(fd, F_SETLEASE, kind)`
fn set_lease(file: &File, kind: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETLEASE takes an integer and touches no memory of ours; `file` keeps the descriptor open across the call.
    let ret = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    if ret == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ignores SIGIO, once per process: the kernel sends it when a writer comes while the probe holds the lease, and its
/// default is to end the process.
fn ignore_sigio() -> io::Result<()> {
    static DONE: OnceLock<Result<(), nix::Error>> = OnceLock::new();
    let done = DONE.get_or_init(|| {
        let ignore = SigAction::new(SigHandler::SigIgn, SaFlags::empty(), SigSet::empty());
        // SAFETY: SIG_IGN runs no code of ours, so no handler can be called at a bad moment; nothing else here uses SIGIO.
        unsafe { sigaction(Signal::SIGIO, &ignore) }.map(drop)
    });
    done.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_with_a_file_is_told_so_and_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        std::fs::write(&path, "x").unwrap();
        let reader = || File::open(&path).unwrap();
        let asks = reader();
        if probe_alone(&asks).unwrap() == Lease::Unsupported {
            return;
        }
        assert_eq!(probe_alone(&asks).unwrap(), Lease::Granted);
        let other = reader();
        assert_eq!(probe_alone(&asks).unwrap(), Lease::Refused);
        drop(other);
        let writer = File::options().write(true).open(&path).unwrap();
        assert_eq!(probe_alone(&asks).unwrap(), Lease::Refused);
        drop(writer);
        assert_eq!(probe_alone(&asks).unwrap(), Lease::Granted);
    }
}
