//! Unpublish and unstage.

use super::{Work, fault, guard, set_publication, set_staging};
use crate::host::Unmount;
use crate::model::{
    CallState, Failure, Outcome, PublicationId, PublicationRecord, RecordedVolume, VolumeMode, VolumeRecord,
};
use crate::mutant::{self, Mutant};
use crate::record::Durability;
use crate::volumes::{self, Place};

impl Work<'_> {
    pub(super) async fn unpublish(&mut self, id: &PublicationId, force: bool) -> Result<Outcome, Failure> {
        let Some(publication) = self.record.publications.get(id) else { return Ok(Outcome::AlreadyThere) };
        if publication.state == CallState::Planned && publication.boot == self.executor.boot {
            let arguments = publication.arguments.clone();
            if let Some(arguments) = &arguments {
                guard::nothing_mounted(self.executor, &arguments.target_path).await?;
                let place = Place { id, arguments: Some(arguments) };
                // What was made before the call could not be sent; where somebody put something it stays.
                let _left = volumes::of(&self.record.volume).clean_publication(&self.site(), place).await;
            }
            self.update(Durability::Written, |record, _| drop(record.publications.remove(id))).await?;
            return Ok(Outcome::AlreadyThere);
        }
        let call = self.call()?;
        let recorded = guard::before_unpublication(self.executor, publication).await?;
        let arguments = publication.arguments.clone();
        let mut before = publication.clone();
        before.state = unless_block(publication);
        self.update(Durability::Written, |record, boot| {
            set_publication(record, id, (CallState::Undoing, boot.clone()));
            if let Some(publication) = record.publications.get_mut(id) {
                // It is not kept any more, whoever adopted it: half taken down it is nobody's.
                publication.adopted &= publication.released;
            }
        })
        .await?;
        fault::reached("unpublish:intent");
        let site = self.site();
        let volume = volumes::of(&self.record.volume);
        let place = Place { id, arguments: arguments.as_ref() };
        let answer = match volume.unpublish(&site, &call, place, force).await {
            Ok(answer) => answer,
            Err(failure) => {
                let restore = |record: &mut VolumeRecord| record.publications.insert(id.clone(), before);
                return self.not_begun(failure, |record, _| drop(restore(record))).await;
            }
        };
        fault::reached("unpublish:call");
        if let Some(arguments) = &arguments {
            // Of a driver's volume nothing is unmounted here that would need it.
            let how = match &self.record.volume {
                RecordedVolume::Nfs { .. } if force => Unmount::Forced,
                RecordedVolume::Nfs { .. }
                | RecordedVolume::Csi { .. }
                | RecordedVolume::EmptyDir
                | RecordedVolume::Local { .. }
                | RecordedVolume::Device { .. } => Unmount::Plain,
            };
            guard::after_undo(self.executor, &arguments.target_path, recorded.as_ref(), answer, how).await?;
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
        if staging.state == CallState::Planned && staging.boot == self.executor.boot {
            let arguments = staging.arguments.clone();
            guard::nothing_mounted(self.executor, &arguments.staging_path).await?;
            self.lock_disk().await?;
            self.disconnect().await?;
            let _left = volumes::of(&self.record.volume).clean_staging(&self.site(), &arguments).await;
            self.update(Durability::Written, |record, _| record.staging = None).await?;
            return Ok(Outcome::AlreadyThere);
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
        if mutant::is(Mutant::DisconnectFirst) {
            self.disconnect().await?;
        }
        let answer = match volume.unstage(&site, &call, &arguments).await {
            Ok(answer) => answer,
            Err(failure) => return self.not_begun(failure, |record, _| set_staging(record, before)).await,
        };
        fault::reached("unstage:call");
        let path = &arguments.staging_path;
        guard::after_undo(self.executor, path, recorded.as_ref(), answer, Unmount::Plain).await?;
        self.lock_disk().await?;
        self.disconnect().await?;
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
}

/// Returns the state to go back to when an undo did not begin. A block volume's link, lock and map may have gone before it was
/// refused, and no mount table shows that: it counts as in doubt, so that what is wanted again is mapped again.
fn unless_block(publication: &PublicationRecord) -> CallState {
    let is_block =
        publication.arguments.as_ref().is_some_and(|a| a.capability.volume_mode == VolumeMode::Block);
    match &publication.state {
        CallState::Done { .. } if is_block && !mutant::is(Mutant::UnmapUndoubted) => {
            CallState::Intended { settled: false }
        }
        state @ (CallState::Planned
        | CallState::Intended { .. }
        | CallState::Done { .. }
        | CallState::Undoing) => state.clone(),
    }
}
