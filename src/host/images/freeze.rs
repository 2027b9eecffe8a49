//! Frozen file systems, and the small process that thaws them whatever becomes of us.
//!
//! The keeper is this program, started again. It freezes, says so, and thaws when its stdin ends (we said so, or died) or when
//! its time is over. Signals cannot end it but SIGKILL: then we thaw in its place, and if we were killed too, who starts again
//! thaws what it finds (`Claim::thaw_all`).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{self, BufRead as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::Instant;
use tracing::warn;

use super::super::{HostError, raw};
use super::Images;
use crate::error::Chain;

/// The hidden first argument; then the limit in ms and the mount points.
const ARGUMENT: &str = "--internal-freeze";

const DOING: &str = "freeze the file system at";

/// A freeze first writes out what the file system holds.
const FREEZE: Duration = Duration::from_secs(120);

/// How long thawing may take.
const THAW: Duration = Duration::from_secs(20);

/// What the keeper says; anything else is why it could not.
const FROZEN: &str = "frozen";
const THAWED: &str = "thawed";
const TOO_LONG: &str = "it took too long";

/// Its name in process lists.
const NAME: &str = "volumed-freeze";

/// File systems that are frozen. Dropped, they thaw soon.
#[derive(Debug)]
#[must_use = "they are frozen only as long as this value"]
pub struct Frozen {
    images: Images,
    mounted: Vec<PathBuf>,
    about: PathBuf,
    stdin: Option<ChildStdin>,
    words: Lines<BufReader<ChildStdout>>,
    child: Child,
}

impl Images {
    /// Freezes the file systems mounted at these paths, all of them, for at most so long.
    ///
    /// # Errors
    /// `Io`, `Deadline`: none of them is frozen, or none stays so.
    pub async fn freeze(&self, mounted: &[PathBuf], limit: Duration) -> Result<Frozen, HostError> {
        let about = mounted.first().cloned().unwrap_or_default();
        let fail = |source: io::Error| HostError::Io { doing: DOING, path: about.clone(), source };
        #[expect(clippy::disallowed_methods, reason = "it must outlive us, and ends by itself at its limit")]
        let mut command = Command::new("/proc/self/exe");
        command
            .arg0("volumed-csi-loop")
            .arg(ARGUMENT)
            .arg(limit.as_millis().to_string())
            .args(mounted)
            .env_clear()
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().map_err(fail)?;
        let stdout = child.stdout.take().ok_or_else(|| fail(io::Error::other("it has no stdout")))?;
        let mut frozen = Frozen {
            images: self.clone(),
            mounted: mounted.to_vec(),
            about: about.clone(),
            stdin: child.stdin.take(),
            words: BufReader::new(stdout).lines(),
            child,
        };
        match tokio::time::timeout(FREEZE, frozen.words.next_line()).await {
            Ok(Ok(Some(word))) if word == FROZEN => Ok(frozen),
            // It says this once what it froze has thawed; what is frozen now may be somebody else's.
            Ok(Ok(Some(word))) => Err(fail(failure(word))),
            Ok(Ok(None)) => {
                frozen.thaw_in_its_place().await;
                Err(fail(io::Error::other("its keeper was killed")))
            }
            Ok(Err(e)) => {
                frozen.thaw_in_its_place().await;
                Err(fail(e))
            }
            Err(_elapsed) => {
                // The end of its stdin tells it to thaw what it freezes after this.
                frozen.thaw_in_its_place().await;
                Err(HostError::Deadline { doing: DOING, path: about.clone(), seconds: FREEZE.as_secs() })
            }
        }
    }
}

impl Images {
    /// Thaws what is mounted from the loop devices over images of this name below a directory: what is frozen there when
    /// nobody works with them yet is what a killed process left.
    ///
    /// # Errors
    /// When devices or mounts cannot be listed. One that cannot be thawed is told in the log.
    pub(super) async fn thaw_all(&self, image_name: &'static str, below: &Path) -> Result<(), HostError> {
        let devices = self.all_attached(image_name).await?;
        let ours = devices.iter().filter(|device| device.shown().starts_with(below));
        let nodes: BTreeSet<String> = ours.map(|device| device.node().display().to_string()).collect();
        for mount in self.mounts().await?.iter().filter(|mount| nodes.contains(&mount.source)) {
            match self.thaw(&mount.point).await {
                Ok(true) => warn!(at = %mount.point.display(), "a file system was still frozen"),
                Ok(false) => {}
                Err(error) => warn!(at = %mount.point.display(), "it may be frozen: {}", Chain(&error)),
            }
        }
        Ok(())
    }
}

impl Frozen {
    /// Thaws them.
    ///
    /// # Errors
    /// When they were not frozen all the time until now: what was copied meanwhile is not of one moment.
    pub async fn thaw(mut self) -> Result<(), HostError> {
        const DOING: &str = "keep frozen the file system at";
        drop(self.stdin.take());
        let fail = |source: io::Error| HostError::Io { doing: DOING, path: self.about.clone(), source };
        let mut thawed = false;
        let done = match tokio::time::timeout(THAW, self.words.next_line()).await {
            Ok(Ok(Some(word))) if word == THAWED => Ok(()),
            Ok(Ok(Some(word))) => {
                // It says this once they have thawed; what is frozen now is somebody else's. Anything else is why it could not.
                thawed = word == TOO_LONG;
                Err(fail(failure(word)))
            }
            Ok(Ok(None)) => Err(fail(io::Error::other("its keeper was killed"))),
            Ok(Err(e)) => Err(fail(e)),
            Err(_elapsed) => {
                let seconds = THAW.as_secs();
                Err(HostError::Deadline { doing: "thaw", path: self.about.clone(), seconds })
            }
        };
        if done.is_err() && !thawed {
            self.thaw_in_its_place().await;
        }
        let _reaped = tokio::time::timeout(THAW, self.child.wait()).await;
        done
    }

