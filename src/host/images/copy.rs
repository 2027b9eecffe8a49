//! Copies of image files: the host's own (FICLONE) where it can share blocks, else what is written of them.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use tokio::time::Instant;

use super::super::wanted::{Waits, Wanted};
use super::super::{HostError, Progress};
use super::file::open;
use super::{Images, failed};

const DOING: &str = "copy the image";

/// How much is copied between two looks at whether anybody still wants it.
const PIECE: u64 = 16 << 20;

/// How often it is told how far the copy got.
const TELL: Duration = Duration::from_secs(5);

/// How long a copy may go on without a byte.
const STANDSTILL: Duration = Duration::from_secs(120);

/// How an image was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Copied {
    /// The blocks are shared until one of both writes to them.
    Shared,
    /// Every block that was there.
    Whole,
}

/// What a copy may take.
#[derive(Debug, Clone, Copy)]
pub struct Leave {
    /// So many bytes, where no blocks can be shared.
    pub room: u64,
    /// Until then, where no blocks can be shared; `None`: as long as it goes on.
    pub until: Option<Instant>,
    /// Whether it may be anything but shared.
    pub whole: bool,
}

/// How far a copy got; told by who copies, read by whoever wants to know.
#[derive(Debug, Default)]
pub struct HowFar {
    /// Bytes.
    done: AtomicU64,
    /// The bytes that are there to be copied, known when the first of them is; 0 until then, and where blocks are shared.
    whole: AtomicU64,
}

impl HowFar {
    /// Returns how much is copied, in whole percent, which never becomes less; `None` where nothing has to be copied, or it is
    /// not known yet how much.
    pub fn percent(&self) -> Option<u64> {
        let whole = self.whole.load(Ordering::Relaxed);
        let done = u128::from(self.done.load(Ordering::Relaxed).min(whole));
        u64::try_from((done * 100).checked_div(u128::from(whole))?).ok()
    }
}

impl Images {
    /// Copies an image to a file that must not be there yet, holes staying holes. It is not synced. Dropped, it ends soon, and
    /// leaves what it has. `journal` hears of it now and then, `how_far` always knows.
    ///
    /// # Errors
    /// `Io`, `Deadline`: what there is of the copy stays, for the caller to remove. `Io` of the kind `Unsupported`: it was to
    /// be shared only; `TimedOut`: it was not done in its time.
    pub async fn copy(
        &self,
        from: &Path,
        to: &Path,
        leave: Leave,
        journal: &Progress,
        how_far: &Arc<HowFar>,
    ) -> Result<Copied, HostError> {
        let (_waits, wanted) = Waits::new();
        let (source, target, counted) = (from.to_owned(), to.to_owned(), Arc::clone(how_far));
        // Not in the bounded share: copies are long, and there is one per volume at most.
        let copy = tokio::task::spawn_blocking(move || copy(&source, &target, leave, &counted, &wanted));
        tokio::pin!(copy);
        let mut before = 0;
        let mut still = Duration::ZERO;
        loop {
            // Cancel-safe: a join handle keeps its result.
            match tokio::time::timeout(TELL, &mut copy).await {
                Ok(Ok(copied)) => return copied,
                Ok(Err(join)) => match join.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(stopped) => {
                        let source = std::io::Error::other(stopped);
                        return Err(HostError::Io { doing: DOING, path: to.to_owned(), source });
                    }
                },
                Err(_elapsed) => {
                    let now = how_far.done.load(Ordering::Relaxed);
                    still = if now == before { still + TELL } else { Duration::ZERO };
                    if still >= STANDSTILL {
                        let seconds = STANDSTILL.as_secs();
                        return Err(HostError::Deadline { doing: DOING, path: to.to_owned(), seconds });
                    }
                    before = now;
                    journal.tell(format!("{} MiB copied", now >> 20));
                }
            }
        }
    }
}

fn copy(
    from: &Path,
    to: &Path,
    leave: Leave,
    how_far: &HowFar,
    wanted: &Wanted,
) -> Result<Copied, HostError> {
    let fail = failed(DOING, to);
    let source = open(from, OFlags::RDONLY).map_err(failed("open", from))?;
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let target = rustix::fs::open(to, flags, Mode::from_raw_mode(0o600)).map_err(&fail)?;
    match rustix::fs::ioctl_ficlone(&target, &source) {
        Ok(()) => return Ok(Copied::Shared),
        // The host's file system cannot share blocks.
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS | Errno::XDEV) => {}
        Err(e) => return Err(fail(e)),
    }
    if !leave.whole {
        return Err(fail(Errno::NOSYS));
    }
    let found = rustix::fs::fstat(&source).map_err(&fail)?;
    if u64::try_from(found.st_blocks).unwrap_or(0).saturating_mul(512) > leave.room {
        return Err(fail(Errno::NOSPC));
    }
    let length = u64::try_from(found.st_size).unwrap_or(0);
    rustix::fs::ftruncate(&target, length).map_err(&fail)?;
    // What is still in the page cache counts as a hole on some file systems until it is written out.
    rustix::fs::fsync(&source).map_err(&fail)?;
    how_far.whole.store(written(&source, length).map_err(&fail)?, Ordering::Relaxed);
    let mut at = 0;
    while let Some((start, end)) = data(&source, at, length).map_err(&fail)? {
        at = start;
        while at < end {
            wanted.check().map_err(&fail)?;
            if leave.until.is_some_and(|until| Instant::now() > until) {
                return Err(fail(Errno::TIMEDOUT));
            }
            let piece = usize::try_from((end - at).min(PIECE)).unwrap_or(0);
            let (mut read, mut write) = (at, at);
            match rustix::fs::copy_file_range(&source, Some(&mut read), &target, Some(&mut write), piece) {
                // The file became shorter: nobody may do that.
                Ok(0) => return Err(fail(Errno::IO)),
                Ok(copied) => {
                    at += u64::try_from(copied).unwrap_or(0);
                    how_far.done.fetch_add(u64::try_from(copied).unwrap_or(0), Ordering::Relaxed);
                }
                Err(Errno::INTR) => {}
                Err(e) => return Err(fail(e)),
            }
        }
    }
    Ok(Copied::Whole)
}

/// Counts the bytes that are in no hole. Blocks that were only reserved are in one, though the host counts them.
fn written(file: &std::os::fd::OwnedFd, length: u64) -> Result<u64, Errno> {
    let (mut at, mut bytes) = (0, 0);
    while let Some((start, end)) = data(file, at, length)? {
        bytes += end - start;
        at = end;
    }
    Ok(bytes)
}

/// Finds the next piece that is no hole.
fn data(file: &std::os::fd::OwnedFd, from: u64, length: u64) -> Result<Option<(u64, u64)>, Errno> {
    if from >= length {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(e) => return Err(e),
    };
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok((start < length).then_some((start, end.min(length))))
}
