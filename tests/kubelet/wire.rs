//! Requests in the JSON form of protobuf, in which the recordings have them: fields at their default are left out.

use serde_json::{Map, Value, json};
use volumed::proto::csi;
use volumed::proto::csi::volume_capability::{AccessType, access_mode};

/// `NodeStageVolumeRequest`
pub fn stage(request: &csi::NodeStageVolumeRequest) -> Value {
    let csi::NodeStageVolumeRequest {
        volume_id,
        publish_context,
        staging_target_path,
        volume_capability,
        secrets,
        volume_context,
    } = request;
    object([
        ("volumeId", json!(volume_id)),
        ("publishContext", json!(publish_context)),
        ("stagingTargetPath", json!(staging_target_path)),
        ("volumeCapability", capability(volume_capability.as_ref())),
        ("secrets", json!(secrets)),
        ("volumeContext", json!(volume_context)),
    ])
}

/// `NodeUnstageVolumeRequest`
pub fn unstage(request: &csi::NodeUnstageVolumeRequest) -> Value {
    let csi::NodeUnstageVolumeRequest { volume_id, staging_target_path } = request;
    object([("volumeId", json!(volume_id)), ("stagingTargetPath", json!(staging_target_path))])
}

/// `NodePublishVolumeRequest`
pub fn publish(request: &csi::NodePublishVolumeRequest) -> Value {
    let csi::NodePublishVolumeRequest {
        volume_id,
        publish_context,
        staging_target_path,
        target_path,
        volume_capability,
        readonly,
        secrets,
        volume_context,
    } = request;
    object([
        ("volumeId", json!(volume_id)),
        ("publishContext", json!(publish_context)),
        ("stagingTargetPath", json!(staging_target_path)),
        ("targetPath", json!(target_path)),
        ("volumeCapability", capability(volume_capability.as_ref())),
        ("readonly", json!(readonly)),
        ("secrets", json!(secrets)),
        ("volumeContext", json!(volume_context)),
    ])
}

/// `NodeUnpublishVolumeRequest`
pub fn unpublish(request: &csi::NodeUnpublishVolumeRequest) -> Value {
    let csi::NodeUnpublishVolumeRequest { volume_id, target_path } = request;
    object([("volumeId", json!(volume_id)), ("targetPath", json!(target_path))])
}

/// `NodeExpandVolumeRequest`
pub fn expand(request: &csi::NodeExpandVolumeRequest) -> Value {
    let csi::NodeExpandVolumeRequest {
        volume_id,
        volume_path,
        capacity_range,
        staging_target_path,
        volume_capability,
        secrets,
    } = request;
    // protobuf's JSON writes 64 bits as text.
    let range = capacity_range.as_ref().map(|range| {
        let bytes = |bytes: i64| if bytes == 0 { Value::Null } else { json!(bytes.to_string()) };
        let (required, limit) = (bytes(range.required_bytes), bytes(range.limit_bytes));
        object([("requiredBytes", required), ("limitBytes", limit)])
    });
    object([
        ("volumeId", json!(volume_id)),
        ("volumePath", json!(volume_path)),
        ("capacityRange", json!(range)),
        ("stagingTargetPath", json!(staging_target_path)),
        ("volumeCapability", capability(volume_capability.as_ref())),
        ("secrets", json!(secrets)),
    ])
}

fn capability(capability: Option<&csi::VolumeCapability>) -> Value {
    let Some(csi::VolumeCapability { access_mode, access_type }) = capability else { return Value::Null };
    let mut fields = Map::new();
    match access_type {
        None => {}
        // A message that is set is there even when all its fields are at their default.
        Some(AccessType::Block(csi::volume_capability::BlockVolume {})) => {
            fields.insert("block".to_owned(), json!({}));
        }
        Some(AccessType::Mount(mount)) => {
            let csi::volume_capability::MountVolume { fs_type, mount_flags, volume_mount_group } = mount;
            let mount = object([
                ("fsType", json!(fs_type)),
                ("mountFlags", json!(mount_flags)),
                ("volumeMountGroup", json!(volume_mount_group)),
            ]);
            fields.insert("mount".to_owned(), mount);
        }
    }
    if let Some(mode) = access_mode {
        let mode = access_mode::Mode::try_from(mode.mode).expect("a known access mode");
        fields.insert("accessMode".to_owned(), json!({"mode": mode.as_str_name()}));
    }
    Value::Object(fields)
}

fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let is_default = |value: &Value| match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Number(_) => false,
    };
    let set = fields.into_iter().filter(|(_, value)| !is_default(value));
    Value::Object(set.map(|(name, value)| (name.to_owned(), value)).collect())
}
