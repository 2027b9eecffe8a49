//! One step: intent record -> volume type -> verify -> outcome record.
//!
//! Every step can be taken twice. What is on disk before a call says that it may have been sent; what is on disk after it says
//! what the mount table showed. A crash anywhere in between leaves a record that `observe` reads as uncertain.

#![warn(clippy::wildcard_enum_match_arm)]

pub mod fault;
mod guard;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, watch};

use crate::csi::DriverSet;
use crate::error::Chain;
use crate::host::Host;
use crate::model::{
    BlockedCause, BootId, CallState, DriverName, Effect, Failure, Layout, Outcome, PublicationId,
    PublicationPlan, PublicationRecord, PublishStep, RecordedMount, RecordedVolume, Retry, StageStep,
    StagingRecord, Step, VolumeKey, VolumeRecord,
};
use crate::record::{Durability, Store, StoreError};
use crate::volumes::{self, Call, DriverLine, Site};

/// Takes steps.
#[derive(Debug)]
pub struct Executor {
    host: Arc<dyn Host>,
    store: Arc<dyn Store>,
    drivers: watch::Receiver<Arc<DriverSet>>,
    layout: Layout,
    node: String,
    boot: BootId,
    /// Calls younger than 5 s, by driver. A std mutex: held for a map look-up only.
    slots: Mutex<BTreeMap<DriverName, Arc<Semaphore>>>,
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
}

// === impl Executor ===

impl Executor {
    /// Takes what steps are made with.
    pub fn new(
        host: Arc<dyn Host>,
        store: Arc<dyn Store>,
        drivers: watch::Receiver<Arc<DriverSet>>,
        layout: Layout,
        node: String,
    ) -> Self {
        let boot = host.boot();
        Self { host, store, drivers, layout, node, boot, slots: Mutex::default() }
    }

    /// Takes a step. `record` is the volume's record as it is on disk. Dropping the future leaves what a crash would leave.
    pub async fn run(&self, step: Step, record: Option<VolumeRecord>) -> Ended {
        let key = step.key().clone();
        let stored = record.is_some();
        let record = match (record, &step) {
            (Some(record), _) => record,
            (None, Step::Stage(step)) => VolumeRecord::new(key.clone(), step.volume.clone()),
            (None, Step::Publish(step)) => VolumeRecord::new(key.clone(), step.volume.clone()),
            (None, Step::Unpublish { .. } | Step::Unstage { .. }) => {
                return Ended { record: None, result: Ok(Outcome::AlreadyThere), not_a_mount_point: false };
            }
        };
        let mut work = Work { executor: self, key: &key, record, stored, not_a_mount_point: false };
        let result = match step {
            Step::Stage(step) => work.stage(*step).await,
            Step::Publish(step) => work.publish(*step).await,
            Step::Unpublish { id, .. } => work.unpublish(&id).await,
            Step::Unstage { .. } => work.unstage().await,
        };
        let record = (work.stored && !work.record.is_spent()).then_some(work.record);
        Ended { record, result, not_a_mount_point: work.not_a_mount_point }
    }

    /// Returns the driver of a volume, or why there is none to call.
    fn driver(&self, volume: &RecordedVolume) -> Result<Option<DriverLine>, Failure> {
        let name = match volume {
            RecordedVolume::Csi { driver, .. } => driver,
            RecordedVolume::EmptyDir => return Ok(None),
        };
        let client = self.drivers.borrow().drivers.get(name).map(|entry| Arc::clone(&entry.client));
        let client = client.ok_or_else(|| Failure {
            effect: Effect::NotDone,
            settled: false,
            retry: Retry::Backoff,
            cause: BlockedCause::new("driver-not-registered", format!("driver {name} is not registered")),
            remedy: "start the driver".to_owned(),
        })?;
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let slots = slots.entry(name.clone()).or_insert_with(|| Arc::new(Semaphore::new(CALLS_PER_DRIVER)));
        Ok(Some(DriverLine { client, slots: Arc::clone(slots) }))
    }
}

// === impl Work ===

