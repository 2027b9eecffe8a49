//! Claims and the PVs behind them.

use crate::model::{HoldCode, Lifecycle, LinkState};

use super::*;

#[test]
fn a_claim_becomes_its_pv_at_the_kubelets_place() {
    let world = World::with_claim().add(pv(
        "pv-1",
        json!({"spec": {"mountOptions": ["noatime", "noatime"], "csi": {"fsType": "xfs", "readOnly": true,
            "volumeAttributes": {"pool": "fast"}}}}),
    ));
    let (key, id, wanted) = world.wanted_of("data");
    assert_eq!(key.as_str(), "kubernetes.io/csi/d.example^handle-pv-1");
    assert_eq!(id.to_string(), format!("{UID}/kubernetes.io~csi/pv-1"));
    assert_eq!(wanted.pod.to_string(), "pod/default/web");
    assert_eq!(wanted.names, ["data".to_owned()].into());
    assert_eq!(wanted.claim, Some(ObjectRef::new("PersistentVolumeClaim", "default", "data")));
    assert_eq!(wanted.manifest, Some(PathBuf::from("/m/Pod.yaml")));
    let csi = world.csi();
    assert_eq!((csi.fs_type.as_str(), csi.access_mode.as_str()), ("xfs", "ReadWriteOnce"));
    assert_eq!(csi.mount_flags, ["noatime", "noatime"]);
    assert_eq!(csi.volume_context, BTreeMap::from([("pool".to_owned(), "fast".to_owned())]));
    // The PV's readOnly does not count on a node (csi.md 2.10).
    assert!(!csi.read_only);
    assert_eq!((csi.lifecycle, csi.pod_info), (Lifecycle::Persistent, None));
    let volume = &world.pod().volumes["data"];
    assert_eq!(volume.capacity, Some(1 << 30));
    assert_eq!(volume.access_mode.as_deref(), Some("ReadWriteOnce"));
    let links: Vec<_> = volume.links.iter().map(|l| (l.step.as_str(), l.state, l.detail.as_str())).collect();
    assert_eq!(
        links,
        [("manifest", LinkState::Good, "/m/Pod.yaml:7"), ("claim", LinkState::Good, "bound to pv pv-1")]
    );
}

#[test]
fn read_only_is_the_pods() {
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}]);
    assert!(World::with_claim().add(pod(&volumes)).csi().read_only);
}

#[test]
fn a_pv_that_names_the_claim_is_enough() {
    let reserved = pv("pv-1", json!({"spec": {"claimRef": {"namespace": "default", "name": "data"}}}));
    let world = World::with_claim().add(claim(json!({}))).add(reserved);
    assert_eq!(world.csi().handle, "handle-pv-1");
}

#[test]
fn the_claim_refs_uid_must_be_the_claims_if_it_has_one() {
    let uid = |uid: &str| {
        let mut claim = claim(json!({"volumeName": "pv-1"}));
        merge(&mut claim, json!({"metadata": {"uid": uid}}));
        claim
    };
    let reserved =
        pv("pv-1", json!({"spec": {"claimRef": {"namespace": "default", "name": "data", "uid": "u1"}}}));
    assert_eq!(World::with_claim().add(reserved.clone()).csi().handle, "handle-pv-1");
    assert_eq!(World::with_claim().add(reserved.clone()).add(uid("u1")).csi().handle, "handle-pv-1");
    World::with_claim().add(reserved).add(uid("u2")).is_held(HoldCode::ObjectInvalid, "UIDs differ");
}

#[test]
fn of_two_pvs_that_name_a_claim_the_uid_decides() {
    let reserved = |name: &str, uid: &str| {
        pv(name, json!({"spec": {"claimRef": {"namespace": "default", "name": "data", "uid": uid}}}))
    };
    let mut mine = claim(json!({}));
    merge(&mut mine, json!({"metadata": {"uid": "u2"}}));
    let world = World::with_claim().add(reserved("pv-1", "u1")).add(reserved("pv-2", "u2"));
    assert_eq!(world.add(mine).csi().handle, "handle-pv-2");
    let world = World::with_claim().add(reserved("pv-1", "")).add(reserved("pv-2", "")).add(claim(json!({})));
    world.is_held(HoldCode::ObjectInvalid, "pv-1, pv-2");
}

