//! The whole daemon with csi-test's mock-driver, unmodified: the wire as somebody else reads it, with every kind of answer.
//!
//! It mounts nothing, forgets everything at its end, registers by the configuration, and answers what its hooks say: before
//! (`...Start`) or after (`...End`) the effect. Without `VOLUMED_TEST_MOCK_DRIVER` the tests say NOT-RUN.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

#[path = "support/foreign.rs"]
mod foreign;
mod support;

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use foreign::{
    Witnessed, assert_released, assert_same_arguments, attachment, claim_of, create_volume, explanation,
    for_each, methods, node_calls, program,
};
use support::{Process, TestHost, pod_using, until};

const NAME: &str = "io.kubernetes.storage.mock";
const VARIABLE: &str = "VOLUMED_TEST_MOCK_DRIVER";
const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];
const DOWN: [&str; 2] = ["NodeUnpublishVolume", "NodeUnstageVolume"];

/// A host whose configuration names the driver.
struct Mock {
    host: TestHost,
    program: PathBuf,
}

impl Mock {
    /// Says NOT-RUN where there is no driver.
    fn new(test: &str) -> Option<Self> {
        Some(Self::with(program(test, VARIABLE)?))
    }

    fn with(program: PathBuf) -> Self {
        let mock = Self { host: TestHost::new(), program };
        let endpoint = mock.socket().display().to_string();
        let config = format!("[drivers.\"{NAME}\"]\nendpoint = \"{endpoint}\"\n");
        fs::write(mock.host.path("volumed.toml"), config).expect("a configuration");
        mock
    }

    fn socket(&self) -> PathBuf {
        self.host.path("csi.sock")
    }

    /// Writes hooks; `fail('point', n, CODE)` fails n times and is OK from then on.
    fn hooks(&self, hooks: &[(String, String)]) {
        let mut text = String::from(
            "globals: \"n = {}; function fail(point, times, code) { n[point] = (n[point] || 0) + 1; \
             return n[point] <= times ? code : OK; }\"\n",
        );
        for (point, script) in hooks {
            text.push_str(&format!("{point}: \"{script}\"\n"));
        }
        fs::write(self.host.path("hooks"), text).expect("hooks");
    }

    fn driver(&self, arguments: &[&str]) -> Process {
        let mut command = Command::new(&self.program);
        command.env("CSI_ENDPOINT", format!("unix://{}", self.socket().display())).args(["-v", "5"]);
        if self.host.path("hooks").is_file() {
            command.arg("-hooks-file").arg(self.host.path("hooks"));
        }
        command.args(arguments);
        self.host.spawn(command, "driver.log")
    }

    fn calls(&self) -> Vec<Witnessed> {
        node_calls(&self.host.path("driver.log"))
    }

    fn of(&self, method: &str) -> Vec<Witnessed> {
        self.calls().into_iter().filter(|call| call.method == method).collect()
    }

    /// Writes the manifests of a pod that uses a volume.
    fn wish(&self, handle: &str) {
        self.host.manifest("claim.yaml", &claim_of(NAME, "data", handle));
        self.host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    }

    fn release(&self) {
        self.host.remove_manifest("web.yaml");
        self.host.wait(&["--for=released", "pod/web"]);
        assert_released(&self.host);
    }
}

