//! What holds a block device that a pod sees, and who else has it, on real loop devices. Needs root.

mod block;

use std::collections::BTreeSet;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use volumed::host::{DeviceUsers, Host, HostError};

use block::{Holder, NONE, World, isolated, open};

#[test]
fn a_locked_device_s_number_is_not_given_to_another() {
    isolated("a_locked_device_s_number_is_not_given_to_another", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        world.linux.map_block(world.block()).await.unwrap();
        // The driver lets its device go, as it does when it is told to unstage behind our back.
        block::losetup_d(&device.path);
        assert_eq!(device.backing().as_deref(), Some(device.file.as_path()), "held by the lock");
        // Somebody else asks for a device: not this one.
        let other = world.device();
        assert_ne!(other.path, device.path);
        world.unmap().await;
        world.assert_unmapped(&device);
        block::wait_until("the driver's device goes with the lock", || device.backing().is_none());
    });
}

#[test]
fn locks_are_found_again_after_a_restart() {
    isolated("locks_are_found_again_after_a_restart", async {
        let mut world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        world.linux.map_block(world.block()).await.unwrap();
        let lock = world.assert_mapped(&device).await;
        world.linux = open(&world.root);
        world.linux.map_block(world.block()).await.unwrap();
        assert_eq!(world.assert_mapped(&device).await, lock, "found, not made again");
        // The bind was taken away under it, so that its path says nothing any more.
        umount2(&world.map(), MntFlags::MNT_DETACH).unwrap();
        assert_eq!(block::backing(&lock).as_deref(), Some(Path::new("/")));
        world.linux.map_block(world.block()).await.unwrap();
        world.assert_mapped(&device).await;
        umount2(&world.map(), MntFlags::MNT_DETACH).unwrap();
        umount2(&world.published(), MntFlags::empty()).unwrap();
        world.unmap().await;
        world.assert_unmapped(&device);
    });
}

#[test]
fn only_locks_of_this_root_that_nobody_knows_are_collected() {
    isolated("only_locks_of_this_root_that_nobody_knows_are_collected", async {
        let (world, other) = (World::new(), World::new());
        let devices = [world.device(), other.device()];
        for (world, device) in [&world, &other].into_iter().zip(&devices) {
            world.publish_bind(device);
            world.linux.map_block(world.block()).await.unwrap();
        }
        let theirs = other.assert_mapped(&devices[1]).await;
        let nobody = BTreeSet::new();
        // What is still bound is still shown to somebody.
        assert_eq!(world.linux.collect_locks(nobody.clone()).await.unwrap(), Vec::<String>::new());
        world.assert_mapped(&devices[0]).await;
        for world in [&world, &other] {
            umount2(&world.map(), MntFlags::MNT_DETACH).unwrap();
        }
        let known = BTreeSet::from([world.block().map]);
        assert_eq!(world.linux.collect_locks(known.clone()).await.unwrap(), Vec::<String>::new());
        let foreign = world.kubelet_lock(&devices[0].path);
        assert_eq!(world.linux.collect_locks(nobody.clone()).await.unwrap().len(), 1);
        assert_eq!(
            world.locks(&devices[0]),
            std::slice::from_ref(&foreign.path),
            "ours is gone, the foreign one is not"
        );
        assert_eq!(other.locks(&devices[1]), [theirs], "another root's is not ours");
        let again = world.linux.collect_locks(nobody.clone()).await.unwrap();
        assert_eq!(again, Vec::<String>::new());
    });
}

#[test]
fn a_kubelet_s_lock_is_taken_over_and_goes_with_ours() {
    isolated("a_kubelet_s_lock_is_taken_over_and_goes_with_ours", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        std::fs::create_dir_all(world.map().parent().unwrap()).unwrap();
        std::fs::write(world.map(), "").unwrap();
        mount(Some(&device.path), &world.map(), NONE, MsFlags::MS_BIND, NONE).unwrap();
        let theirs = world.kubelet_lock(&world.map());
        world.linux.map_block(world.block()).await.unwrap();
        assert_eq!(
            world.locks(&device),
            std::slice::from_ref(&theirs.path),
            "it holds the device well enough"
        );
        world.unmap().await;
        world.assert_unmapped(&device);
    });
}

