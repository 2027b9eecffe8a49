//! CSIDriver.tokenRequests and the files that the configuration names.

use crate::model::{HoldCode, TokenRequests};

use super::*;

fn asking(requests: &Value) -> World {
    World::with_claim().add(driver(json!({"tokenRequests": requests})))
}

#[test]
fn a_driver_that_asks_for_no_token_gets_none() {
    assert_eq!(World::with_claim().csi().tokens, None);
    assert_eq!(asking(&json!([])).csi().tokens, None);
    assert_eq!(World::with_claim().token("default", "x", "/t").csi().tokens, None);
}

#[test]
fn each_audience_has_the_file_of_the_pods_service_account() {
    let world = asking(&json!([{"audience": "x", "expirationSeconds": 600}, {"audience": ""}]))
        .token("robot", "x", "/t/x")
        .token("robot", "", "/t/api")
        .token("default", "x", "/t/other");
    let world = world.add(claim_pod(json!({"spec": {"serviceAccountName": "robot"}})));
    let files =
        BTreeMap::from([("x".to_owned(), ("/t/x".into(), 600)), (String::new(), ("/t/api".into(), 3600))]);
    assert_eq!(world.csi().tokens, Some(TokenRequests { in_secrets: false, files }));
}

#[test]
fn tokens_go_into_the_secrets_when_the_driver_says_so() {
    let spec = json!({"tokenRequests": [{"audience": "x"}], "serviceAccountTokenInSecrets": true});
    let world = World::with_claim().add(driver(spec)).token("default", "x", "/t");
    assert!(world.csi().tokens.unwrap().in_secrets);
}

#[test]
fn an_inline_volume_gets_tokens_too() {
    let world = World::with_source(json!({"csi": {"driver": "d.example"}}))
        .add(inline_driver(json!({"tokenRequests": [{"audience": "x"}]})));
    world.is_held(HoldCode::NotSupported, "audience \"x\"");
    assert_eq!(world.token("default", "x", "/t").csi().tokens.unwrap().files.len(), 1);
}

#[test]
fn an_audience_without_a_file_is_held_and_says_what_to_configure() {
    let world = asking(&json!([{"audience": "x"}, {"audience": "y"}, {"audience": ""}]))
        .token("default", "x", "/t")
        .token("other", "y", "/t");
    world.is_held(
        HoldCode::NotSupported,
        "CSIDriver d.example: spec.tokenRequests: there is no token issuer here",
    );
    let hold = world.hold();
    assert!(hold.detail.contains("default/default for audience \"y\", \"\""), "{hold:?}");
    let entry = "[[tokens]] with service-account = \"default/default\", audience = \"y\" and file = ";
    assert!(hold.remedy.contains(entry), "{hold:?}");
}

#[test]
fn requests_without_meaning_are_held() {
    let with = |requests: Value| asking(&requests).token("default", "x", "/t");
    with(json!([{"audience": "x", "expirationSeconds": 0}]))
        .is_held(HoldCode::ObjectInvalid, "spec.tokenRequests[0].expirationSeconds 0");
    with(json!([{"audience": "x"}, {"audience": "x"}]))
        .is_held(HoldCode::ObjectInvalid, "spec.tokenRequests[1].audience \"x\"");
}
