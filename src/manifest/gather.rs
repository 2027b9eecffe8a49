//! One look at all directories: watch, list, read what changed. Blocking; runs on the blocking pool.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::file::{Cached, Eyes, Suspect};
use super::read::untrusted;
use super::set::{DirectoryTaken, FileTaken, Taken, directory_problem};
use super::watches::{Watches, is_manifest};
use crate::host::lease;
use crate::model::{DirectoryIdentity, Problem};

/// Reads directories; remembers files that did not change.
#[derive(Debug)]
pub(super) struct Gatherer {
    directories: BTreeSet<PathBuf>,
    owner: u32,
    watches: Watches,
    /// What the last reading knew of each directory's files, ordered by name.
    cache: BTreeMap<PathBuf, Vec<(OsString, Cached)>>,
}

impl Gatherer {
    pub(super) fn new(directories: BTreeSet<PathBuf>, owner: u32, watches: Watches) -> Self {
        Self { directories, owner, watches, cache: BTreeMap::new() }
    }

    pub(super) fn watches(&mut self) -> &mut Watches {
        &mut self.watches
    }

    /// Fills a reading.
    pub(super) fn gather(&mut self, mut taken: Taken) -> Taken {
        let mut files = Vec::new();
        let mut cache = std::mem::take(&mut self.cache);
        for directory in self.directories.clone() {
            let found = match self.list(&directory) {
                Ok((identity, names, watch_problems)) => {
                    taken.notes.extend(watch_problems);
                    let before = cache.remove(&directory).unwrap_or_default();
                    let now = self.files(&directory, names, before, &mut files, &mut taken);
                    self.cache.insert(directory.clone(), now);
                    DirectoryTaken::Listed(identity)
                }
                Err(problem) => DirectoryTaken::Failed(*problem),
            };
            taken.directories.insert(directory, found);
        }
        taken.files = files.into_iter().collect();
        self.watches.settle();
        taken
    }

    /// Looks at a directory's files, whose names are ordered as those that are known from before; returns what is to be known
    /// of them the next time.
    fn files(
        &mut self,
        directory: &Path,
        names: Vec<OsString>,
        before: Vec<(OsString, Cached)>,
        files: &mut Vec<(Arc<Path>, FileTaken)>,
        taken: &mut Taken,
    ) -> Vec<(OsString, Cached)> {
        let mut before = before.into_iter().peekable();
        let (mut listed, mut suspects) = (Vec::with_capacity(names.len()), Vec::new());
        for name in names {
            while before.next_if(|(other, _)| *other < name).is_some() {}
            match before.next_if(|(other, _)| *other == name).map(|(_, cached)| cached) {
                Some(cached) if cached.is_unchanged() => listed.push((name, Some(cached))),
                cached => {
                    let known = cached.as_ref().map(|cached| Arc::clone(&cached.path));
                    let path = known.unwrap_or_else(|| directory.join(&name).into());
                    self.watch_way(&path, taken);
                    suspects.push(Suspect { path, cached });
                    listed.push((name, None));
                }
            }
        }
        let mut looked = Eyes { owner: self.owner, wall: taken.wall }.look_at_all(suspects).into_iter();
        let mut now = Vec::with_capacity(listed.len());
        for (name, unchanged) in listed {
            if let Some(cached) = unchanged {
                files.push((Arc::clone(&cached.path), cached.file.clone()));
                now.push((name, cached));
            } else if let Some(Some(looked)) = looked.next() {
                now.extend(looked.to_cache().map(|cached| (name, cached)));
                files.push((looked.path, looked.file));
            }
        }
        now
    }

    /// Watches what a symlink leads to.
    fn watch_way(&mut self, path: &Path, taken: &mut Taken) {
        if std::fs::read_link(path).is_ok()
            && let Err(error) = self.watches.way(path)
        {
            taken.notes.push(not_watched(path, &error));
        }
    }

    /// Watches a directory, then lists the names of its manifest files, in order.
    fn list(
        &mut self,
        directory: &Path,
    ) -> Result<(DirectoryIdentity, Vec<OsString>, Vec<Problem>), Box<Problem>> {
        let mut watch_problems = Vec::new();
        let way = self.watches.way(directory);
        let watched = self.watches.directory(directory);
        // A directory that cannot be opened says so below; here it is only that it cannot be watched.
        for error in [way.err(), watched.err()].into_iter().flatten() {
            if !matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) {
                watch_problems.push(not_watched(directory, &error));
            }
        }
        let failed = |doing: &str, error: std::io::Error| {
            Box::new(directory_problem(directory, format!("cannot be {doing}: {error}")))
        };
        let open = lease::open_directory(directory).map_err(|e| failed("opened", e))?;
        let identity = lease::identity(&open).map_err(|e| failed("identified", e))?;
        let metadata = open.metadata().map_err(|e| failed("looked at", e))?;
        let (uid, gid, mode) = {
            use std::os::unix::fs::MetadataExt;
            (metadata.uid(), metadata.gid(), metadata.mode())
        };
        if let Some(why) = untrusted(uid, gid, mode, self.owner) {
            let mut problem = directory_problem(directory, why);
            "make it root's and writable by root alone: `chown root:root`, `chmod 0755`"
                .clone_into(&mut problem.remedy);
            return Err(Box::new(problem));
        }
        let names = lease::names(&open).map_err(|e| failed("listed", e))?;
        let mut names: Vec<_> = names.into_iter().filter(|name| is_manifest(name)).collect();
        names.sort();
        Ok((identity, names, watch_problems))
    }
}

fn not_watched(path: &Path, error: &std::io::Error) -> Problem {
    Problem {
        path: path.to_owned(),
        position: None,
        object: None,
        field: None,
        detail: format!("cannot be watched: {error}; it is read every 30 s instead"),
        remedy: "raise fs.inotify.max_user_watches".to_owned(),
        warning: true,
    }
}
