//! Raw block devices shown to pods, on real loop devices. Needs root.

mod block;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use volumed::host::{DeviceUsers, Host, HostError, Removal, Seen};

use block::{Holder, NONE, World, at, isolated, open};

#[test]
fn a_published_device_is_bound_locked_and_linked_and_goes_again() {
    isolated("a_published_device_is_bound_locked_and_linked_and_goes_again", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        for _twice in 0..2 {
            world.linux.map_block(world.block()).await.unwrap();
            world.assert_mapped(&device).await;
            assert_eq!(std::fs::read_link(world.link()).unwrap(), world.published());
            assert_eq!(std::fs::metadata(world.link()).unwrap().rdev(), device.number());
        }
        for directory in [world.map().parent().unwrap(), world.link().parent().unwrap()] {
            assert_eq!(std::fs::metadata(directory).unwrap().permissions().mode() & 0o7777, 0o750);
        }
        for _twice in 0..2 {
            world.unmap().await;
            world.assert_unmapped(&device);
        }
        assert_eq!(
            std::fs::metadata(world.published()).unwrap().rdev(),
            device.number(),
            "the driver's stays"
        );
        umount2(&world.published(), MntFlags::empty()).unwrap();
        // What is left for `remove`, of driver and kubelet.
        let (published, map) = (world.block().published, world.block().map);
        assert_eq!(world.linux.look(published.clone()).await.unwrap(), Seen::EmptyFile);
        let data = at(block::DATA);
        std::fs::create_dir_all(world.root.join(data.as_path())).unwrap();
        std::fs::write(world.root.join(data.as_path()).join("vol_data.json"), "{}").unwrap();
        let dev = map.parent().unwrap();
        let volume = dev.parent().unwrap();
        let removal = Removal {
            files: vec![data.join("vol_data.json")],
            empty_files: vec![published.clone()],
            directories: vec![data, dev, volume, published.parent().unwrap()],
            if_empty: vec![],
        };
        world.linux.remove(removal).await.unwrap();
        let top = world.root.join("plugins/kubernetes.io/csi/volumeDevices");
        assert_eq!(block::names(&top), ["publish"]);
        assert_eq!(block::names(&top.join("publish")), Vec::<String>::new());
    });
}

#[test]
fn a_node_that_the_driver_made_is_shown_too() {
    isolated("a_node_that_the_driver_made_is_shown_too", async {
        let world = World::new();
        let device = world.device();
        world.make_published_parent();
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR);
        nix::sys::stat::mknod(&world.published(), kind, mode, device.number()).unwrap();
        assert_eq!(world.linux.look(world.block().published).await.unwrap(), Seen::Device);
        for node_goes in [false, true] {
            world.linux.map_block(world.block()).await.unwrap();
            let lock = world.assert_mapped(&device).await;
            if node_goes {
                // Then the path of what the lock holds says nothing any more.
                umount2(&world.map(), MntFlags::MNT_DETACH).unwrap();
                std::fs::remove_file(world.published()).unwrap();
                assert_eq!(block::backing(&lock).as_deref(), Some(Path::new("/ (deleted)")));
            }
            world.unmap().await;
            world.assert_unmapped(&device);
            // By now it may be another test's.
            let shown = block::backing(&lock);
            assert!(
                shown.as_deref() != Some(&world.map()) && shown.as_deref() != Some(Path::new("/ (deleted)"))
            );
        }
    });
}

#[test]
fn behind_a_driver_s_symlink_the_pod_s_link_leads_to_the_device() {
    isolated("behind_a_driver_s_symlink_the_pod_s_link_leads_to_the_device", async {
        let world = World::new();
        let device = world.device();
        world.make_published_parent();
        // As /dev/disk/by-id has them: a link to a link.
        let by_id = world.top.path().join("by-id");
        symlink(&device.path, &by_id).unwrap();
        symlink(&by_id, world.published()).unwrap();
        world.linux.map_block(world.block()).await.unwrap();
        world.assert_mapped(&device).await;
        assert_eq!(std::fs::read_link(world.link()).unwrap(), device.path);
        world.unmap().await;
        world.assert_unmapped(&device);
        assert!(world.published().is_symlink());
        let left = Removal { empty_files: vec![world.block().published], ..Removal::default() };
        world.linux.remove(left).await.unwrap();
        assert!(!world.published().is_symlink() && device.path.try_exists().unwrap());
    });
}

