//! File systems of disks: checked, mounted, grown. Needs root.

mod disk;

use std::fs;

use disk::{Disk, Host, MIB, alone, at, disk_error, run, uuid};
use volumed::host::{DiskError, DiskGrowth, Host as _};
use volumed::model::{Checked, FsGrowth, FsKind, Intent};

const BYTES: u64 = 400 * MIB;

async fn grow(host: &Host, disk: &Disk, intent: &Intent) -> Result<FsGrowth, DiskError> {
    let growth = DiskGrowth {
        device: disk.device.clone(),
        identity: intent.identity.clone(),
        file_system: intent.file_system.clone(),
        at: at(disk::PLACE),
    };
    disk_error(host.world.linux.grow_disk(growth).await)
}

#[test]
fn every_kind_is_mounted_once_with_its_options_and_grows_to_its_disk() {
    alone("every_kind_is_mounted_once_with_its_options_and_grows_to_its_disk", async {
        for kind in FsKind::ALL {
            let host = Host::new();
            let disk = host.disk("image", BYTES);
            let intent = host.make(&disk, kind).await;
            let mounted = host.mount(&disk, &intent, false, &["noatime,nodev"]).await.unwrap();
            assert!(!mounted.already && mounted.mount.source == disk.name(), "{mounted:?}");
            assert!(matches!(
                (kind, &mounted.checked),
                (FsKind::Ext3 | FsKind::Ext4, Checked::Clean)
                    | (FsKind::Xfs | FsKind::Btrfs, Checked::Not(_))
            ));
            let options = run("findmnt", &["-no", "OPTIONS", host.place().to_str().unwrap()]);
            assert!(options.contains("noatime") && options.contains("nodev"), "{options}");
            assert!(host.mount(&disk, &intent, false, &[]).await.unwrap().already, "it is mounted twice");
            assert!(matches!(grow(&host, &disk, &intent).await, Ok(FsGrowth::Enough { .. })), "{kind}");
            assert!(host.mount(&disk, &intent, false, &[]).await.unwrap().fills, "{kind}");
            disk.grow(2 * BYTES);
            assert!(!host.mount(&disk, &intent, false, &[]).await.unwrap().fills, "{kind}");
            match grow(&host, &disk, &intent).await {
                Ok(FsGrowth::Grown { from, bytes }) => {
                    assert!(from <= BYTES && bytes > BYTES && bytes <= 2 * BYTES, "{kind}: {from} {bytes}");
                }
                // Growing a mounted ext4 needs a capability that a container may not have.
                Err(error) if error.to_string().contains("CAP_SYS_RESOURCE") => {}
                other => panic!("{kind}: {other:?}"),
            }
            host.unmount();
            disk.detach();
        }
    });
}

#[test]
fn read_only_is_read_only_from_the_start_and_of_an_ext4_writes_nothing() {
    alone("read_only_is_read_only_from_the_start_and_of_an_ext4_writes_nothing", async {
        for kind in FsKind::ALL {
            let host = Host::new();
            let disk = host.disk("image", BYTES);
            let intent = host.make(&disk, kind).await;
            let before = disk.written();
            host.mount(&disk, &intent, true, &[]).await.unwrap();
            assert!(fs::write(host.place().join("file"), "x").is_err());
            host.unmount();
            // The others note in their logs that they were mounted.
            if matches!(kind, FsKind::Ext3 | FsKind::Ext4) {
                assert!(disk.written() == before, "{kind}: the disk was written to");
            }
            disk.detach();
        }
    });
}

#[test]
fn another_disk_or_file_system_is_not_mounted() {
    alone("another_disk_or_file_system_is_not_mounted", async {
        let host = Host::new();
        let disk = host.disk("image", BYTES);
        let other = host.disk("other", BYTES);
        let mut intent = host.make(&disk, FsKind::Ext4).await;
        let refused = host.mount(&other, &intent, false, &[]).await;
        assert!(matches!(refused, Err(DiskError::OtherDisk { .. })), "{refused:?}");
        let made = intent.file_system.clone();
        intent.file_system.uuid = uuid(2);
        let refused = host.mount(&disk, &intent, false, &[]).await.unwrap_err().to_string();
        for uuid in [&made.uuid, &intent.file_system.uuid] {
            assert!(refused.contains(uuid.as_str()), "{refused}");
        }
        intent.file_system = volumed::model::FileSystem { kind: FsKind::Xfs, ..made };
        let refused = host.mount(&disk, &intent, false, &[]).await;
        assert!(matches!(refused, Err(DiskError::OtherContent { .. })), "{refused:?}");
        assert!(!host.is_mounted());
    });
}

