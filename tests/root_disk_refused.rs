//! Disks that are not formatted though they are blank, or seem to be: on any doubt. Needs root.

#![expect(
    clippy::unwrap_used,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

mod disk;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use disk::holder::Holder;
use disk::{Disk, Host, MIB, alone, run, text, uuid};
use volumed::host::{DiskError, Host as _};
use volumed::model::{Content, FsKind, Intent};

const BYTES: u64 = 64 * MIB;

/// A script of blkid that counts its calls; `$calls` is how many there were, this one included.
fn counting(host: &Host, then: &str) -> String {
    let count = host.file("count");
    format!("echo >> {0}; calls=$(wc -l < {0}); {then}; exec $real \"$@\"", count.display())
}

fn never_mkfs(host: &Host) {
    host.replace("mkfs.ext4", &format!("touch {}; exit 1", host.file("mkfs-ran").display()));
}

fn assert_no_mkfs(host: &Host) {
    assert!(!host.file("mkfs-ran").try_exists().unwrap(), "mkfs was started");
}

#[test]
fn a_blkid_that_is_missing_or_fails_makes_no_disk_blank() {
    alone("a_blkid_that_is_missing_or_fails_makes_no_disk_blank", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        for (script, word) in [
            ("exit 4", "ended with 4"),
            ("exit 1", "ended with 1"),
            ("exit 0", "neither"),
            ("echo nonsense", "cannot be understood"),
            ("echo TYPE=ext4; exit 2", "ended with 2"),
            ("kill -9 $$", "killed"),
        ] {
            host.replace("blkid", script);
            let content = host.content(&disk).await;
            assert!(
                matches!(&content, Content::Unclear { why } if why.contains(word)),
                "{script}: {content:?}"
            );
            host.assert_refused(&disk, &intent, |error| matches!(error, DiskError::NotBlank { .. })).await;
        }
        host.take_away("blkid");
        let content = host.content(&disk).await;
        assert!(matches!(&content, Content::Unclear { why } if why.contains("util-linux")), "{content:?}");
        host.assert_refused(&disk, &intent, |error| error.to_string().contains("util-linux")).await;
    });
}

#[test]
fn a_blkid_that_sees_nothing_is_not_believed_alone() {
    alone("a_blkid_that_sees_nothing_is_not_believed_alone", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        run("mkfs.ext4", &["-q", disk.name()]);
        host.replace("blkid", "exit 2");
        let content = host.content(&disk).await;
        assert!(matches!(&content, Content::Unclear { why } if why.contains("ext4")), "{content:?}");
        host.assert_refused(&disk, &intent, |error| matches!(error, DiskError::NotBlank { .. })).await;
    });
}

#[test]
fn a_read_only_disk_is_not_formatted() {
    alone("a_read_only_disk_is_not_formatted", async {
        let host = Host::new();
        let image = host.file("image");
        fs::File::create(&image).unwrap().set_len(BYTES).unwrap();
        let disk = Disk::over(&image, &["--read-only"]);
        let found = host.world.linux.inspect_disk(disk.device.clone()).await.unwrap();
        assert!(found.read_only && found.content == Content::Blank, "{found:?}");
        let intent = host.intent(&disk, FsKind::Ext4).await;
        host.assert_refused(&disk, &intent, |error| matches!(error, DiskError::ReadOnly { .. })).await;
    });
}

#[test]
fn a_disk_that_somebody_has_is_not_formatted() {
    alone("a_disk_that_somebody_has_is_not_formatted", async {
        let host = Host::new();
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        let in_use = |word: &'static str| move |error: &DiskError| matches!(error, DiskError::InUse { holder, .. } if holder.contains(word));
        {
            let _holder = Holder::start("exec 9<\"$1\"", &disk.device);
            host.assert_refused(&disk, &intent, in_use("has /dev/loop")).await;
        }
        let above = Disk::over(&disk.device, &[]);
        host.assert_refused(&disk, &intent, in_use("the loop device")).await;
        above.detach();
        run("mkswap", &[disk.name()]);
        run("mkfs.ext4", &["-qF", disk.name()]);
        fs::create_dir(host.file("somewhere")).unwrap();
        run("mount", &[disk.name(), text(&host.file("somewhere"))]);
        host.assert_refused(&disk, &intent, in_use("mounted at")).await;
    });
}

