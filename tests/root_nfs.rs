//! NFS volumes (kubelet.md 4.7) end to end, with a mount.nfs of the tests' own (this host's kernel has no NFS; `vm_nfs.rs` has a
//! real server).

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod drift;
#[path = "support/holder.rs"]
mod holder;
mod nfs;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;

use drift::{run, umount, until_blocked};
use holder::Holder;
use support::objects::pod_of;
use support::seen::{assert_released, explanation};
use support::{TestHost, pod_using, until};

/// A host on which mount.nfs is installed.
fn host() -> TestHost {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let namespace = |of: &str| fs::read_link(format!("/proc/{of}/ns/mnt")).expect("a namespace");
        let parent = std::os::unix::process::parent_id().to_string();
        assert_ne!(namespace("self"), namespace(&parent), "to be run in a mount namespace of its own");
        let directory = std::env::temp_dir().join(format!("nfs-{}", std::process::id()));
        fs::create_dir(&directory).expect("a directory");
        let path = directory.to_str().expect("text");
        run("mount", &["-t", "tmpfs", "none", path]);
        for name in ["upper", "work"] {
            fs::create_dir(directory.join(name)).expect("a directory");
        }
        let options = format!("lowerdir=/usr/sbin,upperdir={path}/upper,workdir={path}/work");
        run("mount", &["-t", "overlay", "overlay", "-o", &options, "/usr/sbin"]);
        // What is mounted goes with this namespace.
        run("umount", &["--lazy", path]);
        fs::remove_dir(&directory).expect("it is empty");
        nfs::write_helper(Path::new("/usr/sbin/mount.nfs"));
    });
    TestHost::new()
}

/// A directory that a server exports.
fn export(host: &TestHost, name: &str) -> PathBuf {
    let path = host.path(name);
    fs::create_dir(&path).expect("a directory");
    fs::write(path.join("file"), name).expect("a file");
    path
}

/// A claim and the PersistentVolume behind it.
fn volume(server: &str, path: &Path, more: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: PersistentVolume
metadata: {{name: data}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteMany]
  nfs: {{server: "{server}", path: "{}"}}
{more}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data, namespace: default}}
spec: {{accessModes: [ReadWriteMany], volumeName: data, resources: {{requests: {{storage: 1Gi}}}}}}
"#,
        path.display()
    )
}

/// A pod that names its server itself.
fn inline(pod: &str, server: &str, path: &Path, more: &str) -> String {
    let source = format!(r#"nfs: {{server: "{server}", path: "{}"{more}}}"#, path.display());
    pod_of(&format!("name: {pod}, uid: uid-{pod}"), &source)
}

fn target(host: &TestHost, pod: &str, name: &str) -> PathBuf {
    host.root.join(format!("pods/uid-{pod}/volumes/kubernetes.io~nfs/{name}"))
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).expect("it can be read")
}

fn release(host: &TestHost, pods: &[&str]) {
    for pod in pods {
        host.remove_manifest(&format!("{pod}.yaml"));
    }
    let named: Vec<String> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
    let mut arguments = vec!["--for=released"];
    arguments.extend(named.iter().map(String::as_str));
    host.wait(&arguments);
    assert_released(host);
}

#[test]
fn exports_of_volumes_and_pods_are_mounted_as_they_say() {
    let host = host();
    let _daemon = host.volumed(&[]);
    let (one, two) = (export(&host, "one"), export(&host, "two"));
    host.manifest("data.yaml", &volume("nas", &one, "  mountOptions: [nfsvers=4.2, 'soft,timeo=50']"));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    let reader =
        pod_using("b", "uid-b", "data").replace("claimName: data", "claimName: data, readOnly: true");
    host.manifest("b.yaml", &reader);
    host.manifest("c.yaml", &inline("c", "fd00::7", &two, ""));
    host.manifest("d.yaml", &inline("d", "nas", &two, ", readOnly: true"));
    host.wait(&["pod/a", "pod/b", "pod/c", "pod/d"]);
    let (a, b) = (target(&host, "a", "data"), target(&host, "b", "data"));
    let (c, d) = (target(&host, "c", "data"), target(&host, "d", "data"));
    fs::write(a.join("new"), "by a").expect("a may write");
    assert_eq!(text(&b.join("new")), "by a");
    assert!(
        fs::write(b.join("no"), "").is_err() && fs::write(d.join("no"), "").is_err(),
        "they may only read"
    );
    fs::write(c.join("new"), "by c").expect("c may write");
    assert_eq!(text(&two.join("new")), "by c");
    let call = |server: &str, path: &Path, at: &Path, options: &str| {
        format!("{server}:{} {} -n -o {options}", path.display(), at.display())
    };
    let mut calls = nfs::calls(&one);
    calls.sort_by_key(|call| call.contains(" ro,") || call.contains("-o ro,"));
    let options = "nfsvers=4.2,soft,timeo=50,retry=0";
    assert_eq!(calls, [call("nas", &one, &a, options), call("nas", &one, &b, &format!("ro,{options}"))]);
    let mut calls = nfs::calls(&two);
    calls.sort();
    assert_eq!(calls, [call("[fd00::7]", &two, &c, "retry=0"), call("nas", &two, &d, "ro,retry=0")]);
    umount(&c);
    until("it is mounted again", || c.join("new").exists());
    fs::set_permissions(&one, fs::Permissions::from_mode(0o711)).expect("it is ours");
    release(&host, &["a", "b", "c", "d"]);
    assert_eq!(text(&one.join("new")), "by a");
}

