//! The real host with real mounts. Needs root.
//!
//! Each test runs again as a process of its own with its own mount and process namespaces: its mounts are seen nowhere else,
//! nothing stays, and the look at all processes (design rule 1) sees those of this test only. No runner is needed; one with
//! `unshare -m` is fine too.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

#[path = "real_host/empty_dirs.rs"]
mod empty_dirs;
#[path = "real_host/world.rs"]
mod world;

use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use volumed::host::{Host, HostError, Removal, Seen, Tree, Unmount};
use volumed::model::{MountIdentity, MountsAt};

use world::{Holder, NONE, World, at, isolated};

const DEADLINE: Duration = Duration::from_secs(20);

// ---- the mount table

#[test]
fn mounts_changed_wakes_on_a_mount_and_on_an_unmount() {
    isolated("mounts_changed_wakes_on_a_mount_and_on_an_unmount", async {
        let world = World::new();
        let before = world.linux.mounts().await.unwrap();
        // What happened before the first call, making the namespace for one, may be reported once.
        while tokio::time::timeout(Duration::from_millis(50), world.linux.mounts_changed()).await.is_ok() {}
        let path = world.tmpfs("pods/x");
        tokio::time::timeout(DEADLINE, world.linux.mounts_changed()).await.expect("a mount is a change");
        assert!(world.is_mounted(&path).await && matches!(before.at(&path), MountsAt::None));
        umount2(&path, MntFlags::empty()).unwrap();
        tokio::time::timeout(DEADLINE, world.linux.mounts_changed()).await.expect("an unmount is a change");
        assert!(!world.is_mounted(&path).await);
        // What is marked and told may be heard of twice.
        while tokio::time::timeout(Duration::from_millis(50), world.linux.mounts_changed()).await.is_ok() {}
        assert!(!world.is_mounted(&path).await);
        let quiet = tokio::time::timeout(Duration::from_millis(50), world.linux.mounts_changed()).await;
        assert!(quiet.is_err(), "reading the table makes no change");
    });
}

#[test]
fn all_that_one_unmount_takes_is_heard_of() {
    isolated("all_that_one_unmount_takes_is_heard_of", async {
        let world = Arc::new(World::new());
        // Another one looks all the time, and takes what the kernel tells.
        let (ended, other) = (Arc::new(AtomicBool::new(false)), Arc::clone(&world));
        let (is_ended, runtime) = (Arc::clone(&ended), tokio::runtime::Handle::current());
        let looking = std::thread::spawn(move || {
            while !is_ended.load(Ordering::Relaxed) {
                runtime.block_on(other.linux.mounts()).unwrap();
            }
        });
        for _ in 0..30 {
            let top = world.tmpfs("pods/x");
            for number in 0..300 {
                world.tmpfs(&format!("pods/x/{number}"));
            }
            // As the loop has it: what it saw last.
            let mut table = world.linux.mounts().await.unwrap();
            assert_eq!(table.below(&top).count(), 300);
            // The kernel marks the table, and then tells of one mount after the other.
            let gone = top.clone();
            let unmounting = std::thread::spawn(move || umount2(&gone, MntFlags::MNT_DETACH).unwrap());
            while table.below(&top).next().is_some() || !matches!(table.at(&top), MountsAt::None) {
                let changed = tokio::time::timeout(DEADLINE, world.linux.mounts_changed());
                changed.await.expect("a change is heard of");
                table = world.linux.mounts().await.unwrap();
            }
            unmounting.join().unwrap();
        }
        ended.store(true, Ordering::Relaxed);
        looking.join().unwrap();
    });
}

#[test]
fn who_looks_first_wakes_who_waits() {
    isolated("who_looks_first_wakes_who_waits", async {
        let world = World::new();
        world.linux.mounts().await.unwrap();
        world.tmpfs("pods/x");
        // Whoever waits was woken, but did not look: what the kernel had to tell is still to be taken.
        while tokio::time::timeout(Duration::from_millis(50), world.linux.mounts_changed()).await.is_ok() {}
        let table = world.linux.mounts().await.unwrap();
        tokio::time::timeout(DEADLINE, world.linux.mounts_changed()).await.expect("somebody else took it");
        assert!(Arc::ptr_eq(&table, &world.linux.mounts().await.unwrap()));
        let quiet = tokio::time::timeout(Duration::from_millis(50), world.linux.mounts_changed()).await;
        assert!(quiet.is_err(), "a look that found nothing new wakes nobody");
    });
}

