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
            disk.grow(2 * BYTES);
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
