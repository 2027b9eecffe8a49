//! One pass: take what has gathered, and decide about the volumes that it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::operator::Operator;
use super::pods::Shown;
use super::show::Looked;
use super::steps::{Running, Told};
use super::wish::BRAKE_NOTE;
use super::{Inputs, Parts, SAFETY_PERIOD};
use crate::csi::DriverSet;
use crate::desired::{Absences, Node, Resolved, Resolver};
use crate::execute::{self, Ended, Executor};
use crate::host::Progress;
use crate::manifest::Manifests;
use crate::model::{
    Actual, BootId, Connection, Desired, DriverInfo, DriverName, DriverState, Event, EventKind, Millis,
    MountTable, Problem, PublicationId, Status, VolumeKey, VolumeRecord,
};
use crate::observe::{self, ObserveError};
use crate::plan::{self, Decision, Now, Retries, World};

/// The loop's state. Everything in here is either what came in last or what was verified.
#[derive(Debug)]
pub(super) struct Loop {
    pub(super) parts: Parts,
    pub(super) status: watch::Sender<Status>,
    pub(super) executor: Arc<Executor>,
    pub(super) boot: BootId,
    pub(super) manifests: Arc<Manifests>,
    drivers: Arc<DriverSet>,
    pub(super) mounts: Arc<MountTable>,
    /// Mount points whose file system does not answer any more, and why.
    pub(super) dead: BTreeMap<PathBuf, String>,
    /// Which mounts the round under way asks, by path.
    pub(super) asked: BTreeMap<PathBuf, u64>,
    pub(super) round: JoinSet<Option<BTreeMap<PathBuf, String>>>,
    /// When to ask the file systems again that can die, ms.
    pub(super) round_at: Option<u64>,
    /// Disks that the operator accepts are looked at in here.
    pub(super) accepting: JoinSet<Vec<VolumeKey>>,
    /// Device volumes whose disk may have another size than when they were looked at.
    pub(super) resized: BTreeSet<VolumeKey>,
    pub(super) operator: Operator,
    pub(super) progress: (mpsc::UnboundedSender<Told>, mpsc::UnboundedReceiver<Told>),
    pub(super) resolver: Resolver,
    pub(super) resolved: Resolved,
    pub(super) shown_pods: Shown,
    pub(super) absences: Absences,
    pub(super) desired: Desired,
    /// Places that more than one volume has to do with: what comes up waits for what goes.
    pub(super) contested: BTreeMap<PublicationId, BTreeSet<VolumeKey>>,
    pub(super) actual: Actual,
    pub(super) records: BTreeMap<VolumeKey, VolumeRecord>,
    pub(super) damaged: Vec<Problem>,
    pub(super) retries: BTreeMap<VolumeKey, Retries>,
    pub(super) busy: BTreeMap<VolumeKey, Running>,
    pub(super) steps: JoinSet<(VolumeKey, Ended)>,
    /// Volumes to decide about in the next pass.
    pub(super) touched: BTreeSet<VolumeKey>,
    /// When to decide about a volume again though nothing changed, ms.
    alarms: BTreeMap<VolumeKey, u64>,
    pub(super) settle_again_at: Option<u64>,
    pub(super) confirm_at: Option<u64>,
    safety_at: Instant,
    /// What the brake holds, as the disk knows it: it is held after a restart too.
    pub(super) noted_brake: Vec<(VolumeKey, PublicationId)>,
    pub(super) due: Pending,
}

/// What a pass has to look at anew.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) manifests: bool,
    pub(super) settle: bool,
    pub(super) drivers: bool,
    pub(super) mounts: bool,
    /// What others left.
    pub(super) foreign: bool,
    pub(super) safety: bool,
}

