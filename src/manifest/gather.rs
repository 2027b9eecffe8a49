//! One look at all directories: watch, list, read what changed. Blocking; runs on the blocking pool.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use super::objects::{self, shorten};
use super::read::{self, Stamp, Unread, untrusted};
use super::set::{Content, DirectoryTaken, FileTaken, Taken, directory_problem};
use super::watches::{Watches, is_manifest};
use super::yaml::SyntaxError;
use super::{json, yaml};
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

#[derive(Debug)]
struct Cached {
    path: Arc<Path>,
    file: FileTaken,
    /// Set where it was written so shortly before it was read that another write may have left the same stamp: the SHA-256
    /// of what was read.
    doubtful: Option<[u8; 32]>,
}

/// What a look at a file that may have changed came to.
#[derive(Debug)]
struct Looked {
    file: FileTaken,
    doubtful: Option<[u8; 32]>,
    /// It need not be read again while its stamp is the same.
    keep: bool,
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
        let mut now = Vec::with_capacity(names.len());
        for name in names {
            while before.next_if(|(other, _)| *other < name).is_some() {}
            let cached = match before.next_if(|(other, _)| *other == name).map(|(_, cached)| cached) {
                Some(cached) if cached.is_unchanged() => {
                    files.push((Arc::clone(&cached.path), cached.file.clone()));
                    now.push((name, cached));
                    continue;
                }
                changed => changed,
            };
            let path = cached.as_ref().map_or_else(|| directory.join(&name).into(), |c| Arc::clone(&c.path));
            let Some(Looked { file, doubtful, keep }) = self.file(&path, cached, taken) else { continue };
            if keep {
                now.push((name, Cached { path: Arc::clone(&path), file: file.clone(), doubtful }));
            }
            files.push((path, file));
        }
        now
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

    /// Looks at a file, and reads it if it may have changed. `None` for one that went away since the listing.
    fn file(&mut self, path: &Path, cached: Option<Cached>, taken: &mut Taken) -> Option<Looked> {
        if std::fs::read_link(path).is_ok()
            && let Err(error) = self.watches.way(path)
        {
            taken.notes.push(not_watched(path, &error));
        }
        let (untouched, stamp) = match read::look(path) {
            Ok(looked) => looked,
            // As if it had not been listed.
            Err(_) if is_gone(path) => return None,
            Err(unread) => {
                let file = FileTaken { stamp: None, content: unreadable(path, unread) };
                return Some(Looked { file, doubtful: None, keep: false });
            }
        };
        let cached = match cached.filter(|cached| cached.file.stamp.as_ref() == Some(&stamp)) {
            Some(Cached { file, doubtful: None, .. }) => {
                return Some(Looked { file, doubtful: None, keep: true });
            }
            other => other,
        };
        let doubtful = stamp.is_fresh(taken.wall);
        let mut digest = None;
        let content = match read::read(&untouched, &stamp, self.owner) {
            Ok(bytes) => {
                let known = cached.as_ref().and_then(|cached| cached.doubtful);
                digest = (doubtful || known.is_some()).then(|| Sha256::digest(&bytes).into());
                match cached {
                    // Read again, and it says the same: understanding costs far more than reading.
                    Some(cached) if known.is_some() && known == digest => cached.file.content,
                    Some(_) | None => understand(path, bytes),
                }
            }
            Err(unread) => unreadable(path, unread),
        };
        let keep = match content {
            Content::Whole(_) | Content::Unparsable(_) => true,
            Content::Writing(_) | Content::Unread(_) => false,
        };
        let file = FileTaken { stamp: Some(stamp), content };
        Some(Looked { file, doubtful: digest.filter(|_| doubtful), keep })
    }
}

impl Cached {
    /// Whether a file in the directory itself is certainly as it was when it was read.
    fn is_unchanged(&self) -> bool {
        // A symlink has another stamp than what it leads to.
        let is_same = |file: &std::fs::Metadata| self.file.stamp.as_ref() == Some(&Stamp::of(file));
        self.doubtful.is_none() && std::fs::symlink_metadata(&self.path).is_ok_and(|file| is_same(&file))
    }
}

fn is_gone(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
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

fn unreadable(path: &Path, unread: Unread) -> Content {
    let Unread { writing, detail, remedy } = unread;
    let problem = Problem {
        path: path.to_owned(),
        position: None,
        object: None,
        field: None,
        detail,
        remedy,
        warning: false,
    };
    if writing { Content::Writing(problem) } else { Content::Unread(problem) }
}

/// Bytes -> objects.
pub(super) fn understand(path: &Path, bytes: Vec<u8>) -> Content {
    let refuse = |line: u64, column: u64, detail: String| {
        Content::Unparsable(Problem {
            path: path.to_owned(),
            position: (line > 0).then_some((line, column.max(1))),
            object: None,
            field: None,
            detail,
            remedy: "correct or remove the file; until then the last good version of its objects stays"
                .to_owned(),
            warning: false,
        })
    };
    // What a full disk or a power cut leaves of a file. Whoever means it removes the file, or writes a comment.
    if bytes.iter().all(|b| *b == 0 || b.is_ascii_whitespace()) {
        return refuse(0, 0, "is empty".to_owned());
    }
    let text = match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let (line, column) = place_of(error.as_bytes(), error.utf8_error().valid_up_to());
            return refuse(line, column, format!("is not UTF-8 text: {}", error.utf8_error()));
        }
    };
    let parsed = if path.extension().is_some_and(|e| e == "json") {
        json::documents(&text)
    } else {
        yaml::documents(&text)
    };
    match parsed {
        Ok(documents) => Content::Whole(Arc::new(objects::parse(path, documents, &text))),
        Err(SyntaxError { line, column, detail }) => {
            // What the parser quotes may be a Secret's.
            let detail = if text.contains("Secret") { without_quotes(&detail) } else { detail };
            refuse(line, column, shorten(&detail))
        }
    }
}

/// The line and the column of the character that begins at an offset, up to which the bytes are UTF-8.
fn place_of(bytes: &[u8], offset: usize) -> (u64, u64) {
    let before = String::from_utf8_lossy(bytes.get(..offset).unwrap_or(bytes));
    let line = before.rsplit('\n').next().unwrap_or_default();
    let count = |n: usize| u64::try_from(n).map_or(u64::MAX, |n| n.saturating_add(1));
    (count(before.matches('\n').count()), count(line.chars().count()))
}

/// Leaves out what stands between quotation marks.
fn without_quotes(text: &str) -> String {
    let mut out = String::new();
    let mut inside = None;
    for c in text.chars() {
        match inside {
            Some(end) if c == end => {
                inside = None;
                out.push('…');
                out.push(c);
            }
            Some(_) => {}
            None => {
                out.push(c);
                if matches!(c, '"' | '\'' | '`') {
                    inside = Some(c);
                }
            }
        }
    }
    out
}
