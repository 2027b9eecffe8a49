//! Volumes that grow, end to end with the example driver: at bring-up, while they are used, and whatever the driver answers.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod drift;
#[path = "expand/shared.rs"]
mod shared;
mod support;

use std::fs;

use drift::{Nodes, assert_released, block_paths, csi_driver, methods, until_blocked, volumes};
use serde_json::{Value, json};
use support::objects::{block, device_user};
use support::{TestHost, claim, pod_using, until};

const GI: u64 = 1 << 30;

/// A claim whose PV has so many GiB, while its status says what it had when it was last grown.
fn sized(volume: &str, capacity: u64, claimed: Option<&str>) -> String {
    let status =
        claimed.map(|size| format!("status: {{capacity: {{storage: {size}}}}}\n")).unwrap_or_default();
    claim(volume).replace("capacity: {storage: 1Gi}", &format!("capacity: {{storage: {capacity}Gi}}"))
        + &status
}

/// The bytes that NodeExpandVolume was asked for, in order.
fn asked(host: &TestHost) -> Vec<u64> {
    let calls = host.calls(&["NodeExpandVolume"]);
    calls.iter().filter_map(|(_, request)| request["required_bytes"].as_u64()).collect()
}

fn fault(host: &TestHost, code: &str, to: Option<u64>) {
    host.faults(&json!([{"method": "NodeExpandVolume", "to": to, "action": {"code": code}}]));
}

/// Waits until a volume has grown, as its record says.
fn until_grown(host: &TestHost, bytes: u64) {
    until("it has grown", || {
        let records = fs::read_dir(host.state.join("volumes")).into_iter().flatten().flatten();
        let records = records.filter_map(|entry| {
            serde_json::Deserializer::from_slice(&fs::read(entry.path()).ok()?)
                .into_iter::<Value>()
                .map_while(Result::ok)
                .last()
        });
        let grown = |record: &Value| record["size"] == bytes && record["expansion"].is_null();
        let all: Vec<bool> = records.map(|record| grown(&record)).collect();
        !all.is_empty() && all.iter().all(|grown| *grown)
    });
}

#[test]
fn a_volume_grows_before_its_pod_gets_it_and_its_size_is_remembered() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &sized("data", 1, Some("512Mi")));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    assert_eq!(methods(&host), ["NodeStageVolume", "NodePublishVolume", "NodeExpandVolume"]);
    let request = &host.calls(&["NodeExpandVolume"])[0].1;
    assert_eq!(request["volume_path"], json!(host.target("uid-web", "data")));
    assert_eq!(request["staging_target_path"], json!(drift::staging(&host)));
    assert_eq!((&request["required_bytes"], &request["limit_bytes"]), (&json!(GI), &json!(0)));
    assert_eq!(request["volume_capability"]["access_mode"], 1);
    // A restart, a pod that goes and comes back, both: nobody asks again.
    daemon.kill();
    let daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
    drop(daemon);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    assert_eq!(asked(&host), [GI], "{}", host.logs());
    // It grew while the pod was gone.
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    host.manifest("claim.yaml", &sized("data", 2, Some("512Mi")));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    assert_eq!(asked(&host), [GI, 2 * GI]);
}

#[test]
fn a_volume_in_use_grows_once_for_all_its_pods() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &sized("data", 1, None));
    for pod in ["a", "b"] {
        host.manifest(&format!("{pod}.yaml"), &pod_using(pod, &format!("uid-{pod}"), "data"));
    }
    host.wait(&["pod/a", "pod/b"]);
    assert_eq!(asked(&host), Vec::<u64>::new(), "it has the size that its PV says");
    host.manifest("claim.yaml", &sized("data", 2, None));
    until_grown(&host, 2 * GI);
    daemon.kill();
    let _daemon = host.volumed(&[]);
    host.wait(&["pod/a", "pod/b"]);
    host.manifest("claim.yaml", &sized("data", 3, None));
    until_grown(&host, 3 * GI);
    assert_eq!(asked(&host), [2 * GI, 3 * GI]);
    // Smaller is nothing that can be done.
    host.manifest("claim.yaml", &sized("data", 1, None));
    drift::two_readings(&host);
    assert_eq!(asked(&host), [2 * GI, 3 * GI]);
    assert!(volumes(&host).iter().all(|volume| volume["state"] == "good"), "{}", host.explain());
}

