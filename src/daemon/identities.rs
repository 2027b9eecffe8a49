//! Remembers which directories the manifest directories are, so that a replaced or unmounted one is known after a restart too.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::error;

use crate::error::Chain;
use crate::manifest::Manifests;
use crate::model::{DirectoryIdentity, ReadingState};
use crate::record::{Store, StoreError};

const NOTE: &str = "manifest-directories";

/// The directories as they were at the last complete reading.
pub(super) type Identities = BTreeMap<PathBuf, DirectoryIdentity>;

/// The note of an earlier run cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentitiesError {
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is damaged.
    #[error(
        "the note {NOTE} in the state directory is damaged; look whether all manifests are in their directories, then remove it"
    )]
    Damaged {
        /// What is wrong with it.
        source: serde_json::Error,
    },
}

/// Reads what an earlier run remembered.
///
/// # Errors
/// When there is something that cannot be used: to go on without would take a replaced directory for the real one.
pub(super) async fn load(store: &dyn Store) -> Result<Identities, IdentitiesError> {
    match store.note(NOTE).await? {
        None => Ok(Identities::new()),
        Some(note) => serde_json::from_value(note).map_err(|source| IdentitiesError::Damaged { source }),
    }
}

/// Writes the identities down whenever a complete reading has others than the last.
pub(super) async fn keep(
    store: Arc<dyn Store>,
    mut manifests: watch::Receiver<Arc<Manifests>>,
    mut known: Identities,
    stop: CancellationToken,
) {
    loop {
        let found = of(&manifests.borrow_and_update().reading);
        if let Some(found) = found.filter(|found| *found != known) {
            let written = match serde_json::to_value(&found) {
                Ok(note) => store.set_note(NOTE, note).await.map_err(|error| Chain(&error).to_string()),
                Err(error) => Err(error.to_string()),
            };
            match written {
                Ok(()) => known = found,
                // The old note stays: after a restart these directories count as replaced until they are approved.
                Err(why) => error!("cannot remember the manifest directories: {why}"),
            }
        }
        // Both arms may be dropped: a change not seen here is seen by the next borrow.
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = manifests.changed() => if changed.is_err() { return },
        }
    }
}

/// Returns the directories of a complete reading.
fn of(reading: &ReadingState) -> Option<Identities> {
    let all = reading.directories.iter();
    let all: Option<Identities> =
        all.map(|(path, state)| Some((path.clone(), state.identity.clone()?))).collect();
    all.filter(|_| reading.is_complete())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Birth, DirectoryState};

    fn reading(inode: u64) -> ReadingState {
        let birth = Birth::Time(1_760_000_000_123_456_789);
        let identity = Some(DirectoryIdentity { inode, birth });
        let state = DirectoryState { identity, files: 1 };
        ReadingState { generation: 1, directories: [("/m".into(), state)].into(), ..ReadingState::default() }
    }

    #[tokio::test]
    async fn what_a_complete_reading_found_is_known_to_the_next_run() {
        let directory = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            Arc::new(crate::record::Directory::open(&directory.path().join("state")).unwrap());
        assert_eq!(load(&*store).await.unwrap(), Identities::new());
        let manifests = Arc::new(Manifests { reading: reading(7), ..Manifests::default() });
        let (sender, receiver) = watch::channel(manifests);
        drop(sender);
        keep(Arc::clone(&store), receiver, Identities::new(), CancellationToken::new()).await;
        assert_eq!(Some(load(&*store).await.unwrap()), of(&reading(7)));
    }

    #[test]
    fn an_incomplete_reading_changes_nothing() {
        let mut incomplete = reading(7);
        incomplete.generation = 0;
        assert_eq!(of(&incomplete), None);
    }
}
