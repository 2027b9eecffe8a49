//! A root directory on real mounts, in namespaces of a test's own.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "every test binary uses a part of it, and helper functions are not covered by the allow-in-tests settings"
)]

#[path = "alone.rs"]
pub mod alone;

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use volumed::host::Linux;
use volumed::model::RootPath;

pub const NONE: Option<&str> = None;

pub fn at(path: impl Into<PathBuf>) -> RootPath {
    RootPath::new(path).unwrap()
}

/// Runs a test alone in new namespaces.
pub fn isolated(name: &str, test: impl Future<Output = ()>) {
    alone::run(name, test, |_| ());
}

/// Lets go of every mount below a directory that is deleted next: nothing of it may still show something else.
pub fn unmount_below(top: &Path) {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    for point in points.iter().rev().filter(|p| Path::new(p).starts_with(top)) {
        let _result = umount2(*point, MntFlags::MNT_DETACH);
    }
}

/// A root directory in a mount namespace of its own. Dropped, it unmounts what it mounted.
pub struct World {
    pub linux: Linux,
    pub root: PathBuf,
    pub top: tempfile::TempDir,
}

impl World {
    /// Opens the root as a test wants it.
    pub fn of(wanted: impl FnOnce(Linux) -> Linux) -> Self {
        let top = tempfile::tempdir().unwrap();
        let linux = wanted(Linux::open(&top.path().join("root")).unwrap());
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
}

impl Drop for World {
    fn drop(&mut self) {
        unmount_below(self.top.path());
    }
}
