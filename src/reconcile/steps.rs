//! Steps: begun in tasks of their own, and taken into the truth when they end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinError;
use tokio::time::Instant;

use super::pass::{Loop, driver_of, millis};
use crate::execute::Ended;
use crate::model::{
    CallState, EventKind, InProgress, Outcome, PublicationId, PublicationPlan, PublicationRecord,
    RecordedVolume, Step, StepKind, VolumeKey,
};
use crate::plan::{Due, Now};

/// A step under way.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) kind: StepKind,
    pub(super) shown: InProgress,
    pub(super) begun: Instant,
    /// The publications whose intents it writes: absence is decided about them as if they were recorded.
    pub(super) intends: BTreeMap<PublicationId, Box<PublicationRecord>>,
    /// Approved by the operator meanwhile; goes into the record when the step has ended.
    pub(super) approve: BTreeSet<PublicationId>,
    /// The publication is to be repeated after a while.
    pub(super) repeats: bool,
    /// The volume that it brings up, and for which it takes room on this node.
    pub(super) brings: Option<RecordedVolume>,
}

/// What the loop's own tasks tell it.
#[derive(Debug)]
pub(super) enum Happening {
    /// A step ended.
    StepEnded(Box<StepResult>),
    /// A step says how far it got.
    StepTold(Told),
    /// The file systems that can die were asked.
    RoundEnded(Result<Option<BTreeMap<PathBuf, String>>, JoinError>),
    /// The operator accepted the disks of these volumes, or it could not be done.
    Accepted(Result<Vec<VolumeKey>, JoinError>),
}

/// How far a volume's step got, in words.
pub(super) type Told = (VolumeKey, String);

/// A step that ended, or the panic that ended it.
pub(super) type StepResult = Result<(VolumeKey, Ended), JoinError>;

impl Loop {
    pub(super) fn begin(&mut self, step: Step, now: Now) {
        let key = step.key().clone();
        let kind = step.kind();
        let shown = InProgress {
            step: kind.name(),
            publication: kind.publication().cloned(),
            detail: None,
            again: self
                .retries
                .get(&key)
                .and_then(|retries| retries.get(&kind))
                .map(|last| Box::new(last.blocked(&kind, now))),
            since: now.wall,
        };
        let intends = self.intended(&step);
        let repeats = match &step {
            Step::Publish(step) | Step::Republish(step) => step.repeats,
            Step::Stage(_) | Step::Expand(_) | Step::Unpublish { .. } | Step::Unstage { .. } => false,
        };
        let brings = match &step {
            Step::Stage(step) => Some(&step.volume),
            Step::Publish(step) => Some(&step.volume),
            Step::Republish(_) | Step::Expand(_) | Step::Unpublish { .. } | Step::Unstage { .. } => None,
        };
        let brings = brings.cloned();
        // So that no other takes its room meanwhile.
        if let Some(RecordedVolume::Csi { driver, .. }) = &brings {
            self.actual.reserve(driver, &key);
        }
        if kind == StepKind::Expand {
            // What the kernel says from here on is said of another look.
            self.resized.remove(&key);
        }
        let (begun, approve) = (Instant::now(), BTreeSet::new());
        let running = Running { kind, shown, begun, intends, approve, repeats, brings };
        self.busy.insert(key.clone(), running);
        let record = self.records.get(&key).cloned();
        let executor = Arc::clone(&self.executor);
        let progress = self.progress_of(&key);
        self.steps.spawn(async move { (key, executor.run(step, record, progress).await) });
    }

    fn intended(&self, step: &Step) -> BTreeMap<PublicationId, Box<PublicationRecord>> {
        let plans: Vec<(&PublicationId, &PublicationPlan)> = match step {
            Step::Stage(step) => step.planned.iter().collect(),
            Step::Publish(step) => vec![(&step.id, &step.plan)],
            Step::Republish(_) | Step::Expand(_) | Step::Unpublish { .. } | Step::Unstage { .. } => {
                Vec::new()
            }
        };
        let recorded = self.records.get(step.key()).map(|record| &record.publications);
        plans
            .into_iter()
            .filter(|(id, _)| recorded.is_none_or(|recorded| !recorded.contains_key(*id)))
            .map(|(id, plan)| {
                (id.clone(), Box::new(PublicationRecord::new(plan, self.boot.clone(), CallState::Planned)))
            })
            .collect()
    }

    /// Waits for a task of the loop's own: a step, or a round over file systems. Cancel-safe: what has ended stays in its set.
    pub(super) async fn happened(&mut self) -> Happening {
        tokio::select! {
            biased;
            Some(ended) = self.steps.join_next() => Happening::StepEnded(Box::new(ended)),
            Some(told) = self.progress.1.recv() => Happening::StepTold(told),
            Some(found) = self.round.join_next() => Happening::RoundEnded(found),
            Some(keys) = self.accepting.join_next() => Happening::Accepted(keys),
            // The loop holds a sender itself, so `recv` never ends.
        }
    }

    /// Takes what happened.
    pub(super) fn take(&mut self, happening: Happening) {
        match happening {
            Happening::StepEnded(ended) => self.take_ended(*ended),
            Happening::StepTold(told) => self.take_progress(told),
            Happening::RoundEnded(found) => self.take_round(found),
            Happening::Accepted(Ok(keys)) => self.take_accepted(keys),
            Happening::Accepted(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => {}
            },
        }
    }

