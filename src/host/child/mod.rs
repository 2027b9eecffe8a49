//! What can hang in the kernel for good (a stat of a dead NFS server, a FUSE server that does not answer) is done in a child
//! process: killed and given up at its deadline, and nothing of volumed waits for it (design 5, "Deadlines").
//!
//! The child is this very program, started again with a hidden first argument. A thread would not do: one in D state keeps
//! the whole process from ever exiting.

mod ask;
mod bind;
mod calls;
mod disk;
mod inside;
mod lun;
mod nfs;
mod ownership;
mod wire;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::HostError;
use crate::model::{MountTable, MountsAt};
use wire::{Reply, Request};

pub use inside::as_child;

/// The hidden first argument; the second is the parent's pid.
const ARGUMENT: &str = "--internal-child";

/// The program of the running process itself. The link leads to the file that was executed, not to its name: after an upgrade
/// of the binary on disk it still starts the old one, so that both sides always speak the same language.
pub(super) const OWN_PROGRAM: &str = "/proc/self/exe";

/// How long a child that has said everything is given to end before it is killed.
const END: Duration = Duration::from_secs(1);

/// How many ownership changes run at a time (design 5, "Limits").
const OWNERSHIP_AT_A_TIME: usize = 16;

/// How many directories are shown that may hang.
const BINDS_AT_A_TIME: usize = 16;

/// How long a process that is kept waits for something to do before it ends; an unmounter too.
pub(super) const IDLE: Duration = Duration::from_secs(10);

/// How long one is taken for one that waits still: it must not end in the moment that it is told something.
pub(super) const FRESH: Duration = Duration::from_secs(5);

/// How many disks are worked on at a time.
const DISKS_AT_A_TIME: usize = 16;

/// Starts children, and knows those that were given up.
#[derive(Debug)]
pub(super) struct Children {
    program: PathBuf,
    hung: Arc<Hung>,
    changes: Semaphore,
    disks: Semaphore,
    binds: Semaphore,
    /// Those that wait for another disk. A std mutex: held to take one out or put one back.
    idle: Mutex<Vec<Idle>>,
    /// By NFS server. A std mutex: held for a map look-up only.
    servers: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

impl Children {
    /// Children of the running program.
    pub(super) fn new() -> Self {
        Self {
            program: OWN_PROGRAM.into(),
            hung: Arc::default(),
            changes: Semaphore::new(OWNERSHIP_AT_A_TIME),
            disks: Semaphore::new(DISKS_AT_A_TIME),
            binds: Semaphore::new(BINDS_AT_A_TIME),
            idle: Mutex::default(),
            servers: Mutex::default(),
        }
    }

    /// Children of another program: in a test, `/proc/self/exe` is the test.
    pub(super) fn with_program(self, program: PathBuf) -> Self {
        Self { program, ..self }
    }

    /// Starts a child that is not yet told anything. It is remembered as hung with these places if it does not end.
    ///
    /// The child dies with the thread that calls this (PR_SET_PDEATHSIG is about threads): tokio's workers live as long as
    /// the runtime, a thread of the blocking pool does not. So this is called from async code only.
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place where children come from: every use of a Running has a deadline"
    )]
    fn start(&self, asked: BTreeMap<usize, Place>) -> Result<Running, HostError> {
        let failed =
            |source| HostError::Io { doing: "start the child process", path: self.program.clone(), source };
        let mut child = Command::new(&self.program)
            .arg0("volumed")
            .args([ARGUMENT, &std::process::id().to_string()])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(failed)?;
        // Not yet reaped, so the pid is the child's.
        let pid = child.id().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
        let pid = pid.ok_or_else(|| failed(io::Error::other("it has no pid")))?;
        let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty()).map_err(|e| failed(e.into()))?;
        let stdout = child.stdout.take().ok_or_else(|| failed(io::Error::other("it has no stdout")))?;
        Ok(Running {
            requests: child.stdin.take(),
            child: Some(child),
            replies: BufReader::new(stdout).lines(),
            ended: Some(ended),
            unanswered: asked,
            hung: Arc::clone(&self.hung),
        })
    }

    /// Returns a child that waits for something to do, the one that was there last if it is among them, or a new one.
    fn take_or_start(&self, place: Place) -> Result<Running, HostError> {
        match self.take(&place.path) {
            Some(mut waiting) => {
                waiting.unanswered.insert(0, place);
                Ok(waiting)
            }
            None => self.start(BTreeMap::from([(0, place)])),
        }
    }

    fn take(&self, was_at: &Path) -> Option<Running> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|one| one.since.elapsed() < FRESH && !one.child.has_ended());
        let found = idle.iter().position(|one| one.was_at == was_at).or(idle.len().checked_sub(1))?;
        Some(idle.swap_remove(found).child)
    }

    /// Keeps a child that has said everything for what comes next.
    fn keep(&self, mut child: Running, was_at: PathBuf) {
        child.unanswered.clear();
        // tokio reaps it when it ends, if nobody has it any more.
        child.child = None;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        idle.push(Idle { child, was_at, since: Instant::now() });
    }
}

