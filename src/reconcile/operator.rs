//! What the operator said of volumes: paused ones, and those that are taken down although somebody has them.

use std::collections::BTreeSet;

use super::pass::Loop;
use crate::error::Chain;
use crate::model::{ObjectRef, Scope, VolumeKey, Want};
use crate::observe::ObserveError;
use crate::plan::Orders;
use crate::record::Store;

/// What was said. Pauses outlive a restart, force does not: who said it saw what was there then.
#[derive(Debug, Default)]
pub(super) struct Operator {
    pub(super) paused: BTreeSet<Scope>,
    pub(super) forced: BTreeSet<VolumeKey>,
}

/// The note of what is paused.
const PAUSED_NOTE: &str = "paused";

impl Operator {
    /// Reads what was said before a restart.
    pub(super) async fn read(store: &dyn Store) -> Result<Self, ObserveError> {
        let noted = store.note(PAUSED_NOTE).await.map_err(ObserveError::Records)?;
        let paused = noted.and_then(|note| serde_json::from_value(note).ok()).unwrap_or_default();
        Ok(Self { paused, forced: BTreeSet::new() })
    }
}

impl Loop {
    /// Returns what was said of one volume.
    pub(super) fn orders(&self, key: &VolumeKey) -> Orders {
        Orders {
            paused: self.operator.paused.iter().any(|scope| self.is_in(key, scope)),
            // Said of what is going; should it be wanted again, it was not said of its next takedown.
            force: self.operator.forced.contains(key) && self.is_going(key),
            resized: self.resized.contains(key),
        }
    }

    fn is_in(&self, key: &VolumeKey, scope: &Scope) -> bool {
        match scope {
            Scope::All => true,
            Scope::Driver(driver) => self.driver_of(key) == Some(driver),
            Scope::Object(object) => self.belongs_to(key, object),
        }
    }

    /// Whether a volume is one of a pod's or claim's, by its record or by the wish.
    pub(super) fn belongs_to(&self, key: &VolumeKey, object: &ObjectRef) -> bool {
        let is = |pod: &crate::model::PodIdentity, claim: Option<&ObjectRef>| {
            let named = object.kind == "Pod" && object.name == pod.name && object.namespace == pod.namespace;
            named || claim == Some(object)
        };
        let recorded = self.records.get(key).into_iter().flat_map(|record| record.publications.values());
        let wants = self.desired.volumes.get(key).into_iter().flat_map(|want| want.publications.values());
        recorded.into_iter().any(|publication| is(&publication.pod, publication.claim.as_ref()))
            || self.belonged_to(key, object)
            || wants.into_iter().any(|want| match want {
                Want::Wanted(wanted) => is(&wanted.pod, wanted.claim.as_ref()),
                Want::Held(_) | Want::Absent => false,
            })
    }

    /// Whether a volume that is still staged was one of a pod's or claim's until its last publication went.
    fn belonged_to(&self, key: &VolumeKey, object: &ObjectRef) -> bool {
        let status = self.status.borrow();
        let released = status.volumes.get(key).into_iter().flat_map(|volume| &volume.released);
        released.into_iter().any(|id| {
            status.pods.get(&id.pod).is_some_and(|pod| {
                let named = object.kind == "Pod"
                    && object.name == pod.identity.name
                    && object.namespace == pod.identity.namespace;
                let of_key =
                    |of: &Option<_>| of.as_ref().is_some_and(|(other, place)| other == key && place == id);
                let mut here = pod.volumes.values().filter(|volume| of_key(&volume.resolved));
                here.any(|volume| named || volume.claim.as_ref() == Some(object))
            })
        })
    }

    pub(super) async fn pause(&mut self, scope: Scope) -> Result<(), String> {
        let mut paused = self.operator.paused.clone();
        paused.insert(scope);
        self.set_paused(paused).await
    }

    /// Takes back a pause; everything takes back every pause.
    pub(super) async fn resume(&mut self, scope: &Scope) -> Result<usize, String> {
        let mut paused = self.operator.paused.clone();
        let before = paused.len();
        match scope {
            Scope::All => paused.clear(),
            Scope::Object(_) | Scope::Driver(_) => drop(paused.remove(scope)),
        }
        let taken_back = before - paused.len();
        self.set_paused(paused).await?;
        Ok(taken_back)
    }

    async fn set_paused(&mut self, paused: BTreeSet<Scope>) -> Result<(), String> {
        if paused == self.operator.paused {
            return Ok(());
        }
        let note = serde_json::to_value(&paused).map_err(|error| error.to_string())?;
        let written = self.parts.store.set_note(PAUSED_NOTE, note).await;
        written.map_err(|error| Chain(&error).to_string())?;
        self.operator.paused = paused;
        self.touched.extend(self.desired.volumes.keys().chain(self.records.keys()).cloned());
        self.show_paused();
        Ok(())
    }

    pub(super) fn show_paused(&self) {
        let paused: Vec<Scope> = self.operator.paused.iter().cloned().collect();
        self.status.send_if_modified(|status| {
            let changed = status.paused != paused;
            status.paused = paused;
            changed
        });
    }
}