#[test]
fn a_pv_of_another_claim_is_held_with_both_names() {
    let other = pv("pv-1", json!({"spec": {"claimRef": {"namespace": "db", "name": "other"}}}));
    let hold = World::with_claim().add(other).hold();
    assert!(hold.detail.contains("db/other") && hold.detail.contains("default/data"), "{hold:?}");
}

#[test]
fn two_claims_that_name_one_pv_are_both_held() {
    let mut second = claim(json!({"volumeName": "pv-1"}));
    merge(&mut second, json!({"metadata": {"name": "second"}}));
    let hold = World::with_claim().add(second).hold();
    assert!(hold.detail.contains("default/data and PersistentVolumeClaim default/second"), "{hold:?}");
}

#[test]
fn an_unbound_claim_says_what_to_write() {
    let world = World::with_claim().add(claim(json!({"storageClassName": "fast",
        "resources": {"requests": {"storage": "5Gi"}}})));
    world.is_held(HoldCode::ClaimUnbound, "StorageClass fast");
    assert!(world.hold().remedy.contains("spec.volumeName"));
    let volume = &world.pod().volumes["data"];
    assert_eq!(volume.capacity, Some(5 << 30));
    assert_eq!(volume.links[1].state, LinkState::Failed);
}

#[test]
fn a_missing_claim_or_pv_holds() {
    let mut world = World::with_claim();
    world.objects().volumes.clear();
    world.is_held(HoldCode::ObjectMissing, "PersistentVolume pv-1");
    world.objects().claims.clear();
    world.is_held(HoldCode::ObjectMissing, "PersistentVolumeClaim default/data");
}

#[test]
fn a_claim_being_deleted_holds_unless_it_is_protected() {
    let deleted = |finalizers: Value| {
        let mut claim = claim(json!({"volumeName": "pv-1"}));
        merge(
            &mut claim,
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers}}),
        );
        World::with_claim().add(claim)
    };
    deleted(json!([])).is_held(HoldCode::ObjectInvalid, "being deleted");
    assert_eq!(deleted(json!(["kubernetes.io/pvc-protection"])).csi().handle, "handle-pv-1");
}

#[test]
fn two_volumes_of_one_claim_are_one_with_both_names() {
    let volumes = json!([
        {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "b", "persistentVolumeClaim": {"claimName": "data"}},
    ]);
    let world = World::with_claim().add(pod(&volumes));
    let (a, b) = (world.wanted_of("a"), world.wanted_of("b"));
    assert_eq!(a, b);
    assert_eq!(a.2.names, ["a".to_owned(), "b".to_owned()].into());
}

#[test]
fn two_different_volumes_at_one_place_are_both_held() {
    let volumes = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "pv-1", "csi": {"driver": "d.example"}},
        {"name": "scratch", "emptyDir": {}},
    ]);
    let both = driver(json!({"volumeLifecycleModes": ["Persistent", "Ephemeral"]}));
    let world = World::with_claim().add(pod(&volumes)).add(both);
    assert!(world.hold().detail.contains("data and pv-1"));
    assert_eq!(world.hold_of("pv-1"), world.hold());
    world.wanted_of("scratch");
}

#[test]
fn of_two_pvs_with_one_handle_the_first_by_name_is_used() {
    let same = json!({"spec": {"csi": {"volumeHandle": "same"}}});
    let world = World::with_claim().add(pv("pv-1", same.clone())).add(pv("pv-2", same.clone()));
    assert_eq!(world.csi().handle, "same");
    let problems = world.resolved().problems;
    assert_eq!(problems.len(), 1);
    assert!(problems[0].to_string().contains("pv-2") && problems[0].to_string().contains("pv-1"));
    let hold = world.add(pv("pv-0", same)).hold();
    assert_eq!(hold.code, HoldCode::ObjectInvalid);
    assert!(hold.detail.contains("pv-0") && hold.detail.contains("pv-1"), "{hold:?}");
}
