//! What survives the daemon: directories, mounts, the drivers' minds, the disk. And chance, time and the story.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use volumed::model::{BootId, KnownDisk, Mount, MountTable, PodUid, PublicationId, VolumeKey, VolumeRecord};

use super::audit::Audit;
use super::foreign::Left;
use super::holders::Held;
use super::operator::Operator;
use super::wish::{self, DRIVERS, Wish};

/// Where the simulated kubelet root is.
pub const ROOT: &str = "/root";

/// A shared handle on the world.
#[derive(Debug, Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
    /// Keep the story: only the replay of a failing seed does.
    telling: bool,
    /// Counts changes of the mount table.
    pub mounts_version: watch::Sender<u64>,
    /// Each driver's process and the connection to it.
    pub lines: [watch::Sender<Line>; DRIVERS.len()],
    /// The daemon has come to the moment at which it is to die.
    pub crashed: Arc<Notify>,
    /// The kernel says something of a disk.
    pub disk_bell: Arc<Notify>,
}

/// Counts what a driver has had of either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Line {
    pub process: u64,
    pub connection: u64,
}

/// How a driver looks to volumed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Contact {
    #[default]
    Ready,
    Starting,
    Disconnected,
    Gone,
}

/// A directory or a file with its content, by absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Directory,
    File(Vec<u8>),
}

/// One driver.
#[derive(Debug, Default, Clone)]
pub struct DriverMind {
    /// STAGE_UNSTAGE_VOLUME.
    pub stages: bool,
    /// EXPAND_VOLUME.
    pub expands: bool,
    /// max_volumes_per_node; 0 without a limit.
    pub limit: usize,
    /// It learned or lost staging.
    pub retooled: bool,
    pub contact: Contact,
    /// It forgets what is staged and published when the power goes.
    pub forgets: bool,
    /// A call that is never answered waits for the end of the process.
    pub hangs: bool,
}

/// The state of everything.
#[derive(Debug, Default)]
pub struct State {
    pub random: u64,
    pub faults: bool,
    pub boot: u64,
    pub nodes: BTreeMap<PathBuf, Node>,
    pub mounts: Vec<Mount>,
    /// By the path that each has now.
    pub disks: BTreeMap<PathBuf, super::disks::SimDisk>,
    /// The iSCSI target.
    pub target: super::luns::Target,
    /// When mounts were made.
    pub made: BTreeMap<u64, Instant>,
    /// Where a driver was called and found everything done, and when. What vanishes in that moment is not missed: some drivers
    /// mount nothing.
    pub found_done: BTreeMap<PathBuf, Instant>,
    /// Which mounts somebody else made.
    pub strangers: BTreeSet<u64>,
    /// Paths where a stranger was: a directory may be left there.
    pub strange_places: BTreeSet<PathBuf>,
    /// Who has something open, by mount.
    pub held: BTreeMap<u64, Held>,
    /// What cannot be unmounted or removed, and until when.
    pub stuck: BTreeMap<PathBuf, Instant>,
    pub next_mount: u64,
    pub drivers: [DriverMind; DRIVERS.len()],
    /// The drivers' minds: handle -> staging path.
    pub staged: BTreeMap<String, PathBuf>,
    /// The drivers' minds: target -> handle.
    pub published: BTreeMap<PathBuf, String>,
    /// Handles with a call under way in the driver.
    pub pending: BTreeSet<(usize, String)>,
    /// Records as the page cache has them, and as the platter has them.
    pub records: BTreeMap<VolumeKey, Disk>,
    /// What sizes volumes are remembered to have.
    pub sizes: BTreeMap<VolumeKey, u64>,
    /// What disks volumes are remembered to have.
    pub known_disks: BTreeMap<VolumeKey, KnownDisk>,
    pub notes: BTreeMap<&'static str, serde_json::Value>,
    pub disk_full: bool,
    /// The NFS server says nothing.
    pub server_is_silent: bool,
    /// Since when a place, or a pod, has been wanted without a break.
    pub wanted: BTreeMap<PublicationId, Instant>,
    pub pods: BTreeMap<PodUid, Instant>,
    /// This life of the daemon has had a reading of the manifests.
    pub has_read: bool,
    /// The daemon dies after so many more looks at the world.
    pub dies_in: Option<u64>,
    /// When what was wanted was last wanted.
    pub wanted_until: BTreeMap<PublicationId, Instant>,
    /// What others left, by path.
    pub left: BTreeMap<PathBuf, Left>,
    /// Where others left something, whatever became of it.
    pub old_places: BTreeSet<PathBuf>,
    /// Volumes that others left: they are here, whatever their driver's limit.
    pub old_handles: BTreeSet<String>,
    /// Volumes that were gone, and whose record came back after a power cut: nobody can know that there was room for them.
    pub revived: BTreeSet<String>,
    pub twin: Option<super::twins::Twin>,
    /// The pods in manifests, leaving or not.
    pub manifested: BTreeSet<PodUid>,
    /// When a pod was last in a manifest, leaving or not.
    pub listed: BTreeMap<PodUid, Instant>,
    pub audit: Audit,
    pub operator: Operator,
    pub violations: Vec<String>,
    pub began: Option<Instant>,
    pub story: Vec<String>,
    /// How long the story is, were it told.
    pub happenings: u64,
    pub calls: u64,
}

