//! volumeMode and accessModes.

use crate::model::{HoldCode, VolumeMode};

use super::*;

#[test]
fn volume_mode_must_fit_how_containers_use_it() {
    let devices = json!({"spec": {"containers": [{"name": "c",
        "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}]}});
    let block = pv("pv-1", json!({"spec": {"volumeMode": "Block"}}));
    World::with_claim()
        .add(claim_pod(devices.clone()))
        .is_held(HoldCode::ObjectInvalid, "volumeMode Filesystem, but is specified in volumeDevices");
    World::with_claim()
        .add(block.clone())
        .is_held(HoldCode::ObjectInvalid, "volumeMode Block, but is specified in volumeMounts");
    assert_eq!(World::with_claim().csi().volume_mode, VolumeMode::Filesystem);
    assert_eq!(World::with_claim().add(block).add(claim_pod(devices)).csi().volume_mode, VolumeMode::Block);
    World::with_claim()
        .add(pv("pv-1", json!({"spec": {"volumeMode": "Tape"}})))
        .is_held(HoldCode::ObjectInvalid, "spec.volumeMode \"Tape\" is unknown");
}

#[test]
fn the_first_access_mode_counts_and_read_write_once_is_the_default() {
    let world = World::with_claim()
        .add(pv("pv-1", json!({"spec": {"accessModes": ["ReadOnlyMany", "ReadWriteOnce"]}})));
    assert_eq!(world.csi().access_mode, "ReadOnlyMany");
    let world = World::with_claim().add(pv("pv-1", json!({"spec": {"accessModes": []}})));
    assert_eq!(world.csi().access_mode, "ReadWriteOnce");
}

/// A pod whose container has claim `data` as a device.
fn device_pod() -> Value {
    let mut pod = claim_pod(json!({}));
    pod["spec"]["containers"] =
        json!([{"name": "c", "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}]);
    pod
}

#[test]
fn a_block_volume_has_no_file_system_no_mount_options_no_group_and_no_tokens() {
    let block = pv(
        "pv-1",
        json!({"spec": {"volumeMode": "Block", "mountOptions": ["noatime"], "csi": {"fsType": "ext4"}}}),
    );
    let mut pod = device_pod();
    merge(&mut pod, json!({"spec": {"securityContext": {"fsGroup": 7, "fsGroupChangePolicy": "Odd"}}}));
    let driver = driver(json!({"tokenRequests": [{"audience": "x"}], "podInfoOnMount": true,
        "requiresRepublish": true, "fsGroupPolicy": "File"}));
    let csi = World::with_claim().add(pod).add(block).add(driver).csi();
    assert_eq!((csi.fs_type.as_str(), csi.mount_flags.len()), ("", 0));
    assert_eq!((csi.fs_group, csi.tokens), (None, None));
    // These are not about the file system.
    assert!(csi.pod_info.is_some() && csi.republish && csi.size.is_some());
}

#[test]
fn a_block_volume_is_not_called_like_the_directories_of_all_block_volumes() {
    for name in ["staging", "publish"] {
        let volume = |mode: &str| {
            World::with_claim()
                .add(claim(json!({"volumeName": name})))
                .add(pv(name, json!({"spec": {"volumeMode": mode}})))
        };
        let held = volume("Block").add(device_pod());
        held.is_held(HoldCode::ObjectInvalid, &format!("csi/volumeDevices/{name}"));
        assert!(held.hold().remedy.contains("metadata.name"), "{:?}", held.hold());
        volume("Filesystem").csi();
    }
}

#[test]
fn what_no_claim_stands_for_is_no_device() {
    let mut pod = device_pod();
    for source in [json!({"emptyDir": {}}), json!({"csi": {"driver": "d.example"}})] {
        let mut volume = json!({"name": "data"});
        merge(&mut volume, source);
        pod["spec"]["volumes"] = json!([volume]);
        let world = World::default().add(pod.clone()).add(inline_driver(json!({})));
        world.is_held(HoldCode::ObjectInvalid, "is specified in volumeDevices, but is not a claim");
    }
}

#[test]
fn one_claim_as_a_mount_and_as_a_device_is_invalid_where_it_does_not_fit_the_pv() {
    let volumes = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "raw", "persistentVolumeClaim": {"claimName": "data"}},
    ]);
    let mut both = pod(&volumes);
    both["spec"]["containers"] = json!([{"name": "c",
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "volumeDevices": [{"name": "raw", "devicePath": "/dev/x"}]}]);
    let files = World::with_claim().add(both.clone());
    assert_eq!(files.csi().volume_mode, VolumeMode::Filesystem);
    assert_eq!(files.hold_of("raw").code, HoldCode::ObjectInvalid);
    let block = World::with_claim().add(both).add(pv("pv-1", json!({"spec": {"volumeMode": "Block"}})));
    block.is_held(HoldCode::ObjectInvalid, "volumeMode Block, but is specified in volumeMounts");
    assert_eq!(block.wanted_of("raw").2.names, ["raw".to_owned()].into());
}

#[test]
fn one_claim_read_only_and_writable_in_one_pod_is_held_twice() {
    let volumes = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "look", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}},
    ]);
    let world = World::with_claim().add(pod(&volumes));
    world.is_held(HoldCode::ObjectInvalid, "data and look");
    assert_eq!(world.hold_of("look"), world.hold());
}

#[test]
fn an_unknown_access_mode_is_held_with_its_place() {
    let world = World::with_claim()
        .add(pv("pv-1", json!({"spec": {"accessModes": ["ReadWriteOnce", "ReadWriteTwice"]}})));
    world.is_held(HoldCode::ObjectInvalid, "PersistentVolume pv-1: spec.accessModes[1] \"ReadWriteTwice\"");
    assert!(world.hold().remedy.contains("ReadWriteOncePod"));
}

#[test]
fn only_read_write_once_pod_alone_is_for_a_single_pod() {
    let with = |modes: Value| {
        let mut pv = pv("pv-1", json!({}));
        pv["spec"]["accessModes"] = modes;
        World::with_claim().add(pv)
    };
    let csi = with(json!(["ReadWriteOncePod"])).csi();
    assert_eq!((csi.access_mode.as_str(), csi.single_pod), ("ReadWriteOncePod", true));
    for modes in [json!([]), json!(["ReadWriteOnce"]), json!(["ReadWriteMany", "ReadWriteOnce"])] {
        assert!(!with(modes).csi().single_pod);
    }
    let mixed = with(json!(["ReadWriteOnce", "ReadWriteOncePod"]));
    mixed.is_held(
        HoldCode::ObjectInvalid,
        "ReadWriteOncePod together with others: ReadWriteOnce, ReadWriteOncePod",
    );
}

#[test]
fn the_source_is_read_only_by_its_field_or_by_all_its_modes() {
    let with = |modes: Value, read_only: bool| {
        let mut pv = pv("pv-1", json!({"spec": {"csi": {"readOnly": read_only}}}));
        pv["spec"]["accessModes"] = modes;
        World::with_claim().add(pv).csi()
    };
    assert!(with(json!(["ReadWriteOnce"]), true).source_read_only);
    assert!(with(json!(["ReadOnlyMany"]), false).source_read_only);
    assert!(!with(json!(["ReadOnlyMany", "ReadWriteOnce"]), false).source_read_only);
    assert!(!with(json!([]), false).source_read_only);
    // The driver is told the pod's alone (csi.md 2.10).
    assert!(!with(json!(["ReadOnlyMany"]), true).read_only);
}
