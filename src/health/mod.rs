//! How full and how well each published CSI volume is: asked once a minute, kept, and shown.
//!
//! A driver is asked by what it offers (NodeGetVolumeStats, NodeGetVolumeHealth); where it does not tell the usage, the file
//! system is, by `Host::usage`. Nothing here changes a volume, and nothing waits for it. With nothing published there is
//! nothing to do and no timer runs.

mod ask;
mod reply;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::csi::{Driver, DriverSet};
use crate::error::Chain;
use crate::host::{Host, HostError, Usage};
use crate::model::{
    Ambient, Connection, DriverName, Event, EventKind, Events, HealthMap, Layout, Presence, PublicationId,
    Space, Status, VolumeHealth, VolumeKey, VolumeStatus,
};
use ask::{Answer, Offers, Question};

/// A volume is asked about this often, a fifth more or less.
const PERIOD: Duration = Duration::from_secs(60);
/// The first time after it was published: from here on, and up to `FIRST_SPREAD` later.
const FIRST: Duration = Duration::from_secs(1);
const FIRST_SPREAD: Duration = Duration::from_secs(4);
/// When a step of the volume is under way.
const POSTPONED: Duration = Duration::from_secs(1);
/// File systems that are due this much later are asked together with those that are due.
const TOGETHER: Duration = Duration::from_secs(10);
/// Status is looked at this long after it changed: many changes are one look.
const GATHER: Duration = Duration::from_millis(250);
/// Calls at once to one driver.
const PER_DRIVER: usize = 4;

/// What it works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// For the usage where a driver does not tell it.
    pub host: Arc<dyn Host>,
    /// Where block devices are bound.
    pub layout: Layout,
    /// Clock and chance.
    pub ambient: Arc<Ambient>,
    /// Where it is told that a volume is not well, or well again.
    pub events: Events,
}

/// Makes the poller and what it publishes, which is empty until `run`.
pub fn poller(
    parts: Parts,
    status: watch::Receiver<Status>,
    drivers: watch::Receiver<Arc<DriverSet>>,
) -> (Poller, watch::Receiver<Arc<HealthMap>>) {
    let (publish, health) = watch::channel(Arc::new(HealthMap::new()));
    let poller = Poller {
        parts,
        status,
        drivers,
        publish,
        known: HealthMap::new(),
        errors: BTreeMap::new(),
        show_at: None,
        targets: BTreeMap::new(),
        due: BTreeSet::new(),
        waiting: BTreeSet::new(),
        busy: BTreeMap::new(),
        measuring: false,
        processes: BTreeMap::new(),
        ill: BTreeSet::new(),
        asked: JoinSet::new(),
    };
    (poller, health)
}

/// Asks, and keeps what was answered.
#[derive(Debug)]
pub struct Poller {
    parts: Parts,
    status: watch::Receiver<Status>,
    drivers: watch::Receiver<Arc<DriverSet>>,
    publish: watch::Sender<Arc<HealthMap>>,
    known: HealthMap,
    /// Why who did not answer last.
    errors: BTreeMap<(PublicationId, Whom), String>,
    /// When to publish what was learnt: many answers are one map.
    show_at: Option<Instant>,
    targets: BTreeMap<PublicationId, Target>,
    due: BTreeSet<(Instant, Whom, PublicationId)>,
    /// Due, while their driver has enough to do or their volume is being asked about for another pod.
    waiting: BTreeSet<PublicationId>,
    /// The volumes being asked about: one call at a time for each (csi.md 10, 1).
    busy: BTreeMap<VolumeKey, DriverName>,
    /// File systems are being asked.
    measuring: bool,
    /// What the process of a driver said that it does not have after all.
    processes: BTreeMap<DriverName, Process>,
    /// Told as not well.
    ill: BTreeSet<VolumeKey>,
    asked: JoinSet<Asked>,
}

/// A published volume, as far as it is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    key: VolumeKey,
    driver: DriverName,
    handle: String,
    /// What the driver is told.
    path: PathBuf,
    staging: Option<PathBuf>,
    /// Whether there is a file system of the volume's own at `path`.
    mounted: bool,
}

/// Who is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Whom {
    Driver,
    FileSystem,
}

/// A driver process, by its client, and what it answered UNIMPLEMENTED to.
#[derive(Debug)]
struct Process {
    client: Arc<dyn Driver>,
    no_stats: bool,
    no_health: bool,
}

