//! The mass-delete brake (design 3): when much goes at once, a person is asked first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::absence::Spot;
use crate::model::{BrakeStatus, DirectoryState, Hold, HoldCode, Millis, PublicationId, VolumeKey};

/// How long an absence counts.
const WINDOW_MS: u64 = 60_000;
/// So many volumes may always go within a minute.
const FEW: usize = 10;
/// So many volumes may go with the last manifest of a directory.
const FEW_OF_DIRECTORY: usize = 3;

/// What went, and what is kept from going.
#[derive(Debug, Default)]
pub(super) struct Brake {
    release_after_ms: Option<u64>,
    /// Let go. Kept while it is still recorded, so that a decision stands, and for a minute, because it counts.
    allowed: BTreeMap<Spot, Allowed>,
    /// Kept, however much time passes.
    braked: BTreeMap<Spot, Braked>,
    /// Kept before a restart, and not yet known to be absent again.
    remembered: BTreeSet<Spot>,
}

#[derive(Debug)]
struct Allowed {
    at_ms: u64,
    /// Released by time, not counted: an operator's setting decided about it.
    released: bool,
    directory: Option<PathBuf>,
}

#[derive(Debug)]
struct Braked {
    at_ms: u64,
    since: Millis,
    reason: Arc<str>,
    directory: Option<PathBuf>,
}

/// An absence that two complete readings confirmed.
#[derive(Debug)]
pub(super) struct Confirmed {
    pub(super) spot: Spot,
    /// The directory that its manifest was in.
    pub(super) directory: Option<PathBuf>,
}

impl Brake {
    pub(super) fn new(release_after_ms: Option<u64>) -> Self {
        Self { release_after_ms, ..Self::default() }
    }

    /// Forgets what is no longer a candidate: it came back, was approved, or was taken down more than a minute ago.
    pub(super) fn forget(
        &mut self,
        now_ms: u64,
        is_candidate: impl Fn(&Spot) -> bool,
        came_back: impl Fn(&Spot) -> bool,
    ) {
        self.braked.retain(|spot, _| is_candidate(spot));
        self.remembered.retain(|spot| !came_back(spot));
        self.allowed.retain(|spot, allowed| {
            is_candidate(spot) || (!came_back(spot) && is_recent(allowed.at_ms, now_ms))
        });
    }

    /// Decides about what a complete reading confirmed. `volumes` are all that are recorded.
    pub(super) fn judge(
        &mut self,
        confirmed: Vec<Confirmed>,
        volumes: &BTreeSet<&VolumeKey>,
        directories: &BTreeMap<PathBuf, DirectoryState>,
        now_ms: u64,
        wall: Millis,
    ) {
        self.release(now_ms);
        let new: Vec<Confirmed> = confirmed
            .into_iter()
            .filter(|c| !self.allowed.contains_key(&c.spot) && !self.braked.contains_key(&c.spot))
            .collect();
        if new.is_empty() {
            return;
        }
        let reasons = self.reasons(&new, volumes, directories, now_ms);
        let before: Arc<str> = "it was held when volumed was restarted".into();
        for Confirmed { spot, directory } in new {
            let remembered = self.remembered.remove(&spot).then_some(&before);
            let reason = reasons.all.as_ref().or_else(|| reasons.by_directory.get(directory.as_ref()?));
            match reason.or(remembered) {
                Some(reason) => {
                    let reason = Arc::clone(reason);
                    self.braked.insert(spot, Braked { at_ms: now_ms, since: wall, reason, directory });
                }
                None => {
                    self.allowed.insert(spot, Allowed { at_ms: now_ms, released: false, directory });
                }
            }
        }
    }

