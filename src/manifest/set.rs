//! Files -> one set of objects. Pure: it remembers the last good versions and says when something is really gone.
//!
//! The rule that everything here serves: nothing becomes absent because of something that was not read (design 3).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::objects::{Good, Key, Parsed};
use super::read::Stamp;
use super::versions::{Contents, Entry, Version, from_parsed, publish};
use super::{Manifests, Objects, Stale};
use crate::model::{DirectoryIdentity, DirectoryState, Millis, ObjectRef, Problem, ReadingState};

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
    pub(super) files: BTreeMap<PathBuf, FileTaken>,
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
    contents: BTreeMap<PathBuf, Contents>,
    entries: BTreeMap<Key, Entry>,
    missing: BTreeMap<Key, Missing>,
    /// Files that the operator accepted as they are, however they are.
    accepted_files: BTreeMap<PathBuf, (Option<Stamp>, String)>,
    /// Directories that the operator accepted as being away.
    accepted_directories: BTreeSet<PathBuf>,
}

impl Set {
    pub(super) fn new(grace: Duration, known: BTreeMap<PathBuf, DirectoryIdentity>) -> Self {
        Self {
            grace_ms: u64::try_from(grace.as_millis()).unwrap_or(u64::MAX),
            generation: 0,
            known,
            contents: BTreeMap::new(),
            entries: BTreeMap::new(),
            missing: BTreeMap::new(),
            accepted_files: BTreeMap::new(),
            accepted_directories: BTreeSet::new(),
        }
    }

    /// When a reading could confirm that something is gone, in ms since the daemon's start.
    pub(super) fn confirm_at(&self) -> Option<u64> {
        self.missing.values().filter_map(|m| m.first_complete).min().map(|f| f.saturating_add(self.grace_ms))
    }