#[test]
fn three_volumes_come_and_go_and_are_named_as_no_mounts() {
    let test = "three_volumes_come_and_go_and_are_named_as_no_mounts";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    for handle in ["1", "2", "3"] {
        let name = format!("web{handle}");
        let volume = format!("data{handle}");
        let pod = pod_using(&name, &format!("uid-{name}"), &volume);
        host.manifest(&format!("{name}.yaml"), &format!("{}---\n{pod}", claim_of(NAME, &volume, handle)));
    }
    host.wait(&["pod/web1", "pod/web2", "pod/web3"]);
    let status = host.volumectl(&["status", "pod/web2"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("not a mount point"), "{status:?}");
    // A directory made by the driver, at the kubelet's path.
    let target = host.target("uid-web2", "data2");
    assert!(target.is_dir());
    let calls = mock.calls();
    for handle in ["1", "2", "3"] {
        let calls: Vec<_> =
            calls.iter().filter(|call| call.request["volume_id"] == handle).cloned().collect();
        assert_eq!(methods(&calls), UP, "{calls:?}");
        let (stage, publish) = (&calls[0].request, &calls[1].request);
        assert_eq!(stage["staging_target_path"], publish["staging_target_path"]);
        assert_eq!(stage["volume_context"]["colour"], "blue");
        assert_eq!(publish["volume_context"]["colour"], "blue");
        assert_eq!(publish.get("publish_context"), None, "the driver is not gated");
    }
    for handle in ["1", "2", "3"] {
        host.remove_manifest(&format!("web{handle}.yaml"));
    }
    host.wait(&["--for=released", "pod/web1", "pod/web2", "pod/web3"]);
    assert_released(host);
    assert_eq!(mock.of("NodeUnpublishVolume").len(), 3);
    assert_eq!(mock.of("NodeUnstageVolume").len(), 3);
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
fn every_kind_of_failure_before_and_after_the_effect_is_outlived() {
    let test = "every_kind_of_failure_before_and_after_the_effect_is_outlived";
    let Some(program) = program(test, VARIABLE) else { return };
    let codes = ["UNAVAILABLE", "DEADLINEEXCEEDED", "INTERNAL", "ABORTED", "INVALIDARGUMENT"];
    let cases: Vec<_> = codes.iter().flat_map(|code| ["Start", "End"].map(|point| (*code, point))).collect();
    for_each(&cases, |(code, point)| outlives(program.clone(), code, point));
}

#[test]
fn a_request_that_the_driver_calls_wrong_is_not_sent_again_at_once() {
    let test = "a_request_that_the_driver_calls_wrong_is_not_sent_again_at_once";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    // Gated, but the attachment lacks what the driver wants to find in it.
    let _driver = mock.driver(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("attachment.yaml", &attachment(NAME, "data", ""));
    mock.wish("1");
    until("the driver's words are shown", || explanation(host, "web").contains("'device' key required"));
    let status = host.volumectl(&["status", "pod/web", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).expect("JSON");
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
fn the_attachment_s_context_reaches_the_driver() {
    let test = "the_attachment_s_context_reaches_the_driver";
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
fn what_may_have_taken_effect_is_undone_when_it_is_no_longer_wanted() {
    let test = "what_may_have_taken_effect_is_undone_when_it_is_no_longer_wanted";
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
fn a_driver_that_refuses_the_repetition_of_a_lost_answer_is_undone_on_removal() {
    let test = "a_driver_that_refuses_the_repetition_of_a_lost_answer_is_undone_on_removal";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    // It says ALREADY_EXISTS to every second publish that is read only.
    mock.hooks(&[("nodePublishVolumeEnd".to_owned(), "DEADLINEEXCEEDED".to_owned())]);
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    host.manifest("claim.yaml", &claim_of(NAME, "data", "1"));
    let pod = pod_using("web", "uid-web", "data");
    host.manifest("web.yaml", &pod.replace("claimName: data}", "claimName: data, readOnly: true}"));
    until("the refusal is shown", || explanation(host, "web").contains("ALREADY_EXISTS"));
    assert!(mock.of("NodePublishVolume").iter().all(|call| call.request["readonly"] == true));
    mock.release();
    assert_same_arguments(&mock.calls(), "after a refusal");
    assert_eq!(mock.of("NodeUnpublishVolume").len(), 1);
}

#[test]
fn a_driver_that_cannot_say_yet_what_it_is_is_asked_again() {
    let test = "a_driver_that_cannot_say_yet_what_it_is_is_asked_again";
    let Some(mock) = Mock::new(test) else { return };
    mock.hooks(&[
        ("nodeGetInfo".to_owned(), "fail('info', 2, UNAVAILABLE)".to_owned()),
        ("nodeGetCapabilities".to_owned(), "fail('capabilities', 1, INTERNAL)".to_owned()),
    ]);
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = mock.host.volumed(&[]);
    mock.wish("3");
    mock.host.wait(&["pod/web"]);
    mock.release();
}

#[test]
fn a_driver_that_forgot_its_volume_is_done_with_it_unless_files_lie_there() {
    let test = "a_driver_that_forgot_its_volume_is_done_with_it_unless_files_lie_there";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    let driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    let handle = create_volume(&mock.socket(), "made");
    assert_eq!(handle, "4", "the driver has three of its own");
    mock.wish(&handle);
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    let file = target.join("file");
    fs::write(&file, "precious").expect("the driver's directory");

    driver.kill();
    until("its end is seen", || {
        String::from_utf8_lossy(&host.volumectl(&["drivers"]).stdout).contains("disconnected")
    });
    let _driver = mock.driver(&["-disable-attach"]);
    host.wait(&["pod/web"]);
    assert_eq!(methods(&mock.calls()), UP, "a restarted driver is asked for nothing");

    host.remove_manifest("web.yaml");
    until("it is asked", || mock.calls().iter().any(|call| call.error.contains("NotFound")));
    let obstacle = format!("{} is not empty", target.display());
    until("the obstacle is named", || explanation(host, "web").contains(&obstacle));
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "precious");
    fs::remove_file(&file).expect("moved away");
    host.volumectl(&["retry"]);
    host.wait(&["--for=released", "pod/web"]);
    assert_released(host);
    let unstaged = mock.of("NodeUnstageVolume");
    assert!(unstaged.len() == 1 && unstaged[0].error.contains("NotFound"), "{unstaged:?}");
}

#[test]
fn a_restarted_driver_is_told_what_to_take_down_with_and_without_the_daemon() {
    let test = "a_restarted_driver_is_told_what_to_take_down_with_and_without_the_daemon";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    let driver = mock.driver(&["-disable-attach"]);
    let daemon = host.volumed(&[]);
    mock.wish("1");
    host.wait(&["pod/web"]);
    driver.kill();
    daemon.kill();
    let driver = mock.driver(&["-disable-attach"]);
    let daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    assert_eq!(methods(&mock.calls()), UP, "what is recorded in this boot is so");
    driver.kill();
    daemon.kill();
    host.remove_manifest("web.yaml");
    let _daemon = host.volumed(&[]);
    let _driver = mock.driver(&["-disable-attach"]);
    host.wait(&["--for=released", "pod/web"]);
    assert_released(host);
    assert_eq!(methods(&mock.calls())[2..], DOWN);
}
