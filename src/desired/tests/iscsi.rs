//! Disks of storage systems: what is taken from a PersistentVolume or a pod, and what is refused.

use crate::model::{
    DeviceWant, DiskSource, FcLun, FsKind, HoldCode, IscsiLun, Layout, Lun, Plugin, VolumeMode, WantedVolume,
};

use super::*;

const IQN: &str = "iqn.2026-11.io.volumed:one";

fn volume(change: Value) -> World {
    let mut volume = json!({
        "kind": "PersistentVolume", "metadata": {"name": "pv-1"},
        "spec": {
            "iscsi": {"targetPortal": "10.0.0.1", "iqn": IQN, "lun": 3},
            "accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"}, "mountOptions": ["noatime"],
        },
    });
    merge(&mut volume["spec"], change);
    World::with_claim().add(volume)
}

fn device(world: &World) -> DeviceWant {
    match world.wanted_of("data").2.volume {
        WantedVolume::Device(device) => *device,
        other => panic!("{other:?}"),
    }
}

fn iscsi(device: &DeviceWant) -> IscsiLun {
    match &device.disk {
        DiskSource::Lun(Lun::Iscsi(lun)) => lun.clone(),
        other => panic!("{other:?}"),
    }
}

fn chap(values: &Value) -> Value {
    secret("chap", json!({"stringData": values}))
}

#[test]
fn a_volume_is_its_target_s_disk_at_a_kubelet_s_paths() {
    let world = volume(json!({"iscsi": {
        "portals": ["10.0.0.2:3261", "10.0.0.1:3260", "[fd00::1]"], "fsType": "xfs", "iscsiInterface": "default",
    }}));
    let (key, id, _) = world.wanted_of("data");
    assert_eq!(key.as_str(), format!("kubernetes.io/iscsi/10.0.0.1:3260:{IQN}:3"));
    assert_eq!((id.plugin, id.spec.as_str()), (Plugin::Iscsi, "pv-1"));
    let device = device(&world);
    let portals: Vec<String> = iscsi(&device).portals.iter().map(ToString::to_string).collect();
    assert_eq!(portals, ["10.0.0.1:3260", "10.0.0.2:3261", "[fd00::1]:3260"]);
    assert_eq!((device.fs_type, device.size.map(|size| size.capacity)), (Some(FsKind::Xfs), Some(1 << 30)));
    assert_eq!((device.read_only, device.source_read_only, device.single_pod), (false, false, false));
    let layout = Layout::new("/var/lib/kubelet");
    let at = |path| layout.absolute(&path).display().to_string();
    assert_eq!(
        at(layout.device_staging(&device.disk, &id.spec)),
        format!("/var/lib/kubelet/plugins/kubernetes.io/iscsi/iface-default/10.0.0.1:3260-{IQN}-lun-3")
    );
    assert_eq!(
        at(layout.raw_staging(&device.disk, &id.spec)),
        format!(
            "/var/lib/kubelet/plugins/kubernetes.io/iscsi/volumeDevices/iface-default/10.0.0.1:3260-{IQN}-lun-3"
        )
    );
    assert_eq!(
        at(layout.target(&id)),
        format!("/var/lib/kubelet/pods/{UID}/volumes/kubernetes.io~iscsi/pv-1")
    );
}

#[test]
fn a_pod_s_own_source_is_the_same_disk_as_a_volume_s() {
    let source = json!({"targetPortal": "10.0.0.1:3260", "iqn": IQN.to_uppercase().replace("IQN.", "iqn."), "lun": 3, "readOnly": true});
    let world = World::with_source(json!({"iscsi": source}));
    let (key, id, _) = world.wanted_of("data");
    assert_eq!(key, volume(json!({})).wanted_of("data").0);
    assert_eq!(id.spec.as_str(), "data");
    let device = device(&world);
    assert!(device.read_only && device.source_read_only && device.size.is_none(), "{device:?}");
}