#[test]
fn a_change_is_not_lost_with_a_dropped_wait() {
    isolated("a_change_is_not_lost_with_a_dropped_wait", async {
        let world = World::new();
        while tokio::time::timeout(Duration::from_millis(50), world.linux.mounts_changed()).await.is_ok() {}
        world.tmpfs("pods/x");
        for _ in 0..3 {
            // Polled once and dropped while it waits or before it was ever polled.
            drop(world.linux.mounts_changed());
            let mut wait = world.linux.mounts_changed();
            let ready =
                std::future::poll_fn(|cx| std::task::Poll::Ready(wait.as_mut().poll(cx).is_ready())).await;
            if ready {
                return;
            }
        }
        tokio::time::timeout(DEADLINE, world.linux.mounts_changed())
            .await
            .expect("the change is still there");
    });
}

#[test]
fn the_table_is_read_only_when_it_changed() {
    isolated("the_table_is_read_only_when_it_changed", async {
        let world = World::new();
        let first = world.linux.mounts().await.unwrap();
        let second = world.linux.mounts().await.unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        world.tmpfs("pods/x");
        let third = world.linux.mounts().await.unwrap();
        assert!(!Arc::ptr_eq(&second, &third) && first != third);
    });
}

#[test]
fn a_mount_over_a_mount_is_seen_as_stacked() {
    isolated("a_mount_over_a_mount_is_seen_as_stacked", async {
        let world = World::new();
        let path = world.tmpfs("pods/x");
        let expected = world.identity(&path).await;
        world.tmpfs("pods/x");
        let table = world.linux.mounts().await.unwrap();
        assert!(matches!(table.at(&path), MountsAt::Stacked([_, _])), "{:?}", table.at(&path));
        let refused = world.linux.unmount(at("pods/x"), expected, Unmount::Plain).await;
        assert!(matches!(refused, Err(HostError::WrongMount { .. })), "{refused:?}");
        let table = world.linux.mounts().await.unwrap();
        assert!(matches!(table.at(&path), MountsAt::Stacked([_, _])), "nothing was unmounted");
    });
}

#[test]
fn names_with_blanks_and_backslashes_are_found_again() {
    isolated("names_with_blanks_and_backslashes_are_found_again", async {
        let world = World::new();
        let path = world.tmpfs("pods/a b\\c\nd#ü");
        let expected = world.identity(&path).await;
        world.linux.unmount(at("pods/a b\\c\nd#ü"), expected, Unmount::Plain).await.unwrap();
        assert!(!world.is_mounted(&path).await);
    });
}

// ---- unmount (design rule 3)

#[test]
fn the_recorded_mount_is_unmounted_and_twice_is_fine() {
    isolated("the_recorded_mount_is_unmounted_and_twice_is_fine", async {
        let world = World::new();
        let path = world.tmpfs("pods/x");
        let expected = world.identity(&path).await;
        world.linux.unmount(at("pods/x"), expected.clone(), Unmount::Plain).await.unwrap();
        assert!(!world.is_mounted(&path).await);
        world.linux.unmount(at("pods/x"), expected, Unmount::Plain).await.unwrap();
    });
}

#[test]
fn a_busy_mount_stays_and_its_holder_is_named() {
    isolated("a_busy_mount_stays_and_its_holder_is_named", async {
        let world = World::new();
        let path = world.tmpfs("pods/x");
        std::fs::write(path.join("file"), "data").unwrap();
        let expected = world.identity(&path).await;
        for script in ["exec 3<\"$1/file\"", "cd \"$1\""] {
            let holder = Holder::start(script, &path);
            let refused = world.linux.unmount(at("pods/x"), expected.clone(), Unmount::Plain).await;
            let pid = format!("process {} (sh)", holder.0.id());
            assert!(
                matches!(&refused, Err(HostError::Busy { holder, .. }) if *holder == pid),
                "{script}: {refused:?}, not {pid}"
            );
            assert_eq!(std::fs::read(path.join("file")).unwrap(), b"data", "{script}: not even lazily");
            assert!(world.is_mounted(&path).await);
        }
        world.linux.unmount(at("pods/x"), expected, Unmount::Plain).await.unwrap();
    });
}

#[test]
fn another_mount_than_the_recorded_one_stays() {
    isolated("another_mount_than_the_recorded_one_stays", async {
        let world = World::new();
        let path = world.tmpfs("pods/x");
        let recorded = world.identity(&path).await;
        umount2(&path, MntFlags::empty()).unwrap();
        // Keeps the old device number from being given out again.
        world.tmpfs("pods/other");
        world.tmpfs("pods/x");
        let now = world.identity(&path).await;
        let recorded =
            MountIdentity { device: if recorded == now { (0, 1) } else { recorded.device }, ..recorded };
        let refused = world.linux.unmount(at("pods/x"), recorded, Unmount::Plain).await;
        assert!(matches!(refused, Err(HostError::WrongMount { .. })), "{refused:?}");
        assert!(world.is_mounted(&path).await);
    });
}

