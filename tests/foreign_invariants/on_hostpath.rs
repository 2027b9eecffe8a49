//! With csi-driver-host-path, whose mounts are real: 2, 4, 9, 10, 23 to 26, 28, 29, 31, 32, 34.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use volumed::model::{DriverName, Layout};

use crate::foreign::{
    Witnessed, assert_same_arguments, claim_of, create_volume, explanation, methods, unpublish_volume,
};
use crate::hostpath::{Hostpath, NAME, driver_object, drivers, mount_ids, reboot, shows};
use crate::support::{pod_using, until};

const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];

#[test]
fn invariant_04_a_volume_is_unstaged_after_the_last_of_its_pods() {
    let test = "invariant_04_a_volume_is_unstaged_after_the_last_of_its_pods";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    let handle = real.volume("data");
    real.pod("one", "data");
    host.wait(&["pod/one"]);
    real.pod("two", "data");
    host.wait(&["pod/two"]);
    let (one, two) = (host.target("uid-one", "data"), host.target("uid-two", "data"));
    assert_eq!(host.mounts().len(), 2, "{:?}", host.mounts());
    assert!(shows(&one, &real.data(&handle), "from-one"));
    assert_eq!(fs::read_to_string(two.join("from-one")).expect("shared"), "from-one");

    let calls = real.calls();
    assert_eq!(methods(&calls), ["NodeStageVolume", "NodePublishVolume", "NodePublishVolume"]);
    let staging = calls[0].request["staging_target_path"].as_str().expect("a path").to_owned();
    for call in &calls {
        let request = &call.request;
        assert_eq!(request["volume_id"], handle.as_str());
        assert_eq!(request["staging_target_path"], staging.as_str());
        assert_eq!(request["volume_context"]["colour"], "blue");
        // SINGLE_NODE_MULTI_WRITER stands for ReadWriteOnce where the driver knows it (csi.md 2.8).
        assert_eq!(request["volume_capability"]["access_mode"]["mode"], 7, "{request}");
        assert!(request["volume_capability"]["AccessType"]["Mount"].is_object(), "{request}");
    }
    assert_eq!(calls[1].request["target_path"], one.to_str().expect("text"));

    real.release("one");
    until("the driver believes in one pod only", || real.believes()[0].2.len() == 1);
    assert_eq!(host.mounts(), std::slice::from_ref(&two));
    assert_eq!(fs::read_to_string(two.join("from-one")).expect("still shared"), "from-one");
    assert_eq!(methods(&real.calls()).last(), Some(&"NodeUnpublishVolume"), "two still has it");
    real.release("two");
    real.assert_released();
    assert_eq!(
        methods(&real.calls())[3..],
        ["NodeUnpublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"]
    );
    assert!(real.data(&handle).join("from-one").is_file(), "the data is the driver's");
    assert!(real.calls().iter().all(|call| call.error.is_empty()), "{:#?}", real.calls());
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
fn invariant_02_a_volume_has_one_staging_path_for_good() {
    let test = "invariant_02_a_volume_has_one_staging_path_for_good";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let handle = real.volume("data");
    for round in 0..3 {
        let daemon = host.volumed(&[]);
        real.pod("web", "data");
        host.wait(&["pod/web"]);
        if round == 1 {
            // Also where nothing is remembered.
            real.release("web");
            real.assert_released();
            daemon.kill();
            fs::rename(&host.state, host.path("lost")).expect("the state directory");
        } else {
            real.release("web");
            real.assert_released();
        }
    }
    let layout = Layout::new(&host.root);
    let path = layout.absolute(&layout.csi_staging(&DriverName::new(NAME).expect("a name"), &handle));
    let staged: BTreeSet<_> = real
        .calls()
        .iter()
        .filter(|call| call.method == UP[0])
        .map(|call| call.request["staging_target_path"].to_string())
        .collect();
    assert_eq!(staged, BTreeSet::from([format!("{:?}", path.display().to_string())]));
}

#[test]
fn invariant_09_no_directory_goes_with_a_mount_or_a_file_in_it() {
    let test = "invariant_09_no_directory_goes_with_a_mount_or_a_file_in_it";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    let handle = real.volume("data");
    real.pod("web", "data");
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    assert!(shows(&target, &real.data(&handle), "precious"));
    let beside = host.root.join("pods/uid-web/beside");
    fs::create_dir(&beside).expect("a directory");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "stranger"]).arg(&beside).status();
    assert!(mounted.expect("mount").success());
    fs::write(beside.join("file"), "a stranger's").expect("a file");
    // A mount on top of the volume: this driver deletes what it finds at a target when it has unmounted once.
    let mounted = Command::new("mount").args(["-t", "tmpfs", "above"]).arg(&target).status();
    assert!(mounted.expect("mount").success());
    fs::write(target.join("file"), "above").expect("a file");
    host.remove_manifest("web.yaml");
    until("the obstacle is named", || explanation(host, "web").contains("above"));
    assert_eq!(methods(&real.calls()), UP, "nobody is called for a path with somebody else's mount");
    assert_eq!(fs::read_to_string(target.join("file")).expect("it is there"), "above");
    assert!(Command::new("umount").arg(&target).status().expect("umount").success());
    until("it is undone", || methods(&real.calls()).last() == Some(&"NodeUnstageVolume"));
    until("only the stranger's is left", || host.mounts() == [beside.clone()]);
    assert_eq!(fs::read_to_string(beside.join("file")).expect("it is there"), "a stranger's");
    assert!(real.data(&handle).join("precious").is_file());
    assert!(Command::new("umount").arg(&beside).status().expect("umount").success());
}

