//! Local volumes (kubelet.md 4.6): a directory of the host, shown to pods by bind mounts, end to end.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod drift;
#[path = "support/holder.rs"]
mod holder;
mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use drift::{run, umount, until_blocked};
use holder::Holder;
use rustix::fs::StatVfsMountFlags;
use support::seen::explanation;
use support::{TestHost, pod_using, until};

/// A claim and the PersistentVolume behind it, which is a directory of the host.
fn local(path: &Path, more: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: PersistentVolume
metadata: {{name: data}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  local: {{path: "{}"}}
{more}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data, namespace: default}}
spec: {{accessModes: [ReadWriteOnce], volumeName: data, resources: {{requests: {{storage: 1Gi}}}}}}
"#,
        path.display()
    )
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("it can be read")
}

fn directory(host: &TestHost, name: &str) -> PathBuf {
    let path = host.path(name);
    fs::create_dir(&path).expect("a directory");
    fs::write(path.join("file"), name).expect("a file");
    path
}

fn target(host: &TestHost, uid: &str) -> PathBuf {
    host.root.join("pods").join(uid).join("volumes/kubernetes.io~local-volume/data")
}

fn flags(at: &Path) -> StatVfsMountFlags {
    rustix::fs::statvfs(at).expect("it is mounted").f_flag
}

/// Nothing is left below the root but the root's own directories.
fn assert_released(host: &TestHost) {
    assert_eq!(host.mounts(), Vec::<PathBuf>::new());
    assert_eq!(host.tree("pods"), Vec::<String>::new());
}

#[test]
fn a_directory_is_shown_to_pods_and_stays_when_they_go() {
    let host = TestHost::new();
    let _daemon = host.volumed(&[]);
    let path = directory(&host, "disk");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o711)).expect("it is ours");
    host.manifest("local.yaml", &local(&path, "  mountOptions: [noatime, nodev]"));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    let reader =
        pod_using("b", "uid-b", "data").replace("claimName: data", "claimName: data, readOnly: true");
    host.manifest("b.yaml", &reader);
    host.wait(&["pod/a", "pod/b"]);
    let (a, b) = (target(&host, "uid-a"), target(&host, "uid-b"));
    assert_eq!(text(&a.join("file")), "disk");
    fs::write(a.join("new"), "by a").expect("a can write");
    assert_eq!(text(&b.join("new")), "by a");
    assert!(fs::write(b.join("no"), "").is_err(), "b may only read");
    let expected = StatVfsMountFlags::NOATIME | StatVfsMountFlags::NODEV;
    assert!(
        flags(&a).contains(expected) && !flags(&a).contains(StatVfsMountFlags::RDONLY),
        "{:?}",
        flags(&a)
    );
    // The directory is the operator's: its mode and owner stay.
    assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o7777, 0o711);
    for pod in ["a", "b"] {
        host.remove_manifest(&format!("{pod}.yaml"));
    }
    host.wait(&["--for=released", "pod/a", "pod/b"]);
    assert_released(&host);
    assert_eq!(text(&path.join("new")), "by a");
}

#[test]
fn what_vanishes_comes_again_also_after_a_restart_and_an_edit_waits() {
    let host = TestHost::new();
    let mut daemon = host.volumed(&[]);
    let (old, new) = (directory(&host, "old"), directory(&host, "new"));
    host.manifest("local.yaml", &local(&old, ""));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    host.wait(&["pod/a"]);
    let a = target(&host, "uid-a");
    umount(&a);
    until("it is shown again", || a.join("file").exists());
    daemon.kill();
    umount(&a);
    daemon = host.volumed(&[]);
    until("it is shown after a restart", || a.join("file").exists());
    host.manifest("local.yaml", &local(&new, ""));
    until("the edit is told to wait", || host.explain().contains("edited"));
    assert_eq!(text(&a.join("file")), "old");
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    host.wait(&["pod/a"]);
    assert_eq!(text(&a.join("file")), "new");
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    assert_released(&host);
    daemon.kill();
}

#[test]
fn fs_group_is_set_for_the_first_pod_alone() {
    let host = TestHost::new();
    let _daemon = host.volumed(&[]);
    let path = directory(&host, "disk");
    host.manifest("local.yaml", &local(&path, ""));
    let group = |pod: &str, group: u32| {
        let pod = pod_using(pod, &format!("uid-{pod}"), "data");
        pod.replacen("spec:\n", &format!("spec:\n  securityContext: {{fsGroup: {group}}}\n"), 1)
    };
    host.manifest("a.yaml", &group("a", 4711));
    host.wait(&["pod/a"]);
    assert_eq!(fs::metadata(path.join("file")).expect("it is there").gid(), 4711);
    host.manifest("b.yaml", &group("b", 4712));
    host.wait(&["pod/b"]);
    assert_eq!(fs::metadata(path.join("file")).expect("it is there").gid(), 4711);
    for pod in ["a", "b"] {
        host.remove_manifest(&format!("{pod}.yaml"));
    }
    host.wait(&["--for=released", "pod/a", "pod/b"]);
    assert_released(&host);
}

#[test]
fn what_cannot_be_shown_is_told_and_waited_for() {
    let host = TestHost::new();
    let _daemon = host.volumed(&[]);
    let path = host.path("late");
    host.manifest("local.yaml", &local(&path, ""));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    let why = until_blocked(&host, "a", "host");
    assert!(why.contains("late"), "{why}");
    let remedy = "make the directory that spec.local.path names";
    until("the remedy is told", || explanation(&host, "a").contains(remedy));
    fs::write(&path, "a file").expect("a file");
    until("it is no directory", || explanation(&host, "a").contains("is no directory"));
    fs::remove_file(&path).expect("it goes");
    directory(&host, "late");
    host.wait(&["pod/a"]);
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    host.manifest("local.yaml", &local(&path, "  mountOptions: [discard]"));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    let why = until_blocked(&host, "a", "host");
    assert!(why.contains("discard"), "{why}");
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    assert_released(&host);
}

