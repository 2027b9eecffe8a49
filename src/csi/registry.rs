//! Who is there: the tasks that watch over each driver, and the one set that their reports add up to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::endpoint::{Endpoint, Report, Reporter};
use super::liveness::{Life, Probing};
use super::never::NeverReached;
use super::plugin::{self, Rules};
use super::transitions::{change, is_as, same, transitions};
use super::watch::{Found, Registrations};
use super::{Driver, DriverEntry, DriverSet};
use crate::model::{
    Ambient, Connection, DriverInfo, DriverName, DriverOrigin, DriverState, Event, EventKind, Events,
};

/// Where drivers are looked for, and how they are called.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `<root>/plugins_registry`; made if it is not there.
    pub plugins_registry: PathBuf,
    /// The daemon's user: its sockets are trusted besides root's.
    pub uid: u32,
    /// How long each call of a driver may take (2 min for a kubelet).
    pub deadline: Duration,
    /// How long after one Probe of a driver that is ready the next one is made, a fifth more or less.
    pub probe_period: Duration,
    /// `[drivers."name"]` of the configuration.
    pub drivers: BTreeMap<DriverName, Configured>,
}

/// The daemon's `Settings::probe_period`.
pub const PROBE_PERIOD: Duration = Duration::from_secs(30);

/// A driver that the configuration names; it needs no registrar and goes before a registration.
#[derive(Debug, Clone)]
pub struct Configured {
    /// Its socket.
    pub endpoint: PathBuf,
    /// How long its calls may take, if not as long as the others'.
    pub deadline: Option<Duration>,
}

/// Makes a registry and the set that it publishes, which is empty until `run`.
pub fn registry(
    settings: Settings,
    ambient: Arc<Ambient>,
    events: Events,
) -> (Registry, watch::Receiver<Arc<DriverSet>>) {
    let (set, drivers) = watch::channel(Arc::new(DriverSet::default()));
    let (scanned, _) = watch::channel(false);
    let (reporter, reports) = mpsc::channel(64);
    let configured = Arc::new(settings.drivers.keys().cloned().collect::<BTreeSet<_>>());
    let rules = Rules {
        deadline: settings.deadline,
        uid: settings.uid,
        configured,
        ambient: Arc::clone(&ambient),
        probing: Probing { period: settings.probe_period, ambient: Arc::clone(&ambient) },
    };
    let registry = Registry {
        settings,
        rules,
        ambient,
        events,
        set,
        scanned,
        reporter,
        reports,
        tasks: JoinSet::new(),
        last_task: 0,
        sources: BTreeMap::new(),
        remembered: BTreeMap::new(),
    };
    (registry, drivers)
}

/// Finds the drivers and knows which of them answer.
#[derive(Debug)]
pub struct Registry {
    settings: Settings,
    rules: Rules,
    ambient: Arc<Ambient>,
    events: Events,
    set: watch::Sender<Arc<DriverSet>>,
    scanned: watch::Sender<bool>,
    reporter: mpsc::Sender<(u64, Report)>,
    reports: mpsc::Receiver<(u64, Report)>,
    tasks: JoinSet<()>,
    last_task: u64,
    sources: BTreeMap<Source, Watched>,
    /// The last known entry of each driver, kept when its registration socket goes: its volumes stay.
    remembered: BTreeMap<DriverName, DriverEntry>,
}

/// What a task watches over.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Source {
    Configured(DriverName),
    Registration(PathBuf),
}

/// A source, its task, and what that reported.
#[derive(Debug)]
struct Watched {
    task: u64,
    abort: AbortHandle,
    /// For a registration.
    found: Option<Found>,
    instance: Option<Instance>,
    /// The last refusal that was told.
    refused: Option<String>,
}

/// A driver behind a source.
#[derive(Debug, Clone)]
struct Instance {
    name: DriverName,
    entry: DriverEntry,
    made: (i64, i64),
}

impl Registry {
    /// Returns whether `plugins_registry` was looked through once; the plugins found there may still be answering.
    pub fn scanned(&self) -> watch::Receiver<bool> {
        self.scanned.subscribe()
    }