/// One record.
#[derive(Debug, Default, Clone)]
pub struct Disk {
    pub written: Option<VolumeRecord>,
    pub synced: Option<VolumeRecord>,
    /// What is written has been synced, but perhaps not yet its name.
    pub whole: bool,
}

impl World {
    pub fn new(seed: u64, telling: bool) -> Self {
        let mut state = State { random: seed, faults: true, boot: 1, next_mount: 100, ..State::default() };
        for directory in ["", "pods", "plugins"] {
            state.nodes.insert(Path::new(ROOT).join(directory), Node::Directory);
        }
        Self {
            state: Arc::new(Mutex::new(state)),
            telling,
            mounts_version: watch::Sender::new(0),
            lines: std::array::from_fn(|_| watch::Sender::default()),
            crashed: Arc::default(),
            disk_bell: Arc::default(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something for the story of a failing seed.
    pub fn tell(&self, what: impl FnOnce() -> String) {
        if !self.telling {
            self.lock().happenings += 1;
            return;
        }
        let what = what();
        let now = Instant::now();
        let mut state = self.lock();
        state.happenings += 1;
        let began = *state.began.get_or_insert(now);
        let line = format!("{:>9.3} {what}", (now - began).as_secs_f64());
        state.story.push(line);
    }

    pub fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        self.tell(|| format!("VIOLATION {what}"));
        self.lock().violations.push(what);
    }

    pub fn violations(&self, all: Vec<String>) {
        for what in all {
            self.violation(what);
        }
    }

    /// Returns a number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        self.lock().below(limit)
    }

    /// Returns one of several.
    pub fn one_of<'a, T>(&self, several: &'a [T]) -> Option<&'a T> {
        let at = usize::try_from(self.below(several.len() as u64)).unwrap_or(0);
        several.get(at)
    }

    /// Returns true in `percent` of a hundred cases, while faults are on.
    pub fn fault(&self, percent: u64) -> bool {
        let mut state = self.lock();
        state.faults && state.below(100) < percent
    }

    /// Takes a short, random time of the daemon's, who may die of it.
    pub async fn pause(&self) {
        let (ms, dead) = {
            let mut state = self.lock();
            let dead = state.dies_in.as_mut().is_some_and(|left| {
                *left = left.saturating_sub(1);
                *left == 0
            });
            (state.below(8), dead)
        };
        if dead {
            self.crashed.notify_one();
            std::future::pending::<()>().await;
        }
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    /// Takes a short, random time of a driver's.
    pub async fn dawdle(&self) {
        let ms = self.below(8);
        if ms > 0 {
            tokio::time::sleep(Duration::from_millis(ms)).await;
        }
    }

    pub fn boot(&self) -> BootId {
        BootId(format!("boot-{}", self.lock().boot))
    }

    pub fn table(&self) -> MountTable {
        MountTable::new(self.lock().mounts.clone())
    }

    /// Mounts something; `source` tells mounts apart. Returns the mount's id.
    pub fn mount(&self, point: &Path, source: &str) -> u64 {
        let id = self.lock().mount(point, source);
        self.mounts_version.send_modify(|version| *version += 1);
        id
    }

    /// Shows what is mounted somewhere at another place too.
    pub fn mount_again(&self, point: &Path, shown: &Mount) {
        let id = self.mount(point, &shown.source);
        let mut state = self.lock();
        let again = state.mounts.iter_mut().find(|mount| mount.id == id);
        again.into_iter().for_each(|mount| mount.device = shown.device);
        drop(state);
        self.mounts_version.send_modify(|version| *version += 1);
    }

    /// Unmounts the topmost mount at a point.
    pub fn unmount(&self, point: &Path) -> bool {
        self.unmount_if(|_, mount| mount.point == point)
    }

    /// Unmounts the last made of the mounts that are meant.
    pub fn unmount_if(&self, is_meant: impl Fn(&State, &Mount) -> bool) -> bool {
        let mut state = self.lock();
        let Some(at) = state.mounts.iter().rposition(|mount| is_meant(&state, mount)) else { return false };
        let mount = state.mounts.remove(at);
        state.strangers.remove(&mount.id);
        state.held.remove(&mount.id);
        state.made.remove(&mount.id);
        drop(state);
        self.mounts_version.send_modify(|version| *version += 1);
        true
    }

    /// A driver's process ends and a new one starts: what it was doing is lost.
    pub fn restart_driver(&self, driver: usize) {
        let mut state = self.lock();
        state.drivers[driver].hangs = false;
        state.pending.retain(|(other, _)| *other != driver);
        drop(state);
        self.lines[driver].send_modify(|line| {
            line.process += 1;
            line.connection += 1;
        });
    }
}

