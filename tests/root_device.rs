//! Volumes on block devices of the host (kubelet.md 4.6), end to end: formatted if blank, mounted once, bound for each pod.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

#[path = "support/alone.rs"]
mod alone;
mod device;
mod drift;
mod support;

use std::fs;

use device::{
    Disk, annotated, assert_released, blocked, device, down, isolated, read, staging, stays_blocked, target,
    up,
};
use drift::{run, text, umount};
use support::{TestHost, pod_using, until};

#[test]
fn a_blank_device_is_formatted_once_and_keeps_its_files() {
    isolated("a_blank_device_is_formatted_once_and_keeps_its_files", || {
        for (fs_type, mib) in [("", 64), ("xfs", 320), ("btrfs", 128)] {
            let disk = Disk::blank(mib);
            let host = TestHost::new();
            let daemon = host.volumed(&[]);
            let path = format!("local: {{path: \"{}\"", disk.node.display());
            let manifest = device(&disk.node, "32Mi", "  mountOptions: [noatime]");
            let of_type = format!("{path}, fsType: {fs_type}");
            let manifest = if fs_type.is_empty() { manifest } else { manifest.replace(&path, &of_type) };
            host.manifest("data.yaml", &manifest);
            let reader =
                pod_using("b", "uid-b", "data").replace("claimName: data", "claimName: data, readOnly: true");
            host.manifest("b.yaml", &reader);
            up(&host, &["a"]);
            host.wait(&["pod/b"]);
            assert_eq!(disk.has("TYPE"), if fs_type.is_empty() { "ext4" } else { fs_type });
            let uuid = disk.has("UUID");
            let (a, b) = (target(&host, "uid-a"), target(&host, "uid-b"));
            fs::write(a.join("file"), "mine").expect("a can write");
            assert_eq!(read(&b.join("file")), "mine");
            assert!(fs::write(b.join("no"), "").is_err(), "b may only read");
            assert!(staging(&host).join("file").exists(), "it is mounted once for the node");
            assert!(run("findmnt", &["-no", "OPTIONS", text(&a)]).contains("noatime"));
            let explained =
                String::from_utf8_lossy(&host.volumectl(&["status", "pod/a"]).stdout).into_owned();
            assert!(explained.contains("formatted"), "{explained}");
            assert!(explained.contains("/dev/disk/by-id"), "its name does not last: {explained}");
            // What vanishes comes again, also after a kill.
            umount(&a);
            until("it is shown again", || a.join("file").exists());
            daemon.kill();
            umount(&b);
            umount(&a);
            umount(&staging(&host));
            let _daemon = host.volumed(&[]);
            until("all is shown again", || a.join("file").exists() && b.join("file").exists());
            down(&host, &["a", "b"]);
            assert_released(&host);
            up(&host, &["a"]);
            assert_eq!((read(&a.join("file")).as_str(), disk.has("UUID")), ("mine", uuid));
            down(&host, &["a"]);
            assert_released(&host);
        }
    });
}

#[test]
fn a_killed_daemon_finishes_what_it_began() {
    isolated("a_killed_daemon_finishes_what_it_began", || {
        for point in ["format:intent", "format:call", "stage:call", "stage:outcome", "publish:call"] {
            let disk = Disk::blank(32);
            let host = TestHost::new();
            let daemon = host.volumed(&[("VOLUMED_TEST_FAULT", point)]);
            host.manifest("data.yaml", &device(&disk.node, "16Mi", ""));
            host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
            daemon.ended();
            let _daemon = host.volumed(&[]);
            host.wait(&["pod/a"]);
            assert_eq!(disk.has("TYPE"), "ext4", "{point}");
            down(&host, &["a"]);
            assert_released(&host);
        }
    });
}

#[test]
fn what_somebody_has_on_a_device_stays() {
    isolated("what_somebody_has_on_a_device_stays", || {
        for mkfs in [
            &["mkswap"][..],
            &["mkfs.xfs", "-q", "-f"],
            &[
                "sh",
                "-c",
                "mkfs.ext4 -q \"$0\" && dd if=/dev/zero of=\"$0\" bs=2048 count=1 conv=notrunc 2>/dev/null",
            ],
        ] {
            let disk = Disk::with(320, mkfs);
            let host = TestHost::new();
            let _daemon = host.volumed(&[]);
            let before = disk.content();
            let of_type = device(&disk.node, "32Mi", "").replace("\"}", "\", fsType: ext4}");
            host.manifest("data.yaml", &of_type);
            host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
            let (code, words) = match mkfs[0] {
                "mkfs.xfs" => ("file-system-mismatch", "asks for ext4"),
                _ => ("not-blank", "is not formatted"),
            };
            stays_blocked(&host, code, words);
            assert!(before == disk.content(), "{mkfs:?}: its bytes changed");
            host.remove_manifest("a.yaml");
            host.wait(&["--for=released", "pod/a"]);
            assert_released(&host);
        }
    });
}

