//! With csi-driver-host-path, whose mounts are real: 2, 4, 9 to 12, 24 to 26, 32.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::process::Command;

use volumed::model::{DriverName, Layout};

use crate::foreign::{
    Witnessed, assert_same_arguments, block, claim_of, create_block_volume, create_volume, device_user,
    explanation, methods,
};
use crate::hostpath::{Hostpath, NAME, drivers, mount_ids, shows};
use crate::support::seen::volumes;
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
fn invariant_12_the_staging_path_is_a_directory_also_of_a_block_volume() {
    let test = "invariant_12_the_staging_path_is_a_directory_also_of_a_block_volume";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let _daemon = host.volumed(&[]);
    let handle = create_block_volume(&real.socket(""), "data");
    host.manifest("data.yaml", &block(&claim_of(NAME, "data", &handle)));
    host.manifest("web.yaml", &device_user(&pod_using("web", "uid-web", "data")));
    host.wait(&["pod/web"]);
    let calls = real.calls();
    assert_eq!(methods(&calls), UP);
    for call in &calls {
        assert!(call.request["volume_capability"]["AccessType"]["Block"].is_object(), "{call:?}");
        let staging = call.request["staging_target_path"].as_str().expect("a path");
        assert!(Path::new(staging).is_dir(), "{staging}");
    }
    // Invariant 11 too: this driver makes a file of the target only where there is none.
    let target = calls[1].request["target_path"].as_str().expect("a path");
    assert!(fs::metadata(target).expect("the driver's device").file_type().is_block_device());
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
fn invariant_11_staging_and_the_target_s_parent_are_made_for_the_driver_and_the_target_is_not() {
    let test = "invariant_11_staging_and_the_target_s_parent_are_made_for_the_driver_and_the_target_is_not";
    let Some(real) = Hostpath::new(test) else { return };
    let host = &real.host;
    let (driver, _registrar) = (real.driver(&[]), real.registrar());
    // It stops between staging and publishing.
    let daemon = host.volumed(&[("VOLUMED_TEST_FAULT", "stop:stage:outcome")]);
    let handle = real.volume("data");
    until("the driver is known", || drivers(host).contains("ready"));
    let under_way = |step: &str| volumes(host).iter().any(|volume| volume["running"]["step"] == step);
    let layout = Layout::new(&host.root);
    let staging = layout.absolute(&layout.csi_staging(&DriverName::new(NAME).expect("a name"), &handle));
    let target = host.target("uid-web", "data");
    // A driver that is stopped has been called and has not looked yet.
    driver.signal("-STOP");
    real.pod("web", "data");
    until("it is called", || under_way("stage") && staging.is_dir());
    assert!(!target.parent().expect("it has one").exists(), "nothing is published yet");
    driver.signal("-CONT");
    until("the daemon has stopped", || is_stopped(daemon.pid()));
    driver.signal("-STOP");
    daemon.signal("-CONT");
    until("it is called", || under_way("publish") && target.parent().is_some_and(Path::is_dir));
    assert!(target.symlink_metadata().is_err(), "{} was made for the driver", target.display());
    driver.signal("-CONT");
    host.wait(&["pod/web"]);
    assert_eq!(methods(&real.calls()), UP);
    assert!(shows(&target, &real.data(&handle), "file"));
    real.release("web");
    real.assert_released();
}

/// Whether a process is stopped by a signal.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}
