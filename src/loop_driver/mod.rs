//! `volumed-csi-loop`, the bundled CSI driver: volumes of a real size below a host directory, in image files or, where its file
//! system has project quotas, in directories.
//!
//! An ordinary driver over a unix socket: volumed makes no difference between it and others, and it works under a kubelet as
//! well; they share code, but no state. It speaks CSI 1.13 and the
//! volume condition of the versions before, and registers itself as a kubelet expects it (kubelet.md 7).
//!
//! # On disk
//!
//! ```text
//! DIR/volumed-csi-loop.json        whose directory it is
//! DIR/lock                         held (flock) while the driver runs, and by every tool that it started
//! DIR/volumes/ID/meta.json         what the volume is, and how far (store::Volume)
//! DIR/volumes/ID/image             its bytes; or, of one that is a directory,
//! DIR/volumes/ID/data/             its files, which belong to a project of their own
//! DIR/volumes/ID/image.deleting    the same of one that has to go, where the host had no room to write that down
//! DIR/volumes/ID/use.json          what it is used for on this node in this boot; not synced
//! DIR/volumes/ID/data.deleting/    likewise
//! DIR/snapshots/ID/{meta.json,image,data/}
//! DIR/groups/ID/meta.json          snapshots that were taken at one moment
//! ```
//!
//! Nothing else may be in it; whatever is makes the driver refuse to start, and it stays. An id is a function of the name that
//! CreateVolume was given, so a repeated call finds what it made whatever happened in between.
//!
//! # States
//!
//! `meta.json` is replaced (written aside, synced, renamed, directory synced) before and after each step, and memory never says
//! more than it:
//!
//! ```text
//! volume    creating ─▶ ready ⇄ growing      any ─▶ deleting ─▶ gone
//! snapshot  creating ─▶ ready                any ─▶ deleting ─▶ gone     (a group likewise, before and after its snapshots)
//! ```
//!
//! * `creating`: the image is made, or copied, and its file system made, or given a UUID and grown, all before anybody hears of
//!   it; then it is synced, and only then is it `ready`. mkfs runs in no other state, so that what was ever mounted is never
//!   formatted. A crash makes all of it go; the caller repeats the call.
//! * `growing`: the image file is grown, and synced. A crash makes it `ready` with the new size where the file has it, else
//!   with the old.
//! * A directory is made likewise: its project is in `meta.json` before anything belongs to it, its limit is set last. While it
//!   is `growing` the limit is set; a crash makes it `ready` with the limit that it has. It is emptied, and its project without a
//!   limit, before `meta.json` goes (`directories`).
//! * `deleting`: the image may be gone. It is unlinked only when no loop device has it, by device and inode.
//!
//! What is mounted and attached is never remembered but looked up: the mount table and the loop devices say it (`node::place`).
//! `use.json` adds what they cannot say: what was asked for (access modes, groups), and the number of a block volume's loop device,
//! by which its publications are known also after somebody else detached it.
//!
//! # Who does what
//!
//! `identity`, `controller`, `node`, `group` and `registration` are the services; `ask` checks requests, `images` of the host
//! does what needs the kernel. A call that changes something runs in a task of its own to its end, even when the caller gives
//! up (`Driver::operate`), and holds the locks of what it is about (`locks`): a repeated call waits for it, or is told ABORTED.

pub mod admin;
mod ask;
mod capacity;
mod config;
mod controller;
mod copies;
mod directories;
mod errors;
mod group;
mod health;
mod identity;
mod locks;
mod node;
mod registration;
mod repair;
mod serve;
mod snapshots;
mod store;
mod volumes;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::{Response, Status};
use tracing::warn;

use crate::error::Chain;
use crate::host::images::{Claim, Images};
use crate::host::{self, HostError};
use crate::model::Millis;
use copies::Copies;
use directories::Projects;
use errors::Failure;
use locks::{Key, Locks};
use store::{Id, Store, StoreError};

pub use config::{Config, ConfigError, DEFAULT_FILE, Flags};
pub use serve::{Ending, RunError, run};

/// Does the work of a child process of this program, if this process was started as one. To be called before anything else.
pub fn as_child() -> Option<ExitCode> {
    host::as_child().or_else(host::images::as_keeper)
}