#[test]
fn a_read_only_device_is_locked_read_only() {
    isolated("a_read_only_device_is_locked_read_only", async {
        let world = World::new();
        let device = world.read_only_device();
        world.publish_bind(&device);
        world.linux.map_block(world.block()).await.unwrap();
        world.assert_mapped(&device).await;
        world.unmap().await;
        world.assert_unmapped(&device);
    });
}

#[test]
fn what_a_crash_left_half_mapped_is_finished_or_undone() {
    isolated("what_a_crash_left_half_mapped_is_finished_or_undone", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        for undo in [false, true] {
            // Cut after each step: the file (its mode not set yet), the bind, the lock, the link's temporary name, the link.
            for done in 0..5 {
                world.linux.map_block(world.block()).await.unwrap();
                let temporary = world.link().with_file_name(".pv-blk.volumed");
                match done {
                    4 => {}
                    3 => std::fs::rename(world.link(), &temporary).unwrap(),
                    _ => std::fs::remove_file(world.link()).unwrap(),
                }
                if done < 2 {
                    world.clear_locks(&device);
                }
                if done < 1 {
                    umount2(&world.map(), MntFlags::empty()).unwrap();
                    std::fs::set_permissions(world.map(), PermissionsExt::from_mode(0o600)).unwrap();
                }
                if !undo {
                    world.linux.map_block(world.block()).await.unwrap();
                    world.assert_mapped(&device).await;
                    assert_eq!(std::fs::read_link(world.link()).unwrap(), world.published());
                }
                world.unmap().await;
                world.assert_unmapped(&device);
                assert!(!temporary.is_symlink(), "{done}");
            }
        }
    });
}

#[test]
fn what_a_crash_left_half_unmapped_is_undone() {
    isolated("what_a_crash_left_half_unmapped_is_undone", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        for done in 0..4 {
            world.linux.map_block(world.block()).await.unwrap();
            world.clear_locks(&device);
            if done > 0 {
                std::fs::remove_file(world.link()).unwrap();
            }
            if done > 1 {
                umount2(&world.map(), MntFlags::empty()).unwrap();
            }
            if done > 2 {
                std::fs::remove_file(world.map()).unwrap();
            }
            world.unmap().await;
            world.assert_unmapped(&device);
        }
    });
}

#[test]
fn a_link_that_leads_elsewhere_is_replaced() {
    isolated("a_link_that_leads_elsewhere_is_replaced", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        std::fs::create_dir_all(world.link().parent().unwrap()).unwrap();
        symlink("/etc/passwd", world.link()).unwrap();
        // A crash of ours left the temporary name behind.
        symlink("/etc/group", world.link().with_file_name(".pv-blk.volumed")).unwrap();
        world.linux.map_block(world.block()).await.unwrap();
        assert_eq!(std::fs::read_link(world.link()).unwrap(), world.published());
        assert_eq!(block::names(world.link().parent().unwrap()), ["pv-blk"]);
        // Somebody's file is not replaced, and nothing else is touched for it.
        std::fs::remove_file(world.link()).unwrap();
        std::fs::write(world.link(), "data").unwrap();
        for refused in [
            world.linux.map_block(world.block()).await,
            world.linux.unmap_block(world.block(), DeviceUsers::Ignored).await,
        ] {
            assert!(
                matches!(&refused, Err(HostError::WrongKind { path, .. }) if *path == world.link()),
                "{refused:?}"
            );
        }
        assert_eq!(std::fs::read(world.link()).unwrap(), b"data");
        world.assert_mapped(&device).await;
    });
}

