//! What is known of the manifest directories: where an object came from, what is wrong, whether all was read.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::ObjectRef;

/// Where an object was read.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct ManifestSource {
    /// The file.
    pub file: PathBuf,
    /// First line of its document, from 1.
    pub line: u64,
}

impl std::fmt::Display for ManifestSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// Something in the manifests that cannot be used or is doubtful. Nothing is taken down because of it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// The file or directory.
    pub path: PathBuf,
    /// Line and column, from 1, where known.
    pub position: Option<(u64, u64)>,
    /// The object, where it is known which.
    pub object: Option<ObjectRef>,
    /// The field (`spec.volumes[0].name`), where there is one.
    pub field: Option<String>,
    /// What is wrong.
    pub detail: String,
    /// What to do.
    pub remedy: String,
    /// Only a warning: the object is used all the same.
    pub warning: bool,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.path.display())?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if let Some(object) = &self.object {
            write!(f, ": {object}")?;
        }
        if let Some(field) = &self.field {
            write!(f, ": {field}")?;
        }
        write!(f, ": {} ({})", self.detail, self.remedy)
    }
}

/// What makes a directory the one it was (design 3): a replaced or unmounted one must not read as "all deleted".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryIdentity {
    /// Inode number.
    pub inode: u64,
    /// Birth time in ns since the epoch, or the file system's id where it has no birth times.
    pub birth: Birth,
}

/// The second half of a directory's identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Birth {
    /// stx_btime, ns since the epoch.
    Time(i128),
    /// f_fsid.
    FileSystem(u64),
}

/// One configured manifest directory after a reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectoryState {
    /// What was listed; `None` when it could not be.
    pub identity: Option<DirectoryIdentity>,
    /// Manifest files in it, valid or not.
    pub files: usize,
}

/// How a reading of all directories went.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ReadingState {
    /// Counts readings since the daemon started; 0: none yet.
    pub generation: u64,
    /// tokio time at its begin, as ms since the daemon's start.
    pub began_ms: u64,
    /// Why nothing may be taken for absent; empty: the reading is complete.
    pub incomplete: Vec<Problem>,
    /// By configured directory.
    pub directories: BTreeMap<PathBuf, DirectoryState>,
}

impl ReadingState {
    /// Returns whether every directory was listed, is the one it was, and every file was read whole.
    pub fn is_complete(&self) -> bool {
        self.generation > 0 && self.incomplete.is_empty()
    }

    /// Returns whether a later reading went as this one did.
    pub fn says(&self, later: &Self) -> bool {
        self.generation > 0 && self.incomplete == later.incomplete && self.directories == later.directories
    }
}
