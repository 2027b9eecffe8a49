//! What is written down of volumes, snapshots and groups, beside their images. Version 1 of the format.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::shelf::Entry;
use crate::host::images::{Allocation, FsType, ordered};
use crate::model::Millis;

/// The version of the format, in every file.
pub(crate) const VERSION: u32 = 1;

/// What a call asks for otherwise: to be read-only, or not to be.
pub(crate) const OTHER_RIGHTS: &str = "other rights (read-only or not)";

/// What a call asks for otherwise: the mount options.
pub(crate) const OTHER_FLAGS: &str = "other mount flags";

/// What a call asks for otherwise: whose the content is.
pub(crate) const OTHER_GROUP: &str = "another VOLUME_MOUNT_GROUP";

/// The id of a volume, a snapshot or a group: the name of its directory, and its handle in CSI.
///
/// Letters, digits, `.`, `_` and `-`, the first a letter or digit, at most 128 bytes (csi.md 2.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(String);

/// How the ids of a group's snapshots begin.
const MEMBER: &str = "member-";

/// How the ids begin that a kubelet gives to inline volumes.
const INLINE: &str = "csi-";

/// How no name begins that is its own id.
const OTHERS: [&str; 3] = [INLINE, MEMBER, "name-"];

/// A text that is no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an id that this driver gives")]
pub struct InvalidId(String);

impl Id {
    /// Takes a text as an id.
    ///
    /// # Errors
    /// When it cannot be one.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
        let fine = text.len() <= 128
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.chars().all(plain);
        fine.then(|| Self(text.to_owned())).ok_or_else(|| InvalidId(text.chars().take(40).collect()))
    }

    /// Returns the id that belongs to a name: the name itself where it can be one, so that `ls` shows it, else a hash of it.
    /// A function of the name alone, so that a call that is repeated finds what it made, whatever happened in between.
    pub fn of_name(name: &str) -> Self {
        match Self::new(name) {
            Ok(id) if !OTHERS.iter().any(|prefix| name.starts_with(prefix)) => id,
            Ok(_) | Err(_) => Self::hashed("name-", name),
        }
    }

    /// Returns the id of a group's snapshot of a volume. `of_name` gives it to no name.
    pub fn of_member(group: &Self, volume: &Self) -> Self {
        // `:` is in no id, so that no two pairs read alike.
        Self::hashed(MEMBER, &format!("{group}:{volume}"))
    }

    /// Returns whether it can be the id of an inline volume: one that `of_name` gives to no name.
    pub fn is_inline(&self) -> bool {
        self.0.starts_with(INLINE)
    }

    fn hashed(prefix: &str, text: &str) -> Self {
        let hash = Sha256::digest(text.as_bytes());
        let hex: String = hash.iter().take(20).map(|byte| format!("{byte:02x}")).collect();
        Self(format!("{prefix}{hex}"))
    }

    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Id {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        Self::new(&text)
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        id.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a volume or a snapshot is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Content {
    /// An image with a file system that this driver made.
    FileSystem(FsType),
    /// An image with whatever its user writes.
    Block,
    /// No image but a directory, on the host's file system of this type.
    Directory(FsType),
}

impl Content {
    /// Returns the size to which what is in a volume has grown when its volume has: what is no file system of its own is as
    /// large as that at once.
    pub(crate) fn grown(self, before: u64, bytes: u64) -> u64 {
        match self {
            Self::FileSystem(_) => before,
            Self::Block | Self::Directory(_) => bytes,
        }
    }

    /// Returns whether it is a directory.
    pub(crate) fn is_directory(self) -> bool {
        match self {
            Self::Directory(_) => true,
            Self::FileSystem(_) | Self::Block => false,
        }
    }
}

/// What a volume was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Source {
    /// Another volume.
    Volume(Id),
    /// A snapshot.
    Snapshot(Id),
}

/// How far a volume is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VolumeState {
    /// Its image is being made; nobody was told of it, and nobody has mounted it. A crash makes it go.
    Creating,
    /// There.
    Ready,
    /// Its image is being grown; nobody was told of the new size. A crash makes it `Ready` with that size.
    Growing {
        /// Bytes.
        to: u64,
    },
    /// Its image may be gone. A crash makes the rest go.
    Deleting,
}

