//! The records as files: `<state>/volumes/<sha256 of the key>.json`, one per volume, the sizes as `<state>/sizes/<the same>`,
//! what is known of disks as `<state>/disks/<the same>`, and the notes as `<state>/<name>.json`.
//!
//! A synced file is written under a temporary name, synced and renamed: it is whole or it is the old one. An outcome, which is not
//! synced, is added to the file as one more document: the last whole one counts. So a power cut costs at most what was added, on
//! every file system (renaming an unsynced file over a synced one may leave an empty one), and no outcome costs an inode.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::{Durability, Loaded, Store, StoreError};
use crate::BoxFuture;
use crate::model::{KnownDisk, Problem, VolumeKey, VolumeRecord};

/// How many files are written at a time (design 5; dependencies.md 8: 1,000 synced records in a fifth of the time).
const AT_A_TIME: usize = 16;

/// How long one file may take: a disk that writes back a lot can need seconds for an fsync.
const LIMIT: Duration = Duration::from_secs(60);

/// A record that has grown to this many bytes is replaced.
const LONGEST: u64 = 64 << 10;

/// What files in the making end in; a crash leaves them behind.
const TEMPORARY: &str = ".tmp";

/// The state directory.
#[derive(Debug)]
pub struct Directory {
    state: PathBuf,
    volumes: PathBuf,
    sizes: PathBuf,
    disks: PathBuf,
    slots: Arc<Semaphore>,
    /// The records that this process wrote whole, and their length in bytes: only to these may be added. A std mutex: held for
    /// a map look-up only.
    whole: Arc<Mutex<BTreeMap<PathBuf, u64>>>,
}

/// The size that a volume was last known to have.
#[derive(Debug, Serialize, Deserialize)]
struct Size {
    key: VolumeKey,
    bytes: u64,
}

/// What is known of a volume's disk.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Disk {
    key: VolumeKey,
    disk: KnownDisk,
}

impl Directory {
    /// Makes the state directory (0700), `volumes/`, `sizes/` and `disks/` where they are missing.
    ///
    /// # Errors
    /// Names the directory. One that is already there with another mode is set to 0700: records hold contexts of volumes.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let volumes = state_dir.join("volumes");
        let sizes = state_dir.join("sizes");
        let disks = state_dir.join("disks");
        if let Some(parent) = state_dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent);
            made.map_err(failed("make", parent))?;
        }
        for path in [state_dir, &volumes, &sizes, &disks] {
            match std::fs::DirBuilder::new().mode(0o700).create(path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(failed("make", path))?,
            }
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(path, mode).map_err(failed("set the mode of", path))?;
            // A synced record in a directory that a power cut takes back would be none.
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                sync(parent)?;
            }
        }
        Ok(Self {
            state: state_dir.to_owned(),
            volumes,
            sizes,
            disks,
            slots: Arc::new(Semaphore::new(AT_A_TIME)),
            whole: Arc::default(),
        })
    }

    /// Runs blocking work, a bounded number at a time, with a deadline.
    async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: PathBuf,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let slots = Arc::clone(&self.slots);
        let whole = async move {
            // The semaphore is never closed; if it were, the work would only lose its bound.
            let slot = slots.acquire_owned().await.ok();
            tokio::task::spawn_blocking(move || {
                let done = work();
                drop(slot);
                done
            })
            .await
        };
        match tokio::time::timeout(LIMIT, whole).await {
            Ok(Ok(done)) => done,
            Ok(Err(join)) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(stopped) => Err(failed(doing, &path)(io::Error::other(stopped))),
            },
            Err(_elapsed) => {
                let text = format!("no answer within {} s", LIMIT.as_secs());
                Err(failed(doing, &path)(io::Error::new(io::ErrorKind::TimedOut, text)))
            }
        }
    }

    fn note_path(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.json"))
    }
}

