//! What a driver may want and a volume may be, end to end with the example driver.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod drift;
mod support;

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use drift::{
    Nodes, assert_released, block_paths, count, csi_driver, methods, text, two_readings, until_blocked,
    volumes,
};
use serde_json::{Value, json};
use support::objects::{block, device_user};
use support::{TestHost, claim, loop_devices, pod_using, pod_with_claim, until};

const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];
const DOWN: [&str; 2] = ["NodeUnpublishVolume", "NodeUnstageVolume"];

fn a_block_volume_comes_and_goes(shown: &str, arguments: &[&str]) {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[&["--block", shown], arguments].concat());
    let _daemon = host.volumed(&[]);
    host.manifest(
        "db.yaml",
        &format!("{}---\n{}", block(&claim("data")), device_user(&pod_using("db", "uid-db", "data"))),
    );
    host.wait(&["pod/db"]);
    let paths = block_paths(&host, "uid-db", "data");
    let devices: Vec<_> = loop_devices(&host.path("driver"));
    assert_eq!(devices.len(), 1, "{shown}");
    let device = &devices[0];
    let number = fs::metadata(device).expect("a device").rdev();
    for path in [&paths.map, &paths.link] {
        let at = fs::metadata(path).expect("the device is shown");
        assert!(at.file_type().is_block_device() && at.rdev() == number, "{shown}: {}", path.display());
    }
    fs::write(&paths.link, b"volumed").expect("the pod can write");
    let nodes = Nodes::of(&[device, &paths.map, &paths.published]);
    assert_eq!(nodes.locks().len(), 1, "{shown}: one lock");
    host.remove_manifest("db.yaml");
    host.wait(&["--for=released", "pod/db"]);
    assert_released(&host);
    assert_eq!(nodes.locks(), Vec::<String>::new(), "{shown}");
    let devices = host.root.join("plugins/kubernetes.io/csi/volumeDevices/data");
    assert!(!devices.exists(), "{shown}: {} stays", devices.display());
    let expected: Vec<&str> = if arguments.is_empty() { [UP, DOWN].concat() } else { vec![UP[1], DOWN[0]] };
    assert_eq!(methods(&host), expected, "{shown}");
}

#[test]
fn a_block_volume_is_shown_locked_and_goes_without_a_trace() {
    for shown in ["bind", "symlink", "mknod"] {
        a_block_volume_comes_and_goes(shown, &[]);
    }
    a_block_volume_comes_and_goes("bind", &["--no-stage"]);
}

#[test]
fn two_pods_share_a_block_volume() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &block(&claim("data")));
    for pod in ["a", "b"] {
        host.manifest(&format!("{pod}.yaml"), &device_user(&pod_using(pod, &format!("uid-{pod}"), "data")));
    }
    host.wait(&["pod/a", "pod/b"]);
    let (a, b) = (block_paths(&host, "uid-a", "data"), block_paths(&host, "uid-b", "data"));
    let nodes = Nodes::of(&[&a.map, &b.map]);
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    assert!(!a.map.exists() && !a.published.exists(), "the first is gone");
    assert!(fs::metadata(&b.link).expect("the second stays").file_type().is_block_device());
    assert_eq!(nodes.locks().len(), 1, "the second's lock stays");
    assert_eq!(count(&host, "NodeUnstageVolume"), 0);
    host.remove_manifest("b.yaml");
    host.wait(&["--for=released", "pod/b"]);
    assert_released(&host);
    assert_eq!(nodes.locks(), Vec::<String>::new());
    assert_eq!(methods(&host), [UP[0], UP[1], UP[1], DOWN[0], DOWN[0], DOWN[1]]);
}

