//! A host of a test's own: directories, a driver and a daemon as real processes, and nothing left of them afterwards.
//!
//! Runs in a private mount namespace (`unshare -m --propagation private`), so a fault here never reaches the host's mounts.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it"
)]

pub mod objects;
pub mod seen;

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub use objects::{DRIVER, claim, pod_using, pod_with_claim};

/// How long a state may take to come.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// One test's host.
#[derive(Debug)]
pub struct TestHost {
    directory: PathBuf,
    pub root: PathBuf,
    pub manifests: PathBuf,
    pub state: PathBuf,
    pub socket: PathBuf,
}

/// A process that dies with its handle.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pub log: PathBuf,
}

impl TestHost {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("v{}-{count}", std::process::id()));
        fs::create_dir(&directory).expect("a directory of its own");
        let directory = directory.canonicalize().expect("it is there");
        let host = Self {
            root: directory.join("root"),
            manifests: directory.join("manifests"),
            state: directory.join("state"),
            socket: directory.join("control.sock"),
            directory,
        };
        for path in [&host.root, &host.manifests] {
            fs::create_dir(path).expect("a directory of its own");
        }
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Starts the daemon; `environment` names a fault point or another boot.
    pub fn volumed(&self, environment: &[(&str, &str)]) -> Process {
        self.volumed_with(environment, &[])
    }

    pub fn volumed_with(&self, environment: &[(&str, &str)], arguments: &[&str]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volumed"));
        command
            .arg("--allow-private-mounts")
            .args(["--node-name", "test-node"])
            .arg("--manifest-dir")
            .arg(&self.manifests)
            .arg("--root-dir")
            .arg(&self.root)
            .arg("--state-dir")
            .arg(&self.state)
            .arg("--socket")
            .arg(&self.socket)
            .args(arguments)
            .envs(environment.iter().copied());
        // No configuration of the machine may leak in.
        let config = self.path("volumed.toml");
        if !config.try_exists().expect("it can be looked at") {
            fs::write(&config, "").expect("an empty configuration");
        }
        command.arg("--config").arg(config);
        self.spawn(command, "volumed.log")
    }

    /// Starts the example driver.
    pub fn fakecsi(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(example("fakecsi"));
        let directory = self.path("driver");
        fs::create_dir_all(&directory).expect("the driver's directory");
        command
            .arg("--endpoint")
            .arg(self.path("csi.sock"))
            .arg("--state")
            .arg(directory)
            .arg("--registry")
            .arg(self.root.join("plugins_registry"))
            .arg("--log")
            .arg(self.path("calls"))
            .arg("--faults")
            .arg(self.path("faults"))
            .args(arguments);
        fs::create_dir_all(self.root.join("plugins_registry")).expect("the registry");
        self.spawn(command, "driver.log")
    }

    pub fn spawn(&self, mut command: Command, log: &str) -> Process {
        let log = self.path(log);
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).expect("a log");
        let again = file.try_clone().expect("a log");
        command.stdin(Stdio::null()).stdout(file).stderr(again).process_group(0);
        Process { child: command.spawn().expect("the program can be started"), log }
    }

    /// Runs volumectl.
    pub fn volumectl(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_volumectl"))
            .arg("--socket")
            .arg(&self.socket)
            .args(arguments)
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .expect("volumectl can be run")
    }

    /// Runs volumectl until it succeeds: the daemon may be starting.
    pub fn wait(&self, arguments: &[&str]) {
        let deadline = Instant::now() + PATIENCE;
        let mut command = vec!["wait", "--timeout", "20s"];
        command.extend(arguments);
        loop {
            let output = self.volumectl(&command);
            if output.status.success() {
                return;
            }
            let starting = output.status.code() == Some(1);
            assert!(
                starting && Instant::now() < deadline,
                "volumectl {command:?}: {output:?}\n{}\n{}",
                self.explain(),
                self.logs()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Returns what volumectl says of everything, for a failing test.
    pub fn explain(&self) -> String {
        let status = self.volumectl(&["status"]);
        let list = self.volumectl(&["list"]);
        format!("{}\n{}", String::from_utf8_lossy(&status.stdout), String::from_utf8_lossy(&list.stdout))
    }

    pub fn logs(&self) -> String {
        ["volumed.log", "driver.log", "calls"]
            .iter()
            .map(|name| format!("--- {name}\n{}", fs::read_to_string(self.path(name)).unwrap_or_default()))
            .collect()
    }

    /// Puts a manifest in place as an operator should: written aside, then renamed.
    pub fn manifest(&self, name: &str, text: &str) {
        let aside = self.manifests.join(format!(".{name}.new"));
        let mut file = fs::File::create(&aside).expect("a file");
        file.write_all(text.as_bytes()).expect("its content");
        drop(file);
        fs::rename(aside, self.manifests.join(name)).expect("its name");
    }

    pub fn remove_manifest(&self, name: &str) {
        fs::remove_file(self.manifests.join(name)).expect("the manifest is there");
    }

    /// Writes the driver's faults file.
    pub fn faults(&self, faults: &serde_json::Value) {
        let aside = self.path("faults.new");
        fs::write(&aside, faults.to_string()).expect("a file");
        fs::rename(aside, self.path("faults")).expect("its name");
    }

    /// Returns the driver's calls that began, of these methods, as (method, request).
    pub fn calls(&self, methods: &[&str]) -> Vec<(String, serde_json::Value)> {
        let text = fs::read_to_string(self.path("calls")).unwrap_or_default();
        text.lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter(|call| call["event"] == "begin")
            .map(|call| (call["method"].as_str().unwrap_or_default().to_owned(), call["request"].clone()))
            .filter(|(method, _)| methods.contains(&method.as_str()))
            .collect()
    }

    /// Returns where something is mounted below this host's directory.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
        let points = table.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        points.filter(|point| point.starts_with(&self.directory)).collect()
    }

    /// Returns the paths below a directory of the root, relative to it, sorted.
    pub fn tree(&self, below: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut directories = vec![self.root.join(below)];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
                let path = entry.path();
                found.push(path.strip_prefix(&self.root).expect("below").display().to_string());
                if path.is_dir() && !self.mounts().contains(&path) {
                    directories.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// What is mounted for a pod's volume.
    pub fn target(&self, pod_uid: &str, spec: &str) -> PathBuf {
        self.root.join(format!("pods/{pod_uid}/volumes/kubernetes.io~csi/{spec}/mount"))
    }

    /// Everything is gone: mounts, pod directories, stagings, records.
    pub fn assert_nothing_left(&self) {
        assert_eq!(self.mounts(), Vec::<PathBuf>::new(), "mounts are left\n{}", self.logs());
        assert_eq!(self.tree("pods"), Vec::<String>::new(), "pod directories are left\n{}", self.logs());
        // Of block volumes a kubelet leaves two directories too.
        let kept =
            |path: &str| path.ends_with("/volumeDevices/staging") || path.ends_with("/volumeDevices/publish");
        let mut staged = self.tree("plugins");
        staged.retain(|path| path.split('/').count() > 4 && !kept(path));
        assert_eq!(staged, Vec::<String>::new(), "stagings are left\n{}", self.logs());
        let records: Vec<_> =
            fs::read_dir(self.state.join("volumes")).into_iter().flatten().flatten().collect();
        assert!(records.is_empty(), "records are left: {records:?}\n{}", self.logs());
    }

    /// Lets go of every mount below, as a reboot does.
    pub fn unmount_all(&self) {
        let mut mounts = self.mounts();
        mounts.sort();
        for mount in mounts.into_iter().rev() {
            let ended = Command::new("umount").arg(&mount).status().expect("umount can be run");
            assert!(ended.success(), "{} cannot be unmounted", mount.display());
        }
    }
}

/// The directories of all block volumes, which a kubelet does not remove either.
fn kept(path: &str) -> bool {
    path.ends_with("/csi/volumeDevices/publish") || path.ends_with("/csi/volumeDevices/staging")
}

/// Returns the loop devices over files below a directory, by what the kernel says.
pub fn loop_devices(below: &Path) -> Vec<PathBuf> {
    let devices = fs::read_dir("/sys/block").expect("sysfs is mounted").flatten();
    devices
        .filter(|device| {
            let backing = fs::read_to_string(device.path().join("loop/backing_file"));
            backing.is_ok_and(|backing| Path::new(backing.trim_end()).starts_with(below))
        })
        .map(|device| Path::new("/dev").join(device.file_name()))
        .collect()
}

impl Drop for TestHost {
    fn drop(&mut self) {
        // Twice: a block volume's map is held by its lock, and a mounted loop device by its mount.
        for _ in 0..2 {
            for mount in self.mounts().into_iter().rev() {
                let _ended = Command::new("umount").arg(&mount).status();
            }
            for device in loop_devices(&self.directory) {
                let _ended = Command::new("losetup").arg("--detach").arg(&device).status();
            }
        }
        // Only when nothing is mounted below any more: what is mounted is not ours to delete.
        if self.mounts().is_empty() {
            let _removed = fs::remove_dir_all(&self.directory);
        }
    }
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9
    pub fn kill(mut self) {
        self.end();
    }

    /// Sends a signal by number.
    pub fn signal(&self, signal: &str) {
        let sent = Command::new("kill").arg(signal).arg(self.child.id().to_string()).status();
        assert!(sent.expect("kill can be run").success(), "the process is gone");
    }

    /// Waits until it has ended by itself.
    pub fn ended(mut self) -> std::process::ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().expect("it can be waited for") {
                return status;
            }
            assert!(Instant::now() < deadline, "the process does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("it can be waited for").is_none()
    }

    fn end(&mut self) {
        let _killed = self.child.kill();
        let _waited = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits for a state.
pub fn until(what: &str, mut state: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !state() {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns the path of an example; `cargo test` builds them all.
pub fn example(name: &str) -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_volumed"));
    let path = binary.parent().expect("it lies in a directory").join("examples").join(name);
    assert!(path.is_file(), "{} is missing: run `cargo build --examples`", path.display());
    path
}