impl Store for Directory {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        let volumes = self.volumes.clone();
        Box::pin(self.run("read", self.volumes.clone(), move || load(&volumes)))
    }

    fn write(&self, record: VolumeRecord, durability: Durability) -> BoxFuture<'_, Result<(), StoreError>> {
        let path = self.volumes.join(file_name(&record.key));
        let whole = Arc::clone(&self.whole);
        Box::pin(self.run("write", path.clone(), move || put(&whole, &path, &record, durability)))
    }

    fn remove(&self, key: VolumeKey) -> BoxFuture<'_, Result<(), StoreError>> {
        let path = self.volumes.join(file_name(&key));
        let whole = Arc::clone(&self.whole);
        Box::pin(self.run("remove", path.clone(), move || {
            whole.lock().unwrap_or_else(PoisonError::into_inner).remove(&path);
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.map_err(failed("remove", &path)),
            }
        }))
    }

    fn size(&self, key: VolumeKey) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        let path = self.sizes.join(file_name(&key));
        Box::pin(self.run("read", path.clone(), move || match std::fs::read(&path) {
            // A damaged one is as good as none: the size is found out again.
            Ok(text) => {
                Ok(serde_json::from_slice::<Size>(&text).ok().filter(|s| s.key == key).map(|s| s.bytes))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path)(e)),
        }))
    }

    fn set_size(&self, key: VolumeKey, bytes: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        let path = self.sizes.join(file_name(&key));
        let size = Size { key, bytes };
        Box::pin(self.run("write", path.clone(), move || write(&path, &size, Durability::Written).map(drop)))
    }

    fn disk(&self, key: VolumeKey) -> BoxFuture<'_, Result<Option<KnownDisk>, StoreError>> {
        let path = self.disks.join(file_name(&key));
        Box::pin(self.run("read", path.clone(), move || match std::fs::read(&path) {
            Ok(text) => match serde_json::from_slice::<Disk>(&text) {
                Ok(disk) if disk.key == key => Ok(Some(disk.disk)),
                Ok(disk) => Err(failed("use", &path)(io::Error::other(format!("it is of {}", disk.key)))),
                Err(e) => Err(failed("read", &path)(e.into())),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path)(e)),
        }))
    }

    fn set_disk(&self, key: VolumeKey, disk: Option<KnownDisk>) -> BoxFuture<'_, Result<(), StoreError>> {
        let (path, disks) = (self.disks.join(file_name(&key)), self.disks.clone());
        Box::pin(self.run("write", path.clone(), move || match disk {
            Some(disk) => write(&path, &Disk { key, disk }, Durability::Synced).map(drop),
            None => match std::fs::remove_file(&path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed.map_err(failed("remove", &path)).and_then(|()| sync(&disks)),
            },
        }))
    }

    fn note(&self, name: &'static str) -> BoxFuture<'_, Result<Option<serde_json::Value>, StoreError>> {
        let path = self.note_path(name);
        Box::pin(self.run("read", path.clone(), move || match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| failed("read", &path)(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path)(e)),
        }))
    }

    fn set_note(
        &self,
        name: &'static str,
        value: serde_json::Value,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let path = self.note_path(name);
        Box::pin(self.run("write", path.clone(), move || write(&path, &value, Durability::Synced).map(drop)))
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { doing, path, source }
}

/// Returns a record's file name. A key can be longer than a file name and has slashes.
fn file_name(key: &VolumeKey) -> String {
    let mut name = String::with_capacity(64 + ".json".len());
    for byte in Sha256::digest(key.as_str().as_bytes()) {
        // Writing to a String cannot fail.
        let _written = write!(name, "{byte:02x}");
    }
    name.push_str(".json");
    name
}

/// Writes a record: adds an outcome to a file that this process wrote whole, else replaces the file.
fn put(
    whole: &Mutex<BTreeMap<PathBuf, u64>>,
    path: &Path,
    record: &VolumeRecord,
    durability: Durability,
) -> Result<(), StoreError> {
    let lock = || whole.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken out while it is worked on: whatever goes wrong, the next write replaces the file.
    let length = lock().remove(path);
    let length = match (durability, length) {
        (Durability::Written, Some(length)) if length < LONGEST => add(path, record, length)?,
        (Durability::Written | Durability::Synced, _) => write(path, record, durability)?,
    };
    lock().insert(path.to_owned(), length);
    Ok(())
}

/// Adds a document to a file of a known length, and returns the new one.
fn add(path: &Path, content: &impl Serialize, length: u64) -> Result<u64, StoreError> {
    let text = text(path, content)?;
    let mut file = std::fs::OpenOptions::new().append(true).open(path).map_err(failed("open", path))?;
    file.write_all(&text).map_err(failed("add to", path))?;
    Ok(length + text.len() as u64)
}

