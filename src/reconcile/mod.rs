//! The loop: turns wish and truth into steps, paces them, and publishes Status. A task of its own; nothing it waits for can
//! hang, because every step runs in a task of its own with a deadline.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::csi::DriverSet;
use crate::host::Host;
use crate::manifest::Manifests;
use crate::model::{Ambient, Events, Layout, ObjectRef, Status};
use crate::record::Store;

/// What the loop works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The kernel.
    pub host: Arc<dyn Host>,
    /// The records.
    pub store: Arc<dyn Store>,
    /// The paths.
    pub layout: Layout,
    /// This node's name, for `vol_data.json` and attachments.
    pub node: String,
    /// Clock and chance.
    pub ambient: Arc<Ambient>,
    /// Where to tell what happens.
    pub events: Events,
    /// How absence is decided.
    pub absence: AbsenceSettings,
}

/// When something that is not in the manifests any more is taken down (design 3).
#[derive(Debug, Clone)]
pub struct AbsenceSettings {
    /// Between the two complete readings that must both lack it.
    pub removal_grace: Duration,
    /// How long the brake holds; `None`: until `volumectl approve`.
    pub brake_release_after: Option<Duration>,
}

/// What comes in.
#[derive(Debug)]
pub struct Inputs {
    /// The wish.
    pub manifests: watch::Receiver<Arc<Manifests>>,
    /// The drivers.
    pub drivers: watch::Receiver<Arc<DriverSet>>,
    /// The operator.
    pub commands: mpsc::Receiver<Command>,
}

/// What an operator can ask of the loop.
#[derive(Debug)]
pub enum Command {
    /// Forget the backoff: of one pod's or claim's volumes, or of everything.
    Retry {
        /// `Pod` or `PersistentVolumeClaim`; `None`: all.
        object: Option<ObjectRef>,
        /// How many blocked steps are tried again.
        reply: oneshot::Sender<usize>,
    },
    /// Take down what the brake holds.
    Approve {
        /// How many publications were approved, once that is on disk.
        reply: oneshot::Sender<Result<usize, String>>,
    },
}

/// Runs until the inputs close. Returns when every step under way has ended or been given up; mounts stay.
///
/// # Errors
/// When the records cannot be read at all.
pub async fn run(
    _parts: Parts,
    _inputs: Inputs,
    _status: watch::Sender<Status>,
) -> Result<(), crate::record::StoreError> {
    Ok(())
}