#[test]
fn another_device_on_the_map_is_neither_covered_nor_unmounted_for_it() {
    isolated("another_device_on_the_map_is_neither_covered_nor_unmounted_for_it", async {
        let world = World::new();
        let (device, other) = (world.device(), world.device());
        world.publish_bind(&device);
        std::fs::create_dir_all(world.map().parent().unwrap()).unwrap();
        std::fs::write(world.map(), "").unwrap();
        mount(Some(&other.path), &world.map(), NONE, MsFlags::MS_BIND, NONE).unwrap();
        let refused = world.linux.map_block(world.block()).await;
        assert!(matches!(&refused, Err(HostError::WrongMount { .. })), "{refused:?}");
        assert_eq!(world.mounts_at(&world.map()).await, 1);
        assert!(world.locks(&device).is_empty() && world.locks(&other).is_empty());
        assert!(!world.link().is_symlink());
        // Nor is one bind covered by another, or anything but a device unmounted.
        mount(Some(&device.path), &world.map(), NONE, MsFlags::MS_BIND, NONE).unwrap();
        for refused in [
            world.linux.map_block(world.block()).await,
            world.linux.unmap_block(world.block(), DeviceUsers::Ignored).await,
        ] {
            assert!(matches!(&refused, Err(HostError::WrongMount { .. })), "{refused:?}");
        }
        assert_eq!(world.mounts_at(&world.map()).await, 2);
        umount2(&world.map(), MntFlags::empty()).unwrap();
        umount2(&world.map(), MntFlags::empty()).unwrap();
        let plain = world.top.path().join("plain");
        std::fs::write(&plain, "data").unwrap();
        mount(Some(&plain), &world.map(), NONE, MsFlags::MS_BIND, NONE).unwrap();
        let refused = world.linux.unmap_block(world.block(), DeviceUsers::Ignored).await;
        assert!(matches!(&refused, Err(HostError::WrongMount { .. })), "{refused:?}");
        assert_eq!(world.mounts_at(&world.map()).await, 1);
    });
}

#[test]
fn a_map_file_with_content_is_not_ours() {
    isolated("a_map_file_with_content_is_not_ours", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        std::fs::create_dir_all(world.map().parent().unwrap()).unwrap();
        std::fs::write(world.map(), "data").unwrap();
        for refused in [
            world.linux.map_block(world.block()).await,
            world.linux.unmap_block(world.block(), DeviceUsers::Ignored).await,
        ] {
            assert!(matches!(&refused, Err(HostError::WrongKind { .. })), "{refused:?}");
        }
        assert_eq!(std::fs::read(world.map()).unwrap(), b"data");
        let file = Removal { empty_files: vec![world.block().map], ..Removal::default() };
        let refused = world.linux.remove(file).await;
        assert!(
            matches!(&refused, Err(HostError::WrongKind { expected: "an empty file or a symlink", .. })),
            "{refused:?}"
        );
        assert_eq!(std::fs::read(world.map()).unwrap(), b"data");
    });
}

