//! One life of the daemon: the real loop, with the simulated seams and a manifest reader and a driver registry to feed it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use volumed::csi::{DriverEntry, DriverSet};
use volumed::manifest::Manifests;
use volumed::model::{
    Ambient, Connection, DriverInfo, DriverName, DriverOrigin, DriverState, Events, Layout, Status,
};
use volumed::reconcile::{self, AbsenceSettings, Inputs, Parts, REPUBLISH, Reread};

use super::driver::SimDriver;
use super::host::SimHost;
use super::manifests::Reading;
use super::store::SimStore;
use super::wish::{DRIVERS, Damage, Wish};
use super::world::{Contact, ROOT, World};

/// The manifest reader of one life: what it reads, and how often it did.
#[derive(Debug)]
struct Reader {
    world: World,
    reading: Reading,
    wish: Wish,
    damage: Damage,
    generation: u64,
    started: Instant,
    manifests: watch::Sender<Arc<Manifests>>,
}

impl Reader {
    fn read(&mut self) {
        self.generation += 1;
        self.world.lock().has_read = true;
        let began = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(0);
        let manifests = self.reading.read(&self.wish, &self.damage, self.generation, began);
        self.manifests.send_replace(Arc::new(manifests));
    }
}

/// One life of the daemon.
#[derive(Debug)]
pub struct Daemon {
    task: tokio::task::JoinHandle<()>,
    reader: Arc<Mutex<Reader>>,
    drivers: watch::Sender<Arc<DriverSet>>,
    pub status: watch::Receiver<Status>,
    pub commands: mpsc::Sender<reconcile::Command>,
}

impl Daemon {
    pub fn start(world: &World) -> Self {
        let (manifests, manifests_in) = watch::channel(Arc::new(Manifests::default()));
        let (drivers, drivers_in) = watch::channel(Arc::new(DriverSet::default()));
        let (commands, commands_in) = mpsc::channel(4);
        let (status_out, status) = watch::channel(Status::default());
        let started = Instant::now();
        let told = world.clone();
        world.lock().has_read = false;
        let reader = Arc::new(Mutex::new(Reader {
            world: world.clone(),
            reading: Reading::default(),
            wish: Wish::default(),
            damage: Damage { incomplete: true, ..Damage::default() },
            generation: 0,
            started,
            manifests,
        }));
        let asked = Arc::clone(&reader);
        let parts = Parts {
            host: Arc::new(SimHost::new(world.clone())),
            store: Arc::new(SimStore::new(world.clone())),
            turns: volumed::csi::Turns::default(),
            layout: Layout::new(ROOT),
            node: "node".to_owned(),
            tokens: volumed::desired::TokenFiles::default(),
            node_labels: BTreeMap::new(),
            credentials: None,
            ambient: Arc::new(Ambient::new(world.below(u64::MAX), move || {
                i64::try_from(started.elapsed().as_millis()).unwrap_or(0)
            })),
            started,
            events: Events::new(move |event| told.tell(|| format!("event {:?}", event.kind))),
            // Where the world goes with more volumes than may go at once, nobody is there to approve it.
            absence: AbsenceSettings {
                removal_grace: Duration::from_secs(1),
                brake_release_after: Some(Duration::from_secs(60)),
            },
            republish: REPUBLISH,
            reread: Reread::new(move || asked.lock().expect("nobody panicked").read()),
        };
        let inputs = Inputs {
            manifests: manifests_in,
            drivers: drivers_in,
            commands: commands_in,
            shutdown: CancellationToken::new(),
        };
        let task = tokio::spawn(async move {
            reconcile::run(parts, inputs, status_out).await.expect("the simulated disk can be read");
        });
        world.lock().operator.status = Some(status.clone());
        let daemon = Self { task, reader, drivers, status, commands };
        daemon.connect(world);
        daemon
    }

    /// Tells what is known of the drivers now.
    pub fn connect(&self, world: &World) {
        let minds = world.lock().drivers.clone();
        let mut drivers = BTreeMap::new();
        for (driver, mind) in minds.iter().enumerate() {
            let connection = match mind.contact {
                Contact::Ready => Connection::Ready,
                Contact::Starting => Connection::Starting { reason: "it warms up".to_owned() },
                Contact::Disconnected => Connection::Disconnected { reason: "it crashed".to_owned() },
                Contact::Gone => continue,
            };
            let since = i64::try_from(world.lines[driver].borrow().connection).unwrap_or(0);
            let state = DriverState {
                connection,
                info: DriverInfo {
                    node_id: "node".to_owned(),
                    stage_unstage: mind.stages,
                    expand_volume: mind.expands,
                    max_volumes: i64::try_from(mind.limit).unwrap_or(0),
                    ..DriverInfo::default()
                },
                endpoint: "/csi.sock".into(),
                origin: DriverOrigin::Configured,
                since,
                unwell: None,
                standby: Vec::new(),
            };
            let client = Arc::new(SimDriver::new(world.clone(), driver));
            let name = DriverName::new(DRIVERS[driver]).expect("good");
            drivers.insert(name, DriverEntry { state, client });
        }
        self.drivers.send_replace(Arc::new(DriverSet { drivers }));
    }

    /// Lets the manifests be read, in the state they are in.
    pub fn read(&self, wish: &Wish, damage: Damage) {
        let mut reader = self.reader.lock().expect("nobody panicked");
        reader.wish = wish.clone();
        reader.damage = damage;
        reader.read();
    }

    /// Kills it as it is.
    pub async fn crash(self) {
        self.task.abort();
        if let Err(error) = self.task.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}
