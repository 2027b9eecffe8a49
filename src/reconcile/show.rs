//! Status: only what a pass touched is written anew.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::pass::Loop;
use super::pods;
use crate::desired::{ResolvedPod, ResolvedWant};
use crate::model::{
    Blocked, BrakeStatus, DriverName, Event, EventKind, Have, Hold, PodUid, Presence, Problem, PublicationId,
    PublicationStatus, RecordedVolume, Status, VolumeKey, VolumeMode, VolumeStatus, Want, WantedVolume,
};
use crate::plan::{Decision, Now};

/// Events kept per volume.
const EVENTS: usize = 10;

/// What a pass looked at anew.
#[derive(Debug, Clone, Copy)]
pub(super) struct Looked {
    pub(super) read: bool,
    pub(super) settled: bool,
}

impl Loop {
    /// Shows what was decided. `read`: about a new reading; `settled`: after what is wished was decided anew.
    pub(super) fn show(
        &mut self,
        decided: Vec<(VolumeKey, Decision)>,
        now: Now,
        Looked { read, settled }: Looked,
    ) {
        let volumes: Vec<(VolumeKey, Option<VolumeStatus>)> = decided
            .into_iter()
            .map(|(key, decision)| {
                let status = self.volume_status(&key, decision, now);
                (key, status)
            })
            .collect();
        self.status.send_modify(|status| {
            status.pass += 1;
            if read {
                status.reading = self.resolved.reading.clone();
            }
            if status.drivers != self.actual.drivers {
                status.drivers.clone_from(&self.actual.drivers);
            }
            if status.foreign != self.actual.foreign {
                status.foreign.clone_from(&self.actual.foreign);
            }
            let mut turned = settled;
            for (key, new) in volumes {
                turned |= !holds(status.volumes.get(&key)).eq(holds(new.as_ref()));
                put_volume(status, key, new, now);
            }
            status.turn += u64::from(turned);
        });
    }

    pub(super) fn show_brake(&self, brake: Option<BrakeStatus>) {
        if let Some(brake) = &brake
            && self.status.borrow().brake.as_ref() != Some(brake)
        {
            self.tell(EventKind::BrakeApplied { held: brake.held, reason: brake.reason.clone() });
        }
        self.status.send_if_modified(|status| {
            let changed = status.brake != brake;
            status.brake = brake;
            changed
        });
    }

    /// Tells which problems of the manifests are new and which are gone, and shows them.
    pub(super) fn tell_problems(&self) {
        let new: Vec<Problem> = self.damaged.iter().chain(&self.resolved.problems).cloned().collect();
        let old: BTreeSet<Problem> = self.status.borrow().problems.iter().cloned().collect();
        for problem in new.iter().filter(|problem| !old.contains(*problem)) {
            self.tell(EventKind::ManifestProblem(problem.clone()));
        }
        let now: BTreeSet<&Problem> = new.iter().collect();
        for problem in old.iter().filter(|problem| !now.contains(problem)) {
            self.tell(EventKind::ManifestProblemGone(problem.clone()));
        }
        self.tell_holds();
        self.status.send_if_modified(|status| {
            let changed = status.problems != new;
            status.problems = new;
            changed
        });
    }

    fn tell_holds(&self) {
        let status = self.status.borrow();
        let mut told = Vec::new();
        let is_told = |uid: &PodUid, pod: &Arc<ResolvedPod>| {
            self.shown_pods.get(uid).is_some_and(|(told, _)| Arc::ptr_eq(told, pod))
        };
        // A pod that leaves wants nothing: what its manifests lack now is no trouble.
        let concerned = |(uid, pod): &(&PodUid, &Arc<ResolvedPod>)| !pod.leaving && !is_told(uid, pod);
        for (uid, pod) in self.resolved.pods.iter().filter(concerned) {
            for (name, volume) in &pod.volumes {
                let ResolvedWant::Held(hold) = &volume.want else { continue };
                let before = status.pods.get(uid).and_then(|pod| pod.volumes.get(name)?.hold.as_ref());
                if before != Some(hold) {
                    let (pod, volume, hold) = (pod.identity.clone(), name.clone(), hold.clone());
                    told.push(EventKind::Held { pod, volume, hold });
                }
            }
        }
        drop(status);
        told.into_iter().for_each(|event| self.tell(event));
    }

