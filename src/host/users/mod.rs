//! Who uses what volumed would take away.
//!
//! `place` asks for a directory that is to be deleted (design rule 1), or copied while nobody writes to it (`writers`): whatever
//! cannot be looked at counts as a user.
//! `holders` and `files` ask for a staged volume (design rule 4): only who is seen counts; `copies` judges mounts, `shared`
//! lets many askers have one look. `processes` and `mounts` read `/proc`.

mod copies;
mod files;
mod holders;
mod mounts;
mod place;
mod processes;
mod shared;
mod writers;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use self::holders::Question;
use self::shared::{Next, Shared};
use super::pool::Pool;
use super::{Holder, HostError};

pub(super) use place::{InUse, Place};
pub(super) use processes::{holder_of_mount, text};

const DOING: &str = "look for the holders of";

/// How long one look may take, its turn included. It is some 25 ms of work on an ordinary host.
const LIMIT: Duration = Duration::from_secs(30);

type Answer = Result<Vec<Holder>, HostError>;

/// Looks for holders of staged volumes: one at a time, shared by all who asked before it began.
#[derive(Debug)]
pub(super) struct Looks {
    shared: Shared<Question, Answer>,
    /// Of their own: a look that hangs after all takes no place of other calls, and a few of them no place of the next.
    pool: Pool,
    root: Arc<PathBuf>,
    /// Who had what is staged at a path when that was asked last. A std mutex: held for a map look-up only.
    held: Mutex<BTreeMap<PathBuf, BTreeSet<u32>>>,
}

impl Looks {
    /// `root` is volumed's root directory.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { shared: Shared::new(), pool: Pool::new(), root: Arc::new(root), held: Mutex::default() }
    }

    /// Finds who has the volume that is staged at a path (`Host::holders`).
    ///
    /// # Errors
    /// `Io` where nothing can be looked at, `Deadline` where a look hangs; the next caller has a look of its own.
    pub(super) async fn holders(&self, path: PathBuf, driver: Option<u32>) -> Answer {
        let shown = path.clone();
        let held = || self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let before = held().get(&path).cloned().unwrap_or_default();
        let run = async |next: Next<Question, Answer>| {
            let root = Arc::clone(&self.root);
            let work = move || {
                let begun = next.begin();
                let answers = holders::look(&root, begun.questions());
                begun.answer(answers);
                Ok(())
            };
            self.pool.run(DOING, &shown, LIMIT, work).await
        };
        let asked =
            tokio::time::timeout(LIMIT, self.shared.ask(Question { path, driver, before }, run)).await;
        let answer = match asked {
            Ok(answer) => answer?.unwrap_or_else(|| {
                let source = io::Error::other("the look ended without an answer");
                Err(HostError::Io { doing: DOING, path: shown.clone(), source })
            }),
            Err(_elapsed) => {
                Err(HostError::Deadline { doing: DOING, path: shown.clone(), seconds: LIMIT.as_secs() })
            }
        };
        match &answer {
            Ok(holders) if holders.is_empty() => drop(held().remove(&shown)),
            Ok(holders) => drop(held().insert(shown, holders.iter().map(|holder| holder.pid).collect())),
            Err(_) => {}
        }
        answer
    }
}
