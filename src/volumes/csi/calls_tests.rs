//! How calls are paced and given up.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// A driver whose calls take this long.
#[derive(Debug, Default)]
struct Slow {
    takes: Duration,
    begun: AtomicUsize,
}

impl Slow {
    fn call(&self) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            self.begun.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(self.takes).await;
            Ok(())
        })
    }
}

impl Driver for Slow {
    fn deadline(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn stage(&self, _request: wire::NodeStageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        self.call()
    }

    fn unstage(&self, _request: wire::NodeUnstageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        self.call()
    }

    fn publish(&self, _request: wire::NodePublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        self.call()
    }

    fn unpublish(&self, _request: wire::NodeUnpublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        self.call()
    }
}

async fn call(driver: Arc<Slow>, slots: Arc<Semaphore>) -> Result<(), CallError> {
    let name = DriverName::new("d").unwrap();
    let client: Arc<dyn Driver> = Arc::clone(&driver) as Arc<dyn Driver>;
    let target =
        Target { name: &name, handle: "h", lifecycle: Lifecycle::Persistent, driver: &client, slots: &slots };
    target.sent(client.unstage(wire::NodeUnstageVolumeRequest::default())).await
}

#[tokio::test(start_paused = true)]
async fn a_driver_has_sixteen_calls_that_are_younger_than_five_seconds() {
    let driver = Arc::new(Slow { takes: Duration::from_secs(60), ..Slow::default() });
    let slots = Arc::new(Semaphore::new(16));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..40 {
        calls.spawn(call(Arc::clone(&driver), Arc::clone(&slots)));
    }
    for (second, begun) in [(1, 16), (6, 32), (11, 40)] {
        tokio::time::sleep_until(
            tokio::time::Instant::now() + Duration::from_secs(if second == 1 { 1 } else { 5 }),
        )
        .await;
        assert_eq!(driver.begun.load(Ordering::Relaxed), begun, "after {second} s");
    }
    while let Some(ended) = calls.join_next().await {
        assert_eq!(ended.unwrap(), Ok(()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_not_answered_is_given_up_at_its_deadline() {
    let driver = Arc::new(Slow { takes: Duration::from_secs(100_000), ..Slow::default() });
    let began = tokio::time::Instant::now();
    let error = call(driver, Arc::new(Semaphore::new(1))).await.unwrap_err();
    assert_eq!((error.code, error.sent), (Code::DEADLINE_EXCEEDED, true));
    assert_eq!(began.elapsed(), Duration::from_secs(120));
}

#[test]
fn after_any_error_of_a_sent_call_the_effect_may_be_there() {
    for number in 1..=16 {
        let error = CallError { method: "m", code: Code(number), message: String::new(), sent: true };
        let failure = failure(&error);
        assert_eq!(failure.effect, Effect::MayBeDone, "{}", error.code);
        // csi.md 2.3
        assert_eq!(failure.settled, !matches!(number, 1 | 4 | 8 | 10 | 14), "{}", error.code);
        assert_ne!(failure.retry, Retry::WhenChanged, "every code is tried again, some slowly");
        let undo = undone(Err(CallError { sent: false, ..error.clone() }));
        assert_eq!(undo.is_ok(), number == 5, "only NOT_FOUND can end an undo: {}", error.code);
    }
}
