//! What is there, looked at again: mounts that came and went, file systems that died, volumes that others made.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::task::JoinError;

use super::pass::Loop;
use crate::error::Chain;
use crate::model::{
    EventKind, Foreign, Have, Layout, MountTable, MountsAt, Presence, PublicationId, RootPath, StepKind,
    VolumeKey, VolumeMode, VolumeRecord, Want, has_server,
};
use crate::observe::{self, Site};

/// Between two rounds over the file systems that can die, ms: a server's death makes no mount event (design 4).
const ROUND_MS: u64 = 30_000;

impl Loop {
    pub(super) async fn take_mounts(&mut self) {
        match self.parts.host.mounts().await {
            Ok(mounts) if Arc::ptr_eq(&mounts, &self.mounts) => {}
            Ok(mounts) => {
                let old = std::mem::replace(&mut self.mounts, mounts);
                self.observe_changed(&old);
            }
            // The old table stands; execute looks for itself before it calls anybody.
            Err(_unreadable) => self.due.mounts = true,
        }
    }

    pub(super) async fn take_foreign(&mut self) {
        let Ok(on_disk) = self.parts.host.volumes_on_disk().await else {
            self.due.foreign = true;
            return;
        };
        let mut foreign = observe::foreign(&on_disk, &self.records, &self.mounts, &self.parts.layout);
        // A step under way makes directories before its record reaches this loop. What was known before is not its work.
        let is_known = |found: &Foreign| self.actual.foreign.iter().any(|old| old.target == found.target);
        let is_busy = |found: &Foreign| found.key.as_ref().is_some_and(|key| self.busy.contains_key(key));
        foreign.retain(|found| !is_busy(found) || is_known(found));
        if foreign != self.actual.foreign {
            self.actual.foreign = foreign;
            self.touched.extend(self.desired.volumes.keys().chain(self.records.keys()).cloned());
        }
    }

    /// Looks again at the volumes whose paths mounts came to or went from: with each mount looking at all would be the
    /// square of them.
    fn observe_changed(&mut self, old: &MountTable) {
        let mounts = Arc::clone(&self.mounts);
        let changed = mounts.changes_since(old);
        // What is mounted there now was not asked yet.
        self.dead.retain(|path, _| !changed.contains(&path.as_path()));
        // What was somebody else's may have gone with a mount, and somebody waits for its place.
        let is_elsewhere =
            |found: &Foreign| !any_within(&changed, &found.path) && !any_within(&changed, &found.target);
        self.due.foreign |= !self.actual.foreign.iter().all(is_elsewhere);
        let layout = &self.parts.layout;
        // A step under way looks for itself, and its outcome is looked at again.
        let concerned = |(key, record): &(&VolumeKey, &VolumeRecord)| {
            !self.busy.contains_key(*key) && is_concerned(record, layout, &changed)
        };
        let keys: Vec<VolumeKey> =
            self.records.iter().filter(concerned).map(|(key, _)| key.clone()).collect();
        keys.iter().for_each(|key| self.observe(key));
    }

    pub(super) fn observe_all(&mut self) {
        let keys: Vec<VolumeKey> = self.records.keys().cloned().collect();
        for key in keys {
            if !self.busy.contains_key(&key) {
                self.observe(&key);
            }
        }
    }

    /// Looks at one volume again and touches it if something is different.
    pub(super) fn observe(&mut self, key: &VolumeKey) {
        let have = self.records.get(key).map(|record| {
            let (mounts, dead) = (&*self.mounts, &self.dead);
            observe::volume(record, Site { mounts, dead, boot: &self.boot, layout: &self.parts.layout })
        });
        let old = self.actual.volumes.get(key);
        if have.as_ref() == old {
            return;
        }
        if let (Some(old), Some(new)) = (old, &have) {
            for (id, publication) in &new.publications {
                let was = old.publications.get(id).map(|publication| publication.presence);
                if was == Some(Presence::Yes)
                    && publication.presence == Presence::Uncertain
                    && !publication.undoing
                {
                    let path = publication.arguments.as_ref().map(|arguments| arguments.target_path.clone());
                    let (key, path) = (key.clone(), path.unwrap_or_default());
                    let died = self.dead.get(&path).filter(|_| publication.dead).cloned();
                    let event = match died {
                        Some(reason) => EventKind::Died { key: key.clone(), path, reason },
                        None => EventKind::Vanished { key: key.clone(), path },
                    };
                    self.tell_of(&key, event);
                }
            }
        }
        self.due.settle |= self.is_to_be_decided(key, old, have.as_ref());
        self.actual.set(key, have);
        self.touched.insert(key.clone());
    }