impl Work<'_> {
    async fn stage(&mut self, step: StageStep) -> Result<Outcome, Failure> {
        let call = self.call()?;
        guard::before_staging(self.executor, &self.record, &step.arguments).await?;
        self.intend_staging(&step).await?;
        fault::reached("stage:intent");
        let site = self.site();
        let sent = volumes::of(&self.record.volume).stage(&site, &call, &step.arguments, &step.secrets).await;
        fault::reached("stage:call");
        let mounted = match sent {
            Ok(()) => guard::found(self.executor, &step.arguments.staging_path).await,
            Err(failure) => Err(failure),
        };
        match mounted {
            Ok(mount) => {
                self.not_a_mount_point = mount == RecordedMount::NotAMountPoint;
                self.set_staging(CallState::Done { mount });
                // Their turn has come, and this write spares each of them one of its own.
                for publication in self.record.publications.values_mut() {
                    if publication.state == CallState::Planned {
                        publication.state = CallState::Intended { settled: false };
                    }
                }
                self.write(Durability::Written).await?;
                fault::reached("stage:outcome");
                Ok(Outcome::Changed)
            }
            Err(failure) => {
                self.set_staging(CallState::Intended { settled: failure.settled });
                self.write(Durability::Written).await?;
                Err(failure)
            }
        }
    }

    /// Writes the staging's intent, and with it those of the publications that will follow: one synced record.
    async fn intend_staging(&mut self, step: &StageStep) -> Result<(), Failure> {
        let intent = StagingRecord {
            boot: self.executor.boot.clone(),
            state: CallState::Intended { settled: false },
            arguments: step.arguments.clone(),
        };
        let before = (self.record.clone(), self.stored);
        let mut changed = !self.stored;
        if self.record.staging.as_ref() != Some(&intent) {
            self.record.staging = Some(intent);
            changed = true;
        }
        for (id, plan) in &step.planned {
            if !self.record.publications.contains_key(id) {
                let publication = self.publication_record(plan, CallState::Planned);
                self.record.publications.insert(id.clone(), publication);
                changed = true;
            }
        }
        if changed { self.write_intent(before).await } else { Ok(()) }
    }

    /// Syncs an intent. If that fails nothing was intended: what is in memory must not say more than the disk.
    async fn write_intent(&mut self, before: (VolumeRecord, bool)) -> Result<(), Failure> {
        let written = self.write(Durability::Synced).await;
        if let Err(mut failure) = written {
            (self.record, self.stored) = before;
            failure.effect = Effect::NotDone;
            return Err(failure);
        }
        Ok(())
    }

    async fn publish(&mut self, step: PublishStep) -> Result<Outcome, Failure> {
        let call = self.call()?;
        let id = &step.id;
        guard::before_publication(self.executor, &self.record, id).await?;
        self.intend_publication(id, &step.plan).await?;
        fault::reached("publish:intent");
        let site = self.site();
        let arguments = step.plan.arguments.as_ref();
        let sent = volumes::of(&self.record.volume).publish(&site, &call, id, arguments, &step.secrets).await;
        fault::reached("publish:call");
        let mounted = match (sent, arguments) {
            (Ok(()), Some(arguments)) => guard::found(self.executor, &arguments.target_path).await,
            (Ok(()), None) => Ok(RecordedMount::NotAMountPoint),
            (Err(failure), _) => Err(failure),
        };
        match mounted {
            Ok(mount) => {
                self.not_a_mount_point = arguments.is_some() && mount == RecordedMount::NotAMountPoint;
                self.set_publication(id, CallState::Done { mount });
                self.write(Durability::Written).await?;
                fault::reached("publish:outcome");
                Ok(Outcome::Changed)
            }
            Err(failure) => {
                self.set_publication(id, CallState::Intended { settled: failure.settled });
                self.write(Durability::Written).await?;
                Err(failure)
            }
        }
    }

    async fn intend_publication(
        &mut self,
        id: &PublicationId,
        plan: &PublicationPlan,
    ) -> Result<(), Failure> {
        let intent = self.publication_record(plan, CallState::Intended { settled: false });
        if self.stored && self.record.publications.get(id) == Some(&intent) {
            return Ok(());
        }
        let before = (self.record.clone(), self.stored);
        self.record.publications.insert(id.clone(), intent);
        self.write_intent(before).await
    }

    async fn unpublish(&mut self, id: &PublicationId) -> Result<Outcome, Failure> {
        let Some(publication) = self.record.publications.get(id) else { return Ok(Outcome::AlreadyThere) };
        if publication.state == CallState::Planned && publication.boot == self.executor.boot {
            self.record.publications.remove(id);
            self.write(Durability::Written).await?;
            return Ok(Outcome::AlreadyThere);
        }
        let call = self.call()?;
        let recorded = guard::before_unpublication(self.executor, publication, id).await?;
        let arguments = publication.arguments.clone();
        self.set_publication(id, CallState::Undoing);
        self.write(Durability::Written).await?;
        fault::reached("unpublish:intent");
        let site = self.site();
        let volume = volumes::of(&self.record.volume);
        let answer = volume.unpublish(&site, &call, id, arguments.as_ref()).await?;
        fault::reached("unpublish:call");
        if let Some(arguments) = &arguments {
            guard::after_undo(self.executor, &arguments.target_path, recorded.as_ref(), answer).await?;
        }
        volume.clean_publication(&site, id).await?;
        self.record.publications.remove(id);
        self.write(Durability::Written).await?;
        fault::reached("unpublish:outcome");
        Ok(Outcome::Changed)
    }

    async fn unstage(&mut self) -> Result<Outcome, Failure> {
        let Some(staging) = &self.record.staging else { return Ok(Outcome::AlreadyThere) };
        if !self.record.publications.is_empty() {
            // The plan never asks for it (design rule 4); a second lock on the same door.
            return Err(Failure::not_done(
                "still-published",
                "the volume is still published to a pod",
                "wait",
            ));
        }
        let call = self.call()?;
        let recorded = guard::before_unstaging(self.executor, staging).await?;
        let arguments = staging.arguments.clone();
        self.set_staging(CallState::Undoing);
        self.write(Durability::Written).await?;
        fault::reached("unstage:intent");
        let site = self.site();
        let volume = volumes::of(&self.record.volume);
        let answer = volume.unstage(&site, &call, &arguments).await?;
        fault::reached("unstage:call");
        guard::after_undo(self.executor, &arguments.staging_path, recorded.as_ref(), answer).await?;
        volume.clean_staging(&site, &arguments).await?;
        self.record.staging = None;
        self.write(Durability::Written).await?;
        fault::reached("unstage:outcome");
        Ok(Outcome::Changed)
    }

    fn call(&self) -> Result<Call, Failure> {
        let driver = self.executor.driver(&self.record.volume)?;
        Ok(Call { volume: self.record.volume.clone(), driver })
    }

    fn site(&self) -> Site {
        Site {
            host: Arc::clone(&self.executor.host),
            layout: self.executor.layout.clone(),
            node: self.executor.node.clone(),
        }
    }

    fn set_staging(&mut self, state: CallState) {
        if let Some(staging) = &mut self.record.staging {
            staging.state = state;
            staging.boot = self.executor.boot.clone();
        }
    }

    fn set_publication(&mut self, id: &PublicationId, state: CallState) {
        if let Some(publication) = self.record.publications.get_mut(id) {
            publication.state = state;
            publication.boot = self.executor.boot.clone();
        }
    }

    fn publication_record(&self, plan: &PublicationPlan, state: CallState) -> PublicationRecord {
        PublicationRecord {
            boot: self.executor.boot.clone(),
            state,
            pod: plan.pod.clone(),
            names: plan.names.clone(),
            claim: plan.claim.clone(),
            manifest: plan.manifest.clone(),
            arguments: plan.arguments.clone(),
            approved: false,
        }
    }

    async fn write(&mut self, durability: Durability) -> Result<(), Failure> {
        let store = &self.executor.store;
        let written = if self.record.is_spent() {
            store.remove(self.key.clone()).await
        } else {
            store.write(self.record.clone(), durability).await
        };
        self.stored = true;
        written.map_err(|error| store_failure(&error))
    }
}

/// Returns the failure of a step whose record could not be written: nothing more is done, since it would not be remembered.
fn store_failure(error: &StoreError) -> Failure {
    Failure {
        effect: Effect::MayBeDone,
        settled: false,
        retry: Retry::Backoff,
        cause: BlockedCause::new("record-not-written", Chain(error).to_string()),
        remedy: "make room or mend the state directory's file system".to_owned(),
    }
}
