//! What is paused, and which volumes that is about.

use super::views::Row;
use crate::model::{ObjectRef, PodStatus, PodVolumeStatus, PublicationId, Scope, Status, VolumeKey};

/// Returns a scope as `volumectl pause` takes it; `all` for everything.
pub(super) fn word(scope: &Scope) -> String {
    match scope {
        Scope::All => "all".to_owned(),
        Scope::Object(object) => object_word(object),
        Scope::Driver(driver) => format!("driver/{driver}"),
    }
}

fn object_word(ObjectRef { kind, namespace, name }: &ObjectRef) -> String {
    let kind = if kind == "Pod" { "pod" } else { "pvc" };
    format!("{kind}/{namespace}/{name}")
}

/// Returns what is paused.
pub(super) fn words(status: &Status) -> Vec<String> {
    status.paused.iter().map(word).collect()
}

/// Returns the command that takes a pause back.
pub(super) fn resume(word: &str) -> String {
    format!("volumectl resume {}", if word == "all" { "--all" } else { word })
}

/// Returns the pause that a row is under, the widest first. A volume is paused as a whole: also for the other pods that have it.
pub(super) fn of_row<'a>(status: &'a Status, row: Row<'_>) -> Option<&'a Scope> {
    status.paused.iter().find(|scope| match scope {
        Scope::All => true,
        Scope::Driver(driver) => {
            row.volume.is_some_and(|(_, volume)| volume.csi.as_ref().is_some_and(|(of, _)| of == driver))
        }
        Scope::Object(object) => {
            row.pod.is_some_and(|(pod, _, volume)| is_of(pod, volume, object))
                || row.volume.is_some_and(|(key, volume)| {
                    let places = volume.publications.keys().chain(&volume.released);
                    places.into_iter().any(|id| shown_to(status, key, id, object))
                })
        }
    })
}

/// Whether a publication is a pod's or claim's.
fn shown_to(status: &Status, key: &VolumeKey, id: &PublicationId, object: &ObjectRef) -> bool {
    let Some(pod) = status.pods.get(&id.pod) else { return false };
    pod.volumes.values().any(|volume| {
        let here = volume.resolved.as_ref().is_some_and(|(of, place)| of == key && place == id);
        here && is_of(pod, volume, object)
    })
}

fn is_of(pod: &PodStatus, volume: &PodVolumeStatus, object: &ObjectRef) -> bool {
    let named = object.kind == "Pod"
        && pod.identity.name == object.name
        && pod.identity.namespace == object.namespace;
    named || volume.claim.as_ref() == Some(object)
}

#[cfg(test)]
#[path = "paused_tests.rs"]
mod tests;