    /// Whether a held publication came up, or went with or without its record: by that is decided what an edit means for it.
    fn is_to_be_decided(&self, key: &VolumeKey, old: Option<&Have>, new: Option<&Have>) -> bool {
        let presence =
            |have: Option<&Have>, id| have.and_then(|have| have.publications.get(id)).map(|one| one.presence);
        let is_other = |id| {
            let (was, is) = (presence(old, id), presence(new, id));
            was.is_some() != is.is_some() || (was == Some(Presence::Yes)) != (is == Some(Presence::Yes))
        };
        let wants = self.desired.volumes.get(key).into_iter().flat_map(|wants| &wants.publications);
        wants.filter(|(_, want)| matches!(want, Want::Held(_))).any(|(id, _)| is_other(id))
    }

    /// Lets go of what a crash left of block volumes that no record knows. Not while a record cannot be read: its volume's lock
    /// would be taken for a leftover.
    pub(super) fn collect_locks(&mut self) {
        if !self.damaged.is_empty() {
            return;
        }
        let layout = &self.parts.layout;
        let known = self.records.values().flat_map(|record| record.publications.keys());
        let known: BTreeSet<RootPath> = known.map(|id| layout.block_map(id)).collect();
        let host = Arc::clone(&self.parts.host);
        self.round.spawn(async move {
            match host.collect_locks(known).await {
                Ok(collected) => {
                    collected
                        .iter()
                        .for_each(|lock| tracing::info!("let go of a lock that a crash left: {lock}"));
                }
                Err(error) => tracing::warn!("cannot look for locks of block devices: {}", Chain(&error)),
            }
            None
        });
    }

    /// Asks the file systems that can die at the next turn.
    pub(super) fn round_soon(&mut self) {
        self.round_at = Some(self.now().mono);
    }

    /// Asks the file systems of volumes that can die, in a task of its own. Without any there is no round, and no wake-up.
    pub(super) fn begin_round(&mut self) {
        self.round_at = None;
        if !self.round.is_empty() {
            return;
        }
        let places = self
            .records
            .values()
            .flat_map(|record| paths(record, &self.parts.layout).filter(|path| self.can_die(record, path)));
        let points: Vec<PathBuf> = places.collect();
        if points.is_empty() {
            return;
        }
        let id = |path: &PathBuf| match self.mounts.at(path) {
            MountsAt::One(mount) => Some((path.clone(), mount.id)),
            MountsAt::None | MountsAt::Stacked(_) => None,
        };
        self.asked = points.iter().filter_map(id).collect();
        let host = Arc::clone(&self.parts.host);
        self.round.spawn(async move { host.dead_mounts(points).await.ok() });
    }

    /// Whether a file system is mounted there that can die under its mount: with its server, or with its disk.
    fn can_die(&self, record: &VolumeRecord, path: &Path) -> bool {
        match self.mounts.at(path) {
            MountsAt::One(mount) => has_server(&mount.fs_type) || is_on_a_disk(record),
            MountsAt::None | MountsAt::Stacked(_) => false,
        }
    }

    fn round_soon_again(&mut self) {
        self.round_at = Some(self.now().mono + ROUND_MS);
    }

