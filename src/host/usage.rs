//! What file systems say of how full they are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// How full a file system is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes that an ordinary user can still write.
    pub available_bytes: u64,
    /// Bytes in use.
    pub used_bytes: u64,
    /// Inodes in all; 0 where the file system does not count them.
    pub total_inodes: u64,
    /// Inodes left.
    pub free_inodes: u64,
}

/// How full file systems are, by path; or why one did not say.
pub type Usages = BTreeMap<PathBuf, Result<Usage, NoUsage>>;

/// Why a file system does not say how full it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoUsage {
    /// It did not answer in time: its server may be dead.
    #[error("{0}")]
    Silent(String),
    /// It answered this.
    #[error("{0}")]
    Refused(String),
}
