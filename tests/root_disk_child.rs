//! The child processes that work on disks, and what they know from one work to the next. Needs root.

mod disk;
#[path = "support/processes.rs"]
mod processes;

use std::fs;
use std::path::Path;

use disk::{Host, MIB, alone};
use processes::{children, eventually};
use volumed::host::DiskError;
use volumed::model::{Content, FsKind};

const BYTES: u64 = 64 * MIB;

#[test]
fn one_child_does_one_work_after_another_and_has_nothing_open_in_between() {
    alone("one_child_does_one_work_after_another_and_has_nothing_open_in_between", async {
        let host = Host::new();
        let [first, second] = ["first", "second"].map(|name| host.disk(name, BYTES));
        let intent = host.make(&first, FsKind::Ext4).await;
        let kept = children();
        assert!(matches!(&kept[..], [(_, name)] if name == "volumed-child"), "{kept:?}");
        for _ in 0..3 {
            host.mount(&first, &intent, false, &[]).await.unwrap();
            host.unmount();
            assert_eq!(host.content(&second).await, Content::Blank);
            assert_eq!(children(), kept);
        }
        for disk in [&first, &second] {
            assert!(!disk::children_with_it_open(disk), "{}", disk.name());
        }
        drop(host);
        eventually("the child's end", || children().is_empty()).await;
    });
}

#[test]
fn a_child_that_was_killed_in_between_is_replaced() {
    alone("a_child_that_was_killed_in_between_is_replaced", async {
        let host = Host::new();
        let disk = host.disk("image", BYTES);
        for _ in 0..3 {
            assert_eq!(host.content(&disk).await, Content::Blank);
            for (pid, _) in children() {
                disk::run("kill", &["-9", &pid.to_string()]);
            }
            eventually("its end", || children().is_empty()).await;
        }
    });
}

/// Returns how often blkid was asked so far.
fn calls(log: &Path) -> usize {
    fs::read_to_string(log).unwrap_or_default().lines().count()
}

#[test]
fn blkid_is_not_asked_again_about_what_was_just_looked_at() {
    alone("blkid_is_not_asked_again_about_what_was_just_looked_at", async {
        let host = Host::with_own_tools();
        let [disk, other] = ["image", "other"].map(|name| host.disk(name, BYTES));
        let intent = host.make(&disk, FsKind::Ext4).await;
        let log = host.log_open_devices("blkid");
        let found = Content::FileSystem(intent.file_system.clone());
        assert_eq!(host.content(&disk).await, found);
        host.mount(&disk, &intent, false, &[]).await.unwrap();
        host.unmount();
        assert_eq!(calls(&log), 1);
        // What was found is of no use for a second mount: the first one wrote.
        host.mount(&disk, &intent, false, &[]).await.unwrap();
        host.unmount();
        assert_eq!(calls(&log), 2);
        // Nor for another disk.
        host.content(&other).await;
        host.mount(&disk, &intent, false, &[]).await.unwrap();
        host.unmount();
        assert_eq!(calls(&log), 4);
    });
}

#[test]
fn a_disk_that_was_written_to_between_look_and_mount_is_looked_at_by_both_again() {
    alone("a_disk_that_was_written_to_between_look_and_mount_is_looked_at_by_both_again", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", BYTES);
        let intent = host.make(&disk, FsKind::Ext4).await;
        let log = host.log_open_devices("blkid");
        host.content(&disk).await;
        // Nothing that a mount needs.
        disk.write(BYTES - 100, b"x");
        host.mount(&disk, &intent, false, &[]).await.unwrap();
        host.unmount();
        assert_eq!(calls(&log), 2);
        host.content(&disk).await;
        // The head of a LUKS2 header, before the file system's superblock.
        disk.write(0, b"LUKS\xba\xbe\x00\x02");
        let refused = host.mount(&disk, &intent, false, &[]).await;
        assert!(matches!(refused, Err(DiskError::OtherContent { .. })), "{refused:?}");
        assert!(!host.is_mounted());
    });
}
