//! The real loop, plan, execute and records over a simulated host, driver and disk; seeded faults and crashes at any await point.
//!
//! `VOLUMED_SIM_SEED=N` replays one seed and prints its story; `VOLUMED_SIM_SEEDS=N` runs that many.

#![expect(
    clippy::expect_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test: its helpers may fail loudly and spawn tasks on a runtime of their own"
)]

mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use volumed::csi::{DriverEntry, DriverSet};
use volumed::desired::TokenFiles;
use volumed::manifest::Manifests;
use volumed::model::{
    Ambient, Connection, DriverInfo, DriverName, DriverOrigin, DriverState, Events, Layout, Plugin, Presence,
    Status,
};
use volumed::reconcile::{self, AbsenceSettings, Inputs, Parts, Reread};

use sim::driver::SimDriver;
use sim::host::SimHost;
use sim::store::SimStore;
use sim::wish::{self, PodWish, Wish};
use sim::world::{Node, ROOT, State, World};

/// The manifest reader of one life: what it reads, and how often it did.
struct Reader {
    wish: Wish,
    incomplete: bool,
    generation: u64,
    started: Instant,
    manifests: watch::Sender<Arc<Manifests>>,
}

impl Reader {
    fn read(&mut self) {
        // Nobody asks a reader that has read nothing yet.
        self.generation += 1;
        let began = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(0);
        let manifests = wish::reading(&self.wish, self.generation, began, self.incomplete);
        self.manifests.send_replace(Arc::new(manifests));
    }
}

/// One life of the daemon.
struct Daemon {
    task: tokio::task::JoinHandle<()>,
    reader: Arc<Mutex<Reader>>,
    drivers: watch::Sender<Arc<DriverSet>>,
    status: watch::Receiver<Status>,
    _commands: mpsc::Sender<reconcile::Command>,
}