#[test]
fn a_symlink_on_the_way_is_followed_and_a_mount_of_somebody_else_is_not_touched() {
    let host = TestHost::new();
    let _daemon = host.volumed(&[]);
    let path = directory(&host, "disk");
    let link = host.path("link");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    host.manifest("local.yaml", &local(&link, ""));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    host.wait(&["pod/a"]);
    let a = target(&host, "uid-a");
    assert_eq!(text(&a.join("file")), "disk");
    run("mount", &["-t", "tmpfs", "none", a.to_str().expect("text")]);
    host.remove_manifest("a.yaml");
    let why = until_blocked(&host, "a", "obstacle");
    assert!(why.contains("tmpfs"), "{why}");
    umount(&a);
    host.wait(&["--for=released", "pod/a"]);
    assert_released(&host);
    assert_eq!(text(&path.join("file")), "disk");
}

#[test]
fn who_works_in_it_keeps_it_shown() {
    let host = TestHost::new();
    let _daemon = host.volumed(&[]);
    let path = directory(&host, "disk");
    host.manifest("local.yaml", &local(&path, ""));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    host.wait(&["pod/a"]);
    let a = target(&host, "uid-a");
    let holder = Holder::start(r#"exec 3< "$1/file""#, &a);
    host.remove_manifest("a.yaml");
    until_blocked(&host, "a", "in-use");
    assert_eq!(text(&a.join("file")), "disk");
    drop(holder);
    host.wait(&["--for=released", "pod/a"]);
    assert_released(&host);
}

#[test]
fn what_a_kubelet_shows_there_is_left_to_it() {
    let host = TestHost::new();
    let path = directory(&host, "disk");
    let a = target(&host, "uid-a");
    fs::create_dir_all(&a).expect("a directory");
    run("mount", &["--bind", path.to_str().expect("text"), a.to_str().expect("text")]);
    let before = host.mounts();
    let _daemon = host.volumed(&[]);
    host.manifest("local.yaml", &local(&path, ""));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    let why = until_blocked(&host, "a", "foreign");
    assert!(why.contains("was made by somebody else"), "{why}");
    assert_eq!(host.mounts(), before);
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    assert_eq!(host.mounts(), before);
    umount(&a);
    fs::remove_dir(&a).expect("it is empty");
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    host.wait(&["pod/a"]);
    assert_eq!(text(&a.join("file")), "disk");
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    assert_released(&host);
}

#[test]
fn what_is_mounted_below_the_directory_later_is_not_shown_and_keeps_nothing() {
    let host = TestHost::new();
    let _daemon = host.volumed(&[]);
    let (disk, other) = (directory(&host, "disk"), directory(&host, "other"));
    // As systemd makes all of a host's.
    run("mount", &["--bind", disk.to_str().expect("text"), disk.to_str().expect("text")]);
    run("mount", &["--make-shared", disk.to_str().expect("text")]);
    fs::create_dir(disk.join("below")).expect("a directory");
    host.manifest("local.yaml", &local(&disk, ""));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    host.wait(&["pod/a"]);
    let below = disk.join("below");
    run("mount", &["--bind", other.to_str().expect("text"), below.to_str().expect("text")]);
    assert!(below.join("file").exists(), "it is mounted on the host");
    assert!(!target(&host, "uid-a").join("below/file").exists(), "it is shown to the pod");
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    assert!(below.join("file").exists(), "the host's mount was taken away");
    umount(&below);
    umount(&disk);
    assert_released(&host);
}

#[test]
fn a_disk_that_is_not_mounted_any_more_is_not_taken_for_its_empty_mount_point() {
    let host = TestHost::new();
    let _daemon = host.volumed(&[]);
    let (disk, behind) = (host.path("disk"), host.path("behind"));
    for path in [&disk, &behind] {
        fs::create_dir(path).expect("a directory");
    }
    let (disk_text, behind_text) = (disk.to_str().expect("text"), behind.to_str().expect("text"));
    run("mount", &["-t", "tmpfs", "none", behind_text]);
    run("mount", &["--bind", behind_text, disk_text]);
    fs::write(disk.join("file"), "disk").expect("a file");
    host.manifest("local.yaml", &local(&disk, ""));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    host.wait(&["pod/a"]);
    let a = target(&host, "uid-a");
    umount(&disk);
    assert_eq!(text(&a.join("file")), "disk");
    umount(&a);
    let why = until_blocked(&host, "a", "host");
    assert!(why.contains("is its disk mounted?"), "{why}");
    assert!(!host.mounts().contains(&a), "the empty directory is shown");
    run("mount", &["--bind", behind_text, disk_text]);
    until("it is shown again", || a.join("file").exists());
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    umount(&disk);
    umount(&behind);
    assert_released(&host);
}

#[test]
fn the_root_directory_and_what_holds_it_are_no_volume() {
    let host = TestHost::new();
    let _daemon = host.volumed(&[]);
    for path in [Path::new("/"), &host.root, &host.root.join("pods")] {
        host.manifest("local.yaml", &local(path, ""));
        host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
        let why = until_blocked(&host, "a", "host");
        assert!(why.contains("the root directory of volumed"), "{why}");
        host.remove_manifest("a.yaml");
        host.wait(&["--for=released", "pod/a"]);
    }
    assert_released(&host);
}
