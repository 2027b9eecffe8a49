//! Disks that are formatted, and an mkfs that was interrupted. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

mod disk;

use std::fs;
use std::time::{Duration, Instant};

use disk::{Disk, Host, MIB, alone, run, text};
use volumed::host::DiskError;
use volumed::model::{Content, Formatted, FsKind, Intent};

const BYTES: u64 = 400 * MIB;

/// Where an ext4 of this size, whose blocks are of 1 KiB, has the first copy of its superblock.
const EXT_COPY: u64 = 8193 << 10;

async fn finished(host: &Host, disk: &Disk, intent: &Intent, how: Formatted) {
    let again = Intent { begun: true, ..intent.clone() };
    assert_eq!(host.format(disk, &again).await, Ok(how));
    assert_eq!(host.content(disk).await, Content::FileSystem(intent.file_system.clone()));
    host.mount(disk, intent, false, &[]).await.unwrap();
    fs::write(host.place().join("file"), "x").unwrap();
    host.unmount();
}

#[test]
fn a_blank_disk_gets_the_file_system_that_was_intended() {
    alone("a_blank_disk_gets_the_file_system_that_was_intended", async {
        for kind in FsKind::ALL {
            let host = Host::new();
            let disk = host.disk("image", BYTES);
            let intent = host.make(&disk, kind).await;
            assert_eq!(host.content(&disk).await, Content::FileSystem(intent.file_system.clone()));
            // It is formatted once: afterwards it is a file system like any other.
            host.assert_formatted(&disk, &intent).await;
            finished(&host, &disk, &intent, Formatted::AlreadyThere).await;
            disk.detach();
        }
    });
}

/// The future is dropped while mkfs is at work: mkfs ends, and what it left is finished with the same intent only.
#[test]
fn an_mkfs_that_is_given_up_ends_and_is_done_again() {
    alone("an_mkfs_that_is_given_up_ends_and_is_done_again", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        let begun = host.file("begun");
        // Half of what it does, then it hangs.
        host.replace(
            "mkfs.ext4",
            &format!(
                "for device; do :; done; printf half | dd of=$device bs=1 seek=4096 conv=notrunc; echo $$ > {0}.new; \
                 mv {0}.new {0}; exec sleep 1000",
                text(&begun)
            ),
        );
        tokio::select! {
            biased;
            // Cancel-safe: given up on purpose.
            done = host.format(&disk, &intent) => panic!("{done:?}"),
            () = async { while !begun.exists() { tokio::time::sleep(Duration::from_millis(10)).await; } } => {}
        }
        let pid = fs::read_to_string(&begun).unwrap();
        let until = Instant::now() + Duration::from_secs(20);
        let lives = || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while lives() {
            assert!(Instant::now() < until, "mkfs goes on");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(host.content(&disk).await, Content::Unknown { at: 4096, copies: vec![] });
        let refused = host.format(&disk, &intent).await;
        assert!(matches!(refused, Err(DiskError::NotBlank { .. })), "{refused:?}");
        host.replace("mkfs.ext4", "exec $real \"$@\"");
        finished(&host, &disk, &intent, Formatted::Made).await;
    });
}

#[test]
fn an_ext4_without_its_superblock_is_finished() {
    alone("an_ext4_without_its_superblock_is_finished", async {
        let host = Host::new();
        let disk = host.disk("image", BYTES);
        let intent = host.make(&disk, FsKind::Ext4).await;
        let copy: [u8; 2] = disk.read(EXT_COPY + 0x38);
        assert_eq!(copy, [0x53, 0xef], "this ext4 has its first copy elsewhere");
        // mke2fs writes it last.
        disk.write(1024, &[0; 1024]);
        let content = host.content(&disk).await;
        let ours =
            matches!(&content, Content::Unknown { copies, .. } if *copies == [intent.file_system.clone()]);
        assert!(ours, "{content:?}");
        finished(&host, &disk, &intent, Formatted::Made).await;
    });
}

#[test]
fn an_ext4_that_a_power_cut_left_without_its_tables_is_finished_if_nobody_mounted_it() {
    alone("an_ext4_that_a_power_cut_left_without_its_tables_is_finished_if_nobody_mounted_it", async {
        for mounted in [false, true] {
            let host = Host::new();
            let disk = host.disk("image", BYTES);
            let intent = host.make(&disk, FsKind::Ext4).await;
            if mounted {
                host.mount(&disk, &intent, false, &[]).await.unwrap();
                host.unmount();
            }
            // The group descriptors and what follows.
            disk.write(4096, &[0; 4096]);
            if mounted {
                let begun = Intent { begun: true, ..intent };
                host.assert_refused(&disk, &begun, |error| matches!(error, DiskError::NotBlank { .. })).await;
            } else {
                finished(&host, &disk, &intent, Formatted::Made).await;
            }
            disk.detach();
        }
    });
}

#[test]
fn an_xfs_and_a_btrfs_that_say_they_are_not_done_are_finished() {
    alone("an_xfs_and_a_btrfs_that_say_they_are_not_done_are_finished", async {
        for (kind, at, mark) in [(FsKind::Xfs, 126, &b"\x01"[..]), (FsKind::Btrfs, 0x10040, b"!")] {
            let host = Host::new();
            let disk = host.disk("image", BYTES);
            let intent = host.make(&disk, kind).await;
            disk.write(at, mark);
            assert_eq!(host.content(&disk).await, Content::Unfinished(intent.file_system.clone()), "{kind}");
            host.assert_formatted(&disk, &intent).await;
            finished(&host, &disk, &intent, Formatted::Made).await;
            disk.detach();
        }
    });
}

/// A kill at whatever moment: mkfs is either not begun, or done, or what it left is finished.
#[test]
fn a_killed_mkfs_is_finished_whenever_it_was_killed() {
    alone("a_killed_mkfs_is_finished_whenever_it_was_killed", async {
        for kind in [FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs] {
            for wait in ["0.002", "0.01", "0.03"] {
                let host = Host::with_own_tools();
                let disk = host.disk("image", BYTES);
                let intent = host.intent(&disk, kind).await;
                let tool = format!("mkfs.{kind}");
                host.replace(&tool, &format!("timeout -s KILL {wait} $real \"$@\""));
                let killed = host.format(&disk, &intent).await;
                let as_expected = matches!(&killed, Ok(Formatted::Made))
                    || killed.as_ref().is_err_and(DiskError::may_have_written);
                assert!(as_expected, "{kind} {wait}: {killed:?}");
                let left = host.content(&disk).await;
                host.replace(&tool, "exec $real \"$@\"");
                let again = Intent { begun: true, ..intent.clone() };
                let done = host.format(&disk, &again).await;
                assert!(done.is_ok(), "{kind} {wait}: it left {left}: {done:?}");
                assert_eq!(host.content(&disk).await, Content::FileSystem(intent.file_system.clone()));
                run("losetup", &["-d", disk.name()]);
                fs::remove_dir_all(std::env::temp_dir().join("tools")).unwrap();
            }
        }
    });
}
