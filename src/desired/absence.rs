//! Decides what is absent, over time: two complete readings, and the brake. Nothing is taken down because of something not
//! read (design 3, "Fail-safe").

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::brake::{Brake, Confirmed};
use super::{Recorded, Resolved, ResolvedPod, ResolvedPods, ResolvedWant, Settled, hold};
use crate::model::{
    Desired, Hold, HoldCode, Millis, Plugin, PublicationId, PublicationRecord, ReadingState, VolumeKey, Want,
    WantVolume, Wanted, side_by_side,
};
use crate::mutant::{self, Mutant};

/// A recorded publication: its volume and its place.
pub(super) type Spot = (VolumeKey, PublicationId);

/// Decides absence over time: two complete readings, `removal_grace` apart, and the mass-delete brake (design 3).
#[derive(Debug)]
pub struct Absences {
    removal_grace_ms: u64,
    /// Since when complete readings lack what is recorded.
    lacking: BTreeMap<Spot, Lack>,
    brake: Brake,
    /// Held only because a reading was incomplete.
    waiting: Vec<PublicationId>,
    wanted: WantedByPods,
}

/// What the pods want, kept from one reading to the next: of the pods that came to the same nothing is put together again.
#[derive(Debug, Default)]
struct WantedByPods {
    pods: Arc<ResolvedPods>,
    volumes: BTreeMap<VolumeKey, Arc<WantVolume>>,
}

/// The first complete reading that lacked something.
#[derive(Debug, Clone, Copy)]
struct Lack {
    generation: u64,
    began_ms: u64,
    /// A later one, begun long enough after it, lacked it too.
    confirmed: bool,
}

impl Default for Absences {
    fn default() -> Self {
        Self::new(1000, None)
    }
}

/// What the manifests say of a recorded publication.
enum Said {
    /// It is wanted as it is recorded: it is in `Desired` already.
    Wanted,
    /// This.
    Decided(Want),
    /// Nothing: it is absent once that is certain. The text says what is lacking.
    Lacking(String),
}

/// A publication that the manifests lack.
struct Candidate<'a> {
    recorded: Recorded<'a>,
    why: String,
}

impl Absences {
    /// Takes the time between the two readings that make an absence, and how long the brake holds (`None`: until
    /// `volumectl approve`).
    pub fn new(removal_grace_ms: u64, brake_release_after_ms: Option<u64>) -> Self {
        Self {
            removal_grace_ms,
            lacking: BTreeMap::new(),
            brake: Brake::new(brake_release_after_ms),
            waiting: Vec::new(),
            wanted: WantedByPods::default(),
        }
    }

    /// Whether nothing is lacking, held by the brake or waiting for a whole reading: then deciding again about the same comes
    /// to the same.
    pub fn is_at_rest(&self) -> bool {
        self.lacking.is_empty() && self.waiting.is_empty() && self.brake.spots().is_empty()
    }

