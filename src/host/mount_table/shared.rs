//! The mount table as all callers of one host have it: one reader, and word of each change.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Mutex;

use super::reader::{Reader, open};
use crate::host::pool::Pool;
use crate::host::{HostError, raw};
use crate::model::MountTable;

/// How long a look may take; of a hundred thousand mounts it takes a quarter of a second (harness.md 7).
const LIMIT: Duration = Duration::from_secs(30);

const DOING: &str = "read";
const TABLE: &str = "/proc/thread-self/mountinfo";

/// One reader, which one caller has at a time.
#[derive(Debug, Clone)]
pub(in crate::host) struct Shared(Arc<Mutex<Reader>>);

impl Shared {
    /// Opens the calling thread's mount table; nothing is read yet.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub(in crate::host) fn open() -> Result<Self, HostError> {
        Ok(Self(Arc::new(Mutex::new(Reader::open().map_err(failed)?))))
    }

    /// Returns the table. Only what is more than a few system calls is done in the pool.
    ///
    /// # Errors
    /// When it cannot be read or understood, or not in time.
    pub(in crate::host) async fn look(&self, pool: &Pool) -> Result<Arc<MountTable>, HostError> {
        let late =
            |_elapsed| HostError::Deadline { doing: DOING, path: TABLE.into(), seconds: LIMIT.as_secs() };
        let turn = tokio::time::timeout(LIMIT, Arc::clone(&self.0).lock_owned());
        let mut reader = turn.await.map_err(late)?;
        if let Some(current) = reader.soon().map_err(failed)? {
            return Ok(current);
        }
        pool.run(DOING, Path::new(TABLE), LIMIT, move || reader.read().map_err(failed)).await
    }

    /// The same on a thread that may wait: one of the blocking pool.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub(in crate::host) fn look_here(&self) -> Result<Arc<MountTable>, HostError> {
        self.0.blocking_lock().read().map_err(failed)
    }

    /// Begins to wait for changes. To be called in a tokio runtime, before anybody looks.
    ///
    /// # Errors
    /// When epoll refuses a descriptor.
    pub(in crate::host) fn watch(&self) -> io::Result<Watch> {
        // AsyncFd panics outside a runtime.
        tokio::runtime::Handle::try_current().map_err(io::Error::other)?;
        let told = match self.0.try_lock() {
            Ok(reader) => reader.told().map(|told| told.try_clone_to_owned()).transpose()?,
            Err(busy) => return Err(io::Error::other(busy)),
        };
        // Another descriptor than the reader's: the kernel reports each mark once per descriptor.
        let marks = raw::watch_priority(open()?)?;
        Ok(Watch { marks, told: told.map(raw::watch_readable).transpose()? })
    }
}

/// Says that the table changed.
#[derive(Debug)]
pub(in crate::host) struct Watch {
    /// A mountinfo, which the kernel marks once at each change, whatever it is.
    marks: AsyncFd<File>,
    /// What tells of each mount after that: where one call changes many, who looks at the mark sees some of them only.
    told: Option<AsyncFd<OwnedFd>>,
}

impl Watch {
    /// Waits for a change. One that is marked and told may be two; a dropped wait loses none.
    pub(in crate::host) async fn changed(&self) {
        tokio::select! {
            () = ready(&self.marks, Interest::PRIORITY) => {}
            () = async {
                match &self.told {
                    Some(told) => ready(told, Interest::READABLE).await,
                    None => std::future::pending().await,
                }
            } => {}
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
