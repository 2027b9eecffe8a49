//! A reading that takes what the last one took comes to what that came to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Manifests;
use super::set::{Content, DirectoryTaken, FileTaken, Taken};
use crate::model::DirectoryIdentity;

/// A complete reading after which nothing was missing, and what it came to: one that takes the same comes to the same.
#[derive(Debug)]
pub(super) struct Last {
    files: BTreeMap<Arc<Path>, FileTaken>,
    directories: BTreeMap<PathBuf, DirectoryIdentity>,
    pub(super) manifests: Manifests,
}

impl Last {
    /// `None` where it could come to something else without being other than it is.
    pub(super) fn new(taken: &Taken, manifests: &Manifests) -> Option<Self> {
        if taken.approved || !taken.notes.is_empty() {
            return None;
        }
        let listed = |(path, found): (&PathBuf, &DirectoryTaken)| match found {
            DirectoryTaken::Listed(identity) => Some((path.clone(), identity.clone())),
            DirectoryTaken::Failed(_) => None,
        };
        let directories = taken.directories.iter().map(listed).collect::<Option<_>>()?;
        Some(Self { files: taken.files.clone(), directories, manifests: manifests.clone() })
    }

    /// Whether a reading takes the same.
    pub(super) fn is_taken_again(&self, taken: &Taken) -> bool {
        type File<'a> = (&'a Arc<Path>, &'a FileTaken);
        let is_same = |((path, file), (other_path, other)): (File<'_>, File<'_>)| {
            (Arc::ptr_eq(path, other_path) || path == other_path) && file.is(other)
        };
        let same_directory = |(path, found): (&PathBuf, &DirectoryTaken)| match found {
            DirectoryTaken::Listed(identity) => self.directories.get(path) == Some(identity),
            DirectoryTaken::Failed(_) => false,
        };
        !taken.approved
            && taken.notes.is_empty()
            && taken.directories.len() == self.directories.len()
            && taken.directories.iter().all(same_directory)
            && taken.files.len() == self.files.len()
            && taken.files.iter().zip(&self.files).all(is_same)
    }
}

impl FileTaken {
    /// Whether it is the same reading of the same whole file.
    fn is(&self, other: &Self) -> bool {
        match (&self.content, &other.content) {
            (Content::Whole(a), Content::Whole(b)) => Arc::ptr_eq(a, b) && self.stamp == other.stamp,
            (Content::Whole(_) | Content::Unparsable(_) | Content::Writing(_) | Content::Unread(_), _) => {
                false
            }
        }
    }
}
