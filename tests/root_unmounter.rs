//! The processes that unmount, as the real program is them. Needs root.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

mod isolated;

use std::path::PathBuf;
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;
use volumed::host::{Host, Unmount};
use volumed::model::{MountIdentity, MountsAt, RootPath};

use isolated::{World, children, eventually, isolated};

impl World {
    async fn identity(&self, path: &PathBuf) -> MountIdentity {
        let table = self.linux.mounts().await.unwrap();
        let MountsAt::One(mount) = table.at(path) else { unreachable!("{path:?}: {:?}", table.at(path)) };
        mount.identity()
    }

    /// Mounts something and unmounts it.
    async fn mount_and_unmount(&self, name: &str) {
        let path = self.tmpfs(name);
        let expected = self.identity(&path).await;
        self.linux.unmount(RootPath::new(name).unwrap(), expected, Unmount::Plain).await.unwrap();
        let table = self.linux.mounts().await.unwrap();
        assert!(matches!(table.at(&path), MountsAt::None), "{:?}", table.at(&path));
    }
}

#[test]
fn one_process_makes_unmounts_one_after_another_and_ends_with_the_host() {
    isolated("one_process_makes_unmounts_one_after_another_and_ends_with_the_host", async {
        let world = World::new();
        world.mount_and_unmount("pods/first").await;
        let first = children();
        assert!(matches!(&first[..], [(_, name)] if name == "volumed-child"), "{first:?}");
        for _ in 0..20 {
            world.mount_and_unmount("pods/x").await;
        }
        assert_eq!(children(), first);
        drop(world);
        eventually("its end", || children().is_empty()).await;
    });
}

#[test]
fn unmounts_at_once_do_not_wait_for_one_process() {
    isolated("unmounts_at_once_do_not_wait_for_one_process", async {
        let world = Arc::new(World::new());
        let mut unmounts = JoinSet::new();
        for number in 0..50 {
            let world = Arc::clone(&world);
            unmounts.spawn(async move { world.mount_and_unmount(&format!("pods/{number}")).await });
        }
        unmounts.join_all().await;
        assert!(children().len() > 1, "{:?}", children());
    });
}

#[test]
fn one_that_was_killed_is_replaced() {
    isolated("one_that_was_killed_is_replaced", async {
        let world = World::new();
        for _ in 0..3 {
            world.mount_and_unmount("pods/x").await;
            for (pid, _) in children() {
                kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
            }
            eventually("its end", || children().is_empty()).await;
        }
    });
}

#[test]
fn what_is_meant_for_the_whole_service_does_not_cut_off_its_last_unmounts() {
    isolated("what_is_meant_for_the_whole_service_does_not_cut_off_its_last_unmounts", async {
        let world = World::new();
        world.mount_and_unmount("pods/x").await;
        let before = children();
        for (pid, _) in &before {
            for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT] {
                kill(Pid::from_raw((*pid).try_into().unwrap()), signal).unwrap();
            }
        }
        world.mount_and_unmount("pods/x").await;
        assert_eq!(children(), before);
    });
}
