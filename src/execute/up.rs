//! Stage, publish, and publish again.

use super::{Work, fault, guard, set_publication, set_staging};
use crate::model::{
    BlockedCause, BootId, CallState, Effect, ExpansionState, Failure, Outcome, PublicationRecord,
    PublishStep, RecordedMount, Retry, StageStep, StagingKind, StagingRecord, VolumeRecord,
};
use crate::record::Durability;
use crate::volumes::{self, Call};

impl Work<'_> {
    pub(super) async fn stage(&mut self, step: &StageStep) -> Result<Outcome, Failure> {
        let mut call = self.call()?;
        guard::before_staging(self.executor, &self.record, step).await?;
        let before = self.record.staging.clone();
        self.intend_staging(step).await?;
        fault::reached("stage:intent");
        let sent = match self.prepare(&mut call, step).await {
            Ok(()) => volumes::of(&self.record.volume).stage(&self.site(), &call, step).await,
            Err(failure) => Err(failure),
        };
        let sent = sent.map(|notes| self.notes.extend(notes));
        fault::reached("stage:call");
        if let Some(failure) = unsent(&sent, step.adopt.is_some()) {
            let planned = |boot: &BootId| StagingRecord {
                boot: boot.clone(),
                state: CallState::Planned,
                arguments: step.arguments.clone(),
            };
            let take_back = |record: &mut VolumeRecord, boot: &BootId| {
                record.staging = Some(before.unwrap_or_else(|| planned(boot)));
            };
            return self.not_begun(failure, take_back).await;
        }
        let mounted = match sent {
            Ok(()) => guard::found(self.executor, &step.arguments.staging_path).await,
            Err(failure) => Err(failure),
        };
        let mount = match mounted {
            Ok(mount) => mount,
            Err(failure) => return self.settle(failure, set_staging).await,
        };
        let is_to_mount = step.arguments.kind == StagingKind::Call;
        self.not_a_mount_point = is_to_mount && mount == RecordedMount::NotAMountPoint;
        self.update(Durability::Written, |record, boot| {
            set_staging(record, (CallState::Done { mount }, boot.clone()));
        })
        .await?;
        fault::reached("stage:outcome");
        Ok(Outcome::Changed)
    }

    /// Looks after what the volume is on, before it is staged.
    async fn prepare(&mut self, call: &mut Call, step: &StageStep) -> Result<(), Failure> {
        if let Some(device) = self.connect(&step.secrets).await? {
            call.disk = Some(self.prepare_disk(&device, step).await?);
        }
        Ok(())
    }

    /// Writes the staging's intent, and with it those of the publications that will follow: one synced record.
    async fn intend_staging(&mut self, step: &StageStep) -> Result<(), Failure> {
        self.intend(|record, boot| {
            let arguments = step.arguments.clone();
            let state = CallState::Intended { settled: false };
            if record.staging.as_ref().is_some_and(|staging| staging.boot != *boot) {
                // With the other boot ended the use that a growth was refused for.
                record.expansion.take_if(|expansion| expansion.state == ExpansionState::InUse);
            }
            record.staging = Some(StagingRecord { boot: boot.clone(), state, arguments });
            for (id, plan) in &step.planned {
                if !record.publications.contains_key(id) {
                    let planned = PublicationRecord::new(plan, boot.clone(), CallState::Planned);
                    record.publications.insert(id.clone(), Box::new(planned));
                }
            }
        })
        .await
    }

    /// Writes a publication's intent. One that was synced with its staging's need not be synced again: after a power cut what
    /// was planned in another boot counts as in doubt too.
    async fn intend_publication(&mut self, step: &PublishStep) -> Result<(), Failure> {
        let id = &step.id;
        let intended = |record: &mut VolumeRecord, boot: &BootId, state| {
            let intended = PublicationRecord::new(&step.plan, boot.clone(), state);
            record.publications.insert(id.clone(), Box::new(intended));
        };
        let mut planned = self.record.clone();
        intended(&mut planned, &self.executor.boot, CallState::Planned);
        let state = CallState::Intended { settled: false };
        if self.stored && planned == self.record {
            let written =
                self.update(Durability::Written, |record, boot| intended(record, boot, state)).await;
            return written.map_err(|failure| Failure { effect: Effect::NotDone, ..failure });
        }
        self.intend(|record, boot| intended(record, boot, state)).await
    }

    pub(super) async fn publish(&mut self, step: &PublishStep) -> Result<Outcome, Failure> {
        let mut call = self.call()?;
        let id = &step.id;
        guard::before_publication(self.executor, &self.record, step).await?;
        let before = self.record.publications.get(id).cloned();
        call.disk = self.staged_disk().await?;
        call.shown_on = before.as_deref().and_then(|before| shown_on(before, &self.executor.boot));
        self.intend_publication(step).await?;
        fault::reached("publish:intent");
        let site = self.site();
        let volume = volumes::of(&self.record.volume);
        let arguments = step.plan.arguments.as_ref();
        let sent = volume.publish(&site, &call, step).await;
        fault::reached("publish:call");
        if let Some(failure) = unsent(&sent, step.adopt.is_some()) {
            let planned =
                |boot: &BootId| PublicationRecord::new(&step.plan, boot.clone(), CallState::Planned);
            let take_back = |record: &mut VolumeRecord, boot: &BootId| {
                record.publications.insert(id.clone(), before.unwrap_or_else(|| Box::new(planned(boot))));
            };
            return self.not_begun(failure, take_back).await;
        }
        let mounted = match (sent, arguments) {
            (Ok(()), Some(arguments)) => guard::found(self.executor, &arguments.target_path).await,
            (Ok(()), None) => Ok(RecordedMount::NotAMountPoint),
            (Err(failure), _) => Err(failure),
        };
        let finished = match mounted {
            // NodePublish was answered OK: whatever else failed, other arguments may not be sent before it is undone.
            Ok(mount) => {
                let finished = self.finish(step).await.map_err(|f| Failure { settled: false, ..f });
                finished.map(|()| mount)
            }
            Err(failure) => Err(failure),
        };
        let mount = match finished {
            Ok(mount) => mount,
            Err(failure) => {
                return self.settle(failure, |record, state| set_publication(record, id, state)).await;
            }
        };
        self.not_a_mount_point = arguments.is_some() && mount == RecordedMount::NotAMountPoint;
        let size = self.size;
        self.update(Durability::Written, |record, boot| {
            set_publication(record, id, (CallState::Done { mount }, boot.clone()));
            record.size = size.or(record.size);
        })
        .await?;
        fault::reached("publish:outcome");
        Ok(Outcome::Changed)
    }

    /// Does what the pod needs besides the driver's call: ownership, the device's place, and the size.
    async fn finish(&mut self, step: &PublishStep) -> Result<(), Failure> {
        let site = self.site();
        volumes::of(&self.record.volume).finish_publication(&site, step, &self.progress).await?;
        fault::reached("publish:finish");
        if let Some(growth) = &step.growth {
            self.grow_at_bring_up(growth).await?;
        }
        Ok(())
    }

    /// Calls NodePublish for what is published. Whatever comes of it, the record still says what is there: a mount that the
    /// driver exchanged is seen by the mount table and doubted like any other that changed (csi.md 10, 31).
    pub(super) async fn republish(&mut self, step: &PublishStep) -> Result<Outcome, Failure> {
        let (Some(arguments), Some(recorded)) =
            (&step.plan.arguments, self.record.publications.get(&step.id).map(|p| p.state.clone()))
        else {
            return Ok(Outcome::AlreadyThere);
        };
        let call = self.call()?;
        guard::before_publication(self.executor, &self.record, step).await?;
        let site = self.site();
        volumes::of(&self.record.volume).publish(&site, &call, step).await?;
        fault::reached("republish:call");
        let mount = guard::found(self.executor, &arguments.target_path).await?;
        match (&recorded, &mount) {
            (CallState::Done { mount: old }, new) if old == new => Ok(Outcome::AlreadyThere),
            // Drivers may put a new mount in the place of the old one; nothing else may.
            (CallState::Done { .. }, RecordedMount::Mount(_)) => {
                self.update(Durability::Written, |record, boot| {
                    set_publication(record, &step.id, (CallState::Done { mount }, boot.clone()));
                })
                .await?;
                Ok(Outcome::Changed)
            }
            (_, _) => Err(Failure {
                effect: Effect::MayBeDone,
                settled: true,
                retry: Retry::Backoff,
                cause: BlockedCause::new(
                    "vanished",
                    format!(
                        "after NodePublishVolume nothing is mounted at {}",
                        arguments.target_path.display()
                    ),
                ),
                remedy: "look at the driver's log".to_owned(),
            }),
        }
    }
}

/// Returns the number of the device whose mount was recorded in this boot.
fn shown_on(before: &PublicationRecord, boot: &BootId) -> Option<(u32, u32)> {
    match &before.state {
        CallState::Done { mount: RecordedMount::Mount(mount) }
            if before.boot == *boot && mount.fs_type != "btrfs" =>
        {
            Some(mount.device)
        }
        CallState::Done { .. } | CallState::Planned | CallState::Intended { .. } | CallState::Undoing => None,
    }
}

/// Returns the failure of a call that was not sent: its intent is taken back, so that what somebody mounts there meanwhile is
/// not taken for its work. What is taken over lies there already.
fn unsent(sent: &Result<(), Failure>, adopts: bool) -> Option<Failure> {
    sent.as_ref().err().filter(|failure| failure.effect == Effect::NotDone && !adopts).cloned()
}
