//! Root tests of their own: each runs again as a process with its own mount and process namespaces, so its mounts are seen
//! nowhere else and nothing stays; and a host there whose children are the real volumed.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it"
)]

#[path = "../support/world.rs"]
mod world;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};

use world::NONE;
pub use world::{World, at, isolated};

/// How long a state may take to come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a state; what it is comes with the failure.
pub async fn eventually(what: &str, state: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !state() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        // Not tokio's clock: a test may have stopped it.
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(5))).await.unwrap();
    }
}

/// Returns the children of this process, by pid and name, without those that ended with all their threads.
pub fn children() -> Vec<(u32, String)> {
    let own = format!("PPid:\t{}", std::process::id());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        if status.lines().any(|line| line == own) && states(pid).iter().any(|state| !"ZX".contains(*state)) {
            let name = status.lines().find_map(|line| line.strip_prefix("Name:\t"));
            found.push((pid, name.unwrap_or_default().to_owned()));
        }
    }
    found
}

/// Returns the states of a process's threads, as in /proc: `D` for one that no signal reaches.
pub fn states(pid: u32) -> Vec<char> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let status =
        threads.map(|thread| std::fs::read_to_string(thread.path().join("status")).unwrap_or_default());
    status
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("State:\t"))?.chars().next())
        .collect()
}

/// Returns where in the kernel a process's threads wait.
pub fn waits(pid: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.map(|thread| std::fs::read_to_string(thread.path().join("wchan")).unwrap_or_default()).collect()
}

impl World {
    pub fn new() -> Self {
        Self::of(|linux| linux.with_child_program(env!("CARGO_BIN_EXE_volumed").into()))
    }

    /// A FUSE file system whose server does not answer as long as the file is open, and is dead when it is closed.
    pub fn fuse(&self, path: &str) -> (PathBuf, File) {
        let path = self.directory(path);
        let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("test"), &path, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        (path, server)
    }

    /// An ext4 file system on a loop device, which goes with its mount.
    pub fn ext4(&self, path: &str) -> PathBuf {
        let image = self.top.path().join("image");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let point = self.directory(path);
        run("mkfs.ext4", &["-q".as_ref(), image.as_ref()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), point.as_ref()]);
        point
    }
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}
