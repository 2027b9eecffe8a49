//! The daemon's tasks: each has a name, is waited for, and is seen when it panics or ends too early.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::error;

/// The tasks of one daemon.
#[derive(Debug, Clone)]
pub struct Tasks {
    tracker: TaskTracker,
    stop: CancellationToken,
    failures: mpsc::UnboundedSender<Fault>,
}

/// A task that ended as it must not. It ends the daemon: a half-dead one is worse (style 1.7).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It panicked.
    #[error("the task {name} panicked: {message}")]
    Panicked {
        /// Which.
        name: &'static str,
        /// What it said.
        message: String,
    },
    /// It cannot go on.
    #[error("the task {name} failed: {message}")]
    Failed {
        /// Which.
        name: &'static str,
        /// The whole chain of reasons.
        message: String,
    },
    /// It returned though nobody told it to stop.
    #[error("the task {name} ended by itself")]
    Ended {
        /// Which.
        name: &'static str,
    },
}

impl Tasks {
    /// Makes an empty set; faults arrive at the receiver.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Fault>) {
        let (failures, faults) = mpsc::unbounded_channel();
        (Self { tracker: TaskTracker::new(), stop: CancellationToken::new(), failures }, faults)
    }

    /// Makes another set that is stopped on its own and whose faults arrive at the same receiver.
    #[must_use]
    pub fn beside(&self) -> Self {
        let failures = self.failures.clone();
        Self { tracker: TaskTracker::new(), stop: CancellationToken::new(), failures }
    }

    /// Returns the token that ends all of them.
    pub fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }

    /// Starts a task that runs until it is told to stop. To end earlier is a fault.
    pub fn run<E: std::error::Error + 'static>(
        &self,
        name: &'static str,
        task: impl Future<Output = Result<(), E>> + Send + 'static,
    ) {
        let stop = self.stop.clone();
        self.watch(name, async move {
            match task.await {
                Err(error) => Err(Fault::Failed { name, message: crate::error::Chain(&error).to_string() }),
                Ok(()) if !stop.is_cancelled() => Err(Fault::Ended { name }),
                Ok(()) => Ok(()),
            }
        });
    }

    /// Starts a task that does one thing and ends.
    pub fn once(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.watch(name, async move {
            task.await;
            Ok(())
        });
    }

    fn watch(&self, name: &'static str, task: impl Future<Output = Result<(), Fault>> + Send + 'static) {
        let failures = self.failures.clone();
        // The one place that spawns: `CatchPanic` sees what a join handle that nobody awaits would hide.
        self.tracker.spawn(async move {
            let fault = match (CatchPanic(Box::pin(task))).await {
                Ok(Ok(())) => return,
                Ok(Err(fault)) => fault,
                Err(message) => Fault::Panicked { name, message },
            };
            error!(task = name, "{fault}");
            // Nobody listens any more when the daemon is already on its way out.
            let _unheard = failures.send(fault);
        });
    }

    /// Tells every task to stop and waits; returns whether all were gone in time.
    pub async fn end(&self, within: Duration) -> bool {
        self.stop.cancel();
        self.tracker.close();
        tokio::time::timeout(within, self.tracker.wait()).await.is_ok()
    }
}

/// A future whose panic is a value.
struct CatchPanic<F>(Pin<Box<F>>);

impl<F: Future> Future for CatchPanic<F> {
    type Output = Result<F::Output, String>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        // The future is not polled again after a panic, so nobody sees what it left half done.
        match std::panic::catch_unwind(AssertUnwindSafe(|| self.0.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Err(panic) => Poll::Ready(Err(said(&*panic))),
        }
    }
}

fn said(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(10);

    #[derive(Debug, thiserror::Error)]
    #[error("cannot go on")]
    struct Stuck;

    #[tokio::test]
    async fn a_panic_is_told_with_the_task_s_name() {
        let (tasks, mut faults) = Tasks::new();
        tasks.once("painter", async { panic!("out of {}", "paint") });
        let fault = faults.recv().await.unwrap();
        assert_eq!(fault, Fault::Panicked { name: "painter", message: "out of paint".into() });
        assert!(tasks.end(SOON).await);
    }

    #[tokio::test]
    async fn a_task_that_ends_before_it_is_told_to_is_a_fault() {
        let (tasks, mut faults) = Tasks::new();
        tasks.run("early", async { Ok::<_, Stuck>(()) });
        assert_eq!(faults.recv().await, Some(Fault::Ended { name: "early" }));
        tasks.run("stuck", async { Err(Stuck) });
        assert_eq!(
            faults.recv().await,
            Some(Fault::Failed { name: "stuck", message: "cannot go on".into() })
        );
    }

    #[tokio::test]
    async fn tasks_that_stop_when_told_to_are_no_fault() {
        let (tasks, mut faults) = Tasks::new();
        let stop = tasks.stop();
        tasks.run("good", async move {
            stop.cancelled().await;
            Ok::<_, Stuck>(())
        });
        assert!(tasks.end(SOON).await);
        assert!(faults.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_does_not_stop_is_given_up() {
        let (tasks, _faults) = Tasks::new();
        tasks.once("deaf", std::future::pending());
        assert!(!tasks.end(Duration::from_secs(1)).await);
    }
}