impl Loop {
    /// Reconstructs what is there.
    pub(super) async fn start(
        parts: Parts,
        inputs: &mut Inputs,
        status: watch::Sender<Status>,
    ) -> Result<Self, ObserveError> {
        let found = observe::at_start(&*parts.host, &*parts.store, &parts.layout).await?;
        let boot = parts.host.boot();
        let equipment = execute::Parts {
            host: Arc::clone(&parts.host),
            store: Arc::clone(&parts.store),
            turns: parts.turns.clone(),
            layout: parts.layout.clone(),
            node: parts.node.clone(),
            ambient: Arc::clone(&parts.ambient),
            credentials: parts.credentials.clone(),
        };
        let executor = Arc::new(Executor::new(equipment, inputs.drivers.clone()));
        let mut absences =
            Absences::new(millis(parts.absence.removal_grace), parts.absence.brake_release_after.map(millis));
        let rebooted = found.records.values().any(|record| was_written_in_another_boot(record, &boot));
        let noted = parts.store.note(BRAKE_NOTE).await.map_err(ObserveError::Records)?;
        let noted_brake: Vec<(VolumeKey, PublicationId)> =
            noted.and_then(|note| serde_json::from_value(note).ok()).unwrap_or_default();
        absences.remember_braked(noted_brake.iter().cloned());
        let operator = Operator::read(&*parts.store).await?;
        let on_disks = found.records.iter().filter(|(_, record)| record.volume.disk().is_some());
        let on_disks = on_disks.map(|(key, _)| key.clone()).collect();
        let mut start = Self {
            noted_brake,
            status,
            executor,
            boot,
            manifests: Arc::default(),
            drivers: Arc::default(),
            mounts: found.mounts,
            dead: BTreeMap::new(),
            asked: BTreeMap::new(),
            round: JoinSet::new(),
            round_at: None,
            accepting: JoinSet::new(),
            // What grew while nobody looked is seen by the first look.
            resized: on_disks,
            operator,
            progress: mpsc::unbounded_channel(),
            resolver: Resolver::new(Node {
                name: parts.node.clone(),
                labels: parts.node_labels.clone(),
                tokens: parts.tokens.clone(),
            }),
            resolved: Resolved::default(),
            shown_pods: Shown::default(),
            absences,
            desired: Desired::default(),
            contested: BTreeMap::new(),
            actual: Actual { foreign: found.foreign, ..Actual::default() },
            touched: found.records.keys().cloned().collect(),
            records: found.records,
            damaged: found.damaged,
            retries: BTreeMap::new(),
            busy: BTreeMap::new(),
            steps: JoinSet::new(),
            alarms: BTreeMap::new(),
            settle_again_at: None,
            confirm_at: None,
            safety_at: Instant::now() + SAFETY_PERIOD,
            due: Pending { manifests: true, settle: true, drivers: true, ..Pending::default() },
            parts,
        };
        start.observe_all();
        start.collect_locks();
        start.round_soon();
        start.show_paused();
        start.tell(EventKind::Reconstructed { records: start.records.len(), rebooted });
        for foreign in &start.actual.foreign {
            start.tell(EventKind::ForeignFound { path: foreign.path.clone() });
        }
        start.manifests = Arc::clone(&inputs.manifests.borrow_and_update());
        start.drivers = Arc::clone(&inputs.drivers.borrow_and_update());
        Ok(start)
    }

    /// Takes what has gathered meanwhile, so that a burst costs one pass.
    pub(super) async fn gather(&mut self, inputs: &mut Inputs) {
        while let Some(ended) = self.steps.try_join_next() {
            self.take_ended(ended);
        }
        while let Ok(command) = inputs.commands.try_recv() {
            self.command(command).await;
        }
        let manifests = Arc::clone(&inputs.manifests.borrow_and_update());
        if !Arc::ptr_eq(&manifests, &self.manifests) {
            self.manifests = manifests;
            self.due.manifests = true;
        }
        let drivers = Arc::clone(&inputs.drivers.borrow_and_update());
        if !Arc::ptr_eq(&drivers, &self.drivers) {
            self.drivers = drivers;
            self.due.drivers = true;
        }
    }

    /// Turns the circle once.
    pub(super) async fn pass(&mut self) {
        let due = std::mem::take(&mut self.due);
        if due.drivers {
            self.take_drivers();
        }
        if due.mounts || due.safety {
            self.take_mounts().await;
        }
        if due.safety || due.foreign || std::mem::take(&mut self.due.foreign) {
            self.take_foreign().await;
        }
        let said_else = due.manifests && self.take_manifests();
        // What was looked at above may call for it too.
        let settled = due.settle || std::mem::take(&mut self.due.settle) || said_else;
        if settled {
            self.settle();
            self.note_brake().await;
            self.withdraw_approvals().await;
            self.show_pods();
        }
        let now = self.now();
        let mut decided = Vec::new();
        for key in std::mem::take(&mut self.touched) {
            let decision = self.decide(&key, now);
            decided.push((key, decision));
        }
        self.show(decided, now, Looked { read: due.manifests, settled });
    }

    /// Decides about one volume and begins its step, if one may begin.
    fn decide(&mut self, key: &VolumeKey, now: Now) -> Decision {
        static NONE: std::sync::OnceLock<Retries> = std::sync::OnceLock::new();
        let none = NONE.get_or_init(Retries::default);
        let orders = self.orders(key);
        let world =
            World { desired: &self.desired, actual: &self.actual, layout: &self.parts.layout, orders };
        let mut decision = plan::decide(world, key, self.retries.get(key).unwrap_or(none), now);
        match decision.again_at {
            Some(at) => self.alarms.insert(key.clone(), at),
            None => self.alarms.remove(key),
        };
        if !self.busy.contains_key(key)
            && let Some(step) = decision.step.take()
        {
            self.begin(step, now);
        }
        decision
    }

