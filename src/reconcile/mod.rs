//! The loop: turns wish and truth into steps, paces them, and publishes Status. A task of its own; nothing it waits for can
//! hang, because every step runs in a task of its own with a deadline.

mod commands;
mod disks;
mod drift;
mod handover;
mod operator;
mod pass;
mod pods;
mod show;
mod steps;
mod wish;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::csi::{DriverSet, Turns};
use crate::desired::TokenFiles;
use crate::host::Host;
use crate::manifest::Manifests;
use crate::model::{Ambient, Events, Handover, Layout, ObjectRef, Scope, Status};
use crate::observe::ObserveError;
use crate::record::Store;
use pass::Loop;

/// What the loop works with.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The kernel.
    pub host: Arc<dyn Host>,
    /// The records.
    pub store: Arc<dyn Store>,
    /// At most one call is under way for a volume, whoever makes it.
    pub turns: Turns,
    /// The paths.
    pub layout: Layout,
    /// This node's name, for `vol_data.json` and attachments.
    pub node: String,
    /// The files with service-account tokens that the configuration names.
    pub tokens: TokenFiles,
    /// This node's labels.
    pub node_labels: BTreeMap<String, String>,
    /// Where systemd put what the unit's LoadCredential= names, if it names anything.
    pub credentials: Option<PathBuf>,
    /// Clock and chance.
    pub ambient: Arc<Ambient>,
    /// tokio time from which all ms of `ReadingState` and of retries count.
    pub started: Instant,
    /// Where to tell what happens.
    pub events: Events,
    /// How absence is decided.
    pub absence: AbsenceSettings,
    /// Between two publications of one volume for a driver that wants that: `REPUBLISH` but for tests.
    pub republish: Duration,
    /// Asks for another reading of the manifests: absence takes two.
    pub reread: Reread,
}

/// Between two publications of one volume for a driver that wants that (CSIDriver.requiresRepublish): a kubelet does it with
/// each sync of the pod, about once a minute.
pub const REPUBLISH: Duration = Duration::from_secs(60);

/// Asks for a reading of the manifests without waiting for it.
#[derive(Clone)]
pub struct Reread(Arc<dyn Fn() + Send + Sync>);

impl Reread {
    /// Takes what asks.
    pub fn new(ask: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(ask))
    }
}

impl std::fmt::Debug for Reread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reread").finish_non_exhaustive()
    }
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
    /// The end: no step begins any more.
    pub shutdown: CancellationToken,
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
    /// Begin nothing more for these volumes, neither up nor down nor repairs, until `Resume`.
    Pause {
        /// Which.
        scope: Scope,
        /// Once it is on disk.
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Take back a `Pause`.
    Resume {
        /// Which; as it was paused.
        scope: Scope,
        /// How many were taken back, once that is on disk.
        reply: oneshot::Sender<Result<usize, String>>,
    },
    /// Make a volume that somebody else left volumed's own; it stays as it is.
    Adopt {
        /// Which.
        what: Handover,
        /// What was adopted, in words.
        reply: oneshot::Sender<Result<Vec<String>, String>>,
    },
    /// Take down what nobody wants and volumed keeps: a kept emptyDir, an adopted or a foreign volume. With `force`, do not
    /// wait for who has a volume that is going.
    Release {
        /// Which.
        what: Handover,
        /// Not only what is kept: what is in use too.
        force: bool,
        /// What will be taken down, in words.
        reply: oneshot::Sender<Result<Vec<String>, String>>,
    },
    /// Let the disks that are there now be the volumes' on devices of a pod or claim.
    AcceptIdentity {
        /// Which.
        object: ObjectRef,
        /// Which disk was recorded and which is accepted, in words, once that is on disk.
        reply: oneshot::Sender<Result<Vec<String>, String>>,
    },
    /// Say that the loop moves: the watchdog asks.
    Ping {
        /// Answered by the next turn of the loop.
        reply: oneshot::Sender<()>,
    },
}

/// How long a shutdown waits for the steps under way. Their intents are on disk: what is cut off is done again.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(10);

/// The slow safety pass: finds only what an event missed.
const SAFETY_PERIOD: Duration = Duration::from_secs(300);

/// Runs until `shutdown`, then returns when every step under way has ended or been given up; mounts stay.
///
/// # Errors
/// When what earlier runs left cannot be read; nothing was changed then.
pub async fn run(
    parts: Parts,
    mut inputs: Inputs,
    status: watch::Sender<Status>,
) -> Result<(), ObserveError> {
    let host = Arc::clone(&parts.host);
    let mut turn = Loop::start(parts, &mut inputs, status).await?;
    loop {
        turn.pass().await;
        let due = turn.next_due();
        tokio::select! {
            biased;
            // Every arm is cancel-safe: watch and mpsc keep what was not received, join_next keeps the tasks, the host keeps
            // the change, and the sleep is computed anew.
            () = inputs.shutdown.cancelled() => break,
            happening = turn.happened() => turn.take(happening),
            Some(command) = inputs.commands.recv() => turn.command(command).await,
            Ok(()) = inputs.manifests.changed() => {}
            Ok(()) = inputs.drivers.changed() => {}
            () = host.mounts_changed() => turn.mounts_changed(),
            news = host.disks_changed() => turn.disks_changed(news),
            () = tokio::time::sleep_until(due) => turn.timer(),
        }
        turn.gather(&mut inputs).await;
        // What is due by the clock must not starve behind events.
        turn.timer();
    }
    turn.finish(SHUTDOWN_GRACE).await;
    Ok(())
}
