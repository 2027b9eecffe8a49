//! What is remembered of steps that failed: when each may be tried again.

use std::collections::BTreeMap;

use crate::model::{Blocked, BlockedCause, Failure, Millis, PublicationId, Retry, StepKind};

/// The failed steps of one volume, and when its publications are to be repeated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retries {
    failed: BTreeMap<StepKind, RetryState>,
    republish: BTreeMap<PublicationId, u64>,
}

/// This moment, by two clocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// ms since the daemon's start; for deciding.
    pub mono: u64,
    /// ms since the epoch; for showing.
    pub wall: Millis,
}

/// One failed step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryState {
    /// How often it failed since it last succeeded or its cause changed.
    pub attempts: u32,
    /// When it is tried again.
    pub due: Due,
    /// Why it failed last.
    pub cause: BlockedCause,
    /// What an operator can do.
    pub remedy: String,
    /// When it first failed.
    pub since: Millis,
}

/// When a step is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// At this moment, ms of `Now::mono`.
    At(u64),
    /// When the cause changes.
    WhenChanged,
}

/// The first pause, ms (kubelet.md 1.1).
const FIRST_MS: u64 = 500;
/// The longest pause of what ends without a sign, ms.
const SOON_MS: u64 = 10_000;
/// The longest pause, ms.
const LONGEST_MS: u64 = 120_000;

// === impl Retries ===

impl Retries {
    /// Returns what is remembered of a step.
    pub fn get(&self, kind: &StepKind) -> Option<&RetryState> {
        self.failed.get(kind)
    }

    /// Remembers that a step failed. `random` spreads the pause by up to a tenth, so that volumes that failed together
    /// do not come back together.
    pub fn failed(&mut self, kind: &StepKind, failure: &Failure, now: Now, random: u64) -> RetryState {
        let attempts = self.failed.get(kind).map_or(0, |old| old.attempts).saturating_add(1);
        let since = self.failed.get(kind).map_or(now.wall, |old| old.since);
        let pause = match failure.retry {
            Retry::Backoff => FIRST_MS.saturating_mul(1 << (attempts - 1).min(16)).min(LONGEST_MS),
            Retry::Soon => FIRST_MS.saturating_mul(1 << (attempts - 1).min(16)).min(SOON_MS),
            Retry::Slow | Retry::WhenChanged => LONGEST_MS,
        };
        let due = match failure.retry {
            Retry::WhenChanged => Due::WhenChanged,
            Retry::Backoff | Retry::Soon | Retry::Slow => {
                Due::At(now.mono + pause + random % (pause / 10 + 1))
            }
        };
        let (cause, remedy) = (failure.cause.clone(), failure.remedy.clone());
        let state = RetryState { attempts, due, cause, remedy, since };
        self.failed.insert(kind.clone(), state.clone());
        state
    }

    /// Forgets a step that succeeded.
    pub fn succeeded(&mut self, kind: &StepKind) {
        self.failed.remove(kind);
        if let StepKind::Unpublish(id) = kind {
            self.republish.remove(id);
        }
    }

    /// Remembers that a publication was made which is to be repeated after `pause` ms (requiresRepublish), and up to a tenth
    /// more.
    pub fn published(&mut self, id: &PublicationId, now: Now, pause: u64, random: u64) {
        self.republish.insert(id.clone(), now.mono + pause + random % (pause / 10 + 1));
    }

    /// Returns when a publication is to be repeated, ms of `Now::mono`; `None`: it was not yet published by this process.
    pub fn republish_at(&self, id: &PublicationId) -> Option<u64> {
        self.republish.get(id).copied()
    }

    /// Forgets every failure, since the cause changed; returns how many steps that was.
    pub fn reset(&mut self) -> usize {
        std::mem::take(&mut self.failed).len()
    }

    /// Returns whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.failed.is_empty() && self.republish.is_empty()
    }
}

// === impl RetryState ===

impl RetryState {
    /// Returns whether the step may be tried.
    pub fn is_due(&self, now: Now) -> bool {
        match self.due {
            Due::At(at) => now.mono >= at,
            Due::WhenChanged => false,
        }
    }

    /// Returns how it is shown.
    pub fn blocked(&self, kind: &StepKind, now: Now) -> Blocked {
        let next_try = match self.due {
            Due::At(at) => Some(now.wall.saturating_add_unsigned(at.saturating_sub(now.mono))),
            Due::WhenChanged => None,
        };
        Blocked {
            step: kind.name().to_owned(),
            publication: kind.publication().cloned(),
            cause: self.cause.clone(),
            since: self.since,
            attempts: self.attempts,
            next_try,
            remedy: self.remedy.clone(),
        }
    }
}
