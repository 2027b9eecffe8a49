//! The whole way with real processes: manifests in, mounts out, and whoever is killed in between.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod support;

use std::fs;
use std::process::Command;

use serde_json::json;
use support::seen::{assert_released, explanation, methods, mount_ids};
use support::{DRIVER, TestHost, claim, pod_using, pod_with_claim, until};

#[test]
fn a_manifest_becomes_a_mount_and_goes_without_a_trace() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    assert!(host.mounts().contains(&target), "{:?}", host.mounts());
    assert_eq!(methods(&host), ["NodeStageVolume", "NodePublishVolume"]);
    let data =
        fs::read_to_string(target.parent().expect("it has one").join("vol_data.json")).expect("it is there");
    assert!(data.contains(r#""driverName":"fake.csi.volumed.io""#), "{data}");
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    assert_eq!(methods(&host)[2..], ["NodeUnpublishVolume", "NodeUnstageVolume"]);
    until("the volume is unstaged", || host.mounts().is_empty());
    assert_released(&host);
}

#[test]
fn a_pod_that_leaves_and_then_has_no_manifest_is_no_trouble() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    let pod = pod_with_claim("web", "uid-web", "data");
    host.manifest("web.yaml", &pod);
    host.wait(&["pod/web"]);
    let leaving = pod.replacen("uid: uid-web", "uid: uid-web, deletionTimestamp: 2026-11-22T00:00:00Z", 1);
    assert_ne!(leaving, pod);
    host.manifest("web.yaml", &leaving);
    host.wait(&["--for=released", "pod/web"]);
    host.remove_manifest("web.yaml");
    let mut seen = String::new();
    until("the pod is forgotten", || {
        let list = host.volumectl(&["list", "-o", "json"]).stdout;
        let list = String::from_utf8_lossy(&list).into_owned();
        seen.push_str(&list);
        !list.contains("web")
    });
    assert!(!seen.contains("its manifest is gone"), "{seen}");
    assert!(!host.logs().contains("its manifest is gone"), "{}", host.logs());
    assert_released(&host);
}

#[test]
fn a_pod_that_leaves_while_its_first_stage_is_under_way_is_not_released_before_it_is_undone() {
    let host = TestHost::new();
    let driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    let listed = |text: &str| String::from_utf8_lossy(&host.volumectl(&["list"]).stdout).contains(text);
    until("the driver is there", || {
        String::from_utf8_lossy(&host.volumectl(&["drivers"]).stdout).contains("ready")
    });
    driver.signal("-STOP");
    let pod = pod_with_claim("web", "uid-web", "data");
    host.manifest("web.yaml", &pod);
    until("it is being staged", || listed("staging"));
    let leaving = pod.replacen("uid: uid-web", "uid: uid-web, deletionTimestamp: 2026-11-22T00:00:00Z", 1);
    host.manifest("web.yaml", &leaving);
    until("it leaves", || {
        String::from_utf8_lossy(&host.volumectl(&["list", "-o", "json"]).stdout).contains("\"released\"")
    });
    let waited = host.volumectl(&["wait", "--for=released", "--timeout", "500ms", "pod/web"]);
    assert!(!waited.status.success(), "{waited:?}\n{}", host.explain());
    driver.signal("-CONT");
    host.wait(&["--for=released", "pod/web"]);
    assert_eq!(methods(&host), ["NodeStageVolume", "NodeUnstageVolume"]);
    host.remove_manifest("web.yaml");
    assert_released(&host);
}