/// What a task came back with.
#[derive(Debug)]
enum Asked {
    Driver {
        id: PublicationId,
        target: Target,
        client: Arc<dyn Driver>,
        answer: Answer,
    },
    FileSystems {
        targets: Vec<(PublicationId, Target)>,
        usage: Result<BTreeMap<PathBuf, Result<Usage, String>>, HostError>,
    },
}

impl Poller {
    /// Asks until it is told to stop, or nobody publishes a status any more.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut look = Some(Instant::now());
        loop {
            let next = self.due.first().map(|(at, ..)| *at);
            let show = self.show_at;
            // Each arm keeps what was not taken: changes stay marked, tasks stay in the set.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some(asked) = self.asked.join_next() => match asked {
                    Ok(asked) => self.take(asked),
                    // A panic is one of the daemon (style 1.7); nobody cancels these tasks.
                    Err(error) => if let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                },
                () = until(look) => {
                    look = None;
                    self.look();
                }
                () = until(show) => self.show(),
                changed = self.status.changed(), if look.is_none() => match changed {
                    Ok(()) => look = Some(Instant::now() + GATHER),
                    Err(_closed) => break,
                },
                () = until(next) => self.ask_due(),
            }
        }
        // A question that is cut off has no effect anywhere.
        self.asked.shutdown().await;
    }

    /// Takes in what is published now.
    fn look(&mut self) {
        let mut targets = BTreeMap::new();
        for (key, volume) in &self.status.borrow_and_update().volumes {
            targets.extend(published(&self.parts.layout, key, volume));
        }
        let changed: BTreeSet<&PublicationId> = self
            .targets
            .iter()
            .filter(|(id, old)| targets.get(*id) != Some(*old))
            .map(|(id, _)| id)
            .collect();
        if !changed.is_empty() {
            self.due.retain(|(_, _, id)| !changed.contains(id));
            self.waiting.retain(|id| !changed.contains(id));
        }
        for id in changed {
            let same = self.targets.get(id).map(|old| &old.key) == targets.get(id).map(|new| &new.key);
            if !same && self.known.remove(id).is_some() {
                self.show_at.get_or_insert_with(|| Instant::now() + GATHER);
            }
            self.errors.remove(&(id.clone(), Whom::Driver));
            self.errors.remove(&(id.clone(), Whom::FileSystem));
        }
        for (id, target) in &targets {
            if self.targets.get(id) != Some(target) {
                let first = Instant::now() + FIRST + FIRST_SPREAD.mul_f64(chance(&self.parts.ambient));
                self.due.insert((first, Whom::Driver, id.clone()));
                self.due.insert((first, Whom::FileSystem, id.clone()));
            }
        }
        let keys: BTreeSet<&VolumeKey> = targets.values().map(|target| &target.key).collect();
        self.ill.retain(|key| keys.contains(key));
        let names: BTreeSet<&DriverName> = targets.values().map(|target| &target.driver).collect();
        self.processes.retain(|driver, _| names.contains(driver));
        self.targets = targets;
    }

    fn ask_due(&mut self) {
        let now = Instant::now();
        let mut measure = Vec::new();
        while self.due.first().is_some_and(|(at, ..)| *at <= now)
            && let Some((_, whom, id)) = self.due.pop_first()
        {
            match whom {
                Whom::Driver => self.ask_driver(id, now),
                Whom::FileSystem => measure.push(id),
            }
        }
        if !measure.is_empty() {
            self.measure(measure, now);
        }
    }

    /// Asks a volume's driver, or puts it off.
    fn ask_driver(&mut self, id: PublicationId, now: Instant) {
        let Some(target) = self.targets.get(&id).cloned() else { return };
        let entry = self.drivers.borrow().drivers.get(&target.driver).cloned();
        // What is known stays: a driver that is away says nothing of its volumes.
        let ready = entry.filter(|entry| entry.state.connection == Connection::Ready);
        let offers = self.offers(&target.driver);
        let Some(entry) = ready.filter(|_| offers.anything()) else {
            let again = self.again(now);
            self.due.insert((again, Whom::Driver, id));
            return;
        };
        let in_progress =
            self.status.borrow().volumes.get(&target.key).is_some_and(|volume| volume.in_progress.is_some());
        if in_progress {
            self.due.insert((now + POSTPONED, Whom::Driver, id));
            return;
        }
        let of_driver = self.busy.values().filter(|driver| **driver == target.driver).count();
        if of_driver >= PER_DRIVER || self.busy.contains_key(&target.key) {
            self.waiting.insert(id);
            return;
        }
        self.busy.insert(target.key.clone(), target.driver.clone());
        let text = |path: &PathBuf| path.display().to_string();
        let question = Question {
            handle: target.handle.clone(),
            path: text(&target.path),
            staging: target.staging.as_ref().map(text).unwrap_or_default(),
        };
        let client = entry.client;
        self.asked.spawn(async move {
            let answer = ask::driver(Arc::clone(&client), offers, question).await;
            Asked::Driver { id, target, client, answer }
        });
    }

    /// Asks the file systems of the volumes whose drivers do not tell how full they are, in one question.
    fn measure(&mut self, mut ids: Vec<PublicationId>, now: Instant) {
        if self.measuring {
            // A file system that hangs keeps the last question waiting, until its deadline.
            self.due.extend(ids.into_iter().map(|id| (now + TOGETHER, Whom::FileSystem, id)));
            return;
        }
        let soon = self.due.iter().take_while(|(at, ..)| *at <= now + TOGETHER);
        let soon: Vec<_> = soon.filter(|(_, whom, _)| *whom == Whom::FileSystem).cloned().collect();
        for due in soon {
            self.due.remove(&due);
            ids.push(due.2);
        }
        let mut targets = Vec::new();
        for id in ids {
            let again = self.again(now);
            self.due.insert((again, Whom::FileSystem, id.clone()));
            if let Some(target) = self.targets.get(&id)
                && target.mounted
                && !self.offers(&target.driver).usage
            {
                targets.push((id, target.clone()));
            }
        }
        if targets.is_empty() {
            return;
        }
        self.measuring = true;
        let host = Arc::clone(&self.parts.host);
        self.asked.spawn(async move {
            let paths = targets.iter().map(|(_, target)| target.path.clone()).collect();
            let usage = host.usage(paths).await;
            Asked::FileSystems { targets, usage }
        });
    }

    /// Returns what there is to ask a driver, less what its process answered UNIMPLEMENTED to.
    fn offers(&self, driver: &DriverName) -> Offers {
        let drivers = self.drivers.borrow();
        let Some(entry) = drivers.drivers.get(driver) else { return Offers::default() };
        let said = Offers::of(&entry.state.info);
        match self.processes.get(driver).filter(|process| Arc::ptr_eq(&process.client, &entry.client)) {
            None => said,
            Some(process) => Offers {
                usage: said.usage && !process.no_stats,
                condition: said.condition && !process.no_stats,
                health: said.health && !process.no_health,
            },
        }
    }

    fn take(&mut self, asked: Asked) {
        let now = Instant::now();
        match asked {
            Asked::Driver { id, target, client, answer } => {
                self.busy.remove(&target.key);
                let waiting = std::mem::take(&mut self.waiting);
                self.due.extend(waiting.into_iter().map(|id| (now, Whom::Driver, id)));
                if answer.no_stats || answer.no_health {
                    self.not_offered(&target.driver, client, &answer);
                    // The file system tells what the driver does not.
                    self.due.retain(|(_, whom, other)| (*whom, other) != (Whom::FileSystem, &id));
                    self.due.insert((now, Whom::FileSystem, id.clone()));
                }
                if self.targets.get(&id) == Some(&target) {
                    let again = self.again(now);
                    self.due.insert((again, Whom::Driver, id.clone()));
                    self.learn(&id, &target, Whom::Driver, answer);
                }
            }
            Asked::FileSystems { targets, usage } => {
                self.measuring = false;
                let usage = usage.map_err(|error| Chain(&error).to_string());
                for (id, target) in targets {
                    let told = match &usage {
                        Ok(told) => told.get(&target.path).cloned(),
                        Err(error) => Some(Err(error.clone())),
                    };
                    let answer = match told {
                        Some(Ok(usage)) => Answer { usage: Some(spaces(usage)), ..Answer::default() },
                        Some(Err(error)) => Answer { error: Some(error), ..Answer::default() },
                        None => continue,
                    };
                    if self.targets.get(&id) == Some(&target) {
                        self.learn(&id, &target, Whom::FileSystem, answer);
                    }
                }
            }
        }
    }

    fn not_offered(&mut self, driver: &DriverName, client: Arc<dyn Driver>, answer: &Answer) {
        let process = self.processes.entry(driver.clone()).or_insert_with(|| Process {
            client: Arc::clone(&client),
            no_stats: false,
            no_health: false,
        });
        if !Arc::ptr_eq(&process.client, &client) {
            *process = Process { client, no_stats: false, no_health: false };
        }
        process.no_stats |= answer.no_stats;
        process.no_health |= answer.no_health;
    }

    /// Keeps an answer; what it does not tell stays as it was.
    fn learn(&mut self, id: &PublicationId, target: &Target, whom: Whom, answer: Answer) {
        let now = self.parts.ambient.now();
        match answer.error {
            Some(error) => self.errors.insert((id.clone(), whom), error),
            None => self.errors.remove(&(id.clone(), whom)),
        };
        let error = [Whom::Driver, Whom::FileSystem].into_iter();
        let error = error.filter_map(|whom| self.errors.get(&(id.clone(), whom))).next().cloned();
        let known = self.known.entry(id.clone()).or_insert_with(|| VolumeHealth {
            key: target.key.clone(),
            bytes: Space::default(),
            inodes: Space::default(),
            ills: Vec::new(),
            measured_at: None,
            error: None,
        });
        known.error = error;
        if answer.usage.is_some() || answer.ills.is_some() {
            known.measured_at = Some(now);
        }
        if let Some((bytes, inodes)) = answer.usage {
            (known.bytes, known.inodes) = (bytes, inodes);
        }
        if let Some(ills) = answer.ills {
            known.ills = ills;
        }
        self.tell(target);
        self.show_at.get_or_insert_with(|| Instant::now() + GATHER);
    }

    /// Tells when a volume is not well at the first of its publications, and when it is at all of them.
    fn tell(&mut self, target: &Target) {
        let Target { key, driver, .. } = target;
        let ill = self.known.values().filter(|known| known.key == *key).find_map(VolumeHealth::ill);
        let kind = match ill {
            Some(ill) if self.ill.insert(key.clone()) => {
                EventKind::VolumeUnwell { key: key.clone(), driver: driver.clone(), reason: ill.to_string() }
            }
            None if self.ill.remove(key) => {
                EventKind::VolumeWell { key: key.clone(), driver: driver.clone() }
            }
            Some(_) | None => return,
        };
        self.parts.events.tell(Event { at: self.parts.ambient.now(), kind });
    }

    fn show(&mut self) {
        self.show_at = None;
        self.publish.send_replace(Arc::new(self.known.clone()));
    }

    fn again(&self, now: Instant) -> Instant {
        now + PERIOD.mul_f64(0.8 + chance(&self.parts.ambient) * 0.4)
    }
}