    /// Tells an event and keeps it with its volume.
    pub(super) fn tell_of(&self, key: &VolumeKey, kind: EventKind) {
        let event = Event { at: self.parts.ambient.now(), kind };
        self.status.send_if_modified(|status| {
            if let Some(volume) = status.volumes.get_mut(key) {
                if volume.events.len() == EVENTS {
                    volume.events.pop_front();
                }
                volume.events.push_back(event.clone());
            }
            // The pass that follows wakes those who watch.
            false
        });
        self.parts.events.tell(event);
    }

    /// Puts one volume's status together; `None` when nothing is wanted and nothing is left.
    fn volume_status(&self, key: &VolumeKey, decision: Decision, now: Now) -> Option<VolumeStatus> {
        let have = self.actual.volumes.get(key);
        let want = self.desired.volumes.get(key);
        let publications = self.publication_statuses(key, have);
        let running = self.busy.get(key);
        // A first step goes on without a record when what it was begun for is not wanted any more.
        if have.is_none() && publications.is_empty() && running.is_none() {
            return None;
        }
        // A first step goes on for what it was begun for, though the wish names another driver by now.
        let is = have.map(|have| &have.volume).or_else(|| running?.brings.as_ref());
        let csi = csi_of(is, want.map(|want| &want.publications));
        let nfs = nfs_of(is, want.map(|want| &want.publications));
        let staging = have.and_then(|have| have.staging.as_ref());
        let plugin = match (&csi, publications.keys().next()) {
            (Some(_), _) | (None, None) => crate::model::Plugin::Csi.name(),
            (None, Some(id)) => id.plugin.name(),
        };
        Some(VolumeStatus {
            plugin,
            csi,
            nfs,
            staging: staging.map(|staging| (staging.arguments.staging_path.clone(), staging.presence)),
            staging_not_a_mount_point: staging.is_some_and(|staging| staging.not_a_mount_point),
            publications,
            released: Vec::new(),
            blocked: decision.blocked,
            in_progress: running.map(|running| running.shown.clone()),
            pending_change: decision.pending_change,
            events: VecDeque::new(),
            since: now.wall,
        })
    }

    fn publication_statuses(
        &self,
        key: &VolumeKey,
        have: Option<&Have>,
    ) -> BTreeMap<PublicationId, Box<PublicationStatus>> {
        let mut shown = BTreeMap::new();
        let record = self.records.get(key);
        let wants = self.desired.volumes.get(key).map(|want| &want.publications);
        let wanted = wants.into_iter().flatten();
        for (id, want) in wanted {
            if let Want::Wanted(wanted) = want {
                let here = have.and_then(|have| have.publications.get(id));
                let there = here.map_or(Presence::No, |have| have.presence);
                let (path, presence) = match &wanted.volume {
                    WantedVolume::HostPath { path } => (path.clone(), Presence::Yes),
                    WantedVolume::Local(_) | WantedVolume::Nfs(_) | WantedVolume::EmptyDir { .. } => {
                        (self.target(id, VolumeMode::Filesystem), there)
                    }
                    WantedVolume::Device(device) => (self.target(id, device.volume_mode), there),
                    WantedVolume::Csi(csi) => (self.target(id, csi.volume_mode), there),
                };
                let status = PublicationStatus {
                    pod: wanted.pod.clone(),
                    names: wanted.names.iter().cloned().collect(),
                    path,
                    desired: "published",
                    presence,
                    not_a_mount_point: here.is_some_and(|have| have.not_a_mount_point),
                    hold: None,
                };
                shown.insert(id.clone(), Box::new(status));
            }
        }
        for (id, publication) in record.into_iter().flat_map(|record| &record.publications) {
            let here = have.and_then(|have| have.publications.get(id));
            let (desired, hold) = match wants.and_then(|wants| wants.get(id)) {
                Some(Want::Wanted(_)) => continue,
                Some(Want::Held(hold)) => ("held", Some(hold.clone())),
                Some(Want::Absent) => ("released", None),
                None => ("held", None),
            };
            let arguments = publication.arguments.as_ref();
            let mode = arguments.map(|arguments| arguments.capability.volume_mode).unwrap_or_default();
            let status = PublicationStatus {
                pod: publication.pod.clone(),
                names: publication.names.iter().cloned().collect(),
                path: self.target(id, mode),
                desired,
                presence: here.map_or(Presence::Uncertain, |have| have.presence),
                not_a_mount_point: here.is_some_and(|have| have.not_a_mount_point),
                hold,
            };
            shown.insert(id.clone(), Box::new(status));
        }
        shown
    }

