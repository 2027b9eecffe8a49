//! Unmounts: only what the table proves to be the recorded mount, never lazily, in a child process that can be given up.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use super::mount_table::Reader;
use super::path::Root;
use super::{HostError, raw, users};
use crate::model::{MountIdentity, MountTable, MountsAt, RootPath, has_server};

/// How long an unmount may take: it writes back what the file system has not written yet.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// The same where the operator said that what is not written may be lost.
pub(super) const FORCED_LIMIT: Duration = Duration::from_secs(30);

const DOING: &str = "unmount";

/// How a path is unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// What was written there is written back first; busy is an error.
    Plain,
    /// The same, but what waits for the file system's server is given up with an error (MNT_FORCE), never lazily: the operator
    /// said so. What the server has not got by then is lost.
    Forced,
}

/// What an unmount would meet, as the table shows it.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Nothing is mounted there.
    Gone,
    /// Exactly the expected mount, by its id.
    Expected(u64),
}

/// Children that did not end in time, each to be reaped when it has.
#[derive(Debug, Default)]
pub(super) struct GivenUp(Mutex<Vec<Pid>>);

impl GivenUp {
    pub(super) fn add(&self, pid: Pid) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
    }

    /// Forgets those that have ended meanwhile.
    pub(super) fn reap(&self) {
        let mut pids = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pids.retain(|pid| {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            matches!(rustix::process::waitid(WaitId::Pid(*pid), options), Ok(None))
        });
    }
}

/// A child of ours has our descriptors until it gets its own program: what another thread looked at that moment is busy for
/// a few milliseconds.
const FORKED_PAUSE: Duration = Duration::from_millis(4);
const FORKED_TRIES: usize = 3;

/// Unmounts a path if exactly this mount is there (`Host::unmount`).
///
/// # Errors
/// `WrongMount` and `Busy`: nothing was done, but that a forced one made calls to a server fail. `Deadline`: not known.
pub(super) fn unmount(
    root: &Root,
    table: &Mutex<Reader>,
    given_up: &GivenUp,
    path: &RootPath,
    (expected, how): (&MountIdentity, Unmount),
    limit: Duration,
) -> Result<(), HostError> {
    given_up.reap();
    let absolute = root.absolute(path);
    let failed = |source: io::Error| HostError::Io { doing: DOING, path: absolute.clone(), source };
    let look = || -> Result<Found, HostError> {
        let table = table.lock().unwrap_or_else(PoisonError::into_inner).read().map_err(failed)?;
        judge(&table, &absolute, expected)
    };
    let Found::Expected(id) = look()? else { return Ok(()) };
    // The parent is reached without a symlink and held, so that the name in it is the place that the table was asked about.
    let (parent, name) = root.open_parent(path).map_err(|e| root.failed(DOING, path, "a mount point", e))?;
    let name = CString::new(name.into_vec()).map_err(|e| failed(e.into()))?;
    let once = || match in_child(&parent, &name, how, given_up, &absolute, limit) {
        // The kernel takes a mount away before it waits for the server to hear of it: then nobody has it any more, and the
        // operator said that what was not written may be lost.
        Err(HostError::Deadline { .. }) if how == Unmount::Forced && matches!(look(), Ok(Found::Gone)) => {
            Ok(None)
        }
        done => done,
    };
    let mut errno = once()?;
    for _ in 0..FORKED_TRIES {
        if errno != Some(Errno::BUSY) {
            break;
        }
        pause(FORKED_PAUSE).map_err(failed)?;
        errno = once()?;
    }
    match errno {
        None => Ok(()),
        Some(Errno::BUSY) => Err(HostError::Busy {
            holder: users::holder_of_mount(id, &absolute).unwrap_or_else(|| "another process".to_owned()),
            path: absolute,
        }),
        // Somebody else was faster (EINVAL: not a mount point; ENOENT: not even a directory).
        Some(e @ (Errno::INVAL | Errno::NOENT)) => match look()? {
            Found::Gone => Ok(()),
            Found::Expected(_) => Err(failed(e.into())),
        },
        Some(e) => Err(failed(e.into())),
    }
}