/// Returns what is published of a volume and can be asked about.
fn published<'a>(
    layout: &'a Layout,
    key: &'a VolumeKey,
    volume: &'a VolumeStatus,
) -> impl Iterator<Item = (PublicationId, Target)> + 'a {
    let staged = volume.staging.as_ref().filter(|(_, presence)| *presence == Presence::Yes);
    let csi = volume.csi.as_ref().into_iter();
    csi.flat_map(move |(driver, handle)| {
        let there = volume.publications.iter().filter(|(_, publication)| {
            publication.presence == Presence::Yes && publication.desired != "released"
        });
        there.map(move |(id, publication)| {
            let block = publication.path == layout.absolute(&layout.block_link(id));
            let path = if block { layout.absolute(&layout.block_map(id)) } else { publication.path.clone() };
            let target = Target {
                key: key.clone(),
                driver: driver.clone(),
                handle: handle.clone(),
                path,
                staging: staged.map(|(path, _)| path.clone()),
                mounted: !block && !publication.not_a_mount_point,
            };
            (id.clone(), target)
        })
    })
}

fn spaces(usage: Usage) -> (Space, Space) {
    let Usage { total_bytes, available_bytes, used_bytes, total_inodes, free_inodes } = usage;
    let space = |total: u64, used, available| Space {
        total: (total > 0).then_some(total),
        used: (total > 0).then_some(used),
        available: (total > 0).then_some(available),
    };
    (
        space(total_bytes, used_bytes, available_bytes),
        space(total_inodes, total_inodes.saturating_sub(free_inodes), free_inodes),
    )
}

/// Waits for a moment; for ever without one.
async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Returns a number from 0 to 1.
fn chance(ambient: &Ambient) -> f64 {
    f64::from(u32::try_from(ambient.random() >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests;
