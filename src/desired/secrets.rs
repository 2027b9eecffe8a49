//! Secret objects as CSI secrets. Values never leave in a text: a hold names the Secret and the key.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Secret, SecretReference};

use super::hold;
use super::index::Index;
use crate::model::{Hold, ObjectRef, SecretMap};

/// Reads the Secret that a PV's reference names; no reference, no values.
///
/// # Errors
/// The hold, when the reference is incomplete, the Secret is missing or stale, or a value is not UTF-8 (csi.md 2.1).
pub(super) fn referenced(
    index: &Index<'_>,
    reference: Option<&SecretReference>,
    volume: &str,
    field: &str,
) -> Result<Arc<SecretMap>, Hold> {
    let Some(reference) = reference else { return Ok(Arc::default()) };
    let part = |p: &Option<String>, what: &str| {
        p.clone().filter(|p| !p.is_empty()).ok_or_else(|| {
            hold::invalid(
                format!("PersistentVolume {volume}: spec.csi.{field}.{what} is empty"),
                format!("write both namespace and name of the Secret, or remove {field}"),
            )
        })
    };
    let name = (part(&reference.namespace, "namespace")?, part(&reference.name, "name")?);
    read(index, name, &format!("PersistentVolume {volume} ({field})"))
}

/// Reads a Secret.
///
/// # Errors
/// The hold, when it is missing or stale, or a value is not UTF-8.
pub(super) fn read(index: &Index<'_>, name: (String, String), by: &str) -> Result<Arc<SecretMap>, Hold> {
    let found = index.secret(&name);
    if let Some(known) = index.secrets.borrow().get(&name) {
        return known.clone();
    }
    let object = ObjectRef::new("Secret", &name.0, &name.1);
    let values = match found {
        // Not remembered: the text names who needs it.
        None => return Err(hold::missing(&object, by)),
        Some(secret) => match hold::stale(&object, secret) {
            Some(hold) => Err(hold),
            None => values(&object, &secret.object),
        },
    };
    index.secrets.borrow_mut().insert(name, values.clone());
    values
}

/// Returns `data` with `stringData` over it, as the API server merges them.
fn values(object: &ObjectRef, secret: &Secret) -> Result<Arc<SecretMap>, Hold> {
    let mut values = BTreeMap::new();
    for (key, value) in secret.data.iter().flatten() {
        let value = String::from_utf8(value.0.clone()).map_err(|_| {
            hold::invalid(
                format!("{object}: data.{key} is not UTF-8, which CSI secrets must be"),
                format!("write data.{key} as base64 of UTF-8 text, or as stringData"),
            )
        })?;
        values.insert(key.clone(), value);
    }
    values.extend(secret.string_data.iter().flatten().map(|(k, v)| (k.clone(), v.clone())));
    Ok(Arc::new(SecretMap::new(values)))
}
