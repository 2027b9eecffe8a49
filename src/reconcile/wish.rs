//! What is wished: absence decided, and what that changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::pass::Loop;
use crate::desired::Recorded;
use crate::model::{Desired, Presence, PublicationId, VolumeKey, Want, WantVolume, side_by_side};

/// The note of what the brake holds.
pub(super) const BRAKE_NOTE: &str = "brake";

/// How long the manifests are given to read again by themselves before they are asked to: they do when a whole object is
/// gone, but know nothing of a volume that its pod does not name any more.
const READS_ITSELF_MS: u64 = 20;

impl Loop {
    /// Looks up what a reading says; returns whether that calls for a decision. It does not when it says what the last one said
    /// and nothing waits for one more: a reading that somebody asked for costs hardly anything then.
    pub(super) fn take_manifests(&mut self) -> bool {
        let new = self.resolver.resolve(&self.manifests);
        let old = std::mem::replace(&mut self.resolved, new);
        let same = Arc::ptr_eq(&old.pods, &self.resolved.pods) && old.reading.says(&self.resolved.reading);
        if !same || old.problems != self.resolved.problems {
            self.tell_problems();
        }
        !same || !self.absences.is_at_rest() || !self.noted_brake.is_empty()
    }

    /// Decides about absence, and touches every volume that is wished otherwise than before.
    pub(super) fn settle(&mut self) {
        let recorded = self.records.iter().map(|(key, record)| (key, &record.publications));
        let intended = self.busy.iter().map(|(key, running)| (key, &running.intends));
        let actual = &self.actual;
        let recorded = recorded.chain(intended).flat_map(|(key, publications)| {
            let have = actual.volumes.get(key);
            publications.iter().map(move |(id, record)| {
                let have = have.and_then(|have| have.publications.get(id));
                Recorded { key, id, record, up: have.is_some_and(|have| have.presence == Presence::Yes) }
            })
        });
        let now = self.now();
        let settled = self.absences.settle(&self.resolved, recorded, now.mono, now.wall);
        self.settle_again_at = settled.again_at_ms;
        self.confirm_at = settled.confirm_after_ms.map(|due| due + READS_ITSELF_MS);
        let old = std::mem::replace(&mut self.desired, settled.desired);
        self.contested = contested(&self.desired);
        let forced = std::mem::take(&mut self.operator.forced);
        self.operator.forced = forced.into_iter().filter(|key| self.is_going(key)).collect();
        if self.desired.is_read && !old.is_read {
            // What nobody wants has waited for this.
            self.touched.extend(self.records.keys().cloned());
        }
        let both = side_by_side(&old.volumes, &self.desired.volumes);
        let changed = both.filter(|(_, before, now)| before != now);
        let changed = changed.map(|(key, before, now)| (key.clone(), is_another_wish(before, now)));
        for (key, is_another) in changed.collect::<Vec<(VolumeKey, bool)>>() {
            if is_another {
                // The cause has changed.
                self.forget_failures(&key);
            }
            self.touched.insert(key);
        }
        self.show_brake(settled.brake);
    }

    /// Keeps what the brake holds on disk. If that fails it is tried again with the next decision.
    pub(super) async fn note_brake(&mut self) {
        let braked = self.absences.braked_spots();
        if braked == self.noted_brake {
            return;
        }
        if let Ok(note) = serde_json::to_value(&braked)
            && self.parts.store.set_note(BRAKE_NOTE, note).await.is_ok()
        {
            self.noted_brake = braked;
        }
    }
}

/// Returns the places that more than one volume wants, holds or gives back.
fn contested(desired: &Desired) -> BTreeMap<PublicationId, BTreeSet<VolumeKey>> {
    let mut first: HashMap<&PublicationId, &VolumeKey> = HashMap::with_capacity(desired.volumes.len());
    let mut contested: BTreeMap<PublicationId, BTreeSet<VolumeKey>> = BTreeMap::new();
    for (key, wants) in &desired.volumes {
        for id in wants.publications.keys() {
            if let Some(other) = first.insert(id, key) {
                contested.entry(id.clone()).or_default().extend([other.clone(), key.clone()]);
            }
        }
    }
    contested
}

/// Whether something else is wished of a volume than before. That what nobody wants is gone by now is no wish.
fn is_another_wish(before: Option<&Arc<WantVolume>>, now: Option<&Arc<WantVolume>>) -> bool {
    let none = WantVolume::default();
    let [before, now] = [before, now].map(|wants| &wants.map_or(&none, |wants| wants).publications);
    side_by_side(before, now).any(|(_, before, now)| match (before, now) {
        (Some(Want::Absent), None) => false,
        (before, now) => before != now,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Hold, HoldCode, Plugin, PodUid, SpecName};

    #[test]
    fn that_what_nobody_wants_is_gone_is_no_reason_to_try_again() {
        let id = |pod: &str| PublicationId {
            pod: PodUid::new(pod).unwrap(),
            plugin: Plugin::Csi,
            spec: SpecName::new("data").unwrap(),
        };
        let wants = |all: &[(&str, Want)]| {
            let publications = all.iter().map(|(pod, want)| (id(pod), want.clone())).collect();
            Arc::new(WantVolume { publications })
        };
        let held = Want::Held(Hold { code: HoldCode::Brake, detail: String::new(), remedy: String::new() });
        let (absent, both) =
            (wants(&[("a", Want::Absent)]), wants(&[("a", Want::Absent), ("b", held.clone())]));
        let other = wants(&[("b", held)]);
        assert!(!is_another_wish(Some(&absent), None));
        assert!(!is_another_wish(Some(&both), Some(&other)));
        assert!(!is_another_wish(Some(&both), Some(&both)));
        assert!(is_another_wish(None, Some(&absent)));
        assert!(is_another_wish(Some(&other), Some(&both)));
        assert!(is_another_wish(Some(&both), Some(&absent)));
        assert!(is_another_wish(Some(&other), None));
    }
}
