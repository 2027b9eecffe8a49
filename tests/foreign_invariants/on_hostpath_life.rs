//! With csi-driver-host-path, whose mounts are real: 23, 28, 29, 31, 34, 35.

use std::fs;
use std::path::PathBuf;

use crate::foreign::{assert_same_arguments, claim_of, explanation, methods, unpublish_volume};
use crate::hostpath::{Hostpath, NAME, driver_object, drivers, mount_ids, reboot, shows};
use crate::support::{pod_using, until};

const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];

#[test]
fn invariant_23_a_claim_in_use_that_is_removed_takes_nothing_from_its_pod() {
    let test = "invariant_23_a_claim_in_use_that_is_removed_takes_nothing_from_its_pod";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let ids = mount_ids(host);
    host.remove_manifest("data.yaml");
    // Held first because it went away, then, two readings later, because there is none.
    until("there is none", || explanation(host, "web").contains("PersistentVolumeClaim"));
    assert_eq!((methods(&real.calls()), mount_ids(host)), (UP.to_vec(), ids));
    real.release("web");
    real.assert_released();
}

#[test]
fn invariant_28_the_death_of_driver_registrar_and_daemon_moves_no_mount() {
    let test = "invariant_28_the_death_of_driver_registrar_and_daemon_moves_no_mount";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (driver, registrar) = (real.driver(&[]), real.registrar());
    let daemon = host.volumed(&[]);
    real.volume("data");
    real.volume("other");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let ids = mount_ids(host);
    let unmoved = |after: &str| {
        host.wait(&["pod/web"]);
        assert_eq!(mount_ids(host), ids, "after {after}");
        assert_eq!(methods(&real.calls()), UP, "after {after}");
    };

    driver.kill();
    until("the driver is shown as disconnected", || drivers(host).contains("disconnected"));
    unmoved("the driver's death");
    let driver = real.driver(&[]);
    until("the driver is called again", || !drivers(host).contains("disconnected"));
    unmoved("the driver's return");

    registrar.kill();
    let registrar = real.registrar();
    unmoved("the registrar's restart");

    daemon.signal("-TERM");
    assert!(daemon.ended().success(), "{}", host.logs());
    assert_eq!(mount_ids(host), ids, "stopping takes nothing down");
    let daemon = host.volumed(&[]);
    unmoved("an orderly restart of the daemon");

    daemon.kill();
    driver.kill();
    registrar.kill();
    let daemon = host.volumed(&[]);
    unmoved("the restart of the daemon alone");
    let (driver, registrar) = (real.driver(&[]), real.registrar());
    until("the driver is back", || drivers(host).contains("ready"));
    unmoved("the restart of all");

    // All down again, and the manifests say something else when they come back.
    daemon.kill();
    driver.kill();
    registrar.kill();
    host.remove_manifest("web.yaml");
    real.pod("next", "other");
    let _daemon = host.volumed(&[]);
    until("the takedown waits for the driver", || explanation(host, "web").contains(NAME));
    assert_eq!(mount_ids(host), ids, "nothing is unmounted without the driver");
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    host.wait(&["--for=released", "pod/web"]);
    host.wait(&["pod/next"]);
    real.release("next");
    real.assert_released();
}

#[test]
fn invariant_29_after_a_reboot_the_mounts_are_made_again() {
    let test = "invariant_29_after_a_reboot_the_mounts_are_made_again";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (driver, registrar) = (real.driver(&[]), real.registrar());
    let daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "first")]);
    let handle = real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    assert!(shows(&target, &real.data(&handle), "before"));
    reboot(host, [daemon, driver, registrar]);

    // The daemon comes first, as it may at a boot.
    let _daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "second")]);
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    host.wait(&["pod/web"]);
    assert_eq!(host.mounts(), std::slice::from_ref(&target));
    assert_eq!(fs::read_to_string(target.join("before")).expect("it outlived the boot"), "before");
    assert_eq!(methods(&real.calls()), [UP, UP].concat());
    assert_same_arguments(&real.calls(), "after a reboot");

    // A fault of this driver: a target that it published twice is in its list twice, and one unpublish takes one of them
    // out, so that it refuses to unstage. A kubelet is stuck there too. Volumed says so, keeps the debt, and pays it when
    // somebody has helped the driver.
    assert_eq!(real.believes()[0].2.len(), 2, "{NAME} was mended: simplify this test");
    host.remove_manifest("web.yaml");
    until("the driver's refusal is shown", || explanation(host, "web").contains("is still published at"));
    assert_eq!(host.mounts(), Vec::<PathBuf>::new());
    assert_eq!(real.believes()[0].1.len(), 1, "the staging is still owed");
    unpublish_volume(&real.socket(""), &handle, &target);
    host.volumectl(&["retry"]);
    host.wait(&["--for=released", "pod/web"]);
    real.assert_released();
    assert!(real.data(&handle).join("before").is_file());
}

