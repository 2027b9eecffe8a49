//! What goes wrong: edits at bad moments, damaged files, crashes, drivers that come and go, mounts that others make.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tokio::time::{sleep, timeout};
use volumed::model::Scope;

use super::daemon::Daemon;
use super::disks::SimDisk;
use super::strangers::is_strange;
use super::wish::{self, DRIVERS, Damage, PodWish, VOLUMES, Wish};
use super::world::{Contact, World};

/// A world, what is wished of it, and who sees to that.
#[derive(Debug)]
pub struct Life {
    pub world: World,
    pub wish: Wish,
    pub daemon: Daemon,
    /// Pods that were wanted and were taken away last.
    gone: BTreeMap<String, PodWish>,
}

/// The pod that is wanted from the first to the last moment.
const STEADY: &str = "steady";

impl Life {
    pub fn begin(world: &World) -> Self {
        world.tell(|| "begin".to_owned());
        for driver in 0..DRIVERS.len() {
            let (stages, forgets, expands) = (world.below(4) > 0, world.below(2) == 0, world.below(3) > 0);
            let limit =
                if world.below(5) == 0 { 1 + usize::try_from(world.below(3)).unwrap_or(0) } else { 0 };
            let mut state = world.lock();
            state.drivers[driver].limit = limit;
            state.drivers[driver].expands = expands;
            state.drivers[driver].stages = stages;
            state.drivers[driver].forgets = forgets;
        }
        if world.below(3) == 0 {
            world.has_had_a_kubelet();
        }
        let device = world.below(2) == 0;
        let disk = SimDisk::blank("d", 1 << 30);
        world.lock().disks.insert(wish::DISK.into(), disk);
        world.lock().target.disk = Some(super::luns::disk());
        let mut wish = Wish { republish: world.below(8) == 0, device, ..Wish::default() };
        let steady = PodWish { claims: [0, 3].into(), empty_dir: true, ..PodWish::default() };
        wish.pods.insert(STEADY.to_owned(), steady);
        let life = Self { world: world.clone(), wish, daemon: Daemon::start(world), gone: BTreeMap::new() };
        life.read();
        life
    }

    /// Lets the manifests be read as they are.
    pub fn read(&self) {
        self.world.lock().wish(&self.wish);
        self.daemon.read(&self.wish, Damage::default());
    }

    /// Lets it live for a while.
    pub async fn wait(&self, ms: u64) {
        sleep(Duration::from_millis(self.world.below(ms))).await;
    }

    /// One thing goes wrong, or only differently.
    pub async fn trouble(mut self) -> Self {
        // What cannot be taken down just now hurts most when it is wanted again.
        if self.world.lock().is_any_stuck() && self.world.below(2) == 0 {
            self.want();
            return self;
        }
        match self.world.below(52) {
            0..=8 => self.want(),
            9..=11 => self.remove(),
            12 | 13 => self.delete(),
            14..=16 => self.edit(),
            17..=19 => self.damage_manifests().await,
            20 => self.move_away_and_back().await,
            21..=25 => self.flap(),
            26 => self.retool().await,
            27..=29 => self.strange_mount(),
            30 => self.strange_unmount(),
            31 => self.vanish(),
            32 => self.fill_disk().await,
            33 | 34 => self.open_something(),
            35..=40 => self.command().await,
            41 => self.wait(200_000).await,
            42 => return self.kill().await,
            43..=45 => return self.die().await,
            48 | 49 => self.twin(),
            50 | 51 => self.server(),
            _ => return self.power_cut().await,
        }
        self
    }

    /// Nothing goes wrong any more, and what did is mended.
    pub async fn peace(&mut self) {
        self.settle_twins();
        let world = &self.world;
        world.tell(|| "the trouble ends".to_owned());
        world.lock().faults = false;
        world.lock().server_is_silent = false;
        world.lock().held.clear();
        while !world.lock().strangers.is_empty() {
            if !world.unmount_if(is_strange) {
                sleep(Duration::from_millis(20)).await;
            }
        }
        self.tidy();
        for driver in 0..DRIVERS.len() {
            if world.lock().drivers[driver].hangs {
                world.tell(|| format!("driver {driver} is restarted"));
                world.restart_driver(driver);
            }
            // A driver that does not undo what it did leaves it to a person; here that person brings the old driver back.
            let stages_again = {
                let state = world.lock();
                !state.drivers[driver].stages
                    && (state.audit.has_staged(driver) || state.records_call(driver))
            };
            if stages_again {
                world.tell(|| format!("driver {driver} stages again"));
                self.replace(driver).await;
                world.lock().drivers[driver].stages = true;
            }
            world.lock().drivers[driver].contact = Contact::Ready;
        }
        self.daemon.connect(world);
        if !self.resume(Scope::All).await {
            world.violation("what is paused cannot be resumed");
        }
        self.read();
    }