#[test]
fn another_disk_under_the_path_is_refused_until_it_is_accepted() {
    isolated("another_disk_under_the_path_is_refused_until_it_is_accepted", || {
        let (old, new) = (Disk::blank(32), Disk::with(32, &["mkfs.ext4", "-q"]));
        let host = TestHost::new();
        let _daemon = host.volumed(&[]);
        let link = host.path("disk");
        std::os::unix::fs::symlink(&old.node, &link).expect("a name for it");
        let manifest = device(&link, "16Mi", "").replace("\"}", "\", fsType: ext4}");
        host.manifest("data.yaml", &manifest);
        up(&host, &["a"]);
        let accept = || host.volumectl(&["accept-identity", "pod/a"]);
        assert!(!accept().status.success(), "nothing is to be accepted of what is up");
        fs::write(target(&host, "uid-a").join("file"), "old").expect("a can write");
        down(&host, &["a"]);
        fs::remove_file(&link).expect("it is ours");
        std::os::unix::fs::symlink(&new.node, &link).expect("a name for it");
        let before = new.content();
        host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
        stays_blocked(&host, "other-disk", "is another disk");
        assert!(blocked(&host)[2].contains("accept-identity"), "{:?}", blocked(&host));
        assert!(before == new.content(), "it was not touched");
        let accepted = accept();
        let said = String::from_utf8_lossy(&accepted.stdout).into_owned();
        assert!(
            accepted.status.success() && said.contains("recorded was") && said.contains(&new.has("UUID")),
            "{accepted:?}"
        );
        host.wait(&["pod/a"]);
        assert!(!target(&host, "uid-a").join("file").exists());
        down(&host, &["a"]);
        // Now the old one is the other.
        fs::remove_file(&link).expect("it is ours");
        std::os::unix::fs::symlink(&old.node, &link).expect("a name for it");
        host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
        stays_blocked(&host, "other-disk", "is another disk");
        host.remove_manifest("a.yaml");
        host.wait(&["--for=released", "pod/a"]);
        assert_released(&host);
    });
}

#[test]
fn a_disk_that_was_formatted_is_not_formatted_again_when_it_is_blank() {
    isolated("a_disk_that_was_formatted_is_not_formatted_again_when_it_is_blank", || {
        let disk = Disk::blank(32);
        let host = TestHost::new();
        let _daemon = host.volumed(&[]);
        host.manifest("data.yaml", &device(&disk.node, "16Mi", ""));
        up(&host, &["a"]);
        down(&host, &["a"]);
        disk.write(&vec![0; 32 << 20], 0);
        host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
        stays_blocked(&host, "other-disk", "has not the file system that was recorded");
        assert!(disk.content().iter().all(|byte| *byte == 0), "nothing was written");
        assert!(host.volumectl(&["accept-identity", "data"]).status.success());
        host.wait(&["pod/a"]);
        down(&host, &["a"]);
        assert_released(&host);
    });
}

#[test]
fn what_is_missing_or_too_small_or_in_use_is_waited_for() {
    isolated("what_is_missing_or_too_small_or_in_use_is_waited_for", || {
        let disk = Disk::blank(32);
        let host = TestHost::new();
        let _daemon = host.volumed(&[]);
        let link = host.path("disk");
        let manifest = |size: &str| device(&link, size, "").replace("\"}", "\", fsType: ext4}");
        host.manifest("data.yaml", &manifest("64Mi"));
        host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
        stays_blocked(&host, "device-missing", "is missing");
        fs::create_dir(&link).expect("a directory");
        stays_blocked(&host, "device-missing", "is a directory");
        fs::remove_dir(&link).expect("it is ours");
        std::os::unix::fs::symlink(&disk.node, &link).expect("a name for it");
        stays_blocked(&host, "device-too-small", "67108864 were asked for");
        let held = fs::OpenOptions::new().write(true).open(&disk.node).expect("the device");
        host.manifest("data.yaml", &manifest("16Mi"));
        stays_blocked(&host, "in-use", "root_device");
        assert_eq!(disk.has("TYPE"), "");
        drop(held);
        host.wait(&["pod/a"]);
        down(&host, &["a"]);
        assert_released(&host);
    });
}