#[test]
fn whoever_says_read_only_is_heard_and_raw_is_raw() {
    assert!(device(&volume(json!({"iscsi": {"readOnly": true}}))).source_read_only);
    assert!(device(&volume(json!({"accessModes": ["ReadOnlyMany"]}))).source_read_only);
    assert!(device(&volume(json!({"mountOptions": ["noatime,ro"]}))).source_read_only);
    let mut pod = pod(&json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]));
    let container = &mut pod["spec"]["containers"][0];
    container["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/x"}]);
    container["volumeMounts"] = json!([]);
    let raw = device(&volume(json!({"volumeMode": "Block"})).add(pod));
    assert_eq!(raw.volume_mode, VolumeMode::Block);
}

#[test]
fn of_the_secret_only_the_passwords_that_are_asked_for_are_taken() {
    let values = json!({
        "node.session.auth.username": "me", "node.session.auth.password": "hush",
        "discovery.sendtargets.auth.username": "me", "discovery.sendtargets.auth.password": "hush2",
        "key": "no disk's",
    });
    let with = |source: Value| volume(json!({"iscsi": source})).add(chap(&values));
    let names = |world: &World| device(world).secrets.reveal().keys().cloned().collect::<Vec<_>>();
    // Without a namespace it is the claim's.
    let session = with(json!({"chapAuthSession": true, "secretRef": {"name": "chap"}}));
    assert_eq!(names(&session), ["node.session.auth.password", "node.session.auth.username"]);
    assert!(iscsi(&device(&session)).session_chap && !iscsi(&device(&session)).discovery_chap);
    let both = json!({"chapAuthSession": true, "chapAuthDiscovery": true, "secretRef": {"name": "chap", "namespace": "default"}});
    assert_eq!(names(&with(both)).len(), 4);
    assert_eq!(names(&with(json!({"secretRef": {"name": "chap"}}))).len(), 0);
    let inline = json!({"iscsi": {"targetPortal": "10.0.0.1", "iqn": IQN, "lun": 0, "chapAuthSession": true, "secretRef": {"name": "chap"}}});
    assert_eq!(names(&World::with_source(inline).add(chap(&values))).len(), 2);
    let shown = format!(
        "{:?}",
        with(json!({"chapAuthSession": true, "secretRef": {"name": "chap"}})).wanted_of("data")
    );
    assert!(!shown.contains("hush"), "{shown}");
}

#[test]
fn what_is_missing_of_a_secret_is_named() {
    let asks = json!({"iscsi": {"chapAuthSession": true, "secretRef": {"name": "chap"}}});
    volume(json!({"iscsi": {"chapAuthSession": true}}))
        .is_held(HoldCode::ObjectInvalid, "there is no PersistentVolume pv-1: spec.iscsi.secretRef");
    volume(json!({"iscsi": {"chapAuthDiscovery": true, "secretRef": {"name": ""}}}))
        .is_held(HoldCode::ObjectInvalid, "spec.iscsi.chapAuthDiscovery is true");
    volume(asks.clone()).is_held(HoldCode::ObjectMissing, "Secret default/chap");
    volume(asks.clone())
        .add(chap(&json!({"node.session.auth.username": "me"})))
        .is_held(HoldCode::ObjectInvalid, "value \"node.session.auth.password\" is missing");
    let two_lines =
        chap(&json!({"node.session.auth.username": "me", "node.session.auth.password": "hush\nhush"}));
    let hold = volume(asks).add(two_lines).hold();
    assert!(hold.detail.contains("control character") && !hold.detail.contains("hush"), "{hold:?}");
}

