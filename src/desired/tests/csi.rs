//! What PVs, inline sources, CSIDriver and VolumeAttachment say of a CSI volume.

use crate::model::{Attach, HoldCode, Lifecycle};

use super::*;

#[test]
fn an_inline_volume_has_the_kubelets_handle_and_key() {
    let source = json!({"csi": {"driver": "d.example", "fsType": "ext4", "readOnly": true,
        "volumeAttributes": {"size": "1Gi"}}});
    let world = World::with_source(source).add(inline_driver(json!({})));
    let (key, id, _) = world.wanted_of("data");
    assert_eq!(key.as_str(), format!("kubernetes.io/csi/{UID}-data"));
    assert_eq!(id.spec.as_str(), "data");
    let csi = world.csi();
    // printf '%s' 11111111-2222-3333-4444-555555555555data | sha256sum
    assert_eq!(csi.handle, "csi-e0e2b75806e876d63a85957d2797336825a703651cde295266d20131a0117810");
    assert_eq!(
        (csi.lifecycle, &csi.attach, csi.read_only),
        (Lifecycle::Ephemeral, &Attach::NotRequired, true)
    );
    assert_eq!((csi.fs_type.as_str(), csi.access_mode.as_str()), ("ext4", "ReadWriteOnce"));
    assert_eq!(csi.volume_context, BTreeMap::from([("size".to_owned(), "1Gi".to_owned())]));
    assert!(csi.mount_flags.is_empty());
}

#[test]
fn an_inline_volume_needs_a_driver_object_that_lists_ephemeral() {
    let inline = || World::with_source(json!({"csi": {"driver": "d.example"}}));
    inline().is_held(HoldCode::ObjectMissing, "CSIDriver d.example");
    inline().add(driver(json!({}))).is_held(HoldCode::ObjectInvalid, "does not list Ephemeral");
    inline()
        .add(driver(json!({"volumeLifecycleModes": ["Persistent"]})))
        .is_held(HoldCode::ObjectInvalid, "Ephemeral");
}

#[test]
fn a_pv_needs_no_driver_object_but_one_for_ephemeral_only_holds_it() {
    World::with_claim().csi();
    World::with_claim().add(driver(json!({}))).csi();
    World::with_claim()
        .add(inline_driver(json!({})))
        .is_held(HoldCode::ObjectInvalid, "does not list Persistent");
}

#[test]
fn pod_info_is_given_only_when_the_driver_asks() {
    assert_eq!(World::with_claim().add(driver(json!({"podInfoOnMount": false}))).csi().pod_info, None);
    let world = World::with_claim().add(driver(json!({"podInfoOnMount": true})));
    assert_eq!(world.csi().pod_info.unwrap().service_account, "default");
    let world = world.add(claim_pod(json!({"spec": {"serviceAccountName": "robot"}})));
    assert_eq!(world.csi().pod_info.unwrap().service_account, "robot");
}

#[test]
fn attachment_follows_the_driver_object_and_the_attachment_of_this_node() {
    let attached = Attach::Attached(BTreeMap::from([("lun".to_owned(), "3".to_owned())]));
    let of = |spec: Option<Value>, va: Option<Value>| {
        let mut world = World::with_claim();
        if let Some(spec) = spec {
            world = world.add(driver(spec));
        }
        if let Some(change) = va {
            world = world.add(attachment(change));
        }
        world.csi().attach
    };
    let required = |yes: bool| Some(json!({"attachRequired": yes}));
    let here = || Some(json!({}));
    assert_eq!(of(required(false), here()), Attach::NotRequired);
    assert_eq!(of(required(true), here()), attached);
    assert_eq!(of(None, here()), attached);
    assert_eq!(of(required(true), None), Attach::Missing);
    assert_eq!(of(Some(json!({})), None), Attach::MissingIfGated);
    assert_eq!(of(None, None), Attach::MissingIfGated);
    assert_eq!(of(required(true), Some(json!({"spec": {"nodeName": "node-2"}}))), Attach::Missing);
    assert_eq!(of(required(true), Some(json!({"spec": {"attacher": "other"}}))), Attach::Missing);
    assert_eq!(of(required(true), Some(json!({"status": {"attached": false}}))), Attach::Missing);
    let other = Some(json!({"spec": {"source": {"persistentVolumeName": "pv-2"}}}));
    assert_eq!(of(required(true), other), Attach::Missing);
}

#[test]
fn a_context_mount_is_not_supported_yet() {
    let label = json!({"spec": {"securityContext": {"seLinuxOptions": {"level": "s0:c1"}}}});
    let once = |mode: &str, pod: Value| {
        World::with_claim()
            .add(driver(json!({"seLinuxMount": true})))
            .add(pv("pv-1", json!({"spec": {"accessModes": [mode]}})))
            .add(claim_pod(pod))
    };
    once("ReadWriteOncePod", label.clone()).is_held(HoldCode::NotSupported, "seLinuxMount");
    once("ReadWriteOncePod", json!({})).csi();
    once("ReadWriteOnce", label.clone()).csi();
    let mut recursive = label;
    merge(&mut recursive, json!({"spec": {"securityContext": {"seLinuxChangePolicy": "Recursive"}}}));
    once("ReadWriteOncePod", recursive).csi();
}

#[test]
fn names_that_could_leave_their_directory_are_held() {
    let bad = pv("pv-1", json!({"spec": {"csi": {"driver": "../evil"}}}));
    World::with_claim().add(bad).is_held(HoldCode::ObjectInvalid, "driver name");
    World::with_claim()
        .add(pv("pv-1", json!({"spec": {"csi": {"volumeHandle": ""}}})))
        .is_held(HoldCode::ObjectInvalid, "volumeHandle");
    let volumes = json!([{"name": "../../etc", "emptyDir": {}}]);
    let world = World::default().add(pod(&volumes));
    assert!(world.hold_of("../../etc").detail.contains("has a '/'"));
}

#[test]
fn a_publication_is_repeated_only_when_the_driver_asks() {
    let inline = |change: Value| {
        World::with_source(json!({"csi": {"driver": "d.example"}})).add(inline_driver(change)).csi().republish
    };
    assert!(!World::with_claim().csi().republish);
    assert!(!World::with_claim().add(driver(json!({"requiresRepublish": false}))).csi().republish);
    assert!(World::with_claim().add(driver(json!({"requiresRepublish": true}))).csi().republish);
    assert!(inline(json!({"requiresRepublish": true})) && !inline(json!({})));
}

#[test]
fn mount_options_are_the_pvs_field_and_never_the_annotation_of_old() {
    let annotated = json!({"metadata": {"annotations": {"volume.beta.kubernetes.io/mount-options": "ro"}},
        "spec": {"mountOptions": ["z", "a", "z", ""]}});
    assert_eq!(World::with_claim().add(pv("pv-1", annotated)).csi().mount_flags, ["z", "a", "z", ""]);
}

#[test]
fn no_lifecycle_modes_mean_persistent_and_both_may_be_listed() {
    let inline = || World::with_source(json!({"csi": {"driver": "d.example"}}));
    let listing = |modes: Value| driver(json!({"volumeLifecycleModes": modes}));
    World::with_claim().add(listing(json!([]))).csi();
    inline().add(listing(json!([]))).is_held(HoldCode::ObjectInvalid, "does not list Ephemeral");
    World::with_claim().add(listing(json!(["Ephemeral", "Persistent"]))).csi();
    inline().add(listing(json!(["Persistent", "Ephemeral"]))).csi();
    assert!(World::with_claim().add(listing(json!(["Ephemeral"]))).hold().remedy.contains("add Persistent"));
}
