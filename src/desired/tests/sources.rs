//! Which volumes count, and what kinds there are.

use crate::model::{FsKind, HoldCode, LocalWant, Plugin, VolumeMode, WantedVolume};

use super::*;

#[test]
fn only_volumes_that_some_container_uses_count() {
    let mut pod = pod(&json!([
        {"name": "init", "emptyDir": {}}, {"name": "plain", "emptyDir": {}},
        {"name": "debug", "emptyDir": {}}, {"name": "unused", "emptyDir": {}},
    ]));
    let using = |name: &str| json!([{"name": format!("c-{name}"), "volumeMounts": [{"name": name, "mountPath": "/x"}]}]);
    pod["spec"]["containers"] = using("plain");
    pod["spec"]["initContainers"] = using("init");
    pod["spec"]["ephemeralContainers"] = using("debug");
    let names: Vec<String> = World::default().add(pod).pod().volumes.into_keys().collect();
    assert_eq!(names, ["debug", "init", "plain"]);
}

#[test]
fn a_name_that_no_volume_has_is_held_and_stops_no_other() {
    let mut pod = pod(&json!([{"name": "scratch", "emptyDir": {}}]));
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "scratch", "mountPath": "/a"}, {"name": "data", "mountPath": "/b"}]);
    let world = World::default().add(pod);
    world.is_held(HoldCode::ObjectInvalid, "spec.volumes does not list");
    world.wanted_of("scratch");
}

#[test]
fn an_empty_dir_on_disk_belongs_to_its_pod() {
    let (key, id, wanted) = World::with_source(json!({"emptyDir": {}})).wanted_of("data");
    assert_eq!(wanted.volume, WantedVolume::EmptyDir { ownership: None });
    assert_eq!(id.plugin, Plugin::EmptyDir);
    assert_eq!(key.as_str(), format!("kubernetes.io/empty-dir/{UID}-data"));
    World::with_source(json!({"emptyDir": {"medium": ""}})).wanted_of("data");
}

#[test]
fn a_host_path_is_absolute_and_goes_nowhere_else() {
    let world = World::with_source(json!({"hostPath": {"path": "/srv/data"}}));
    assert_eq!(world.wanted_of("data").2.volume, WantedVolume::HostPath { path: "/srv/data".into() });
    for path in ["srv", "/srv/../etc", "..", "", "/srv/\u{0}x"] {
        World::with_source(json!({"hostPath": {"path": path}}))
            .is_held(HoldCode::ObjectInvalid, "absolute path");
    }
    World::with_source(json!({"hostPath": {"path": "/srv/..data"}})).wanted_of("data");
}

#[test]
fn what_is_not_supported_yet_says_so_and_stops_no_other() {
    for source in [
        json!({"emptyDir": {"medium": "Memory"}}),
        json!({"emptyDir": {"medium": "HugePages-2Mi"}}),
        json!({"hostPath": {"path": "/x", "type": "Directory"}}),
        json!({"configMap": {"name": "x"}}),
        json!({"secret": {"secretName": "x"}}),
        json!({"projected": {"sources": []}}),
        json!({"downwardAPI": {"items": []}}),
        json!({"rbd": {"monitors": ["m"], "image": "i"}}),
        json!({"image": {"reference": "x"}}),
        json!({"gitRepo": {"repository": "x"}}),
        json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}),
    ] {
        let mut volume = json!({"name": "data"});
        merge(&mut volume, source);
        let world = World::default().add(pod(&json!([volume, {"name": "scratch", "emptyDir": {}}])));
        world.is_held(HoldCode::NotSupported, "is not supported yet");
        world.wanted_of("scratch");
    }
}

#[test]
fn a_pv_that_is_not_csi_is_not_supported_yet() {
    for (source, name) in [
        (json!({"glusterfs": {"endpoints": "e", "path": "p"}}), "glusterfs"),
        (json!({"hostPath": {"path": "/x"}}), "hostPath"),
    ] {
        let mut pv = pv("pv-1", json!({"spec": source}));
        pv["spec"].as_object_mut().unwrap().remove("csi");
        World::with_claim().add(pv).is_held(HoldCode::NotSupported, name);
    }
}

#[test]
fn no_source_or_two_sources_is_no_empty_dir() {
    World::with_source(json!({})).is_held(HoldCode::ObjectInvalid, "names no source");
    World::with_source(json!({"emptyDir": {}, "hostPath": {"path": "/"}}))
        .is_held(HoldCode::ObjectInvalid, "several sources");
}

