//! When which call is made, and with what: 1 to 5, 11, 12, 15.

use std::path::Path;

use serde_json::json;
use volumed::model::{DriverName, Layout};

use super::*;
use crate::support::{claim, pod_using, pod_with_claim};

#[test]
fn invariant_01_a_volume_has_one_call_at_a_time() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    host.faults(
        &json!([{"method": "*", "action": {"delay_ms": 200}}, fails(PUBLISH, 2, "after", "ABORTED")]),
    );
    let _daemon = host.volumed(&[]);
    for volume in ["one", "two"] {
        host.manifest(&format!("{volume}.yaml"), &claim(volume));
    }
    for (pod, volume) in [("a", "one"), ("b", "one"), ("c", "two")] {
        host.manifest(&format!("{pod}.yaml"), &pod_using(pod, &format!("uid-{pod}"), volume));
    }
    until("it is called", || !of(&host, &[STAGE]).is_empty());
    // In the middle of the way up.
    host.remove_manifest("b.yaml");
    until("it is published", || of(&host, &[PUBLISH]).iter().any(|call| call.code == "OK"));
    host.manifest("one.yaml", &claim("one").replace("storage: 1Gi", "storage: 2Gi"));
    host.manifest("b.yaml", &pod_using("b", "uid-b", "one"));
    host.volumectl(&["retry"]);
    host.wait(&["pod/a", "pod/b", "pod/c"]);
    release(&host, &["a", "b", "c"]);
    assert_released(&host);
    // The log shows it where there are two calls at a time: those of two volumes.
    let calls = log(&host);
    let together = |one: &Call, two: &Call| one.lines.0 < two.lines.0 && Some(two.lines.0) < one.lines.1;
    assert!(calls.iter().any(|one| calls.iter().any(|two| together(one, two))), "{calls:?}");
}

#[test]
fn invariant_02_a_volume_has_one_staging_path_for_good() {
    let host = TestHost::new();
    let boot = |name| [("VOLUMED_TEST_BOOT_ID", name)];
    let _driver = host.fakecsi(&[]);
    let web = pod_with_claim("web", "uid-web", "data");
    let daemon = host.volumed(&boot("first"));
    host.manifest("web.yaml", &web);
    host.wait(&["pod/web"]);
    // Down and up again, then across a restart, then across a reboot, then without the state directory.
    release(&host, &["web"]);
    assert_released(&host);
    daemon.kill();
    host.manifest("web.yaml", &web);
    let daemon = host.volumed(&boot("first"));
    host.wait(&["pod/web"]);
    daemon.kill();
    host.unmount_all();
    let daemon = host.volumed(&boot("second"));
    host.wait(&["pod/web"]);
    release(&host, &["web"]);
    assert_released(&host);
    daemon.kill();
    fs::rename(&host.state, host.path("lost")).expect("the state directory");
    host.manifest("web.yaml", &web);
    let _daemon = host.volumed(&boot("second"));
    host.wait(&["pod/web"]);
    let layout = Layout::new(&host.root);
    let staging = layout.csi_staging(&DriverName::new(DRIVER).expect("a name"), "handle-data");
    let expected = layout.absolute(&staging).display().to_string();
    let calls = of(&host, &NODE);
    assert!(calls.iter().filter(|call| call.method == STAGE).count() >= 4, "{calls:?}");
    for call in calls.iter().filter(|call| call.method != UNPUBLISH) {
        assert_eq!(call.request["staging_target_path"], expected, "{call:?}");
    }
    assert_lawful(&host);
}

/// Each call of `later` began after one of `earlier` for the same volume had ended OK.
fn assert_after(calls: &[Call], earlier: &str, later: &str) {
    for call in calls.iter().filter(|call| call.method == later) {
        let done = calls.iter().any(|other| {
            other.method == earlier
                && other.code == "OK"
                && other.lines.1.is_some_and(|end| end < call.lines.0)
        });
        assert!(done, "{call:?} without an OK of {earlier}: {calls:?}");
    }
}

