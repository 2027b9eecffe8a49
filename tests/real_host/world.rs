//! A root directory on real mounts, in namespaces of a test's own, and processes that use what is below it.

#![allow(unreachable_pub, clippy::allow_attributes, reason = "a module of a test binary")]

#[path = "../support/alone.rs"]
mod alone;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use volumed::host::{Host, HostError, Linux};
use volumed::model::{MountIdentity, MountsAt, RootPath};

pub const SPEC: &str = "pods/u1/volumes/kubernetes.io~empty-dir/cache";

pub const NONE: Option<&str> = None;

pub fn at(path: &str) -> RootPath {
    RootPath::new(path).unwrap()
}

/// Runs a test alone in new namespaces.
pub fn isolated(name: &str, test: impl Future<Output = ()>) {
    alone::run(name, test, |_| ());
}

/// A root directory in a mount namespace of its own. Dropped, it unmounts what it mounted.
pub struct World {
    pub linux: Linux,
    pub root: PathBuf,
    pub top: tempfile::TempDir,
}

impl World {
    pub fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let linux = Linux::open(&top.path().join("root")).unwrap();
        let root = linux.root().to_owned();
        Self { linux, root, top }
    }

    pub fn directory(&self, path: &str) -> PathBuf {
        let path = self.root.join(path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    pub fn tmpfs(&self, path: &str) -> PathBuf {
        let path = self.directory(path);
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        path
    }

    /// An emptyDir with a file and a tree in it.
    pub fn empty_dir(&self) -> PathBuf {
        let path = self.directory(SPEC);
        std::fs::create_dir_all(path.join("a/b/c")).unwrap();
        std::fs::write(path.join("a/b/file"), "data").unwrap();
        std::fs::write(path.join("data"), "data").unwrap();
        path
    }

    pub async fn identity(&self, path: &Path) -> MountIdentity {
        match self.linux.mounts().await.unwrap().at(path) {
            MountsAt::One(mount) => mount.identity(),
            other => panic!("{other:?}"),
        }
    }

    pub async fn is_mounted(&self, path: &Path) -> bool {
        self.linux.mounts().await.unwrap().at(path) != MountsAt::None
    }

    /// Asserts that the emptyDir is refused for a reason that names this, and that nothing of it is gone.
    pub async fn assert_kept(&self, holder: &str) {
        let refused = self.linux.remove_empty_dir(at(SPEC)).await;
        assert!(
            matches!(&refused, Err(HostError::Busy { holder: found, .. }) if found.contains(holder)),
            "{refused:?}"
        );
        let path = self.root.join(SPEC);
        assert_eq!(std::fs::read(path.join("data")).unwrap(), b"data");
        assert_eq!(std::fs::read(path.join("a/b/file")).unwrap(), b"data");
        assert!(path.join("a/b/c").is_dir());
    }

    pub async fn assert_removed(&self) {
        self.linux.remove_empty_dir(at(SPEC)).await.unwrap();
        assert!(!self.root.join(SPEC).try_exists().unwrap());
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The directory is deleted next; nothing of it may still show something else.
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        for point in points.iter().rev().filter(|p| Path::new(p).starts_with(self.top.path())) {
            let _result = umount2(*point, MntFlags::MNT_DETACH);
        }
    }
}

/// A child process that said "ready" and ends with this value.
pub struct Holder(pub Child);

impl Holder {
    pub fn start(script: &str, argument: &Path) -> Self {
        let child = Command::new("sh")
            .args(["-c", &format!("set -e; {script}; echo ready; read -r _"), "sh"])
            .arg(argument)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut holder = Self(child);
        let mut line = String::new();
        BufReader::new(holder.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        holder
    }

    /// The same in a mount namespace of its own, a copy of ours.
    pub fn start_elsewhere(script: &str, argument: &Path) -> Self {
        Self::start(
            &format!(
                "exec unshare -m --propagation private sh -c '{script}; echo ready; read -r _' sh \"$1\""
            ),
            argument,
        )
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _told = self.0.stdin.take().map(|mut stdin| stdin.write_all(b"\n"));
        let _ended = self.0.wait();
    }
}