#[test]
fn a_block_volume_grows_with_its_device() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand", "--block-size", "16777216"]);
    let _daemon = host.volumed(&[]);
    let claim = |size: &str| {
        block(&claim("db")).replace("capacity: {storage: 1Gi}", &format!("capacity: {{storage: {size}}}"))
    };
    host.manifest("claim.yaml", &claim("16Mi"));
    host.manifest("db.yaml", &device_user(&pod_using("db", "uid-db", "db")));
    host.wait(&["pod/db"]);
    host.manifest("claim.yaml", &claim("32Mi"));
    until_grown(&host, 32 << 20);
    let link = block_paths(&host, "uid-db", "db").link;
    let size = drift::run("blockdev", &["--getsize64", drift::text(&link)]);
    assert_eq!(size.trim(), (32 << 20).to_string(), "the pod sees it");
}

#[test]
fn a_driver_that_only_grows_unused_volumes_is_asked_again_when_it_comes_up_anew() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &sized("data", 1, None));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    fault(&host, "FAILED_PRECONDITION", Some(1));
    host.manifest("claim.yaml", &sized("data", 2, None));
    until_blocked(&host, "web", "FAILED_PRECONDITION");
    let shown = &volumes(&host)[0];
    assert_eq!(shown["actual"], "published", "{shown}");
    // Neither the operator, nor a restart, nor another size makes it possible.
    assert!(host.volumectl(&["retry"]).status.success());
    host.manifest("claim.yaml", &sized("data", 3, None));
    daemon.kill();
    let _daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    let detail = until_blocked(&host, "web", "FAILED_PRECONDITION");
    assert!(detail.contains(&(3 * GI).to_string()), "{detail}");
    drift::two_readings(&host);
    assert_eq!(asked(&host), [2 * GI], "{}", host.logs());
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    assert_eq!(asked(&host), [2 * GI, 3 * GI]);
    assert_eq!(drift::blocked(&host, "web"), []);
}

#[test]
fn a_pod_does_not_wait_for_a_driver_that_only_grows_unused_volumes() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let _daemon = host.volumed(&[]);
    fault(&host, "FAILED_PRECONDITION", None);
    host.manifest("claim.yaml", &sized("data", 2, Some("1Gi")));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    until_blocked(&host, "web", "FAILED_PRECONDITION");
    drift::two_readings(&host);
    assert_eq!(asked(&host), [2 * GI]);
}

#[test]
fn a_size_that_the_driver_cannot_make_is_asked_for_slowly() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let _daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &sized("data", 1, None));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    fault(&host, "OUT_OF_RANGE", Some(1));
    host.manifest("claim.yaml", &sized("data", 3, None));
    until_blocked(&host, "web", "OUT_OF_RANGE");
    let blocked = volumes(&host)[0]["blocked"][0].clone();
    let pause =
        blocked["next_try_ms"].as_i64().expect("tried again") - blocked["since_ms"].as_i64().expect("since");
    assert!((110_000..150_000).contains(&pause), "{blocked}");
    drift::two_readings(&host);
    assert_eq!(asked(&host), [3 * GI]);
    // A size that was refused for good binds nobody.
    host.manifest("claim.yaml", &sized("data", 2, None));
    until_grown(&host, 2 * GI);
    assert_eq!(asked(&host), [3 * GI, 2 * GI]);
}

#[test]
fn a_growth_whose_answer_was_lost_is_finished_in_its_own_size() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &sized("data", 1, None));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    fault(&host, "UNAVAILABLE", None);
    host.manifest("claim.yaml", &sized("data", 2, None));
    until_blocked(&host, "web", "UNAVAILABLE");
    host.manifest("claim.yaml", &sized("data", 3, None));
    until("the edit is tried", || asked(&host).len() > 2);
    daemon.kill();
    host.faults(&json!([]));
    let _daemon = host.volumed(&[]);
    until_grown(&host, 3 * GI);
    let mut asked = asked(&host);
    asked.dedup();
    assert_eq!(asked, [2 * GI, 3 * GI], "what was begun is finished first (csi.md 10, 26)");
}

#[test]
fn a_pod_waits_for_a_growth_that_is_in_doubt() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let _daemon = host.volumed(&[]);
    fault(&host, "UNAVAILABLE", Some(2));
    host.manifest("claim.yaml", &sized("data", 2, Some("1Gi")));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    until_blocked(&host, "web", "UNAVAILABLE");
    host.wait(&["pod/web"]);
    assert_eq!(asked(&host), [2 * GI; 3]);
    let publishes: Vec<Value> =
        host.calls(&["NodePublishVolume"]).into_iter().map(|(_, request)| request).collect();
    assert!(publishes.windows(2).all(|pair| pair[0] == pair[1]), "{publishes:?}");
}

