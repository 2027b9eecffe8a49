//! The driver's administration for people: volumes made, listed, grown, copied and deleted as with lvcreate and its kin.
//!
//! All of it goes over the driver's socket, by the calls that any container orchestrator makes; what CSI does not say is not known
//! here. What happens on a node (mounts, the growth of a mounted file system) is volumed's or a kubelet's, so the texts say what
//! to write in a manifest for it.

mod client;
mod errors;
mod manifest;
mod names;
mod text;

use serde::Serialize;

pub use client::Client;
pub use errors::AdminError;
pub use manifest::document;
pub use names::{file_systems, new_name, size};
pub use text::{deleted, resized, snapshot, snapshots, volumes};

/// What a new volume is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewVolume {
    /// The volume's name, its handle, and the name of its PersistentVolume.
    pub name: String,
    /// The least size; `None`: that of the source.
    pub bytes: Option<u64>,
    /// What is in it.
    pub content: Content,
    /// `thin` or `thick`; `None`: as the driver does by itself.
    pub allocation: Option<String>,
    /// `image` or `directory`; `None`: as the driver does by itself.
    pub backing: Option<String>,
    /// What it is a copy of.
    pub source: Option<Source>,
}

/// What is in a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A file system by its name; `None`: that of the source, or ext4.
    FileSystem(Option<String>),
    /// Whatever its user writes to the device.
    Block,
}

/// What a volume is a copy of, by handle.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A volume as it is at the moment.
    Volume(String),
    /// A snapshot.
    Snapshot(String),
}

/// A volume that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Created {
    /// Its PersistentVolume.
    pub manifest: serde_json::Value,
    /// What the manifest shows and its maker may not expect.
    pub note: Option<String>,
}

/// A volume in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// `volumeHandle`
    pub handle: String,
    /// Its size.
    pub capacity_bytes: u64,
    /// What it is kept in: `image` or `directory`.
    pub backing: String,
    /// What it was copied from.
    pub source: Option<Source>,
    /// A pod's own (inline): it goes with its pod.
    pub ephemeral: bool,
    /// Whether something is wrong with it.
    pub abnormal: bool,
    /// What; `well` if nothing is.
    pub condition: String,
}

/// A volume that was grown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Resized {
    /// `volumeHandle`
    pub handle: String,
    /// Its size now.
    pub capacity_bytes: u64,
    /// Whether what is in it has to grow on the node as well.
    pub node_expansion_required: bool,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// `snapshotHandle`
    pub handle: String,
    /// Of which volume.
    pub volume: String,
    /// The size of a volume made from it.
    pub capacity_bytes: u64,
    /// When it was taken (RFC 3339).
    pub created: String,
}

/// What was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Deleted {
    /// Its handle.
    pub handle: String,
}
