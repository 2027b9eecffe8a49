//! One step: intent record -> volume type -> verify -> outcome record.
//!
//! Every step can be taken twice. What is on disk before a call says that it may have been sent; what is on disk after it says
//! what the mount table showed. A crash anywhere in between leaves a record that `observe` reads as uncertain.

#![warn(clippy::wildcard_enum_match_arm)]

mod accept;
mod disk;
mod down;
pub mod fault;
mod grow;
mod guard;
mod luks;
mod lun;
mod up;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, watch};

use crate::csi::{DriverSet, Turns};
use crate::error::Chain;
use crate::host::{Host, Progress};
use crate::model::{
    Ambient, BlockedCause, BootId, CallState, DriverName, Effect, Failure, Layout, Outcome, PublicationId,
    RecordedVolume, Retry, Step, VolumeKey, VolumeRecord,
};
use crate::mutant::{self, Mutant};
use crate::record::{Durability, Store, StoreError};
use crate::volumes::{Call, DriverLine, Site};

/// Takes steps.
#[derive(Debug)]
pub struct Executor {
    host: Arc<dyn Host>,
    store: Arc<dyn Store>,
    drivers: watch::Receiver<Arc<DriverSet>>,
    turns: Turns,
    layout: Layout,
    node: String,
    boot: BootId,
    ambient: Arc<Ambient>,
    /// Where systemd put what LoadCredential= names.
    credentials: Option<PathBuf>,
    /// Calls younger than 5 s, by driver. A std mutex: held for a map look-up only.
    slots: Mutex<BTreeMap<DriverName, Arc<Semaphore>>>,
}

/// What steps are made with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The kernel.
    pub host: Arc<dyn Host>,
    /// The records.
    pub store: Arc<dyn Store>,
    /// At most one call is under way for a volume.
    pub turns: Turns,
    /// The paths.
    pub layout: Layout,
    /// This node's name.
    pub node: String,
    /// Chance.
    pub ambient: Arc<Ambient>,
    /// Where systemd put what LoadCredential= names.
    pub credentials: Option<PathBuf>,
}

/// A step that ended.
#[derive(Debug)]
pub struct Ended {
    /// The volume's record as it stands on disk now; `None`: nothing is left to remember.
    pub record: Option<VolumeRecord>,
    /// How it went.
    pub result: Result<Outcome, Failure>,
    /// The driver answered OK and left no mount.
    pub not_a_mount_point: bool,
    /// What else an operator should know of it.
    pub notes: Vec<String>,
}

/// Calls per driver that are younger than 5 s (design 5).
const CALLS_PER_DRIVER: usize = 16;

/// A step in the making: the record as it is on disk.
struct Work<'a> {
    executor: &'a Executor,
    key: &'a VolumeKey,
    record: VolumeRecord,
    /// The record has reached the disk at least once.
    stored: bool,
    not_a_mount_point: bool,
    notes: Vec<String>,
    /// The size that the volume turned out to have.
    size: Option<u64>,
    progress: Progress,
}

// === impl Executor ===

impl Executor {
    /// Takes what steps are made with.
    pub fn new(parts: Parts, drivers: watch::Receiver<Arc<DriverSet>>) -> Self {
        let boot = parts.host.boot();
        let Parts { host, store, turns, layout, node, ambient, credentials } = parts;
        Self {
            host,
            store,
            drivers,
            turns,
            layout,
            node,
            boot,
            ambient,
            credentials,
            slots: Mutex::default(),
        }
    }

    /// Takes a step. `record` is the volume's record as it is on disk. Dropping the future leaves what a crash would leave.
    pub async fn run(&self, step: Step, record: Option<VolumeRecord>, progress: Progress) -> Ended {
        let key = step.key().clone();
        let _turn = self.turns.take(&key).await;
        let stored = record.is_some();
        let record = match (record, &step) {
            (Some(record), _) => record,
            (None, Step::Stage(step)) => VolumeRecord::new(key.clone(), step.volume.clone()),
            (None, Step::Publish(step)) => VolumeRecord::new(key.clone(), step.volume.clone()),
            (None, Step::Republish(_) | Step::Expand(_) | Step::Unpublish { .. } | Step::Unstage { .. }) => {
                let result = Ok(Outcome::AlreadyThere);
                return Ended { record: None, result, not_a_mount_point: false, notes: Vec::new() };
            }
        };
        let mut work = Work {
            executor: self,
            key: &key,
            record,
            stored,
            not_a_mount_point: false,
            notes: Vec::new(),
            size: None,
            progress,
        };
        let result = match step {
            Step::Stage(step) => work.stage(&step).await,
            Step::Publish(step) => work.publish(&step).await,
            Step::Republish(step) => work.republish(&step).await,
            Step::Expand(step) => work.expand(&step).await,
            Step::Unpublish { id, force, .. } => work.unpublish(&id, force).await,
            Step::Unstage { force, .. } => work.unstage(force).await,
        };
        let record = (work.stored && !work.record.is_spent()).then_some(work.record);
        Ended { record, result, not_a_mount_point: work.not_a_mount_point, notes: work.notes }
    }

