//! What a status says of the pods' volumes.

use std::collections::{BTreeMap, BTreeSet};

use volumed::model::{Blocked, HoldCode, PodVolumeStatus, Presence, PublicationStatus, Status};

/// What is in the way, one line each, and then everything.
pub(super) fn told(status: &Status) -> String {
    let blocked = status.volumes.iter().flat_map(|(key, volume)| {
        let line = |blocked: &Blocked| {
            format!("{key}: {}: {}: {}", blocked.step, blocked.cause.code, blocked.cause.detail)
        };
        volume.blocked.iter().map(line).collect::<Vec<_>>()
    });
    let held = held(status).into_iter().map(|(name, code)| format!("{name}: held: {code:?}"));
    let lines: Vec<String> = blocked.chain(held).collect();
    format!("{}\n{:#?}", lines.join("\n"), status.volumes)
}

/// Every volume of every pod that stays is held or there, and nothing is left to take down.
pub(super) fn is_settled(status: &Status) -> bool {
    let staying = status.pods.values().filter(|pod| !pod.leaving);
    let up = staying.flat_map(|pod| pod.volumes.values()).all(|volume| {
        volume.hold.is_some() || publication(status, volume).is_some_and(|p| p.presence == Presence::Yes)
    });
    let down = status.volumes.values().all(|volume| {
        let goes = volume.publications.values().any(|publication| publication.desired == "released");
        volume.in_progress.is_none() && !goes && !volume.publications.is_empty()
    });
    up && down
}

fn publication<'a>(status: &'a Status, volume: &PodVolumeStatus) -> Option<&'a PublicationStatus> {
    let (key, id) = volume.resolved.as_ref()?;
    status.volumes.get(key)?.publications.get(id).map(|publication| &**publication)
}

/// Returns the held volumes as `pod/volume`, each with the reason.
pub fn held(status: &Status) -> BTreeMap<String, HoldCode> {
    let mut held = BTreeMap::new();
    for pod in status.pods.values() {
        for (name, volume) in &pod.volumes {
            if let Some(hold) = &volume.hold {
                held.insert(format!("{}/{name}", pod.identity.name), hold.code);
            }
        }
    }
    held
}

/// Returns the published volumes as `pod/volume`.
pub fn published(status: &Status) -> BTreeSet<String> {
    let mut published = BTreeSet::new();
    for pod in status.pods.values() {
        for (name, volume) in &pod.volumes {
            if publication(status, volume).is_some_and(|p| p.presence == Presence::Yes) {
                published.insert(format!("{}/{name}", pod.identity.name));
            }
        }
    }
    published
}