#[test]
fn two_pods_share_a_volume_and_the_last_one_unstages_it() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &claim("data"));
    for pod in ["a", "b"] {
        host.manifest(&format!("{pod}.yaml"), &pod_using(pod, &format!("uid-{pod}"), "data"));
    }
    host.wait(&["pod/a", "pod/b"]);
    assert_eq!(methods(&host), [UP[0], UP[1], UP[1]]);
    fs::write(host.target("uid-a", "data").join("file"), "shared").expect("a can write");
    let read = fs::read_to_string(host.target("uid-b", "data").join("file"));
    assert_eq!(read.expect("b can read"), "shared");
    host.remove_manifest("a.yaml");
    host.wait(&["--for=released", "pod/a"]);
    assert_eq!(methods(&host)[3..], [DOWN[0]], "the staging is b's too");
    host.remove_manifest("b.yaml");
    host.wait(&["--for=released", "pod/b"]);
    assert_released(&host);
    assert_eq!(methods(&host)[3..], [DOWN[0], DOWN[0], DOWN[1]]);
}

#[test]
fn a_pod_that_names_one_claim_twice_has_it_once() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    let pod = pod_using("web", "uid-web", "data")
        .replace("volumeMounts: [", "volumeMounts: [{name: again, mountPath: /again}, ")
        + "  - name: again\n    persistentVolumeClaim: {claimName: data}\n";
    host.manifest("web.yaml", &format!("{}---\n{pod}", claim("data")));
    host.wait(&["pod/web"]);
    assert_eq!(methods(&host), UP);
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
    assert_eq!(methods(&host), [UP, DOWN].concat());
}

#[test]
fn a_read_write_once_pod_volume_waits_for_the_first_pod_to_go() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--multi-writer"]);
    let _daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &claim("data").replace("ReadWriteOnce", "ReadWriteOncePod"));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    host.wait(&["pod/a"]);
    host.manifest("b.yaml", &pod_using("b", "uid-b", "data"));
    let detail = until_blocked(&host, "b", "read-write-once-pod");
    assert!(detail.contains("default/a"), "who has it is named: {detail}");
    assert_eq!(methods(&host), UP, "the driver is not asked");
    host.remove_manifest("a.yaml");
    host.wait(&["pod/b"]);
    let again = methods(&host);
    assert!(again[2..] == [DOWN[0], UP[1]] || again[2..] == [DOWN[0], DOWN[1], UP[0], UP[1]], "{again:?}");
    for (_, request) in host.calls(&UP) {
        // SINGLE_NODE_SINGLE_WRITER
        assert_eq!(request["volume_capability"]["access_mode"], 6, "{request}");
    }
}

#[test]
fn a_node_that_is_full_takes_the_next_volume_when_one_has_gone() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--max-volumes", "1"]);
    let _daemon = host.volumed(&[]);
    host.manifest("one.yaml", &pod_with_claim("one", "uid-one", "first"));
    host.wait(&["pod/one"]);
    // Another pod of the same volume takes no room.
    host.manifest("more.yaml", &pod_using("more", "uid-more", "first"));
    host.wait(&["pod/more"]);
    host.manifest("two.yaml", &pod_with_claim("two", "uid-two", "second"));
    until_blocked(&host, "two", "max-volumes");
    host.remove_manifest("one.yaml");
    host.wait(&["--for=released", "pod/one"]);
    until_blocked(&host, "two", "max-volumes");
    host.remove_manifest("more.yaml");
    host.wait(&["pod/two"]);
    let log = fs::read_to_string(host.path("calls")).expect("the calls");
    assert!(!log.contains("contract violation"), "{log}");
}

#[test]
fn a_driver_that_wants_to_know_the_pod_is_told() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("driver.yaml", &csi_driver("attachRequired: false, podInfoOnMount: true"));
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let calls = host.calls(&UP);
    let expected = json!({
        "colour": "blue",
        "csi.storage.k8s.io/pod.name": "web",
        "csi.storage.k8s.io/pod.namespace": "default",
        "csi.storage.k8s.io/pod.uid": "uid-web",
        "csi.storage.k8s.io/serviceAccount.name": "default",
        "csi.storage.k8s.io/ephemeral": "false",
    });
    assert_eq!(calls[1].1["volume_context"], expected);
    assert_eq!(calls[0].1["volume_context"], json!({"colour": "blue"}), "staging is for all pods");
}

