//! When an ext3 or ext4 is checked before it is mounted: beside what the real e2fsck says of a copy. Needs root.

#![expect(
    clippy::unwrap_used,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

mod disk;

use std::fs;

use disk::{Disk, Host, MIB, alone, run, text};
use volumed::model::{Checked, FsKind, Intent};

/// Sizes for which mkfs takes blocks of 1 KiB and of 4 KiB, and where the second superblock is then.
const SIZES: [(u64, u64); 2] = [(200 * MIB, 8193 << 10), (600 * MIB, 128 * MIB)];

/// What `e2fsck -a` says of a file system that it leaves alone.
const CLEAN: &str = ": clean,";

/// Mounts a disk; returns whether its file system was checked before, after e2fsck was asked about a copy of it.
async fn is_checked(host: &Host, disk: &Disk, intent: &Intent, what: &str) -> bool {
    let [copy, calls] = ["copy", "calls"].map(|name| host.file(name));
    run("cp", &["--sparse=always", text(&disk.image), text(&copy)]);
    let said = run("sh", &["-c", "e2fsck -a \"$1\" || [ $? = 1 ]", "sh", text(&copy)]);
    host.replace("fsck.ext4", &format!("echo called >>{}\nexec $real \"$@\"", text(&calls)));
    let mounted = host.mount(disk, intent, false, &[]).await.unwrap();
    host.unmount();
    let checked = fs::remove_file(calls).is_ok();
    let left_alone = said.contains(CLEAN) && said.lines().count() == 1;
    assert_eq!(checked, !left_alone, "{what}: e2fsck says {said:?}");
    assert!(checked || mounted.checked == Checked::Clean, "{what}: {mounted:?}");
    checked
}

async fn as_e2fsck_would(host: &Host, bytes: u64, second: u64) {
    let disk = host.disk("image", bytes);
    let intent = host.make(&disk, FsKind::Ext4).await;
    assert!(!is_checked(host, &disk, &intent, "fresh").await);
    assert!(!is_checked(host, &disk, &intent, "unmounted").await);
    let debugfs = |what: &str| run("debugfs", &["-w", "-R", what, disk.name()]);
    let tune = |arguments: &[&str]| run("tune2fs", &[arguments, &[disk.name()]].concat());
    for what in ["ssv state 0", "ssv state 3", "ssv last_orphan 12", "ssv lastcheck 20990101"] {
        // A check in the future matters only where there is an interval.
        tune(&["-i", "2d"]);
        debugfs(what);
        assert!(is_checked(host, &disk, &intent, what).await, "{what}");
        tune(&["-i", "0", "-T", "now"]);
        assert!(!is_checked(host, &disk, &intent, "afterwards").await, "after {what}");
    }
    tune(&["-c", "2", "-C", "1"]);
    assert!(!is_checked(host, &disk, &intent, "one mount more").await);
    assert!(is_checked(host, &disk, &intent, "as many mounts as allowed").await);
    tune(&["-c", "-1", "-i", "1d", "-T", "20200101"]);
    assert!(is_checked(host, &disk, &intent, "long ago").await);
    tune(&["-i", "0"]);
    // A feature in the second superblock, of which nobody tells the first one.
    let [features] = disk.read::<1>(second + 0x5c);
    disk.write(second + 0x5c, &[features | 0x1]);
    assert!(is_checked(host, &disk, &intent, "another feature in the backup").await);
}

#[test]
fn a_file_system_is_checked_if_e2fsck_would_not_leave_it_alone() {
    alone("a_file_system_is_checked_if_e2fsck_would_not_leave_it_alone", async {
        for (bytes, second) in SIZES {
            let host = Host::with_own_tools();
            as_e2fsck_would(&host, bytes, second).await;
            host.remove_tools();
        }
    });
}

#[test]
fn a_log_is_written_out_before_the_mount_as_ever() {
    alone("a_log_is_written_out_before_the_mount_as_ever", async {
        let host = Host::with_own_tools();
        let disk = host.disk("image", 200 * MIB);
        let intent = host.make(&disk, FsKind::Ext4).await;
        host.mount(&disk, &intent, false, &[]).await.unwrap();
        fs::write(host.place().join("file"), "data").unwrap();
        run("sync", &["-f", text(&host.place())]);
        // As a power cut leaves it.
        let cut = host.file("cut");
        run("cp", &["--sparse=always", text(&disk.image), text(&cut)]);
        host.unmount();
        run("cp", &["--sparse=always", text(&cut), text(&disk.image)]);
        run("blockdev", &["--flushbufs", disk.name()]);
        let calls = host.file("calls");
        host.replace("fsck.ext4", &format!("echo called >>{}\nexec $real \"$@\"", text(&calls)));
        host.mount(&disk, &intent, false, &[]).await.unwrap();
        assert_eq!(fs::read_to_string(host.place().join("file")).unwrap(), "data");
        assert!(calls.try_exists().unwrap(), "e2fsck was not asked");
        host.unmount();
    });
}
