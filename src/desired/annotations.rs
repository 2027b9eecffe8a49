//! What a PersistentVolume of a device says in annotations of volumed's own: no kubelet has it.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolume;

use super::index::Index;
use super::{hold, secrets};
use crate::model::{Hold, KeySource, SecretMap};

/// Lets the file system grow as soon as the device does.
const AUTO_GROW: &str = "volumed.io/auto-grow";

/// Encrypts the device at rest: `luks2`.
const ENCRYPTION: &str = "volumed.io/encryption";

/// Where the key comes from: `secret/NAMESPACE/NAME` (its value `key`), or `credential/NAME` (systemd's).
const KEY: &str = "volumed.io/encryption-key";

/// The value of a Secret that is the key.
pub(super) const VALUE: &str = "key";

/// Whether the file system grows by itself.
///
/// # Errors
/// The hold, when the annotation has no meaning.
pub(super) fn auto_grow(volume: &str, object: &PersistentVolume) -> Result<bool, Hold> {
    match annotation(object, AUTO_GROW) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(other) => {
            Err(meaningless(volume, AUTO_GROW, other, "write \"true\" or \"false\", with the quotes"))
        }
    }
}

/// Returns where the key of an encrypted device comes from, and the Secret that has it.
///
/// # Errors
/// The hold, when an annotation has no meaning, or the Secret is missing or has no key.
pub(super) fn key(
    index: &Index<'_>,
    volume: &str,
    object: &PersistentVolume,
) -> Result<Option<(KeySource, Arc<SecretMap>)>, Hold> {
    match annotation(object, ENCRYPTION) {
        None => {
            return match annotation(object, KEY) {
                None => Ok(None),
                Some(key) => {
                    let remedy = format!("add {ENCRYPTION}: luks2, or remove it");
                    Err(meaningless(volume, KEY, key, &remedy))
                }
            };
        }
        Some("luks2") => {}
        Some(other) => return Err(meaningless(volume, ENCRYPTION, other, "write luks2, or remove it")),
    }
    let form = "write secret/NAMESPACE/NAME, or credential/NAME for one that systemd loads";
    let said = annotation(object, KEY).unwrap_or_default();
    let parts: Vec<&str> = said.split('/').collect();
    match parts.as_slice() {
        ["secret", namespace, name] if !namespace.is_empty() && !name.is_empty() => {
            let by = format!("PersistentVolume {volume} ({KEY})");
            let values = secrets::read(index, ((*namespace).to_owned(), (*name).to_owned()), &by)?;
            if values.reveal().get(VALUE).is_none_or(String::is_empty) {
                return Err(hold::invalid(
                    format!("Secret {namespace}/{name}, which {by} names, has no value {VALUE:?}"),
                    format!("write the key of the disk as data.{VALUE} or stringData.{VALUE}"),
                ));
            }
            let source = KeySource::Secret { namespace: (*namespace).to_owned(), name: (*name).to_owned() };
            Ok(Some((source, values)))
        }
        ["credential", name] if !name.is_empty() && *name != "." && *name != ".." => {
            Ok(Some((KeySource::Credential((*name).to_owned()), Arc::default())))
        }
        _ => Err(meaningless(volume, KEY, said, form)),
    }
}

/// Refuses to take a directory for encrypted.
///
/// # Errors
/// The hold, when it is to be.
pub(super) fn no_key(volume: &str, object: &PersistentVolume) -> Result<(), Hold> {
    match annotation(object, ENCRYPTION).or(annotation(object, KEY)) {
        None => Ok(()),
        Some(said) => {
            let remedy =
                "name a device (below /dev, or with spec.local.fsType): a directory is not encrypted";
            Err(meaningless(volume, ENCRYPTION, said, remedy))
        }
    }
}

fn annotation<'a>(object: &'a PersistentVolume, name: &str) -> Option<&'a str> {
    object.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn meaningless(volume: &str, annotation: &str, said: &str, remedy: &str) -> Hold {
    let detail = format!("PersistentVolume {volume}: annotation {annotation} {said:?} has no meaning here");
    hold::invalid(detail, remedy)
}
