//! One JSON value -> one typed object, validated; fields that its type does not have are named.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::objects::{Kind, Object, shorten};
use super::validate::{self, Fault};

pub(super) fn typed_object(
    kind: Kind,
    value: &Value,
    unknown: &mut Vec<String>,
    faults: &mut Vec<Fault>,
) -> Result<Object, Fault> {
    Ok(match kind {
        Kind::Pod => {
            let pod: Pod = typed(kind, value, unknown)?;
            validate::pod(&pod, value, faults);
            Object::Pod(Arc::new(pod))
        }
        Kind::Claim => {
            let claim: PersistentVolumeClaim = typed(kind, value, unknown)?;
            validate::claim(&claim, faults);
            Object::Claim(Arc::new(claim))
        }
        Kind::Volume => {
            let volume: PersistentVolume = typed(kind, value, unknown)?;
            validate::volume(&volume, faults);
            Object::Volume(Arc::new(volume))
        }
        Kind::Class => {
            let class: StorageClass = typed(kind, value, unknown)?;
            validate::class(&class, faults);
            Object::Class(Arc::new(class))
        }
        Kind::Secret => {
            let mut secret: Secret = typed(kind, value, unknown)?;
            // As an API server does: stringData is a way to write data, and wins.
            for (key, text) in secret.string_data.take().unwrap_or_default() {
                let bytes = k8s_openapi::ByteString(text.into_bytes());
                secret.data.get_or_insert_default().insert(key, bytes);
            }
            validate::secret(&secret, faults);
            Object::Secret(Arc::new(secret))
        }
        Kind::Driver => {
            let driver: CSIDriver = typed(kind, value, unknown)?;
            validate::driver(&driver, faults);
            Object::Driver(Arc::new(driver))
        }
        Kind::Attachment => {
            let attachment: VolumeAttachment = typed(kind, value, unknown)?;
            validate::attachment(&attachment, faults);
            Object::Attachment(Arc::new(attachment))
        }
    })
}

/// Decodes an object; collects the fields that its type does not have.
fn typed<T: DeserializeOwned>(kind: Kind, value: &Value, unknown: &mut Vec<String>) -> Result<T, Fault> {
    let mut note = |path: serde_ignored::Path<'_>| unknown.push(field_path(&path));
    let decoder = serde_ignored::Deserializer::new(value, &mut note);
    serde_path_to_error::deserialize(decoder).map_err(|error| {
        let field = wrong_path(error.path());
        let detail = match kind {
            // The decoder quotes what it found.
            Kind::Secret => "has a value of the wrong type".to_owned(),
            Kind::Pod | Kind::Claim | Kind::Volume | Kind::Class | Kind::Driver | Kind::Attachment => {
                shorten(&error.inner().to_string())
            }
        };
        Fault::new(field, detail, "correct the field; until then the last good version of the object stays")
    })
}

/// The path to a value of a wrong type; its keys may be anything.
fn wrong_path(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment as S;
    let mut text = String::new();
    for segment in path {
        match segment {
            S::Seq { index } => text.push_str(&format!("[{index}]")),
            S::Map { key: name } | S::Enum { variant: name } => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(&shorten(name));
            }
            S::Unknown => {}
        }
    }
    text
}

/// `spec.volumes[0].nam` rather than serde_ignored's `spec.?.volumes.?.0.nam`.
fn field_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path as P;
    match path {
        P::Root => String::new(),
        P::Seq { parent, index } => format!("{}[{index}]", field_path(parent)),
        P::Map { parent, key } => {
            let parent = field_path(parent);
            let key = shorten(key);
            if parent.is_empty() { key } else { format!("{parent}.{key}") }
        }
        P::Some { parent } | P::NewtypeStruct { parent } | P::NewtypeVariant { parent } => field_path(parent),
    }
}