#[test]
fn a_mount_with_another_below_it_stays() {
    isolated("a_mount_with_another_below_it_stays", async {
        let world = World::new();
        let path = world.tmpfs("pods/x");
        let below = world.tmpfs("pods/x/below");
        let expected = world.identity(&path).await;
        let refused = world.linux.unmount(at("pods/x"), expected, Unmount::Plain).await;
        assert!(matches!(refused, Err(HostError::WrongMount { .. })), "{refused:?}");
        assert!(world.is_mounted(&path).await && world.is_mounted(&below).await);
    });
}

#[test]
fn an_unmount_does_not_follow_a_symlink() {
    isolated("an_unmount_does_not_follow_a_symlink", async {
        let world = World::new();
        // The table says that it is mounted at the recorded path. It moves away behind a symlink at the last moment: both paths
        // lead to the mount, only one without a symlink.
        let elsewhere = world.top.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        mount(Some("tmpfs"), &elsewhere, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        let expected = world.identity(&elsewhere).await;
        symlink(&elsewhere, world.root.join("pods/x")).unwrap();
        world.linux.unmount(at("pods/x"), expected, Unmount::Plain).await.unwrap();
        assert!(world.is_mounted(&elsewhere).await, "nothing is mounted at pods/x, so nothing was done");
    });
}

// ---- known files and empty directories (design rule 1)

#[test]
fn nothing_is_made_seen_or_removed_across_a_mount() {
    isolated("nothing_is_made_seen_or_removed_across_a_mount", async {
        let world = World::new();
        let path = world.tmpfs("pods/u/volumes/x/mount");
        std::fs::write(path.join("file"), "").unwrap();
        std::fs::create_dir(path.join("empty")).unwrap();
        let mounted = at("pods/u/volumes/x/mount");
        let is_mount = |e: HostError| matches!(e, HostError::WrongKind { found: "a mount point", .. });
        let file = Removal { files: vec![mounted.join("file")], ..Removal::default() };
        assert!(is_mount(world.linux.remove(file).await.unwrap_err()));
        let below = Removal { directories: vec![mounted.join("empty")], ..Removal::default() };
        assert!(is_mount(world.linux.remove(below).await.unwrap_err()));
        let itself = Removal { directories: vec![mounted.clone()], ..Removal::default() };
        assert!(is_mount(world.linux.remove(itself).await.unwrap_err()));
        let new = Tree { directories: vec![], files: vec![(mounted.join("new"), vec![], 0o644)] };
        assert!(is_mount(world.linux.create(new).await.unwrap_err()));
        assert!(is_mount(world.linux.look(mounted.join("file")).await.unwrap_err()));
        assert!(path.join("file").is_file() && path.join("empty").is_dir());
        assert!(!path.join("new").try_exists().unwrap());
    });
}

#[test]
fn a_mounted_file_is_not_unlinked() {
    isolated("a_mounted_file_is_not_unlinked", async {
        let world = World::new();
        let directory = world.directory("pods/u");
        std::fs::write(directory.join("file"), "").unwrap();
        std::fs::write(world.top.path().join("source"), "data").unwrap();
        let source = world.top.path().join("source");
        mount(Some(&source), &directory.join("file"), NONE, MsFlags::MS_BIND, NONE).unwrap();
        let removal = Removal { files: vec![at("pods/u").join("file")], ..Removal::default() };
        let refused = world.linux.remove(removal).await;
        assert!(matches!(refused, Err(HostError::WrongKind { found: "a mount point", .. })), "{refused:?}");
        assert_eq!(std::fs::read(directory.join("file")).unwrap(), b"data");
    });
}

#[test]
fn pods_may_be_a_file_system_of_its_own() {
    isolated("pods_may_be_a_file_system_of_its_own", async {
        let world = World::new();
        world.tmpfs("pods");
        let files = vec![(at("pods/u/file"), b"x".to_vec(), 0o644)];
        world.linux.create(Tree { directories: vec![], files }).await.unwrap();
        assert_eq!(world.linux.look(at("pods/u/file")).await.unwrap(), Seen::Other);
    });
}

#[test]
fn volumes_on_disk_does_not_look_into_a_mount() {
    isolated("volumes_on_disk_does_not_look_into_a_mount", async {
        let world = World::new();
        let volume = world.tmpfs("pods/u/volumes/kubernetes.io~empty-dir/ram");
        std::fs::write(volume.join("vol_data.json"), "{\"driverName\":\"a lie\"}").unwrap();
        world.tmpfs("pods/u/volumes/kubernetes.io~csi/pv/mount");
        for found in world.linux.volumes_on_disk().await.unwrap() {
            assert_eq!((&found.vol_data, found.empty), (&None, false), "{found:?}");
        }
    });
}
