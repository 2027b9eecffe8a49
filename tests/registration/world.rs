//! A registry over a directory of its own, and how a test waits for what it does.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use volumed::csi::{Configured, DriverEntry, DriverSet, Settings, registry};
use volumed::model::{Ambient, Connection, DriverName, DriverState, EventKind, Events};

/// Nothing that a test waits for takes as long.
const DEADLINE: Duration = Duration::from_secs(20);

/// A directory with a `plugins_registry`; `start` runs a registry over it.
pub(crate) struct World {
    root: tempfile::TempDir,
    settings: Settings,
    drivers: Option<watch::Receiver<Arc<DriverSet>>>,
    scanned: Option<watch::Receiver<bool>>,
    events: Option<mpsc::UnboundedReceiver<EventKind>>,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl World {
    pub(crate) fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let plugins_registry = root.path().join("plugins_registry");
        std::fs::create_dir(&plugins_registry).unwrap();
        let settings = Settings {
            plugins_registry,
            uid: nix::unistd::geteuid().as_raw(),
            deadline: Duration::from_secs(10),
            probe_period: Duration::from_secs(30),
            drivers: std::collections::BTreeMap::default(),
        };
        Self {
            root,
            settings,
            drivers: None,
            scanned: None,
            events: None,
            shutdown: CancellationToken::new(),
            tasks: JoinSet::new(),
        }
    }

    pub(crate) fn configure(mut self, driver: &str, socket: &str) -> Self {
        let endpoint = self.path(socket);
        self.settings.drivers.insert(name(driver), Configured { endpoint, deadline: None });
        self
    }

    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.settings.deadline = deadline;
        self
    }

    pub(crate) fn probe_every(mut self, period: Duration) -> Self {
        self.settings.probe_period = period;
        self
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub(crate) fn registration(&self, name: &str) -> PathBuf {
        self.settings.plugins_registry.join(name)
    }

    pub(crate) fn start(mut self) -> Self {
        let (tell, events) = mpsc::unbounded_channel();
        let events_of = Events::new(move |event| drop(tell.send(event.kind)));
        let ambient = Arc::new(Ambient::new(1, || 0));
        let (registry, drivers) = registry(self.settings.clone(), ambient, events_of);
        self.scanned = Some(registry.scanned());
        self.drivers = Some(drivers);
        self.events = Some(events);
        self.tasks.spawn(registry.run(self.shutdown.clone()));
        self
    }

    /// Waits until the driver is known and in this state.
    pub(crate) async fn driver(
        &mut self,
        driver: &str,
        wanted: impl Fn(&DriverState) -> bool,
    ) -> DriverEntry {
        let driver = name(driver);
        let drivers = self.drivers.as_mut().unwrap();
        let there = |set: &Arc<DriverSet>| set.drivers.get(&driver).is_some_and(|entry| wanted(&entry.state));
        let found = tokio::time::timeout(DEADLINE, drivers.wait_for(there)).await.ok();
        let found = found.map(|set| set.unwrap().drivers[&driver].clone());
        found.unwrap_or_else(|| panic!("{driver} did not get there: {:?}", *drivers.borrow()))
    }

    pub(crate) fn has(&self, driver: &str) -> bool {
        self.drivers.as_ref().unwrap().borrow().drivers.contains_key(&name(driver))
    }

    pub(crate) async fn scanned(&mut self) {
        let scanned = self.scanned.as_mut().unwrap();
        tokio::time::timeout(DEADLINE, scanned.wait_for(|done| *done)).await.unwrap().unwrap();
    }

    /// Waits for the next event.
    pub(crate) async fn event(&mut self) -> EventKind {
        let event = tokio::time::timeout(DEADLINE, self.events.as_mut().unwrap().recv()).await;
        event.expect("no event").unwrap()
    }

    /// Waits for the next refusal, past other events.
    pub(crate) async fn refusal(&mut self) -> EventKind {
        loop {
            let event = self.event().await;
            if matches!(event, EventKind::RegistrationRefused { .. }) {
                return event;
            }
        }
    }

    /// Waits for a condition of a fake; asked again every few milliseconds.
    pub(crate) async fn until(&self, condition: impl Fn() -> bool) {
        let waiting = async {
            while !condition() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(DEADLINE, waiting).await.expect("the condition did not come true");
    }

    pub(crate) async fn stop(&mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(DEADLINE, self.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }
}

pub(crate) fn name(driver: &str) -> DriverName {
    DriverName::new(driver).unwrap()
}

pub(crate) fn is_ready(state: &DriverState) -> bool {
    state.connection == Connection::Ready
}

pub(crate) fn is_starting(state: &DriverState) -> bool {
    matches!(&state.connection, Connection::Starting { reason } if reason.contains("not ready"))
}
