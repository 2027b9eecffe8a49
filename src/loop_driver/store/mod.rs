//! The driver's directory: what is in it, and that all of it is ours.
//!
//! What has to go is said in `meta.json` before the first file goes. On a full host, where that cannot be written, the image (or
//! the directory `data`) is renamed to `image.deleting` (`data.deleting`) instead, which condemns its entry as well: it is unlinked last, so that a deletion that was
//! begun is finished by the next start, whatever became of it in between.

mod directory;
mod meta;
mod shelf;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing::warn;

use super::errors::is_no_room;
use crate::error::Chain;

pub(super) use meta::{
    Asked, Content, Group, Id, OTHER_FLAGS, OTHER_GROUP, OTHER_RIGHTS, Snapshot, Source, State, Use, VERSION,
    Volume, VolumeState,
};
pub(super) use shelf::{Entry, Shelf};
use shelf::{META, blocking, forget, replace};

/// The name of an image in the directory of its volume or snapshot.
pub(super) const IMAGE: &str = "image";

/// The name of the file with what a volume is used for.
const USE: &str = "use.json";

/// The name of an image whose volume or snapshot has to go, where that could not be written into the meta data.
const CONDEMNED: &str = "image.deleting";

/// The name of the directory with the content, where that is no image.
const DATA: &str = "data";

/// As `CONDEMNED`, of such a directory.
const CONDEMNED_DATA: &str = "data.deleting";

/// Everything of ours that can be in the directory of an entry, in the order in which it goes. Directories are empty then.
pub(super) const FILES: &[&str] = &[IMAGE, DATA, USE, META, CONDEMNED, CONDEMNED_DATA];

/// The directory, read.
#[derive(Debug)]
pub(super) struct Store {
    directory: PathBuf,
    boot: String,
    /// What `use.json` says, or would say if the host had room for it. A std mutex: held for a look-up only.
    uses: Mutex<BTreeMap<Id, Use>>,
    /// `volumes/`
    pub volumes: Shelf<Volume>,
    /// `snapshots/`
    pub snapshots: Shelf<Snapshot>,
    /// `groups/`
    pub groups: Shelf<Group>,
}

/// The directory cannot be used, or not all of it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The kernel refused.
    #[error("cannot {doing} {}", path.display())]
    Io {
        /// "write", "sync", ...
        doing: &'static str,
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something that this driver did not make is in its directory.
    #[error(
        "{} was not made by this driver, and its directory may be shared with nothing else; move it away, or give another --dir",
        path.display()
    )]
    Foreign {
        /// What.
        path: PathBuf,
    },
    /// Another driver's directory.
    #[error("{} belongs to the driver {owner}; give --name {owner}, or another --dir", path.display())]
    OfAnother {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        owner: String,
    },
    /// A file of ours cannot be understood.
    #[error("{} is damaged: {problem}; restore it, or move the directory that it is in away", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

impl StoreError {
    /// Returns whether the disk is full.
    pub(super) fn is_no_room(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_no_room(source.kind()))
    }

    pub(super) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), source }
    }
}

impl Store {
    /// Makes the directory where it is missing.
    ///
    /// # Errors
    /// `Io`
    pub(super) fn make(directory: &Path) -> Result<(), StoreError> {
        directory::make(directory)
    }

    /// Refuses another driver's directory, and no other: what else is wrong with it `prepare` tells.
    ///
    /// # Errors
    /// `OfAnother`
    pub(super) fn refuse_another(directory: &Path, driver: &str) -> Result<(), StoreError> {
        directory::refuse_another(directory, driver)
    }

    /// Makes the directory where it is missing; anything in it that is not ours is refused. To be called before `lock` is
    /// made in it.
    ///
    /// # Errors
    /// `Foreign`, `OfAnother`, `Io`: nothing of others was touched.
    pub(super) fn prepare(directory: &Path, driver: &str) -> Result<(), StoreError> {
        directory::prepare(directory, driver)
    }

