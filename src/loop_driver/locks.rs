//! One call at a time for each volume, snapshot and group.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::errors::Failure;
use super::store::Id;

/// How long a call waits for the one before it: pods that share a volume come at the same moment, and a caller that is told
/// ABORTED comes again only after a while (kubelet: 500 ms and more).
const PATIENCE: Duration = Duration::from_millis(400);

/// What a call is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Key {
    /// A volume.
    Volume(Id),
    /// A snapshot.
    Snapshot(Id),
    /// A group of snapshots.
    Group(Id),
}

impl Key {
    fn id(&self) -> &Id {
        match self {
            Self::Volume(id) | Self::Snapshot(id) | Self::Group(id) => id,
        }
    }
}

/// What calls are under way.
#[derive(Debug, Clone, Default)]
pub(super) struct Locks {
    held: Arc<Held>,
}

#[derive(Debug, Default)]
struct Held {
    /// A std mutex: held for a look-up only.
    keys: Mutex<BTreeSet<Key>>,
    freed: Notify,
}

/// The right to work on something, until it is dropped.
#[derive(Debug)]
#[must_use = "it is held only as long as this value"]
pub(super) struct Lock {
    keys: BTreeSet<Key>,
    held: Arc<Held>,
}

impl Locks {
    /// Takes all of these, or none.
    ///
    /// # Errors
    /// `Pending` when one of them is still taken after a moment.
    pub(super) async fn take(&self, keys: impl IntoIterator<Item = Key>) -> Result<Lock, Failure> {
        let keys: BTreeSet<Key> = keys.into_iter().collect();
        let until = tokio::time::Instant::now() + PATIENCE;
        loop {
            let freed = self.held.freed.notified();
            tokio::pin!(freed);
            // Before the look: what is freed after it must not be missed.
            freed.as_mut().enable();
            let taken = self.try_take(&keys);
            let Err(taken) = taken else { return Ok(Lock { keys, held: Arc::clone(&self.held) }) };
            if tokio::time::timeout_at(until, freed).await.is_err() {
                return Err(Failure::Pending(taken.id().clone()));
            }
        }
    }

    fn try_take(&self, keys: &BTreeSet<Key>) -> Result<(), Key> {
        let mut held = self.held.keys();
        if let Some(taken) = keys.intersection(&held).next() {
            return Err(taken.clone());
        }
        held.extend(keys.iter().cloned());
        Ok(())
    }
}

impl Held {
    fn keys(&self) -> MutexGuard<'_, BTreeSet<Key>> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        self.held.keys().retain(|key| !self.keys.contains(key));
        self.held.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(id: &str) -> Key {
        Key::Volume(Id::new(id).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_call_waits_a_moment_and_is_told_then() {
        let locks = Locks::default();
        let first = locks.take([key("a"), key("b")]).await.unwrap();
        assert!(matches!(locks.take([key("b"), key("c")]).await, Err(Failure::Pending(_))));
        // What it could have had it did not keep.
        let other = locks.take([key("c")]).await.unwrap();
        let second = locks.take([key("a")]);
        let free = async {
            tokio::time::sleep(PATIENCE / 2).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(second, free);
        assert!(second.is_ok());
        drop(other);
    }
}
