//! Disks of storage systems (LUNs): connected with before their volume is staged, disconnected after it was unstaged (kubelet.md
//! 4.8, 4.9).
//!
//! A target may not answer, and a write to sysfs may wait for it. So each operation is one child process, which runs iscsiadm
//! and has a deadline; a target that hangs delays nobody else's volumes. What is there is looked up in sysfs each time: the
//! sessions are the kernel's, and outlive volumed.

mod away;
mod database;
mod discovery;
mod error;
mod fc;
mod iscsi;
#[cfg(test)]
mod iscsi_tests;
mod login;
mod multipath;
mod sysfs;
mod tools;
#[cfg(test)]
mod tree;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::{HostError, Linux};
use crate::BoxFuture;
use crate::model::{Lun, SecretMap};

pub(super) use error::Refusal;
pub use error::{LunCause, LunError};
use sysfs::Roots;
use tools::Host as Machine;

/// How long connecting may take: iscsiadm's limits for one portal, all of which are asked at once, the wait for whoever asks it
/// too, the one for the disk, and the one for multipathd.
const ATTACH: Duration = Duration::from_secs(240);

/// How long finding a disk again may take.
const FIND: Duration = Duration::from_secs(30);

/// How long disconnecting may take: what the disk has not written yet is written, and the target says good-bye, or iscsid goes on
/// without it. A session that is lost fails what waits for it after 120 s (`replacement_timeout`).
const DETACH: Duration = Duration::from_secs(240);

/// The host's connections with storage systems. `Linux` is the real one; the simulation has its own.
pub trait Luns: Send + Sync + Debug {
    /// Connects with a disk, where that was not done yet, and finds its node: of iSCSI by a session for each portal, one of
    /// which has to work. Where it has several paths and multipathd is there, the node is the multipath device. `secrets` has
    /// the passwords under the names that a Secret of the type `kubernetes.io/iscsi-chap` has. How large the disk is is asked
    /// again.
    ///
    /// Errors: `Lun`. A session may be there, or the disk: `detach_lun` undoes it.
    fn attach_lun(&self, lun: Lun, secrets: Arc<SecretMap>) -> BoxFuture<'_, Result<LunAttached, HostError>>;

    /// Finds the node of a disk that is connected. How large it is is asked again, if `rescan`.
    ///
    /// Errors: `Lun`, with the state of the connection.
    fn find_lun(&self, lun: Lun, rescan: bool) -> BoxFuture<'_, Result<PathBuf, HostError>>;

    /// Disconnects a disk that nobody has any more. The sessions that `attach_lun` made and that have no other disk end; others'
    /// sessions and their disks stay. What is gone already is fine.
    ///
    /// Errors: `Lun`: `LunCause::InUse`: nothing was taken away; after any other error it is not known.
    fn detach_lun(&self, lun: Lun) -> BoxFuture<'_, Result<(), HostError>>;
}

/// A disk that is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LunAttached {
    /// Its node: by a name that lasts, where udev made one.
    pub node: PathBuf,
    /// What an operator should know of it: portals that do not work, paths that nobody joins.
    pub notes: Vec<String>,
}

/// What is asked of the child.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ask {
    /// Where its tools are looked for.
    tools_in: Vec<OsString>,
    lun: Lun,
    work: Work,
}

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
enum Work {
    /// `Luns::attach_lun`
    Attach(Passwords),
    /// `Luns::find_lun`
    Find {
        /// How large it is is asked again.
        rescan: bool,
    },
    /// `Luns::detach_lun`
    Detach,
}

/// What the child answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    Attached(LunAttached),
    Found(PathBuf),
    Detached,
}

/// Passwords on their way to the child, through the pipe between the two.
#[derive(Serialize, Deserialize)]
struct Passwords(BTreeMap<String, String>);

