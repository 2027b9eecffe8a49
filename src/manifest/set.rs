//! Files -> one set of objects. Pure: it remembers the last good versions and says when something is really gone.
//!
//! The rule that everything here serves: nothing becomes absent because of something that was not read (design 3).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::join::{Present, join, waits_for};
use super::last::Last;
use super::objects::{Key, Parsed};
use super::read::Stamp;
use super::touched::Touched;
use super::versions::{Contents, Entry, publish, withdraw};
use super::{Manifests, Objects};
use crate::model::{DirectoryIdentity, DirectoryState, Millis, Problem, ReadingState};

/// What one look at all directories found.
#[derive(Debug, Default)]
pub(super) struct Taken {
    /// tokio time at its begin, ms since the daemon's start.
    pub(super) began_ms: u64,
    /// Time of day at its begin.
    pub(super) wall: Millis,
    /// Every configured directory.
    pub(super) directories: BTreeMap<PathBuf, DirectoryTaken>,
    /// Every manifest file in those that were listed.
    pub(super) files: BTreeMap<Arc<Path>, FileTaken>,
    /// Something else that makes the reading incomplete or is worth a warning: a watch that could not be set.
    pub(super) notes: Vec<Problem>,
    /// The operator accepts directories and unreadable files as they are in this reading.
    pub(super) approved: bool,
}

/// A directory in a reading.
#[derive(Debug)]
pub(super) enum DirectoryTaken {
    Listed(DirectoryIdentity),
    Failed(Problem),
}

/// A file in a reading.
#[derive(Debug, Clone)]
pub(super) struct FileTaken {
    /// `None` when it could not even be looked at.
    pub(super) stamp: Option<Stamp>,
    pub(super) content: Content,
}

/// What a file came to.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Whole(Arc<Parsed>),
    /// Read whole, but it is no YAML or JSON.
    Unparsable(Problem),
    /// Somebody is writing it.
    Writing(Problem),
    Unread(Problem),
}

/// An object that the last reading lacked.
#[derive(Debug, Clone)]
struct Missing {
    /// When the first complete reading that lacked it began.
    first_complete: Option<u64>,
    since: Millis,
}

/// The memory from one reading to the next.
#[derive(Debug)]
pub(super) struct Set {
    grace_ms: u64,
    generation: u64,
    known: BTreeMap<PathBuf, DirectoryIdentity>,
    contents: BTreeMap<Arc<Path>, Contents>,
    entries: HashMap<Key, Entry>,
    /// The entries, as they are published.
    objects: Arc<Objects>,
    missing: BTreeMap<Key, Missing>,
    /// Files that the operator accepted as they are, however they are.
    accepted_files: BTreeMap<Arc<Path>, (Option<Stamp>, String)>,
    /// Directories that the operator accepted as being away.
    accepted_directories: BTreeSet<PathBuf>,
    /// The last reading defined each object once, and none waited for another to be gone.
    plain: bool,
    last: Option<Last>,
}

impl Set {
    pub(super) fn new(grace: Duration, known: BTreeMap<PathBuf, DirectoryIdentity>) -> Self {
        Self {
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
            generation: 0,
            known,
            contents: BTreeMap::new(),
            entries: HashMap::new(),
            objects: Arc::default(),
            missing: BTreeMap::new(),
            accepted_files: BTreeMap::new(),
            accepted_directories: BTreeSet::new(),
            plain: true,
            last: None,
        }
    }

    /// When a reading could confirm that something is gone, in ms since the daemon's start.
    pub(super) fn confirm_at(&self) -> Option<u64> {
        self.missing.values().filter_map(|m| m.first_complete).min().map(|f| f.saturating_add(self.grace_ms))
    }

    /// Takes a reading in and returns what all readings together say.
    pub(super) fn settle(&mut self, taken: &Taken) -> Manifests {
        self.generation += 1;
        if let Some(Last { manifests, .. }) = self.last.as_ref().filter(|last| last.is_taken_again(taken)) {
            let mut same = manifests.clone();
            same.reading.generation = self.generation;
            same.reading.began_ms = taken.began_ms;
            return same;
        }
        let mut problems = taken.notes.clone();
        let mut incomplete = Vec::new();
        let directories = self.directories(taken, &mut problems, &mut incomplete);
        let touched = self.files(taken, &mut problems, &mut incomplete);
        for (key, entry) in self.changes(taken, incomplete.is_empty(), &touched, &mut problems) {
            self.put(key, entry);
        }
        problems.extend(incomplete.iter().cloned());
        problems.sort();
        problems.dedup();
        incomplete.sort();
        incomplete.dedup();
        let reading =
            ReadingState { generation: self.generation, began_ms: taken.began_ms, incomplete, directories };
        let manifests = Manifests { objects: Arc::clone(&self.objects), problems, reading };
        let settled = manifests.reading.is_complete() && self.missing.is_empty();
        self.last = settled.then(|| Last::new(taken, &manifests)).flatten();
        manifests
    }

