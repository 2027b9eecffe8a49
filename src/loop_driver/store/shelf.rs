//! One kind of thing on disk: a directory for each, with `meta.json` in it. Memory never says more than the disk.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{CONDEMNED, CONDEMNED_DATA, DATA, IMAGE, Id, StoreError, USE};

/// The file with what is known of an entry.
pub(super) const META: &str = "meta.json";

/// What a file that is being written ends in.
pub(super) const TEMPORARY: &str = ".tmp";

/// Something that has a directory of its own.
pub(crate) trait Entry: Serialize + DeserializeOwned + Clone + Send + Sync + 'static {
    /// The directory of all of them.
    const SHELF: &'static str;

    /// The name of its own directory.
    fn id(&self) -> &Id;

    /// Says of it that it has to go.
    fn has_to_go(&mut self);
}

/// All entries of a kind.
#[derive(Debug)]
pub(crate) struct Shelf<T> {
    directory: PathBuf,
    /// A std mutex: held for a look-up only.
    entries: Mutex<BTreeMap<Id, T>>,
}

impl<T: Entry> Shelf<T> {
    /// Takes what was read from the disk.
    pub(super) fn new(store: &Path, entries: BTreeMap<Id, T>) -> Self {
        Self { directory: store.join(T::SHELF), entries: Mutex::new(entries) }
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<Id, T>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns an entry.
    pub(crate) fn get(&self, id: &Id) -> Option<T> {
        self.entries().get(id).cloned()
    }

    /// Returns all of them, ordered by id.
    pub(crate) fn all(&self) -> Vec<T> {
        self.entries().values().cloned().collect()
    }

    /// Returns the directory of an entry, which need not be there.
    pub(crate) fn directory(&self, id: &Id) -> PathBuf {
        self.directory.join(id.as_str())
    }

    /// Writes an entry down, its directory included, and syncs all of it.
    ///
    /// # Errors
    /// What was written down before still holds, on disk and in memory.
    pub(crate) async fn put(&self, entry: T) -> Result<(), StoreError> {
        let (directory, shelf) = (self.directory(entry.id()), self.directory.clone());
        let text = serde_json::to_vec_pretty(&entry)
            .map_err(|e| StoreError::io("write", &directory.join(META), e.into()))?;
        // What could not be synced when it was made is not known.
        let known = self.entries().contains_key(entry.id());
        blocking("write", &directory.clone(), move || {
            match std::fs::DirBuilder::new().mode(0o700).create(&directory) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::io("make", &directory, e));
                }
                _ => {}
            }
            replace(&directory.join(META), &text, true)?;
            // Last: a journal that has the file by then has the directory's name too, and there is nothing left to be written.
            if known { Ok(()) } else { sync(&shelf) }
        })
        .await?;
        self.entries().insert(entry.id().clone(), entry);
        Ok(())
    }

    /// Writes down that an entry has to go. On a full disk, where nothing can be written, its image, or the
    /// directory in its place, is renamed for that: it is what takes the room.
    ///
    /// # Errors
    /// What was written down before still holds.
    pub(crate) async fn condemn(&self, mut entry: T) -> Result<(), StoreError> {
        entry.has_to_go();
        let full = match self.put(entry.clone()).await {
            Err(full) if full.is_no_room() => full,
            done => return done,
        };
        let directory = self.directory(entry.id());
        let path = directory.clone();
        let renamed = blocking("rename", &path, move || {
            let rename = |from, to| std::fs::rename(directory.join(from), directory.join(to));
            let renamed = rename(IMAGE, CONDEMNED).or_else(|_no_image| rename(DATA, CONDEMNED_DATA));
            renamed.map_err(|e| StoreError::io("rename what is in", &directory, e))?;
            sync(&directory)
        });
        // Where there is no image to make room with, the disk stays full.
        renamed.await.map_err(|_no_image| full)?;
        self.entries().insert(entry.id().clone(), entry);
        Ok(())
    }

    /// Removes an entry's directory with these files of ours in it; what is gone already is fine.
    ///
    /// # Errors
    /// Also when there is something else in it, which stays.
    pub(crate) async fn remove(&self, id: &Id, files: &'static [&'static str]) -> Result<(), StoreError> {
        let (directory, shelf) = (self.directory(id), self.directory.clone());
        blocking("remove", &directory.clone(), move || remove(&directory, &shelf, files)).await?;
        self.entries().remove(id);
        Ok(())
    }
}

/// Returns whether a file is written aside first.
pub(super) fn is_replaced(name: &str) -> bool {
    name == META || name == USE
}

/// Unlinks the files in this order, and directories that are empty, then the directory itself. `meta.json` is to come after all that it alone says something of, and
/// what condemns an entry after `meta.json`.
pub(super) fn remove(directory: &Path, shelf: &Path, files: &[&str]) -> Result<(), StoreError> {
    let gone = |path: &Path, done: io::Result<()>| match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|e| StoreError::io("remove", path, e)),
    };
    for name in files {
        let path = directory.join(name);
        let removed = match std::fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::IsADirectory => std::fs::remove_dir(&path),
            done => done,
        };
        gone(&path, removed)?;
        if is_replaced(name) {
            let path = directory.join(format!("{name}{TEMPORARY}"));
            gone(&path, std::fs::remove_file(&path))?;
        }
    }
    gone(directory, std::fs::remove_dir(directory))?;
    sync(shelf)
}

/// Puts a file in the place of another: whole, or not at all.
pub(super) fn replace(path: &Path, text: &[u8], durable: bool) -> Result<(), StoreError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary).map_err(|e| StoreError::io("make", path, e))?;
    let written = file.write_all(text).and_then(|()| file.write_all(b"\n"));
    written.map_err(|e| StoreError::io("write", path, e))?;
    if durable {
        file.sync_all().map_err(|e| StoreError::io("sync", path, e))?;
    }
    std::fs::rename(&temporary, path).map_err(|e| StoreError::io("replace", path, e))?;
    match path.parent() {
        Some(parent) if durable => sync(parent),
        Some(_) | None => Ok(()),
    }
}

/// Removes a file that is replaced, and what was to replace it.
pub(super) fn forget(path: &Path) -> Result<(), StoreError> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    for path in [path, Path::new(&temporary)] {
        match std::fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::io("remove", path, e)),
            _ => {}
        }
    }
    Ok(())
}

/// Syncs a directory: the names in it.
pub(super) fn sync(directory: &Path) -> Result<(), StoreError> {
    let synced = std::fs::File::open(directory).and_then(|directory| directory.sync_all());
    synced.map_err(|e| StoreError::io("sync", directory, e))
}

/// Runs work on the disk in the blocking pool.
pub(super) async fn blocking<T: Send + 'static>(
    doing: &'static str,
    path: &Path,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(join) => match join.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(stopped) => Err(StoreError::io(doing, path, io::Error::other(stopped))),
        },
    }
}