fn local(source: Value) -> World {
    let mut volume = json!({
        "kind": "PersistentVolume", "metadata": {"name": "pv-1"},
        "spec": {"local": {"path": "/srv/data"}, "accessModes": ["ReadWriteOnce"], "mountOptions": ["noatime"]},
    });
    merge(&mut volume["spec"], source);
    World::with_claim().add(volume)
}

#[test]
fn a_local_volume_is_the_host_s_directory() {
    let (key, id, wanted) = local(json!({})).wanted_of("data");
    assert_eq!(key.as_str(), "kubernetes.io/local-volume/pv-1");
    assert_eq!((id.plugin, id.spec.as_str()), (Plugin::Local, "pv-1"));
    let WantedVolume::Local(local) = wanted.volume else { panic!("{wanted:?}") };
    assert_eq!(
        *local,
        LocalWant {
            path: "/srv/data".into(),
            mount_flags: vec!["noatime".to_owned()],
            access_mode: "ReadWriteOnce".to_owned(),
            read_only: false,
            single_pod: false,
            ownership: None,
        }
    );
}

#[test]
fn a_local_volume_that_could_be_another_is_held() {
    for (source, words) in [
        (json!({"local": {"path": "srv"}}), "is not an absolute path"),
        (json!({"local": {"path": ""}}), "is not an absolute path"),
        (json!({"local": {"path": "/srv/../etc"}}), "has a .."),
        (json!({"volumeMode": "Block"}), "volumeMode"),
        (json!({"local": {"path": "/srv", "fsType": "ntfs"}}), "fsType \"ntfs\""),
        (
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-2"]}
            ]}]}}}),
            "does not name this node: its name is node-1",
        ),
    ] {
        let hold = local(source).hold();
        assert!(hold.detail.contains(words), "{hold:?} does not say {words:?}");
    }
}

#[test]
fn a_device_is_told_from_a_directory_by_its_manifest() {
    for (source, is) in [
        (json!({}), None),
        (json!({"local": {"path": "/dev/disk/by-id/x"}}), Some((None, VolumeMode::Filesystem))),
        (
            json!({"local": {"path": "/mnt/x", "fsType": "xfs"}}),
            Some((Some(FsKind::Xfs), VolumeMode::Filesystem)),
        ),
    ] {
        let found = match local(source.clone()).wanted_of("data").2.volume {
            WantedVolume::Device(device) => Some((device.fs_type, device.volume_mode)),
            _ => None,
        };
        assert_eq!(found, is, "{source}");
    }
    let mut pod = pod(&json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]));
    let container = &mut pod["spec"]["containers"][0];
    container["volumeDevices"] = json!([{"name": "data", "devicePath": "/dev/x"}]);
    container["volumeMounts"] = json!([]);
    let wanted =
        local(json!({"local": {"path": "/mnt/x"}, "volumeMode": "Block"})).add(pod).wanted_of("data").2;
    let WantedVolume::Device(device) = wanted.volume else { panic!("{wanted:?}") };
    assert_eq!(
        (device.volume_mode, device.mount_flags.clone()),
        (VolumeMode::Block, vec!["noatime".to_owned()])
    );
}

#[test]
fn a_device_s_size_and_growth_are_its_manifest_s() {
    let dev = json!({"local": {"path": "/dev/x"}, "capacity": {"storage": "1Gi"}});
    let device = |more: Value| {
        let mut source = dev.clone();
        merge(&mut source, more);
        match local(source).wanted_of("data").2.volume {
            WantedVolume::Device(device) => device,
            other => panic!("{other:?}"),
        }
    };
    let plain = device(json!({}));
    assert_eq!((plain.size.map(|size| size.capacity), plain.source_read_only), (Some(1 << 30), false));
    assert!(device(json!({"mountOptions": ["noatime,ro"]})).source_read_only);
    assert!(device(json!({"accessModes": ["ReadOnlyMany"]})).source_read_only);
}

#[test]
fn readers_of_a_local_volume_change_no_group() {
    let group = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}]);
    for (pod_volumes, modes, changes) in [
        (json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]), "ReadWriteOnce", true),
        (json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]), "ReadOnlyMany", false),
        (group, "ReadWriteOnce", false),
    ] {
        let mut pod = pod(&pod_volumes);
        merge(&mut pod["spec"], json!({"securityContext": {"fsGroup": 4711}}));
        let wanted = local(json!({"accessModes": [modes]})).add(pod).wanted_of("data").2;
        let WantedVolume::Local(local) = wanted.volume else { panic!("{wanted:?}") };
        assert_eq!((local.ownership.is_some(), !local.read_only), (changes, changes), "{modes}");
    }
}