    /// Watches until `shutdown`. No driver hears of that, and no task is left behind.
    pub async fn run(mut self, shutdown: CancellationToken) {
        self.watch_configured();
        let mut sockets = Registrations::new(self.settings.plugins_registry.clone());
        loop {
            // All of these are cancel safe: nothing is taken that is not handled.
            tokio::select! {
                biased;
                () = shutdown.cancelled() => break,
                Some((task, report)) = self.reports.recv() => self.take(task, report),
                found = sockets.next() => {
                    self.reconcile(&found);
                    self.scanned.send_replace(true);
                }
                Some(ended) = self.tasks.join_next() => {
                    // A panic of a task is one of the daemon (design rule 7); cancelled ones are ours.
                    if let Err(error) = ended && let Ok(panic) = error.try_into_panic() {
                        std::panic::resume_unwind(panic);
                    }
                }
            }
        }
        self.tasks.shutdown().await;
    }

    fn watch_configured(&mut self) {
        for (name, driver) in self.settings.drivers.clone() {
            let endpoint = Endpoint {
                name: name.clone(),
                path: driver.endpoint,
                deadline: driver.deadline.unwrap_or(self.settings.deadline),
                uid: self.settings.uid,
                configured: true,
                probing: self.rules.probing.clone(),
            };
            let state = DriverState {
                connection: Connection::Disconnected { reason: "volumed has not reached it yet".to_owned() },
                info: DriverInfo::default(),
                endpoint: endpoint.path.clone(),
                origin: DriverOrigin::Configured,
                since: self.ambient.now(),
                unwell: None,
                standby: Vec::new(),
            };
            let client = Arc::new(NeverReached { deadline: endpoint.deadline });
            let instance =
                Instance { name: name.clone(), entry: DriverEntry { state, client }, made: (0, 0) };
            let source = Source::Configured(name);
            self.start(source.clone(), None, |report| async move { endpoint.keep(None, &report).await });
            if let Some(watched) = self.sources.get_mut(&source) {
                watched.instance = Some(instance);
            }
        }
        self.publish();
    }

    fn start<F>(&mut self, source: Source, found: Option<Found>, run: impl FnOnce(Reporter) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.last_task += 1;
        let task = self.last_task;
        let abort = self.tasks.spawn(run(Reporter { task, reports: self.reporter.clone() }));
        self.sources.insert(source, Watched { task, abort, found, instance: None, refused: None });
    }

    /// Starts a task for each new socket and ends those of sockets that are gone or were replaced.
    fn reconcile(&mut self, found: &BTreeMap<PathBuf, Found>) {
        let gone: Vec<Source> = self
            .sources
            .iter()
            .filter_map(|(source, watched)| match source {
                Source::Configured(_) => None,
                Source::Registration(path) => {
                    let same = found.get(path).map(|found| found.id) == watched.found.map(|found| found.id);
                    (!same).then(|| source.clone())
                }
            })
            .collect();
        for source in gone {
            if let Some(watched) = self.sources.remove(&source) {
                watched.abort.abort();
            }
        }
        for (path, found) in found {
            let source = Source::Registration(path.clone());
            if !self.sources.contains_key(&source) {
                let (path, rules) = (path.clone(), self.rules.clone());
                self.start(source, Some(*found), |report| plugin::run(path, rules, report));
            }
        }
        self.publish();
    }