    /// Decides for every recorded publication and every wanted one. `now_ms` is tokio time since the daemon's start, `wall`
    /// ms since the epoch.
    pub fn settle<'a>(
        &mut self,
        resolved: &Resolved,
        recorded: impl IntoIterator<Item = Recorded<'a>>,
        now_ms: u64,
        wall: Millis,
    ) -> Settled {
        let mut desired = Desired {
            is_read: resolved.reading.generation > 0,
            volumes: self.wanted.follow(&resolved.pods).clone(),
        };
        let mut candidates = Vec::new();
        let recorded: Vec<Recorded<'a>> = recorded.into_iter().collect();
        hold_successors(resolved, &recorded, &mut desired);
        for recorded in &recorded {
            match said(resolved, &desired, recorded) {
                Said::Wanted => {}
                Said::Decided(want) => put(&mut desired.volumes, recorded.key, recorded.id, want),
                Said::Lacking(why) => candidates.push(Candidate { recorded: *recorded, why }),
            }
        }
        let volumes =
            if candidates.is_empty() { BTreeSet::new() } else { recorded.iter().map(|r| r.key).collect() };
        self.confirm(&resolved.reading, &candidates);
        self.brake(resolved, &candidates, &volumes, &desired, now_ms, wall);
        self.waiting.clear();
        let mut confirm_after_ms = None;
        for candidate in &candidates {
            let Recorded { key, id, .. } = candidate.recorded;
            let want = self.verdict(&resolved.reading, candidate, &mut confirm_after_ms);
            put(&mut desired.volumes, key, id, want);
        }
        // While a reading is incomplete nothing is released, so there is no moment to wait for.
        let again_at_ms = resolved.reading.is_complete().then(|| self.brake.release_at_ms()).flatten();
        Settled { desired, brake: self.brake.status(), again_at_ms, confirm_after_ms }
    }

    /// Returns the publications that the brake holds.
    pub fn braked(&self) -> Vec<PublicationId> {
        self.brake.braked().cloned().collect()
    }

    /// Returns what the brake holds, to be remembered over a restart.
    pub fn braked_spots(&self) -> Vec<(VolumeKey, PublicationId)> {
        self.brake.spots()
    }

    /// Takes what the brake held before a restart: it holds that again as soon as it is known to be absent.
    pub fn remember_braked(&mut self, spots: impl IntoIterator<Item = (VolumeKey, PublicationId)>) {
        self.brake.remember(spots);
    }

    /// Returns what `volumectl approve` writes into the records: what the brake holds, and what is held only because not
    /// every manifest could be read.
    pub fn approvable(&self) -> Vec<PublicationId> {
        let all: BTreeSet<&PublicationId> = self.brake.braked().chain(&self.waiting).collect();
        all.into_iter().cloned().collect()
    }

    /// Remembers since when a complete reading lacks what, and forgets what is not lacking any more.
    fn confirm(&mut self, reading: &ReadingState, candidates: &[Candidate<'_>]) {
        let mut before = std::mem::take(&mut self.lacking);
        for Candidate { recorded, .. } in candidates {
            let spot = (recorded.key.clone(), recorded.id.clone());
            let first = before.remove(&spot);
            let lack = if reading.is_complete() {
                let mut lack = first.unwrap_or(Lack {
                    generation: reading.generation,
                    began_ms: reading.began_ms,
                    confirmed: false,
                });
                let apart = reading.began_ms.checked_sub(lack.began_ms);
                lack.confirmed |= reading.generation > lack.generation
                    && apart.is_some_and(|apart| apart >= self.removal_grace_ms);
                Some(lack)
            } else {
                first
            };
            if let Some(lack) = lack {
                self.lacking.insert(spot, lack);
            }
        }
    }

    /// Shows the brake what was confirmed, except what an operator approved.
    fn brake(
        &mut self,
        resolved: &Resolved,
        candidates: &[Candidate<'_>],
        volumes: &BTreeSet<&VolumeKey>,
        desired: &Desired,
        now_ms: u64,
        wall: Millis,
    ) {
        let unapproved: BTreeSet<(&VolumeKey, &PublicationId)> = candidates
            .iter()
            .filter(|c| !c.recorded.record.approved)
            .map(|c| (c.recorded.key, c.recorded.id))
            .collect();
        // The candidates are not in `desired` yet.
        let came_back =
            |spot: &Spot| desired.volumes.get(&spot.0).is_some_and(|v| v.publications.contains_key(&spot.1));
        self.brake.forget(now_ms, |spot| unapproved.contains(&(&spot.0, &spot.1)), came_back);
        if !resolved.reading.is_complete() {
            return;
        }
        let confirmed = candidates.iter().filter(|c| !c.recorded.record.approved).filter_map(|c| {
            let spot = (c.recorded.key.clone(), c.recorded.id.clone());
            let directory = || Some(c.recorded.record.manifest.as_deref()?.parent()?.to_owned());
            let lack = self.lacking.get(&spot)?;
            lack.confirmed.then(|| Confirmed { spot, directory: directory() })
        });
        self.brake.judge(confirmed.collect(), volumes, &resolved.reading.directories, now_ms, wall);
    }

    fn verdict(
        &mut self,
        reading: &ReadingState,
        candidate: &Candidate<'_>,
        confirm_after_ms: &mut Option<u64>,
    ) -> Want {
        let Candidate { recorded, why } = candidate;
        if reading.generation == 0 {
            return Want::Held(hold::hold(
                HoldCode::ReadingIncomplete,
                "the manifests have not been read yet",
                "wait for the first reading",
            ));
        }
        // Approved is approved, whatever could not be read: the operator saw what is there.
        if recorded.record.approved || mutant::is(Mutant::LostIsRemoved) {
            return Want::Absent;
        }
        let spot = (recorded.key.clone(), recorded.id.clone());
        if let Some(hold) = self.brake.hold(&spot) {
            return Want::Held(hold);
        }
        if !reading.is_complete() {
            self.waiting.push(recorded.id.clone());
            return Want::Held(incomplete(reading, why));
        }
        match self.lacking.get(&spot) {
            Some(lack) if lack.confirmed => Want::Absent,
            lack => {
                let first = lack.map_or(reading.began_ms, |l| l.began_ms);
                let due = first.saturating_add(self.removal_grace_ms);
                *confirm_after_ms = Some(confirm_after_ms.map_or(due, |d| d.max(due)));
                Want::Held(hold::hold(
                    HoldCode::ManifestMissing,
                    format!(
                        "{why}; it is taken down when a reading begun {} ms after the first lacks it too",
                        self.removal_grace_ms
                    ),
                    "nothing, or restore the manifest to keep it",
                ))
            }
        }
    }
}

impl WantedByPods {
    /// Returns every wanted publication.
    fn follow(&mut self, pods: &Arc<ResolvedPods>) -> &BTreeMap<VolumeKey, Arc<WantVolume>> {
        if Arc::ptr_eq(&self.pods, pods) {
            return &self.volumes;
        }
        let before = std::mem::replace(&mut self.pods, Arc::clone(pods));
        let is_same = |a: Option<&Arc<ResolvedPod>>, b| a.zip(b).is_some_and(|(a, b)| Arc::ptr_eq(a, b));
        let both = || side_by_side(&before, pods).filter(|(_, before, now)| !is_same(*before, *now));
        // First what goes: the same place may come back with another pod of the UID.
        for (key, id, _) in both().filter_map(|(_, before, _)| before).flat_map(|pod| wanted(pod)) {
            if let Some(volume) = self.volumes.get_mut(key) {
                let volume = Arc::make_mut(volume);
                volume.publications.remove(id);
                if volume.publications.is_empty() {
                    self.volumes.remove(key);
                }
            }
        }
        for (key, id, want) in both().filter_map(|(.., now)| now).flat_map(|pod| wanted(pod)) {
            put(&mut self.volumes, key, id, Want::Wanted(Arc::clone(want)));
        }
        &self.volumes
    }
}

/// Returns what a pod wants. One that leaves wants nothing.
fn wanted(pod: &ResolvedPod) -> impl Iterator<Item = (&VolumeKey, &PublicationId, &Arc<Wanted>)> {
    let volumes = pod.volumes.values().filter(|_| !pod.leaving);
    volumes.filter_map(|volume| match &volume.want {
        ResolvedWant::Wanted { key, id, wanted } => Some((key, id, wanted)),
        ResolvedWant::Held(_) => None,
    })
}

fn put(volumes: &mut BTreeMap<VolumeKey, Arc<WantVolume>>, key: &VolumeKey, id: &PublicationId, want: Want) {
    let volume = match volumes.get_mut(key) {
        Some(volume) => volume,
        None => volumes.entry(key.clone()).or_default(),
    };
    Arc::make_mut(volume).publications.insert(id.clone(), want);
}

/// Looks a recorded publication up in what the manifests came to.
fn said(resolved: &Resolved, desired: &Desired, recorded: &Recorded<'_>) -> Said {
    let Recorded { key, id, record, .. } = recorded;
    if desired.volumes.get(*key).is_some_and(|v| v.publications.contains_key(*id)) {
        return Said::Wanted;
    }
    let Some(pod) = resolved.pods.get(&id.pod) else {
        // Before the first reading nobody knows whether a manifest wants it by now.
        if record.adopted && record.released && resolved.reading.generation > 0 {
            return Said::Decided(Want::Absent);
        }
        if record.adopted {
            return Said::Decided(Want::Held(hold::hold(
                HoldCode::Adopted,
                format!("{} is in no manifest; the operator adopted its volume", record.pod),
                "add the pod's manifest, or take it down with: volumectl release",
            )));
        }
        let file =
            record.manifest.as_ref().map_or_else(String::new, |f| format!(" (it was in {})", f.display()));
        return Said::Lacking(format!("{} is in no manifest any more{file}", record.pod));
    };
    if pod.leaving {
        return Said::Decided(Want::Absent);
    }
    if let Some(hold) = &pod.held {
        return Said::Decided(Want::Held(hold.clone()));
    }
    if let Some(hold) = held_in(pod, recorded) {
        return Said::Decided(Want::Held(hold.clone()));
    }
    let names = record.names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    if id.plugin == Plugin::EmptyDir {
        if record.released {
            return Said::Decided(Want::Absent);
        }
        return Said::Decided(Want::Held(hold::hold(
            HoldCode::EmptyDirKept,
            format!(
                "{} does not use emptyDir {names} any more; its content is kept until the pod goes",
                pod.identity
            ),
            "use it again, remove the pod, or have it removed with: volumectl release",
        )));
    }
    match successor(pod, record) {
        Some((other, _)) if recorded.up => Said::Decided(Want::Held(pending_edit(pod, &names, other, key))),
        Some((other, _)) => {
            Said::Lacking(format!("volume {names} of {} is {other} now, no longer {key}", pod.identity))
        }
        None => Said::Lacking(format!("{} does not use volume {names} any more", pod.identity)),
    }
}

/// A PV or claim that was edited to mean another volume takes effect at the next bring-up (design 3): until then the volume
/// that is up stays, and the new one waits.
fn hold_successors(resolved: &Resolved, recorded: &[Recorded<'_>], desired: &mut Desired) {
    let is_wanted =
        |r: &Recorded<'_>| desired.volumes.get(r.key).is_some_and(|v| v.publications.contains_key(r.id));
    let stay: Vec<&Recorded<'_>> = recorded.iter().filter(|r| r.up && !is_wanted(r)).collect();
    if stay.is_empty() {
        return;
    }
    let there: BTreeSet<(&VolumeKey, &PublicationId)> = recorded.iter().map(|r| (r.key, r.id)).collect();
    for Recorded { key, id, record, .. } in stay {
        let Some(pod) = resolved.pods.get(&id.pod).filter(|pod| !pod.leaving) else { continue };
        let names = record.names.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
        if let Some((other, place)) = successor(pod, record)
            && !there.contains(&(other, place))
        {
            put(&mut desired.volumes, other, place, Want::Held(pending_edit(pod, &names, other, key)));
        }
    }
}

fn pending_edit(pod: &ResolvedPod, names: &str, new: &VolumeKey, old: &VolumeKey) -> Hold {
    hold::hold(
        HoldCode::PendingEdit,
        format!("volume {names} of {} was edited from {old} to {new}, and {old} is up", pod.identity),
        "remove the pod and add it again to use the new volume, or take the edit back",
    )
}

/// Returns the hold of a volume that the publication may be: one of its names, or, renamed, one of its claim's.
fn held_in<'a>(pod: &'a ResolvedPod, recorded: &Recorded<'_>) -> Option<&'a Hold> {
    let hold = |want: &'a ResolvedWant| match want {
        ResolvedWant::Held(hold) => Some(hold),
        ResolvedWant::Wanted { .. } => None,
    };
    let record = recorded.record;
    let by_name = record.names.iter().find_map(|name| hold(&pod.volumes.get(name)?.want));
    by_name.or_else(|| {
        let claim = record.claim.as_ref()?;
        pod.volumes.values().filter(|v| v.claim.as_ref() == Some(claim)).find_map(|v| hold(&v.want))
    })
}

/// Returns what a recorded publication's volume is now: by its name, or, if the pod renamed it, by its claim.
fn successor<'a>(
    pod: &'a ResolvedPod,
    record: &PublicationRecord,
) -> Option<(&'a VolumeKey, &'a PublicationId)> {
    record.names.iter().find_map(|name| resolved_to(pod, name)).or_else(|| {
        let claim = record.claim.as_ref()?;
        let mut same = pod.volumes.iter().filter(|(_, volume)| volume.claim.as_ref() == Some(claim));
        same.find_map(|(name, _)| resolved_to(pod, name))
    })
}

fn resolved_to<'a>(pod: &'a ResolvedPod, name: &str) -> Option<(&'a VolumeKey, &'a PublicationId)> {
    match &pod.volumes.get(name)?.want {
        ResolvedWant::Wanted { key, id, .. } => Some((key, id)),
        ResolvedWant::Held(_) => None,
    }
}

/// Names the first thing that could not be read.
fn incomplete(reading: &ReadingState, why: &str) -> Hold {
    let (unread, remedy) = match reading.incomplete.as_slice() {
        [] => (String::new(), String::new()),
        [first, rest @ ..] => {
            let more = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
            (format!(": {}: {}{more}", first.path.display(), first.detail), format!("{}; or ", first.remedy))
        }
    };
    hold::hold(
        HoldCode::ReadingIncomplete,
        format!("{why}, but not every manifest could be read{unread}"),
        format!("{remedy}accept what is there with: volumectl approve"),
    )
}