    fn take_drivers(&mut self) {
        let new: BTreeMap<DriverName, DriverState> =
            self.drivers.drivers.iter().map(|(name, entry)| (name.clone(), entry.state.clone())).collect();
        let old = std::mem::replace(&mut self.actual.drivers, new);
        // How it feels, and who would take over, is no reason to try again.
        fn essence(state: &DriverState) -> (&Connection, &DriverInfo, &PathBuf, Millis) {
            (&state.connection, &state.info, &state.endpoint, state.since)
        }
        let changed: BTreeSet<DriverName> = old
            .keys()
            .chain(self.actual.drivers.keys())
            .filter(|name| old.get(*name).map(essence) != self.actual.drivers.get(*name).map(essence))
            .cloned()
            .collect();
        if changed.is_empty() {
            return;
        }
        for key in self.volumes_of(&changed) {
            let driver_ready = self.driver_of(&key).is_some_and(|driver| {
                self.actual.drivers.get(driver).is_some_and(|state| state.connection == Connection::Ready)
            });
            // The cause has changed: what failed with the old instance is tried with the new one at once.
            if driver_ready {
                self.forget_failures(&key);
            }
            self.touched.insert(key);
        }
        // With a driver its file systems may have died, or it is back to mount them anew.
        self.round_soon();
    }

    pub(super) fn volumes_of(&self, drivers: &BTreeSet<DriverName>) -> Vec<VolumeKey> {
        let mut keys: BTreeSet<&VolumeKey> = self.records.keys().collect();
        keys.extend(self.desired.volumes.keys());
        keys.into_iter()
            .filter(|key| self.driver_of(key).is_some_and(|driver| drivers.contains(driver)))
            .cloned()
            .collect()
    }

    pub(super) fn driver_of(&self, key: &VolumeKey) -> Option<&DriverName> {
        if let Some(driver) = self.records.get(key).and_then(driver_of) {
            return Some(driver);
        }
        self.desired.volumes.get(key)?.publications.values().find_map(super::show::wanted_driver)
    }

    /// Forgets what failed of a volume, since the cause changed; returns how many steps that was.
    pub(super) fn forget_failures(&mut self, key: &VolumeKey) -> usize {
        let Some(retries) = self.retries.get_mut(key) else { return 0 };
        let forgotten = retries.reset();
        if retries.is_empty() {
            self.retries.remove(key);
        }
        forgotten
    }

    pub(super) fn mounts_changed(&mut self) {
        self.due.mounts = true;
    }

    pub(super) fn settle_soon(&mut self) {
        self.due.settle = true;
    }

    /// Takes what is due by the clock.
    pub(super) fn timer(&mut self) {
        let now = self.now().mono;
        let due: Vec<VolumeKey> =
            self.alarms.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.alarms.remove(&key);
            self.touched.insert(key);
        }
        if self.settle_again_at.is_some_and(|at| at <= now) {
            self.settle_again_at = None;
            self.due.settle = true;
        }
        if self.confirm_at.is_some_and(|at| at <= now) {
            self.confirm_at = None;
            (self.parts.reread.0)();
        }
        if self.round_at.is_some_and(|at| at <= now) {
            self.begin_round();
        }
        if Instant::now() >= self.safety_at {
            self.safety_at = Instant::now() + SAFETY_PERIOD;
            self.due.safety = true;
        }
    }

    /// Returns when the clock alone makes a pass.
    pub(super) fn next_due(&self) -> Instant {
        let soonest = self
            .alarms
            .values()
            .chain(&self.settle_again_at)
            .chain(&self.confirm_at)
            .chain(&self.round_at)
            .min();
        let soonest = soonest.map(|ms| self.parts.started + Duration::from_millis(*ms));
        soonest.map_or(self.safety_at, |at| at.min(self.safety_at))
    }

    /// Shows how far a step got.
    pub(super) fn take_progress(&mut self, (key, detail): Told) {
        if let Some(running) = self.busy.get_mut(&key) {
            running.shown.detail = Some(detail);
            self.touched.insert(key);
        }
    }

    pub(super) fn progress_of(&self, key: &VolumeKey) -> Progress {
        let (key, told) = (key.clone(), self.progress.0.clone());
        // The loop that would hear it is gone: so is who would look.
        Progress::new(move |detail| drop(told.send((key.clone(), detail))))
    }

    pub(super) fn now(&self) -> Now {
        Now { mono: millis(self.parts.started.elapsed()), wall: self.parts.ambient.now() }
    }

    pub(super) fn tell(&self, kind: EventKind) {
        self.parts.events.tell(Event { at: self.parts.ambient.now(), kind });
    }

    /// Waits for the steps under way, then gives them up.
    pub(super) async fn finish(mut self, grace: Duration) {
        let ended = async { while self.steps.join_next().await.is_some() {} };
        if tokio::time::timeout(grace, ended).await.is_err() {
            self.steps.abort_all();
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub(super) fn driver_of(record: &VolumeRecord) -> Option<&DriverName> {
    record.volume.driver()
}

fn was_written_in_another_boot(record: &VolumeRecord, boot: &BootId) -> bool {
    record
        .staging
        .iter()
        .map(|staging| &staging.boot)
        .chain(record.publications.values().map(|p| &p.boot))
        .any(|b| b != boot)
}