    pub fn any_pod(&self) -> String {
        format!("pod{}", self.world.below(3))
    }

    fn want(&mut self) {
        // What was taken away is often put back as it was.
        let gone: Vec<String> = self.gone.keys().cloned().collect();
        let again = self.world.lock().is_any_stuck();
        let back = self.world.one_of(&gone).filter(|_| again || self.world.below(2) == 0);
        let back = back.and_then(|name| self.gone.remove_entry(name));
        let (name, pod) = back.unwrap_or_else(|| (self.any_pod(), wish::pod(&self.world)));
        let pod = self.fitting(pod);
        self.world.tell(|| format!("wish {name} {pod:?}"));
        self.wish.pods.insert(name, pod);
        self.read();
    }

    fn remove(&mut self) {
        let name = self.any_pod();
        self.world.tell(|| format!("gone {name}"));
        if let Some(pod) = self.wish.pods.remove(&name) {
            self.gone.insert(name, PodWish { leaving: false, ..pod });
        }
        self.read();
    }

    fn delete(&mut self) {
        let name = self.any_pod();
        if let Some(pod) = self.wish.pods.get_mut(&name) {
            self.world.tell(|| format!("deleting {name}"));
            self.gone.insert(name, pod.clone());
            pod.leaving = true;
        }
        self.read();
    }

    /// The attributes or the size of a PV, or how a pod uses its claims.
    fn edit(&mut self) {
        // Edits hurt most where the outcome of a call is open.
        let in_doubt = self.world.lock().in_doubt();
        let volume = match self.world.one_of(&in_doubt) {
            Some(volume) if self.world.below(2) == 0 => *volume,
            Some(_) | None => self.world.below(VOLUMES),
        };
        let name = self.any_pod();
        match self.wish.pods.get_mut(&name) {
            Some(pod) if self.world.below(4) == 0 => {
                match self.world.below(4) {
                    0 => pod.local = !pod.local,
                    1 => pod.share = !pod.share,
                    2 => pod.lun = !pod.lun,
                    _ => pod.empty_dir = !pod.empty_dir,
                }
                self.world.tell(|| format!("edit {name} {pod:?}"));
            }
            Some(pod) if self.world.below(3) == 0 => {
                pod.read_only = !pod.read_only;
                self.world.tell(|| format!("edit {name} {pod:?}"));
            }
            Some(_) | None if self.world.below(2) == 0 => {
                self.wish.grown[wish::index(volume)] += 1;
                self.world.tell(|| format!("pv{volume} grows"));
            }
            Some(_) | None if self.world.below(3) == 0 && self.wish.device => {
                self.world.tell(|| "the disk grows".to_owned());
                if let Some(disk) = self.world.lock().disks.get_mut(Path::new(wish::DISK)) {
                    disk.bytes += 1 << 30;
                }
                self.world.disk_bell.notify_one();
            }
            Some(_) | None if self.world.below(3) == 0 => {
                self.wish.moved = !self.wish.moved;
                self.world.tell(|| format!("the local volume is another directory: {}", self.wish.moved));
            }
            Some(_) | None => {
                self.wish.attributes[wish::index(volume)] += 1;
                self.world.tell(|| format!("edit pv{volume}"));
            }
        }
        self.read();
    }

    /// Files are half written, unreadable or away while they are read, and whole again later.
    async fn damage_manifests(&self) {
        let world = &self.world;
        let files = wish::files(&self.wish);
        let some = |percent: u64| files.iter().filter(move |_| world.below(100) < percent).cloned();
        let damage = match world.below(4) {
            0 => Damage { incomplete: true, missing: files.iter().cloned().collect(), ..Damage::default() },
            1 => Damage { incomplete: true, missing: some(40).collect(), broken: some(20).collect() },
            2 => Damage { broken: some(40).collect(), ..Damage::default() },
            // A complete reading that lacks objects which a pod needs. Pods that it lacks would be gone.
            _ => {
                let is_needed = |file: &String| !self.wish.pods.contains_key(file);
                Damage { missing: some(40).filter(is_needed).collect(), ..Damage::default() }
            }
        };
        world.tell(|| format!("manifests are damaged: {damage:?}"));
        self.daemon.read(&self.wish, damage.clone());
        for _ in 0..world.below(3) {
            self.wait(2500).await;
            self.daemon.read(&self.wish, damage.clone());
        }
        self.wait(1500).await;
        world.tell(|| "manifests are whole".to_owned());
        self.read();
    }

    /// An editor moves files away and back in less time than makes an absence.
    async fn move_away_and_back(&self) {
        let missing = self.wish.pods.keys().filter(|_| self.world.below(2) == 0).cloned().collect();
        self.world.tell(|| format!("moved away for a moment: {missing:?}"));
        self.daemon.read(&self.wish, Damage { missing, ..Damage::default() });
        self.wait(990).await;
        self.world.tell(|| "moved back".to_owned());
        self.read();
    }