impl Debug for Passwords {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What is connected and disconnected one after the other: all disks of an iSCSI target. By its name; held for a map look-up only.
#[derive(Debug, Default)]
pub(super) struct Targets(std::sync::Mutex<BTreeMap<String, Arc<Mutex<()>>>>);

impl Targets {
    fn of(&self, lun: &Lun) -> Arc<Mutex<()>> {
        let name = match lun {
            Lun::Iscsi(lun) => lun.iqn.to_string(),
            Lun::Fc(_) => lun.to_string(),
        };
        let mut targets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        targets.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(targets.entry(name).or_default())
    }
}

impl Linux {
    async fn on_lun(&self, lun: Lun, work: Work, limit: Duration) -> Result<Answer, HostError> {
        // Two volumes of one target come and go at once: a session is not ended while another volume finds it there.
        let turn = self.targets().of(&lun);
        let _turn = turn.lock().await;
        let tools_in = self.tools_in().iter().map(Into::into).collect();
        self.programs().lun(Ask { tools_in, lun, work }, limit).await
    }
}

impl Luns for Linux {
    fn attach_lun(&self, lun: Lun, secrets: Arc<SecretMap>) -> BoxFuture<'_, Result<LunAttached, HostError>> {
        Box::pin(async move {
            let passwords = secrets.reveal().iter().filter(|(name, _)| database::is_password(name));
            let passwords = Passwords(passwords.map(|(name, value)| (name.clone(), value.clone())).collect());
            match self.on_lun(lun, Work::Attach(passwords), ATTACH).await? {
                Answer::Attached(attached) => Ok(attached),
                other => Err(wrong(&other)),
            }
        })
    }

    fn find_lun(&self, lun: Lun, rescan: bool) -> BoxFuture<'_, Result<PathBuf, HostError>> {
        Box::pin(async move {
            match self.on_lun(lun, Work::Find { rescan }, FIND).await? {
                Answer::Found(node) => Ok(node),
                other => Err(wrong(&other)),
            }
        })
    }

    fn detach_lun(&self, lun: Lun) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            match self.on_lun(lun, Work::Detach, DETACH).await? {
                Answer::Detached => Ok(()),
                other => Err(wrong(&other)),
            }
        })
    }
}

fn wrong(answer: &Answer) -> HostError {
    HostError::Io {
        doing: "understand",
        path: "the child process".into(),
        source: std::io::Error::other(format!("it gave an answer to something else: {answer:?}")),
    }
}

impl Ask {
    /// Returns the disk.
    pub(super) fn lun(&self) -> &Lun {
        &self.lun
    }
}

/// What the child does.
pub(super) fn answer(ask: Ask) -> Result<Answer, Refusal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Refusal::new(LunCause::Other, format!("cannot begin: {e}")))?;
    let machine = Machine::new(&ask.tools_in, Roots::real());
    runtime.block_on(serve(&machine, ask.lun, ask.work))
}

async fn serve(machine: &Machine, lun: Lun, work: Work) -> Result<Answer, Refusal> {
    match (&lun, work) {
        (Lun::Iscsi(lun), Work::Attach(Passwords(passwords))) => {
            iscsi::attach(machine, lun, &passwords).await.map(Answer::Attached)
        }
        (Lun::Iscsi(lun), Work::Find { rescan }) => {
            iscsi::find(machine, lun, rescan).await.map(Answer::Found)
        }
        (Lun::Iscsi(lun), Work::Detach) => iscsi::detach(machine, lun).await.map(|()| Answer::Detached),
        (Lun::Fc(lun), Work::Attach(_)) => fc::attach(machine, lun).await.map(Answer::Attached),
        (Lun::Fc(lun), Work::Find { rescan }) => fc::find(machine, lun, rescan).await.map(Answer::Found),
        (Lun::Fc(lun), Work::Detach) => fc::detach(machine, lun).await.map(|()| Answer::Detached),
    }
}

/// Returns whether two paths lead to one device.
fn is_same_device(one: &Path, other: &Path) -> bool {
    let number = |path: &Path| rustix::fs::stat(path).map(|stat| stat.st_rdev);
    matches!((number(one), number(other)), (Ok(one), Ok(other)) if one == other)
}
