//! The whole daemon with csi-driver-host-path and node-driver-registrar, both unmodified: real mounts, real registration.
//!
//! The driver's `-v 5` log is the witness of what was called and with which arguments, its `state.json` of what it believes.
//! Their sockets lie in the test's own root. Without `VOLUMED_TEST_HOSTPATHPLUGIN` and `VOLUMED_TEST_REGISTRAR` the tests
//! say NOT-RUN.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/hostpath.rs"]
mod hostpath;
#[path = "drivers_hostpath/killed.rs"]
mod killed;
mod support;

use std::fs;

use foreign::{assert_released, attach_volume, attachment, claim_of, explanation, methods, node_calls};
use hostpath::{Hostpath, NAME, NODE, driver_object, drivers, mount_ids, reboot, shows};
use support::{pod_using, until};

const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];
const DOWN: [&str; 2] = ["NodeUnpublishVolume", "NodeUnstageVolume"];

/// A pod with an inline volume.
fn inline_pod(name: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, uid: uid-{name}}}
spec:
  serviceAccountName: robot
  containers:
  - name: main
    image: example
    volumeMounts: [{{name: scratch, mountPath: /scratch}}]
  volumes:
  - name: scratch
    csi: {{driver: {NAME}, volumeAttributes: {{colour: green}}}}
"
    )
}

const EPHEMERAL: &str =
    "volumeLifecycleModes: [Persistent, Ephemeral], podInfoOnMount: true, attachRequired: false";

#[test]
fn a_read_only_claim_is_read_only() {
    let test = "a_read_only_claim_is_read_only";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    let handle = real.volume("data");
    let read_only = "claimName: data, readOnly: true}";
    let pod = pod_using("web", "uid-web", "data").replace("claimName: data}", read_only);
    assert!(pod.contains(read_only));
    host.manifest("web.yaml", &pod);
    host.wait(&["pod/web"]);
    fs::write(real.data(&handle).join("given"), "given").expect("the driver's side");
    let target = host.target("uid-web", "data");
    assert_eq!(fs::read_to_string(target.join("given")).expect("shown"), "given");
    let error = fs::write(target.join("file"), "x").expect_err("it is read only");
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(real.calls()[1].request["readonly"], true);
    real.release("web");
    real.assert_released();
}

#[test]
fn an_inline_volume_lives_as_long_as_its_pod() {
    let test = "an_inline_volume_lives_as_long_as_its_pod";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    host.manifest("csidriver.yaml", &driver_object(EPHEMERAL));
    host.manifest("web.yaml", &inline_pod("web"));
    host.wait(&["pod/web"]);
    let calls = real.calls();
    assert_eq!(methods(&calls), ["NodePublishVolume"], "an inline volume is not staged");
    let context = serde_json::json!({
        "colour": "green",
        "csi.storage.k8s.io/pod.name": "web",
        "csi.storage.k8s.io/pod.namespace": "default",
        "csi.storage.k8s.io/pod.uid": "uid-web",
        "csi.storage.k8s.io/serviceAccount.name": "robot",
        "csi.storage.k8s.io/ephemeral": "true",
    });
    assert_eq!(calls[0].request["volume_context"], context);
    let handle = calls[0].request["volume_id"].as_str().expect("text").to_owned();
    assert!(shows(&host.target("uid-web", "scratch"), &real.data(&handle), "file"));
    real.release("web");
    real.assert_released();
    assert!(real.believes().is_empty(), "{:?}", real.believes());
    assert!(!real.data(&handle).exists(), "the volume went with its pod");
}

#[test]
fn a_newer_instance_takes_over_and_the_older_one_is_used_again_when_it_goes() {
    let test = "a_newer_instance_takes_over_and_the_older_one_is_used_again_when_it_goes";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    let newer = || node_calls(&host.path("driver-new.log"));
    real.volume("data");
    let other = real.volume("other");
    real.pod("web", "data");
    host.wait(&["pod/web"]);

    let (driver, registrar) = (real.instance("-new", &[]), real.registrar_of("-new", "new"));
    until("the newer one is used", || drivers(host).contains("csi-hostpath-new"));
    real.pod("next", "other");
    host.wait(&["pod/next"]);
    assert_eq!(methods(&newer()), UP, "the newer one has the new pod");
    assert_eq!(methods(&real.calls()), UP, "the older one is asked no more");
    real.release("web");
    until("the first volume is unstaged", || newer().len() == 4);
    assert_eq!(methods(&newer())[2..], DOWN);

    registrar.signal("-TERM");
    registrar.ended();
    driver.kill();
    until("the older one is used again", || !drivers(host).contains("csi-hostpath-new"));
    // It never heard of this publication: it answers OK and leaves the mount, which is volumed's to take down.
    let target = host.target("uid-next", "other");
    assert!(shows(&target, &real.data(&other), "file"));
    real.release("next");
    assert_released(host);
    assert_eq!(methods(&real.calls())[2..], DOWN);
    assert!(real.data(&other).join("file").is_file(), "the data is the driver's");
}

