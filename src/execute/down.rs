//! Unpublish and unstage.

use super::{Work, fault, guard, set_publication, set_staging};
use crate::model::{
    CallState, Effect, Failure, Outcome, PublicationId, PublicationRecord, VolumeMode, VolumeRecord,
};
use crate::mutant::{self, Mutant};
use crate::record::Durability;
use crate::volumes::{self, Place};

impl Work<'_> {
    pub(super) async fn unpublish(&mut self, id: &PublicationId, force: bool) -> Result<Outcome, Failure> {
        let Some(publication) = self.record.publications.get(id) else { return Ok(Outcome::AlreadyThere) };
        if publication.state == CallState::Planned && publication.boot == self.executor.boot {
            self.update(Durability::Written, |record, _| drop(record.publications.remove(id))).await?;
            return Ok(Outcome::AlreadyThere);
        }
        let call = self.call()?;
        let recorded = guard::before_unpublication(self.executor, publication).await?;
        let arguments = publication.arguments.clone();
        let before = (unless_block(publication), publication.boot.clone());
        self.update(Durability::Written, |record, boot| {
            set_publication(record, id, (CallState::Undoing, boot.clone()));
        })
        .await?;
        fault::reached("unpublish:intent");
        let site = self.site();
        let volume = volumes::of(&self.record.volume);
        let place = Place { id, arguments: arguments.as_ref() };
        let answer = match volume.unpublish(&site, &call, place, force).await {
            Ok(answer) => answer,
            Err(failure) => {
                return self.not_undone(failure, |record| set_publication(record, id, before)).await;
            }
        };
        fault::reached("unpublish:call");
        if let Some(arguments) = &arguments {
            guard::after_undo(self.executor, &arguments.target_path, recorded.as_ref(), answer).await?;
        }
        volume.clean_publication(&site, place).await?;
        self.update(Durability::Written, |record, _| drop(record.publications.remove(id))).await?;
        fault::reached("unpublish:outcome");
        Ok(Outcome::Changed)
    }

    pub(super) async fn unstage(&mut self, force: bool) -> Result<Outcome, Failure> {
        let Some(staging) = &self.record.staging else { return Ok(Outcome::AlreadyThere) };
        if !self.record.publications.is_empty() && !mutant::is(Mutant::UnstageFirst) {
            // The plan never asks for it (design rule 4); a second lock on the same door.
            return Err(Failure::not_done(
                "still-published",
                "the volume is still published to a pod",
                "wait",
            ));
        }
        let call = self.call()?;
        let recorded = guard::before_unstaging(self.executor, staging).await?;
        if !force {
            guard::nobody_has(self.executor, staging, call.driver.as_ref()).await?;
        }
        let arguments = staging.arguments.clone();
        let before = (staging.state.clone(), staging.boot.clone());
        self.update(Durability::Written, |record, boot| {
            set_staging(record, (CallState::Undoing, boot.clone()));
        })
        .await?;
        fault::reached("unstage:intent");
        let site = self.site();
        let volume = volumes::of(&self.record.volume);
        let answer = match volume.unstage(&site, &call, &arguments).await {
            Ok(answer) => answer,
            Err(failure) => return self.not_undone(failure, |record| set_staging(record, before)).await,
        };
        fault::reached("unstage:call");
        guard::after_undo(self.executor, &arguments.staging_path, recorded.as_ref(), answer).await?;
        volume.clean_staging(&site, &arguments).await?;
        self.update(Durability::Written, |record, _| {
            record.staging = None;
            // What stands in the way of growing is gone with it; the size is remembered apart.
            record.expansion = None;
            record.size = None;
        })
        .await?;
        fault::reached("unstage:outcome");
        Ok(Outcome::Changed)
    }

    /// Takes back that an undo was begun which did not even begin: refused because somebody has the volume, or never sent. What
    /// is wanted again by then simply stays; else its undo would go on as soon as nobody happened to look.
    async fn not_undone(
        &mut self,
        failure: Failure,
        restore: impl FnOnce(&mut VolumeRecord),
    ) -> Result<Outcome, Failure> {
        if failure.effect == Effect::NotDone {
            // If this cannot be written the undo stays begun, which only takes down what is to be brought up again.
            let _unwritten = self.update(Durability::Written, |record, _| restore(record)).await;
        }
        Err(failure)
    }
}

/// Returns the state to go back to when an undo did not begin. A block volume's link, lock and map may have gone before it was
/// refused, and no mount table shows that: it counts as in doubt, so that what is wanted again is mapped again.
fn unless_block(publication: &PublicationRecord) -> CallState {
    let is_block =
        publication.arguments.as_ref().is_some_and(|a| a.capability.volume_mode == VolumeMode::Block);
    match &publication.state {
        CallState::Done { .. } if is_block => CallState::Intended { settled: false },
        state @ (CallState::Done { .. }
        | CallState::Planned
        | CallState::Intended { .. }
        | CallState::Undoing) => state.clone(),
    }
}