impl State {
    pub fn below(&mut self, limit: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % limit.max(1)
    }

    pub fn has_children(&self, path: &Path) -> bool {
        let next = self.nodes.range::<Path, _>((Bound::Excluded(path), Bound::Unbounded)).next();
        next.is_some_and(|(other, _)| other.starts_with(path))
    }

    /// Whether volumed had time to see a mount.
    pub fn is_old(&self, id: u64) -> bool {
        self.made.get(&id).is_some_and(|made| made.elapsed() >= Duration::from_millis(100))
    }

    /// Whether volumed had time to see a mount, and does not rely on it just now.
    pub fn may_vanish(&self, mount: &Mount) -> bool {
        let found = self.found_done.get(&mount.point);
        self.is_old(mount.id) && found.is_none_or(|found| found.elapsed() >= Duration::from_millis(100))
    }

    pub fn is_mounted(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.point == path)
    }

    pub fn mount(&mut self, point: &Path, source: &str) -> u64 {
        self.next_mount += 1;
        let id = self.next_mount;
        // A device keeps its number wherever its node is bound; a file system of its own has a new one each time.
        // So does a file system on a disk, as long as anybody has it.
        let minor = match source {
            source if wish::is_block(source) => 999,
            wish::DISK => 998,
            wish::LUN_DISK => 997,
            _ => id % 997,
        };
        self.made.insert(id, Instant::now());
        self.mounts.push(Mount {
            id,
            parent: 1,
            device: (8, u32::try_from(minor).unwrap_or(0)),
            root: PathBuf::from("/"),
            point: point.to_owned(),
            fs_type: "ext4".to_owned(),
            source: source.to_owned(),
            read_only: false,
        });
        id
    }

    /// The driver's memory goes, its mounts stay.
    pub fn forget(&mut self, driver: usize) {
        let handles: BTreeSet<String> =
            (0..wish::VOLUMES).filter(|v| wish::driver(*v) == driver).map(wish::handle).collect();
        self.staged.retain(|handle, _| !handles.contains(handle));
        self.published.retain(|_, handle| !handles.contains(handle));
    }

    /// Remembers since when what is wanted.
    pub fn wish(&mut self, wish: &Wish) {
        let now = Instant::now();
        let staying = || wish.pods.iter().filter(|(_, pod)| !pod.leaving);
        let places: BTreeSet<PublicationId> =
            staying().flat_map(|(name, pod)| wish::places(name, pod)).collect();
        let pods: BTreeSet<PodUid> = staying().map(|(name, _)| wish::uid(name)).collect();
        self.twin = wish.twin;
        let gone = self.wanted.keys().filter(|place| !places.contains(*place));
        self.listed.extend(self.manifested.iter().map(|pod| (pod.clone(), now)));
        self.manifested = wish.pods.keys().map(|name| wish::uid(name)).collect();
        self.wanted_until.extend(gone.map(|place| (place.clone(), now)));
        self.wanted.retain(|place, _| places.contains(place));
        self.pods.retain(|pod, _| pods.contains(pod));
        self.is_wanted_again(&places);
        for place in places {
            self.wanted.entry(place).or_insert(now);
        }
        for pod in pods {
            self.pods.entry(pod).or_insert(now);
        }
    }
}
