//! A root directory on real mounts, in namespaces of a test's own, and processes that use what is below it.

#![allow(unreachable_pub, clippy::allow_attributes, reason = "a module of a test binary")]

#[path = "../support/holder.rs"]
mod holder;
#[path = "../support/world.rs"]
mod shared;

use std::path::{Path, PathBuf};

use volumed::host::{Host, HostError};
use volumed::model::{MountIdentity, MountsAt};

pub use holder::Holder;
pub use shared::{NONE, World, at, isolated};

pub const SPEC: &str = "pods/u1/volumes/kubernetes.io~empty-dir/cache";

impl World {
    pub fn new() -> Self {
        Self::of(|linux| linux.with_child_program(env!("CARGO_BIN_EXE_volumed").into()))
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