/// What `volumectl` tells an operator to do with a pod that was edited: remove it and add it again. He does not wait between.
#[test]
fn an_edited_pod_comes_up_when_what_it_had_is_gone_though_no_manifest_changes_any_more() {
    let host = TestHost::new();
    let driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("claims.yaml", &format!("{}---\n{}", claim("data"), claim("other")));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let listed = || String::from_utf8_lossy(&host.volumectl(&["list"]).stdout).into_owned();
    driver.signal("-STOP");
    host.remove_manifest("web.yaml");
    until("it is being unpublished", || listed().contains("unpublish"));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "other"));
    until("the edit waits", || host.explain().contains("was edited"));
    driver.signal("-CONT");
    host.wait(&["pod/web"]);
    until("what it had is unstaged", || methods(&host).iter().any(|method| method == "NodeUnstageVolume"));
    let published = host.calls(&["NodePublishVolume"]);
    assert_eq!(published.len(), 2, "{published:?}");
    assert_eq!(published[1].1["volume_id"], json!("handle-other"), "{published:?}");
}

/// Kills the daemon at a point of its way; `down`: on the way down.
fn killed_at(point: &str, arguments: &[&str], removed_while_dead: bool) {
    let host = TestHost::new();
    let down = point.starts_with("un");
    let _driver = host.fakecsi(arguments);
    host.manifest("claim.yaml", &claim("data"));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    if down {
        let daemon = host.volumed(&[]);
        host.wait(&["pod/web"]);
        daemon.kill();
        host.remove_manifest("web.yaml");
    }
    let doomed = host.volumed(&[("VOLUMED_TEST_FAULT", point)]);
    let status = doomed.ended();
    assert!(!status.success(), "the daemon was to die at {point}");
    if removed_while_dead {
        host.remove_manifest("web.yaml");
    }
    let _daemon = host.volumed(&[]);
    if down || removed_while_dead {
        host.wait(&["--for=released", "pod/web"]);
        assert_released(&host);
    } else {
        host.wait(&["pod/web"]);
        let staged = host.mounts().iter().filter(|point| point.ends_with("globalmount")).count();
        assert_eq!(staged, usize::from(arguments.is_empty()), "{:?}", host.mounts());
        assert!(host.mounts().contains(&host.target("uid-web", "data")));
    }
    // A retry sends the same arguments (csi.md 10, 5), and a volume has one staging path.
    for method in ["NodeStageVolume", "NodePublishVolume"] {
        let mut requests: Vec<String> =
            host.calls(&[method]).into_iter().map(|(_, request)| request.to_string()).collect();
        requests.dedup();
        assert!(requests.len() <= 1, "{method} was sent with different arguments at {point}: {requests:?}");
    }
}

const UP: [&str; 6] =
    ["stage:intent", "stage:call", "stage:outcome", "publish:intent", "publish:call", "publish:outcome"];
const DOWN: [&str; 6] = [
    "unpublish:intent",
    "unpublish:call",
    "unpublish:outcome",
    "unstage:intent",
    "unstage:call",
    "unstage:outcome",
];

#[test]
fn killed_on_the_way_up_it_goes_on() {
    for point in UP {
        killed_at(point, &[], false);
    }
}

#[test]
fn killed_on_the_way_up_and_unwanted_meanwhile_it_takes_back() {
    for point in UP {
        killed_at(point, &[], true);
    }
}

#[test]
fn killed_on_the_way_down_it_goes_on() {
    for point in DOWN {
        killed_at(point, &[], false);
    }
}

#[test]
fn killed_at_any_point_with_a_driver_without_staging() {
    for point in UP.iter().chain(&DOWN) {
        killed_at(point, &["--no-stage"], false);
    }
    for point in UP {
        killed_at(point, &["--no-stage"], true);
    }
}

#[test]
fn a_restart_calls_nobody_and_moves_no_mount() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let before = (methods(&host), mount_ids(&host));
    daemon.signal("-TERM");
    assert!(daemon.ended().success(), "{}", host.logs());
    assert_eq!(mount_ids(&host), before.1, "stopping takes nothing down");
    let daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    daemon.kill();
    let _daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    assert_eq!((methods(&host), mount_ids(&host)), before);
}

