//! How full and how well published volumes are, as far as somebody was asked.

use std::collections::BTreeMap;

use super::{Millis, PublicationId, VolumeKey};

/// By place. A publication that was not asked about yet is not in it.
pub type HealthMap = BTreeMap<PublicationId, VolumeHealth>;

/// What is known of one published volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeHealth {
    /// The volume that was there when it was asked about.
    pub key: VolumeKey,
    /// Its bytes.
    pub bytes: Space,
    /// Its inodes.
    pub inodes: Space,
    /// What is wrong with it; empty is well, or not known.
    pub ills: Vec<Ill>,
    /// Of the last answer, ms since the epoch; `None` while there was none.
    pub measured_at: Option<Millis>,
    /// Why the last question had no answer that can be used; what is above is older then.
    pub error: Option<String>,
}

impl VolumeHealth {
    /// Returns the first thing that is wrong with the volume, for people.
    pub fn ill(&self) -> Option<&Ill> {
        self.ills.iter().find(|ill| ill.kind.counts())
    }
}

/// An amount of something; `None` is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Space {
    /// All there is.
    pub total: Option<u64>,
    /// What is taken.
    pub used: Option<u64>,
    /// What can still be taken, which may be less than the rest.
    pub available: Option<u64>,
}

/// One thing that a driver says, or that the file system shows, is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ill {
    /// What kind of thing.
    pub kind: IllKind,
    /// A word for programs; empty for a condition.
    pub reason: String,
    /// For people; cut, without control characters.
    pub message: String,
    /// Since when it is known, ms since the epoch; `None` where nobody counts.
    pub since: Option<Millis>,
}

impl std::fmt::Display for Ill {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.kind)?;
        for part in [&self.reason, &self.message] {
            if !part.is_empty() {
                write!(f, ": {part}")?;
            }
        }
        Ok(())
    }
}

/// How bad it is (csi.md 1.1a).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IllKind {
    /// The volume condition of 1.12 says so, and no more.
    Abnormal,
    /// It works, but less well than it should.
    Degraded,
    /// It cannot be used at the moment.
    Inaccessible,
    /// Data are lost.
    DataLoss,
    /// Its server says nothing: nobody knows.
    Silent,
    /// A number that is not known here: shown, and nothing is made of it.
    Other(i32),
}

impl IllKind {
    /// Returns whether the volume counts as not well.
    pub fn counts(self) -> bool {
        match self {
            Self::Abnormal | Self::Degraded | Self::Inaccessible | Self::DataLoss | Self::Silent => true,
            Self::Other(_) => false,
        }
    }
}

impl std::fmt::Display for IllKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Abnormal => f.write_str("abnormal"),
            Self::Degraded => f.write_str("degraded"),
            Self::Inaccessible => f.write_str("inaccessible"),
            Self::DataLoss => f.write_str("data-loss"),
            Self::Silent => f.write_str("not-answering"),
            Self::Other(number) => write!(f, "status {number}"),
        }
    }
}
