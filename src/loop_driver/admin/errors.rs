//! Why something was not done, in words that name the object, the cause and what helps.

use std::error::Error as _;
use std::io;
use std::path::{Path, PathBuf};

use tonic::{Code, Status};

use crate::control::render::printable;
use crate::error::Chain;

/// No answer, or a refusal.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// Nobody listens.
    #[error(
        "no driver listens on {}; start it (systemctl start volumed-csi-loop), or name its socket with --driver-socket",
        socket.display()
    )]
    NotRunning {
        /// Where it was looked for.
        socket: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The socket's mode forbids it.
    #[error("not allowed to connect to {}: run this as root", socket.display())]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The path cannot be used as an address.
    #[error("{} cannot be used as a socket's address", socket.display())]
    BadSocket {
        /// As given.
        socket: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The connection broke.
    #[error(
        "cannot {what}: the driver on {} does not answer: {message}; what it began it finishes: give the same command again",
        socket.display()
    )]
    NoAnswer {
        /// "create the volume data"
        what: String,
        /// The socket.
        socket: PathBuf,
        /// What is known of it.
        message: String,
    },
    /// There is no such volume or snapshot.
    #[error("cannot {what}: {message}; see volumed-csi-loop volume list, volumed-csi-loop snapshot list")]
    Unknown {
        /// "delete the volume data"
        what: String,
        /// The driver's words.
        message: String,
    },
    /// The driver does not do it.
    #[error("cannot {what}: {message}{remedy}")]
    Refused {
        /// "create the volume data"
        what: String,
        /// The driver's words.
        message: String,
        /// What helps, after a semicolon; may be empty.
        remedy: &'static str,
    },
    /// A smaller size was asked for.
    #[error("cannot resize the volume {volume} to {wanted}: it has {has}, and volumes do not shrink")]
    Shrink {
        /// Its handle.
        volume: String,
        /// The size it has.
        has: String,
        /// The size it was to have.
        wanted: String,
    },
    /// The answer lacks what it must have.
    #[error("cannot {what}: the driver's answer has no {missing}; it is broken, or no CSI driver")]
    Incomplete {
        /// "create the volume data"
        what: String,
        /// Which field.
        missing: &'static str,
    },
}

impl AdminError {
    /// Returns whether the name is the fault: nothing has it.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// Takes what a call ended in.
    pub(super) fn of(what: &str, socket: &Path, status: &Status) -> Self {
        let what = what.to_owned();
        // What the transport made up has a cause; a driver's answer has none.
        let message = match status.source() {
            Some(cause) => Chain(cause).to_string(),
            None => printable(status.message()),
        };
        if status.source().is_some() || matches!(status.code(), Code::Unavailable | Code::Cancelled) {
            return Self::NoAnswer { what, socket: socket.to_owned(), message };
        }
        if status.code() == Code::NotFound {
            return Self::Unknown { what, message };
        }
        let remedy = match status.code() {
            Code::AlreadyExists => "; choose another name, or ask for what is there",
            Code::ResourceExhausted => "; make room in the driver's directory, or ask for less",
            Code::FailedPrecondition if what.starts_with("delete") => {
                "; take its pods' manifests away and wait until they let it go: volumectl wait --for=released pod/NAME"
            }
            Code::Aborted => "; try again when that has ended",
            Code::DeadlineExceeded => "; whether it was done is not known: give the same command again",
            _ => "",
        };
        Self::Refused { what, message, remedy }
    }
}
