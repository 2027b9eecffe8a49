//! What lies below the root: volume directories of ours and of others, found without touching what is mounted.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::path::{DIRECTORY, Root, names, open_within, read_small};
use super::{FoundVolume, HostError};
use crate::model::{PodUid, RootPath, SpecName, VOL_DATA, VolData};

/// A `vol_data.json` has a few hundred bytes; anything longer than this is not one.
const VOL_DATA_MAX: u64 = 64 * 1024;

/// How deep a volume directory is looked into to call it empty: itself, `mount` or `globalmount`, and one below.
const EMPTY_DEPTH: usize = 2;

/// Lists the volumes on disk (`Host::volumes_on_disk`), ordered by path.
///
/// # Errors
/// When a directory cannot be read: an incomplete list must not look like a whole one.
pub(super) fn volumes(root: &Root) -> Result<Vec<FoundVolume>, HostError> {
    let mut found = Vec::new();
    let list = Listing { root };
    for pod in list.directory(Path::new("pods"))? {
        let pod_path = Path::new("pods").join(&pod);
        for kind in ["volumes", "volumeDevices"] {
            let kind_path = pod_path.join(kind);
            for plugin in list.directory(&kind_path)? {
                let plugin_path = kind_path.join(&plugin);
                for spec in list.entries(&plugin_path)? {
                    let publication = publication(&pod, &plugin, &spec);
                    let path = plugin_path.join(&spec);
                    if kind == "volumes" {
                        found.extend(list.volume(&path, publication)?);
                    } else if let Some(path) = RootPath::new(path) {
                        found.push(FoundVolume { path, publication, vol_data: None, empty: false });
                    }
                }
            }
        }
    }
    let drivers = Path::new("plugins/kubernetes.io/csi");
    for driver in list.directory(drivers)? {
        let driver_path = drivers.join(&driver);
        for hash in list.entries(&driver_path)? {
            // `pv/<name>` (kubelets before 1.24) and `volumeDevices/...` lie beside the drivers (kubelet.md 3).
            if is_sha256(&hash) {
                found.extend(list.volume(&driver_path.join(&hash), None)?);
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

fn publication(pod: &OsString, plugin: &OsString, spec: &OsString) -> Option<(PodUid, String, SpecName)> {
    let pod = PodUid::new(pod.to_str()?).ok()?;
    let spec = SpecName::new(spec.to_str()?).ok()?;
    Some((pod, plugin.to_str()?.to_owned(), spec))
}

fn is_sha256(name: &OsString) -> bool {
    let bytes = name.as_encoded_bytes();
    bytes.len() == 64 && bytes.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

struct Listing<'a> {
    root: &'a Root,
}

impl Listing<'_> {
    fn failed(&self, path: &Path, errno: Errno) -> HostError {
        HostError::Io { doing: "list", path: self.root.path().join(path), source: errno.into() }
    }

    /// Opens a directory; `None` when it is gone or something else than a plain directory of the root's own mount.
    fn open(&self, path: &Path) -> Result<Option<OwnedFd>, HostError> {
        let Some(relative) = RootPath::new(path) else { return Ok(None) };
        match self.root.open_at(&relative, DIRECTORY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => Ok(None),
            Err(e) => Err(self.failed(path, e)),
        }
    }

    /// Returns the names of what may be directories in a directory.
    fn directory(&self, path: &Path) -> Result<Vec<OsString>, HostError> {
        self.read(path, |kind| matches!(kind, FileType::Directory | FileType::Unknown))
    }

    /// Returns all names in a directory: a link or a file where a volume should be is somebody's too.
    fn entries(&self, path: &Path) -> Result<Vec<OsString>, HostError> {
        self.read(path, |_kind| true)
    }

    fn read(&self, path: &Path, wanted: impl Fn(FileType) -> bool) -> Result<Vec<OsString>, HostError> {
        let Some(directory) = self.open(path)? else { return Ok(Vec::new()) };
        let all = names(directory).map_err(|e| self.failed(path, e))?;
        Ok(all.into_iter().filter(|(_, kind)| wanted(*kind)).map(|(name, _)| name).collect())
    }

    fn volume(
        &self,
        path: &Path,
        publication: Option<(PodUid, String, SpecName)>,
    ) -> Result<Option<FoundVolume>, HostError> {
        let Some(relative) = RootPath::new(path) else { return Ok(None) };
        let (vol_data, empty) = match self.root.open_at(&relative, DIRECTORY) {
            Ok(directory) => {
                let content = read_small(&directory, VOL_DATA, VOL_DATA_MAX).map_err(|source| {
                    HostError::Io { doing: "read", path: self.root.path().join(path).join(VOL_DATA), source }
                })?;
                let vol_data = content.and_then(|bytes| VolData::parse(&bytes));
                (vol_data, is_empty(&directory, EMPTY_DEPTH).map_err(|e| self.failed(path, e))?)
            }
            Err(Errno::NOENT) => return Ok(None),
            // Mounted itself, a link or a file: not looked into.
            Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => (None, false),
            Err(e) => return Err(self.failed(path, e)),
        };
        Ok(Some(FoundVolume { path: relative, publication, vol_data, empty }))
    }
}

/// Returns whether a directory holds nothing but empty directories. What is mounted is not looked into, and not empty.
fn is_empty(directory: &OwnedFd, depth: usize) -> Result<bool, Errno> {
    let again = rustix::fs::openat(directory, ".", DIRECTORY, rustix::fs::Mode::empty())?;
    for (name, _kind) in names(again)? {
        if depth == 0 {
            return Ok(false);
        }
        match open_within(directory, &name, DIRECTORY) {
            Ok(below) => {
                if !is_empty(&below, depth - 1)? {
                    return Ok(false);
                }
            }
            Err(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => return Ok(false),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(true)
}