#[test]
fn invariant_03_nothing_is_published_before_it_is_attached_and_staged() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--attach"]);
    host.faults(&json!([fails(STAGE, 2, "after", "INTERNAL"), fails(PUBLISH, 1, "before", "UNAVAILABLE")]));
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    until("it waits for the attachment", || explain(&host, "web").contains("VolumeAttachment"));
    assert!(of(&host, &NODE).is_empty(), "{:?}", log(&host));
    host.manifest("attachment.yaml", &attachment("data", "device: x"));
    host.wait(&["pod/web"]);
    let calls = of(&host, &NODE);
    assert_eq!(names(&calls), [STAGE, STAGE, STAGE, PUBLISH, PUBLISH]);
    assert_after(&calls, STAGE, PUBLISH);
    assert_lawful(&host);
}

#[test]
fn invariant_04_nothing_is_unstaged_before_every_pod_s_unpublish_was_ok() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("data.yaml", &claim("data"));
    for pod in ["a", "b"] {
        host.manifest(&format!("{pod}.yaml"), &pod_using(pod, &format!("uid-{pod}"), "data"));
    }
    host.wait(&["pod/a", "pod/b"]);
    // One undo fails with its effect, the other without.
    host.faults(&json!([
        {"method": UNPUBLISH, "nth": 1, "when": "after", "action": {"code": "INTERNAL"}},
        {"method": UNPUBLISH, "from": 2, "to": 3, "action": {"code": "UNAVAILABLE"}},
    ]));
    release(&host, &["a", "b"]);
    assert_released(&host);
    let calls = of(&host, &[UNPUBLISH, UNSTAGE]);
    for pod in ["a", "b"] {
        let target = host.target(&format!("uid-{pod}"), "data").display().to_string();
        let of_pod = |call: &&Call| call.method == UNSTAGE || call.request["target_path"] == target;
        let calls: Vec<Call> = calls.iter().filter(of_pod).cloned().collect();
        assert_after(&calls, UNPUBLISH, UNSTAGE);
    }
    assert_eq!(calls.iter().filter(|call| call.method == UNSTAGE).count(), 1, "{calls:?}");
    assert!(calls.iter().filter(|call| call.code != "OK").count() >= 3, "{calls:?}");
}

#[test]
fn invariant_05_a_retry_has_identical_arguments() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    let codes = ["CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "UNAVAILABLE"];
    let cases = codes.iter().flat_map(|code| ["before", "after"].map(|when| (*code, when)));
    let mut faults = Vec::new();
    for (i, (code, when)) in cases.enumerate() {
        let volume = format!("v{i}");
        for method in NODE {
            faults
                .push(json!({"method": method, "volume": format!("handle-{volume}"), "to": 1, "when": when,
                "action": {"code": code}}));
        }
        host.manifest(&format!("claim-{volume}.yaml"), &claim(&volume));
    }
    host.faults(&json!(faults));
    let pods: Vec<String> = (0..2 * codes.len()).map(|i| format!("p{i}")).collect();
    for (i, pod) in pods.iter().enumerate() {
        host.manifest(&format!("{pod}.yaml"), &pod_using(pod, &format!("uid-{pod}"), &format!("v{i}")));
    }
    for pod in &pods {
        host.wait(&[&format!("pod/{pod}")]);
    }
    // A few at a time: all at once would be held as a mistake.
    for pods in pods.chunks(3) {
        release(&host, &pods.iter().map(String::as_str).collect::<Vec<_>>());
    }
    assert_released(&host);
    let calls = of(&host, &NODE);
    assert_eq!(calls.len(), 2 * NODE.len() * pods.len(), "each was tried twice: {:?}", names(&calls));
    assert_same_arguments(&calls, "after a failure that is not final");
}