impl VolumeState {
    /// Returns whether what there is after a crash has to go.
    pub(crate) fn is_leftover(&self) -> bool {
        match self {
            Self::Creating | Self::Deleting => true,
            Self::Ready | Self::Growing { .. } => false,
        }
    }
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Volume {
    /// `VERSION`
    pub version: u32,
    /// Its directory's name.
    pub id: Id,
    /// As CreateVolume was given it.
    pub name: String,
    /// How far it is.
    pub state: VolumeState,
    /// Its size: the length of its image.
    pub bytes: u64,
    /// The size to which its file system was grown; less than `bytes` until the node did that.
    pub grown: u64,
    /// What the image holds.
    pub content: Content,
    /// Thin or thick.
    pub allocation: Allocation,
    /// Of a directory: the project that its files belong to, of which `bytes` is the limit. Nobody else's on that file system.
    pub project: Option<u32>,
    /// What it was made from.
    pub source: Option<Source>,
    /// An inline volume of a pod: it goes with its publication.
    pub ephemeral: bool,
    /// Bytes that it shared with its source when it was made: each may need a block of its own one day.
    pub shared: u64,
    /// When it was made.
    pub created: Millis,
}

/// How far a snapshot or a group is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Being made; nobody was told of it. A crash makes it go.
    Creating,
    /// There.
    Ready,
    /// A crash makes the rest go.
    Deleting,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Snapshot {
    /// `VERSION`
    pub version: u32,
    /// Its directory's name.
    pub id: Id,
    /// As CreateSnapshot was given it.
    pub name: String,
    /// How far it is.
    pub state: State,
    /// Of which volume.
    pub volume: Id,
    /// The size of the volume then.
    pub bytes: u64,
    /// The size to which the volume's file system was grown then.
    pub grown: u64,
    /// What the image holds.
    pub content: Content,
    /// The group that it belongs to.
    pub group: Option<Id>,
    /// As of a volume.
    pub shared: u64,
    /// The moment that it shows.
    pub created: Millis,
}

/// Snapshots of several volumes at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// `VERSION`
    pub version: u32,
    /// Its directory's name.
    pub id: Id,
    /// As CreateVolumeGroupSnapshot was given it.
    pub name: String,
    /// How far it is.
    pub state: State,
    /// Snapshot by volume.
    pub members: BTreeMap<Id, Id>,
    /// The moment that it shows.
    pub created: Millis,
}

/// What a volume is used for on this node, in one boot: what the mount table cannot say. Not synced, since it ends with the boot;
/// and without it everything still works, only less is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Use {
    /// The boot.
    pub boot: String,
    /// Where it is staged, and with what.
    pub staging: Option<(PathBuf, Asked)>,
    /// The number of a block volume's loop device, from its attachment until it was detached: what the publications are bound
    /// to, also after somebody else detached it.
    pub device: Option<u32>,
    /// Where it is published, or was tried to be.
    pub targets: BTreeMap<PathBuf, Asked>,
}

/// The capability of a stage or publish call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// The number of the access mode.
    pub mode: i32,
    /// As a block device.
    pub block: bool,
    /// Read-only.
    pub read_only: bool,
    /// Mount options.
    pub flags: Vec<String>,
    /// `volume_mount_group`
    pub group: Option<u32>,
}

impl Asked {
    /// Returns what another call asks for otherwise, in words for who made it.
    pub(crate) fn differs_from(&self, other: &Self) -> Option<&'static str> {
        match () {
            () if self.block != other.block => Some("another access type"),
            () if self.mode != other.mode => Some("another access mode"),
            () if self.read_only != other.read_only => Some(OTHER_RIGHTS),
            () if ordered(&self.flags) != ordered(&other.flags) => Some(OTHER_FLAGS),
            () if self.group != other.group => Some(OTHER_GROUP),
            () => None,
        }
    }
}

impl Entry for Volume {
    const SHELF: &'static str = "volumes";

    fn id(&self) -> &Id {
        &self.id
    }

    fn has_to_go(&mut self) {
        self.state = VolumeState::Deleting;
    }
}

impl Entry for Snapshot {
    const SHELF: &'static str = "snapshots";

    fn id(&self) -> &Id {
        &self.id
    }

    fn has_to_go(&mut self) {
        self.state = State::Deleting;
    }
}

impl Entry for Group {
    const SHELF: &'static str = "groups";

    fn id(&self) -> &Id {
        &self.id
    }

    fn has_to_go(&mut self) {
        self.state = State::Deleting;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_cannot_leave_its_directory() {
        for bad in ["", ".", "..", "a/b", "-a", ".a", "a b", "ü", &"a".repeat(129)] {
            assert!(Id::new(bad).is_err(), "{bad:?}");
            assert!(Id::new(Id::of_name(bad).as_str()).is_ok(), "{bad:?}");
        }
        for good in ["pvc-1", "a", "A_b.c-9", &"a".repeat(128)] {
            assert_eq!(Id::of_name(good).as_str(), good);
        }
    }

    #[test]
    fn different_names_have_different_ids() {
        let made = Id::of_name("a b");
        assert_ne!(made, Id::of_name("a  b"));
        // The name that reads like the id of another.
        assert_ne!(made, Id::of_name(made.as_str()));
        assert_ne!(Id::of_name("csi-1").as_str(), "csi-1");
        let member = Id::of_member(&Id::of_name("g"), &Id::of_name("a"));
        assert_ne!(Id::of_name("g:a"), member);
        assert_ne!(Id::of_name(member.as_str()), member);
    }
}