#[test]
fn errors_are_mended_or_it_is_not_mounted() {
    alone("errors_are_mended_or_it_is_not_mounted", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", BYTES);
        let intent = host.make(&disk, FsKind::Ext4).await;
        // What a real e2fsck mends: a count of free blocks in the superblock, and the mark of an error.
        run("debugfs", &["-w", "-R", "ssv free_blocks_count 7", disk.name()]);
        run("debugfs", &["-w", "-R", "ssv state 2", disk.name()]);
        let mounted = host.mount(&disk, &intent, false, &[]).await.unwrap();
        assert!(matches!(&mounted.checked, Checked::Mended(said) if !said.is_empty()), "{mounted:?}");
        host.unmount();
        host.replace("fsck.ext4", "echo UNEXPECTED INCONSISTENCY; exit 4");
        let refused = host.mount(&disk, &intent, false, &[]).await;
        let as_found = matches!(&refused, Err(DiskError::Errors { said, .. }) if said.contains("UNEXPECTED"));
        assert!(as_found && !host.is_mounted(), "{refused:?}");
        host.replace("fsck.ext4", "exit 8");
        assert!(matches!(host.mount(&disk, &intent, false, &[]).await.unwrap().checked, Checked::Not(_)));
        host.unmount();
        host.take_away("fsck.ext4");
        assert!(matches!(host.mount(&disk, &intent, false, &[]).await.unwrap().checked, Checked::Not(_)));
        host.unmount();
    });
}

#[test]
fn options_are_refused_with_the_kernel_s_words_and_nothing_is_mounted_over_a_mount() {
    alone("options_are_refused_with_the_kernel_s_words_and_nothing_is_mounted_over_a_mount", async {
        let host = Host::new();
        let disk = host.disk("image", BYTES);
        let intent = host.make(&disk, FsKind::Ext4).await;
        let refused = host.mount(&disk, &intent, false, &["nonsense"]).await.unwrap_err();
        assert!(matches!(refused, DiskError::Options { .. }), "{refused:?}");
        assert!(refused.to_string().contains("Unknown parameter 'nonsense'"), "{refused}");
        assert!(!host.is_mounted());
        host.world.tmpfs(disk::PLACE);
        let refused = host.mount(&disk, &intent, false, &[]).await;
        assert!(matches!(refused, Err(DiskError::OtherMount { .. })), "{refused:?}");
        let refused = grow(&host, &disk, &intent).await;
        assert!(matches!(refused, Err(DiskError::OtherMount { .. })), "{refused:?}");
    });
}

#[test]
fn a_subvolume_of_a_btrfs_is_mounted_by_its_options_and_no_other_counts_as_it() {
    alone("a_subvolume_of_a_btrfs_is_mounted_by_its_options_and_no_other_counts_as_it", async {
        let host = Host::new();
        let disk = host.disk("image", BYTES);
        let intent = host.make(&disk, FsKind::Btrfs).await;
        host.mount(&disk, &intent, false, &[]).await.unwrap();
        let place = host.place();
        let place = place.to_str().unwrap();
        run("btrfs", &["subvolume", "create", &format!("{place}/a")]);
        run("btrfs", &["subvolume", "create", &format!("{place}/a/b")]);
        run("ln", &["-s", "a", &format!("{place}/link")]);
        let id_of = |path: &str| run("btrfs", &["inspect-internal", "rootid", &format!("{place}/{path}")]);
        let (a, b) = (id_of("a"), id_of("a/b"));
        host.unmount();
        let (id_of_a, id_of_b) = (format!("subvolid={a}"), format!("subvolid={b}"));
        for (options, root) in [
            (&["subvol=a"][..], "/a"),
            (&["noatime,subvol=/a/b/"], "/a/b"),
            (&[&id_of_b], "/a/b"),
            (&["subvol=a", &id_of_a], "/a"),
            (&["subvolid=5"], "/"),
            (&["subvol=/"], "/"),
        ] {
            let mounted = host.mount(&disk, &intent, false, options).await.unwrap();
            assert!(!mounted.already && mounted.mount.root == root, "{options:?}: {mounted:?}");
            assert!(host.mount(&disk, &intent, false, options).await.unwrap().already, "{options:?}");
            // It grows whichever is mounted.
            assert!(grow(&host, &disk, &intent).await.is_ok(), "{options:?}");
            let other = if root == "/a" { "subvol=a/b" } else { "subvol=a" };
            let refused = host.mount(&disk, &intent, false, &[other]).await;
            assert!(matches!(&refused, Err(DiskError::OtherMount { .. })), "{options:?}: {refused:?}");
            host.unmount();
        }
        for bad in ["subvol=missing", "subvolid=9999", "subvolid=x", "subvol=a/../a"] {
            assert!(host.mount(&disk, &intent, false, &[bad]).await.is_err() && !host.is_mounted(), "{bad}");
        }
        // The kernel follows it, and what it shows then cannot be told from another that was asked for.
        let refused = host.mount(&disk, &intent, false, &["subvol=link"]).await;
        assert!(matches!(&refused, Err(DiskError::OtherMount { .. })), "{refused:?}");
        assert!(!host.is_mounted(), "it was not taken back");

        // One may be the default.
        host.mount(&disk, &intent, false, &["subvolid=5"]).await.unwrap();
        run("btrfs", &["subvolume", "set-default", &a, place]);
        host.unmount();
        let mounted = host.mount(&disk, &intent, false, &[]).await.unwrap();
        assert_eq!(mounted.mount.root, "/a");
        assert!(host.mount(&disk, &intent, false, &[]).await.unwrap().already);
        host.unmount();
        host.mount(&disk, &intent, false, &["subvol=a/b"]).await.unwrap();
        let refused = host.mount(&disk, &intent, false, &[]).await;
        assert!(matches!(&refused, Err(DiskError::OtherMount { .. })), "{refused:?}");
        host.unmount();
    });
}