    /// Takes a report, unless its task was ended meanwhile.
    fn take(&mut self, task: u64, report: Report) {
        let now = self.ambient.now();
        let Some((source, watched)) = self.sources.iter_mut().find(|(_, watched)| watched.task == task)
        else {
            return;
        };
        match report {
            Report::Answers { endpoint, client, info, life } => {
                let origin = match source {
                    Source::Configured(_) => DriverOrigin::Configured,
                    Source::Registration(socket) => DriverOrigin::Registered { socket: socket.clone() },
                };
                let (connection, unwell) = match life {
                    Life::Well => (Connection::Ready, None),
                    Life::Unwell(reason) => (Connection::Ready, Some(reason)),
                    Life::Starting(reason) => (Connection::Starting { reason }, None),
                };
                let client: Arc<dyn Driver> = client;
                let before = watched.instance.as_ref().map(|instance| &instance.entry);
                let since = before.filter(|old| {
                    Arc::ptr_eq(&old.client, &client) && is_as(&old.state.connection, &connection)
                });
                let since = since.map_or(now, |old| old.state.since);
                let state = DriverState {
                    connection,
                    info,
                    endpoint: endpoint.path,
                    origin,
                    since,
                    unwell,
                    standby: Vec::new(),
                };
                watched.refused = None;
                watched.instance = Some(Instance {
                    name: endpoint.name,
                    entry: DriverEntry { state, client },
                    made: watched.found.map_or((0, 0), |found| found.made),
                });
            }
            Report::Starting { reason } => {
                if let Some(Instance { entry: DriverEntry { state, .. }, .. }) = &mut watched.instance {
                    change(state, Connection::Starting { reason }, now);
                }
            }
            Report::Lost { reason } => {
                if let Some(instance) = &mut watched.instance {
                    change(&mut instance.entry.state, Connection::Disconnected { reason }, now);
                }
            }
            Report::Refused { reason } => {
                if watched.refused.as_ref() == Some(&reason) {
                    return;
                }
                watched.refused = Some(reason.clone());
                if let Source::Registration(socket) = source {
                    let socket = socket.clone();
                    self.tell(EventKind::RegistrationRefused { socket, reason });
                }
                return;
            }
        }
        self.publish();
    }

    /// Publishes the set, if it is another, and tells what changed.
    fn publish(&mut self) {
        let now = self.ambient.now();
        let mut drivers = self.chosen();
        for (name, entry) in &self.remembered {
            if !drivers.contains_key(name) {
                let mut entry = entry.clone();
                entry.state.standby.clear();
                let reason = match &entry.state.origin {
                    DriverOrigin::Registered { socket } => {
                        format!("its registration socket {} was removed", socket.display())
                    }
                    DriverOrigin::Configured => "it is not configured any more".to_owned(),
                };
                change(&mut entry.state, Connection::Disconnected { reason }, now);
                drivers.insert(name.clone(), entry);
            }
        }
        let before = std::mem::replace(&mut self.remembered, drivers.clone());
        let mut changed = before.len() != drivers.len();
        for (name, entry) in &drivers {
            let old = before.get(name);
            changed |= !old.is_some_and(|old| same(old, entry));
            for kind in transitions(name, old, entry) {
                self.tell(kind);
            }
        }
        if changed {
            self.set.send_replace(Arc::new(DriverSet { drivers }));
        }
    }

    /// Returns the instance to use of each driver: one that is ready before one that is starting before one that does not
    /// answer, then the newest.
    fn chosen(&self) -> BTreeMap<DriverName, DriverEntry> {
        let mut instances: Vec<&Instance> =
            self.sources.values().filter_map(|watched| watched.instance.as_ref()).collect();
        let answers = |instance: &Instance| instance.entry.state.connection == Connection::Ready;
        let rank = |instance: &Instance| match instance.entry.state.connection {
            Connection::Ready => 2,
            Connection::Starting { .. } => 1,
            Connection::Disconnected { .. } => 0,
        };
        instances.sort_by_key(|instance| std::cmp::Reverse((rank(instance), instance.made)));
        let mut drivers: BTreeMap<DriverName, DriverEntry> = BTreeMap::new();
        for instance in instances {
            match drivers.get_mut(&instance.name) {
                None => {
                    drivers.insert(instance.name.clone(), instance.entry.clone());
                }
                Some(chosen) if answers(instance) => {
                    if let DriverOrigin::Registered { socket } = &instance.entry.state.origin {
                        chosen.state.standby.push(socket.clone());
                    }
                }
                Some(_) => {}
            }
        }
        drivers
    }

    fn tell(&self, kind: EventKind) {
        self.events.tell(Event { at: self.ambient.now(), kind });
    }
}
