//! A root directory with staged volumes, and processes that have them.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    unreachable_pub,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

#[path = "../support/alone.rs"]
mod alone;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use volumed::host::{Holder, Host, Linux};
use volumed::model::RootPath;

pub const STAGED: &str = "plugins/kubernetes.io/csi/d/v1/globalmount";
pub const OTHER: &str = "plugins/kubernetes.io/csi/d/v2/globalmount";
const NONE: Option<&str> = None;

/// Runs a test alone in new namespaces.
pub fn isolated(name: &str, test: impl Future<Output = ()>) {
    alone::run(name, test, |_| ());
}

/// A root directory on a shared mount, as a host's is. Dropped, it unmounts what it mounted.
pub struct World {
    pub linux: Arc<Linux>,
    pub root: PathBuf,
    /// Beside the root.
    pub aside: PathBuf,
    top: tempfile::TempDir,
    /// Loop devices to be let go once their file systems are unmounted.
    loops: Vec<String>,
}

impl World {
    pub fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        mount(Some("host"), top.path(), Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        mount(NONE, top.path(), NONE, MsFlags::MS_SHARED, NONE).unwrap();
        let linux = Arc::new(Linux::open(&top.path().join("root")).unwrap());
        let aside = top.path().join("aside");
        std::fs::create_dir(&aside).unwrap();
        Self { root: linux.root().to_owned(), linux, aside, top, loops: Vec::new() }
    }

    /// Makes the mount below the root follow and lead no other.
    pub fn make_private(&self) {
        mount(NONE, self.top.path(), NONE, MsFlags::MS_PRIVATE, NONE).unwrap();
    }

    pub fn directory(&self, path: &str) -> PathBuf {
        let path = self.root.join(path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// Stages a volume of its own superblock, with a file and a directory in it.
    pub fn staged(&self) -> PathBuf {
        let path = self.directory(STAGED);
        mount(Some("volume"), &path, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        fill(&path);
        path
    }

    /// Stages a volume that is a directory of the host's file system.
    pub fn bound(&self, name: &str, at: &str) -> PathBuf {
        let (source, path) = (self.aside.join(name), self.directory(at));
        std::fs::create_dir(&source).unwrap();
        fill(&source);
        bind(&source, &path);
        path
    }

    /// Stages an ext4 on a loop device; `None` where there are none.
    pub fn ext4(&mut self, test: &str) -> Option<PathBuf> {
        let image = self.top.path().join("image");
        File::create(&image).unwrap().set_len(8 << 20).unwrap();
        let run = |command: &str, args: &[&str]| {
            let output = Command::new(command).args(args).arg(&image).output().ok()?;
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
        };
        let device = run("mkfs.ext4", &["-q"]).and_then(|_| run("losetup", &["--show", "--find"]));
        let Some(device) = device else {
            println!("NOT-RUN: {test}: no mkfs.ext4 or no loop device");
            return None;
        };
        let path = self.directory(STAGED);
        mount(Some(device.as_str()), &path, Some("ext4"), MsFlags::empty(), NONE).unwrap();
        self.loops.push(device);
        fill(&path);
        Some(path)
    }

    pub async fn holders_at(&self, path: &str, driver: Option<u32>) -> Vec<Holder> {
        self.linux.holders(RootPath::new(path).unwrap(), driver).await.unwrap()
    }

    pub async fn holders(&self) -> Vec<Holder> {
        self.holders_at(STAGED, None).await
    }

    /// Asserts that these have the volume, each as pid and how.
    pub async fn assert_held(&self, expected: &[(u32, String)]) {
        let found = self.holders().await;
        let short: Vec<_> = found.iter().map(|holder| (holder.pid, holder.how.clone())).collect();
        assert_eq!(short, expected, "{found:?}");
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        for point in points.iter().rev().filter(|p| Path::new(p).starts_with(self.top.path())) {
            let _result = umount2(*point, MntFlags::MNT_DETACH);
        }
        for device in &self.loops {
            let _status = Command::new("losetup").args(["--detach", device]).status();
        }
    }
}

fn fill(path: &Path) {
    std::fs::create_dir(path.join("sub")).unwrap();
    std::fs::write(path.join("data"), "data").unwrap();
}

pub fn bind(source: &Path, path: &Path) {
    std::fs::create_dir_all(path).unwrap();
    mount(Some(source), path, NONE, MsFlags::MS_BIND, NONE).unwrap();
}

pub fn unmount(path: &Path) {
    umount2(path, MntFlags::empty()).unwrap();
}

/// A child process that said "ready" and ends with this value.
pub struct Process(pub Child);

impl Process {
    pub fn start(script: &str, argument: &Path) -> Self {
        Self::spawn(Command::new("sh").args(["-c", &waiting(script), "sh"]).arg(argument))
    }

    /// The same in a mount namespace of its own, a copy of ours.
    pub fn elsewhere(propagation: &str, script: &str, argument: &Path) -> Self {
        let mut unshare = Command::new("unshare");
        unshare.args(["-m", "--propagation", propagation, "sh", "-c", &waiting(script), "sh"]);
        Self::spawn(unshare.arg(argument))
    }

    pub fn spawn(command: &mut Command) -> Self {
        Self::ready(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap())
    }

    /// Runs `cat`, under whatever name: it says "ready" because it was told to, so it is what runs.
    pub fn cat(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.as_mut().unwrap().write_all(b"ready\n").unwrap();
        Self::ready(child)
    }

    fn ready(mut child: Child) -> Self {
        let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap() == "ready"), "it ended: {child:?}");
        Self(child)
    }

    pub fn pid(&self) -> u32 {
        self.0.id()
    }

    /// Whether its namespace shows this as a mount point.
    pub fn shows(&self, point: &Path) -> bool {
        let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", self.pid())).unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == point.to_str())
    }
}

pub fn waiting(script: &str) -> String {
    format!("set -e; {script}; echo ready; read -r _ || true")
}

impl Drop for Process {
    fn drop(&mut self) {
        // A line for `read`, and the end for `cat`.
        let _told = self.0.stdin.take().map(|mut stdin| stdin.write_all(b"\n"));
        let _ended = self.0.wait();
    }
}

pub fn copied(point: &Path) -> String {
    format!("has a copy of the mount at {} in another mount namespace", point.display())
}

/// Waits until a process waits in the kernel for a FUSE server.
pub fn wait_until_stuck(pid: u32) {
    let until = Instant::now() + Duration::from_secs(20);
    loop {
        let wchan = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        if wchan.contains("fuse") || wchan.contains("request_wait") || stat.contains(") D ") {
            return;
        }
        assert!(Instant::now() < until, "{wchan} {stat}");
        std::thread::yield_now();
    }
}

/// How long our threads, those that live, were on a CPU.
pub fn on_cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let spent = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap());
    Duration::from_nanos(spent.map(|s| s.split(' ').next().unwrap().parse::<u64>().unwrap()).sum())
}
