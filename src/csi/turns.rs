//! Whose turn it is to call for a volume: at most one call for one volume is under way (csi.md 10, 1).
//!
//! A step has the turn from its first call to its last; who only asks how a volume is goes without when it is taken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use crate::model::VolumeKey;

/// The turns of all volumes. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Turns(Arc<Mutex<BTreeMap<VolumeKey, Weak<tokio::sync::Mutex<()>>>>>);

/// The right to call for one volume, until it is dropped.
#[derive(Debug)]
pub struct Turn(#[expect(dead_code, reason = "held, not read")] OwnedMutexGuard<()>);

impl Turns {
    /// Waits for the turn. Cancel-safe.
    pub async fn take(&self, key: &VolumeKey) -> Turn {
        Turn(self.of(key).lock_owned().await)
    }

    /// Takes the turn if nobody has it.
    pub fn try_take(&self, key: &VolumeKey) -> Option<Turn> {
        self.of(key).try_lock_owned().ok().map(Turn)
    }

    fn of(&self, key: &VolumeKey) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        // What nobody holds or waits for is forgotten each time the map has doubled.
        if turns.len().is_power_of_two() {
            turns.retain(|_, turn| turn.strong_count() > 0);
        }
        let turn = Arc::new(tokio::sync::Mutex::new(()));
        turns.insert(key.clone(), Arc::downgrade(&turn));
        turn
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::DriverName;

    fn key(handle: &str) -> VolumeKey {
        VolumeKey::csi(&DriverName::new("d").unwrap(), handle)
    }

    #[tokio::test]
    async fn one_has_the_turn_of_a_volume_and_others_have_theirs() {
        let turns = Turns::default();
        let first = turns.take(&key("a")).await;
        assert!(turns.try_take(&key("a")).is_none());
        assert!(turns.try_take(&key("b")).is_some());
        drop(first);
        assert!(turns.try_take(&key("a")).is_some());
    }

    #[tokio::test]
    async fn what_nobody_holds_is_forgotten() {
        let turns = Turns::default();
        for i in 0..1000 {
            drop(turns.take(&key(&i.to_string())).await);
        }
        assert!(turns.0.lock().unwrap().len() <= 2);
    }
}
