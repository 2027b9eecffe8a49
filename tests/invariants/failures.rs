//! What a failure leaves, and what is never done because of one: 6 to 10, 31, 35.

use std::process::Command;

use serde_json::json;

use super::*;
use crate::support::{claim, pod_using, pod_with_claim};

#[test]
fn invariant_06_the_intent_is_on_disk_before_the_first_call() {
    for method in [STAGE, PUBLISH] {
        let host = TestHost::new();
        let driver = host.fakecsi(&[]);
        host.faults(&json!([{"method": method, "action": "hang"}]));
        host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
        let daemon = host.volumed(&[]);
        until("it is in the middle of the call", || !of(&host, &[method]).is_empty());
        daemon.kill();
        driver.kill();
        let [record] = records(&host).try_into().expect("one record");
        let text = record;
        let call = of(&host, &[method]).remove(0);
        for known in ["handle-data", "uid-web", DRIVER] {
            assert!(text.contains(known), "{method}: {known} is not in {text}");
        }
        assert!(text.contains("colour"), "{method}: the arguments are not in {text}");
        // Whoever starts next knows what may be there, without the manifest.
        host.remove_manifest("web.yaml");
        fs::remove_file(host.path("faults")).expect("the faults");
        let _driver = host.fakecsi(&[]);
        let _daemon = host.volumed(&[]);
        until("it is undone", || of(&host, &[UNSTAGE]).iter().any(|call| call.code == "OK"));
        assert_released(&host);
        let undo = of(&host, &[UNSTAGE]).remove(0);
        assert_eq!(undo.request["staging_target_path"], call.request["staging_target_path"]);
        assert_eq!(of(&host, &[UNPUBLISH]).is_empty(), method == STAGE, "{method}: {:?}", of(&host, &NODE));
    }
}

#[test]
fn invariant_07_what_may_be_done_is_undone_until_ok_when_it_is_no_longer_wanted() {
    for (method, code, when) in [
        (STAGE, "DEADLINE_EXCEEDED", "before"),
        (STAGE, "UNAVAILABLE", "after"),
        (PUBLISH, "ABORTED", "before"),
        (PUBLISH, "DEADLINE_EXCEEDED", "after"),
        // Also after a final error: the code is the driver's word, and the effect may be there (design 5).
        (PUBLISH, "INTERNAL", "after"),
    ] {
        let host = TestHost::new();
        let _driver = host.fakecsi(&[]);
        host.faults(&json!([
            {"method": method, "when": when, "action": {"code": code}},
            fails(UNPUBLISH, 1, "before", "UNAVAILABLE"),
            fails(UNSTAGE, 2, "after", "DEADLINE_EXCEEDED"),
        ]));
        let _daemon = host.volumed(&[]);
        host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
        until("it failed", || of(&host, &[method]).iter().any(|call| call.code == code));
        release(&host, &["web"]);
        assert_released(&host);
        let calls = of(&host, &[UNPUBLISH, UNSTAGE]);
        let undone = |method: &str| {
            calls.iter().rev().find(|call| call.method == method).map(|call| call.code.as_str())
        };
        assert_eq!(undone(UNSTAGE), Some("OK"), "{method} {code}: {calls:?}");
        assert_eq!(undone(UNPUBLISH), (method == PUBLISH).then_some("OK"), "{method} {code}: {calls:?}");
    }
}

#[test]
fn invariant_08_a_failing_undo_keeps_its_record() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    for method in [UNPUBLISH, UNSTAGE] {
        host.faults(&json!([{"method": method, "action": {"code": "INTERNAL"}}]));
        if method == UNPUBLISH {
            host.remove_manifest("web.yaml");
        } else {
            host.volumectl(&["retry"]);
        }
        until("the undo failed three times", || of(&host, &[method]).len() >= 3);
        let [record] = records(&host).try_into().expect("the record stays");
        assert!(record.contains("handle-data"));
    }
    // Nor does a restart forget it.
    daemon.kill();
    let before = of(&host, &[UNSTAGE]).len();
    let _daemon = host.volumed(&[]);
    until("it is tried again", || of(&host, &[UNSTAGE]).len() > before);
    assert_eq!(records(&host).len(), 1);
    host.faults(&json!([]));
    host.volumectl(&["retry"]);
    assert_released(&host);
}

#[test]
fn invariant_09_no_directory_goes_with_a_mount_or_a_file_in_it() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    fs::write(target.join("file"), "precious").expect("a file in the volume");
    // A stranger's mount beside the volume, and a driver that says OK and leaves its mount.
    let beside = host.root.join("pods/uid-web/beside");
    fs::create_dir(&beside).expect("a directory");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "stranger"]).arg(&beside).status();
    assert!(mounted.expect("mount").success());
    fs::write(beside.join("file"), "precious").expect("a stranger's file");
    host.faults(&json!([
        {"method": UNPUBLISH, "action": "no-mount"},
        {"method": UNSTAGE, "to": 1, "action": "no-mount"},
    ]));
    host.remove_manifest("web.yaml");
    until("it is undone", || of(&host, &[UNSTAGE]).iter().any(|call| call.code == "OK"));
    until("the volume's own mounts are gone", || host.mounts() == [beside.clone()]);
    let data = host.path("driver");
    let found = Command::new("find").arg(&data).args(["-name", "file"]).output().expect("find");
    assert!(!found.stdout.is_empty(), "the volume's file is gone from {}", data.display());
    assert_eq!(fs::read_to_string(beside.join("file")).expect("it is there"), "precious");
    assert!(Command::new("umount").arg(&beside).status().expect("umount").success());
}