/// A child that waits for something to do.
#[derive(Debug)]
struct Idle {
    child: Running,
    was_at: PathBuf,
    since: Instant,
}

/// What is asked about: a path, and the id of the mount exactly there. With the id, because a new mount at the path of one that
/// hangs is another thing; the hanging child keeps the old one's id from being used again.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) mount: Option<u64>,
    /// The type of the file system mounted there.
    pub(super) fs_type: Option<String>,
}

impl Place {
    /// Finds out what is mounted at a path, on top where mounts are stacked.
    pub(super) fn of(table: &MountTable, path: PathBuf) -> Self {
        let mount = match table.at(&path) {
            MountsAt::None => None,
            MountsAt::One(mount) => Some(mount),
            MountsAt::Stacked(mounts) => mounts.last(),
        };
        Self { mount: mount.map(|m| m.id), fs_type: mount.map(|m| m.fs_type.clone()), path }
    }
}

/// Children that were killed and did not end at once, with what each had not answered: they are not asked again as long as
/// they hang, or every health round would leave one more process behind. tokio reaps them when they end.
#[derive(Debug, Default)]
struct Hung(Mutex<Vec<(Arc<OwnedFd>, Vec<Place>)>>);

impl Hung {
    fn living(&self) -> MutexGuard<'_, Vec<(Arc<OwnedFd>, Vec<Place>)>> {
        let mut children = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        children.retain(|(pidfd, _)| !has_ended(pidfd));
        children
    }

    fn add(&self, pidfd: OwnedFd, unanswered: Vec<Place>) {
        self.living().push((Arc::new(pidfd), unanswered));
    }

    /// Returns the child that hangs there.
    fn at(&self, place: &Place) -> Option<Arc<OwnedFd>> {
        let living = self.living();
        let child = living.iter().find(|(_, places)| places.contains(place));
        child.map(|(pidfd, _)| Arc::clone(pidfd))
    }
}

/// Returns whether the whole process ended, its last thread too. A failing poll says nothing: then it counts as alive.
fn has_ended(pidfd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1))
}

/// A child at work. Dropped, it is killed.
#[derive(Debug)]
struct Running {
    /// `None` once it was kept.
    child: Option<Child>,
    /// `None` once it was told all that it is to do.
    requests: Option<ChildStdin>,
    replies: Lines<BufReader<ChildStdout>>,
    /// A descriptor of the process, readable when it has ended; `None` once it was handed on.
    ended: Option<OwnedFd>,
    unanswered: BTreeMap<usize, Place>,
    hung: Arc<Hung>,
}

impl Running {
    /// Tells the child what to do, and that it is all. One that ended already is found out by `next`.
    async fn tell(&mut self, request: &Request) -> io::Result<()> {
        let told = self.tell_first(request).await;
        self.requests = None;
        told
    }

    /// Tells the child what to do before it waits for more.
    async fn tell_first(&mut self, request: &Request) -> io::Result<()> {
        let mut request = serde_json::to_vec(request)?;
        request.push(b'\n');
        if let Some(requests) = &mut self.requests {
            match requests.write_all(&request).await {
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => {}
                done => done?,
            }
        }
        Ok(())
    }

    /// Waits for the child's next word; cancel-safe.
    ///
    /// # Errors
    /// Also when the child ends instead of saying something.
    async fn next(&mut self) -> io::Result<Reply> {
        match self.replies.next_line().await? {
            Some(line) => Ok(serde_json::from_str(&line)?),
            None => Err(io::Error::other(match self.wait().await {
                Some(Ok(status)) => format!("its child process ended too early: {status}"),
                Some(Err(e)) => format!("its child process ended too early: {e}"),
                None if self.has_ended() => "its child process ended too early".to_owned(),
                None => "its child process says no more".to_owned(),
            })),
        }
    }

    /// Waits a moment for its end. `None`: it did not end, or it was kept and nobody knows how it did.
    async fn wait(&mut self) -> Option<io::Result<ExitStatus>> {
        tokio::time::timeout(END, self.child.as_mut()?.wait()).await.ok()
    }

    /// Waits a moment for the end of a child that has said everything.
    async fn finish(mut self) {
        self.unanswered.clear();
        let _late = self.wait().await;
    }

    fn has_ended(&self) -> bool {
        self.ended.as_ref().is_none_or(has_ended)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(pidfd) = self.ended.take() {
            // Does nothing to one that was reaped.
            let _sent = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
            let unanswered: Vec<Place> = std::mem::take(&mut self.unanswered).into_values().collect();
            if !unanswered.is_empty() {
                self.hung.add(pidfd, unanswered);
            }
        }
    }
}

/// Takes a path as an error of the host.
fn failed(doing: &'static str, path: &Path) -> impl Fn(io::Error) -> HostError {
    move |source| HostError::Io { doing, path: path.to_owned(), source }
}
