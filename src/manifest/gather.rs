//! One look at all directories: watch, list, read what changed. Blocking; runs on the blocking pool.

use std::collections::BTreeMap;
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
    directories: Vec<PathBuf>,
    owner: u32,
    watches: Watches,
    cache: BTreeMap<PathBuf, Cached>,
}

#[derive(Debug)]
struct Cached {
    file: FileTaken,
    /// Set where it was written so shortly before it was read that another write may have left the same stamp: the SHA-256
    /// of what was read.
    doubtful: Option<[u8; 32]>,
}

impl Gatherer {
    pub(super) fn new(directories: Vec<PathBuf>, owner: u32, watches: Watches) -> Self {
        Self { directories, owner, watches, cache: BTreeMap::new() }
    }

    pub(super) fn watches(&mut self) -> &mut Watches {
        &mut self.watches
    }

    /// Fills a reading.
    pub(super) fn gather(&mut self, mut taken: Taken) -> Taken {
        let mut files = Vec::new();
        for directory in self.directories.clone() {
            let found = match self.list(&directory) {
                Ok((identity, listed, watch_problems)) => {
                    taken.notes.extend(watch_problems);
                    for path in listed {
                        let file = self.unchanged(&path).or_else(|| self.file(&path, &mut taken));
                        files.extend(file.map(|file| (path, file)));
                    }
                    DirectoryTaken::Listed(identity)
                }
                Err(problem) => DirectoryTaken::Failed(*problem),
            };
            taken.directories.insert(directory, found);
        }
        taken.files = files.into_iter().collect();
        if self.cache.len() > taken.files.len() {
            self.cache.retain(|path, _| taken.files.contains_key(path));
        }
        self.watches.settle();
        taken
    }

    /// Watches a directory, then lists its manifest files.
    fn list(
        &mut self,
        directory: &Path,
    ) -> Result<(DirectoryIdentity, Vec<PathBuf>, Vec<Problem>), Box<Problem>> {
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
        let mut files: Vec<_> = names.iter().filter(|n| is_manifest(n)).map(|n| directory.join(n)).collect();
        files.sort();
        Ok((identity, files, watch_problems))
    }

    /// Returns what is known of a file in the directory itself, if it is certainly as it was when it was read.
    fn unchanged(&self, path: &Path) -> Option<FileTaken> {
        let cached = self.cache.get(path).filter(|cached| cached.doubtful.is_none())?;
        // A symlink has another stamp than what it leads to.
        let stamp = Stamp::of(&std::fs::symlink_metadata(path).ok()?);
        (cached.file.stamp.as_ref() == Some(&stamp)).then(|| cached.file.clone())
    }

    /// Looks at a file, and reads it if it may have changed. `None` for one that went away since the listing.
    fn file(&mut self, path: &Path, taken: &mut Taken) -> Option<FileTaken> {
        if std::fs::read_link(path).is_ok()
            && let Err(error) = self.watches.way(path)
        {
            taken.notes.push(not_watched(path, &error));
        }
        let cached = self.cache.remove(path);
        let (untouched, stamp) = match read::look(path) {
            Ok(looked) => looked,
            // As if it had not been listed.
            Err(_) if is_gone(path) => return None,
            Err(unread) => return Some(FileTaken { stamp: None, content: unreadable(path, unread) }),
        };
        let cached = match cached.filter(|cached| cached.file.stamp.as_ref() == Some(&stamp)) {
            Some(cached) if cached.doubtful.is_none() => {
                let file = cached.file.clone();
                self.cache.insert(path.to_owned(), cached);
                return Some(file);
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
        if keep {
            let doubtful = digest.filter(|_| doubtful);
            self.cache.insert(path.to_owned(), Cached { file: file.clone(), doubtful });
        }
        Some(file)
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