    /// Returns the driver of a volume, or why there is none to call.
    fn driver(&self, volume: &RecordedVolume) -> Result<Option<DriverLine>, Failure> {
        let Some(name) = volume.driver() else { return Ok(None) };
        let entry = self.drivers.borrow().drivers.get(name).cloned();
        let entry = entry.ok_or_else(|| Failure {
            effect: Effect::NotDone,
            settled: false,
            retry: Retry::Backoff,
            cause: BlockedCause::new("driver-not-registered", format!("driver {name} is not registered")),
            remedy: "start the driver".to_owned(),
        })?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = slots.entry(name.clone()).or_insert_with(|| Arc::new(Semaphore::new(CALLS_PER_DRIVER)));
        let stages = entry.state.info.stage_unstage;
        Ok(Some(DriverLine { client: entry.client, slots: Arc::clone(slots), stages }))
    }
}

// === impl Work ===

impl Work<'_> {
    fn call(&self) -> Result<Call, Failure> {
        let driver = self.executor.driver(&self.record.volume)?;
        Ok(Call { volume: self.record.volume.clone(), driver, shown_on: None, disk: None })
    }

    fn site(&self) -> Site {
        Site {
            host: Arc::clone(&self.executor.host),
            layout: self.executor.layout.clone(),
            node: self.executor.node.clone(),
        }
    }

    /// Syncs an intent, unless the disk has it already. Fails with nothing done.
    async fn intend(&mut self, change: impl FnOnce(&mut VolumeRecord, &BootId)) -> Result<(), Failure> {
        let mut next = self.record.clone();
        change(&mut next, &self.executor.boot);
        if self.stored && next == self.record {
            return Ok(());
        }
        if mutant::is(Mutant::NoIntent) {
            self.record = next;
            return Ok(());
        }
        self.put(next, Durability::Synced)
            .await
            .map_err(|failure| Failure { effect: Effect::NotDone, ..failure })
    }

    /// Remembers whether a failed call was answered for good, and returns its failure.
    async fn settle(
        &mut self,
        failure: Failure,
        set: impl FnOnce(&mut VolumeRecord, (CallState, BootId)),
    ) -> Result<Outcome, Failure> {
        let state = CallState::Intended { settled: failure.settled };
        // If this cannot be written the record says less, which is the safe side; the call's failure is what matters.
        let _unwritten =
            self.update(Durability::Written, |record, boot| set(record, (state, boot.clone()))).await;
        Err(failure)
    }

    /// Takes back what was written of a call that did not even begin: refused because somebody has the volume, or never sent.
    /// What is wanted again by then simply stays, and nobody else's mount is taken for the work of that call.
    async fn not_begun(
        &mut self,
        failure: Failure,
        restore: impl FnOnce(&mut VolumeRecord, &BootId),
    ) -> Result<Outcome, Failure> {
        if failure.effect == Effect::NotDone {
            // If this cannot be written the call counts as begun, which is the safe side: it is undone, or done again.
            let _unwritten = self.update(Durability::Written, restore).await;
        }
        Err(failure)
    }

    /// Writes a changed record; what is in memory never says more than the disk.
    async fn update(
        &mut self,
        durability: Durability,
        change: impl FnOnce(&mut VolumeRecord, &BootId),
    ) -> Result<(), Failure> {
        let mut next = self.record.clone();
        change(&mut next, &self.executor.boot);
        if next == self.record {
            return Ok(());
        }
        self.put(next, durability).await
    }

    async fn put(&mut self, next: VolumeRecord, durability: Durability) -> Result<(), Failure> {
        let store = &self.executor.store;
        let written = if next.is_spent() {
            store.remove(self.key.clone()).await
        } else {
            store.write(next.clone(), durability).await
        };
        written.map_err(|error| store_failure(&error))?;
        self.record = next;
        self.stored = true;
        Ok(())
    }
}

fn set_staging(record: &mut VolumeRecord, (state, boot): (CallState, BootId)) {
    if let Some(staging) = &mut record.staging {
        staging.state = state;
        staging.boot = boot;
    }
}

fn set_publication(record: &mut VolumeRecord, id: &PublicationId, (state, boot): (CallState, BootId)) {
    if let Some(publication) = record.publications.get_mut(id) {
        publication.state = state;
        publication.boot = boot;
    }
}

/// Returns the failure of a step whose record could not be written.
fn store_failure(error: &StoreError) -> Failure {
    Failure {
        effect: Effect::MayBeDone,
        settled: false,
        retry: Retry::Backoff,
        cause: BlockedCause::new("record-not-written", Chain(error).to_string()),
        remedy: "make room or mend the state directory's file system".to_owned(),
    }
}