#[test]
fn what_could_be_another_disk_is_held() {
    for (change, words) in [
        (json!({"iscsi": {"targetPortal": ""}}), "spec.iscsi.targetPortal \"\" has no host name or address"),
        (json!({"iscsi": {"targetPortal": "fd00::1"}}), "is an IPv6 address without brackets"),
        (json!({"iscsi": {"targetPortal": "../x"}}), "has no host name or address"),
        (json!({"iscsi": {"portals": ["10.0.0.2", "10.0.0.3:0"]}}), "spec.iscsi.portals[1]"),
        (
            json!({"iscsi": {"portals": (1..=17).map(|i| format!("10.9.0.{i}")).collect::<Vec<_>>()}}),
            "and at most 16 are asked",
        ),
        (json!({"iscsi": {"iqn": "iqn.2026-11.io.volumed:a/../b"}}), "is no iqn., eui. or naa. name"),
        (json!({"iscsi": {"lun": -1}}), "spec.iscsi.lun -1 is not between 0 and 255"),
        (json!({"iscsi": {"lun": 256}}), "spec.iscsi.lun 256"),
        (json!({"iscsi": {"fsType": "ntfs"}}), "spec.iscsi.fsType \"ntfs\""),
        (json!({"iscsi": {"iscsiInterface": "iface0"}}), "spec.iscsi.iscsiInterface \"iface0\""),
        (json!({"iscsi": {"initiatorName": "iqn.2026-11.io.volumed:me"}}), "spec.iscsi.initiatorName"),
        (json!({"local": {"path": "/srv"}}), "names several sources: local and iscsi"),
        (
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-2"]}
            ]}]}}}),
            "does not name this node",
        ),
    ] {
        let hold = volume(change).hold();
        assert!(hold.detail.contains(words), "{hold:?} does not say {words:?}");
    }
    let inline = |source: Value| World::with_source(json!({"iscsi": source}));
    inline(json!({"targetPortal": "10.0.0.1", "iqn": "x", "lun": 0}))
        .is_held(HoldCode::ObjectInvalid, "volume data: iscsi.iqn");
}

fn fc(source: &Value) -> World {
    let spec = json!({"fc": source, "accessModes": ["ReadWriteOnce"]});
    World::with_claim().add(json!({"kind": "PersistentVolume", "metadata": {"name": "pv-1"}, "spec": spec}))
}

#[test]
fn a_fibre_channel_disk_is_named_by_ports_or_by_itself() {
    let ports =
        fc(&json!({"targetWWNs": ["50060E801049CFD1", "50060e801049cfd2"], "lun": 0, "fsType": "ext4"}));
    let (key, id, _) = ports.wanted_of("data");
    assert_eq!(key.as_str(), "kubernetes.io/fc/50060e801049cfd1,50060e801049cfd2:0");
    let disk = device(&ports).disk;
    let layout = Layout::new("/r");
    assert_eq!(
        layout.absolute(&layout.device_staging(&disk, &id.spec)).display().to_string(),
        "/r/plugins/kubernetes.io/fc/50060e801049cfd1-50060e801049cfd2-lun-0"
    );
    let wwids =
        device(&World::with_source(json!({"fc": {"wwids": ["3600508b400105e21"], "readOnly": true}})));
    assert_eq!(wwids.disk, DiskSource::Lun(Lun::Fc(FcLun::Wwids(vec!["3600508b400105e21".to_owned()]))));
    assert!(wwids.source_read_only);
    for (source, words) in [
        (json!({}), "neither targetWWNs and lun nor wwids"),
        (json!({"targetWWNs": ["50060e801049cfd1"]}), "neither targetWWNs and lun nor wwids"),
        (json!({"targetWWNs": ["50060e801049cfd1"], "lun": 0, "wwids": ["x"]}), "neither targetWWNs"),
        (json!({"lun": 0, "wwids": ["x"]}), "neither targetWWNs"),
        (json!({"targetWWNs": ["0x50060e801049cfd1"], "lun": 0}), "spec.fc.targetWWNs[0]"),
        (json!({"targetWWNs": ["50060e801049cfd1"], "lun": 256}), "spec.fc.lun 256"),
        (json!({"wwids": ["a/../b"]}), "spec.fc.wwids[0]"),
        (json!({"wwids": ["", "x"]}), "spec.fc.wwids[0]"),
    ] {
        fc(&source).is_held(HoldCode::ObjectInvalid, words);
    }
}
