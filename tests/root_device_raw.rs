//! Devices of the host that pods have raw, and PersistentVolumes that are edited to be another device or another kind of volume.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

#[path = "support/alone.rs"]
mod alone;
mod device;
mod drift;
mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, symlink};
use std::path::{Path, PathBuf};

use device::{Disk, MIB, assert_released, device, down, isolated, read, stays_blocked, target, up};
use support::{TestHost, pod_using, until};

/// A pod that has the claim `data` raw.
fn raw(pod: &str) -> String {
    pod_using(pod, &format!("uid-{pod}"), "data")
        .replace("volumeMounts:", "volumeDevices:")
        .replace("mountPath:", "devicePath:")
}

fn link(host: &TestHost, uid: &str) -> PathBuf {
    host.root.join("pods").join(uid).join("volumeDevices/kubernetes.io~local-volume/data")
}

/// Lets a name lead to another disk.
fn lead(link: &Path, disk: &Disk) {
    let _none = fs::remove_file(link);
    symlink(&disk.node, link).expect("a name for it");
}

#[test]
fn a_raw_device_is_the_pod_s_to_write() {
    isolated("a_raw_device_is_the_pod_s_to_write", || {
        let disk = Disk::blank(32);
        let host = TestHost::new();
        let daemon = host.volumed(&[]);
        host.manifest("data.yaml", &device(&disk.node, "16Mi", "  volumeMode: Block"));
        host.manifest("a.yaml", &raw("a"));
        host.manifest("b.yaml", &raw("b"));
        host.wait(&["pod/a", "pod/b"]);
        let number = fs::metadata(&disk.node).expect("the device").rdev();
        for uid in ["uid-a", "uid-b"] {
            let shown = fs::metadata(link(&host, uid)).expect("the link leads to it");
            assert!(shown.file_type().is_block_device() && shown.rdev() == number, "{shown:?}");
        }
        fs::OpenOptions::new()
            .write(true)
            .open(link(&host, "uid-a"))
            .and_then(|mut device| std::io::Write::write_all(&mut device, b"raw"))
            .expect("it can be written");
        assert!(disk.content().starts_with(b"raw"));
        daemon.kill();
        let _daemon = host.volumed(&[]);
        host.wait(&["pod/a", "pod/b"]);
        assert!(!host.explain().contains("not a mount point"), "{}", host.explain());
        down(&host, &["a", "b"]);
        assert_released(&host);
        assert!(disk.content().starts_with(b"raw"), "what is on it stays");
        let left =
            ["", "/publish"].map(|name| format!("plugins/kubernetes.io~local-volume/volumeDevices{name}"));
        assert_eq!(
            host.tree("plugins/kubernetes.io~local-volume"),
            left,
            "what belongs to all volumes stays"
        );
    });
}

#[test]
fn what_a_pod_had_raw_is_not_formatted_because_it_looks_blank() {
    isolated("what_a_pod_had_raw_is_not_formatted_because_it_looks_blank", || {
        let disk = Disk::blank(64);
        let host = TestHost::new();
        let _daemon = host.volumed(&[]);
        host.manifest("data.yaml", &device(&disk.node, "16Mi", "  volumeMode: Block"));
        host.manifest("a.yaml", &raw("a"));
        host.wait(&["pod/a"]);
        // Where no file system keeps anything by which it is known.
        disk.write(b"precious", 21 * MIB + 4096 * 7);
        down(&host, &["a"]);
        let before = disk.content();
        host.manifest("data.yaml", &device(&disk.node, "16Mi", ""));
        host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
        stays_blocked(&host, "was-raw", "what they wrote may be on it");
        assert!(before == disk.content(), "its bytes changed");
        assert!(host.volumectl(&["accept-identity", "data"]).status.success());
        host.wait(&["pod/a"]);
        down(&host, &["a"]);
        assert_released(&host);
    });
}

#[test]
fn another_disk_that_is_to_be_shown_raw_waits_until_it_is_accepted() {
    isolated("another_disk_that_is_to_be_shown_raw_waits_until_it_is_accepted", || {
        let (old, new) = (Disk::blank(32), Disk::blank(32));
        let host = TestHost::new();
        let _daemon = host.volumed(&[]);
        let name = host.path("disk");
        lead(&name, &old);
        host.manifest("data.yaml", &device(&name, "16Mi", "  volumeMode: Block"));
        host.manifest("a.yaml", &raw("a"));
        host.wait(&["pod/a"]);
        down(&host, &["a"]);
        lead(&name, &new);
        host.manifest("a.yaml", &raw("a"));
        stays_blocked(&host, "other-disk", "is another disk");
        assert!(host.volumectl(&["accept-identity", "pod/a"]).status.success(), "{}", host.explain());
        host.wait(&["pod/a"]);
        let number = fs::metadata(&new.node).expect("the device").rdev();
        assert_eq!(fs::metadata(link(&host, "uid-a")).expect("the link leads to it").rdev(), number);
        down(&host, &["a"]);
        assert_released(&host);
    });
}

#[test]
fn a_path_that_is_mended_is_used_though_the_first_try_failed() {
    isolated("a_path_that_is_mended_is_used_though_the_first_try_failed", || {
        let (foreign, blank) = (Disk::with(32, &["mkswap"]), Disk::blank(32));
        let host = TestHost::new();
        let _daemon = host.volumed(&[]);
        host.manifest("data.yaml", &device(&foreign.node, "16Mi", ""));
        host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
        stays_blocked(&host, "not-blank", "swap");
        host.manifest("data.yaml", &device(&blank.node, "16Mi", ""));
        host.wait(&["pod/a"]);
        assert_eq!((blank.has("TYPE"), foreign.has("TYPE")), ("ext4".to_owned(), "swap".to_owned()));
        down(&host, &["a"]);
        assert_released(&host);
    });
}

#[test]
fn an_edit_to_another_kind_of_volume_waits_for_the_pods_and_a_restart_does_not_mix_them() {
    isolated("an_edit_to_another_kind_of_volume_waits_for_the_pods_and_a_restart_does_not_mix_them", || {
        let disk = Disk::blank(32);
        let host = TestHost::new();
        let mut daemon = host.volumed(&[]);
        let directory = host.path("directory");
        fs::create_dir(&directory).expect("a directory");
        fs::write(directory.join("kind"), "directory").expect("a file");
        let kind = |uid: &str| fs::read_to_string(target(&host, uid).join("kind")).unwrap_or_default();
        host.manifest("data.yaml", &device(&disk.node, "16Mi", ""));
        up(&host, &["a"]);
        fs::write(target(&host, "uid-a").join("kind"), "disk").expect("a file");
        // From the disk to the directory while a pod has the disk.
        host.manifest("data.yaml", &device(&directory, "16Mi", ""));
        until("the edit is told to wait", || host.explain().contains("edited"));
        daemon.kill();
        daemon = host.volumed(&[]);
        until("it is still the disk", || kind("uid-a") == "disk");
        down(&host, &["a"]);
        up(&host, &["a"]);
        assert_eq!(kind("uid-a"), "directory");
        // And back.
        host.manifest("data.yaml", &device(&disk.node, "16Mi", ""));
        until("the edit is told to wait", || host.explain().contains("edited"));
        daemon.kill();
        daemon = host.volumed(&[]);
        until("it is still the directory", || kind("uid-a") == "directory");
        down(&host, &["a"]);
        up(&host, &["a"]);
        assert_eq!(read(&target(&host, "uid-a").join("kind")), "disk");
        down(&host, &["a"]);
        assert_released(&host);
        daemon.kill();
    });
}
