//! Why a call failed, and the code that CSI has for it (csi.md 2.2, 2.6, 2.7).

use std::io;

use tonic::{Code, Status};

use super::store::{Id, StoreError};
use crate::error::Chain;
use crate::host::HostError;

/// A call that did not end in OK.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// A field is missing or cannot be used. Says which and why.
    #[error("{0}")]
    Invalid(String),
    /// There is no such volume, snapshot, group or path.
    #[error("there is no {what} {id}")]
    NotFound {
        /// "volume", ...
        what: &'static str,
        /// Its id or path.
        id: String,
    },
    /// The name, or the path, is taken by something else.
    #[error("{0}")]
    Exists(String),
    /// Another call for the same volume is under way.
    #[error("another call for {0} is under way")]
    Pending(Id),
    /// A list is to be begun anew.
    #[error("the starting token is none of this driver's")]
    Token,
    /// It cannot be done as things are.
    #[error("{0}")]
    Precondition(String),
    /// A size that cannot be had.
    #[error("{0}")]
    OutOfRange(String),
    /// The host has no room, or what is asked for is to be where this driver has none.
    #[error("{0}")]
    Exhausted(String),
    /// What should be there of a volume is not.
    #[error("{0}")]
    Lost(String),
    /// The host refused.
    #[error(transparent)]
    Host(#[from] HostError),
    /// It could not be written down.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Failure {
    /// Returns the error for a volume that is not there.
    pub fn no_volume(id: &str) -> Self {
        Self::NotFound { what: "volume", id: id.to_owned() }
    }

    /// Returns the error for a snapshot that is not there.
    pub fn no_snapshot(id: &str) -> Self {
        Self::NotFound { what: "snapshot", id: id.to_owned() }
    }

    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::Exists(_) => Code::AlreadyExists,
            Self::Pending(_) | Self::Token => Code::Aborted,
            Self::Precondition(_) => Code::FailedPrecondition,
            Self::OutOfRange(_) => Code::OutOfRange,
            Self::Exhausted(_) => Code::ResourceExhausted,
            Self::Lost(_) => Code::Internal,
            Self::Host(HostError::Busy { .. }) => Code::FailedPrecondition,
            // Whether it was done is not known.
            Self::Host(HostError::Deadline { .. }) => Code::DeadlineExceeded,
            Self::Host(HostError::Io { source, .. }) | Self::Store(StoreError::Io { source, .. }) => {
                match source.kind() {
                    kind if is_no_room(kind) => Code::ResourceExhausted,
                    io::ErrorKind::FileTooLarge => Code::OutOfRange,
                    _ => Code::Internal,
                }
            }
            Self::Host(
                HostError::NotEmpty { .. }
                | HostError::WrongKind { .. }
                | HostError::WrongMount { .. }
                | HostError::Disk(_)
                | HostError::Nfs(_)
                | HostError::Lun(_),
            )
            | Self::Store(
                StoreError::Foreign { .. } | StoreError::OfAnother { .. } | StoreError::Damaged { .. },
            ) => Code::Internal,
        }
    }
}

/// Returns whether the kernel says that the host is full.
pub(super) fn is_no_room(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Self::new(failure.code(), Chain(&failure).to_string())
    }
}
