//! What volumectl shows of a driver's Probe and of a volume's usage and health, with real processes.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod support;

use serde_json::{Value, json};
use support::{TestHost, pod_with_claim, until};

fn shown(host: &TestHost, arguments: &[&str]) -> String {
    String::from_utf8_lossy(&host.volumectl(arguments).stdout).into_owned()
}

/// The one volume, as `list -o json` shows it; null before there is one.
fn volume(host: &TestHost) -> Value {
    let answer: Value = serde_json::from_str(&shown(host, &["list", "-o", "json"])).unwrap_or_default();
    answer["volumes"][0].clone()
}

#[test]
fn a_volume_s_usage_and_condition_are_shown_and_told() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--condition"]);
    host.faults(&json!([{"method": "NodeGetVolumeStats", "action": {"abnormal": "a disk\n is gone"}}]));
    let daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    until("the usage is known", || volume(&host)["usage"]["total_bytes"].is_u64());
    let known = volume(&host);
    assert!(known["usage"]["used_bytes"].as_u64().is_some_and(|used| used > 0), "{known}");
    assert!(known["usage"]["total_inodes"].is_u64() && known["usage"]["measured_at_ms"].is_i64(), "{known}");
    assert_eq!(known["ills"][0]["status"], "abnormal");
    assert_eq!(known["state"], "good", "it is published all the same");
    let explained = shown(&host, &["explain", "pod/web"]);
    let health = explained.lines().find(|line| line.contains("health")).expect("a link of its own");
    assert!(health.contains('✗') && health.contains("abnormal: a disk  is gone"), "{explained}");
    assert!(health.contains(" used"), "{explained}");
    let wide = shown(&host, &["list", "-o", "wide"]);
    assert!(wide.contains("USED") && wide.contains(" of ") && wide.contains("abnormal"), "{wide}");
    let log = std::fs::read_to_string(&daemon.log).expect("a log");
    assert!(log.contains("is not well: abnormal: a disk  is gone"), "{log}");

    let target = host.target("uid-web", "data").display().to_string();
    for (_, request) in host.calls(&["NodeGetVolumeStats"]) {
        assert_eq!((&request["volume_path"], &request["staging_target_path"]), (&json!(target), &json!("")));
    }
    daemon.kill();
    host.faults(&json!([]));
    let _daemon = host.volumed(&[]);
    until("it is well", || volume(&host)["usage"]["total_bytes"].is_u64());
    assert!(volume(&host)["ills"].as_array().is_none_or(Vec::is_empty));
}

#[test]
fn a_volume_s_health_is_asked_with_both_paths_and_gates_are_kept() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--health", "--no-stats"]);
    host.faults(&json!([{"method": "NodeGetVolumeHealth",
        "action": {"health": [{"status": "DEGRADED", "reason": "Rebuilding"}]}}]));
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    until("the health is known", || volume(&host)["ills"][0]["status"] == "degraded");
    assert_eq!(volume(&host)["reason"], "not well: degraded: Rebuilding");
    let (_, request) = host.calls(&["NodeGetVolumeHealth"]).remove(0);
    assert_eq!(request["volume_publish_path"], host.target("uid-web", "data").display().to_string());
    let staging = request["staging_target_path"].as_str().unwrap_or_default();
    assert!(staging.ends_with("/globalmount"), "{request}");
    assert_eq!(host.calls(&["NodeGetVolumeStats"]), []);
}

#[test]
fn calls_wait_while_a_driver_says_that_it_is_not_ready() {
    let host = TestHost::new();
    host.faults(&json!([{"method": "Probe", "action": {"ready": false}}]));
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    until("the driver is shown as starting", || shown(&host, &["drivers"]).contains("starting"));
    until("the volume waits for it", || shown(&host, &["explain", "pod/web"]).contains("is starting up"));
    assert_eq!(host.calls(&["NodeStageVolume"]), []);
    let told = host.calls(&["NotifyRegistrationStatus"]);
    assert_eq!(told[0].1["plugin_registered"], true, "a kubelet registers it");
    host.faults(&json!([]));
    host.wait(&["pod/web"]);
}

#[test]
fn a_driver_that_is_not_well_is_shown_and_called() {
    let host = TestHost::new();
    host.faults(
        &json!([{"method": "Probe", "action": {"code": "FAILED_PRECONDITION", "message": "no iscsid"}}]),
    );
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let drivers = shown(&host, &["drivers"]);
    assert!(drivers.contains("unwell") && drivers.contains("depends on: no iscsid"), "{drivers}");
    assert!(shown(&host, &["explain", "pod/web"]).contains("not well: it lacks"));
}

#[test]
fn the_file_system_tells_what_the_driver_does_not() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--no-stats"]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    until("the usage is known", || volume(&host)["usage"]["total_bytes"].is_u64());
    let known = volume(&host);
    assert!(known["usage"]["used_bytes"].as_u64().is_some_and(|used| used > 0), "{known}");
    assert_eq!(known["usage"]["error"], "");
    assert_eq!(host.calls(&["NodeGetVolumeStats", "NodeGetVolumeHealth"]), []);
}

#[test]
fn a_block_volume_is_asked_about_where_it_is_bound() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    let manifest = pod_with_claim("web", "uid-web", "data")
        .replace("accessModes: [ReadWriteOnce]", "accessModes: [ReadWriteOnce]\n  volumeMode: Block")
        .replace(
            "volumeMounts: [{name: data, mountPath: /data}]",
            "volumeDevices: [{name: data, devicePath: /dev/x}]",
        );
    host.manifest("web.yaml", &manifest);
    host.wait(&["pod/web"]);
    until("the size is known", || volume(&host)["usage"]["total_bytes"] == 16 << 20);
    let known = volume(&host);
    assert_eq!(known["usage"]["used_bytes"], Value::Null, "nobody knows what is used of a device");
    let link = host.root.join("pods/uid-web/volumeDevices/kubernetes.io~csi/data");
    assert_eq!(known["path"], link.display().to_string(), "where the pod finds it");
    let bound = host.root.join("plugins/kubernetes.io/csi/volumeDevices/data/dev/uid-web");
    let (_, request) = host.calls(&["NodeGetVolumeStats"]).remove(0);
    assert_eq!(request["volume_path"], bound.display().to_string());
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    until("no device is left", || support::loop_devices(&host.path("")).is_empty());
}
