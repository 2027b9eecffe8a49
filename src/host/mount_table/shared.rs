//! The mount table as all callers of one host have it: one reader, and word of each change.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Mutex, Notify};

use super::reader::{Reader, open};
use crate::host::pool::Pool;
use crate::host::{HostError, raw};
use crate::model::MountTable;

/// How long a look may take; of 20,000 mounts it takes 51 ms (harness.md 7).
const LIMIT: Duration = Duration::from_secs(30);

const DOING: &str = "read";
const TABLE: &str = "/proc/thread-self/mountinfo";

/// One reader, which one caller has at a time.
#[derive(Debug, Clone)]
pub(in crate::host) struct Shared {
    reader: Arc<Mutex<Reader>>,
    /// For nothing but the reader: who has its turn never waits for a thread that somebody has who waits for a turn.
    pool: Arc<Pool>,
    /// Somebody took what the kernel told: a `Watch` may not have been woken for it.
    taken: Arc<Notify>,
}

impl Shared {
    /// Opens the calling thread's mount table; nothing is read yet.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub(in crate::host) fn open() -> Result<Self, HostError> {
        Ok(Self::of(Reader::open().map_err(failed)?))
    }

    fn of(reader: Reader) -> Self {
        Self {
            reader: Arc::new(Mutex::new(reader)),
            pool: Arc::new(Pool::new()),
            taken: Arc::new(Notify::new()),
        }
    }

    /// Returns the table. Only what is more than a few system calls is done by a thread that may wait.
    ///
    /// # Errors
    /// When it cannot be read or understood, or not in time.
    pub(in crate::host) async fn look(&self) -> Result<Arc<MountTable>, HostError> {
        let whole = async {
            let mut reader = Arc::clone(&self.reader).lock_owned().await;
            if let Some(current) = self.tell(&mut reader, Reader::soon)? {
                return Ok(current);
            }
            let shared = self.clone();
            let read = move || shared.tell(&mut reader, Reader::read);
            self.pool.run(DOING, Path::new(TABLE), LIMIT, read).await
        };
        let late =
            |_elapsed| HostError::Deadline { doing: DOING, path: TABLE.into(), seconds: LIMIT.as_secs() };
        tokio::time::timeout(LIMIT, whole).await.map_err(late)?
    }

    /// The same on a thread that may wait: one of the blocking pool, whose deadline it has. Panics on one that drives tasks.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub(in crate::host) fn look_here(&self) -> Result<Arc<MountTable>, HostError> {
        self.tell(&mut self.reader.blocking_lock(), Reader::read)
    }

    /// Looks, and tells the watch if something was read: what the kernel had to tell is gone with that.
    fn tell<T>(
        &self,
        reader: &mut Reader,
        look: impl FnOnce(&mut Reader) -> io::Result<T>,
    ) -> Result<T, HostError> {
        let before = reader.readings();
        let looked = look(reader).map_err(failed);
        if reader.readings() != before {
            self.taken.notify_one();
        }
        looked
    }

    /// Begins to wait for changes. To be called once, in a tokio runtime, before anybody looks.
    ///
    /// # Errors
    /// When epoll refuses a descriptor.
    pub(in crate::host) fn watch(&self) -> io::Result<Watch> {
        // AsyncFd panics outside a runtime.
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let told = match self.reader.try_lock() {
            Ok(reader) => reader.told().map(|told| told.try_clone_to_owned()).transpose()?,
            Err(busy) => return Err(io::Error::other(busy)),
        };
        // Another descriptor than the reader's: the kernel reports each mark once per descriptor.
        let marks = raw::watch_priority(open()?)?;
        let told = told.map(raw::watch_readable).transpose()?;
        Ok(Watch { marks, told, taken: Arc::clone(&self.taken) })
    }
}

/// Says that the table may have changed.
#[derive(Debug)]
pub(in crate::host) struct Watch {
    /// A mountinfo, which the kernel marks once at each change, whatever it is.
    marks: AsyncFd<File>,
    /// What tells of each mount after that: where one call changes many, who looks at the mark sees some of them only.
    told: Option<AsyncFd<OwnedFd>>,
    /// Somebody looked who may have taken such a word before this was woken by it.
    taken: Arc<Notify>,
}

impl Watch {
    /// Waits for a change. One may be heard of several times; a dropped wait loses none.
    pub(in crate::host) async fn changed(&self) {
        tokio::select! {
            () = ready(&self.marks, Interest::PRIORITY) => {}
            () = async {
                match &self.told {
                    Some(told) => ready(told, Interest::READABLE).await,
                    None => std::future::pending().await,
                }
            } => {}
            () = self.taken.notified() => {}
        }
    }
}

async fn ready<T: AsRawFd>(fd: &AsyncFd<T>, interest: Interest) {
    match fd.ready(interest).await {
        // Nothing is awaited between the readiness and its clearing, so a dropped future has taken nothing away.
        Ok(mut guard) => guard.clear_ready(),
        // The runtime is shutting down.
        Err(_) => std::future::pending().await,
    }
}

fn failed(source: io::Error) -> HostError {
    HostError::Io { doing: DOING, path: TABLE.into(), source }
}