#[test]
fn no_symlink_leads_to_what_a_pod_can_write_or_to_what_is_no_device() {
    isolated("no_symlink_leads_to_what_a_pod_can_write_or_to_what_is_no_device", async {
        let world = World::new();
        let device = world.device();
        world.make_published_parent();
        let evil = world.root.join("pods/u9/volumes/kubernetes.io~empty-dir/evil");
        std::fs::create_dir_all(&evil).unwrap();
        let node = evil.join("node");
        let (kind, mode) = (nix::sys::stat::SFlag::S_IFBLK, nix::sys::stat::Mode::S_IRUSR);
        nix::sys::stat::mknod(&node, kind, mode, device.number()).unwrap();
        let outside = world.top.path().join("outside");
        symlink(&node, &outside).unwrap();
        let plain = world.top.path().join("plain");
        std::fs::write(&plain, "data").unwrap();
        let up = Path::new("../../../../../../pods/u9/volumes/kubernetes.io~empty-dir/evil/node");
        for target in [&node, &outside, &plain, Path::new("/dev/null"), Path::new("/proc/self/exe"), up] {
            symlink(target, world.published()).unwrap();
            let refused = world.linux.map_block(world.block()).await;
            assert!(refused.is_err(), "{}", target.display());
            world.assert_unmapped(&device);
            std::fs::remove_file(world.published()).unwrap();
        }
        // Nor on the way to any of the three.
        world.publish_bind(&device);
        let elsewhere = world.top.path().join("elsewhere");
        std::fs::create_dir(&elsewhere).unwrap();
        for path in [world.map(), world.link()] {
            let parent = path.parent().unwrap();
            std::fs::create_dir_all(parent.parent().unwrap()).unwrap();
            if parent.is_dir() {
                std::fs::remove_dir(parent).unwrap();
            }
            symlink(&elsewhere, parent).unwrap();
            let refused = world.linux.map_block(world.block()).await;
            assert!(matches!(&refused, Err(HostError::WrongKind { found: "a symlink", .. })), "{refused:?}");
            assert_eq!(block::names(&elsewhere), Vec::<String>::new());
            std::fs::remove_file(parent).unwrap();
        }
        std::fs::create_dir(elsewhere.join("real")).unwrap();
        world.linux.map_block(world.block()).await.unwrap();
        world.unmap().await;
    });
}

#[test]
fn nothing_published_and_no_device_are_errors_that_change_nothing() {
    isolated("nothing_published_and_no_device_are_errors_that_change_nothing", async {
        let world = World::new();
        let device = world.device();
        assert!(matches!(world.linux.map_block(world.block()).await, Err(HostError::Io { .. })));
        world.make_published_parent();
        std::fs::write(world.published(), "").unwrap();
        let refused = world.linux.map_block(world.block()).await;
        assert!(matches!(&refused, Err(HostError::WrongKind { found: "a file", .. })), "{refused:?}");
        mount(Some("/dev/null"), &world.published(), NONE, MsFlags::MS_BIND, NONE).unwrap();
        assert!(std::fs::metadata(world.published()).unwrap().file_type().is_char_device());
        let refused = world.linux.map_block(world.block()).await;
        assert!(matches!(&refused, Err(HostError::WrongKind { .. })), "{refused:?}");
        world.assert_unmapped(&device);
        world.unmap().await;
    });
}

#[test]
fn a_bind_reaches_other_mount_namespaces() {
    isolated("a_bind_reaches_other_mount_namespaces", async {
        let world = World::new();
        let device = world.device();
        // The root as on a real host: on a shared mount.
        let root = world.root.clone();
        mount(Some(&root), &root, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).unwrap();
        mount(NONE, &root, NONE, MsFlags::MS_SHARED, NONE).unwrap();
        let linux = open(&root);
        world.publish_bind(&device);
        let elsewhere = Holder::start_elsewhere("slave", "true", &root);
        let seen = |there: bool| {
            let table = std::fs::read_to_string(format!("/proc/{}/mountinfo", elsewhere.0.id())).unwrap();
            assert_eq!(table.contains(&format!(" {} ", world.map().display())), there, "{table}");
        };
        linux.map_block(world.block()).await.unwrap();
        seen(true);
        linux.unmap_block(world.block(), DeviceUsers::Count { driver: None }).await.unwrap();
        seen(false);
    });
}

#[test]
fn two_calls_for_one_map_do_not_run_at_once() {
    isolated("two_calls_for_one_map_do_not_run_at_once", async {
        let world = World::new();
        let device = world.device();
        world.publish_bind(&device);
        // A call that was given up and still hangs in the kernel is such a first one.
        let (first, second) = tokio::join!(
            world.linux.map_block(world.block()),
            world.linux.unmap_block(world.block(), DeviceUsers::Ignored),
        );
        first.unwrap();
        assert!(
            matches!(&second, Err(HostError::Busy { holder, .. }) if holder.contains("an earlier call")),
            "{second:?}"
        );
        world.assert_mapped(&device).await;
        world.linux.unmap_block(world.block(), DeviceUsers::Ignored).await.unwrap();
        world.assert_unmapped(&device);
    });
}
