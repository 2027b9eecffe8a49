//! Gives everything in a volume to a group, as a kubelet does (kubelet.md 6.1): the group, read and write for it, and for
//! directories search and setgid; bits are only added; children before their directory, the volume's own directory last.
//!
//! What is different: four threads instead of one; every file is held by a descriptor, so that no swap leads elsewhere; mounts
//! inside the volume are not entered; the first error ends it; what is right already is not written. Of devices, pipes and
//! sockets only the group is changed (a kubelet adds 0660 too, which would open a device node to the group).

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::wire::Doing;
use crate::host::path::{DIRECTORY, Root, open_within};
use crate::model::RootPath;

/// How many threads walk: enough to hide the latency of a network file system, few enough not to be a load.
const THREADS: usize = 4;

/// How often is told how far it got.
const TELL: Duration = Duration::from_secs(1);

/// What a file's group gets.
const FILE_BITS: u32 = 0o660;

/// What a directory's group gets; new files in it inherit the group.
const DIRECTORY_BITS: u32 = 0o2770;

/// Longer paths are shown from their end.
const SHOWN: usize = 4096;

/// The first file that could not be made right.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) doing: Doing,
    /// Relative to the volume; empty for the volume itself.
    pub(super) path: PathBuf,
    pub(super) errno: Errno,
}

/// Makes the volume right, and tells every second how many files were looked at.
///
/// # Errors
/// The outer: not a thread could be started, or nobody listens any more. In both cases the volume's own directory is as it
/// was, so that it does not pass for done.
pub(super) fn give(
    root: &Path,
    path: &Path,
    group: u32,
    on_root_mismatch: bool,
    tell: impl FnMut(u64) -> std::io::Result<()>,
) -> std::io::Result<Result<(), Failure>> {
    let opened = RootPath::new(path)
        .ok_or(Errno::INVAL)
        .and_then(|path| Root::existing(root)?.open_mounted(&path))
        .and_then(|fd| Ok((rustix::fs::fstat(&fd)?, fd)));
    let (stat, fd) = match opened {
        Ok(opened) => opened,
        Err(errno) => return Ok(Err(Failure { doing: Doing::Enter, path: PathBuf::new(), errno })),
    };
    if on_root_mismatch && stat.st_gid == group && stat.st_mode & DIRECTORY_BITS == DIRECTORY_BITS {
        return Ok(Ok(()));
    }
    let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let descriptors = rustix::fs::open("/proc/self/fd", open, Mode::empty())?;
    Walk {
        group: Gid::from_raw(group),
        descriptors,
        looked_at: AtomicU64::new(0),
        hungry: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
        linked: Mutex::new(()),
        state: Mutex::new(State {
            queue: vec![Arc::new(Directory {
                fd,
                name: OsString::new(),
                above: None,
                pending: AtomicUsize::new(1),
            })],
            waiting: 0,
            end: None,
        }),
        changed: Condvar::new(),
    }
    .run(tell)
}

/// A directory that is being walked or waits for it; it is made right itself when nothing in it is pending.
#[derive(Debug)]
struct Directory {
    /// Of the volume: open for reading. Of all others: O_PATH.
    fd: OwnedFd,
    name: OsString,
    /// `None` for the volume itself.
    above: Option<Arc<Self>>,
    /// Its own listing, and the directories in it that are not done.
    pending: AtomicUsize,
}

impl Drop for Directory {
    /// One by one: a tree may be deeper than a stack.
    fn drop(&mut self) {
        let mut next = self.above.take();
        while let Some(mut directory) = next.and_then(Arc::into_inner) {
            next = directory.above.take();
        }
    }
}

impl Directory {
    /// Returns the path of something in it, relative to the volume.
    fn path(&self, name: &OsStr) -> PathBuf {
        let mut names = vec![name];
        let mut length = name.len();
        let mut here = Some(self);
        while let Some(directory) = here {
            if length > SHOWN {
                names.push(OsStr::new("..."));
                break;
            }
            names.push(&directory.name);
            length += directory.name.len() + 1;
            here = directory.above.as_deref();
        }
        names.iter().rev().filter(|name| !name.is_empty()).collect()
    }
}

/// A directory whose listing is under way.
struct Listing {
    directory: Arc<Directory>,
    entries: Dir,
}