#[test]
fn after_a_reboot_a_driver_that_mounts_nothing_is_called_again() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--no-mount"]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    let up = ["NodeStageVolume", "NodePublishVolume"];
    let daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "first")]);
    host.wait(&["pod/web"]);
    daemon.kill();
    let daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "first")]);
    host.wait(&["pod/web"]);
    assert_eq!(methods(&host), up, "the same boot: what is recorded is so");
    daemon.kill();
    let _daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "second")]);
    host.wait(&["pod/web"]);
    assert_eq!(methods(&host), [up, up].concat(), "another boot: no mount tells, so the driver is asked");
}

#[test]
fn a_volume_that_vanished_is_published_again() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    assert!(Command::new("umount").arg(&target).status().expect("umount").success());
    until("it is published again", || host.mounts().contains(&target));
    host.wait(&["pod/web"]);
}

#[test]
fn a_stranger_s_mount_on_the_target_stops_every_call() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "stranger"]).arg(&target).status();
    assert!(mounted.expect("mount").success());
    host.remove_manifest("web.yaml");
    until("the obstacle is named", || explanation(&host, "web").contains("stranger"));
    assert_eq!(methods(&host), ["NodeStageVolume", "NodePublishVolume"], "nobody is called");
    assert!(Command::new("umount").arg(&target).status().expect("umount").success());
    host.wait(&["--for=released", "pod/web"]);
}

#[test]
fn a_driver_that_mounts_nothing_is_accepted_and_named() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--no-mount"]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let status = host.volumectl(&["status", "pod/web"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("not a mount point"), "{status:?}");
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
}

#[test]
fn two_instances_run_side_by_side_and_none_twice() {
    let (one, two) = (TestHost::new(), TestHost::new());
    let _drivers = (one.fakecsi(&[]), two.fakecsi(&[]));
    let _daemons = (one.volumed(&[]), two.volumed(&[]));
    for host in [&one, &two] {
        host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
        host.wait(&["pod/web"]);
    }
    assert!(!one.volumed(&[]).ended().success(), "a second daemon runs on one state directory");
    let log = fs::read_to_string(one.path("volumed.log")).expect("a log");
    assert!(log.contains("another"), "{log}");
}

#[test]
fn a_volume_that_needs_attaching_waits_for_its_attachment() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--attach"]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    until("it is blocked for the attachment", || explanation(&host, "web").contains("VolumeAttachment"));
    assert_eq!(methods(&host), Vec::<String>::new());
    host.manifest(
        "attachment.yaml",
        &format!(
            "apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
metadata: {{name: a}}
spec: {{attacher: {DRIVER}, nodeName: test-node, source: {{persistentVolumeName: data}}}}
status: {{attached: true, attachmentMetadata: {{device: /dev/vdx}}}}
"
        ),
    );
    host.wait(&["pod/web"]);
    for (method, request) in host.calls(&["NodeStageVolume", "NodePublishVolume"]) {
        assert_eq!(request["publish_context"]["device"], "/dev/vdx", "{method}: {request}");
    }
}

#[test]
fn a_driver_that_says_ok_and_leaves_its_mount_is_helped() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    host.faults(&json!([
        {"method": "NodeUnpublishVolume", "action": "no-mount"},
        {"method": "NodeUnstageVolume", "action": "no-mount"},
    ]));
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
}

#[test]
fn not_found_ends_an_undo_only_where_nothing_is_left() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    // Before the effect: the mount is still there, so the undo is owed.
    host.faults(&json!([{"method": "NodeUnpublishVolume", "action": {"code": "NOT_FOUND"}}]));
    host.remove_manifest("web.yaml");
    until("it is said that the mount is still there", || explanation(&host, "web").contains("still mounted"));
    assert!(
        host.mounts().contains(&host.target("uid-web", "data")),
        "volumed does not unmount what was not said to be done"
    );
    // After the effect: nothing is left, so it is done.
    host.faults(&json!([
        {"method": "NodeUnpublishVolume", "when": "after", "action": {"code": "NOT_FOUND"}},
        {"method": "NodeUnstageVolume", "when": "after", "action": {"code": "NOT_FOUND"}},
    ]));
    host.volumectl(&["retry"]);
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
}
