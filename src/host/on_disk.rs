//! What lies below the root: volume directories of ours and of others, found without touching what is mounted.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::files::{is_temporary, read_small};
use super::path::{DIRECTORY, Root, names, open_within};
use super::{HostError, Seen};
use crate::model::{Plugin, PodUid, RootPath, SpecName, VOL_DATA, VolData};

/// A `vol_data.json` has a few hundred bytes; anything longer than this is not one.
const VOL_DATA_MAX: u64 = 64 * 1024;

/// How deep a volume directory is looked into to call it empty: itself, `mount` or `globalmount`, and one below.
const EMPTY_DEPTH: usize = 2;

/// A part of a volume found below the root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundVolume {
    /// Which part: says what the path's form is.
    pub part: Part,
    /// Where it lies.
    pub path: RootPath,
    /// For what is one pod's: pod, plugin directory name, spec name. `None` too where these are no valid names.
    pub publication: Option<(PodUid, String, SpecName)>,
    /// Its `vol_data.json`, if there is a readable one; for each part of a CSI block volume the one in its `data`.
    pub vol_data: Option<VolData>,
    /// It is an empty file, or its directories are all empty (an orphan of no interest).
    pub empty: bool,
}

impl FoundVolume {
    /// Returns the volume's name in its pod, which for a block volume is also that of its staging path.
    pub fn spec(&self) -> Option<SpecName> {
        if let Some((_, _, spec)) = &self.publication {
            return Some(spec.clone());
        }
        match self.part {
            Part::BlockStaging | Part::BlockVolume => {
                SpecName::new(self.path.as_path().file_name()?.to_str()?).ok()
            }
            Part::Volume
            | Part::Staging
            | Part::OldStaging
            | Part::BlockLink
            | Part::BlockPublished
            | Part::BlockMap => None,
        }
    }
}

/// The parts of volumes that lie on disk (kubelet.md 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A file-system volume of a pod: `pods/<uid>/volumes/<plugin>/<spec>`.
    Volume,
    /// A staged CSI file-system volume: `plugins/kubernetes.io/csi/<driver>/<hash>`.
    Staging,
    /// One staged by a kubelet before 1.24: `plugins/kubernetes.io/csi/pv/<pv>`.
    OldStaging,
    /// A pod's link to a block device: `pods/<uid>/volumeDevices/<plugin>/<spec>`.
    BlockLink,
    /// Where a block volume was staged: `plugins/kubernetes.io/csi/volumeDevices/staging/<spec>`.
    BlockStaging,
    /// Where a driver published one for a pod: `plugins/kubernetes.io/csi/volumeDevices/publish/<spec>/<uid>`.
    BlockPublished,
    /// A block volume's own directory, with `data` and `dev` in it: `plugins/kubernetes.io/csi/volumeDevices/<spec>`.
    BlockVolume,
    /// The file on which its device is bound for a pod: `plugins/kubernetes.io/csi/volumeDevices/<spec>/dev/<uid>`.
    BlockMap,
}

impl Part {
    /// Returns whether it is a part of a block volume.
    pub fn is_block(self) -> bool {
        match self {
            Self::Volume | Self::Staging | Self::OldStaging => false,
            Self::BlockLink
            | Self::BlockStaging
            | Self::BlockPublished
            | Self::BlockVolume
            | Self::BlockMap => true,
        }
    }
}

