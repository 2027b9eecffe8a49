//! Disks that are formatted, and an mkfs that was interrupted. Needs root.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

mod disk;

use std::fs;
use std::time::{Duration, Instant};

use disk::{Disk, Host, MIB, alone, appears, open_for_writing, run, text};
use volumed::host::{DiskError, Host as _};
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

/// The future is dropped while mkfs is at work: mkfs ends, and what it left without a name is finished by a person, since
/// another file may have got the number of this one.
#[test]
fn an_mkfs_that_is_given_up_ends_and_what_it_left_is_not_guessed_at() {
    alone("an_mkfs_that_is_given_up_ends_and_what_it_left_is_not_guessed_at", async {
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
            () = appears(&begun) => {}
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
        let before = disk.written();
        let begun = Intent { begun: true, ..intent.clone() };
        let refused = host.format(&disk, &begun).await;
        assert!(matches!(refused, Err(DiskError::Unproven { .. })), "{refused:?}");
        let error = refused.unwrap_err();
        assert!(!error.may_have_written() && disk.written() == before, "the disk was written to");
        // What the error says is done by hand.
        let (words, node) = (error.to_string(), disk.name());
        for command in [format!("wipefs --all {node}"), format!("blkdiscard --zeroout {node}")] {
            assert!(words.contains(&command), "{words}");
            run("sh", &["-c", &command]);
        }
        finished(&host, &disk, &intent, Formatted::Made).await;
    });
}

/// What the caller hears decides whether it may ever take the disk for untouched again.
#[test]
fn an_error_tells_whether_mkfs_was_started() {
    alone("an_error_tells_whether_mkfs_was_started", async {
        for (tool, script, started) in [
            ("blkid", "kill -9 $PPID; sleep 1000", true),
            ("mkfs.ext4", "kill -9 $PPID; sleep 1000", true),
            ("mkfs.ext4", "exit 1", true),
            ("mkfs.ext4", "kill -9 $$", true),
            ("mkfs.ext4", "exit 0", true),
            ("blkid", "exit 4", false),
        ] {
            let host = Host::with_own_tools();
            let disk = host.disk("image", BYTES);
            let intent = host.intent(&disk, FsKind::Ext4).await;
            host.replace(tool, script);
            let failed = host.world.linux.format_disk(disk.device.clone(), intent).await;
            let error = failed.unwrap_err();
            assert_eq!(error.may_have_written(), started, "{tool}: {script}: {error}");
            disk.detach();
            fs::remove_dir_all(std::env::temp_dir().join("tools")).unwrap();
        }
    });
}

#[test]
fn what_a_disk_lies_on_is_open_for_its_lock_alone() {
    alone("what_a_disk_lies_on_is_open_for_its_lock_alone", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", BYTES);
        run("addpart", &[disk.name(), "1", "2048", "204800"]);
        let part = Disk { image: disk.image.clone(), device: format!("{}p1", disk.name()).into() };
        let intent = host.intent(&part, FsKind::Ext4).await;
        let log = host.log_open_devices("mkfs.ext4");
        assert_eq!(host.format(&part, &intent).await, Ok(Formatted::Made));
        let expected = [(disk.name().to_owned(), false), (part.name().to_owned(), true)];
        assert_eq!(open_for_writing(&log), expected.into());
        // Locked all the same: nobody else formats another partition of it, nor does udev look at it.
        host.replace(
            "mkfs.ext4",
            &format!("flock -n {} true && touch {}.free; exit 1", disk.name(), text(&log)),
        );
        run("wipefs", &["-qa", part.name()]);
        run("blkdiscard", &["--zeroout", part.name()]);
        let failed = host.format(&part, &intent).await;
        assert!(matches!(failed, Err(DiskError::NotMade { .. })), "{failed:?}");
        assert!(!log.with_extension("free").exists(), "the disk is not locked");
        run("delpart", &[disk.name(), "1"]);
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

/// A kill at whatever moment: mkfs is either not begun, or done, or what it left is finished where it tells whose it is.
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
                // A disk with a serial number is finished then too (tests/vm_luks.rs).
                let nameless = matches!(&left, Content::Unknown { copies, .. } if copies.is_empty());
                if nameless {
                    assert!(matches!(done, Err(DiskError::Unproven { .. })), "{kind} {wait}: {done:?}");
                } else {
                    assert!(done.is_ok(), "{kind} {wait}: it left {left}: {done:?}");
                    assert_eq!(host.content(&disk).await, Content::FileSystem(intent.file_system.clone()));
                }
                run("losetup", &["-d", disk.name()]);
                fs::remove_dir_all(std::env::temp_dir().join("tools")).unwrap();
            }
        }
    });
}
