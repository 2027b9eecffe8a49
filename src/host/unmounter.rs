//! Processes of ours that unmount, and let go of loop devices: both write back what is not written yet, which may never end.
//! One that does not answer in time is killed and given up, and nothing of volumed waits for it (design 5, "Deadlines").
//!
//! Each does one thing at a time and is kept for the next: a process for each unmount costs a hundred times the unmount.

use std::ffi::{OsStr, OsString};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal as Blocked};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::time::Instant;

use super::child::{FRESH, IDLE, OWN_PROGRAM};
use super::raw::{self, LoopStatus};

/// The hidden first argument; the second is the parent's pid.
pub(super) const ARGUMENT: &str = "--internal-unmounter";

/// Longer than any order: a file name, or a loop device's.
const LONGEST: usize = 16 << 10;

/// What one is to do.
#[derive(Debug, Serialize, Deserialize)]
enum Order {
    /// `umount2(name, UMOUNT_NOFOLLOW)` in the directory that comes with it.
    Unmount {
        name: OsString,
        /// MNT_FORCE
        forced: bool,
    },
    /// `LOOP_CLR_FD`, if the device still holds this.
    LetGo { node: PathBuf, held: Held },
}

/// What a loop device is known by.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    device: u64,
    file: (u64, u64),
    name: Vec<u8>,
}

impl From<&LoopStatus> for Held {
    fn from(status: &LoopStatus) -> Self {
        Self { device: status.device, file: status.file, name: status.name.to_vec() }
    }
}

/// How it ended: an errno of the kernel's, or nothing was heard of it within the limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    /// It is done.
    Done,
    /// It is not. EINTR where the process was killed from outside: then it is not known.
    Failed(Errno),
    /// The process was given up. It is not known whether it was or will be done.
    Silent,
}

/// Those that wait for something to do.
#[derive(Debug)]
pub(super) struct Unmounters {
    /// A test's: its own `/proc/self/exe` is not volumed.
    other_program: OnceLock<PathBuf>,
    /// A std mutex: held to take one out or put one back.
    idle: Mutex<Vec<Unmounter>>,
}

/// One of them. Dropped, it ends once it is done.
#[derive(Debug)]
struct Unmounter {
    socket: OwnedFd,
    process: OwnedFd,
    used: Instant,
}

// === impl Unmounters ===

impl Unmounters {
    /// Starts none yet. They run the running program itself.
    pub(super) fn new() -> Self {
        Self { other_program: OnceLock::new(), idle: Mutex::default() }
    }

    /// Lets them run another program, once.
    pub(super) fn set_program(&self, program: PathBuf) {
        let _twice = self.other_program.set(program);
    }

    /// Unmounts what is mounted on a name in a directory.
    ///
    /// # Errors
    /// When no process can be started or told: nothing was done.
    pub(super) fn unmount(
        &self,
        directory: &OwnedFd,
        name: &OsStr,
        forced: bool,
        limit: Duration,
    ) -> io::Result<Ended> {
        let order = Order::Unmount { name: name.to_owned(), forced };
        self.carry_out(&order, Some(directory.as_fd()), limit)
    }

    /// Lets a loop device go of what it holds, if that is still this, and waits until its last descriptor here is closed.
    /// ENXIO: it holds nothing, or something else, by now.
    ///
    /// # Errors
    /// As `unmount`.
    pub(super) fn let_go(&self, node: &Path, status: &LoopStatus, limit: Duration) -> io::Result<Ended> {
        self.carry_out(&Order::LetGo { node: node.to_owned(), held: status.into() }, None, limit)
    }

    fn carry_out(
        &self,
        order: &Order,
        directory: Option<BorrowedFd<'_>>,
        limit: Duration,
    ) -> io::Result<Ended> {
        let order = serde_json::to_vec(order)?;
        let unmounter = self.told(&order, directory)?;
        // It was told: what nobody hears of may be done.
        let ended = unmounter.answer(limit).unwrap_or(Ended::Silent);
        if matches!(ended, Ended::Done | Ended::Failed(_)) {
            self.idle().push(Unmounter { used: Instant::now(), ..unmounter });
        } else {
            // One in the kernel for good does not even die of this; it is nobody's any more.
            let _sent = rustix::process::pidfd_send_signal(&unmounter.process, Signal::KILL);
        }
        Ok(ended)
    }

    /// Gives the order to one that waits, or to a new one.
    fn told(&self, order: &[u8], directory: Option<BorrowedFd<'_>>) -> io::Result<Unmounter> {
        while let Some(unmounter) = self.waiting() {
            // One that ended meanwhile has read nothing.
            if unmounter.tell(order, directory).is_ok() {
                return Ok(unmounter);
            }
        }
        let program = self.other_program.get().map_or(Path::new(OWN_PROGRAM), PathBuf::as_path);
        let unmounter = Unmounter::start(program)?;
        unmounter.tell(order, directory)?;
        Ok(unmounter)
    }