    /// Returns where the pod finds it.
    fn target(&self, id: &PublicationId, mode: VolumeMode) -> std::path::PathBuf {
        let layout = &self.parts.layout;
        layout.absolute(&match mode {
            VolumeMode::Filesystem => layout.target(id),
            VolumeMode::Block => layout.block_link(id),
        })
    }
}

/// Returns the driver of a wanted volume.
pub(super) fn wanted_driver(want: &Want) -> Option<&DriverName> {
    match want {
        Want::Wanted(wanted) => match &wanted.volume {
            WantedVolume::Csi(csi) => Some(&csi.driver),
            WantedVolume::Local(_)
            | WantedVolume::Device(_)
            | WantedVolume::Nfs(_)
            | WantedVolume::EmptyDir { .. }
            | WantedVolume::HostPath { .. } => None,
        },
        Want::Held(_) | Want::Absent => None,
    }
}

fn csi_of(
    is: Option<&RecordedVolume>,
    wants: Option<&BTreeMap<PublicationId, Want>>,
) -> Option<(DriverName, String)> {
    if let Some(RecordedVolume::Csi { driver, handle, .. }) = is {
        return Some((driver.clone(), handle.clone()));
    }
    wants.into_iter().flat_map(BTreeMap::values).find_map(|want| match want {
        Want::Wanted(wanted) => match &wanted.volume {
            WantedVolume::Csi(csi) => Some((csi.driver.clone(), csi.handle.clone())),
            WantedVolume::Local(_)
            | WantedVolume::Device(_)
            | WantedVolume::Nfs(_)
            | WantedVolume::EmptyDir { .. }
            | WantedVolume::HostPath { .. } => None,
        },
        Want::Held(_) | Want::Absent => None,
    })
}

/// Returns server and path of an NFS volume, as it is if it is up, else as it is wanted.
fn nfs_of(
    is: Option<&RecordedVolume>,
    wants: Option<&BTreeMap<PublicationId, Want>>,
) -> Option<(String, String)> {
    match is {
        Some(RecordedVolume::Nfs { server, path }) => return Some((server.clone(), path.clone())),
        Some(
            RecordedVolume::Csi { .. }
            | RecordedVolume::EmptyDir
            | RecordedVolume::Local { .. }
            | RecordedVolume::Device { .. },
        ) => {
            return None;
        }
        None => {}
    }
    wants.into_iter().flat_map(BTreeMap::values).find_map(|want| match want {
        Want::Wanted(wanted) => match &wanted.volume {
            WantedVolume::Nfs(nfs) => Some((nfs.server.clone(), nfs.path.clone())),
            WantedVolume::Csi(_)
            | WantedVolume::Local(_)
            | WantedVolume::Device(_)
            | WantedVolume::EmptyDir { .. }
            | WantedVolume::HostPath { .. } => None,
        },
        Want::Held(_) | Want::Absent => None,
    })
}

/// Replaces a volume's status; keeps its events, and the moments since when unchanged things are so.
fn put_volume(status: &mut Status, key: VolumeKey, new: Option<VolumeStatus>, now: Now) {
    let old = status.volumes.remove(&key);
    let was = old.iter().flat_map(|old| old.publications.keys().chain(&old.released));
    let gone: BTreeSet<PublicationId> =
        was.filter(|id| new.as_ref().is_none_or(|new| !new.publications.contains_key(id))).cloned().collect();
    let still_staged = new.as_ref().is_some_and(|new| new.publications.is_empty());
    if !still_staged {
        gone.iter().for_each(|id| pods::drop_remaining(status, &key, id));
    }
    let Some(mut new) = new else { return };
    if still_staged {
        new.released = gone.into_iter().collect();
    }
    if let Some(old) = old {
        for blocked in &mut new.blocked {
            if let Some(before) = old.blocked.iter().find(|before| is_same(before, blocked)) {
                blocked.since = before.since;
            }
        }
        let unchanged = old.staging == new.staging && old.publications == new.publications;
        new.since = if unchanged { old.since } else { now.wall };
        new.events = old.events;
    }
    status.volumes.insert(key, new);
}

/// Lists what is held of a volume, and why.
fn holds(volume: Option<&VolumeStatus>) -> impl Iterator<Item = (&PublicationId, &Hold)> {
    let publications = volume.into_iter().flat_map(|volume| &volume.publications);
    publications.filter_map(|(id, publication)| Some((id, publication.hold.as_ref()?)))
}

fn is_same(a: &Blocked, b: &Blocked) -> bool {
    a.step == b.step && a.publication == b.publication && a.cause.code == b.cause.code
}