/// Lists the volumes on disk (`Host::volumes_on_disk`), ordered by path.
///
/// # Errors
/// When a directory cannot be read: an incomplete list must not look like a whole one.
pub(super) fn volumes(root: &Root) -> Result<Vec<FoundVolume>, HostError> {
    let list = Listing { root };
    let mut found = list.pods()?;
    let drivers = Path::new("plugins/kubernetes.io/csi");
    for driver in list.directory(drivers)? {
        let path = drivers.join(&driver);
        // `pv/<name>` and `volumeDevices/...` lie beside the drivers (kubelet.md 3).
        if driver == "volumeDevices" {
            found.extend(list.block_volumes(&path)?);
            continue;
        }
        let old = driver == "pv";
        for name in list.entries(&path)? {
            if is_sha256(&name) {
                found.extend(list.volume(&path.join(&name), Part::Staging, None)?);
            } else if old {
                found.extend(list.volume(&path.join(&name), Part::OldStaging, None)?);
            }
        }
    }
    list.share_vol_data(&drivers.join("volumeDevices"), &mut found)?;
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
    /// Lists what lies below `pods/`.
    fn pods(&self) -> Result<Vec<FoundVolume>, HostError> {
        let mut found = Vec::new();
        for pod in self.directory(Path::new("pods"))? {
            for (kind, part) in [("volumes", Part::Volume), ("volumeDevices", Part::BlockLink)] {
                let kind = Path::new("pods").join(&pod).join(kind);
                for plugin in self.directory(&kind)? {
                    for spec in self.entries(&kind.join(&plugin))? {
                        let publication = publication(&pod, &plugin, &spec);
                        let path = kind.join(&plugin).join(&spec);
                        found.extend(self.volume(&path, part, publication)?);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Lists the CSI block volumes: a kubelet that died leaves any part of one without the others (kubelet.md 3).
    fn block_volumes(&self, top: &Path) -> Result<Vec<FoundVolume>, HostError> {
        let mut found = Vec::new();
        for spec in self.entries(&top.join("staging"))? {
            found.extend(self.volume(&top.join("staging").join(&spec), Part::BlockStaging, None)?);
        }
        for spec in self.directory(&top.join("publish"))? {
            let publish = top.join("publish").join(&spec);
            found.extend(self.block_pods(&publish, &spec, Part::BlockPublished)?);
        }
        for spec in self.entries(top)? {
            // A PV of such a name has its own directory in the same place; it cannot be told apart.
            if spec != "staging" && spec != "publish" {
                let volume = top.join(&spec);
                found.extend(self.volume(&volume, Part::BlockVolume, None)?);
                found.extend(self.block_pods(&volume.join("dev"), &spec, Part::BlockMap)?);
            }
        }
        Ok(found)
    }

    /// Gives the parts of each CSI block volume the one `vol_data.json` there is of it.
    fn share_vol_data(&self, top: &Path, found: &mut [FoundVolume]) -> Result<(), HostError> {
        let mut read = BTreeMap::new();
        for part in found.iter_mut().filter(|found| found.part.is_block()) {
            let of_csi =
                part.publication.as_ref().is_none_or(|(_, plugin, _)| *plugin == Plugin::Csi.directory());
            let Some(spec) = part.spec().filter(|_| of_csi) else { continue };
            if !read.contains_key(&spec) {
                let data = self.vol_data(&top.join(spec.as_str()).join("data"))?;
                read.insert(spec.clone(), data);
            }
            part.vol_data = read.get(&spec).cloned().flatten();
        }
        Ok(())
    }

    /// Lists what a directory of a block volume has for each pod.
    fn block_pods(&self, path: &Path, spec: &OsString, part: Part) -> Result<Vec<FoundVolume>, HostError> {
        let mut found = Vec::new();
        for pod in self.entries(path)? {
            let publication = publication(&pod, &Plugin::Csi.directory().into(), spec);
            found.extend(self.volume(&path.join(&pod), part, publication)?);
        }
        Ok(found)
    }

    /// Reads the `vol_data.json` in a directory.
    fn vol_data(&self, path: &Path) -> Result<Option<VolData>, HostError> {
        let Some(directory) = self.open(path)? else { return Ok(None) };
        let content = read_small(&directory, VOL_DATA, VOL_DATA_MAX).map_err(|source| HostError::Io {
            doing: "read",
            path: self.root.path().join(path).join(VOL_DATA),
            source,
        })?;
        Ok(content.and_then(|bytes| VolData::parse(&bytes)))
    }

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

    /// Returns all names in a directory: a link or a file where a volume should be is somebody's too. What is just being put
    /// into its place is not there yet, and a leftover of that is removed with its volume.
    fn entries(&self, path: &Path) -> Result<Vec<OsString>, HostError> {
        let all = self.read(path, |_kind| true)?;
        Ok(all.into_iter().filter(|name| !is_temporary(name)).collect())
    }

    fn read(&self, path: &Path, wanted: impl Fn(FileType) -> bool) -> Result<Vec<OsString>, HostError> {
        let Some(directory) = self.open(path)? else { return Ok(Vec::new()) };
        let all = names(directory).map_err(|e| self.failed(path, e))?;
        Ok(all.into_iter().filter(|(_, kind)| wanted(*kind)).map(|(name, _)| name).collect())
    }

    /// Looks at one part. What is mounted is neither entered nor asked for its status.
    fn volume(
        &self,
        path: &Path,
        part: Part,
        publication: Option<(PodUid, String, SpecName)>,
    ) -> Result<Option<FoundVolume>, HostError> {
        let Some(relative) = RootPath::new(path) else { return Ok(None) };
        let (vol_data, empty) = match self.root.open_at(&relative, DIRECTORY) {
            Ok(directory) => {
                // In an emptyDir a directory is its pod's.
                let is_empty_dir =
                    publication.as_ref().is_some_and(|(_, plugin, _)| plugin.ends_with("empty-dir"));
                let depth = if is_empty_dir { 0 } else { EMPTY_DEPTH };
                let empty = is_empty(&directory, depth).map_err(|e| self.failed(path, e))?;
                (self.vol_data(path)?, empty)
            }
            Err(Errno::NOENT) => return Ok(None),
            // A link or a file: a driver's target without its mount is an empty one.
            Err(Errno::NOTDIR | Errno::LOOP) => (None, part.is_block() && self.is_empty_file(&relative)),
            // Mounted itself: not looked into.
            Err(Errno::XDEV) => (None, false),
            Err(e) => return Err(self.failed(path, e)),
        };
        Ok(Some(FoundVolume { part, path: relative, publication, vol_data, empty }))
    }

    fn is_empty_file(&self, path: &RootPath) -> bool {
        matches!(self.root.look(path), Ok(Seen::EmptyFile))
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