#[test]
fn invariant_31_a_failing_republish_leaves_the_mount_intact() {
    let test = "invariant_31_a_failing_republish_leaves_the_mount_intact";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (driver, _registrar) = (real.driver(&[]), real.registrar());
    let daemon = host.volumed(&[]);
    host.manifest("csidriver.yaml", &driver_object("attachRequired: false, requiresRepublish: true"));
    let handle = real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let ids = mount_ids(host);
    // A driver that lost its memory refuses the repeat.
    driver.kill();
    fs::rename(host.path("driver/state.json"), host.path("driver/aside")).expect("the driver's memory");
    let driver = real.driver(&[]);
    daemon.kill();
    let daemon = host.volumed(&[]);
    until("the repeat failed", || {
        real.calls().iter().any(|call| call.method == UP[1] && !call.error.is_empty())
    });
    host.wait(&["pod/web"]);
    assert_eq!(mount_ids(host), ids);
    assert!(shows(&host.target("uid-web", "data"), &real.data(&handle), "in-use"));
    assert_same_arguments(&real.calls(), "a repeat");
    // With its memory it takes the repeat, on the same mount.
    daemon.kill();
    driver.kill();
    fs::rename(host.path("driver/aside"), host.path("driver/state.json")).expect("the driver's memory");
    let _driver = real.driver(&[]);
    let before = real.calls().len();
    let _daemon = host.volumed(&[]);
    until("it is repeated", || {
        real.calls().iter().skip(before).any(|call| call.method == UP[1] && call.error.is_empty())
    });
    assert_eq!(mount_ids(host), ids);
    assert!(
        real.calls().iter().all(|call| UP.contains(&call.method.as_str())),
        "{:?}",
        methods(&real.calls())
    );
}

#[test]
fn invariant_34_what_cannot_be_read_is_not_gone() {
    let test = "invariant_34_what_cannot_be_read_is_not_gone";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let ids = mount_ids(host);
    let status = || String::from_utf8_lossy(&host.volumectl(&["status"]).stdout).into_owned();
    for bytes in ["", "apiVersion: v1\nkind: Pod\nmetadata: {name: ["] {
        fs::write(host.manifests.join("web.yaml"), bytes).expect("the manifest");
        until("it is reported", || status().contains("web.yaml"));
    }
    // Another directory in the place of the first.
    fs::rename(&host.manifests, host.path("aside")).expect("the directory");
    fs::create_dir(&host.manifests).expect("an empty directory");
    until("it is reported", || status().contains("is not the directory it was"));
    let began = std::time::Instant::now();
    until("readings a grace apart", || {
        let asked = host.volumectl(&["wait", "--timeout", "1s", "pod/none"]);
        asked.status.code() == Some(3) && began.elapsed() > std::time::Duration::from_millis(2500)
    });
    assert_eq!((methods(&real.calls()), mount_ids(host)), (UP.to_vec(), ids));
    fs::remove_dir(&host.manifests).expect("an empty directory");
    fs::rename(host.path("aside"), &host.manifests).expect("the directory");
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    real.release("web");
    real.assert_released();
}

#[test]
fn invariant_35_an_answer_beyond_the_limits_is_refused_and_nobody_dies() {
    let test = "invariant_35_an_answer_beyond_the_limits_is_refused_and_nobody_dies";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    // The last one counts.
    let long = "n".repeat(257);
    let (driver, registrar) = (real.driver(&["-nodeid", &long]), real.registrar());
    let mut daemon = host.volumed(&[]);
    let journal = || fs::read_to_string(host.path("volumed.log")).unwrap_or_default();
    until("its node id is refused", || journal().contains("node_id has 257 bytes"));
    driver.kill();
    registrar.kill();
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    // What a manifest says beyond them is warned of; a kubelet asks all the same, and so does volumed.
    let handle = real.volume("data");
    let wide = format!("{{colour: {}}}", "b".repeat(4096));
    host.manifest("data.yaml", &claim_of(NAME, "data", &handle).replace("{colour: blue}", &wide));
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let status = String::from_utf8_lossy(&host.volumectl(&["status"]).stdout).into_owned();
    assert!(status.contains("spec.csi.volumeAttributes: has more than the 4096"), "{status}");
    assert!(shows(&host.target("uid-web", "data"), &real.data(&handle), "file"));
    assert!(daemon.is_running());
    let longest = journal().lines().map(str::len).max().unwrap_or_default();
    assert!(longest < 4096, "a line of {longest} bytes is in the journal");
    real.release("web");
    real.assert_released();
}