impl Daemon {
    fn start(world: &World, stages: bool) -> Self {
        let (manifests, manifests_in) = watch::channel(Arc::new(Manifests::default()));
        let (drivers, drivers_in) = watch::channel(Arc::new(DriverSet::default()));
        let (commands, commands_in) = mpsc::channel(4);
        let (status_out, status) = watch::channel(Status::default());
        let started = Instant::now();
        let told = world.clone();
        let reader = Reader { wish: Wish::new(), incomplete: true, generation: 0, started, manifests };
        let reader = Arc::new(Mutex::new(reader));
        let asked = Arc::clone(&reader);
        let parts = Parts {
            host: Arc::new(SimHost::new(world.clone())),
            store: Arc::new(SimStore::new(world.clone())),
            layout: Layout::new(ROOT),
            node: "node".to_owned(),
            tokens: TokenFiles::default(),
            ambient: Arc::new(Ambient::new(world.below(u64::MAX), move || {
                i64::try_from(started.elapsed().as_millis()).unwrap_or(0)
            })),
            started,
            events: Events::new(move |event| told.tell(format!("event {:?}", event.kind))),
            absence: AbsenceSettings { removal_grace: Duration::from_secs(1), brake_release_after: None },
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
        let daemon = Self { task, reader, drivers, status, _commands: commands };
        daemon.connect(world, stages, true);
        daemon
    }

    fn connect(&self, world: &World, stages: bool, ready: bool) {
        let state = DriverState {
            connection: if ready {
                Connection::Ready
            } else {
                Connection::Disconnected { reason: "it crashed".to_owned() }
            },
            info: DriverInfo { node_id: "node".to_owned(), stage_unstage: stages, ..DriverInfo::default() },
            endpoint: "/csi.sock".into(),
            origin: DriverOrigin::Configured,
            since: 0,
            unwell: None,
            standby: Vec::new(),
        };
        let client = Arc::new(SimDriver::new(world.clone(), stages));
        let name = DriverName::new(wish::DRIVER).expect("good");
        let drivers = BTreeMap::from([(name, DriverEntry { state, client })]);
        self.drivers.send_replace(Arc::new(DriverSet { drivers }));
    }

    fn read(&self, wish: &Wish, incomplete: bool) {
        let mut reader = self.reader.lock().expect("nobody panicked");
        reader.wish = wish.clone();
        reader.incomplete = incomplete;
        reader.read();
    }

    async fn crash(self) {
        self.task.abort();
        if let Err(error) = self.task.await
            && error.is_panic()
        {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}

fn random_pod(world: &World) -> PodWish {
    PodWish {
        claims: (0..wish::VOLUMES).filter(|_| world.below(3) == 0).collect(),
        inline: world.below(4) == 0,
        empty_dir: world.below(3) == 0,
        leaving: false,
    }
}

/// Lives through a few seconds full of trouble, then without, and says what is wrong at the end.
async fn live(world: &World) -> Vec<String> {
    world.tell("begin");
    let stages = world.below(4) > 0;
    let forgets = world.below(2) == 0;
    let mut wish: Wish = BTreeMap::new();
    let steady = PodWish { claims: BTreeSet::from([0, 3]), inline: false, empty_dir: true, leaving: false };
    for place in wish::places("steady", &steady).iter().filter(|place| place.plugin == Plugin::Csi) {
        world.lock().always_wanted.insert(wish::target(place));
    }
    wish.insert("steady".to_owned(), steady);
    let mut daemon = Daemon::start(world, stages);
    daemon.read(&wish, false);
    for _ in 0..6 + world.below(10) {
        tokio::time::sleep(Duration::from_millis(world.below(400))).await;
        match world.below(12) {
            0..=3 => {
                let name = format!("pod{}", world.below(3));
                let pod = random_pod(world);
                world.tell(format!("wish {name} {pod:?}"));
                wish.insert(name, pod);
                daemon.read(&wish, false);
            }
            4 | 5 => {
                let name = format!("pod{}", world.below(3));
                world.tell(format!("gone {name}"));
                wish.remove(&name);
                daemon.read(&wish, false);
            }
            6 => {
                let name = format!("pod{}", world.below(3));
                if let Some(pod) = wish.get_mut(&name) {
                    world.tell(format!("deleting {name}"));
                    pod.leaving = true;
                }
                daemon.read(&wish, false);
            }
            7 => {
                world.tell("a reading that lacks everything and is incomplete");
                daemon.read(&Wish::new(), true);
                tokio::time::sleep(Duration::from_millis(1500)).await;
                daemon.read(&Wish::new(), true);
                tokio::time::sleep(Duration::from_millis(world.below(500))).await;
                daemon.read(&wish, false);
            }
            8 => {
                world.tell("the driver goes and comes back");
                daemon.connect(world, stages, false);
                tokio::time::sleep(Duration::from_millis(world.below(2000))).await;
                daemon.connect(world, stages, true);
            }
            9 | 10 => {
                world.tell("kill -9");
                daemon.crash().await;
                tokio::time::sleep(Duration::from_millis(world.below(300))).await;
                daemon = Daemon::start(world, stages);
                tokio::time::sleep(Duration::from_millis(world.below(100))).await;
                daemon.read(&wish, false);
            }
            _ => {
                world.tell("power cut");
                daemon.crash().await;
                // What the driver was doing ends with the boot.
                tokio::time::sleep(Duration::from_secs(700)).await;
                world.reboot(forgets);
                daemon = Daemon::start(world, stages);
                daemon.read(&wish, false);
            }
        }
    }
    world.tell("the trouble ends");
    world.lock().faults = false;
    daemon.read(&wish, false);
    // Longer than any deadline and the longest pause between two tries.
    tokio::time::sleep(Duration::from_secs(1800)).await;
    // Three safety passes in a world at rest: they find nothing that an event missed.
    let done = |state: &State| (state.calls, state.story.len());
    let before = done(&world.lock());
    tokio::time::sleep(Duration::from_secs(900)).await;
    let after = done(&world.lock());
    if after != before {
        world.violation("a safety pass found something to do in a world at rest");
    }
    let mut wrong = world.lock().violations.clone();
    wrong.extend(differences(world, &wish, &daemon.status.borrow(), stages));
    daemon.crash().await;
    wrong
}

/// Compares the world with the wish.
fn differences(world: &World, wish: &Wish, status: &Status, stages: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let state = world.lock();
    let mut mounts: BTreeSet<&Path> = state.mounts.iter().map(|mount| mount.point.as_path()).collect();
    let mut volumes: BTreeSet<u64> = BTreeSet::new();
    for (name, pod) in wish.iter().filter(|(_, pod)| !pod.leaving) {
        volumes.extend(&pod.claims);
        for place in wish::places(name, pod) {
            let shown = status.volumes.values().find_map(|volume| volume.publications.get(&place));
            if shown.map(|shown| shown.presence) != Some(Presence::Yes) {
                wrong.push(format!("{place} is not shown as published: {shown:?}"));
            }
            if place.plugin != Plugin::Csi {
                continue;
            }
            let target = wish::target(&place);
            let data = target.parent().map(|parent| parent.join("vol_data.json"));
            if !data.is_some_and(|data| matches!(state.nodes.get(&data), Some(Node::File(_)))) {
                wrong.push(format!("{place} has no vol_data.json"));
            }
            if place.spec.as_str() != "pv3" && !mounts.remove(target.as_path()) {
                wrong.push(format!("{place} is not mounted"));
            }
        }
    }
    for volume in volumes {
        let staged = state.staged.get(&wish::handle(volume));
        match staged {
            None if stages => wrong.push(format!("volume {volume} is not staged")),
            None => {}
            Some(path) if wish::handle(volume).contains("unmounted") || mounts.remove(path.as_path()) => {}
            Some(path) => wrong.push(format!("volume {volume} is not mounted at {}", path.display())),
        }
    }
    wrong.extend(mounts.iter().map(|point| format!("a mount is left at {}", point.display())));
    // An emptyDir that a pod no longer lists is kept until the pod goes, so the directories of pods that stay are not judged.
    let pods: BTreeSet<String> =
        wish.iter().filter(|(_, pod)| !pod.leaving).map(|(name, _)| format!("uid-{name}")).collect();
    for path in state.nodes.keys() {
        let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).skip(2).collect();
        match parts.as_slice() {
            ["pods", pod] if !pods.contains(*pod) => {
                wrong.push(format!("the directory {} is left", path.display()));
            }
            ["plugins", "kubernetes.io", "csi", _, _]
                if !state.staged.values().any(|staged| staged.starts_with(path)) && stages =>
            {
                wrong.push(format!("the directory {} is left", path.display()));
            }
            _ => {}
        }
    }
    for (key, disk) in &state.records {
        if disk.written.is_some() && !status.volumes.contains_key(key) {
            wrong.push(format!("the record of {key} is left"));
        }
    }
    wrong
}

/// Runs one seed; returns its story if something is wrong.
fn run(seed: u64) -> Result<u64, String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime can be made");
    let world = World::new(seed);
    let wrong = runtime.block_on(live(&world));
    runtime.shutdown_background();
    let state = world.lock();
    if wrong.is_empty() {
        return Ok(state.calls);
    }
    let story = state.story.join("\n  ");
    Err(format!("seed {seed}:\n  {story}\nwrong at the end:\n  {}", wrong.join("\n  ")))
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn the_world_comes_to_what_the_manifests_say_whatever_fails() {
    if let Some(seed) = number("VOLUMED_SIM_SEED") {
        match run(seed) {
            Ok(calls) => eprintln!("seed {seed}: {calls} calls, all is well"),
            Err(story) => panic!("{story}"),
        }
        return;
    }
    let seeds = number("VOLUMED_SIM_SEEDS").unwrap_or(500);
    let first = number("VOLUMED_SIM_FIRST").unwrap_or(0);
    let mut calls = 0;
    for seed in first..first + seeds {
        match run(seed) {
            Ok(made) => calls += made,
            Err(story) => panic!("{story}\nreplay with VOLUMED_SIM_SEED={seed}"),
        }
    }
    eprintln!("seeds {first} to {}: {calls} calls to drivers, no rule broken", first + seeds - 1);
    assert!(calls > seeds * 4, "the seeds made too few calls to prove anything: {calls}");
}

#[test]
fn a_seed_replays_exactly() {
    let story = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime can be made");
        let world = World::new(seed);
        let wrong = runtime.block_on(live(&world));
        let calls = world.lock().calls;
        let told = world.lock().story.clone();
        (wrong, calls, told)
    };
    for seed in [1, 7, 42] {
        assert_eq!(story(seed), story(seed), "seed {seed}");
    }
}