    async fn thaw_in_its_place(&self) {
        for point in &self.mounted {
            match self.images.thaw(point).await {
                Ok(true) => warn!(at = %point.display(), "thawed: the process that was to do it did not"),
                Ok(false) => {}
                Err(error) => warn!(at = %point.display(), "it may still be frozen: {}", Chain(&error)),
            }
        }
    }
}

/// Takes what the keeper said as an error.
fn failure(word: String) -> io::Error {
    if word == TOO_LONG { io::ErrorKind::TimedOut.into() } else { io::Error::other(word) }
}

/// Does the keeper's work if this process was started as one. To be called before anything is opened or any thread started.
pub fn as_keeper() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == ARGUMENT).then(|| match keep(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            let _said = writeln!(io::stdout(), "{}", e.to_string().replace('\n', " "));
            ExitCode::FAILURE
        }
    })
}

fn keep(mut arguments: impl Iterator<Item = OsString>) -> io::Result<()> {
    // The end of a service begins with SIGTERM to all of its processes.
    SigSet::all().thread_block()?;
    raw::close_from(3)?;
    let _named = std::fs::write("/proc/self/comm", NAME);
    let limit = arguments.next().and_then(|limit| limit.to_str()?.parse().ok());
    let limit = Duration::from_millis(limit.ok_or(io::ErrorKind::InvalidInput)?);
    let mounted: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    let mut open = Vec::new();
    for path in &mounted {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        open.push(rustix::fs::open(path, flags, Mode::empty()).map_err(|e| at(path, &e.into()))?);
    }
    // The freeze does it too, but then those before it wait for it, frozen.
    for (one, path) in open.iter().zip(&mounted) {
        rustix::fs::syncfs(one).map_err(|e| at(path, &e.into()))?;
    }
    let until = Instant::now() + limit;
    freeze(&open, &mounted, limit)?;
    // Where nobody listens any more there is nothing to wait for.
    let in_time = say(FROZEN).is_ok() && until_told(until.saturating_duration_since(Instant::now()));
    thaw(&open)?;
    say(if in_time { THAWED } else { TOO_LONG })
}

/// Freezes all of them, or none. One that cannot be frozen does not keep the others frozen for longer than the limit. Thawed is
/// only, and once, what was frozen here: another freeze is somebody else's.
fn freeze(open: &[OwnedFd], mounted: &[PathBuf], limit: Duration) -> io::Result<()> {
    // How many are frozen; those that the watchdog thawed are none of them any more.
    let count = &Mutex::new(Some(0));
    std::thread::scope(|scope| {
        let (done, over) = std::sync::mpsc::channel::<()>();
        let watchdog = scope.spawn(move || match over.recv_timeout(limit) {
            Err(RecvTimeoutError::Timeout) => {
                let frozen = count.lock().unwrap_or_else(PoisonError::into_inner).take();
                thaw(open.get(..frozen.unwrap_or_default()).unwrap_or_default())
            }
            _ => Ok(()),
        });
        let mut frozen = Ok(());
        for (one, path) in open.iter().zip(mounted) {
            frozen = raw::freeze(one.as_fd()).map_err(|e| at(path, &e));
            if frozen.is_err() {
                break;
            }
            match count.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                Some(count) => *count += 1,
                None => {
                    // Too late for the watchdog, which has thawed those before it.
                    frozen = thaw(std::slice::from_ref(one)).and(Err(io::Error::other(TOO_LONG)));
                    break;
                }
            }
        }
        drop(done);
        let thawed = watchdog.join().unwrap_or_else(|_panic| Err(io::Error::other("its watchdog broke")));
        match count.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(count) if frozen.is_err() => thaw(open.get(..count).unwrap_or_default())?,
            Some(_) => {}
            None => frozen = frozen.and(Err(io::Error::other(TOO_LONG))),
        }
        thawed.and(frozen)
    })
}

fn say(word: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{word}")?;
    stdout.flush()
}

/// Waits for the end of stdin, up to the limit; returns whether it came.
fn until_told(limit: Duration) -> bool {
    let stdin = io::stdin();
    let Ok(limit) = Timespec::try_from(limit) else { return false };
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    loop {
        match poll(&mut fds, Some(&limit)) {
            Ok(0) => return false,
            Err(Errno::INTR) => {}
            // Nothing is ever written there: it is the end.
            Ok(_) | Err(_) => return stdin.lock().fill_buf().is_ok_and(<[u8]>::is_empty),
        }
    }
}

/// All of them, whatever becomes of one.
fn thaw(frozen: &[OwnedFd]) -> io::Result<()> {
    let mut first = Ok(());
    for one in frozen {
        match raw::thaw(one.as_fd()) {
            Err(e) if Errno::from_io_error(&e) != Some(Errno::INVAL) && first.is_ok() => first = Err(e),
            _ => {}
        }
    }
    first
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::other(format!("{}: {error}", path.display()))
}