    /// Is every directory there, and is it the one it was?
    fn directories(
        &mut self,
        taken: &Taken,
        problems: &mut Vec<Problem>,
        incomplete: &mut Vec<Problem>,
    ) -> BTreeMap<PathBuf, DirectoryState> {
        let mut states = BTreeMap::new();
        for (path, found) in &taken.directories {
            let identity = match found {
                DirectoryTaken::Failed(problem) => {
                    if taken.approved {
                        self.accepted_directories.insert(path.clone());
                        // Whatever comes in its place later is a new beginning.
                        self.known.remove(path);
                    }
                    let accepted = self.accepted_directories.contains(path);
                    if accepted { &mut *problems } else { &mut *incomplete }.push(problem.clone());
                    None
                }
                DirectoryTaken::Listed(identity) => {
                    // Accepted as being away is not accepted as being another one.
                    self.accepted_directories.remove(path);
                    if taken.approved {
                        self.known.insert(path.clone(), identity.clone());
                    }
                    let known = self.known.entry(path.clone()).or_insert_with(|| identity.clone());
                    if known != identity {
                        incomplete.push(directory_problem(
                            path,
                            "is not the directory it was: it was replaced, or mounted over, or unmounted",
                        ));
                    }
                    Some(identity.clone())
                }
            };
            let files = taken.files.keys().filter(|f| f.parent() == Some(path)).count();
            states.insert(path.clone(), DirectoryState { identity, files });
        }
        states
    }

    /// What does each file say, now or when it could last be understood? Returns which of them say something else than before.
    fn files(
        &mut self,
        taken: &Taken,
        problems: &mut Vec<Problem>,
        incomplete: &mut Vec<Problem>,
    ) -> Touched {
        let mut touched = Touched::default();
        self.accepted_files.retain(|path, _| taken.files.contains_key(path));
        // Both are sorted by path, and go side by side.
        let mut before = std::mem::take(&mut self.contents).into_iter().peekable();
        let mut unlisted = Vec::new();
        let mut listed = Vec::with_capacity(taken.files.len());
        for (path, file) in &taken.files {
            while let Some(other) = before.next_if(|(other, _)| other < path) {
                unlisted.push(other);
            }
            let known = before.next_if(|(known, _)| known == path);
            let first = known.is_none();
            let (path, mut contents) = known.unwrap_or_else(|| (Arc::clone(path), Contents::default()));
            let is_same = matches!(&file.content, Content::Whole(parsed) if contents.is_of(parsed));
            if !is_same {
                touched.note(&path, &contents);
            }
            let (problem, must_know) = match &file.content {
                Content::Whole(parsed) => {
                    problems.extend(parsed.warnings.iter().cloned());
                    problems.extend(parsed.bad.iter().flat_map(|b| b.problems.iter().cloned()));
                    let nameless = parsed.bad.iter().find(|b| b.identity.is_none());
                    contents.take(parsed);
                    (nameless.and_then(|b| b.problems.first()), false)
                }
                Content::Unparsable(problem) => {
                    contents.make_stale(&problem.to_string());
                    // Even where it was good once: what was moved into it since is not known.
                    contents.unknown = true;
                    (Some(problem), false)
                }
                Content::Writing(problem) => {
                    contents.unknown |= first;
                    (Some(problem), true)
                }
                Content::Unread(problem) => {
                    contents.make_stale(&problem.to_string());
                    contents.unknown |= first;
                    (Some(problem), true)
                }
            };
            if let Some(problem) = problem {
                let fingerprint = (file.stamp.clone(), problem.detail.clone());
                if taken.approved {
                    self.accepted_files.insert(Arc::clone(&path), fingerprint.clone());
                }
                let accepted = self.accepted_files.get(&path) == Some(&fingerprint);
                let counts = if !accepted && (must_know || contents.unknown) {
                    &mut *incomplete
                } else {
                    &mut *problems
                };
                counts.push(problem.clone());
            } else {
                self.accepted_files.remove(&path);
            }
            if !is_same {
                touched.note(&path, &contents);
            }
            listed.push((path, contents));
        }
        // A directory that cannot be listed still has what it had, unless the operator says otherwise.
        for (path, mut contents) in unlisted.into_iter().chain(before) {
            touched.note(&path, &contents);
            let parent = path.parent().unwrap_or(Path::new("/"));
            if let Some(DirectoryTaken::Failed(problem)) = taken.directories.get(parent)
                && !self.accepted_directories.contains(parent)
            {
                contents.make_stale(&problem.to_string());
                listed.push((path, contents));
            }
        }
        self.contents = listed.into_iter().collect();
        touched
    }