    /// Takes a step's outcome into the truth.
    pub(super) fn take_ended(&mut self, ended: StepResult) {
        let (key, ended) = match ended {
            Ok(ended) => ended,
            Err(error) => match error.try_into_panic() {
                // A half-dead daemon is worse than a restarted one (design rule 7): the loop's own task panics with it.
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => return,
            },
        };
        let Some(running) = self.busy.remove(&key) else { return };
        // The step looked at a newer table than the loop's: by the loop's, what it has just mounted would be missing.
        self.due.mounts = true;
        let now = self.now();
        self.tell_ended(&key, &running, &ended, now);
        for note in &ended.notes {
            self.tell_of(&key, EventKind::Noted { key: key.clone(), note: note.clone() });
        }
        if running.kind == StepKind::Expand && ended.result.is_err() {
            self.resized.insert(key.clone());
        }
        let retries = self.retries.entry(key.clone()).or_default();
        match &ended.result {
            Ok(Outcome::Changed | Outcome::AlreadyThere) => {
                retries.succeeded(&running.kind);
                if let (true, Some(id)) = (running.repeats, running.kind.publication()) {
                    let pause = millis(self.parts.republish);
                    retries.published(id, now, pause, self.parts.ambient.random());
                }
            }
            Err(failure) => {
                retries.failed(&running.kind, failure, now, self.parts.ambient.random());
            }
        }
        if retries.is_empty() {
            self.retries.remove(&key);
        }
        match ended.record {
            Some(mut record) => {
                super::commands::approve(&mut record, &running.approve);
                // The step's copy may have brought an approval or release back that was withdrawn meanwhile.
                let given_up = |publication: &PublicationRecord| publication.approved || publication.released;
                let approved = record.publications.values().any(|publication| given_up(publication));
                self.records.insert(key.clone(), record);
                self.due.settle |= approved || self.is_undecided(&key);
            }
            None => {
                self.make_room(&key, running.brings.as_ref());
                self.records.remove(&key);
                self.operator.forced.remove(&key);
            }
        }
        self.doubt_death(&key, &running.kind);
        self.forget_foreign(&key);
        self.observe(&key);
        self.touch_waiting(&key, &running.kind);
        self.touched.insert(key);
    }

    fn tell_ended(&mut self, key: &VolumeKey, running: &Running, ended: &Ended, now: Now) {
        let record = ended.record.as_ref().or_else(|| self.records.get(key));
        let publication = running.kind.publication().cloned();
        let recorded = publication.as_ref().and_then(|id| {
            let recorded = record.and_then(|record| record.publications.get(id));
            recorded.or_else(|| self.records.get(key)?.publications.get(id))
        });
        let pod = recorded.map(|publication| publication.pod.clone());
        let claim = recorded.and_then(|publication| publication.claim.clone());
        let driver = record.and_then(|record| driver_of(record).cloned());
        let step = running.kind.name();
        let event = match &ended.result {
            Ok(Outcome::AlreadyThere) => return,
            Ok(Outcome::Changed) => EventKind::StepDone {
                key: key.clone(),
                step,
                publication,
                pod,
                claim,
                driver,
                took_ms: millis(running.begun.elapsed()),
                not_a_mount_point: ended.not_a_mount_point,
            },
            Err(failure) => {
                let mut retries = self.retries.get(key).cloned().unwrap_or_default();
                let state = retries.failed(&running.kind, failure, now, 0);
                EventKind::StepFailed {
                    key: key.clone(),
                    step,
                    publication,
                    pod,
                    claim,
                    driver,
                    cause: failure.cause.clone(),
                    attempts: state.attempts,
                    next_try_ms: match state.due {
                        Due::At(at) => Some(at.saturating_sub(now.mono)),
                        Due::WhenChanged => None,
                    },
                }
            }
        };
        self.tell_of(key, event);
    }

    /// A record has a publication that was not decided about: it was begun under a former reading.
    fn is_undecided(&self, key: &VolumeKey) -> bool {
        let wants = self.desired.volumes.get(key);
        self.records.get(key).is_some_and(|record| {
            record
                .publications
                .keys()
                .any(|id| wants.is_none_or(|wants| !wants.publications.contains_key(id)))
        })
    }

    /// Counts a volume no longer that has left the node, and touches those that its driver had no room for.
    fn make_room(&mut self, key: &VolumeKey, brought: Option<&RecordedVolume>) {
        let recorded = self.records.get(key).map(|record| &record.volume).or(brought);
        let Some(RecordedVolume::Csi { driver, .. }) = recorded.cloned() else { return };
        self.actual.release(&driver, key);
        let limit = self.actual.drivers.get(&driver).map_or(0, |state| state.info.max_volumes);
        if limit > 0 {
            let waiting = self.volumes_of(&BTreeSet::from([driver]));
            self.touched.extend(waiting);
        }
    }

    /// Touches the volumes that wait for a place that another one has given back.
    fn touch_waiting(&mut self, key: &VolumeKey, kind: &StepKind) {
        let StepKind::Unpublish(id) = kind else { return };
        let others = self.contested.get(id).into_iter().flatten().filter(|other| *other != key);
        self.touched.extend(others.cloned());
    }
}
