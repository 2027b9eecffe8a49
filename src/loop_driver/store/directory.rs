//! The directory itself: whose it is, and that nothing else is in it.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::meta::VERSION;
use super::shelf::{META, TEMPORARY, is_replaced, remove, replace, sync};
use super::{CONDEMNED, CONDEMNED_DATA, Entry, FILES, Group, Id, Snapshot, StoreError, Volume};

/// Says whose the directory is.
const MARKER: &str = "volumed-csi-loop.json";

/// The shelves.
const SHELVES: [&str; 3] = [Volume::SHELF, Snapshot::SHELF, Group::SHELF];

#[derive(Debug, Serialize, Deserialize)]
struct Marker {
    version: u32,
    /// The name of the driver.
    driver: String,
}

/// Makes the directory (`Store::make`).
pub(super) fn make(directory: &Path) -> Result<(), StoreError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
    made.map_err(|e| StoreError::io("make", directory, e))
}

/// Refuses another driver's directory (`Store::refuse_another`).
pub(super) fn refuse_another(directory: &Path, driver: &str) -> Result<(), StoreError> {
    let marker = directory.join(MARKER);
    let found = std::fs::read(&marker).ok().and_then(|text| understand::<Marker>(&marker, &text).ok());
    match found.filter(|found| found.driver != driver) {
        Some(found) => Err(StoreError::OfAnother { path: directory.to_owned(), owner: found.driver }),
        None => Ok(()),
    }
}

/// Makes the directory ours (`Store::prepare`).
pub(super) fn prepare(directory: &Path, driver: &str) -> Result<(), StoreError> {
    make(directory)?;
    let marker = directory.join(MARKER);
    match std::fs::read(&marker) {
        Ok(text) => {
            let found: Marker = understand(&marker, &text)?;
            check_version(&marker, found.version)?;
            refuse_another(directory, driver)?;
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // What a crash before the marker's rename leaves is no reason to refuse.
            let ours = |name: &str| name == format!("{MARKER}{TEMPORARY}");
            refuse_others(directory, ours)?;
            let text = serde_json::to_vec_pretty(&Marker { version: VERSION, driver: driver.to_owned() });
            let text = text.map_err(|e| StoreError::io("write", &marker, e.into()))?;
            replace(&marker, &text, true)?;
        }
        Err(e) => return Err(StoreError::io("read", &marker, e)),
    }
    for shelf in SHELVES {
        match std::fs::DirBuilder::new().mode(0o700).create(directory.join(shelf)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(StoreError::io("make", &directory.join(shelf), e));
            }
            _ => {}
        }
    }
    sync(directory)?;
    let known = [MARKER, "lock"];
    refuse_others(directory, |name| {
        known.contains(&name) || SHELVES.contains(&name) || name == format!("{MARKER}{TEMPORARY}")
    })
}

/// Refuses what this driver did not make. A file system's own lost+found may be there.
fn refuse_others(directory: &Path, ours: impl Fn(&str) -> bool) -> Result<(), StoreError> {
    for path in list(directory)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !ours(name) && name != "lost+found" {
            return Err(StoreError::Foreign { path });
        }
    }
    Ok(())
}

/// Reads all entries of a kind. A directory without meta data is what a crash leaves of one that was about to be made, or to
/// go: it holds nothing.
pub(super) fn read_shelf<T: Entry>(directory: &Path) -> Result<BTreeMap<Id, T>, StoreError> {
    let shelf = directory.join(T::SHELF);
    let mut found = BTreeMap::new();
    for path in list(&shelf)? {
        let id = path.file_name().and_then(|name| Id::new(name.to_str()?).ok());
        let is_directory = std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir());
        let Some(id) = id.filter(|_| is_directory) else { return Err(StoreError::Foreign { path }) };
        let mut inside_names = Vec::new();
        for inside in list(&path)? {
            let name = inside.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let aside = name.strip_suffix(TEMPORARY).filter(|name| is_replaced(name));
            if !FILES.contains(&aside.unwrap_or(name)) {
                return Err(StoreError::Foreign { path: inside });
            }
            inside_names.push(name.to_owned());
        }
        let meta = path.join(META);
        match std::fs::read(&meta) {
            Ok(text) => {
                #[derive(Deserialize)]
                struct Version {
                    version: u32,
                }
                check_version(&meta, understand::<Version>(&meta, &text)?.version)?;
                let mut entry: T = understand(&meta, &text)?;
                if *entry.id() != id {
                    return Err(StoreError::Damaged {
                        path: meta,
                        problem: format!("it is that of {}", entry.id()),
                    });
                }
                if inside_names.iter().any(|name| name == CONDEMNED || name == CONDEMNED_DATA) {
                    entry.has_to_go();
                }
                found.insert(id, entry);
            }
            // The meta data comes first: an image without it is none of ours, and makes this fail. Only what is condemned
            // goes after it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                remove(&path, &shelf, &[META, CONDEMNED, CONDEMNED_DATA])?;
            }
            Err(e) => return Err(StoreError::io("read", &meta, e)),
        }
    }
    Ok(found)
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let failed = |e| StoreError::io("list", directory, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        found.push(entry.map_err(failed)?.path());
    }
    found.sort();
    Ok(found)
}

fn understand<'a, T: Deserialize<'a>>(path: &Path, text: &'a [u8]) -> Result<T, StoreError> {
    serde_json::from_slice(text)
        .map_err(|e| StoreError::Damaged { path: path.to_owned(), problem: e.to_string() })
}

fn check_version(path: &Path, version: u32) -> Result<(), StoreError> {
    if version == VERSION {
        return Ok(());
    }
    let problem = format!("it has the format version {version}, and this driver knows {VERSION}");
    Err(StoreError::Damaged { path: path.to_owned(), problem })
}