/// Brings a volume with a file in it up for a pod with fsGroup 4711; returns the group and mode of the volume and of the file.
fn with_group(arguments: &[&str], policy: &str, fs_type: &str) -> (TestHost, [(u32, u32); 2]) {
    let host = TestHost::new();
    let volume = host.path("driver").join("handle-data");
    fs::create_dir_all(&volume).expect("the volume");
    fs::write(volume.join("file"), "content").expect("a file");
    let mode = |mode| fs::Permissions::from_mode(mode);
    fs::set_permissions(&volume, mode(0o755)).expect("its mode");
    fs::set_permissions(volume.join("file"), mode(0o600)).expect("its mode");
    let driver = host.fakecsi(arguments);
    let daemon = host.volumed(&[]);
    host.manifest("driver.yaml", &csi_driver(&format!("attachRequired: false{policy}")));
    let claim =
        claim("data").replace("    volumeHandle", &format!("    fsType: \"{fs_type}\"\n    volumeHandle"));
    let pod = pod_using("web", "uid-web", "data")
        .replace("spec:\n  containers", "spec:\n  securityContext: {fsGroup: 4711}\n  containers");
    host.manifest("web.yaml", &format!("{claim}---\n{pod}"));
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    let found = [target.clone(), target.join("file")].map(|path| {
        let at = fs::metadata(path).expect("it is shown");
        (at.gid(), at.mode() & 0o7777)
    });
    drop((daemon, driver));
    (host, found)
}

#[test]
fn fs_group_is_given_as_the_driver_s_policy_says() {
    let untouched = [(0, 0o755), (0, 0o600)];
    let owned = [(4711, 0o2775), (4711, 0o660)];
    for (policy, fs_type, expected) in [
        (", fsGroupPolicy: File", "", owned),
        (", fsGroupPolicy: None", "ext4", untouched),
        (", fsGroupPolicy: ReadWriteOnceWithFSType", "", untouched),
        (", fsGroupPolicy: ReadWriteOnceWithFSType", "ext4", owned),
        ("", "ext4", owned),
        ("", "", untouched),
    ] {
        let (host, found) = with_group(&[], policy, fs_type);
        assert_eq!(found, expected, "{policy:?} {fs_type:?}\n{}", host.logs());
    }
}

#[test]
fn fs_group_is_the_driver_s_where_it_takes_it() {
    let (host, found) = with_group(&["--mount-group"], ", fsGroupPolicy: File", "ext4");
    assert_eq!(found, [(4711, 0o755), (0, 0o600)], "volumed touches nothing\n{}", host.logs());
    for (method, request) in host.calls(&UP) {
        assert_eq!(request["volume_capability"]["mount"]["volume_mount_group"], "4711", "{method}");
    }
}

#[test]
fn a_driver_that_wants_it_is_asked_to_publish_again_and_a_failure_leaves_the_mount() {
    let host = TestHost::new();
    let driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[("VOLUMED_TEST_REPUBLISH_MS", "200")]);
    host.manifest("driver.yaml", &csi_driver("attachRequired: false, requiresRepublish: true"));
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    until("it is published again", || count(&host, "NodePublishVolume") >= 3);
    let before = mount_id(&host.target("uid-web", "data"));
    host.faults(&json!([{"method": "NodePublishVolume", "action": {"code": "INTERNAL"}}]));
    until_blocked(&host, "web", "INTERNAL");
    let failed = count(&host, "NodePublishVolume");
    until("it is tried again", || count(&host, "NodePublishVolume") > failed);
    assert_eq!(mount_id(&host.target("uid-web", "data")), before, "the mount stays");
    assert!(before.is_some());
    let web = volumes(&host).into_iter().find(|volume| volume["pod"] == "web").expect("it is shown");
    assert_eq!(web["actual"], "published", "{web}");
    host.faults(&json!([]));
    until("it is well again", || drift::blocked(&host, "web").is_empty());
    let mut requests: Vec<Value> =
        host.calls(&["NodePublishVolume"]).into_iter().map(|(_, request)| request).collect();
    requests.dedup();
    assert_eq!(requests.len(), 1, "always the same arguments: {requests:?}");
    assert_eq!(methods(&host).iter().filter(|method| *method != UP[1]).count(), 1, "one NodeStage, no undo");
    // A driver that is away makes no trouble of a volume that is up.
    driver.kill();
    until("the driver is shown as gone", || {
        String::from_utf8_lossy(&host.volumectl(&["drivers"]).stdout).contains("disconnected")
    });
    two_readings(&host);
    let web = volumes(&host).into_iter().find(|volume| volume["pod"] == "web").expect("it is shown");
    let chain = web["chain"].as_array().expect("a chain");
    let failed: Vec<_> = chain.iter().filter(|link| link["state"] == "failed").collect();
    assert!(failed.len() == 1 && failed[0]["step"] == "driver", "only the driver is named: {web}");
    assert_eq!((&web["actual"], &web["blocked"]), (&json!("published"), &json!([])), "{web}");
    assert_eq!(mount_id(&host.target("uid-web", "data")), before);
}

