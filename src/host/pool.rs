//! Blocking calls on local file systems: in tokio's blocking pool, a bounded number at a time, each with a deadline.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::HostError;

/// How many of our own blocking calls run at a time (design 5, "Limits").
const AT_A_TIME: usize = 16;

/// A bounded share of the blocking pool.
#[derive(Debug)]
pub(super) struct Pool {
    slots: Arc<Semaphore>,
}

impl Pool {
    /// Makes a pool of its own: one for local calls, one for what waits for a child process, so that the latter cannot
    /// take the places of the former.
    pub(super) fn new() -> Self {
        Self { slots: Arc::new(Semaphore::new(AT_A_TIME)) }
    }

    /// Runs the work and waits for it, up to the limit. Dropped or given up, the work still runs to its end in its thread.
    ///
    /// # Errors
    /// The work's own, or `Deadline`: then it is not known whether the work was or will be done.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: &Path,
        limit: Duration,
        work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let slots = Arc::clone(&self.slots);
        let whole = async move {
            // The semaphore is never closed; if it were, the work would only lose its bound.
            let slot = slots.acquire_owned().await.ok();
            tokio::task::spawn_blocking(move || {
                let done = work();
                drop(slot);
                done
            })
            .await
        };
        match tokio::time::timeout(limit, whole).await {
            Ok(Ok(done)) => done,
            Ok(Err(join)) => match join.try_into_panic() {
                // A panic is the daemon's end, not an error to be retried (style 7).
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(stopped) => Err(HostError::Io {
                    doing,
                    path: path.to_owned(),
                    source: std::io::Error::other(stopped),
                }),
            },
            Err(_elapsed) => {
                Err(HostError::Deadline { doing, path: path.to_owned(), seconds: limit.as_secs() })
            }
        }
    }
}
