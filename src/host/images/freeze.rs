//! Frozen file systems, and the small process that thaws them whatever becomes of us.
//!
//! The keeper is this program, started again. It freezes, says so, and thaws when its stdin ends (we said so, or died) or when
//! its time is over. Signals cannot end it but SIGKILL; who starts again after that thaws what it finds (`Images::thaw`).

use std::ffi::OsString;
use std::io::{self, BufRead as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::SigSet;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::super::{HostError, raw};
use super::Images;

/// The hidden first argument; then the limit in ms and the mount points.
const ARGUMENT: &str = "--internal-freeze";

const DOING: &str = "freeze the file system at";

/// A freeze first writes out what the file system holds.
const FREEZE: Duration = Duration::from_secs(120);

/// How long thawing may take.
const THAW: Duration = Duration::from_secs(20);

/// Its name in process lists.
const NAME: &str = "volumed-freeze";

/// File systems that are frozen. Dropped, they thaw soon.
#[derive(Debug)]
#[must_use = "they are frozen only as long as this value"]
pub struct Frozen {
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
            about: about.clone(),
            stdin: child.stdin.take(),
            words: BufReader::new(stdout).lines(),
            child,
        };
        match tokio::time::timeout(FREEZE, frozen.words.next_line()).await {
            Ok(Ok(Some(word))) if word == "frozen" => Ok(frozen),
            Ok(Ok(word)) => {
                Err(fail(io::Error::other(word.unwrap_or_else(|| "its keeper ended".to_owned()))))
            }
            Ok(Err(e)) => Err(fail(e)),
            Err(_elapsed) => {
                Err(HostError::Deadline { doing: DOING, path: about.clone(), seconds: FREEZE.as_secs() })
            }
        }
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
        let word = tokio::time::timeout(THAW, self.words.next_line()).await.map_err(|_elapsed| {
            HostError::Deadline { doing: "thaw", path: self.about.clone(), seconds: THAW.as_secs() }
        })?;
        let word = word.map_err(fail)?.unwrap_or_else(|| "its keeper was killed".to_owned());
        let _reaped = tokio::time::timeout(THAW, self.child.wait()).await;
        if word == "thawed" { Ok(()) } else { Err(fail(io::Error::other(word))) }
    }
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
    let mut frozen: Vec<&OwnedFd> = Vec::new();
    for (one, path) in open.iter().zip(&mounted) {
        if let Err(e) = raw::freeze(one.as_fd()) {
            thaw(&frozen)?;
            return Err(at(path, &e));
        }
        frozen.push(one);
    }
    // Where nobody listens any more there is nothing to wait for.
    let in_time = say("frozen").is_ok() && until_told(limit);
    thaw(&frozen)?;
    say(if in_time { "thawed" } else { "it took too long" })
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
fn thaw(frozen: &[&OwnedFd]) -> io::Result<()> {
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