/// Returns the id of the one mount at a path.
fn mount_id(path: &Path) -> Option<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(text(path)))?;
    line.split(' ').next().map(str::to_owned)
}

/// The content of all files below a directory.
fn files_below(directory: &Path) -> Box<dyn Iterator<Item = String>> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    Box::new(entries.flat_map(|entry| {
        let kind = entry.file_type().expect("its kind");
        if kind.is_dir() {
            return files_below(&entry.path());
        }
        let content = fs::read(entry.path()).unwrap_or_default();
        Box::new(std::iter::once(String::from_utf8_lossy(&content).into_owned()))
    }))
}

#[test]
fn a_token_reaches_its_call_is_read_anew_and_is_nowhere_else() {
    const TOKENS: [&str; 2] = ["opaque-token-4711", "opaque-token-4712"];
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let file = host.path("token");
    let put = |token: &str| {
        let aside = host.path("token.new");
        fs::write(&aside, token).expect("a token");
        fs::set_permissions(&aside, fs::Permissions::from_mode(0o600)).expect("its mode");
        fs::rename(aside, &file).expect("its name");
    };
    put(TOKENS[0]);
    let config = format!(
        "[[tokens]]\nservice-account = \"default/default\"\naudience = \"vault\"\nfile = \"{}\"\n",
        file.display()
    );
    fs::write(host.path("volumed.toml"), config).expect("a configuration");
    let _daemon = host.volumed(&[("VOLUMED_TEST_REPUBLISH_MS", "200")]);
    // A call that fails with the whole request in its words.
    host.faults(&json!([{"method": "NodePublishVolume", "nth": 1, "action": {"leak": "no"}}]));
    let spec = "attachRequired: false, requiresRepublish: true, tokenRequests: [{audience: vault}]";
    host.manifest("driver.yaml", &csi_driver(spec));
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    put(TOKENS[1]);
    let given = |request: &Value| {
        let tokens = request["volume_context"]["csi.storage.k8s.io/serviceAccount.tokens"].as_str();
        let tokens: Value = serde_json::from_str(tokens.unwrap_or_default()).unwrap_or_default();
        tokens["vault"]["token"].as_str().unwrap_or_default().to_owned()
    };
    until("the new token is sent", || {
        host.calls(&["NodePublishVolume"]).last().is_some_and(|(_, request)| given(request) == TOKENS[1])
    });
    let calls = host.calls(&UP);
    assert_eq!(given(&calls[1].1), TOKENS[0]);
    assert!(!calls[0].1.to_string().contains("opaque-token"), "staging gets none: {}", calls[0].1);
    let mut places = vec![fs::read_to_string(host.path("volumed.log")).expect("a log")];
    assert!(places[0].contains("INTERNAL"), "the leak was provoked: {}", places[0]);
    for command in [
        &["status"][..],
        &["status", "pod/web", "-o", "json"],
        &["explain", "pod/web"],
        &["list", "-o", "json"],
    ] {
        places.push(String::from_utf8_lossy(&host.volumectl(command).stdout).into_owned());
    }
    places.extend(files_below(&host.state).chain(files_below(&host.root)));
    for place in &places {
        assert!(!place.contains("opaque-token"), "the token got out: {place}");
    }
}
