//! Of all that could be done next, the first that is due; of the rest, the reasons.

use super::{Decision, Due, Now, Retries};
use crate::model::{Blocked, BlockedCause, Hold, Obstacle, PublicationId, Step, StepKind};

/// Collects candidates in order of preference: the first whose retry is due becomes the step, the others' reasons are kept.
pub(super) struct Chooser<'a> {
    pub(super) retries: &'a Retries,
    pub(super) now: Now,
    pub(super) decision: Decision,
}

const OBSTACLE_REMEDY: &str = "find out who mounted there and unmount it; volumed goes on by itself";

impl Chooser<'_> {
    pub(super) fn offer(&mut self, step: Step) {
        let kind = step.kind();
        match self.retries.get(&kind) {
            Some(state) if !state.is_due(self.now) => {
                if let Due::At(at) = state.due {
                    self.again_at(at);
                }
                self.decision.blocked.push(state.blocked(&kind, self.now));
            }
            Some(_) | None if self.decision.step.is_none() => self.decision.step = Some(step),
            Some(_) | None => {}
        }
    }

    /// Asks for another decision at this moment, ms of `Now::mono`.
    pub(super) fn again_at(&mut self, at: u64) {
        self.decision.again_at = Some(self.decision.again_at.map_or(at, |other| other.min(at)));
    }

    pub(super) fn block(&mut self, kind: &StepKind, cause: BlockedCause, remedy: &str) {
        let publication = kind.publication().cloned();
        let blocked = Blocked {
            step: kind.name().to_owned(),
            publication,
            cause,
            since: self.now.wall,
            attempts: 0,
            next_try: None,
            remedy: remedy.to_owned(),
        };
        if !self.decision.blocked.contains(&blocked) {
            self.decision.blocked.push(blocked);
        }
    }

    /// Blocks because of what lies at the step's path.
    pub(super) fn obstructed(&mut self, kind: &StepKind, path: &std::path::Path, obstacle: &Obstacle) {
        let cause = BlockedCause::new("obstacle", format!("{}: {obstacle}", path.display()));
        self.block(kind, cause, OBSTACLE_REMEDY);
    }

    pub(super) fn hold(&mut self, id: &PublicationId, hold: &Hold) {
        self.decision.blocked.push(Blocked {
            step: "resolve".to_owned(),
            publication: Some(id.clone()),
            cause: BlockedCause::new(hold.code.as_str(), hold.detail.clone()),
            since: self.now.wall,
            attempts: 0,
            next_try: None,
            remedy: hold.remedy.clone(),
        });
    }
}