/// A volumed without CAP_SYS_PTRACE sees no files of a process with more capabilities than its own.
#[test]
fn a_disk_is_not_formatted_where_not_all_who_may_have_it_can_be_seen() {
    alone("a_disk_is_not_formatted_where_not_all_who_may_have_it_can_be_seen", async {
        let program = std::env::temp_dir().join("without-ptrace");
        let volumed = env!("CARGO_BIN_EXE_volumed");
        let without = |capabilities: &str| {
            let script = format!("#!/bin/sh\nexec setpriv --bounding-set={capabilities} {volumed} \"$@\"\n");
            fs::write(&program, script).unwrap();
            fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        };
        without("-sys_ptrace,-sys_time");
        let host = Host::with_program(program.clone());
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        let unseen = |error: &DiskError| {
            let words = error.to_string();
            matches!(error, DiskError::Unseen { .. })
                && words.contains("CAP_SYS_PTRACE")
                && words.contains("pid")
        };
        host.assert_refused(&disk, &intent, unseen).await;
        {
            let _holder = Holder::start("exec 9<\"$1\"", &disk.device);
            host.assert_refused(&disk, &intent, unseen).await;
        }
        // Any other capability is not needed for it. Another host: the first one keeps its child.
        without("-sys_time");
        let host = Host::with_program(program);
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        assert!(host.format(&disk, &intent).await.is_ok());
    });
}

#[test]
fn another_disk_at_the_path_is_not_formatted() {
    alone("another_disk_at_the_path_is_not_formatted", async {
        let host = Host::new();
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        disk.detach();
        let refused = host.format(&disk, &intent).await;
        assert!(matches!(&refused, Err(DiskError::NoDevice { .. })), "{refused:?}");
        let other = host.file("other");
        fs::File::create(&other).unwrap().set_len(BYTES).unwrap();
        run("losetup", &[disk.name(), text(&other)]);
        let disk = Disk { image: other, device: disk.device };
        host.assert_refused(&disk, &intent, |error| match error {
            DiskError::OtherDisk { recorded, found, .. } => {
                let words = error.to_string();
                words.contains(&recorded.to_string()) && words.contains(&found.to_string())
            }
            _ => false,
        })
        .await;
    });
}

/// Between the look and mkfs the loop device is told to go and its name is asked for another image: as long as it is worked on,
/// its number is no other's.
#[test]
fn a_disk_that_is_taken_away_meanwhile_becomes_no_other() {
    alone("a_disk_that_is_taken_away_meanwhile_becomes_no_other", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        let other = host.file("other");
        fs::File::create(&other).unwrap().set_len(BYTES).unwrap();
        run("mkfs.ext4", &["-q", text(&other)]);
        let other = Disk { image: other, device: disk.device.clone() };
        let before = other.written();
        let swap = format!(
            "[ $calls != 2 ] || {{ losetup -d {0}; losetup {0} {1}; }}",
            disk.name(),
            text(&other.image)
        );
        host.replace("blkid", &counting(&host, &swap));
        let _whatever = host.format(&disk, &intent).await;
        assert!(other.written() == before, "another disk was written to");
    });
}

#[test]
fn a_disk_that_changes_between_the_looks_is_not_formatted() {
    alone("a_disk_that_changes_between_the_looks_is_not_formatted", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        never_mkfs(&host);
        let write =
            format!("[ $calls != 2 ] || printf data | dd of={} bs=1 seek=5000 conv=notrunc", disk.name());
        host.replace("blkid", &counting(&host, &write));
        let refused = host.format(&disk, &intent).await;
        assert!(matches!(&refused, Err(DiskError::Changed { .. })), "{refused:?}");
        assert_no_mkfs(&host);
    });
}

#[test]
fn a_disk_smaller_than_asked_is_not_formatted() {
    alone("a_disk_smaller_than_asked_is_not_formatted", async {
        let host = Host::new();
        let disk = host.disk("image", BYTES);
        let intent = Intent { least_bytes: BYTES + 1, ..host.intent(&disk, FsKind::Ext4).await };
        host.assert_refused(&disk, &intent, |error| {
            matches!(error, DiskError::TooSmall { bytes: BYTES, .. })
        })
        .await;
    });
}

#[test]
fn what_is_no_block_device_is_not_opened() {
    alone("what_is_no_block_device_is_not_opened", async {
        let host = Host::new();
        let disk = host.disk("image", BYTES);
        let intent = host.intent(&disk, FsKind::Ext4).await;
        let pipe = host.file("pipe");
        run("mkfifo", &[text(&pipe)]);
        for path in [host.file("image"), host.file("missing"), host.file("."), pipe, "/dev/null".into()] {
            let other = Disk { image: disk.image.clone(), device: path };
            host.assert_refused(&other, &intent, |error| matches!(error, DiskError::NoDevice { .. })).await;
        }
    });
}

#[test]
fn an_mkfs_of_another_intent_is_not_finished() {
    alone("an_mkfs_of_another_intent_is_not_finished", async {
        let host = Host::new();
        let disk = host.disk("image", 400 * MIB);
        let mut intent = host.make(&disk, FsKind::Xfs).await;
        // sb_inprogress
        disk.write(126, &[1]);
        intent.file_system.uuid = uuid(2);
        host.assert_refused(&disk, &intent, |error| {
            matches!(error, DiskError::NotBlank { found: Content::Unfinished(_), .. })
        })
        .await;
    });
}