    /// Returns what is to be changed in the entries. What the reading lacks is kept until two complete readings, far enough
    /// apart, lack it.
    fn changes(
        &mut self,
        taken: &Taken,
        complete: bool,
        touched: &Touched,
        problems: &mut Vec<Problem>,
    ) -> Vec<(Key, Option<Entry>)> {
        let is_missing = |key: &Key| self.missing.contains_key(key);
        let alone = self.plain.then(|| touched.join(&self.contents, &self.entries, is_missing)).flatten();
        let (present, concerned) = match alone {
            Some(present) => {
                let missing = self.missing.keys().filter(|key| !touched.keys.contains(*key));
                let keys = touched.keys.iter().chain(missing);
                (present, keys.filter_map(|key| self.entries.get_key_value(key)).collect())
            }
            None => {
                let joined = join(&self.contents, &self.entries, problems);
                self.plain = joined.plain;
                (joined.present, self.entries.iter().collect::<Vec<_>>())
            }
        };
        let mut changes = Vec::new();
        let mut still_missing = BTreeMap::new();
        for (key, entry) in concerned {
            let heir = present.get(key);
            if let Some(heir) = heir.filter(|heir| heir.reference() == entry.reference()) {
                if !heir.is(entry) {
                    changes.push((key.clone(), Some(heir.entry())));
                }
                continue;
            }
            let mut missing =
                self.missing.remove(key).unwrap_or(Missing { first_complete: None, since: taken.wall });
            if complete {
                match missing.first_complete {
                    Some(first) if taken.began_ms >= first.saturating_add(self.grace_ms) => {
                        changes.push((key.clone(), heir.map(Present::entry)));
                        continue;
                    }
                    Some(_) => {}
                    None => missing.first_complete = Some(taken.began_ms),
                }
            }
            self.plain &= heir.is_none();
            // Another pod with the UID of one that is not yet known to be gone has to wait.
            if let (Some(Present::Version(heir)), Some(holder)) = (heir, entry.source()) {
                problems.push(waits_for(&heir.good, holder));
            }
            let gone = entry.clone().gone_since(missing.since);
            if !gone.is(entry) {
                changes.push((key.clone(), Some(gone)));
            }
            still_missing.insert(key.clone(), missing);
        }
        let new = present.iter().filter(|(key, _)| !self.entries.contains_key(*key));
        changes.extend(new.map(|(key, found)| (Key::clone(key), Some(found.entry()))));
        self.missing = still_missing;
        changes
    }

    /// Has the next reading join all files.
    #[cfg(test)]
    pub(super) fn join_all(&mut self) {
        self.plain = false;
    }

    /// Publishes every entry anew: what `put` must have come to.
    #[cfg(test)]
    pub(super) fn published_anew(&self) -> Objects {
        let mut objects = Objects::default();
        self.entries.iter().for_each(|(key, entry)| publish(&mut objects, key, entry));
        objects
    }

    /// Puts an entry in the place of what is there, among the objects too.
    fn put(&mut self, key: Key, entry: Option<Entry>) {
        // Whoever has the objects of an earlier reading keeps them: this copies them then, once for a reading.
        let objects = Arc::make_mut(&mut self.objects);
        if let Some(old) = self.entries.remove(&key) {
            withdraw(objects, &key, &old);
        }
        if let Some(entry) = entry {
            publish(objects, &key, &entry);
            self.entries.insert(key, entry);
        }
    }
}

/// A problem of a whole directory.
pub(super) fn directory_problem(path: &Path, detail: impl Into<String>) -> Problem {
    Problem {
        path: path.to_owned(),
        position: None,
        object: None,
        field: None,
        detail: detail.into(),
        remedy: "bring the directory back, or accept what is there with `volumectl approve`".to_owned(),
        warning: false,
    }
}