/// A btrfs, and what else has no device number of its own, is mounted in its place while it is mounted elsewhere.
#[test]
fn no_other_file_system_counts_as_the_mount_of_a_btrfs() {
    alone("no_other_file_system_counts_as_the_mount_of_a_btrfs", async {
        let host = Host::new();
        let (disk, other) = (host.disk("image", BYTES), host.disk("other", BYTES));
        let intent = host.make(&disk, FsKind::Btrfs).await;
        host.make(&other, FsKind::Btrfs).await;
        let elsewhere = host.file("elsewhere");
        fs::create_dir(&elsewhere).unwrap();
        run("mount", &[disk.name(), elsewhere.to_str().unwrap()]);
        let place = host.world.directory(disk::PLACE);
        for what in [&["-t", "tmpfs", "tmpfs"][..], &[other.name()]] {
            run("mount", &[what, &[place.to_str().unwrap()]].concat());
            let refused = host.mount(&disk, &intent, false, &[]).await;
            assert!(matches!(&refused, Err(DiskError::OtherMount { .. })), "{what:?}: {refused:?}");
            assert!(grow(&host, &disk, &intent).await.is_err(), "{what:?}");
            host.unmount();
        }
        run("umount", &[elsewhere.to_str().unwrap()]);
    });
}

#[test]
fn read_only_by_an_option_opens_the_disk_for_reading() {
    alone("read_only_by_an_option_opens_the_disk_for_reading", async {
        for (read_only, options, writing) in
            [(true, &[][..], false), (false, &["noatime,ro"], false), (false, &["noatime"], true)]
        {
            let host = Host::with_own_tools();
            let disk = host.disk("image", BYTES);
            let intent = host.make(&disk, FsKind::Ext4).await;
            let log = host.log_open_devices("blkid");
            host.mount(&disk, &intent, read_only, options).await.unwrap();
            let expected = [(disk.name().to_owned(), writing)];
            assert_eq!(disk::open_for_writing(&log), expected.into(), "{options:?}");
            host.unmount();
            disk.detach();
            host.remove_tools();
        }
    });
}

/// volumed dies in the middle of a repair: it goes on to its end, and the next mount waits for that.
#[test]
fn a_repair_goes_on_when_volumed_dies_and_is_waited_for() {
    alone("a_repair_goes_on_when_volumed_dies_and_is_waited_for", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", BYTES);
        let intent = host.make(&disk, FsKind::Ext4).await;
        let [begun, go, done] = ["begun", "go", "done"].map(|name| host.file(name));
        host.replace(
            "fsck.ext4",
            &format!(
                "touch {}; until [ -e {} ]; do sleep 0.05; done; touch {}; exec $real \"$@\"",
                begun.display(),
                go.display(),
                done.display()
            ),
        );
        tokio::select! {
            biased;
            // Cancel-safe: given up on purpose. Its child is killed, as by the end of volumed.
            mounted = host.mount(&disk, &intent, false, &[]) => panic!("{mounted:?}"),
            () = disk::appears(&begun) => {}
        }
        host.replace("fsck.ext4", "exec $real \"$@\"");
        let again = async {
            let mounted = host.mount(&disk, &intent, false, &[]).await;
            assert!(disk::is_there(&done), "it was not waited for: {mounted:?}");
            mounted.unwrap();
        };
        let end = async {
            // It has the disk open, and asks for the lock.
            while !disk::children_with_it_open(&disk) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            assert!(!host.is_mounted());
            fs::write(&go, "").unwrap();
            disk::appears(&done).await;
        };
        tokio::join!(again, end);
        host.unmount();
    });
}
