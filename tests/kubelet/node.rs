//! A node: the loop over the real kernel, below a root directory, in namespaces of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use volumed::csi::{DriverEntry, DriverSet};
use volumed::desired::TokenFiles;
use volumed::host::Linux;
use volumed::manifest::{Manifests, Objects, Settings, reader};
use volumed::model::{
    Ambient, Connection, DirectoryState, DriverName, DriverOrigin, DriverState, EventKind, Events, Layout,
    ReadingState, Status,
};
use volumed::reconcile::{self, AbsenceSettings, Inputs, Parts, REPUBLISH, Reread};
use volumed::record;

use super::driver::{Kind, Log, RecordedDriver, Site};
use super::recording::{self, Call, Tree};
use super::shown::{is_settled, told};
use super::{again, alone, loops};

const NONE: Option<&str> = None;
const DEADLINE: Duration = Duration::from_secs(30);
/// As the kubelet of the recordings called it.
const NODE: &str = "capture-node";

/// Runs a test alone in new namespaces; the loop devices that it left are let go.
pub fn isolated(name: &str, test: impl Future<Output = ()>) {
    alone::run(name, test, loops::release);
}

/// A driver by name, behaviour and capabilities.
pub type DriverSpec = (&'static str, Kind, &'static [&'static str]);

/// A running loop and what it works on.
pub struct Node {
    manifests: watch::Sender<Arc<Manifests>>,
    status: watch::Receiver<Status>,
    log: Arc<Mutex<Log>>,
    task: Option<JoinHandle<()>>,
    shutdown: CancellationToken,
    generation: u64,
    root: PathBuf,
    top: tempfile::TempDir,
    _commands: mpsc::Sender<reconcile::Command>,
    _drivers: watch::Sender<Arc<DriverSet>>,
}

impl Node {
    /// Starts a node with these drivers and an empty root directory.
    pub fn start(drivers: &[DriverSpec]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), drivers, false)
    }

    /// Starts a node with these drivers on the root directory of a phase, set up again, and no records.
    pub fn take_over(recording: &str, drivers: &[DriverSpec]) -> Self {
        let top = tempfile::tempdir().expect("a directory");
        let path = top.path().canonicalize().expect("a path without links");
        std::fs::create_dir(path.join("root")).expect("a root directory");
        again::set_up(recording, &path.join("root"), &path.join("drivers"));
        Self::start_in(top, drivers, true)
    }

    fn start_in(top: tempfile::TempDir, drivers: &[DriverSpec], called_before: bool) -> Self {
        let host = Linux::open(&top.path().join("root")).expect("a root directory");
        let host = host.with_child_program(env!("CARGO_BIN_EXE_volumed").into());
        let root = host.root().to_owned();
        let store = root.with_file_name("drivers");
        let log = Arc::new(Mutex::new(Log::default()));
        let entry = |spec: &DriverSpec| {
            let site =
                Site { root: root.clone(), store: store.clone(), log: Arc::clone(&log), called_before };
            let driver = RecordedDriver::new(*spec, site);
            let state = DriverState {
                connection: Connection::Ready,
                info: driver.info(),
                endpoint: "/csi.sock".into(),
                origin: DriverOrigin::Configured,
                since: 0,
                unwell: None,
                standby: Vec::new(),
            };
            (DriverName::new(spec.0).expect("a name"), DriverEntry { state, client: Arc::new(driver) })
        };
        let drivers = DriverSet { drivers: drivers.iter().map(entry).collect() };
        let store = record::Directory::open(&top.path().join("state")).expect("a state directory");
        let (manifests, manifests_in) = watch::channel(Arc::new(Manifests::default()));
        let (drivers, drivers_in) = watch::channel(Arc::new(drivers));
        let (commands, commands_in) = mpsc::channel(1);
        let (status_out, status) = watch::channel(Status::default());
        let shutdown = CancellationToken::new();
        let told = Arc::clone(&log);
        let parts = Parts {
            host: Arc::new(host),
            store: Arc::new(store),
            turns: volumed::csi::Turns::default(),
            layout: Layout::new(&root),
            node: NODE.to_owned(),
            tokens: token_files(top.path()),
            node_labels: BTreeMap::new(),
            credentials: None,
            ambient: Arc::new(Ambient::new(1, || 0)),
            started: Instant::now(),
            events: Events::new(move |event| {
                if matches!(event.kind, EventKind::StepFailed { .. } | EventKind::Vanished { .. }) {
                    let mut log = told.lock().unwrap_or_else(PoisonError::into_inner);
                    log.failures.push(format!("{:?}", event.kind));
                }
            }),
            absence: AbsenceSettings { removal_grace: Duration::from_secs(1), brake_release_after: None },
            republish: REPUBLISH,
            // `wish` sends two readings each time.
            reread: Reread::new(|| {}),
        };
        let inputs = Inputs {
            manifests: manifests_in,
            drivers: drivers_in,
            commands: commands_in,
            shutdown: shutdown.clone(),
        };
        let task = tokio::spawn(async move {
            reconcile::run(parts, inputs, status_out).await.expect("a new root directory can be read");
        });
        Self {
            manifests,
            status,
            log,
            task: Some(task),
            shutdown,
            generation: 0,
            root,
            top,
            _commands: commands,
            _drivers: drivers,
        }
    }

    /// Makes these API objects the wish, in two complete readings, and waits until everything is as wished.
    pub async fn wish(&mut self, objects: Vec<Value>) -> Status {
        self.wish_unsettled(objects).await;
        let status = self.until("settled", is_settled).await;
        assert_eq!(status.brake, None);
        status
    }

    /// As `wish`, without the waiting.
    pub async fn wish_unsettled(&mut self, objects: Vec<Value>) {
        let files = objects.len();
        let objects = self.parsed(objects).await;
        for _ in 0..2 {
            self.generation += 1;
            let directory = DirectoryState { identity: None, files };
            let reading = ReadingState {
                generation: self.generation,
                // The second begins later than the grace after the first; their own clock says so.
                began_ms: self.generation * 2000,
                incomplete: Vec::new(),
                directories: BTreeMap::from([(self.manifest_directory(), directory)]),
            };
            let manifests = Manifests { objects: Arc::new(objects.clone()), problems: Vec::new(), reading };
            self.manifests.send_replace(Arc::new(manifests));
            let generation = self.generation;
            self.until("the reading is taken", |status| status.reading.generation == generation).await;
        }
    }

    fn manifest_directory(&self) -> PathBuf {
        self.top.path().join("manifests")
    }

    /// Reads the objects from a file, as every manifest is read.
    async fn parsed(&self, objects: Vec<Value>) -> Objects {
        let directory = self.manifest_directory();
        std::fs::create_dir_all(&directory).expect("a directory");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        std::fs::write(directory.join("objects.json"), list.to_string()).expect("a manifest");
        let settings = Settings {
            directories: vec![directory],
            removal_grace: Duration::from_secs(1),
            owner: 0,
            known: BTreeMap::new(),
        };
        let (reader, handle, manifests) = reader(settings, Instant::now(), Arc::new(Ambient::new(1, || 0)));
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(reader.run(shutdown.clone()));
        timeout(DEADLINE, handle.reread()).await.expect("a reading");
        let read = Arc::clone(&manifests.borrow());
        shutdown.cancel();
        task.await.expect("no panic").expect("no error");
        assert!(read.reading.is_complete(), "{:#?}", read.reading.incomplete);
        let wrong: Vec<String> =
            read.problems.iter().filter(|p| !p.warning).map(ToString::to_string).collect();
        assert!(wrong.is_empty(), "the recorded objects are refused: {wrong:#?}");
        Objects::clone(&read.objects)
    }

    /// Waits for a status that is as asked.
    pub async fn until(&mut self, what: &str, fits: impl Fn(&Status) -> bool) -> Status {
        let waited = timeout(DEADLINE, self.status.wait_for(fits)).await;
        match waited.map(|result| result.map(|status| status.clone())) {
            Ok(Ok(status)) => status,
            Ok(Err(_)) => panic!("the loop ended before: {what}"),
            Err(_) => panic!("never: {what}; last:\n{}", told(&self.status.borrow())),
        }
    }

    /// Returns what lies below the root directory, without the volumes' mounts.
    pub fn tree(&self) -> Tree {
        recording::read_tree(self.view().path(), &self.root)
    }

    /// Shows what the mounts lie on.
    fn view(&self) -> View {
        let view = tempfile::tempdir_in(self.top.path()).expect("a directory");
        // Not recursive.
        mount(Some(&self.root), view.path(), NONE, MsFlags::MS_BIND, NONE).expect("a bind mount");
        View(view)
    }

    /// Returns the kernel's unique number of each mount below the root directory, which a mount that is made again does not get.
    pub fn mount_numbers(&self) -> BTreeMap<PathBuf, u64> {
        let points = mountinfo()
            .lines()
            .filter_map(|line| line.split(' ').nth(4).map(PathBuf::from))
            .collect::<Vec<_>>();
        let points = points.into_iter().filter(|point| point.starts_with(&self.root));
        points.map(|point| (point.clone(), mount_number(&point))).collect()
    }

    /// Returns when anything last happened to each file and directory of the root, by inode and change time.
    pub fn stamps(&self) -> BTreeMap<PathBuf, (u64, i64, i64)> {
        let view = self.view();
        let paths = self.tree().into_keys().map(PathBuf::from);
        let stamp = |path: PathBuf| {
            let meta = std::fs::symlink_metadata(view.path().join(&path)).expect("it is there");
            (path, (meta.ino(), meta.ctime(), meta.ctime_nsec()))
        };
        paths.map(stamp).collect()
    }

    /// Returns the loop devices on files below the root directory: the locks of block volumes.
    pub fn locks(&self) -> BTreeSet<(PathBuf, PathBuf)> {
        loops::below(&self.root).into_iter().collect()
    }

    /// Returns the files of the root, relative to it, that a loop device holds.
    pub fn locked(&self) -> BTreeSet<PathBuf> {
        let inside = |file: PathBuf| file.strip_prefix(&self.root).expect("below the root").to_owned();
        self.locks().into_iter().map(|(_, file)| inside(file)).collect()
    }

    /// Changes the mount table beside the root directory: a reason to look again.
    pub fn disturb(&self) {
        drop(self.view());
    }

    /// Returns the root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the mounts below the root directory.
    pub fn mounts(&self) -> BTreeSet<(String, String)> {
        recording::mounts_below(&mountinfo(), self.root.to_str().expect("UTF-8"))
    }

    /// Returns the calls made so far, and asserts that no driver found anything amiss and no step failed.
    pub fn calls(&self) -> Vec<Call> {
        let calls = self.calls_and_failures();
        assert!(calls.1.is_empty(), "{:#?} in {:#?}", calls.1, calls.0);
        calls.0
    }

    /// Returns the calls made so far and what failed, and asserts that no driver found anything amiss.
    pub fn calls_and_failures(&self) -> (Vec<Call>, Vec<String>) {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        assert!(log.wrong.is_empty(), "{:#?} in {:#?}", log.wrong, log.calls);
        (log.calls.clone(), log.failures.clone())
    }

    /// Stops the loop.
    pub async fn stop(mut self) {
        self.shutdown.cancel();
        if let Some(task) = self.task.take() {
            timeout(DEADLINE, task).await.expect("the loop ends").expect("it does not panic");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        unmount_below(self.top.path());
    }
}

/// Unmounts everything below a directory that is deleted next: nothing of it may still show something else.
pub fn unmount_below(top: &Path) {
    // While the locks can still be told by their files.
    loops::release(top);
    let table = mountinfo();
    let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    for point in points.iter().rev().filter(|point| Path::new(point).starts_with(top)) {
        let _result = umount2(*point, MntFlags::MNT_DETACH);
    }
}

/// The root directory without its mounts, as long as this lives.
struct View(tempfile::TempDir);

impl View {
    fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        umount2(self.0.path(), MntFlags::empty()).expect("an unmount");
    }
}