#[test]
fn invariant_10_nothing_lies_on_top_of_a_target_or_staging_path() {
    let test = "invariant_10_nothing_lies_on_top_of_a_target_or_staging_path";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (driver, registrar) = (real.driver(&[]), real.registrar());
    real.volume("data");
    real.pod("web", "data");
    // Ended after the driver mounted, so that it is called again on its own mount; and ended once more.
    let doomed = host.volumed(&[("VOLUMED_TEST_FAULT", "publish:call")]);
    assert!(!doomed.ended().success());
    let daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    daemon.kill();
    driver.kill();
    registrar.kill();
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    assert_eq!(host.mounts(), [target], "one mount, and none on top");
    assert_same_arguments(&real.calls(), "again on what is there");
}

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
fn invariant_24_a_read_write_once_pod_volume_has_one_pod() {
    let test = "invariant_24_a_read_write_once_pod_volume_has_one_pod";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    let handle = create_volume(&real.socket(""), "data");
    host.manifest("data.yaml", &claim_of(NAME, "data", &handle).replace("ReadWriteOnce", "ReadWriteOncePod"));
    real.pod("one", "data");
    host.wait(&["pod/one"]);
    real.pod("two", "data");
    until("the second waits", || explanation(host, "two").contains("ReadWriteOncePod"));
    assert_eq!(host.mounts(), [host.target("uid-one", "data")]);
    // SINGLE_NODE_SINGLE_WRITER.
    assert!(real.calls().iter().all(|call| call.request["volume_capability"]["access_mode"]["mode"] == 6));
    host.remove_manifest("one.yaml");
    host.wait(&["pod/two"]);
    assert_eq!(host.mounts(), [host.target("uid-two", "data")]);
    real.release("two");
    real.assert_released();
}

#[test]
fn invariant_25_a_node_has_no_more_volumes_than_its_driver_takes() {
    let test = "invariant_25_a_node_has_no_more_volumes_than_its_driver_takes";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&["-maxvolumespernode", "1"]), real.registrar());
    let _daemon = host.volumed(&[]);
    real.volume("data");
    real.volume("more");
    for (pod, volume) in [("one", "data"), ("two", "data")] {
        real.pod(pod, volume);
        host.wait(&[&format!("pod/{pod}")]);
    }
    real.pod("three", "more");
    until("the limit is named", || explanation(host, "three").contains("takes 1 volumes on this node"));
    assert_eq!(host.mounts().len(), 2, "{:?}", host.mounts());
    real.release("one");
    real.release("two");
    host.wait(&["pod/three"]);
    real.release("three");
    real.assert_released();
}

#[test]
fn invariant_26_a_volume_grows_once_and_before_its_next_pod_has_it() {
    let test = "invariant_26_a_volume_grows_once_and_before_its_next_pod_has_it";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    // It refuses more than 4 GiB on a node.
    let limit = (4_u64 << 30).to_string();
    let (_driver, _registrar) = (real.driver(&["-max-volume-size-node", &limit]), real.registrar());
    let _daemon = host.volumed(&[]);
    let handle = create_volume(&real.socket(""), "data");
    let size = |size: &str| {
        let claim = claim_of(NAME, "data", &handle).replace("storage: 1Gi", &format!("storage: {size}"));
        host.manifest("data.yaml", &claim);
    };
    let sizes = || -> Vec<(u64, bool)> {
        let calls = real.calls().into_iter().filter(|call| call.method == "NodeExpandVolume");
        let gib = |call: &Witnessed| {
            call.request["capacity_range"]["required_bytes"].as_u64().expect("a size") >> 30
        };
        calls.map(|call| (gib(&call), call.error.is_empty())).collect()
    };
    size("1Gi");
    real.pod("one", "data");
    host.wait(&["pod/one"]);
    let ids = mount_ids(host);
    size("2Gi");
    until("it has grown under its pod", || sizes() == [(2, true)]);
    size("8Gi");
    until("the driver refuses", || sizes().last() == Some(&(8, false)));
    assert_eq!(mount_ids(host), ids, "a size that is refused takes nothing from the pod");
    until("it is shown", || host.explain().contains("OUT_OF_RANGE"));
    assert_eq!(sizes(), [(2, true), (8, false)], "and is not asked for again at once");
    real.release("one");
    real.assert_released();
    size("3Gi");
    real.pod("two", "data");
    host.wait(&["pod/two"]);
    assert_eq!(sizes(), [(2, true), (8, false), (3, true)]);
    let calls = real.calls();
    let grown = calls.iter().rposition(|call| call.method == "NodeExpandVolume").expect("it has grown");
    let shown = calls.iter().rposition(|call| call.method == UP[1]).expect("it is published");
    assert!(grown > shown, "this driver is asked where the volume is published");
    real.release("two");
    real.assert_released();
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
fn invariant_32_two_volumes_with_one_handle_are_one_and_the_second_is_refused() {
    let test = "invariant_32_two_volumes_with_one_handle_are_one_and_the_second_is_refused";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    let handle = real.volume("one");
    host.manifest("two.yaml", &claim_of(NAME, "two", &handle));
    real.pod("a", "one");
    real.pod("b", "two");
    host.wait(&["pod/a"]);
    until("the second is refused", || {
        explanation(host, "b").contains("PersistentVolume two has the same driver")
    });
    assert_eq!(host.mounts(), [host.target("uid-a", "one")]);
    host.remove_manifest("b.yaml");
    real.release("a");
    real.assert_released();
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