    /// Takes a round's findings. One that could not be made leaves what is known.
    pub(super) fn take_round(&mut self, found: Result<Option<BTreeMap<PathBuf, String>>, JoinError>) {
        let dead = match found {
            Ok(Some(dead)) => dead,
            // It could not be made, or it was the look for locks.
            Ok(None) => return self.round_soon_again(),
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_cancelled) => return,
            },
        };
        self.round_soon_again();
        // What was mounted anew since was not asked.
        let is_same = |path: &PathBuf| match self.mounts.at(path) {
            MountsAt::One(mount) => self.asked.get(path) == Some(&mount.id),
            MountsAt::None | MountsAt::Stacked(_) => true,
        };
        let dead = dead.into_iter().filter(|(path, _)| is_same(path)).collect();
        let old = std::mem::replace(&mut self.dead, dead);
        if old != self.dead {
            self.observe_all();
        }
    }

    /// Forgets that the place was found dead which a step has just worked on, and asks again. A volume's other places stay what
    /// they are: what was staged by a server that died is dead also when a pod's mount of it has gone.
    pub(super) fn doubt_death(&mut self, key: &VolumeKey, kind: &StepKind) {
        let Some(record) = self.records.get(key) else { return };
        let paths: Vec<PathBuf> = paths(record, &self.parts.layout).collect();
        let asks = self.round_at.is_none() && paths.iter().any(|path| self.can_die(record, path));
        let worked_on = match kind.publication() {
            Some(id) => Some(published_at(record, id, &self.parts.layout)),
            None => record.staging.as_ref().map(|staging| staging.arguments.staging_path.clone()),
        };
        self.dead.retain(|path, _| Some(path) != worked_on.as_ref());
        if asks {
            self.round_at = Some(self.now().mono + ROUND_MS);
        }
    }

    /// Forgets that a place was somebody else's once a record of ours says that it is not.
    pub(super) fn forget_foreign(&mut self, key: &VolumeKey) {
        if self.actual.foreign.is_empty() {
            return;
        }
        let Some(record) = self.records.get(key) else { return };
        let ours: Vec<PathBuf> = paths(record, &self.parts.layout).collect();
        self.actual.foreign.retain(|foreign| !ours.contains(&foreign.target));
    }
}

/// Whether a volume is a file system on a device of the host.
fn is_on_a_disk(record: &VolumeRecord) -> bool {
    let raw =
        record.staging.as_ref().is_some_and(|s| s.arguments.capability.volume_mode == VolumeMode::Block);
    record.volume.disk().is_some() && !raw
}

/// Whether one of several ordered paths is a directory or below it.
fn any_within(ordered: &[&Path], directory: &Path) -> bool {
    let first = ordered.partition_point(|path| *path < directory);
    ordered.get(first).is_some_and(|path| path.starts_with(directory))
}

/// Returns where a volume is or may be shown.
fn paths<'a>(record: &'a VolumeRecord, layout: &'a Layout) -> impl Iterator<Item = PathBuf> + 'a {
    let staging = record.staging.iter().map(|staging| staging.arguments.staging_path.clone());
    staging.chain(record.publications.keys().map(|id| published_at(record, id, layout)))
}

fn published_at(record: &VolumeRecord, id: &PublicationId, layout: &Layout) -> PathBuf {
    match record.publications.get(id).and_then(|publication| publication.arguments.as_ref()) {
        Some(arguments) => arguments.target_path.clone(),
        None => layout.absolute(&layout.target(id)),
    }
}

/// Whether a change of the mounts at one of several ordered paths can change what is seen of a volume.
fn is_concerned(record: &VolumeRecord, layout: &Layout, ordered: &[&Path]) -> bool {
    let is_among = |path: &Path| ordered.binary_search(&path).is_ok();
    let staging = record.staging.as_ref();
    staging.is_some_and(|staging| any_within(ordered, &staging.arguments.staging_path))
        || record.publications.iter().any(|(id, publication)| match &publication.arguments {
            Some(arguments) if arguments.capability.volume_mode == VolumeMode::Block => {
                is_among(&arguments.target_path) || is_among(&layout.absolute(&layout.block_map(id)))
            }
            Some(arguments) => any_within(ordered, &arguments.target_path),
            None => any_within(ordered, &layout.absolute(&layout.publication(id))),
        })
}
