//! Why a disk of a storage system is not there. It crosses from the child process to the daemon.

use std::fmt::Display;

use serde::{Deserialize, Serialize};

use crate::model::Lun;

/// A disk that is not connected, or not disconnected.
#[derive(Debug, thiserror::Error)]
#[error("{lun}: {said}")]
pub struct LunError {
    /// Which.
    pub lun: Lun,
    /// Why, as far as it is known.
    pub cause: LunCause,
    /// What iscsiadm said, or what is said in its place. No password is in it.
    pub said: String,
}

/// Why a disk is not connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LunCause {
    /// A program is not installed; the words say which package has it.
    NoTool,
    /// iscsid does not run, and could not be started.
    NoDaemon,
    /// The kernel has no iSCSI.
    NoKernel,
    /// Nothing answers at the portal, or nothing that speaks iSCSI.
    Unreachable,
    /// The portal's name is not known.
    NoSuchHost,
    /// The portal has no such target.
    NoTarget,
    /// The target refused the name or password of this host.
    Refused,
    /// A password that the volume asks for is not in its Secret.
    NoPassword,
    /// The target has no such LUN, or does not show it to this host.
    NoLun,
    /// The session is there, and has lost its target.
    Lost,
    /// Nobody connected it.
    NotConnected,
    /// Somebody has the disk.
    InUse,
    /// It took too long.
    Late,
    /// Something else.
    Other,
}

/// What the child says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::host) struct Refusal {
    pub(in crate::host) cause: LunCause,
    pub(in crate::host) said: String,
}

impl Refusal {
    pub(super) fn new(cause: LunCause, said: impl Into<String>) -> Self {
        Self { cause, said: said.into() }
    }

    /// Takes an error of the kernel.
    pub(super) fn failed(doing: impl Display, error: impl Display) -> Self {
        Self::new(LunCause::Other, format!("cannot {doing}: {error}"))
    }

    /// Makes the daemon's error of it.
    pub(in crate::host) fn of(self, lun: Lun) -> LunError {
        LunError { lun, cause: self.cause, said: self.said }
    }
}
