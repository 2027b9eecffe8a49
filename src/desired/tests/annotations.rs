//! What a PersistentVolume of a device says in volumed's own annotations.

use crate::model::{DeviceWant, HoldCode, KeySource};

use super::*;

#[expect(clippy::needless_pass_by_value, reason = "written in place")]
fn device(annotations: Value) -> World {
    annotated(&annotations, "/dev/x")
}

fn annotated(annotations: &Value, path: &str) -> World {
    World::with_claim().add(json!({
        "kind": "PersistentVolume", "metadata": {"name": "pv-1", "annotations": annotations},
        "spec": {"local": {"path": path}, "accessModes": ["ReadWriteOnce"]},
    }))
}

fn want(world: &World) -> DeviceWant {
    match world.wanted_of("data").2.volume {
        WantedVolume::Device(device) => *device,
        other => panic!("{other:?}"),
    }
}

fn encrypted(key: &str) -> World {
    device(json!({"volumed.io/encryption": "luks2", "volumed.io/encryption-key": key}))
}

#[test]
fn a_file_system_grows_by_itself_where_that_is_said() {
    assert!(!want(&device(json!({}))).auto_grow);
    assert!(!want(&device(json!({"volumed.io/auto-grow": "false"}))).auto_grow);
    assert!(want(&device(json!({"volumed.io/auto-grow": "true"}))).auto_grow);
    device(json!({"volumed.io/auto-grow": "yes"})).is_held(HoldCode::ObjectInvalid, "auto-grow \"yes\"");
}

#[test]
fn the_key_of_an_encrypted_device_is_a_secret_s_or_a_credential() {
    let plain = want(&device(json!({})));
    assert!(plain.key.is_none() && plain.secrets.reveal().is_empty());
    let of_secret = encrypted("secret/default/s").add(secret("s", json!({"stringData": {"key": "hush"}})));
    let of_secret = want(&of_secret);
    let source = KeySource::Secret { namespace: "default".to_owned(), name: "s".to_owned() };
    assert_eq!(of_secret.key, Some(source));
    assert_eq!(of_secret.secrets.reveal().get("key").map(String::as_str), Some("hush"));
    assert!(!format!("{of_secret:?}").contains("hush"));
    let of_credential = want(&encrypted("credential/disk"));
    assert_eq!(of_credential.key, Some(KeySource::Credential("disk".to_owned())));
}

#[test]
fn an_encryption_that_is_not_clear_is_held() {
    encrypted("secret/default/s").is_held(HoldCode::ObjectMissing, "Secret default/s");
    let empty = secret("s", json!({"stringData": {"password": "hush"}}));
    encrypted("secret/default/s").add(empty).is_held(HoldCode::ObjectInvalid, "has no value \"key\"");
    for key in ["", "s", "secret/s", "secret//s", "credential/", "credential/..", "credential/a/b", "file/x"]
    {
        encrypted(key).is_held(HoldCode::ObjectInvalid, "volumed.io/encryption-key");
    }
    device(json!({"volumed.io/encryption": "luks1"})).is_held(HoldCode::ObjectInvalid, "\"luks1\"");
    device(json!({"volumed.io/encryption-key": "credential/x"}))
        .is_held(HoldCode::ObjectInvalid, "no meaning");
    let directory = json!({"volumed.io/encryption": "luks2", "volumed.io/encryption-key": "credential/x"});
    annotated(&directory, "/srv").is_held(HoldCode::ObjectInvalid, "no meaning here");
}