    /// Counts the last minute's absences together with the new ones. A volume counts once.
    fn reasons(
        &self,
        new: &[Confirmed],
        volumes: &BTreeSet<&VolumeKey>,
        directories: &BTreeMap<PathBuf, DirectoryState>,
        now_ms: u64,
    ) -> Reasons {
        let allowed = self.allowed.iter().filter(|(_, a)| !a.released && is_recent(a.at_ms, now_ms));
        let allowed = allowed.map(|(spot, a)| (&spot.0, a.directory.as_deref()));
        let braked = self.braked.iter().filter(|(_, b)| is_recent(b.at_ms, now_ms));
        let braked = braked.map(|(spot, b)| (&spot.0, b.directory.as_deref()));
        let new = new.iter().map(|c| (&c.spot.0, c.directory.as_deref()));
        let mut lost = BTreeSet::new();
        let mut lost_of: BTreeMap<&Path, BTreeSet<&VolumeKey>> = BTreeMap::new();
        for (key, directory) in allowed.chain(braked).chain(new) {
            lost.insert(key);
            if let Some(directory) = directory {
                lost_of.entry(directory).or_default().insert(key);
            }
        }
        // What was taken down within the minute has no record any more, and was one of all.
        let of = lost.union(volumes).count();
        let much = lost.len() > FEW && lost.len() * 2 > of;
        let all = much.then(|| {
            format!("{} of {of} volumes went out of the manifests within a minute", lost.len()).into()
        });
        let mut by_directory = BTreeMap::new();
        for (directory, lost) in lost_of.into_iter().filter(|(_, lost)| lost.len() > FEW_OF_DIRECTORY) {
            let how = match directories.get(directory) {
                Some(state) if state.files > 0 => continue,
                Some(_) => "has no manifests any more",
                // Out of the configuration, which is as sudden.
                None => "is not a manifest directory any more",
            };
            let reason = format!("{} {how}, and {} volumes went with them", directory.display(), lost.len());
            by_directory.insert(directory.to_owned(), reason.into());
        }
        Reasons { all, by_directory }
    }

    /// Lets go of what was held for the configured time.
    fn release(&mut self, now_ms: u64) {
        let Some(after) = self.release_after_ms else { return };
        let due = |b: &Braked| b.at_ms.saturating_add(after) <= now_ms;
        let released: Vec<Spot> =
            self.braked.iter().filter(|(_, b)| due(b)).map(|(spot, _)| spot.clone()).collect();
        for spot in released {
            if let Some(braked) = self.braked.remove(&spot) {
                let directory = braked.directory;
                self.allowed.insert(spot, Allowed { at_ms: now_ms, released: true, directory });
            }
        }
    }

    /// Returns when the next release by time is due.
    pub(super) fn release_at_ms(&self) -> Option<u64> {
        let after = self.release_after_ms?;
        self.braked.values().map(|b| b.at_ms.saturating_add(after)).min()
    }

    /// Returns why a publication is kept.
    pub(super) fn hold(&self, spot: &Spot) -> Option<Hold> {
        let braked = self.braked.get(spot)?;
        let time = self.release_after_ms.map_or_else(String::new, |after| {
            format!(", or wait until it has been held for {} s", after / 1000)
        });
        Some(super::hold::hold(
            HoldCode::Brake,
            format!("held by the mass-delete brake: {}", braked.reason),
            format!("restore the manifests, or take the volumes down with: volumectl approve{time}"),
        ))
    }

    /// Returns what is kept.
    pub(super) fn braked(&self) -> impl Iterator<Item = &PublicationId> {
        self.braked.keys().map(|(_, id)| id)
    }

    /// Returns what is kept, and what was kept before a restart.
    pub(super) fn spots(&self) -> Vec<Spot> {
        self.braked.keys().chain(&self.remembered).collect::<BTreeSet<_>>().into_iter().cloned().collect()
    }

    /// Takes what was kept before a restart.
    pub(super) fn remember(&mut self, spots: impl IntoIterator<Item = Spot>) {
        self.remembered.extend(spots);
    }

    /// Returns what the operator sees of it.
    pub(super) fn status(&self) -> Option<BrakeStatus> {
        let since = self.braked.values().map(|b| b.since).min()?;
        let reasons: BTreeSet<&str> = self.braked.values().map(|b| &*b.reason).collect();
        let reason = reasons.into_iter().collect::<Vec<_>>().join("; ");
        Some(BrakeStatus { held: self.braked.len(), reason, since })
    }
}

/// Why new absences are kept.
struct Reasons {
    all: Option<Arc<str>>,
    by_directory: BTreeMap<PathBuf, Arc<str>>,
}

fn is_recent(at_ms: u64, now_ms: u64) -> bool {
    now_ms.saturating_sub(at_ms) < WINDOW_MS
}