#[test]
fn invariant_10_nothing_lies_on_top_of_a_target_or_staging_path() {
    let host = TestHost::new();
    let driver = host.fakecsi(&[]);
    // Both are done, and told not to be: each is called again on what is there.
    host.faults(&json!([
        {"method": STAGE, "to": 2, "action": "lost"},
        {"method": PUBLISH, "to": 2, "action": "lost"},
    ]));
    let daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.manifest(
        "disk.yaml",
        &format!("{}---\n{}", block(&claim("raw")), device_user(&pod_using("disk", "uid-disk", "raw"))),
    );
    host.wait(&["pod/web", "pod/disk"]);
    daemon.kill();
    driver.kill();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.wait(&["pod/web", "pod/disk"]);
    let target = host.target("uid-web", "data");
    assert!(Command::new("umount").arg(&target).status().expect("umount").success());
    until("it is published again", || depth(&host, &target) > 0);
    host.wait(&["pod/web"]);
    assert!(of(&host, &[STAGE]).len() >= 4, "{:?}", names(&of(&host, &NODE)));
    for mount in host.mounts() {
        assert_eq!(depth(&host, &mount), 1, "{}", mount.display());
        // Nor below it: what is in the volume is the driver's.
        let below =
            host.mounts().into_iter().filter(|other| *other != mount && other.starts_with(&mount)).count();
        assert_eq!(below, 0, "{}", mount.display());
    }
    release(&host, &["web", "disk"]);
    assert_released(&host);
}

#[test]
fn invariant_31_a_failing_republish_leaves_the_mount_intact() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let daemon = host.volumed(&[]);
    host.manifest("driver.yaml", &driver_object("requiresRepublish: true"));
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    fs::write(target.join("file"), "in use").expect("a file");
    let mounts = mount_ids(&host);
    host.faults(&json!([{"method": PUBLISH, "action": {"code": "INTERNAL"}}]));
    // A daemon that starts repeats at once what it has not published itself.
    daemon.kill();
    let _daemon = host.volumed(&[]);
    until("the repeat failed twice", || {
        of(&host, &[PUBLISH]).iter().filter(|call| call.code == "INTERNAL").count() >= 2
    });
    assert_eq!(mount_ids(&host), mounts);
    assert_eq!(fs::read_to_string(target.join("file")).expect("it is there"), "in use");
    host.wait(&["pod/web"]);
    assert_eq!(names(&of(&host, &[STAGE, UNPUBLISH, UNSTAGE])), [STAGE], "nobody undoes what is in use");
    assert_same_arguments(&of(&host, &[PUBLISH]), "a repeat");
    host.faults(&json!([]));
    host.volumectl(&["retry"]);
    until("the repeat is OK", || of(&host, &[PUBLISH]).last().is_some_and(|call| call.code == "OK"));
    assert_eq!(mount_ids(&host), mounts);
    release(&host, &["web"]);
    assert_released(&host);
}

#[test]
fn invariant_35_an_answer_beyond_the_limits_is_refused_and_nobody_dies() {
    let host = TestHost::new();
    let long = "n".repeat(257);
    let driver = host.fakecsi(&["--node-id", &long]);
    let mut daemon = host.volumed(&[]);
    let journal = || fs::read_to_string(host.path("volumed.log")).unwrap_or_default();
    until("its node id is refused", || journal().contains("node_id has 257 bytes"));
    driver.kill();
    let _driver = host.fakecsi(&[]);
    host.faults(&json!([
        {"method": STAGE, "nth": 1, "action": "oversize"},
        {"method": STAGE, "nth": 2, "action": "garbage"},
        {"method": PUBLISH, "nth": 1, "action": {"code": "INTERNAL", "message": "m".repeat(5000)}},
        {"method": PUBLISH, "nth": 2, "action": "garbage"},
    ]));
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    assert!(daemon.is_running());
    let longest = journal().lines().map(str::len).max().unwrap_or_default();
    assert!(longest < 4096, "a line of {longest} bytes is in the journal");
    // A manifest that goes beyond them is warned of; a kubelet asks all the same, and so does volumed.
    let handle = "h".repeat(129);
    let wide = claim("wide").replace("handle-wide", &handle);
    let map = claim("map").replace("{colour: blue}", &format!("{{colour: {}}}", "b".repeat(4096)));
    host.manifest("wide.yaml", &format!("{wide}---\n{}", pod_using("wide", "uid-wide", "wide")));
    host.manifest("map.yaml", &format!("{map}---\n{}", pod_using("map", "uid-map", "map")));
    host.wait(&["pod/wide", "pod/map"]);
    let status = String::from_utf8_lossy(&host.volumectl(&["status"]).stdout).into_owned();
    for limit in
        ["spec.csi.volumeHandle: has more than the 128", "spec.csi.volumeAttributes: has more than the 4096"]
    {
        assert!(status.contains(limit), "{limit}: {status}");
    }
    assert_lawful(&host);
}
