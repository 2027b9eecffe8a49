//! What an operator asks of the loop.

use std::collections::BTreeSet;

use super::Command;
use super::pass::Loop;
use crate::error::Chain;
use crate::model::{ObjectRef, PublicationId, VolumeKey, VolumeRecord, Want};
use crate::record::Durability;

impl Loop {
    /// Does what was asked. The asker may have gone: then nobody hears the answer.
    pub(super) async fn command(&mut self, command: Command) {
        match command {
            Command::Ping { reply } => drop(reply.send(())),
            Command::Retry { object, reply } => drop(reply.send(self.retry(object.as_ref()))),
            Command::Approve { reply } => drop(reply.send(self.approve().await)),
            Command::Pause { scope, reply } => drop(reply.send(self.pause(scope).await)),
            Command::Resume { scope, reply } => drop(reply.send(self.resume(&scope).await)),
            Command::Adopt { what, reply } => drop(reply.send(self.adopt(&what).await)),
            Command::AcceptIdentity { object, reply } => self.accept_identity(&object, reply),
            Command::Release { what, force, reply } => drop(reply.send(self.release(&what, force).await)),
        }
    }

    /// Forgets what failed, so that it is tried now.
    fn retry(&mut self, object: Option<&ObjectRef>) -> usize {
        let mut tried = 0;
        for key in self.volumes_named(object) {
            tried += self.forget_failures(&key);
            self.touched.insert(key);
        }
        tried
    }

    /// Returns the volumes of a pod or claim; of everything without a name.
    pub(super) fn volumes_named(&self, object: Option<&ObjectRef>) -> BTreeSet<VolumeKey> {
        let Some(object) = object else { return self.retries.keys().cloned().collect() };
        let mut keys = BTreeSet::new();
        for pod in self.status.borrow().pods.values() {
            let named = object.kind == "Pod"
                && object.name == pod.identity.name
                && object.namespace == pod.identity.namespace;
            for volume in pod.volumes.values() {
                if (named || volume.claim.as_ref() == Some(object))
                    && let Some((key, _)) = &volume.resolved
                {
                    keys.insert(key.clone());
                }
            }
        }
        keys
    }

    /// Writes the takedown of what the brake holds, or an incomplete reading, into the records.
    async fn approve(&mut self) -> Result<usize, String> {
        let braked: BTreeSet<PublicationId> = self.absences.approvable().into_iter().collect();
        for (key, record) in &mut self.records {
            let mut approved = record.clone();
            if let Some(running) = self.busy.get_mut(key) {
                running.approve.extend(braked.iter().cloned());
            } else if approve(&mut approved, &braked) {
                let written = self.parts.store.write(approved.clone(), Durability::Synced).await;
                written.map_err(|error| Chain(&error).to_string())?;
                *record = approved;
            }
        }
        self.settle_soon();
        Ok(braked.len())
    }
}

impl Loop {
    /// Takes back approvals and releases of what is wanted again: its next absence is a new one.
    pub(super) async fn withdraw_approvals(&mut self) {
        for (key, record) in &mut self.records {
            let Some(wants) = self.desired.volumes.get(key) else { continue };
            let mut changed = false;
            for (id, publication) in &mut record.publications {
                let given_up = publication.approved || publication.released;
                if given_up && matches!(wants.publications.get(id), Some(Want::Wanted(_))) {
                    // It is a manifest's now, whoever gave it up as adopted.
                    (publication.approved, publication.released, publication.adopted) = (false, false, false);
                    changed = true;
                }
            }
            if changed && !self.busy.contains_key(key) {
                // If it cannot be written, the old approval stands on disk until the next record of this volume.
                let _unwritten = self.parts.store.write(record.clone(), Durability::Synced).await;
            }
        }
    }
}

/// Marks the publications of a record as approved; returns whether there were any.
pub(super) fn approve(record: &mut VolumeRecord, approved: &BTreeSet<PublicationId>) -> bool {
    let mut any = false;
    for (id, publication) in &mut record.publications {
        if approved.contains(id) && !publication.approved {
            publication.approved = true;
            any = true;
        }
    }
    any
}
