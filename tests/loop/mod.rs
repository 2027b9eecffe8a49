//! A driver of a test's own, and the calls of a container orchestrator.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::panic,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it, and its helpers may fail loudly"
)]

pub mod calls;
pub mod check;
pub mod crash;
pub mod device;
pub mod freeze;
pub mod full;
pub mod lists;
pub mod writer;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::support::{PATIENCE, Process, TestHost, loop_devices, until};

/// The driver's program.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_volumed-csi-loop");

/// A driver that runs, and its host.
pub struct Loop {
    pub host: TestHost,
    pub dir: PathBuf,
    pub process: Option<Process>,
    /// The backing file system of a test's own, unmounted at the end.
    backing: Option<PathBuf>,
}

impl Loop {
    /// Starts a driver with its directory on the test's file system.
    pub fn new() -> Self {
        Self::with(&[])
    }

    /// Starts one in an environment.
    pub fn with(environment: &[(&str, &str)]) -> Self {
        let host = TestHost::new();
        let dir = host.path("images");
        Self::start(host, dir, None, environment)
    }

    /// Starts one with its directory on a file system of its own.
    pub fn on(fs_type: &str, size: &str) -> Self {
        let host = TestHost::new();
        let (image, backing) = (host.path("backing.img"), host.path("backing"));
        fs::create_dir(&backing).expect("a directory");
        if fs_type == "tmpfs" {
            run("mount", &["-t", fs_type, "-o", &format!("size={size}"), "none", path(&backing)]);
        } else {
            run("truncate", &["-s", size, path(&image)]);
            run(&format!("mkfs.{fs_type}"), &["-q", path(&image)]);
            run("mount", &["-o", "loop", path(&image), path(&backing)]);
        }
        let dir = backing.join("images");
        Self::start(host, dir, Some(backing), &[])
    }

    fn start(host: TestHost, dir: PathBuf, backing: Option<PathBuf>, environment: &[(&str, &str)]) -> Self {
        let mut driver = Self { host, dir, process: None, backing };
        driver.restart(environment);
        driver
    }

    /// Ends the process as `kill -9` does, if it has not ended, and starts another.
    pub fn restart(&mut self, environment: &[(&str, &str)]) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
        let log = self.host.path("driver.log");
        let before = fs::read_to_string(&log).unwrap_or_default().matches(" ready ").count();
        let mut command = Command::new(PROGRAM);
        command
            .arg("--dir")
            .arg(&self.dir)
            .arg("--endpoint")
            .arg(self.host.path("csi.sock"))
            .args(["--node-id", "test-node"])
            .arg("--config")
            .arg(self.config())
            .envs(environment.iter().copied());
        self.process = Some(self.host.spawn(command, "driver.log"));
        until("the driver is ready", || {
            fs::read_to_string(&log).unwrap_or_default().matches(" ready ").count() > before
        });
    }

    /// Waits until the process has ended by itself.
    pub fn ended(&mut self) {
        let process = self.process.take().expect("it was started");
        let _status = process.ended();
    }

    fn config(&self) -> PathBuf {
        let config = self.host.path("csi-loop.toml");
        if !config.try_exists().expect("it can be looked at") {
            fs::write(&config, "reserve = '0'\n").expect("a configuration");
        }
        config
    }

    /// Makes a call.
    pub fn call<T>(
        &self,
        call: impl AsyncFnOnce(Channel) -> Result<tonic::Response<T>, Status>,
    ) -> Result<T, Status> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("unix://{}", self.host.path("csi.sock").display()));
            let channel = endpoint.expect("an address").connect_lazy();
            let answer = tokio::time::timeout(PATIENCE, call(channel)).await.expect("an answer in time");
            answer.map(tonic::Response::into_inner)
        })
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.host.path("driver.log")).unwrap_or_default()
    }

    /// A staging directory, made as a container orchestrator does.
    pub fn staging(&self, name: &str) -> PathBuf {
        let path = self.host.path("staging").join(name);
        fs::create_dir_all(&path).expect("a directory");
        path
    }

    /// A target, which is not there; its parent is.
    pub fn target(&self, name: &str) -> PathBuf {
        let parent = self.host.path("targets");
        fs::create_dir_all(&parent).expect("a directory");
        parent.join(name)
    }

    /// Everything is gone: mounts, loop devices, images, targets, what was begun.
    pub fn assert_nothing_left(&self) {
        let mounts: Vec<_> =
            self.host.mounts().into_iter().filter(|at| Some(at) != self.backing.as_ref()).collect();
        assert_eq!(mounts, Vec::<PathBuf>::new(), "mounts are left\n{}", self.log());
        until("no loop device is left", || loop_devices(&self.dir).is_empty());
        for kind in ["volumes", "snapshots", "groups"] {
            let left: Vec<_> = fs::read_dir(self.dir.join(kind)).expect("it is there").flatten().collect();
            assert!(left.is_empty(), "{kind} are left: {left:?}\n{}", self.log());
        }
        let targets: Vec<_> =
            fs::read_dir(self.host.path("targets")).into_iter().flatten().flatten().collect();
        assert!(targets.is_empty(), "targets are left: {targets:?}");
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
        // What a failed test left, from the inside out: the backing file system is the last.
        for mount in self.host.mounts().into_iter().rev() {
            let _ended = Command::new("umount").arg(&mount).status();
        }
        for device in loop_devices(&self.dir) {
            let _ended = Command::new("losetup").arg("--detach").arg(&device).status();
        }
        if let Some(backing) = &self.backing {
            // Gone already unless something in it held it.
            let _ended = Command::new("umount").arg("--quiet").arg(backing).status();
        }
    }
}

/// Runs a tool, which has to succeed; returns what it said.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().expect("the tool can be run");
    assert!(output.status.success(), "{program} {arguments:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("a test's path is text")
}

/// Writes a file and syncs it.
pub fn write(path: &Path, bytes: &[u8]) {
    use std::io::Write as _;
    let mut file = fs::File::create(path).expect("a file");
    file.write_all(bytes).expect("its content");
    file.sync_all().expect("it can be synced");
}

/// The bytes of the file system at a path, in all.
pub fn capacity(at: &Path) -> u64 {
    run("stat", &["--file-system", "--format=%b %S", path(at)])
        .split_whitespace()
        .map(|number| number.parse::<u64>().expect("a number"))
        .product()
}