/// What the threads share under the lock.
struct State {
    /// Directories for threads that have none, each counted as pending by the one above it.
    queue: Vec<Arc<Directory>>,
    /// Threads that have none.
    waiting: usize,
    /// The first word about the whole is the last.
    end: Option<Result<(), Failure>>,
}

struct Walk {
    group: Gid,
    /// `/proc/self/fd`: through it chmod reaches a file that is held by an O_PATH descriptor, on every kernel.
    descriptors: OwnedFd,
    looked_at: AtomicU64,
    /// Threads that wait, less what is queued: a hint when a directory is worth handing over.
    hungry: AtomicUsize,
    stop: AtomicBool,
    /// Held while a file with several names is changed: two threads may meet at it.
    linked: Mutex<()>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Walk {
    fn run(&self, mut tell: impl FnMut(u64) -> std::io::Result<()>) -> std::io::Result<Result<(), Failure>> {
        std::thread::scope(|scope| {
            let mut threads = 0;
            for _ in 0..THREADS {
                match std::thread::Builder::new().spawn_scoped(scope, || self.work()) {
                    Ok(_joined_by_the_scope) => threads += 1,
                    Err(e) if threads == 0 => return Err(e),
                    // Fewer are slower.
                    Err(_) => break,
                }
            }
            let mut state = self.lock();
            loop {
                if let Some(end) = state.end.take() {
                    // For those that take the lock after this.
                    state.end = Some(Ok(()));
                    return Ok(end);
                }
                state = self
                    .changed
                    .wait_timeout_while(state, TELL, |state| state.end.is_none())
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
                if state.end.is_none()
                    && let Err(e) = tell(self.looked_at.load(Ordering::Relaxed))
                {
                    drop(state);
                    self.end(Ok(()));
                    return Err(e);
                }
            }
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, how: Result<(), Failure>) {
        self.stop.store(true, Ordering::Relaxed);
        self.lock().end.get_or_insert(how);
        self.changed.notify_all();
    }

    /// One thread's life.
    fn work(&self) {
        while let Some(directory) = self.take() {
            if let Err(failure) = self.walk(directory) {
                self.end(Err(failure));
            }
        }
    }

    fn take(&self) -> Option<Arc<Directory>> {
        let mut state = self.lock();
        state.waiting += 1;
        let directory = loop {
            if state.end.is_some() {
                break None;
            }
            if let Some(directory) = state.queue.pop() {
                break Some(directory);
            }
            self.hungry.store(state.waiting, Ordering::Relaxed);
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        };
        state.waiting -= 1;
        self.hungry.store(state.waiting.saturating_sub(state.queue.len()), Ordering::Relaxed);
        directory
    }

    /// Gives a directory to a thread that has none, or returns it.
    fn hand_over(&self, directory: Arc<Directory>) -> Option<Arc<Directory>> {
        if self.hungry.load(Ordering::Relaxed) == 0 {
            return Some(directory);
        }
        let mut state = self.lock();
        if state.waiting <= state.queue.len() {
            return Some(directory);
        }
        state.queue.push(directory);
        self.hungry.store(state.waiting - state.queue.len(), Ordering::Relaxed);
        // All: the thread that tells waits for the same.
        self.changed.notify_all();
        None
    }

    /// Walks a tree depth first, without recursion, but for what is handed over. What is open at a time is as much as the
    /// tree is deep, however wide it is.
    fn walk(&self, top: Arc<Directory>) -> Result<(), Failure> {
        let mut stack = Vec::new();
        self.enter(&mut stack, top)?;
        while let Some(Listing { directory, entries }) = stack.last_mut() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            match entries.next() {
                None => {
                    let directory = Arc::clone(directory);
                    stack.pop();
                    self.leave(directory)?;
                }
                Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
                Some(Ok(entry)) => {
                    let name = OsStr::from_bytes(entry.file_name().to_bytes());
                    let below = self.look_at(directory, name)?;
                    if let Some(below) = below.and_then(|below| self.hand_over(below)) {
                        self.enter(&mut stack, below)?;
                    }
                }
                Some(Err(errno)) if directory.above.is_some() && is_gone(errno) => {}
                Some(Err(errno)) => return Err(of_itself(directory, Doing::List, errno)),
            }
        }
        Ok(())
    }

    fn enter(&self, stack: &mut Vec<Listing>, directory: Arc<Directory>) -> Result<(), Failure> {
        let entries = rustix::fs::openat(&directory.fd, ".", DIRECTORY, Mode::empty()).and_then(Dir::new);
        match entries {
            Ok(entries) => {
                stack.push(Listing { directory, entries });
                Ok(())
            }
            Err(errno) if directory.above.is_some() && is_gone(errno) => self.leave(directory),
            Err(errno) => Err(of_itself(&directory, Doing::List, errno)),
        }
    }

    /// Makes a file right; a directory is returned, pending in the one above.
    fn look_at(&self, above: &Arc<Directory>, name: &OsStr) -> Result<Option<Arc<Directory>>, Failure> {
        let failed = |(doing, errno)| Failure { doing, path: above.path(name), errno };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = open_within(&above.fd, name, flags).and_then(|fd| Ok((rustix::fs::fstat(&fd)?, fd)));
        let (stat, fd) = match opened {
            Ok(opened) => opened,
            // XDEV: something is mounted there, and is not this volume.
            Err(Errno::XDEV) => return Ok(None),
            Err(errno) if is_gone(errno) => return Ok(None),
            Err(errno) => return Err(failed((Doing::Open, errno))),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            above.pending.fetch_add(1, Ordering::Relaxed);
            return Ok(Some(Arc::new(Directory {
                fd,
                name: name.to_owned(),
                above: Some(Arc::clone(above)),
                pending: AtomicUsize::new(1),
            })));
        }
        match self.make_right(&fd, &stat) {
            Err((_, errno)) if is_gone(errno) => Ok(None),
            done => done.map(|()| None).map_err(failed),
        }
    }

    /// Takes one from what is pending in a directory; the last one makes it right, and then so on above it.
    fn leave(&self, mut directory: Arc<Directory>) -> Result<(), Failure> {
        loop {
            if directory.pending.fetch_sub(1, Ordering::AcqRel) != 1 {
                return Ok(());
            }
            let done = rustix::fs::fstat(&directory.fd)
                .map_err(|errno| (Doing::Open, errno))
                .and_then(|stat| self.make_right(&directory.fd, &stat));
            match done {
                Err((_, errno)) if directory.above.is_some() && is_gone(errno) => {}
                done => done.map_err(|(doing, errno)| of_itself(&directory, doing, errno))?,
            }
            match directory.above.clone() {
                Some(above) => directory = above,
                None => {
                    self.end(Ok(()));
                    return Ok(());
                }
            }
        }
    }

    fn make_right(&self, fd: &OwnedFd, stat: &Stat) -> Result<(), (Doing, Errno)> {
        self.looked_at.fetch_add(1, Ordering::Relaxed);
        if stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile {
            // Another thread's chown takes setuid away until its chmod; seen in between, the bit would be lost.
            let _alone = self.linked.lock().unwrap_or_else(PoisonError::into_inner);
            let stat = rustix::fs::fstat(fd).map_err(|errno| (Doing::Open, errno))?;
            return self.change(fd, &stat);
        }
        self.change(fd, stat)
    }

    fn change(&self, fd: &OwnedFd, stat: &Stat) -> Result<(), (Doing, Errno)> {
        let mode = stat.st_mode & 0o7777;
        // chown takes setuid and setgid from all but directories; they are given back.
        let (added, taken) = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => (DIRECTORY_BITS, 0),
            FileType::RegularFile => (FILE_BITS, 0o6000),
            FileType::Symlink => (0, 0),
            _ => (0, 0o6000),
        };
        let foreign = stat.st_gid != self.group.as_raw();
        if foreign {
            rustix::fs::chownat(fd.as_fd(), c"", None, Some(self.group), AtFlags::EMPTY_PATH)
                .map_err(|errno| (Doing::Group, errno))?;
        }
        if mode & added == added && !(foreign && mode & taken != 0) {
            return Ok(());
        }
        let name = fd.as_raw_fd().to_string();
        rustix::fs::chmodat(&self.descriptors, name, Mode::from_raw_mode(mode | added), AtFlags::empty())
            .map_err(|errno| (Doing::Mode, errno))
    }
}

/// What happened to a directory itself.
fn of_itself(directory: &Directory, doing: Doing, errno: Errno) -> Failure {
    let path = match &directory.above {
        Some(above) => above.path(&directory.name),
        None => PathBuf::new(),
    };
    Failure { doing, path, errno }
}

/// Removed by somebody while the walk went by: nothing is left to be given. (STALE: on a network file system.)
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::STALE)
}
