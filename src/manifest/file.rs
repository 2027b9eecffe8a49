//! One manifest file: whether it may have changed, and what it says.

use std::num::NonZero;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};

use super::objects::{self, shorten};
use super::read::{self, Stamp, Unread};
use super::set::{Content, FileTaken};
use super::yaml::SyntaxError;
use super::{json, yaml};
use crate::model::Problem;

/// So many files are worth a thread of their own: one takes a tenth of a millisecond, and so does a thread.
const WORTH_A_THREAD: usize = 16;

/// More threads than this leave the memory that they used in more pieces than they save time.
const MOST_THREADS: usize = 4;

/// What is known of a file from the last reading.
#[derive(Debug)]
pub(super) struct Cached {
    pub(super) path: Arc<Path>,
    pub(super) file: FileTaken,
    /// Set where it was written so shortly before it was read that another write may have left the same stamp: the SHA-256
    /// of what was read.
    doubtful: Option<[u8; 32]>,
}

/// A file that may have changed.
#[derive(Debug)]
pub(super) struct Suspect {
    pub(super) path: Arc<Path>,
    pub(super) cached: Option<Cached>,
}

/// What a look at a file that may have changed came to.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) path: Arc<Path>,
    pub(super) file: FileTaken,
    doubtful: Option<[u8; 32]>,
    /// It need not be read again while its stamp is the same.
    keep: bool,
}

/// How files are looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Eyes {
    /// Whose files are read besides root's.
    pub(super) owner: u32,
    /// When the reading began, ms since the epoch.
    pub(super) wall: i64,
}

impl Eyes {
    /// Looks at files, many of them by a few processors at once; returns what each came to, in their order. `None` for one that
    /// went away since it was listed.
    pub(super) fn look_at_all(self, suspects: Vec<Suspect>) -> Vec<Option<Looked>> {
        let processors = thread::available_parallelism().map_or(1, NonZero::get).min(MOST_THREADS);
        let helpers = (suspects.len() / WORTH_A_THREAD).min(processors.saturating_sub(1));
        let rest = Mutex::new(suspects.into_iter().enumerate());
        let take = || rest.lock().unwrap_or_else(PoisonError::into_inner).next();
        let look = || {
            let taken = std::iter::from_fn(take);
            taken.map(|(number, suspect)| (number, self.look_at(suspect))).collect::<Vec<_>>()
        };
        let mut looked = thread::scope(|scope| {
            // Where no thread is to be had, this one looks at more.
            let start = |_| thread::Builder::new().spawn_scoped(scope, look).ok();
            let helpers: Vec<_> = (0..helpers).filter_map(start).collect();
            let mut looked = look();
            for helper in helpers {
                looked.extend(helper.join().unwrap_or_else(|panic| resume_unwind(panic)));
            }
            looked
        });
        looked.sort_by_key(|(number, _)| *number);
        looked.into_iter().map(|(_, looked)| looked).collect()
    }

    /// Looks at a file, and reads it if it has changed.
    fn look_at(self, Suspect { path, cached }: Suspect) -> Option<Looked> {
        let (untouched, stamp) = match read::look(&path) {
            Ok(looked) => looked,
            // As if it had not been listed.
            Err(_) if is_gone(&path) => return None,
            Err(unread) => {
                let file = FileTaken { stamp: None, content: unreadable(&path, unread) };
                return Some(Looked { path, file, doubtful: None, keep: false });
            }
        };
        let cached = match cached.filter(|cached| cached.file.stamp.as_ref() == Some(&stamp)) {
            Some(Cached { file, doubtful: None, .. }) => {
                return Some(Looked { path, file, doubtful: None, keep: true });
            }
            other => other,
        };
        let doubtful = stamp.is_fresh(self.wall);
        let mut digest = None;
        let content = match read::read(&untouched, &stamp, self.owner) {
            Ok(bytes) => {
                let known = cached.as_ref().and_then(|cached| cached.doubtful);
                digest = (doubtful || known.is_some()).then(|| Sha256::digest(&bytes).into());
                match cached {
                    // Read again, and it says the same: understanding costs far more than reading.
                    Some(cached) if known.is_some() && known == digest => cached.file.content,
                    Some(_) | None => understand(&path, bytes),
                }
            }
            Err(unread) => unreadable(&path, unread),
        };
        let keep = match content {
            Content::Whole(_) | Content::Unparsable(_) => true,
            Content::Writing(_) | Content::Unread(_) => false,
        };
        let file = FileTaken { stamp: Some(stamp), content };
        Some(Looked { path, file, doubtful: digest.filter(|_| doubtful), keep })
    }
}

impl Looked {
    /// What is to be known of it the next time.
    pub(super) fn to_cache(&self) -> Option<Cached> {
        let cached =
            || Cached { path: Arc::clone(&self.path), file: self.file.clone(), doubtful: self.doubtful };
        self.keep.then(cached)
    }
}

impl Cached {
    /// Whether a file in the directory itself is certainly as it was when it was read.
    pub(super) fn is_unchanged(&self) -> bool {
        // A symlink has another stamp than what it leads to.
        let is_same = |file: &std::fs::Metadata| self.file.stamp.as_ref() == Some(&Stamp::of(file));
        self.doubtful.is_none() && std::fs::symlink_metadata(&self.path).is_ok_and(|file| is_same(&file))
    }
}

fn is_gone(path: &Path) -> bool {
    matches!(path.symlink_metadata(), Err(error) if error.kind() == std::io::ErrorKind::NotFound)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_files_are_looked_at_each_and_in_their_order() {
        let top = tempfile::tempdir().unwrap();
        let eyes = Eyes { owner: nix::unistd::getuid().as_raw(), wall: i64::MAX };
        for count in [0, 1, WORTH_A_THREAD, 10 * WORTH_A_THREAD + 1] {
            let path = |number: usize| top.path().join(format!("{number}.yaml"));
            for number in 0..count {
                std::fs::write(path(number), format!("# {number}")).unwrap();
            }
            // The first and the last go before they are looked at.
            let gone = [0, count.saturating_sub(1)].map(path);
            for path in gone.iter().take(count) {
                let _twice = std::fs::remove_file(path);
            }
            let suspect = |number| Suspect { path: path(number).into(), cached: None };
            let looked = eyes.look_at_all((0..count).map(suspect).collect());
            assert_eq!(looked.len(), count);
            for (number, looked) in looked.into_iter().enumerate() {
                let metadata = std::fs::symlink_metadata(path(number)).ok();
                let stamp = metadata.as_ref().map(Stamp::of);
                assert_eq!(looked.is_some(), stamp.is_some(), "{number} of {count}");
                assert_eq!(looked.and_then(|looked| looked.file.stamp), stamp, "{number} of {count}");
            }
        }
    }
}