/// The key under which a kubelet says that a volume is a pod's own (csi.md 2.10), and the administration reads it.
const EPHEMERAL: &str = "csi.storage.k8s.io/ephemeral";

/// What a volume is kept in: a class's parameter, an inline volume's attribute, and shown in the context of each that is a directory.
const BACKING: &str = "backing";

/// How long a caller waits for the end of its call; the call goes on, and holds its locks.
const ANSWER: Duration = Duration::from_secs(900);

/// What all services share.
#[derive(Debug, Clone)]
struct Driver {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    store: Store,
    images: Images,
    locks: Locks,
    copies: Copies,
    projects: Projects,
    /// The number of the loop device that a volume had last: only where to look first, and checked by the file behind it. A std
    /// mutex: held for a look-up only.
    devices: Mutex<BTreeMap<Id, u32>>,
    /// Calls that change something.
    calls: TaskTracker,
    /// Ends the driver: a call that panicked left nobody knows what.
    broken: CancellationToken,
}

/// The driver cannot work with its directory.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// What is in it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The kernel.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Driver {
    /// Takes the directory, and puts in order what a crash left in it.
    async fn open(mut config: Config) -> Result<Self, OpenError> {
        Store::make(&config.dir)?;
        Store::refuse_another(&config.dir, config.name.as_str())?;
        let claim = Claim::new(&config.dir).await?;
        // What the kernel shows of an image has no symlinks: by a path with one in it nothing of ours would be found again.
        claim.directory().clone_into(&mut config.dir);
        // Before all else, that may last or fail: somebody waits for this with every write.
        if let Err(error) = claim.thaw_all(store::IMAGE).await {
            warn!("a volume may still be frozen: {}", Chain(&error));
        }
        Store::prepare(&config.dir, config.name.as_str())?;
        let images = claim.open().await?;
        let store = Store::load(&config.dir, boot()?)?;
        let inner = Inner {
            config,
            store,
            images,
            locks: Locks::default(),
            copies: Copies::default(),
            projects: Projects::default(),
            devices: Mutex::default(),
            calls: TaskTracker::new(),
            broken: CancellationToken::new(),
        };
        let driver = Self { inner: Arc::new(inner) };
        driver.repair().await;
        Ok(driver)
    }

    fn config(&self) -> &Config {
        &self.inner.config
    }

    fn store(&self) -> &Store {
        &self.inner.store
    }

    fn images(&self) -> &Images {
        &self.inner.images
    }

    /// Does something to its end, though the caller may give up, with the locks of what it is about.
    async fn operate<T, F>(&self, keys: Vec<Key>, work: impl FnOnce(Self) -> F) -> Result<Response<T>, Status>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        let lock = self.inner.locks.take(keys).await?;
        let work = work(self.clone());
        let breaks = Breaks(Some(self.inner.broken.clone()));
        let task = self.inner.calls.spawn(async move {
            let done = work.await;
            drop(lock);
            breaks.passed();
            done
        });
        match tokio::time::timeout(ANSWER, task).await {
            Ok(Ok(done)) => Ok(Response::new(done?)),
            Ok(Err(join)) => Err(Status::internal(format!("the call broke: {join}"))),
            Err(_elapsed) => Err(Status::deadline_exceeded("the call goes on; repeat it")),
        }
    }
}

/// Ends the driver with a task that does not come to its end, whether or not its caller is still there to see it.
struct Breaks(Option<CancellationToken>);

impl Breaks {
    fn passed(mut self) {
        self.0 = None;
    }
}

impl Drop for Breaks {
    fn drop(&mut self) {
        if let Some(broken) = self.0.take() {
            broken.cancel();
        }
    }
}

/// The boot that this is.
fn boot() -> Result<String, StoreError> {
    const BOOT: &str = "/proc/sys/kernel/random/boot_id";
    read_line(Path::new(BOOT))
}

/// A new UUID.
fn uuid() -> Result<String, StoreError> {
    read_line(Path::new("/proc/sys/kernel/random/uuid"))
}

fn read_line(path: &Path) -> Result<String, StoreError> {
    let text = std::fs::read_to_string(path).map_err(|e| StoreError::io("read", path, e))?;
    Ok(text.trim().to_owned())
}

/// The time of day.
fn now() -> Millis {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(since.as_millis()).unwrap_or(Millis::MAX)
}