    /// Takes a reading in and returns what all readings together say.
    pub(super) fn settle(&mut self, taken: &Taken) -> Manifests {
        self.generation += 1;
        let mut problems = taken.notes.clone();
        let mut incomplete = Vec::new();
        let directories = self.directories(taken, &mut problems, &mut incomplete);
        self.files(taken, &mut problems, &mut incomplete);
        let present = self.join(&mut problems);
        self.entries = self.keep_missing(present, taken, incomplete.is_empty(), &mut problems);
        let mut objects = Objects::default();
        for (key, entry) in &self.entries {
            publish(&mut objects, key, entry);
        }
        problems.extend(incomplete.iter().cloned());
        problems.sort();
        problems.dedup();
        incomplete.sort();
        incomplete.dedup();
        let reading =
            ReadingState { generation: self.generation, began_ms: taken.began_ms, incomplete, directories };
        Manifests { objects, problems, reading }
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

    /// What does each file say, now or when it could last be understood?
    fn files(&mut self, taken: &Taken, problems: &mut Vec<Problem>, incomplete: &mut Vec<Problem>) {
        let mut before = std::mem::take(&mut self.contents);
        self.accepted_files.retain(|path, _| taken.files.contains_key(path));
        for (path, file) in &taken.files {
            let old = before.remove(path);
            let first = old.is_none();
            let mut old = old.unwrap_or_default();
            let (contents, problem, must_know) = match &file.content {
                Content::Whole(parsed) => {
                    problems.extend(parsed.warnings.iter().cloned());
                    problems.extend(parsed.bad.iter().flat_map(|b| b.problems.iter().cloned()));
                    let nameless = parsed.bad.iter().find(|b| b.identity.is_none());
                    let contents = from_parsed(parsed, &old);
                    (contents, nameless.and_then(|b| b.problems.first().cloned()), false)
                }
                Content::Unparsable(problem) => {
                    old.make_stale(&problem.to_string());
                    // Even where it was good once: what was moved into it since is not known.
                    old.unknown = true;
                    (old, Some(problem.clone()), false)
                }
                Content::Writing(problem) => {
                    old.unknown |= first;
                    (old, Some(problem.clone()), true)
                }
                Content::Unread(problem) => {
                    old.make_stale(&problem.to_string());
                    old.unknown |= first;
                    (old, Some(problem.clone()), true)
                }
            };
            if let Some(problem) = problem {
                let fingerprint = (file.stamp.clone(), problem.detail.clone());
                if taken.approved {
                    self.accepted_files.insert(path.clone(), fingerprint.clone());
                }
                let accepted = self.accepted_files.get(path) == Some(&fingerprint);
                if !accepted && (must_know || contents.unknown) {
                    incomplete.push(problem);
                } else {
                    problems.push(problem);
                }
            } else {
                self.accepted_files.remove(path);
            }
            self.contents.insert(path.clone(), contents);
        }
        // A directory that cannot be listed still has what it had, unless the operator says otherwise.
        for (path, mut contents) in before {
            let parent = path.parent().unwrap_or(Path::new("/"));
            if let Some(DirectoryTaken::Failed(problem)) = taken.directories.get(parent)
                && !self.accepted_directories.contains(parent)
            {
                contents.make_stale(&problem.to_string());
                self.contents.insert(path, contents);
            }
        }
    }

    /// Joins the files; of two definitions the first file's counts.
    fn join(&self, problems: &mut Vec<Problem>) -> BTreeMap<Key, Entry> {
        let mut entries: BTreeMap<Key, Entry> = BTreeMap::new();
        let mut named: BTreeMap<&ObjectRef, &Good> = BTreeMap::new();
        for version in self.contents.values().flat_map(|c| &c.versions) {
            let good = &version.good;
            let holder = match entries.get(&good.key) {
                Some(Entry::Version(first)) => Some(Arc::clone(&first.good)),
                Some(Entry::Broken(..)) | None => None,
            };
            if let Some(first) = holder {
                problems.push(defined_twice(good, &first));
            } else if let Some(first) = named.get(&good.reference) {
                problems.push(defined_twice(good, first));
            } else {
                named.insert(&good.reference, good);
                entries.insert(good.key.clone(), Entry::Version(version.clone()));
            }
        }
        for (key, reference, problem) in self.contents.values().flat_map(|c| &c.broken) {
            if entries.contains_key(key) || named.contains_key(reference) {
                continue;
            }
            // It may have moved here and been edited at once: then the good version is the set's own.
            let entry = match self.good_before(key, reference) {
                Some(good) => {
                    Entry::Version(Version { good, stale: Some(Stale::Broken(problem.to_string())) })
                }
                None => Entry::Broken(reference.clone(), Box::new(problem.clone())),
            };
            entries.insert(key.clone(), entry);
        }
        entries
    }

    fn good_before(&self, key: &Key, reference: &ObjectRef) -> Option<Arc<Good>> {
        match self.entries.get(key)? {
            Entry::Version(version) if version.good.reference == *reference => {
                Some(Arc::clone(&version.good))
            }
            Entry::Version(_) | Entry::Broken(..) => None,
        }
    }

    /// Keeps what the reading lacks until two complete readings, far enough apart, lack it.
    fn keep_missing(
        &mut self,
        mut present: BTreeMap<Key, Entry>,
        taken: &Taken,
        complete: bool,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<Key, Entry> {
        let before = std::mem::take(&mut self.entries);
        let mut still_missing = BTreeMap::new();
        for (key, entry) in before {
            let heir = present.get(&key);
            if heir.is_some_and(|h| h.reference() == entry.reference()) {
                continue;
            }
            let mut missing =
                self.missing.remove(&key).unwrap_or(Missing { first_complete: None, since: taken.wall });
            if complete {
                match missing.first_complete {
                    Some(first) if taken.began_ms >= first.saturating_add(self.grace_ms) => continue,
                    Some(_) => {}
                    None => missing.first_complete = Some(taken.began_ms),
                }
            }
            // Another pod with the UID of one that is not yet known to be gone has to wait.
            if let (Some(Entry::Version(heir)), Some(holder)) = (heir, entry.source()) {
                problems.push(waits_for(&heir.good, holder));
            }
            present.insert(key.clone(), entry.gone_since(missing.since));
            still_missing.insert(key, missing);
        }
        self.missing = still_missing;
        present
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

fn defined_twice(second: &Good, first: &Good) -> Problem {
    let field = if second.reference == first.reference { "metadata.name" } else { "metadata.uid" };
    let detail =
        format!("is used twice: {} defines {} with it, and comes first", first.source, first.reference);
    problem_of(
        second,
        field,
        detail,
        format!("remove one of the two, here or in {}", first.source.file.display()),
    )
}

fn waits_for(heir: &Good, holder: &Good) -> Problem {
    let detail = format!(
        "was the UID of {} in {}, which is not yet known to be gone",
        holder.reference, holder.source
    );
    problem_of(heir, "metadata.uid", detail, "wait, or give the pod a UID of its own".to_owned())
}

fn problem_of(good: &Good, field: &str, detail: String, remedy: String) -> Problem {
    Problem {
        path: good.source.file.clone(),
        position: Some((good.source.line, 1)),
        object: Some(good.reference.clone()),
        field: Some(field.to_owned()),
        detail,
        remedy,
        warning: false,
    }
}