#[test]
fn a_file_system_with_errors_is_mended_or_not_mounted() {
    isolated("a_file_system_with_errors_is_mended_or_not_mounted", || {
        let disk = Disk::with(32, &["mkfs.ext4", "-q", "-F"]);
        let host = TestHost::new();
        let _daemon = host.volumed(&[]);
        host.manifest("data.yaml", &device(&disk.node, "16Mi", ""));
        // A wrong count of free blocks, with the mark that there are errors: mended by itself.
        run("debugfs", &["-w", "-R", "set_super_value free_blocks_count 1", text(&disk.node)]);
        run("debugfs", &["-w", "-R", "set_super_value state 2", text(&disk.node)]);
        up(&host, &["a"]);
        let said = String::from_utf8_lossy(&host.volumectl(&["status", "pod/a"]).stdout).into_owned();
        assert!(said.contains("mended errors"), "{said}");
        fs::write(target(&host, "uid-a").join("file"), "x").expect("a can write");
        down(&host, &["a"]);
        // A file and a directory that share blocks: nothing that a check mends without being asked.
        run("debugfs", &["-w", "-R", "clri <2>", text(&disk.node)]);
        run("debugfs", &["-w", "-R", "set_super_value state 2", text(&disk.node)]);
        host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
        stays_blocked(&host, "file-system-errors", "has errors");
        host.remove_manifest("a.yaml");
        host.wait(&["--for=released", "pod/a"]);
        assert_released(&host);
    });
}

#[test]
fn readers_of_a_device_write_nothing() {
    isolated("readers_of_a_device_write_nothing", || {
        let disk = Disk::with(32, &["mkfs.ext4", "-q", "-F"]);
        let host = TestHost::new();
        let _daemon = host.volumed(&[]);
        let before = disk.content();
        let manifest = device(&disk.node, "16Mi", "")
            .replace("accessModes: [ReadWriteOnce]", "accessModes: [ReadOnlyMany]");
        host.manifest("data.yaml", &manifest);
        up(&host, &["a"]);
        assert!(fs::write(target(&host, "uid-a").join("no"), "").is_err());
        down(&host, &["a"]);
        assert!(before == disk.content(), "its bytes changed");
        assert_released(&host);
    });
}

#[test]
fn a_file_system_follows_its_device() {
    isolated("a_file_system_follows_its_device", || {
        // What an xfs keeps for its log is not counted as its size.
        for (mkfs, mib, log) in [(&["mkfs.xfs", "-q"][..], 320, 64), (&["mkfs.btrfs", "-q"], 320, 0)] {
            let disk = Disk::with(mib, mkfs);
            let host = TestHost::new();
            let daemon = host.volumed(&[]);
            let size = || {
                let staged = staging(&host);
                let said = run("findmnt", &["-bno", "SIZE", text(&staged)]);
                log + (said.trim().parse::<u64>().expect("a size") >> 20)
            };
            let asks = |capacity: &str, annotations: &str| {
                host.manifest("data.yaml", &annotated(&disk.node, capacity, "", annotations));
            };
            // Larger when it comes up.
            asks("300Mi", "{}");
            disk.grow(mib + 64);
            up(&host, &["a"]);
            assert!(size() > mib, "{}", size());
            // Larger while it is up: when the PersistentVolume says so.
            disk.grow(mib + 128);
            asks("440Mi", "{}");
            until("it grew", || size() > mib + 64);
            // More than the device has.
            asks("1Gi", "{}");
            stays_blocked(&host, "device-too-small", "and the PersistentVolume says 1073741824");
            disk.grow(1024);
            until("it grew with what was waited for", || size() > 900 && blocked(&host)[0].is_empty());
            // And without being told.
            asks("1Gi", "{volumed.io/auto-grow: \"true\"}");
            until("the annotation was read", || host.explain().contains("complete"));
            disk.grow(1200);
            until("it grew by itself", || size() > 1100);
            // Also when it grew while nobody looked.
            daemon.kill();
            disk.grow(1300);
            let _daemon = host.volumed(&[]);
            until("it grew after a restart", || size() > 1200);
            down(&host, &["a"]);
            assert_released(&host);
        }
    });
}
