//! Secrets, and objects that are stale or broken.

use crate::model::{HoldCode, LinkState};

use super::*;

fn with_secret(field: &str) -> World {
    let reference = json!({"spec": {"csi": {field: {"namespace": "default", "name": "s"}}}});
    World::with_claim().add(pv("pv-1", reference))
}

#[test]
fn secrets_reach_the_call_they_are_for() {
    let s = secret("s", json!({"data": {"user": "Ym9i", "key": "b2xk"}, "stringData": {"key": "new"}}));
    let expected =
        BTreeMap::from([("user".to_owned(), "bob".to_owned()), ("key".to_owned(), "new".to_owned())]);
    let stage = with_secret("nodeStageSecretRef").add(s.clone()).csi();
    assert_eq!(stage.stage_secrets.reveal(), &expected);
    assert!(stage.publish_secrets.reveal().is_empty());
    let publish = with_secret("nodePublishSecretRef").add(s.clone()).csi();
    assert_eq!(publish.publish_secrets.reveal(), &expected);
    assert!(publish.stage_secrets.reveal().is_empty());
    let expand = with_secret("nodeExpandSecretRef").add(s.clone()).csi();
    assert_eq!(expand.expand_secrets.reveal(), &expected);
    assert!(expand.stage_secrets.reveal().is_empty() && expand.publish_secrets.reveal().is_empty());
    let inline =
        World::with_source(json!({"csi": {"driver": "d.example", "nodePublishSecretRef": {"name": "s"}}}));
    let inline = inline.add(inline_driver(json!({}))).add(s).csi();
    assert_eq!(inline.publish_secrets.reveal(), &expected);
}

#[test]
fn a_missing_or_incomplete_secret_reference_holds() {
    with_secret("nodeStageSecretRef").is_held(HoldCode::ObjectMissing, "Secret default/s");
    with_secret("nodeExpandSecretRef").is_held(HoldCode::ObjectMissing, "pv-1 (nodeExpandSecretRef)");
    let elsewhere = secret("s", json!({"metadata": {"namespace": "other"}}));
    with_secret("nodePublishSecretRef").add(elsewhere).is_held(HoldCode::ObjectMissing, "Secret default/s");
    let half = pv("pv-1", json!({"spec": {"csi": {"nodeStageSecretRef": {"name": "s"}}}}));
    World::with_claim().add(half).is_held(HoldCode::ObjectInvalid, "nodeStageSecretRef.namespace");
}

#[test]
fn a_secret_that_is_not_text_names_the_key_and_never_the_value() {
    // base64 of "hunter2" and 0xff.
    let s = secret("s", json!({"data": {"pass": "aHVudGVyMv8="}}));
    let world = with_secret("nodeStageSecretRef").add(s);
    world.is_held(HoldCode::ObjectInvalid, "data.pass");
    assert!(!format!("{:?}", world.hold()).contains("hunter2"));
}

#[test]
fn a_stale_pod_is_held_with_all_its_volumes() {
    let world = World::with_claim().stale().add(claim_pod(json!({})));
    let pod = world.pod();
    assert!(pod.held.as_ref().unwrap().detail.contains("does not parse any more"));
    assert_eq!(world.hold(), pod.held.unwrap());
    assert_eq!(pod.volumes["data"].links[0].state, LinkState::Failed);
}

#[test]
fn a_volume_that_needs_a_stale_object_is_held() {
    World::with_claim()
        .stale()
        .add(claim(json!({"volumeName": "pv-1"})))
        .is_held(HoldCode::ObjectInvalid, "Claim default/data: does not parse");
    World::with_claim()
        .stale()
        .add(pv("pv-1", json!({})))
        .is_held(HoldCode::ObjectInvalid, "Volume pv-1: does not parse");
    World::with_claim()
        .stale()
        .add(driver(json!({})))
        .is_held(HoldCode::ObjectInvalid, "CSIDriver d.example: does not parse");
    World::with_claim()
        .stale()
        .add(attachment(json!({})))
        .is_held(HoldCode::ObjectInvalid, "Attachment va: does not parse");
    with_secret("nodeStageSecretRef")
        .stale()
        .add(secret("s", json!({})))
        .is_held(HoldCode::ObjectInvalid, "Secret default/s: does not parse");
}

#[test]
fn a_broken_pod_is_there_held_and_without_volumes() {
    let mut world = World::default();
    let problem = Problem {
        path: "/m/web.yaml".into(),
        position: Some((3, 5)),
        object: None,
        field: Some("spec.volumes".to_owned()),
        detail: "is a string".to_owned(),
        remedy: "write a list".to_owned(),
        warning: false,
    };
    let name = ObjectRef::new("Pod", "default", "web");
    world.objects().broken_pods.insert(PodUid::new(UID).unwrap(), (name, problem));
    let pod = world.pod();
    let hold = pod.held.unwrap();
    assert_eq!(hold.detail, "Pod default/web: /m/web.yaml:3:5: spec.volumes: is a string");
    assert_eq!(hold.remedy, "write a list");
    assert!(pod.volumes.is_empty() && !pod.leaving);
    assert_eq!(pod.identity.to_string(), "pod/default/web");
}

#[test]
fn a_pod_with_a_deletion_timestamp_is_leaving() {
    assert!(!World::with_claim().pod().leaving);
    let leaving = claim_pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    assert!(World::with_claim().add(leaving).pod().leaving);
}