    /// Reads everything. The directory was prepared, and is locked.
    ///
    /// # Errors
    /// `Damaged`, `Foreign`, `Io`: a driver that does not know what it has must not make more of it.
    pub(super) fn load(directory: &Path, boot: String) -> Result<Self, StoreError> {
        Ok(Self {
            volumes: Shelf::new(directory, directory::read_shelf(directory)?),
            snapshots: Shelf::new(directory, directory::read_shelf(directory)?),
            groups: Shelf::new(directory, directory::read_shelf(directory)?),
            directory: directory.to_owned(),
            boot,
            uses: Mutex::default(),
        })
    }

    /// Returns the directory.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns where the image of a volume is.
    pub(super) fn volume_image(&self, id: &Id) -> PathBuf {
        self.volumes.directory(id).join(IMAGE)
    }

    /// Returns where the image of a volume is that has to go, where that could not be written down.
    pub(super) fn condemned_image(&self, id: &Id) -> PathBuf {
        self.volumes.directory(id).join(CONDEMNED)
    }

    /// Returns where the content of a volume is.
    pub(super) fn volume_place(&self, id: &Id, content: Content) -> PathBuf {
        self.volumes.directory(id).join(place_of(content))
    }

    /// Returns where the content of a snapshot is.
    pub(super) fn snapshot_place(&self, id: &Id, content: Content) -> PathBuf {
        self.snapshots.directory(id).join(place_of(content))
    }

    /// Returns where the directory with the content of an entry can be that has to go, by its own directory.
    pub(super) fn data_in(directory: &Path) -> [PathBuf; 2] {
        [DATA, CONDEMNED_DATA].map(|name| directory.join(name))
    }

    /// Returns where the image of a snapshot is.
    pub(super) fn snapshot_image(&self, id: &Id) -> PathBuf {
        self.snapshots.directory(id).join(IMAGE)
    }

    /// Returns what a volume is used for. What was written down in another boot is over; what cannot be read says nothing.
    pub(super) async fn usage(&self, id: &Id) -> Use {
        let known = self.uses().get(id).cloned();
        if let Some(known) = known {
            return known;
        }
        let path = self.volumes.directory(id).join(USE);
        let from = path.clone();
        let read = blocking("read", &path, move || {
            std::fs::read(&from).map_err(|e| StoreError::io("read", &from, e))
        });
        let used: Option<Use> = read.await.ok().and_then(|text| serde_json::from_slice(&text).ok());
        let now = Use { boot: self.boot.clone(), ..Use::default() };
        used.filter(|used| used.boot == self.boot).unwrap_or(now)
    }

    /// Writes down what a volume is used for. On a full host it is only remembered: volumes must still come and go there, and
    /// what a restart forgets is looked up, as far as it can be seen.
    ///
    /// # Errors
    /// What was written down before still holds.
    pub(super) async fn set_usage(&self, id: &Id, usage: &Use) -> Result<(), StoreError> {
        let path = self.volumes.directory(id).join(USE);
        let text = serde_json::to_vec_pretty(usage).map_err(|e| StoreError::io("write", &path, e.into()))?;
        match blocking("write", &path.clone(), move || replace(&path, &text, false)).await {
            Err(full) if full.is_no_room() => {
                // What it says is not so any more: after a restart less is known, but nothing that is wrong.
                let path = self.volumes.directory(id).join(USE);
                blocking("remove", &path.clone(), move || forget(&path)).await?;
                warn!(volume = %id, "its use is not written down, the host is full: {}", Chain(&full));
            }
            written => written?,
        }
        self.uses().insert(id.clone(), usage.clone());
        Ok(())
    }

    /// Removes all of a volume.
    ///
    /// # Errors
    /// Also when there is something in its directory that is not ours, which stays.
    pub(super) async fn remove_volume(&self, id: &Id) -> Result<(), StoreError> {
        self.volumes.remove(id, FILES).await?;
        self.uses().remove(id);
        Ok(())
    }

    /// Returns whether something is written down of a volume's use, if only that there is none.
    pub(super) fn is_noted(&self, id: &Id) -> bool {
        self.volumes.directory(id).join(USE).try_exists().unwrap_or(false)
    }

    fn uses(&self) -> MutexGuard<'_, BTreeMap<Id, Use>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the name of what holds a content.
fn place_of(content: Content) -> &'static str {
    match content {
        Content::FileSystem(_) | Content::Block => IMAGE,
        Content::Directory(_) => DATA,
    }
}

#[cfg(test)]
mod tests;