#[test]
fn invariant_05_other_arguments_are_sent_only_after_an_undo() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    host.faults(&json!([{"method": STAGE, "to": 2, "action": {"code": "DEADLINE_EXCEEDED"}}]));
    let _daemon = host.volumed(&[]);
    host.manifest("data.yaml", &claim("data"));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    until("it failed", || of(&host, &[STAGE]).iter().any(|call| !call.code.is_empty()));
    host.manifest("data.yaml", &claim("data").replace("colour: blue", "colour: red"));
    host.wait(&["pod/web"]);
    let calls = of(&host, &NODE);
    let red = calls.iter().position(|call| call.request["volume_context"]["colour"] == "red");
    let red = red.expect("the edit is used");
    assert!(red > 0 && calls[red - 1].method == UNSTAGE && calls[red - 1].code == "OK", "{calls:?}");
    assert_same_arguments(&calls[..red], "before the undo");
    assert_same_arguments(&calls[red..], "after the undo");
    assert_lawful(&host);
}

#[test]
fn invariant_11_staging_and_the_target_s_parent_are_made_for_the_driver_and_the_target_is_not() {
    // The driver looks, and refuses what breaks this; here it is looked at from outside, in the middle of each call.
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let hang = |method: &str| json!([{"method": method, "nth": 1, "action": {"delay_ms": 1500}}]);
    let target = host.target("uid-web", "data");
    let _daemon = host.volumed(&[]);
    for method in [STAGE, PUBLISH] {
        host.faults(&hang(method));
        if method == STAGE {
            host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
        }
        until("it is called", || !of(&host, &[method]).is_empty());
        let call = of(&host, &[method]).remove(0);
        assert_eq!(call.code, "", "it is in the middle of it: {call:?}");
        let staging = call.request["staging_target_path"].as_str().expect("a path").to_owned();
        assert!(Path::new(&staging).is_dir(), "{staging}");
        if method == PUBLISH {
            assert!(target.parent().expect("it has one").is_dir());
            assert!(target.symlink_metadata().is_err(), "{} was made for the driver", target.display());
        }
    }
    host.wait(&["pod/web"]);
    assert_lawful(&host);
}

#[test]
fn invariant_12_the_staging_path_is_a_directory_also_of_a_block_volume() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("raw.yaml", &block(&claim("raw")));
    host.manifest("disk.yaml", &device_user(&pod_using("disk", "uid-disk", "raw")));
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/disk", "pod/web"]);
    let calls = of(&host, &[STAGE, PUBLISH]);
    assert_eq!(calls.len(), 4, "{calls:?}");
    for call in &calls {
        let staging = call.request["staging_target_path"].as_str().expect("a path");
        assert!(Path::new(staging).is_dir(), "{call:?}");
        let kind = if call.volume == "handle-raw" { "block" } else { "mount" };
        let capability = call.request["volume_capability"].to_string();
        assert!(capability.to_lowercase().contains(kind), "{call:?}");
    }
    release(&host, &["disk"]);
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
}

#[test]
fn invariant_15_contexts_reach_the_driver_as_they_were_given() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--attach"]);
    let _daemon = host.volumed(&[]);
    let odd = claim("data").replace("{colour: blue}", r#"{"a b": " x\ty ", empty: "", ünï: "ß\n"}"#);
    host.manifest("driver.yaml", &driver_object("attachRequired: true, podInfoOnMount: true"));
    host.manifest("attachment.yaml", &attachment("data", r#"device: "/dev/x y", empty: """#));
    host.manifest("web.yaml", &format!("{odd}---\n{}", pod_using("web", "uid-web", "data")));
    host.wait(&["pod/web"]);
    let given = json!({"a b": " x\ty ", "empty": "", "ünï": "ß\n"});
    for call in of(&host, &[STAGE, PUBLISH]) {
        assert_eq!(call.request["publish_context"], json!({"device": "/dev/x y", "empty": ""}), "{call:?}");
        let mut context = call.request["volume_context"].as_object().expect("a map").clone();
        let ours = |key: &String| key.starts_with("csi.storage.k8s.io/");
        let pods: Vec<String> = context.keys().filter(|key| ours(key)).cloned().collect();
        assert_eq!(
            pods.is_empty(),
            call.method == STAGE,
            "the pod is told of where it is published: {pods:?}"
        );
        context.retain(|key, _| !ours(key));
        assert_eq!(Value::Object(context), given, "{call:?}");
    }
}
