//! How far the copies got that are being made now: for the journal, and for whoever lists the volumes.
//!
//! Only in memory: after a crash there is no copy, only what has to go of one.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Driver;
use super::store::{Id, Volume, VolumeState};
use crate::host::images::HowFar;
use crate::proto::csi;

/// The copies that are being made. The locks of a volume let it have one at a time.
#[derive(Debug, Clone, Default)]
pub(super) struct Copies {
    /// By the volume that it is told of. A std mutex: held for a look-up only.
    running: Arc<Mutex<BTreeMap<Id, Arc<HowFar>>>>,
}

/// A copy that is being made, until this is dropped.
#[derive(Debug)]
#[must_use = "it is told of only as long as this value lives"]
pub(super) struct Copying {
    id: Id,
    pub(super) how_far: Arc<HowFar>,
    copies: Copies,
}

impl Copies {
    /// Begins to tell of a copy with a volume: the one that it makes, or the one that a snapshot is taken of.
    pub(super) fn begin(&self, id: Id) -> Copying {
        let how_far = Arc::new(HowFar::default());
        self.running().insert(id.clone(), Arc::clone(&how_far));
        Copying { id, how_far, copies: self.clone() }
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<Id, Arc<HowFar>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Copying {
    fn drop(&mut self) {
        self.copies.running().remove(&self.id);
    }
}

impl Driver {
    /// Returns how much of the copy that is told of with a volume is there, in percent; `None` where none is being made, or
    /// none of its blocks has to be copied.
    pub(super) fn copied(&self, id: &Id) -> Option<u64> {
        self.inner.copies.running().get(id)?.percent()
    }

    /// Adds to a volume's condition how far its copy got.
    pub(super) fn with_copy(&self, volume: &Volume, condition: csi::VolumeCondition) -> csi::VolumeCondition {
        let csi::VolumeCondition { abnormal, message } = condition;
        let message = match (self.copied(&volume.id), volume.state) {
            (Some(percent), _) if abnormal => format!("{message}; copying, {percent} %"),
            (Some(percent), _) => format!("copying, {percent} %"),
            // It was on its way when it was looked for.
            (None, VolumeState::Creating) => "copied".to_owned(),
            (None, VolumeState::Ready | VolumeState::Growing { .. } | VolumeState::Deleting) => message,
        };
        csi::VolumeCondition { abnormal, message }
    }
}
