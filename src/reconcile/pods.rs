//! Status: the pods of the last reading, and those that are gone and still have a volume.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::pass::Loop;
use crate::desired::{ResolvedPod, ResolvedVolume, ResolvedWant};
use crate::model::{PodStatus, PodUid, PodVolumeStatus, PublicationId, PublicationRecord, Status, VolumeKey};

/// How the pods of the last reading are shown: one that comes to the same is not put into words again.
pub(super) type Shown = BTreeMap<PodUid, (Arc<ResolvedPod>, Arc<PodStatus>)>;

impl Loop {
    /// Shows the pods of the last reading, and those that are gone and still have a volume.
    pub(super) fn show_pods(&mut self) {
        let shown = self.resolved.pods.iter().map(|(uid, pod)| {
            let before = self.shown_pods.get(uid).filter(|(before, _)| Arc::ptr_eq(before, pod));
            let status = before.map_or_else(|| Arc::new(status_of(pod)), |(_, status)| Arc::clone(status));
            (uid.clone(), (Arc::clone(pod), status))
        });
        self.shown_pods = shown.collect();
        let of_manifests = self.shown_pods.iter().map(|(uid, (_, status))| (uid.clone(), Arc::clone(status)));
        let mut pods: BTreeMap<PodUid, Arc<PodStatus>> = of_manifests.collect();
        for (key, record) in &self.records {
            for (id, publication) in &record.publications {
                let pod = pods.entry(id.pod.clone()).or_insert_with(|| {
                    Arc::new(PodStatus {
                        identity: publication.pod.clone(),
                        source: None,
                        leaving: true,
                        hold: None,
                        volumes: BTreeMap::new(),
                    })
                });
                let shown = pod.volumes.values().any(|volume| {
                    volume.resolved.as_ref().is_some_and(|(other, place)| other == key && place == id)
                });
                if !shown {
                    add_remaining(Arc::make_mut(pod), key, id, publication);
                }
            }
        }
        self.status.send_if_modified(|status| {
            keep_released(status, &mut pods);
            let changed = status.pods != pods;
            if changed {
                status.pods = pods;
            }
            changed
        });
    }
}

fn status_of(pod: &ResolvedPod) -> PodStatus {
    let status_of = |volume: &ResolvedVolume| {
        let (resolved, hold) = match &volume.want {
            ResolvedWant::Wanted { key, id, .. } => (Some((key.clone(), id.clone())), None),
            // It wants nothing: what its manifests lack now is no trouble.
            ResolvedWant::Held(_) if pod.leaving => (None, None),
            ResolvedWant::Held(hold) => (None, Some(hold.clone())),
        };
        PodVolumeStatus {
            claim: volume.claim.clone(),
            resolved,
            links: volume.links.clone(),
            hold,
            capacity: volume.capacity,
            access_mode: volume.access_mode.clone(),
        }
    };
    let volumes = pod.volumes.iter().map(|(name, volume)| (name.clone(), Box::new(status_of(volume))));
    PodStatus {
        identity: pod.identity.clone(),
        source: Some(pod.source.clone()),
        leaving: pod.leaving,
        hold: pod.held.clone().filter(|_| !pod.leaving),
        volumes: volumes.collect(),
    }
}

/// A publication that a record still has and no manifest names (any more).
fn add_remaining(pod: &mut PodStatus, key: &VolumeKey, id: &PublicationId, publication: &PublicationRecord) {
    let status = PodVolumeStatus {
        claim: publication.claim.clone(),
        resolved: Some((key.clone(), id.clone())),
        links: Vec::new(),
        hold: None,
        capacity: None,
        access_mode: None,
    };
    let name = publication.names.iter().next().cloned().unwrap_or_else(|| id.spec.to_string());
    match pod.volumes.get_mut(&name) {
        // The spec's name now leads nowhere: what is still mounted under it is shown with the reason.
        Some(held) if held.resolved.is_none() => held.resolved = status.resolved,
        Some(_) => {
            pod.volumes.insert(format!("{name} ({})", id.spec), Box::new(status));
        }
        None => {
            pod.volumes.insert(name, Box::new(status));
        }
    }
}

/// Keeps the pods that are gone but for a volume that is not yet unstaged.
fn keep_released(status: &Status, pods: &mut BTreeMap<PodUid, Arc<PodStatus>>) {
    for (key, volume) in &status.volumes {
        for id in &volume.released {
            let Some(old) = status.pods.get(&id.pod) else { continue };
            let is_it = |volume: &PodVolumeStatus| {
                volume.resolved.as_ref().is_some_and(|(other, place)| other == key && place == id)
            };
            let pod = pods.entry(id.pod.clone()).or_insert_with(|| {
                let old = PodStatus::clone(old);
                Arc::new(PodStatus { source: None, leaving: true, volumes: BTreeMap::new(), ..old })
            });
            for (name, volume) in old.volumes.iter().filter(|(_, volume)| is_it(volume)) {
                let shown = Arc::make_mut(pod).volumes.entry(name.clone());
                let shown = shown.or_insert_with(|| volume.clone());
                if shown.resolved.is_none() {
                    shown.resolved.clone_from(&volume.resolved);
                }
            }
        }
    }
}

/// A publication is gone: what was shown of it only because a record still had it goes too.
pub(super) fn drop_remaining(status: &mut Status, key: &VolumeKey, id: &PublicationId) {
    let Some(shared) = status.pods.get_mut(&id.pod) else { return };
    let pod = Arc::make_mut(shared);
    let is_it = |volume: &PodVolumeStatus| {
        volume.resolved.as_ref().is_some_and(|(other, place)| other == key && place == id)
    };
    pod.volumes.retain(|_, volume| !(volume.links.is_empty() && is_it(volume)));
    for volume in pod.volumes.values_mut() {
        if (volume.hold.is_some() || pod.leaving) && is_it(volume) {
            volume.resolved = None;
        }
    }
    if pod.source.is_none() && pod.volumes.is_empty() {
        status.pods.remove(&id.pod);
    }
}
