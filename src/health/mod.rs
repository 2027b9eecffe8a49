//! How full and how well each published CSI or NFS volume is: asked once a minute, kept, and shown.
//!
//! A driver is asked by what it offers (NodeGetVolumeStats, NodeGetVolumeHealth); where it does not tell the usage, the file
//! system is, by `Host::usage`. Nothing here changes a volume, and nothing waits for it. With nothing published there is
//! nothing to do and no timer runs.

mod ask;
mod learn;
mod reply;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::csi::{Driver, DriverSet, Turns};
use crate::host::{Host, HostError, Usages};
use crate::model::{
    Ambient, Connection, DriverName, Events, HealthMap, Layout, PublicationId, Status, VolumeKey,
};
use ask::{Answer, Offers, Question};
use target::{Of, Target, published};

/// A volume is asked about this often, a fifth more or less.
const PERIOD: Duration = Duration::from_secs(60);
/// And a server that no driver answers for about this often (design 4: the health round).
const PERIOD_OF_SERVERS: Duration = Duration::from_secs(30);
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
    /// A volume is asked about only while nothing else is called for it.
    pub turns: Turns,
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
    Driver { id: PublicationId, target: Box<Target>, client: Arc<dyn Driver>, answer: Box<Answer> },
    FileSystems { targets: Vec<(PublicationId, Target)>, usage: Result<Usages, HostError> },
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
                if target.driver().is_some() {
                    self.due.insert((first, Whom::Driver, id.clone()));
                }
                self.due.insert((first, Whom::FileSystem, id.clone()));
            }
        }
        let keys: BTreeSet<&VolumeKey> = targets.values().map(|target| &target.key).collect();
        self.ill.retain(|key| keys.contains(key));
        let names: BTreeSet<&DriverName> = targets.values().filter_map(Target::driver).collect();
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
        let Of::Driver(driver, handle) = target.of.clone() else { return };
        let entry = self.drivers.borrow().drivers.get(&driver).cloned();
        // What is known stays: a driver that is away says nothing of its volumes.
        let ready = entry.filter(|entry| entry.state.connection == Connection::Ready);
        let offers = self.offers(&driver);
        let Some(entry) = ready.filter(|_| offers.anything()) else {
            let again = self.again(now);
            self.due.insert((again, Whom::Driver, id));
            return;
        };
        let of_driver = self.busy.values().filter(|other| **other == driver).count();
        if of_driver >= PER_DRIVER || self.busy.contains_key(&target.key) {
            self.waiting.insert(id);
            return;
        }
        let Some(turn) = self.parts.turns.try_take(&target.key) else {
            self.due.insert((now + POSTPONED, Whom::Driver, id));
            return;
        };
        self.busy.insert(target.key.clone(), driver);
        let text = |path: &PathBuf| path.display().to_string();
        let question = Question {
            handle,
            path: text(&target.path),
            staging: target.staging.as_ref().map(text).unwrap_or_default(),
        };
        let client = entry.client;
        self.asked.spawn(async move {
            let answer = ask::driver(Arc::clone(&client), offers, question).await;
            drop(turn);
            Asked::Driver { id, target: Box::new(target), client, answer: Box::new(answer) }
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
            let Some(target) = self.targets.get(&id) else { continue };
            let (period, asked) = match &target.of {
                Of::Driver(driver, _) => (PERIOD, target.mounted && !self.offers(driver).usage),
                Of::Server(_) => (PERIOD_OF_SERVERS, target.mounted),
                Of::Disk => (PERIOD, target.mounted),
            };
            let again = self.spread(now, period);
            self.due.insert((again, Whom::FileSystem, id.clone()));
            if asked {
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

    fn show(&mut self) {
        self.show_at = None;
        self.publish.send_replace(Arc::new(self.known.clone()));
    }

    fn again(&self, now: Instant) -> Instant {
        self.spread(now, PERIOD)
    }

    fn spread(&self, now: Instant, period: Duration) -> Instant {
        now + period.mul_f64(0.8 + chance(&self.parts.ambient) * 0.4)
    }
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
mod fakes_tests;
#[cfg(test)]
mod tests;