    /// Takes the one that was used last, and lets go of those that have ended or soon will.
    fn waiting(&self) -> Option<Unmounter> {
        let mut idle = self.idle();
        idle.retain(|one| one.used.elapsed() < FRESH);
        idle.pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Unmounter>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Unmounter ===

impl Unmounter {
    /// Starts one. tokio reaps it when it has ended, so this is called in a runtime. It does not die with the thread that starts
    /// it, which may end before it: it ends when nobody has the other end of its socket.
    #[expect(clippy::disallowed_methods, reason = "nothing waits for one longer than its limit")]
    fn start(program: &Path) -> io::Result<Self> {
        let (ours, its) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(program)
            .arg0("volumed")
            .args([ARGUMENT, &std::process::id().to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(its))
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()?;
        // Not yet reaped, so the pid is the child's.
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let pid = pid.ok_or_else(|| io::Error::other("it has no pid"))?;
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { socket: ours, process, used: Instant::now() })
    }

    fn tell(&self, order: &[u8], directory: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let descriptors = directory.as_slice();
        if !descriptors.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        }
        let order = [io::IoSlice::new(order)];
        rustix::net::sendmsg(&self.socket, &order, &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    fn answer(&self, limit: Duration) -> io::Result<Ended> {
        if !readable(&self.socket, limit)? {
            return Ok(Ended::Silent);
        }
        let mut errno = [0; size_of::<i32>()];
        match rustix::net::recv(&self.socket, &mut errno[..], RecvFlags::empty()) {
            Ok((length, _)) if length == errno.len() => Ok(match i32::from_ne_bytes(errno) {
                0 => Ended::Done,
                errno => Ended::Failed(Errno::from_raw_os_error(errno)),
            }),
            Ok(_) | Err(_) => Ok(Ended::Failed(Errno::INTR)),
        }
    }
}

/// Waits until something can be read, or the other end is closed; up to a limit.
pub(super) fn readable(socket: impl AsFd, limit: Duration) -> io::Result<bool> {
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    loop {
        match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

// === the process ===

/// Carries out what comes in over the socket that is its stdin, until nobody has the other end or nothing came for a while.
///
/// # Errors
/// When the socket fails.
pub(super) fn serve(parent: Pid) -> io::Result<()> {
    // It ends by the socket. What is meant for all of a service must not cut off the daemon's last steps.
    let signals = [Blocked::SIGTERM, Blocked::SIGINT, Blocked::SIGHUP, Blocked::SIGQUIT];
    signals.into_iter().collect::<SigSet>().thread_block()?;
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    serve_at(&socket, Some(parent))
}

/// `parent`: `None` where it is in another process namespace, which only a test's is.
fn serve_at(socket: &OwnedFd, parent: Option<Pid>) -> io::Result<()> {
    while readable(socket, IDLE)? {
        let mut order = vec![0; LONGEST];
        let Some((length, directory)) = receive(socket, &mut order)? else { return Ok(()) };
        let order = serde_json::from_slice(order.get(..length).unwrap_or_default())?;
        // Nobody would hear how it ended.
        if rustix::process::getppid() != parent {
            return Ok(());
        }
        let errno = carry_out(&order, directory).map_or_else(Errno::raw_os_error, |()| 0);
        match rustix::net::send(socket, &errno.to_ne_bytes(), SendFlags::NOSIGNAL) {
            Err(Errno::PIPE | Errno::CONNRESET) => return Ok(()),
            sent => drop(sent?),
        }
    }
    Ok(())
}

/// Returns an order's length and what came with it; `None`: nobody has the other end.
fn receive(socket: &OwnedFd, order: &mut [u8]) -> io::Result<Option<(usize, Option<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut order = [io::IoSliceMut::new(order)];
    let received = rustix::net::recvmsg(socket, &mut order, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::other("an order is longer than any can be"));
    }
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let directory = descriptors.next().and_then(|mut descriptors| descriptors.next());
    Ok((received.bytes > 0).then_some((received.bytes, directory)))
}

/// Nothing of what it works on is open any more when it returns.
fn carry_out(order: &Order, directory: Option<OwnedFd>) -> Result<(), Errno> {
    match order {
        Order::Unmount { name, forced } => {
            rustix::process::fchdir(directory.ok_or(Errno::BADF)?)?;
            let force = if *forced { UnmountFlags::FORCE } else { UnmountFlags::empty() };
            let done = rustix::mount::unmount(name.as_bytes(), UnmountFlags::NOFOLLOW | force);
            // Or the directory would be busy as long as it waits for the next.
            rustix::process::chdir("/")?;
            done
        }
        Order::LetGo { node, held } => {
            let device = rustix::fs::open(node, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            let errno = |e: io::Error| Errno::from_io_error(&e).unwrap_or(Errno::IO);
            if Held::from(&raw::loop_status(device.as_fd()).map_err(errno)?) != *held {
                return Err(Errno::NXIO);
            }
            raw::loop_clear(device.as_fd()).map_err(errno)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Child;

    use super::*;

    /// A process that does nothing, whose socket's other end the test has.
    fn deaf() -> (Child, Unmounter, OwnedFd) {
        #[expect(clippy::disallowed_methods, reason = "a test's child, killed by what is tested")]
        let child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let process = rustix::process::pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        let (socket, other) = pair();
        (child, Unmounter { socket, process, used: Instant::now() }, other)
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        let flags = SocketFlags::CLOEXEC;
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap()
    }

    fn held() -> LoopStatus {
        LoopStatus { name: [0; 64], device: 0, file: (0, 0), whole: true }
    }

    #[test]
    fn one_that_does_not_answer_is_killed_and_not_asked_again() {
        let (mut child, unmounter, _other) = deaf();
        let unmounters = Unmounters::new();
        unmounters.idle().push(unmounter);
        let ended = unmounters.let_go(Path::new("/dev/absent"), &held(), Duration::from_millis(1)).unwrap();
        assert_eq!(ended, Ended::Silent);
        assert!(!child.wait().unwrap().success(), "killed");
        assert!(unmounters.waiting().is_none());
    }

    #[test]
    fn one_that_ends_before_it_answers_is_no_success() {
        let (mut child, unmounter, other) = deaf();
        unmounter.tell(b"{}", None).unwrap();
        drop(other);
        assert_eq!(unmounter.answer(Duration::from_secs(60)).unwrap(), Ended::Failed(Errno::INTR));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn one_that_has_waited_too_long_is_not_told_anything() {
        let (mut child, unmounter, _other) = deaf();
        let unmounters = Unmounters::new();
        let used = unmounter.used.checked_sub(FRESH).unwrap();
        unmounters.idle().push(Unmounter { used, ..unmounter });
        assert!(unmounters.waiting().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn what_is_not_mounted_by_then_is_said_and_the_next_one_is_unmounted() {
        let name =
            "host::unmounter::tests::what_is_not_mounted_by_then_is_said_and_the_next_one_is_unmounted";
        let test = async {
            let (mut child, unmounter, other) = deaf();
            let unmounters = Unmounters::new();
            unmounters.idle().push(unmounter);
            let parent = rustix::process::getppid();
            let its = std::thread::spawn(move || serve_at(&other, parent));
            let top = tempfile::tempdir().unwrap();
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::open(top.path(), flags, Mode::empty()).unwrap();
            let unmount = |name: &str| {
                unmounters.unmount(&directory, OsStr::new(name), false, Duration::from_secs(60)).unwrap()
            };
            let mounted = top.path().join("mounted");
            std::fs::create_dir(&mounted).unwrap();
            assert_eq!(unmount("mounted"), Ended::Failed(Errno::INVAL));
            assert_eq!(unmount("absent"), Ended::Failed(Errno::NOENT));
            rustix::mount::mount("tmpfs", &mounted, "tmpfs", rustix::mount::MountFlags::empty(), None)
                .unwrap();
            std::fs::write(mounted.join("file"), "").unwrap();
            assert_eq!(unmount("mounted"), Ended::Done);
            assert_eq!(std::fs::read_dir(&mounted).unwrap().count(), 0);
            drop(unmounters);
            its.join().unwrap().unwrap();
            child.kill().unwrap();
            child.wait().unwrap();
        };
        crate::alone::run(name, test, |_directory| ());
    }

    #[test]
    fn it_says_why_it_could_not_and_waits_for_the_next() {
        let (mut child, unmounter, other) = deaf();
        let unmounters = Unmounters::new();
        unmounters.idle().push(unmounter);
        let parent = rustix::process::getppid();
        let its = std::thread::spawn(move || serve_at(&other, parent));
        let limit = Duration::from_secs(60);
        for _ in 0..3 {
            let ended = unmounters.let_go(Path::new("/dev/absent"), &held(), limit).unwrap();
            assert_eq!(ended, Ended::Failed(Errno::NOENT));
        }
        drop(unmounters);
        its.join().unwrap().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