#[test]
fn what_may_not_be_written_does_not_grow() {
    let pods = pod_using("web", "uid-web", "data");
    let cases = [
        (
            "the pod's readOnly",
            sized("data", 2, Some("1Gi")),
            pods.replace("claimName: data", "claimName: data, readOnly: true"),
            true,
        ),
        (
            "the PV's readOnly",
            sized("data", 2, Some("1Gi")).replace("    volumeHandle", "    readOnly: true\n    volumeHandle"),
            pods.clone(),
            true,
        ),
        ("a driver that cannot", sized("data", 2, Some("1Gi")), pods.clone(), false),
    ];
    for (what, claim, pod, expand) in cases {
        let host = TestHost::new();
        let _driver = host.fakecsi(if expand { &["--expand"] } else { &[] });
        let _daemon = host.volumed(&[]);
        host.manifest("claim.yaml", &claim);
        host.manifest("web.yaml", &pod);
        host.wait(&["pod/web"]);
        host.manifest("claim.yaml", &claim.replace("storage: 2Gi", "storage: 3Gi"));
        drift::two_readings(&host);
        assert_eq!(asked(&host), Vec::<u64>::new(), "{what}");
    }
}

/// Kills the daemon at a point of a volume that grows when its pod gets it, or later.
fn killed_at(point: &str, device: bool, removed_while_dead: bool) {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let claim = if device {
        block(&claim("data")).replace("capacity: {storage: 1Gi}", "capacity: {storage: 64Mi}")
            + "status: {capacity: {storage: 32Mi}}\n"
    } else {
        sized("data", 2, Some("1Gi"))
    };
    let pod = if device {
        device_user(&pod_using("web", "uid-web", "data"))
    } else {
        pod_using("web", "uid-web", "data")
    };
    host.manifest("driver.yaml", &csi_driver("attachRequired: false, requiresRepublish: true"));
    host.manifest("claim.yaml", &claim);
    host.manifest("web.yaml", &pod);
    let doomed = host.volumed(&[("VOLUMED_TEST_FAULT", point), ("VOLUMED_TEST_REPUBLISH_MS", "100")]);
    assert!(!doomed.ended().success(), "{point} was reached");
    let paths = block_paths(&host, "uid-web", "data");
    let devices = support::loop_devices(&host.path("driver"));
    let mut nodes: Vec<_> = devices.iter().map(std::path::PathBuf::as_path).collect();
    nodes.extend([paths.map.as_path(), paths.published.as_path()]);
    let nodes = Nodes::of(&nodes);
    if removed_while_dead {
        host.remove_manifest("web.yaml");
    }
    let _daemon = host.volumed(&[("VOLUMED_TEST_REPUBLISH_MS", "60000")]);
    if !removed_while_dead {
        host.wait(&["pod/web"]);
        if device {
            assert_eq!(nodes.locks().len(), 1, "{point}: one lock\n{}", host.logs());
        }
        until_grown(&host, if device { 64 << 20 } else { 2 * GI });
        host.remove_manifest("web.yaml");
    }
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
    assert_eq!(nodes.locks(), Vec::<String>::new(), "{point}: locks are left");
    for method in ["NodeStageVolume", "NodePublishVolume", "NodeExpandVolume"] {
        let mut requests: Vec<String> =
            host.calls(&[method]).into_iter().map(|(_, request)| request.to_string()).collect();
        requests.dedup();
        assert!(requests.len() <= 1, "{method} was sent with different arguments at {point}: {requests:?}");
    }
}

const POINTS: [&str; 4] = ["publish:finish", "expand:intent", "expand:call", "republish:call"];

#[test]
fn killed_while_it_grows_or_is_published_again_it_goes_on() {
    for (point, block) in POINTS.iter().flat_map(|point| [(point, false), (point, true)]) {
        killed_at(point, block, false);
    }
}

#[test]
fn killed_while_it_grows_and_unwanted_meanwhile_it_takes_back() {
    for (point, block) in POINTS.iter().flat_map(|point| [(point, false), (point, true)]) {
        killed_at(point, block, true);
    }
}
