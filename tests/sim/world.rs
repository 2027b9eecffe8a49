//! What survives the daemon: directories, mounts, the driver's mind, the disk. And the rules nobody may break.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use volumed::model::{BootId, Mount, MountTable, VolumeKey, VolumeRecord};

/// Where the simulated kubelet root is.
pub const ROOT: &str = "/root";

/// A shared handle on the world.
#[derive(Debug, Clone)]
pub struct World {
    state: Arc<Mutex<State>>,
    /// Counts changes of the mount table.
    pub mounts_version: watch::Sender<u64>,
}

/// A directory or a file with its content, by absolute path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    Directory,
    File(Vec<u8>),
}

/// The state of everything.
#[derive(Debug, Default)]
pub struct State {
    pub random: u64,
    pub faults: bool,
    pub boot: u64,
    pub nodes: BTreeMap<PathBuf, Node>,
    pub mounts: Vec<Mount>,
    pub next_mount: u64,
    /// The driver's mind: handle -> staging path.
    pub staged: BTreeMap<String, PathBuf>,
    /// The driver's mind: target -> handle.
    pub published: BTreeMap<PathBuf, String>,
    /// Handles with a call under way in the driver.
    pub pending: BTreeSet<String>,
    /// Records as the page cache has them, and as the platter has them.
    pub records: BTreeMap<VolumeKey, Disk>,
    /// What sizes volumes are remembered to have.
    pub sizes: BTreeMap<VolumeKey, u64>,
    pub notes: BTreeMap<&'static str, serde_json::Value>,
    /// Targets that are wanted from the first to the last moment: never to be unpublished.
    pub always_wanted: BTreeSet<PathBuf>,
    pub violations: Vec<String>,
    pub began: Option<tokio::time::Instant>,
    pub story: Vec<String>,
    pub calls: u64,
}

/// One record.
#[derive(Debug, Default, Clone)]
pub struct Disk {
    pub written: Option<VolumeRecord>,
    pub synced: Option<VolumeRecord>,
}

impl World {
    pub fn new(seed: u64) -> Self {
        let mut state = State { random: seed, faults: true, boot: 1, next_mount: 100, ..State::default() };
        for directory in ["", "pods", "plugins"] {
            state.nodes.insert(Path::new(ROOT).join(directory), Node::Directory);
        }
        Self { state: Arc::new(Mutex::new(state)), mounts_version: watch::Sender::new(0) }
    }

    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes something for the story of a failing seed.
    pub fn tell(&self, what: impl Into<String>) {
        let now = tokio::time::Instant::now();
        let mut state = self.lock();
        let began = *state.began.get_or_insert(now);
        let line = format!("{:>9.3} {}", (now - began).as_secs_f64(), what.into());
        state.story.push(line);
    }

    pub fn violation(&self, what: impl Into<String>) {
        let what = what.into();
        self.tell(format!("VIOLATION {what}"));
        self.lock().violations.push(what);
    }

    /// Returns a number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        self.lock().below(limit)
    }

    /// Returns true in `percent` of a hundred cases, while faults are on.
    pub fn fault(&self, percent: u64) -> bool {
        let mut state = self.lock();
        state.faults && state.below(100) < percent
    }

    /// Takes a short, random time.
    pub async fn pause(&self) {
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

    /// Mounts something; `source` tells mounts apart.
    pub fn mount(&self, point: &Path, source: &str) {
        let mut state = self.lock();
        state.next_mount += 1;
        let id = state.next_mount;
        state.mounts.push(Mount {
            id,
            parent: 1,
            device: (8, u32::try_from(id % 1000).unwrap_or(0)),
            root: PathBuf::from("/"),
            point: point.to_owned(),
            fs_type: "ext4".to_owned(),
            source: source.to_owned(),
            read_only: false,
            shared: true,
        });
        drop(state);
        self.mounts_version.send_modify(|version| *version += 1);
    }

    /// Unmounts the topmost mount at a point.
    pub fn unmount(&self, point: &Path) -> bool {
        let mut state = self.lock();
        let Some(at) = state.mounts.iter().rposition(|mount| mount.point == point) else { return false };
        state.mounts.remove(at);
        drop(state);
        self.mounts_version.send_modify(|version| *version += 1);
        true
    }

    /// A power cut and a new boot: mounts are gone, so is what was not synced (some of it, as luck has it).
    pub fn reboot(&self, driver_forgets: bool) {
        let mut state = self.lock();
        state.boot += 1;
        state.mounts.clear();
        state.pending.clear();
        if driver_forgets {
            state.staged.clear();
            state.published.clear();
        }
        let keys: Vec<VolumeKey> = state.records.keys().cloned().collect();
        for key in keys {
            let survives = state.below(2) == 0;
            if let Some(disk) = state.records.get_mut(&key) {
                if survives {
                    disk.synced = disk.written.clone();
                } else {
                    disk.written = disk.synced.clone();
                }
            }
        }
        state.records.retain(|_, disk| disk.written.is_some());
        drop(state);
        self.mounts_version.send_modify(|version| *version += 1);
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
        self.nodes.keys().any(|other| other != path && other.starts_with(path))
    }

    pub fn is_mounted(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.point == path)
    }
}
