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
#[path = "support/mock.rs"]
mod mock;
mod support;

use std::fs;

use foreign::{assert_released, assert_same_arguments, claim_of, create_volume, explanation, methods};
use mock::{DOWN, Mock, NAME, UP};
use support::{pod_using, until};

#[test]
fn volumes_come_and_go_are_named_as_no_mounts_and_wait_for_room() {
    let test = "volumes_come_and_go_are_named_as_no_mounts_and_wait_for_room";
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
    // mock-driver takes two volumes on a node.
    host.wait(&["pod/web1", "pod/web2"]);
    until("the third waits for room", || host.explain().contains("max-volumes"));
    let status = host.volumectl(&["status", "pod/web2"]);
    assert!(String::from_utf8_lossy(&status.stdout).contains("not a mount point"), "{status:?}");
    // A directory made by the driver, at the kubelet's path.
    let target = host.target("uid-web2", "data2");
    assert!(target.is_dir());
    let calls = mock.calls();
    assert!(calls.iter().all(|call| call.request["volume_id"] != "3"));
    for handle in ["1", "2"] {
        let calls: Vec<_> =
            calls.iter().filter(|call| call.request["volume_id"] == handle).cloned().collect();
        assert_eq!(methods(&calls), UP, "{calls:?}");
        let (stage, publish) = (&calls[0].request, &calls[1].request);
        assert_eq!(stage["staging_target_path"], publish["staging_target_path"]);
        assert_eq!(stage["volume_context"]["colour"], "blue");
        assert_eq!(publish["volume_context"]["colour"], "blue");
        assert_eq!(publish.get("publish_context"), None, "the driver is not gated");
    }
    host.remove_manifest("web1.yaml");
    host.wait(&["pod/web3"]);
    for handle in ["2", "3"] {
        host.remove_manifest(&format!("web{handle}.yaml"));
    }
    host.wait(&["--for=released", "pod/web1", "pod/web2", "pod/web3"]);
    assert_released(host);
    assert_eq!(mock.of("NodeUnpublishVolume").len(), 3);
    assert_eq!(mock.of("NodeUnstageVolume").len(), 3);
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