fn text(path: &Path, content: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let mut text = serde_json::to_vec_pretty(content).map_err(|e| failed("write", path)(e.into()))?;
    text.push(b'\n');
    Ok(text)
}

/// Replaces a file and returns its length. Each of the steps can be repeated; a failure leaves the old file, and at most a temporary one.
fn write(path: &Path, content: &impl Serialize, durability: Durability) -> Result<u64, StoreError> {
    let text = text(path, content)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary).map_err(failed("make", &temporary))?;
    file.write_all(&text).map_err(failed("write", &temporary))?;
    match durability {
        Durability::Synced => file.sync_all().map_err(failed("sync", &temporary))?,
        Durability::Written => {}
    }
    std::fs::rename(&temporary, path).map_err(failed("rename a new file to", path))?;
    if let (Durability::Synced, Some(parent)) = (durability, path.parent()) {
        sync(parent)?;
    }
    Ok(text.len() as u64)
}

/// Syncs a directory: the names in it.
fn sync(directory: &Path) -> Result<(), StoreError> {
    std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(failed("sync", directory))
}

/// Reads all records. Only the directory itself can make it fail.
fn load(volumes: &Path) -> Result<Loaded, StoreError> {
    // Killed between a synced record's rename and the sync of its name, an earlier run left an intent that this one relies on
    // without writing it again: it must outlive a power cut from here on.
    sync(volumes)?;
    let mut loaded = Loaded::default();
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(volumes).map_err(failed("list", volumes))? {
        paths.push(entry.map_err(failed("list", volumes))?.path());
    }
    paths.sort();
    for path in paths {
        if path.as_os_str().as_encoded_bytes().ends_with(TEMPORARY.as_bytes()) {
            // Never renamed, so never in force.
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) => {
                    loaded.damaged.push(damaged(&path, format!("a leftover that cannot be removed: {e}")));
                }
            }
            continue;
        }
        match read(&path) {
            Ok(record) => loaded.records.push(record),
            Err(detail) => loaded.damaged.push(damaged(&path, detail)),
        }
    }
    Ok(loaded)
}

/// Reads one record, or says what is wrong with its file.
fn read(path: &Path) -> Result<VolumeRecord, String> {
    /// The version alone, so that a newer file is called newer and not damaged.
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let kind = std::fs::symlink_metadata(path).map_err(|e| format!("cannot be read: {e}"))?.file_type();
    if !kind.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let text = std::fs::read(path).map_err(|e| format!("cannot be read: {e}"))?;
    let text = last(&text)?;
    let Version { version } = serde_json::from_slice(text).map_err(|e| format!("is not a record: {e}"))?;
    if version != VolumeRecord::VERSION {
        return Err(format!(
            "has the format version {version}; this volumed knows {}",
            VolumeRecord::VERSION
        ));
    }
    let record: VolumeRecord = serde_json::from_slice(text).map_err(|e| format!("is not a record: {e}"))?;
    let expected = file_name(&record.key);
    if path.file_name() != Some(std::ffi::OsStr::new(&expected)) {
        return Err(format!("is the record of {}, which belongs in {expected}", record.key));
    }
    Ok(record)
}

/// Returns the last whole document of a file: what follows it was cut off by a power cut.
fn last(text: &[u8]) -> Result<&[u8], String> {
    let mut documents = serde_json::Deserializer::from_slice(text).into_iter::<serde::de::IgnoredAny>();
    let mut found = None;
    loop {
        let from = documents.byte_offset();
        match (documents.next(), found) {
            (Some(Ok(_)), _) => found = text.get(from..documents.byte_offset()),
            (None | Some(Err(_)), Some(found)) => return Ok(found),
            (None, None) => return Err("is empty".to_owned()),
            (Some(Err(e)), None) => return Err(format!("is not a record: {e}")),
        }
    }
}

fn damaged(path: &Path, detail: String) -> Problem {
    Problem {
        path: path.to_owned(),
        position: None,
        object: None,
        field: None,
        detail,
        remedy:
            "volumed leaves this file and its volume alone; restore the file, or unmount the volume by hand, \
                 remove the file and restart volumed"
                .to_owned(),
        warning: false,
    }
}

#[cfg(test)]
#[path = "directory_tests.rs"]
mod tests;