fn mount_number(point: &Path) -> u64 {
    use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
    /// STATX_MNT_ID_UNIQUE, Linux 6.8
    const UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);
    let found = statx(CWD, point, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT, UNIQUE).expect("statx");
    assert!(found.stx_mask & UNIQUE.bits() != 0, "this kernel gives mounts no unique numbers");
    found.stx_mnt_id
}

fn mountinfo() -> String {
    std::fs::read_to_string("/proc/thread-self/mountinfo").expect("the mount table")
}

/// When the tokens of the recordings expired.
pub const TOKEN_EXPIRES: &str = "2026-11-21T15:40:23Z";

/// Writes the token that the API server of the recordings gave for every audience, an hour before it expires.
fn token_files(top: &Path) -> TokenFiles {
    let file = top.join("token");
    std::fs::write(&file, "fake-token-for-default-default").expect("a token");
    let expires: jiff::Timestamp = TOKEN_EXPIRES.parse().expect("a time");
    let written = std::time::SystemTime::from(expires) - Duration::from_secs(3600);
    std::fs::File::options()
        .write(true)
        .open(&file)
        .and_then(|file| file.set_modified(written))
        .expect("a time");
    let mut files = TokenFiles::default();
    for audience in ["", "aud1"] {
        files.insert("default", "default", audience, &file);
    }
    files
}
