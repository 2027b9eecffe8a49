//! The child's side: does what it reads until there is no more.

use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, Signal};

use super::wire::{Reply, Request};
use super::{ARGUMENT, IDLE, ask, ownership};
use crate::host::{Usage, bind, disk, lun, nfs, raw, unmounter};

/// Its name in process lists and in the words for who holds a volume; the kernel has 15 bytes for it.
const NAME: &str = "volumed-child";

/// Does a child's work if this process was started as one. To be called before anything is opened or any thread started.
pub fn as_child() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let what = arguments.next().filter(|what| what == ARGUMENT || what == unmounter::ARGUMENT)?;
    let parent = arguments.next().and_then(|pid| Pid::from_raw(pid.to_str()?.parse().ok()?));
    let serve = if what == ARGUMENT { serve } else { unmount };
    Some(match serve(parent) {
        Ok(()) => ExitCode::SUCCESS,
        // The daemon that would have been told is gone.
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => ExitCode::FAILURE,
        Err(e) => {
            let _printed = writeln!(io::stderr(), "volumed: child process: {e}");
            ExitCode::FAILURE
        }
    })
}

/// Looks for its parent, and becomes a process that has nothing of it.
fn begin(parent: Option<Pid>) -> io::Result<Pid> {
    let parent = parent.filter(|parent| rustix::process::getppid() == Some(*parent));
    let parent = parent.ok_or_else(|| io::Error::other("only volumed itself starts one, and it is gone"))?;
    // What volumed opens is close-on-exec, but not what it was started with: the listening socket of its socket unit, a
    // lock that a shell holds. A child that hangs for good must not keep any of it.
    raw::close_from(3)?;
    // Without it the name would be "exe".
    let _named = std::fs::write("/proc/self/comm", NAME);
    Ok(parent)
}

fn unmount(parent: Option<Pid>) -> io::Result<()> {
    unmounter::serve(begin(parent)?)
}

fn serve(parent: Option<Pid>) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // Only now: a parent that died before that sends no signal.
    begin(parent)?;
    let mut requests = BufReader::new(io::stdin().lock());
    let mut line = Vec::new();
    let mut before = None;
    while unmounter::readable(io::stdin(), IDLE)? && requests.read_until(b'\n', &mut line)? > 0 {
        carry_out(serde_json::from_slice(&line)?, &mut before)?;
        line.clear();
    }
    Ok(())
}

/// Does what is asked. `before` is what it found out that may serve what is asked next.
fn carry_out(request: Request, before: &mut Option<disk::Opinions>) -> io::Result<()> {
    match request {
        Request::Ownership { root, path, group, on_root_mismatch } => {
            allow_descriptors();
            let tell = |done| say(&Reply::SoFar(done));
            let end = ownership::give(Path::new(&root), Path::new(&path), group, on_root_mismatch, tell)?;
            say(&match end {
                Ok(()) => Reply::Owned,
                Err(ownership::Failure { doing, path, errno }) => {
                    Reply::Failed { doing, path: path.into(), errno: errno.raw_os_error() }
                }
            })
        }
        Request::Usage(paths) => each(&paths, usage, Reply::Usage),
        Request::Alive(points) => each(&points, alive, Reply::Alive),
        Request::Bind(ask) => say(&Reply::Bound(bind::answer(&ask))),
        Request::Nfs(ask) => say(&Reply::Nfs(nfs::answer(&ask))),
        Request::Lun(ask) => say(&Reply::Lun(lun::answer(ask))),
        Request::Disk(ask) => say(&Reply::Disk(Box::new(disk::answer(ask, before, |limit| {
            // Nobody listens any more: the parent's end is this process's end too.
            let _said = say(&Reply::Lasts(limit.as_secs()));
        })))),
    }
}

fn each<T>(
    paths: &[OsString],
    question: impl Fn(&Path) -> Result<T, Errno> + Sync,
    reply: impl Fn(usize, Result<T, i32>) -> Reply + Sync,
) -> io::Result<()> {
    ask::each(paths.len(), |index| {
        let Some(path) = paths.get(index) else { return };
        let answer = question(Path::new(path)).map_err(Errno::raw_os_error);
        // Nobody listens any more: the parent's end is this process's end too.
        let _said = say(&reply(index, answer));
    })
}

/// A whole line at a time: threads speak at once.
fn say(reply: &Reply) -> io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let mut stdout = io::stdout().lock();
    stdout.write_all(&line)?;
    stdout.flush()
}

/// A walk holds two descriptors for each directory on its way down, in each thread.
fn allow_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    // Without it only trees deeper than a hundred directories fail, with an error that says so.
    let _raised = rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit { current: limit.maximum, maximum: limit.maximum },
    );
}

fn usage(path: &Path) -> Result<Usage, Errno> {
    let found = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Usage {
        total_bytes: bytes(found.f_blocks),
        available_bytes: bytes(found.f_bavail),
        used_bytes: bytes(found.f_blocks.saturating_sub(found.f_bfree)),
        total_inodes: found.f_files,
        free_inodes: found.f_ffree,
    })
}

/// Asks the file system itself, not the kernel's cache of it: of a FUSE server that ended there would still be attributes.
fn alive(point: &Path) -> Result<(), Errno> {
    // O_PATH asks nobody, and follows no symlink to another file system.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(point, flags, Mode::empty())?;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(&fd, c"", flags, StatxFlags::BASIC_STATS)?;
    rustix::fs::fstatfs(&fd)?;
    Ok(())
}
