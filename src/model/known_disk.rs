//! What is remembered of a volume's disk for as long as the state directory lasts, also while the volume is down: by this another
//! disk under its path is known, and a disk that was formatted once is never formatted again (design 6, rule 2).

use serde::{Deserialize, Serialize};

use super::{DiskIdentity, FileSystem, FsUuid};

/// The disk that a volume was first used with, or that the operator accepted in its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KnownDisk {
    /// Which.
    pub identity: DiskIdentity,
    /// What was made or found on it; of an encrypted disk, inside.
    pub content: KnownContent,
    /// How it is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub luks: Option<KnownLuks>,
}

/// A disk's encryption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct KnownLuks {
    /// The header's.
    pub uuid: FsUuid,
    /// As `LuksIntent::least_bytes`.
    pub least_bytes: u64,
    /// It is known to have come to its end. Until then nothing is inside.
    pub made: bool,
}

/// What is known to be on a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub enum KnownContent {
    /// It is or was shown raw: whatever is on it is somebody's, also what looks blank.
    Raw,
    /// The operator accepted it, whatever was on it: a blank one may be formatted.
    Accepted,
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
