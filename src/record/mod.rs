//! Durable state: one JSON file per volume, readable with cat at three in the morning.

mod directory;

use std::fmt::Debug;
use std::io;
use std::path::PathBuf;

use crate::BoxFuture;
use crate::model::{KnownDisk, Problem, VolumeKey, VolumeRecord};

pub use directory::Directory;

/// Where records are kept. `Directory` is the real one; the simulation has its own.
pub trait Store: Send + Sync + Debug {
    /// Reads every record. A damaged one is a problem of its own and harms no other.
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>>;

    /// Replaces a volume's record: temporary file, rename; with `Durability::Synced` the file and the directory are fsynced
    /// before it returns.
    fn write(&self, record: VolumeRecord, durability: Durability) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Removes a volume's record. Not synced: after a power cut it may be back, as uncertain.
    fn remove(&self, key: VolumeKey) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads the size in bytes that a volume was last known to have on this node: it outlives the record, so that a growth
    /// of a volume that is down is seen when it comes up.
    fn size(&self, key: VolumeKey) -> BoxFuture<'_, Result<Option<u64>, StoreError>>;

    /// Replaces that size. Not synced: a growth that was done is done again without harm.
    fn set_size(&self, key: VolumeKey, bytes: u64) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads what is known of a volume's disk. One that cannot be read is an error: by it formatting is refused.
    fn disk(&self, key: VolumeKey) -> BoxFuture<'_, Result<Option<KnownDisk>, StoreError>>;

    /// Replaces that, synced; `None` forgets it.
    fn set_disk(&self, key: VolumeKey, disk: Option<KnownDisk>) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Reads a small note of the daemon (the manifest directories' identities, what the brake holds).
    fn note(&self, name: &'static str) -> BoxFuture<'_, Result<Option<serde_json::Value>, StoreError>>;

    /// Replaces a note, synced.
    fn set_note(&self, name: &'static str, value: serde_json::Value)
    -> BoxFuture<'_, Result<(), StoreError>>;
}

/// What a start finds.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The readable records.
    pub records: Vec<VolumeRecord>,
    /// The others: file, reason, remedy. Their volumes are left alone, and their files too.
    pub damaged: Vec<Problem>,
}

/// Whether a record must survive a power cut from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// An intent: on disk before the call.
    Synced,
    /// An outcome: survives kill -9; a power cut makes a new boot, in which it counts as uncertain anyway.
    Written,
}

/// A record that could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct StoreError {
    /// "write", "sync", "rename", ...
    pub doing: &'static str,
    /// The file or directory.
    pub path: PathBuf,
    /// The kernel's reason.
    pub source: io::Error,
}