    /// A driver goes, comes back, or becomes another process.
    fn flap(&self) {
        let world = &self.world;
        let driver = usize::try_from(world.below(2)).unwrap_or(0);
        let contact = world.lock().drivers[driver].contact;
        if contact == Contact::Ready {
            let contact = [Contact::Starting, Contact::Disconnected, Contact::Gone];
            let contact = *world.one_of(&contact).expect("there are three");
            world.lock().drivers[driver].contact = contact;
            world.lines[driver].send_modify(|line| line.connection += 1);
            match world.below(6) {
                0 => world.tell(|| format!("the connection to driver {driver} breaks: {contact:?}")),
                1 => {
                    world.tell(|| format!("driver {driver} dies with its mounts: {contact:?}"));
                    world.restart_driver(driver);
                    let is_its = |handle: &str| {
                        (0..VOLUMES).any(|v| wish::driver(v) == driver && wish::handle(v) == handle)
                    };
                    while world.unmount_if(|state, mount| {
                        state.may_vanish(mount) && is_its(&mount.source) && !wish::is_map(&mount.point)
                    }) {}
                    world.lock().forget(driver);
                }
                2 => {
                    world.tell(|| format!("driver {driver} dies and forgets: {contact:?}"));
                    world.restart_driver(driver);
                    world.lock().forget(driver);
                }
                _ => {
                    world.tell(|| format!("driver {driver} dies: {contact:?}"));
                    world.restart_driver(driver);
                }
            }
        } else {
            world.tell(|| format!("driver {driver} comes back"));
            world.lock().drivers[driver].contact = Contact::Ready;
            world.lines[driver].send_modify(|line| line.connection += 1);
        }
        self.daemon.connect(world);
    }

    /// A driver comes back with or without staging, whatever of it is up.
    async fn retool(&self) {
        let world = &self.world;
        let driver = usize::try_from(world.below(2)).unwrap_or(0);
        self.replace(driver).await;
        {
            let mut state = world.lock();
            state.drivers[driver].contact = Contact::Ready;
            state.drivers[driver].stages = !state.drivers[driver].stages;
            state.drivers[driver].retooled = true;
            if !state.drivers[driver].stages {
                state.audit.loses_staging(driver);
            }
        }
        world.tell(|| format!("driver {driver} changes its mind about staging"));
        world.lines[driver].send_modify(|line| line.connection += 1);
        self.daemon.connect(world);
    }

    /// A driver's process ends, for so long that no step is under way any more that was decided by what it could do.
    async fn replace(&self, driver: usize) {
        self.world.lock().drivers[driver].contact = Contact::Disconnected;
        self.world.restart_driver(driver);
        self.daemon.connect(&self.world);
        sleep(Duration::from_millis(300)).await;
    }

    /// The NFS server dies, or comes back.
    fn server(&self) {
        let silent = !self.world.lock().server_is_silent;
        self.world.tell(|| format!("the server says nothing: {silent}"));
        self.world.lock().server_is_silent = silent;
    }

    async fn fill_disk(&self) {
        self.world.tell(|| "the disk fills".to_owned());
        self.world.lock().disk_full = true;
        self.wait(10_000).await;
        self.world.lock().disk_full = false;
        self.world.tell(|| "the disk has room".to_owned());
    }

    /// The daemon is killed now.
    async fn kill(self) -> Self {
        self.world.tell(|| "kill -9".to_owned());
        self.restart(300, false).await
    }

    /// The daemon dies at one of its next await points.
    async fn die(self) -> Self {
        let looks = 1 + self.world.below(60);
        self.world.lock().dies_in = Some(looks);
        // Give it something to do meanwhile.
        let mut life = self;
        match life.world.below(5) {
            0 => life.remove(),
            1 => life.vanish(),
            3 => life.command().await,
            2 => {}
            _ => life.want(),
        }
        let died = timeout(Duration::from_secs(5), life.world.crashed.notified()).await.is_ok();
        life.world.tell(|| format!("the daemon dies, at an await point: {died}"));
        let cut = life.world.below(3) == 0;
        life.restart(50, cut).await
    }

    async fn power_cut(self) -> Self {
        self.restart(1, true).await
    }

    async fn restart(self, ms: u64, cut: bool) -> Self {
        let Self { world, wish, daemon, gone } = self;
        daemon.crash().await;
        world.lock().dies_in = None;
        world.lock().daemon_died();
        if cut {
            world.tell(|| "power cut".to_owned());
            world.reboot();
        }
        sleep(Duration::from_millis(world.below(ms))).await;
        let life = Self { daemon: Daemon::start(&world), world, wish, gone };
        if !cut && life.world.below(4) == 0 {
            life.damage_manifests().await;
            return life;
        }
        life.wait(100).await;
        life.read();
        life
    }
}