/// Waits, on a thread that may: one of the blocking pool.
pub(super) fn pause(time: Duration) -> io::Result<()> {
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match poll(&mut [], Some(&time)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Decides from the table: one mount, the recorded one, nothing on it and nothing below it.
fn judge(table: &MountTable, path: &Path, expected: &MountIdentity) -> Result<Found, HostError> {
    let wrong = |found: String| Err(HostError::WrongMount { path: path.to_owned(), found });
    let mount = match table.at(path) {
        MountsAt::None => return Ok(Found::Gone),
        MountsAt::One(mount) => mount,
        MountsAt::Stacked(mounts) => return wrong(format!("{} mounts are stacked there", mounts.len())),
    };
    let found = mount.identity();
    let same =
        found == *expected || (new_device_each_time(&found.fs_type) && found.same_but_device(expected));
    if !same {
        return wrong(format!("there is {found}, recorded is {expected}"));
    }
    if let Some(below) = table.below(path).next() {
        return wrong(format!("something is mounted below it, at {}", below.point.display()));
    }
    Ok(Found::Expected(mount.id))
}

/// Returns whether each mount of this type gets a device number of its own: FUSE and network file systems.
pub(super) fn new_device_each_time(fs_type: &str) -> bool {
    has_server(fs_type) || matches!(fs_type, "ocfs2" | "gfs2")
}

/// Runs the one system call in a child and returns its errno.
fn in_child(
    parent: &std::os::fd::OwnedFd,
    name: &std::ffi::CStr,
    how: Unmount,
    given_up: &GivenUp,
    path: &Path,
    limit: Duration,
) -> Result<Option<Errno>, HostError> {
    use std::os::fd::AsFd;
    let failed = |source: io::Error| HostError::Io { doing: DOING, path: path.to_owned(), source };
    let child = raw::spawn_unmount(parent.as_fd(), name, how == Unmount::Forced).map_err(failed)?;
    let done = wait(child, limit);
    match done {
        Ok(Some(status)) => Ok((status != 0).then(|| Errno::from_raw_os_error(status))),
        Ok(None) => {
            // A child in the kernel for good does not even die of this; it is nobody's any more.
            let _sent = rustix::process::kill_process(child, Signal::KILL);
            given_up.add(child);
            Err(HostError::Deadline { doing: DOING, path: path.to_owned(), seconds: limit.as_secs() })
        }
        Err(e) => Err(failed(e)),
    }
}

/// Waits for a child's end and reaps it. `None`: it is still there at the limit.
pub(super) fn wait(child: Pid, limit: Duration) -> io::Result<Option<i32>> {
    // The pid is ours until it is reaped, here or in `GivenUp::reap`, so it cannot have been reused.
    let pidfd = rustix::process::pidfd_open(child, PidfdFlags::empty())?;
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    let ended = loop {
        match poll(&mut fds, Some(&limit)) {
            Ok(ended) => break ended,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    };
    if ended == 0 {
        return Ok(None);
    }
    let status = rustix::process::waitid(WaitId::Pid(child), WaitIdOptions::EXITED)?;
    // Killed from outside: it did not say what it did. EINTR makes that a plain error and a later try.
    Ok(Some(status.and_then(|s| s.exit_status()).unwrap_or(Errno::INTR.raw_os_error())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mount;

    fn mount(point: &str, fs_type: &str, device: (u32, u32)) -> Mount {
        Mount {
            id: 1,
            parent: 0,
            device,
            root: "/".into(),
            point: point.into(),
            fs_type: fs_type.to_owned(),
            source: "s".to_owned(),
            read_only: false,
        }
    }

    #[test]
    fn another_device_number_is_the_same_mount_for_fuse_and_network_only() {
        for (fs_type, allowed) in [("fuse.s3", true), ("nfs4", true), ("ext4", false), ("tmpfs", false)] {
            let table = MountTable::new([mount("/r/x", fs_type, (0, 5))]);
            let expected = mount("/r/x", fs_type, (0, 4)).identity();
            let found = judge(&table, Path::new("/r/x"), &expected);
            assert_eq!(found.is_ok(), allowed, "{fs_type}: {found:?}");
        }
    }

    #[test]
    fn a_mount_below_or_above_stops_the_unmount() {
        let one = mount("/r/x", "ext4", (8, 1));
        let expected = one.identity();
        let below = MountTable::new([one.clone(), mount("/r/x/y", "tmpfs", (0, 4))]);
        assert!(matches!(judge(&below, Path::new("/r/x"), &expected), Err(HostError::WrongMount { .. })));
        let stacked = MountTable::new([one.clone(), one.clone()]);
        assert!(matches!(judge(&stacked, Path::new("/r/x"), &expected), Err(HostError::WrongMount { .. })));
        let beside = MountTable::new([one, mount("/r/xy", "tmpfs", (0, 4))]);
        assert_eq!(judge(&beside, Path::new("/r/x"), &expected).unwrap(), Found::Expected(1));
    }

    #[test]
    fn nothing_there_is_success() {
        let expected = mount("/r/x", "ext4", (8, 1)).identity();
        assert_eq!(judge(&MountTable::default(), Path::new("/r/x"), &expected).unwrap(), Found::Gone);
    }

    /// A child process of the test's own that does not end by itself.
    #[expect(clippy::disallowed_methods, reason = "a test's child, reaped by what is tested")]
    fn sleeper() -> Pid {
        Pid::from_child(&std::process::Command::new("sleep").arg("600").spawn().unwrap())
    }

    #[test]
    fn a_child_that_does_not_end_is_given_up_and_reaped_when_it_has() {
        let pid = sleeper();
        assert_eq!(wait(pid, Duration::from_millis(1)).unwrap(), None);
        let given_up = GivenUp::default();
        given_up.add(pid);
        given_up.reap();
        assert_eq!(given_up.0.lock().unwrap().as_slice(), [pid], "still alive");
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        let zombie = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(pid), zombie).unwrap();
        given_up.reap();
        assert_eq!(given_up.0.lock().unwrap().as_slice(), [], "reaped");
    }

    #[test]
    fn a_child_that_was_killed_is_no_success() {
        let pid = sleeper();
        rustix::process::kill_process(pid, Signal::KILL).unwrap();
        assert_eq!(wait(pid, LIMIT).unwrap(), Some(Errno::INTR.raw_os_error()));
    }

    #[test]
    fn the_child_says_why_it_could_not_unmount() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("plain")).unwrap();
        let parent = std::fs::File::open(directory.path()).unwrap().into();
        let given_up = GivenUp::default();
        // EPERM without privileges.
        let allowed = |errno| if rustix::process::geteuid().is_root() { errno } else { Errno::PERM };
        for (name, errno) in [(c"plain", Errno::INVAL), (c"absent", Errno::NOENT)] {
            let found = in_child(&parent, name, Unmount::Plain, &given_up, directory.path(), LIMIT).unwrap();
            assert_eq!(found, Some(allowed(errno)));
        }
    }
}