#[test]
fn a_kill_at_any_point_leaves_nothing_that_does_not_come_right() {
    let host = host();
    let path = export(&host, "one");
    for point in ["publish:intent", "publish:call", "publish:finish", "publish:outcome"] {
        let daemon = host.volumed(&[("VOLUMED_TEST_FAULT", point)]);
        host.manifest("a.yaml", &inline("a", "nas", &path, ""));
        daemon.ended();
        let mut daemon = host.volumed(&[]);
        host.wait(&["pod/a"]);
        assert_eq!(host.mounts(), [target(&host, "a", "data")], "after {point}");
        daemon.kill();
        daemon = host.volumed(&[(
            "VOLUMED_TEST_FAULT",
            &point.replace("publish", "unpublish").replace("finish", "call"),
        )]);
        host.remove_manifest("a.yaml");
        daemon.ended();
        let daemon = host.volumed(&[]);
        until("it is released", || host.mounts().is_empty() && host.tree("pods").is_empty());
        assert_released(&host);
        daemon.kill();
    }
    assert_eq!(text(&path.join("file")), "one");
}

#[test]
fn why_a_server_does_not_let_it_be_mounted_is_told_with_what_to_do() {
    let host = host();
    let _daemon = host.volumed(&[]);
    let path = export(&host, "one");
    // A directory that loses all its manifests, and several volumes with them, is not believed.
    host.manifest("stays.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: stays}\n");
    for (server, code, remedy) in [
        ("unresolved", "server-unknown", "correct the name unresolved"),
        ("refused", "no-nfs-server", "start the NFS server on refused"),
        ("timeout", "server-not-answering", "start the server timeout or mend the way to it"),
        ("noexport", "no-such-export", "let noexport export"),
        ("denied", "access-denied", "to this host"),
        ("old", "protocol-not-supported", "nfsvers="),
        ("options", "mount-options", "correct spec.mountOptions"),
        ("stale", "stale-export", "exportfs -ra"),
        ("odd", "host", "mend what the message names"),
        ("liar", "host", "mend what the message names"),
    ] {
        host.manifest(&format!("{server}.yaml"), &inline(server, server, &path, ""));
        let why = until_blocked(&host, server, code);
        assert!(why.contains(&format!("cannot mount {server}:{}", path.display())), "{why}");
        assert!(server == "liar" || why.contains("mount.nfs: "), "{why}");
        until("the remedy is told", || explanation(&host, server).contains(remedy));
        assert!(host.mounts().is_empty(), "something is mounted");
        release(&host, &[server]);
    }
}

#[test]
fn a_server_that_falls_silent_keeps_its_volume_until_somebody_gives_it_up() {
    let host = host();
    let _daemon = host.volumed(&[]);
    let (dead, alive) = (export(&host, "dead"), export(&host, "alive"));
    host.manifest("a.yaml", &inline("a", "silent", &dead, ""));
    host.wait(&["pod/a"]);
    let a = target(&host, "a", "data");
    until("the condition says so", || {
        explanation(&host, "a").contains("not-answering: the NFS server silent does not answer (since ")
    });
    host.remove_manifest("a.yaml");
    let why = until_blocked(&host, "a", "server-not-answering");
    assert!(why.contains("the NFS server silent does not answer"), "{why}");
    assert_eq!(host.mounts(), std::slice::from_ref(&a), "{why}");
    let remedy = format!("volumectl release --force {}", a.display());
    assert!(explanation(&host, "a").contains(&remedy), "{}", explanation(&host, "a"));
    // Nobody waits for it.
    host.manifest("b.yaml", &inline("b", "nas", &alive, ""));
    host.wait(&["pod/b"]);
    let forced = host.volumectl(&["release", "--force", a.to_str().expect("text")]);
    assert!(forced.status.success(), "{forced:?}");
    host.wait(&["--for=released", "pod/a"]);
    release(&host, &["b"]);
    if let Some(server) = nfs::process(&dead) {
        run("kill", &[&server.to_string()]);
    }
}

#[test]
fn who_works_in_it_keeps_it_also_from_force() {
    let host = host();
    let _daemon = host.volumed(&[]);
    let path = export(&host, "one");
    host.manifest("a.yaml", &inline("a", "nas", &path, ""));
    host.wait(&["pod/a"]);
    let a = target(&host, "a", "data");
    let holder = Holder::start(r#"exec 3< "$1/file""#, &a);
    host.remove_manifest("a.yaml");
    until_blocked(&host, "a", "in-use");
    let forced = host.volumectl(&["release", "--force", "pod/a"]);
    assert!(forced.status.success(), "{forced:?}");
    until_blocked(&host, "a", "in-use");
    assert_eq!(text(&a.join("file")), "one");
    drop(holder);
    host.wait(&["--for=released", "pod/a"]);
    assert_released(&host);
}

#[test]
fn what_a_kubelet_mounted_is_left_to_it() {
    let host = host();
    let path = export(&host, "one");
    let a = target(&host, "a", "data");
    fs::create_dir_all(&a).expect("a directory");
    run("mount", &["--bind", path.to_str().expect("text"), a.to_str().expect("text")]);
    let before = host.mounts();
    let _daemon = host.volumed(&[]);
    host.manifest("a.yaml", &inline("a", "nas", &path, ""));
    let why = until_blocked(&host, "a", "foreign");
    assert!(why.contains("was made by somebody else"), "{why}");
    let foreign = String::from_utf8(host.volumectl(&["foreign"]).stdout).expect("text");
    assert!(foreign.contains(" nfs ") && foreign.contains("uid-a"), "{foreign}");
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    assert_eq!((host.mounts(), nfs::calls(&path)), (before, Vec::new()));
    umount(&a);
    host.manifest("a.yaml", &inline("a", "nas", &path, ""));
    fs::remove_dir(&a).expect("it is empty");
    host.wait(&["pod/a"]);
    release(&host, &["a"]);
}
