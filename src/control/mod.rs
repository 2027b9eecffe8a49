//! The control API between volumectl and volumed: a gRPC service on a unix socket.
//!
//! The server reads the status that reconcile publishes and hands everything that changes something on as a `Request`; it
//! knows nothing else of the daemon. Who asks is told by the socket's peer credentials (design rule 9).

mod chain;
pub mod client;
mod explain;
pub mod foreign;
pub mod names;
mod operator;
mod paused;
pub mod peer;
pub mod render;
mod row;
#[cfg(test)]
mod samples;
pub mod server;
pub(crate) mod units;
mod usage;
pub mod views;
pub mod wait;
pub mod yaml;

use tokio::sync::oneshot;

use crate::model::{Handover, ObjectRef, Scope};
/// The messages, as `-o json` prints them.
pub use crate::proto::control as api;

/// What the control API asks of the rest of volumed.
#[derive(Debug)]
pub enum Request {
    /// Read the manifest directories once more, whether or not anything seems to have changed.
    Reread {
        /// The generation of a reading that began after the request.
        reply: oneshot::Sender<u64>,
    },
    /// Forget the backoff.
    Retry {
        /// A `Pod` or `PersistentVolumeClaim`; `None`: everything.
        object: Option<ObjectRef>,
        /// How many blocked steps are tried again.
        reply: oneshot::Sender<usize>,
    },
    /// Accept the manifest directories as they are, and let go of what the brake holds.
    Approve {
        /// What was approved, once that is on disk.
        reply: oneshot::Sender<Result<Approved, String>>,
    },
    /// Begin nothing more for these volumes.
    Pause {
        /// Which.
        scope: Scope,
        /// Once it is on disk.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Take back a pause.
    Resume {
        /// Which; as it was paused, or all.
        scope: Scope,
        /// How many were taken back, once that is on disk.
        reply: oneshot::Sender<Result<usize, String>>,
    },
    /// Make a foreign volume volumed's own.
    Adopt {
        /// Which.
        what: Handover,
        /// What was adopted, in words.
        reply: oneshot::Sender<Result<Vec<String>, String>>,
    },
    /// Take down what is kept though nobody wants it.
    Release {
        /// Which.
        what: Handover,
        /// Also what waits for who has it.
        force: bool,
        /// What is taken down, in words.
        reply: oneshot::Sender<Result<Vec<String>, String>>,
    },
    /// Let the disks that are there now be those of an object's volumes.
    AcceptIdentity {
        /// Whose.
        object: ObjectRef,
        /// Which disks were and are recorded, in words.
        reply: oneshot::Sender<Result<Vec<String>, String>>,
    },
}

/// What an approval came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Approved {
    /// Publications whose takedown was approved.
    pub publications: usize,
    /// The reading that accepted the directories.
    pub generation: u64,
}
