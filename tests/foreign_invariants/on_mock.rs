//! With the mock-driver, which answers what its hooks say and mounts nothing: 3, 5 to 8, 13, 15, 16, 24, 30 to 32.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::foreign::{
    assert_released, assert_same_arguments, attachment, claim_of, explanation, for_each, methods, program,
};
use crate::mock::{DOWN, Mock, NAME, UP, VARIABLE};
use crate::support::{TestHost, pod_using, until};

fn records(host: &TestHost) -> Vec<String> {
    let entries = fs::read_dir(host.state.join("volumes")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect()
}

/// One way of failing: the code, and whether the effect was there.
fn outlives(program: PathBuf, code: &str, point: &str) {
    let context = format!("{code} at {point}");
    let mock = Mock::with(program);
    let host = &mock.host;
    let hooks = UP.iter().chain(&DOWN).map(|method| {
        let name = format!("n{}{point}", &method[1..]);
        (name, format!("fail('{method}', 2, {code})"))
    });
    mock.hooks(&hooks.collect::<Vec<_>>());
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    mock.wish("1");
    // The driver says that the request is wrong: it is asked again in two minutes, or when a person says so.
    let slow = code == "INVALIDARGUMENT";
    let come = |what: &[&str]| {
        if !slow {
            return host.wait(what);
        }
        until(&context, || {
            let blocked = explanation(host, "web").contains("INVALID_ARGUMENT");
            if blocked {
                assert!(host.volumectl(&["retry"]).status.success());
            }
            let wait = [&["wait", "--timeout", "300ms"], what].concat();
            host.volumectl(&wait).status.success()
        });
    };
    come(&["pod/web"]);
    assert!(host.target("uid-web", "data").is_dir(), "{context}");
    host.remove_manifest("web.yaml");
    come(&["--for=released", "pod/web"]);
    // The staging is not the pod's any more.
    until("the staging is undone", || {
        if slow {
            host.volumectl(&["retry"]);
        }
        fs::read_dir(host.state.join("volumes")).into_iter().flatten().next().is_none()
    });
    host.assert_nothing_left();

    let calls = mock.calls();
    assert_same_arguments(&calls, &context);
    let mut order = methods(&calls);
    order.dedup();
    assert_eq!(order, [UP, DOWN].concat(), "{context}");
    // What has taken effect answers OK the next time, without its hook.
    let failures = if point == "Start" { 2 } else { 1 };
    for method in UP.iter().chain(&DOWN) {
        let calls = mock.of(method);
        assert_eq!(calls.len(), failures + 1, "{context}: {method}: {calls:#?}");
        let (last, failed) = calls.split_last().expect("calls");
        assert!(last.error.is_empty() && failed.iter().all(|call| !call.error.is_empty()), "{calls:#?}");
        if slow {
            continue;
        }
        for (pair, pause) in calls.windows(2).zip([500, 1000]) {
            let gap = pair[1].at.checked_sub(pair[0].at).expect("not across midnight");
            assert!(gap >= Duration::from_millis(pause), "{context}: {method} again after {gap:?}");
        }
    }
}

#[test]
fn invariant_05_a_retry_has_identical_arguments_after_every_kind_of_failure() {
    let test = "invariant_05_a_retry_has_identical_arguments_after_every_kind_of_failure";
    let Some(program) = program(test, VARIABLE) else { return };
    let codes = ["UNAVAILABLE", "DEADLINEEXCEEDED", "INTERNAL", "ABORTED", "INVALIDARGUMENT"];
    let cases: Vec<_> = codes.iter().flat_map(|code| ["Start", "End"].map(|point| (*code, point))).collect();
    for_each(&cases, |(code, point)| outlives(program.clone(), code, point));
}

#[test]
fn invariant_07_what_may_be_done_is_undone_when_it_is_no_longer_wanted() {
    let test = "invariant_07_what_may_be_done_is_undone_when_it_is_no_longer_wanted";
    let Some(program) = program(test, VARIABLE) else { return };
    let cases = [
        ("nodeStageVolumeStart", "DEADLINEEXCEEDED", &["NodeUnstageVolume"][..]),
        ("nodeStageVolumeStart", "INTERNAL", &["NodeUnstageVolume"]),
        ("nodePublishVolumeStart", "DEADLINEEXCEEDED", &DOWN),
        ("nodePublishVolumeStart", "INTERNAL", &DOWN),
    ];
    for_each(&cases, |(point, code, undone)| {
        let mock = Mock::with(program.clone());
        mock.hooks(&[((*point).to_owned(), (*code).to_owned())]);
        let _driver = mock.driver(&["-disable-attach"]);
        let _daemon = mock.host.volumed(&[]);
        mock.wish("2");
        let failed = || mock.calls().iter().any(|call| !call.error.is_empty());
        until("the call has failed", failed);
        mock.release();
        let calls = mock.calls();
        let down: Vec<&str> = methods(&calls).into_iter().filter(|method| DOWN.contains(method)).collect();
        assert_eq!(down, *undone, "{point} {code}");
    });
}

#[test]
fn invariant_15_the_attachment_s_context_reaches_the_driver_as_it_was_given() {
    let test = "invariant_15_the_attachment_s_context_reaches_the_driver_as_it_was_given";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    let _driver = mock.driver(&[]);
    let _daemon = host.volumed(&[]);
    mock.wish("1");
    until("it is blocked for the attachment", || explanation(host, "web").contains("VolumeAttachment"));
    assert!(mock.calls().is_empty(), "{:?}", mock.calls());
    host.manifest("attachment.yaml", &attachment(NAME, "data", "device: /dev/vdx, readonly: \"false\""));
    host.wait(&["pod/web"]);
    let calls = mock.calls();
    assert_eq!(methods(&calls), UP);
    for call in &calls {
        let context = serde_json::json!({"device": "/dev/vdx", "readonly": "false"});
        assert_eq!(call.request["publish_context"], context, "{call:?}");
    }
    // The takedown needs no object: the record has all.
    host.remove_manifest("attachment.yaml");
    host.remove_manifest("claim.yaml");
    mock.release();
}

#[test]
fn invariant_30_a_request_that_the_driver_calls_wrong_is_not_sent_again_at_once() {
    let test = "invariant_30_a_request_that_the_driver_calls_wrong_is_not_sent_again_at_once";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    // Gated, but the attachment lacks what the driver wants to find in it.
    let _driver = mock.driver(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("attachment.yaml", &attachment(NAME, "data", ""));
    mock.wish("1");
    until("the driver's words are shown", || explanation(host, "web").contains("'device' key required"));
    let status = host.volumectl(&["status", "pod/web", "-o", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let blocked = &status["volumes"][0]["blocked"][0];
    let pause = blocked["next_try_ms"].as_i64().expect("a time") - status["now_ms"].as_i64().expect("a time");
    assert!(pause > 60_000, "again in {pause} ms: {blocked}");
    assert_eq!(methods(&mock.calls()), ["NodeStageVolume"], "{blocked}");
    // A mended attachment is a new cause.
    host.manifest("attachment.yaml", &attachment(NAME, "data", "device: /dev/vdx"));
    host.wait(&["pod/web"]);
    mock.release();
}

#[test]
fn invariant_03_nothing_is_published_before_staging_was_ok() {
    let test = "invariant_03_nothing_is_published_before_staging_was_ok";
    let Some(mock) = Mock::new(test) else { return };
    mock.hooks(&[("nodeStageVolumeEnd".to_owned(), "fail('stage', 2, INTERNAL)".to_owned())]);
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = mock.host.volumed(&[]);
    mock.wish("1");
    mock.host.wait(&["pod/web"]);
    let calls = mock.calls();
    let publish = calls.iter().position(|call| call.method == UP[1]).expect("it is published");
    assert!(publish > 0 && calls[publish - 1].method == UP[0], "{calls:?}");
    assert!(calls[publish - 1].error.is_empty() && !calls[0].error.is_empty(), "{calls:?}");
    mock.release();
}

#[test]
fn invariant_06_the_intent_is_on_disk_when_the_driver_has_the_call() {
    let test = "invariant_06_the_intent_is_on_disk_when_the_driver_has_the_call";
    let Some(mock) = Mock::new(test) else { return };
    // The driver's own script says when it has the call: the daemon is ended in the middle of what follows.
    mock.hooks(&[("nodeStageVolumeEnd".to_owned(), "DEADLINEEXCEEDED".to_owned())]);
    let _driver = mock.driver(&["-disable-attach"]);
    let host = &mock.host;
    let daemon = host.volumed(&[("VOLUMED_TEST_FAULT", "stage:call")]);
    mock.wish("1");
    assert!(!daemon.ended().success());
    let [record] = records(host).try_into().expect("one record");
    let call = mock.of(UP[0]).remove(0);
    let staging = call.request["staging_target_path"].as_str().expect("a path");
    let relative = staging.strip_prefix(&format!("{}/", host.root.display())).expect("below the root");
    assert!(record.contains(relative), "{relative} is not in {record}");
    host.remove_manifest("web.yaml");
    let _daemon = host.volumed(&[]);
    host.wait(&["--for=released", "pod/web"]);
    assert_released(host);
    assert_eq!(
        mock.of(DOWN[1]).last().map(|call| call.request["staging_target_path"].clone()),
        Some(staging.into())
    );
}

#[test]
fn invariant_08_a_failing_undo_keeps_its_record() {
    let test = "invariant_08_a_failing_undo_keeps_its_record";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    mock.hooks(&[
        ("nodeUnpublishVolumeEnd".to_owned(), "fail('unpublish', 4, INTERNAL)".to_owned()),
        ("nodeUnstageVolumeEnd".to_owned(), "fail('unstage', 3, UNKNOWN)".to_owned()),
    ]);
    let _driver = mock.driver(&["-disable-attach"]);
    let daemon = host.volumed(&[]);
    mock.wish("1");
    host.wait(&["pod/web"]);
    host.remove_manifest("web.yaml");
    until("the undo failed", || mock.of(DOWN[0]).len() >= 2);
    assert_eq!(records(host).len(), 1);
    daemon.kill();
    assert_eq!(records(host).len(), 1);
    let _daemon = host.volumed(&[]);
    host.wait(&["--for=released", "pod/web"]);
    assert_released(host);
    for method in DOWN {
        let calls = mock.of(method);
        assert!(calls.len() >= 2 && calls.last().is_some_and(|call| call.error.is_empty()), "{calls:?}");
    }
}

#[test]
fn invariant_13_what_the_driver_does_not_have_is_not_called() {
    let test = "invariant_13_what_the_driver_does_not_have_is_not_called";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    // It says that it can stage, and then that it cannot: nobody asks it again at once.
    mock.hooks(&[("nodeStageVolumeStart".to_owned(), "UNIMPLEMENTED".to_owned())]);
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    mock.wish("1");
    until("it is shown", || explanation(host, "web").contains("UNIMPLEMENTED"));
    let status = host.volumectl(&["status", "pod/web", "-o", "json"]);
    let status: Value = serde_json::from_slice(&status.stdout).expect("JSON");
    let next = status["volumes"][0]["blocked"][0]["next_try_ms"].as_i64().expect("a time");
    assert!(next - status["now_ms"].as_i64().expect("a time") > 60_000, "{status}");
    assert_eq!(methods(&mock.calls()), [UP[0]]);
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    let log = fs::read_to_string(host.path("driver.log")).expect("a log");
    assert!(!log.contains("NodeExpandVolume") && !log.contains("NodeGetVolumeHealth"), "{log}");
}

#[test]
fn invariant_16_a_secret_is_told_to_nobody_but_the_driver() {
    const SECRET: &str = "swordfish-4711";
    let test = "invariant_16_a_secret_is_told_to_nobody_but_the_driver";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    mock.hooks(&[("nodeStageVolumeEnd".to_owned(), "fail('stage', 1, INTERNAL)".to_owned())]);
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    let claim = claim_of(NAME, "data", "1").replace(
        "    volumeAttributes",
        "    nodeStageSecretRef: {name: key, namespace: default}\n    volumeAttributes",
    );
    let secret = format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: key}}\nstringData: {{password: {SECRET}}}\n"
    );
    host.manifest("claim.yaml", &claim);
    host.manifest("key.yaml", &secret);
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    // The driver takes the secrets out of its log and shows that there were some; none came with the publish.
    let with_secrets =
        |method: &str| mock.of(method).iter().all(|call| call.request.get("secrets").is_some());
    assert!(with_secrets(UP[0]) && !with_secrets(UP[1]), "{:?}", mock.calls());
    let mut places = records(host);
    places.push(fs::read_to_string(host.path("volumed.log")).expect("a log"));
    places.push(explanation(host, "web"));
    assert!(places.iter().all(|place| !place.contains(SECRET)), "the secret got out: {places:?}");
    mock.release();
}

#[test]
fn invariant_24_a_read_write_once_pod_volume_has_one_pod() {
    let test = "invariant_24_a_read_write_once_pod_volume_has_one_pod";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    let claim = claim_of(NAME, "data", "1").replace("ReadWriteOnce", "ReadWriteOncePod");
    host.manifest("claim.yaml", &claim);
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    host.manifest("next.yaml", &pod_using("next", "uid-next", "data"));
    until("it waits", || explanation(host, "next").contains("ReadWriteOncePod"));
    assert_eq!(methods(&mock.calls()), UP);
    host.remove_manifest("web.yaml");
    host.wait(&["pod/next"]);
    assert_eq!(methods(&mock.calls()), [UP[0], UP[1], DOWN[0], UP[1]]);
}

#[test]
fn invariant_31_a_failing_republish_undoes_nothing() {
    let test = "invariant_31_a_failing_republish_undoes_nothing";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    // Called again on what is there, it answers without its End hook; so the Start fails, from the second call on.
    let script = "n.publish = (n.publish || 0) + 1; n.publish == 1 ? OK : INTERNAL";
    mock.hooks(&[("nodePublishVolumeStart".to_owned(), script.to_owned())]);
    let _driver = mock.driver(&["-disable-attach"]);
    let daemon = host.volumed(&[]);
    let object = "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\n";
    host.manifest(
        "driver.yaml",
        &format!(
            "{object}metadata: {{name: {NAME}}}\nspec: {{attachRequired: false, requiresRepublish: true}}\n"
        ),
    );
    mock.wish("1");
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    fs::write(target.join("file"), "in use").expect("a file");
    daemon.kill();
    let _daemon = host.volumed(&[]);
    until("the repeat failed", || mock.of(UP[1]).iter().filter(|call| !call.error.is_empty()).count() >= 2);
    host.wait(&["pod/web"]);
    assert_eq!(fs::read_to_string(target.join("file")).expect("it is there"), "in use");
    assert!(mock.of(DOWN[0]).is_empty() && mock.of(DOWN[1]).is_empty(), "{:?}", mock.calls());
    assert_same_arguments(&mock.calls(), "a repeat");
}

#[test]
fn invariant_32_two_volumes_with_one_handle_are_staged_once() {
    let test = "invariant_32_two_volumes_with_one_handle_are_staged_once";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    for (pod, volume) in [("a", "one"), ("b", "two")] {
        host.manifest(&format!("{volume}.yaml"), &claim_of(NAME, volume, "1"));
        host.manifest(&format!("{pod}.yaml"), &pod_using(pod, &format!("uid-{pod}"), volume));
    }
    host.wait(&["pod/a"]);
    until("the second is refused", || {
        explanation(host, "b").contains("PersistentVolume two has the same driver")
    });
    assert_eq!(methods(&mock.calls()), UP);
}