#[test]
fn a_device_in_use_is_not_taken_away_unless_told_to() {
    isolated("a_device_in_use_is_not_taken_away_unless_told_to", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        world.linux.map_block(world.block()).await.unwrap();
        // Through the link, and through a node of a container's own.
        let node = world.top.path().join("xvda");
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR);
        nix::sys::stat::mknod(&node, kind, mode, device.number()).unwrap();
        for path in [&world.link(), &node] {
            let holder = Holder::start("exec 3<\"$1\"", path);
            let refused = world.linux.unmap_block(world.block(), DeviceUsers::Count { driver: None }).await;
            let name = format!("pid {} (sh) has ", holder.0.id());
            assert!(
                matches!(&refused, Err(HostError::Busy { holder, .. }) if holder.starts_with(&name)),
                "{refused:?}"
            );
            world.assert_mapped(&device).await;
        }
        // A file system on it, mounted elsewhere.
        let mnt = world.top.path().join("mnt");
        std::fs::create_dir(&mnt).unwrap();
        block::run("mkfs.ext4", &["-q".as_ref(), device.path.as_os_str()]);
        mount(Some(&device.path), &mnt, Some("ext4"), MsFlags::empty(), NONE).unwrap();
        let refused = world.linux.unmap_block(world.block(), DeviceUsers::Count { driver: None }).await;
        let at = format!("has a file system on it mounted at {}", mnt.display());
        assert!(
            matches!(&refused, Err(HostError::Busy { holder, .. }) if holder.contains(&at)),
            "{refused:?}"
        );
        umount2(&mnt, MntFlags::empty()).unwrap();
        let _holder = Holder::start("exec 3<\"$1\"", &node);
        world.linux.unmap_block(world.block(), DeviceUsers::Ignored).await.unwrap();
        world.assert_unmapped(&device);
    });
}

#[test]
fn another_pod_s_use_of_a_shared_device_does_not_keep_this_one_s() {
    isolated("another_pod_s_use_of_a_shared_device_does_not_keep_this_one_s", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        let other = world.other_pod();
        let published = world.root.join(other.published.as_path());
        block::bind(&device.path, &published);
        world.linux.map_block(world.block()).await.unwrap();
        world.linux.map_block(other.clone()).await.unwrap();
        let theirs = Holder::start("exec 3<\"$1\"", &published);
        let own = Holder::start("exec 3<\"$1\"", &world.link());
        let refused = world.linux.unmap_block(world.block(), DeviceUsers::Count { driver: None }).await;
        assert!(
            matches!(&refused, Err(HostError::Busy { holder, .. }) if holder.contains(&format!("pid {} ", own.0.id()))),
            "{refused:?}"
        );
        drop(own);
        world.unmap().await;
        assert!(!world.map().try_exists().unwrap());
        assert_eq!(world.locks(&device).len(), 1, "the other pod's");
        drop(theirs);
        world.linux.unmap_block(other, DeviceUsers::Count { driver: None }).await.unwrap();
        world.assert_unmapped(&device);
    });
}

#[test]
fn a_lock_that_somebody_has_open_goes_with_them() {
    isolated("a_lock_that_somebody_has_open_goes_with_them", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        world.linux.map_block(world.block()).await.unwrap();
        let lock = world.assert_mapped(&device).await;
        let holder = Holder::start("exec 3<\"$1\"", &lock);
        let refused = world.linux.unmap_block(world.block(), DeviceUsers::Count { driver: None }).await;
        let name = format!("pid {} (sh) has {} open", holder.0.id(), lock.display());
        assert!(
            matches!(&refused, Err(HostError::Busy { holder, path }) if *holder == name && *path == lock),
            "{refused:?}"
        );
        drop(holder);
        world.unmap().await;
        world.assert_unmapped(&device);
    });
}
