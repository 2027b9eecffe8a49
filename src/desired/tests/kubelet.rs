//! The objects of recording `j`, and what a real kubelet asked of the drivers because of them.

use std::path::Path;

use crate::model::{FsGroup, Ownership, SizeWant, VolumeMode};

use super::*;

fn recorded(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kubelet-1.36/j").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Everything that the API server had, on the node that was recorded.
fn api_server() -> World {
    let lists: BTreeMap<String, Vec<Value>> =
        serde_json::from_str(&recorded("running/objects.json")).unwrap();
    let known =
        ["Pod", "PersistentVolumeClaim", "PersistentVolume", "Secret", "CSIDriver", "VolumeAttachment"];
    let mut world = World::default();
    for mut object in lists.into_values().flatten() {
        if object["kind"] == "VolumeAttachment" {
            object["spec"]["nodeName"] = json!("node-1");
        }
        if object["kind"] == "Pod" {
            object["metadata"]["uid"] = json!(UID);
        }
        if known.iter().any(|kind| object["kind"] == *kind) {
            world = world.add(object);
        }
    }
    world.token("default", "", "/t/api").token("default", "aud1", "/t/aud1")
}

/// The first request of a method about a volume.
fn request(driver: &str, method: &str, volume: &str) -> Value {
    let log = recorded(&format!("driver-{driver}.kvd.example.com.jsonl"));
    let mut calls = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let call = calls.find(|call| call["m"] == method && call["req"]["volumeId"] == volume);
    call.unwrap_or_else(|| panic!("no {method} of {volume}"))["req"].take()
}

fn csi(world: &World, name: &str) -> CsiWant {
    match world.wanted_of(name).2.volume {
        WantedVolume::Csi(csi) => *csi,
        other => panic!("{other:?}"),
    }
}

#[test]
fn stage_and_publish_get_what_a_kubelet_sent() {
    let world = api_server();
    for (name, driver, staged) in [
        ("rwo", "a", true),
        ("rwop", "a", true),
        ("ablk", "a", true),
        ("rwx", "b", true),
        ("rox", "b", true),
        ("cc", "c", true),
        ("inl", "b", false),
    ] {
        let csi = csi(&world, name);
        let mut handle = csi.handle.clone();
        if name == "inl" {
            // A hash of the pod's UID, which is another one here.
            "csi-88edf0d9c3a6fa607706ca0bace39627951e150e6f050b62d71d3ca321c72bd1".clone_into(&mut handle);
        }
        let publish = request(driver, "NodePublishVolume", &handle);
        let capability = &publish["volumeCapability"];
        assert_eq!(capability["block"].is_object(), csi.volume_mode == VolumeMode::Block, "{name}");
        assert_eq!(capability["mount"]["fsType"].as_str().unwrap_or_default(), csi.fs_type, "{name}");
        let flags = capability["mount"]["mountFlags"].as_array().cloned().unwrap_or_default();
        assert_eq!(json!(flags), json!(csi.mount_flags), "{name}");
        assert_eq!(publish["readonly"] == true, csi.read_only, "{name}");
        // Driver b is handed the group, the others leave it to the kubelet.
        if driver == "b" {
            let group = csi.fs_group.map(|group| group.ownership.group.to_string());
            assert_eq!(capability["mount"]["volumeMountGroup"].as_str(), group.as_deref(), "{name}");
        }
        let context = publish["volumeContext"].as_object().cloned().unwrap_or_default();
        assert_eq!(
            context.contains_key("csi.storage.k8s.io/serviceAccount.tokens"),
            csi.tokens.is_some(),
            "{name}"
        );
        assert_eq!(context.contains_key("csi.storage.k8s.io/pod.uid"), csi.pod_info.is_some(), "{name}");
        let secrets = |request: &Value| request["secrets"].as_object().cloned().unwrap_or_default();
        assert_eq!(json!(secrets(&publish)), json!(csi.publish_secrets.reveal()), "{name}");
        if staged {
            let stage = request(driver, "NodeStageVolume", &handle);
            assert_eq!(stage["volumeCapability"], *capability, "{name}");
            assert_eq!(json!(secrets(&stage)), json!(csi.stage_secrets.reveal()), "{name}");
        }
    }
}

#[test]
fn the_group_is_changed_where_a_kubelet_changed_it() {
    let world = api_server();
    let group =
        |change| Some(FsGroup { ownership: Ownership { group: 2000, on_root_mismatch: true }, change });
    assert_eq!(csi(&world, "rwo").fs_group, group(true));
    assert_eq!(csi(&world, "cc").fs_group, group(true));
    assert_eq!(csi(&world, "rox").fs_group, group(false));
    assert_eq!(csi(&world, "ablk").fs_group, None);
    assert!(csi(&world, "rwop").single_pod && csi(&world, "rox").source_read_only);
    assert!(csi(&world, "rwo").republish && csi(&world, "ablk").republish && !csi(&world, "rwx").republish);
}

#[test]
fn a_volume_grows_to_what_a_kubelet_asked_for() {
    let mut world = api_server();
    let claim = world.manifests.objects.claims[&("default".to_owned(), "rwo".to_owned())].object.clone();
    let mut before = serde_json::to_value(&*claim).unwrap();
    before["status"]["capacity"]["storage"] = json!("1Mi");
    world = world.add(before);
    let csi = csi(&world, "rwo");
    let size = csi.size.unwrap();
    // The NodeExpandVolume that it sent of a-rwo; the copy of `j` here leaves that call out.
    assert_eq!(size, SizeWant { capacity: 4_194_304, claimed: Some(1 << 20), every_node: false });
    assert_eq!(csi.expand_secrets.reveal(), &BTreeMap::from([("k-expand".to_owned(), "value".to_owned())]));
    let settled = self::csi(&api_server(), "rwx").size.unwrap();
    assert_eq!(settled.claimed, Some(settled.capacity));
}
