//! What is remembered of a volume's disk for as long as the state directory lasts, also while the volume is down: by this another
//! disk under its path is known, and a disk that was formatted once is never formatted again (design 6, rule 2).

use serde::{Deserialize, Serialize};

use super::{DiskIdentity, FileSystem};

/// The disk that a volume was first used with, or that the operator accepted in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KnownDisk {
    /// Which.
    pub identity: DiskIdentity,
    /// What was made or found on it.
    pub content: KnownContent,
}

/// What is known to be on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum KnownContent {
    /// Not a file system of ours: the disk is shown raw, or the operator accepted it as it was.
    Raw,
    /// mkfs was or may have been started with this intent, and is not known to have ended.
    Formatting {
        /// What is made.
        file_system: FileSystem,
        /// As `Intent::least_bytes`.
        least_bytes: u64,
    },
    /// This file system, made by volumed or found at the first use.
    FileSystem(FileSystem),
}