#[test]
fn a_registration_that_is_replaced_in_place_is_followed() {
    let test = "a_registration_that_is_replaced_in_place_is_followed";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (driver, registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let ids = mount_ids(host);
    driver.kill();
    registrar.kill();
    // kill -9 leaves both sockets; the new registrar makes its own at the same place, with another endpoint in it.
    let (_driver, _registrar) = (real.instance("-new", &[]), real.registrar_of("-new", ""));
    until("the new one is used", || drivers(host).contains("csi-hostpath-new"));
    host.wait(&["pod/web"]);
    assert_eq!(mount_ids(host), ids);
    real.release("web");
    real.assert_released();
    assert_eq!(methods(&node_calls(&host.path("driver-new.log"))), DOWN);
}

#[test]
fn after_a_reboot_what_is_no_longer_wanted_is_undone_in_the_driver_s_mind() {
    let test = "after_a_reboot_what_is_no_longer_wanted_is_undone_in_the_driver_s_mind";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (driver, registrar) = (real.driver(&[]), real.registrar());
    let daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "first")]);
    let handle = real.volume("data");
    real.pod("web", "data");
    host.manifest("csidriver.yaml", &driver_object(EPHEMERAL));
    host.manifest("inline.yaml", &inline_pod("inline"));
    host.wait(&["pod/web", "pod/inline"]);
    reboot(host, [daemon, driver, registrar]);
    host.remove_manifest("web.yaml");
    host.remove_manifest("inline.yaml");

    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    assert_eq!(real.believes().iter().filter(|(_, _, published)| published.len() == 1).count(), 2);
    let _daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "second")]);
    host.wait(&["--for=released", "pod/web", "pod/inline"]);
    real.assert_released();
    assert_eq!(real.believes().len(), 1, "the inline volume went with its pod");
    let of_the_claim: Vec<_> =
        real.calls().into_iter().filter(|call| call.request["volume_id"] == handle.as_str()).collect();
    assert_eq!(methods(&of_the_claim), [UP, DOWN].concat());
}

#[test]
fn a_gated_driver_waits_for_its_attachment() {
    let test = "a_gated_driver_waits_for_its_attachment";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&["-enable-attach"]), real.registrar());
    let _daemon = host.volumed(&[]);
    let handle = real.volume("data");
    real.pod("web", "data");
    until("it is blocked for the attachment", || explanation(host, "web").contains("VolumeAttachment"));
    assert!(real.calls().is_empty(), "{:?}", real.calls());
    attach_volume(&real.socket(""), &handle, NODE);
    host.manifest("attachment.yaml", &attachment(NAME, "data", ""));
    host.wait(&["pod/web"]);
    assert!(shows(&host.target("uid-web", "data"), &real.data(&handle), "file"));
    assert_eq!(methods(&real.calls()), UP);
    real.release("web");
    real.assert_released();
}

#[test]
fn a_gated_driver_needs_none_when_its_object_says_so() {
    let test = "a_gated_driver_needs_none_when_its_object_says_so";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&["-enable-attach"]), real.registrar());
    let _daemon = host.volumed(&[]);
    host.manifest("csidriver.yaml", &driver_object("attachRequired: false"));
    let handle = real.volume("data");
    attach_volume(&real.socket(""), &handle, NODE);
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    real.release("web");
    real.assert_released();
}

#[test]
fn a_handle_that_the_driver_does_not_know_is_said_and_given_up_without_a_trace() {
    let test = "a_handle_that_the_driver_does_not_know_is_said_and_given_up_without_a_trace";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    host.manifest("data.yaml", &claim_of(NAME, "data", "no-such-volume"));
    real.pod("web", "data");
    until("the handle is named", || {
        let said = explanation(host, "web");
        said.contains("volume id no-such-volume does not exist") && said.contains("volumeHandle")
    });
    real.release("web");
    assert_released(host);
    let calls = real.calls();
    assert_eq!(methods(&calls).last(), Some(&"NodeUnstageVolume"));
    assert!(calls.iter().all(|call| call.error.contains("NotFound")), "{calls:#?}");
    assert!(!methods(&calls).contains(&"NodePublishVolume"), "what is not staged is not published");
}

#[test]
fn a_driver_that_lost_its_state_leaves_a_mount_that_stays_owed() {
    let test = "a_driver_that_lost_its_state_leaves_a_mount_that_stays_owed";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    let handle = real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    assert!(shows(&target, &real.data(&handle), "file"));
    driver.kill();
    until("its end is seen", || drivers(host).contains("disconnected"));
    fs::remove_file(host.path("driver/state.json")).expect("the driver's state");
    let _driver = real.driver(&[]);
    host.remove_manifest("web.yaml");
    until("the mount is named", || explanation(host, "web").contains("still mounted"));
    assert_eq!(host.mounts(), std::slice::from_ref(&target), "NOT_FOUND is no proof");
    assert_eq!(fs::read_to_string(target.join("file")).expect("the data"), "file");
    host.unmount_all();
    host.wait(&["--for=released", "pod/web"]);
    assert_released(host);
    assert!(real.data(&handle).join("file").is_file(), "the data is the driver's");
}
