//! What the driver remembers of each volume, and by it the caller's duties: who breaks one is refused by name (csi.md 10).
//!
//! The memory is a file per volume in `--state DIR/.memory`, so that a driver that was killed knows what a repeat is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tonic::Status;
use volumed::proto::csi;
use volumed::proto::csi::volume_capability::AccessType;
use volumed::proto::csi::volume_capability::access_mode::Mode as AccessMode;

use crate::Options;
use crate::mounts::{failed, file_name, mounted};

/// How a volume is used: the type of its capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    Mount,
    Block,
}

/// What is remembered of one volume.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Memory {
    /// The type of the first capability; for good.
    pub(crate) kind: Option<Kind>,
    /// Where it is staged.
    pub(crate) staged: Option<PathBuf>,
    /// Where it was to be published: whether that was done.
    pub(crate) targets: BTreeMap<PathBuf, bool>,
    /// The size that it was grown to, in bytes; 0: never.
    pub(crate) size: u64,
}

impl Memory {
    fn is_in_use(&self) -> bool {
        self.staged.is_some() || !self.targets.is_empty()
    }
}

/// The rules, and the memory that they need.
#[derive(Debug)]
pub(crate) struct Rules {
    directory: PathBuf,
    lenient: bool,
    max_volumes: i64,
    multi_writer: bool,
    mount_group: bool,
    // Held for one call's effect, which does not wait for anybody.
    lock: Mutex<()>,
}

impl Rules {
    pub(crate) fn new(options: &Options) -> io::Result<Self> {
        let directory = options.state.join(".memory");
        fs::create_dir_all(&directory)?;
        Ok(Self {
            directory,
            lenient: options.lenient,
            max_volumes: options.max_volumes,
            multi_writer: options.multi_writer,
            mount_group: options.mount_group,
            lock: Mutex::default(),
        })
    }

    /// Runs an effect on a volume with what is remembered of it, and remembers what it leaves, also when it fails.
    pub(crate) fn with<T>(
        &self,
        volume: &str,
        effect: impl FnOnce(&mut Memory) -> Result<T, Status>,
    ) -> Result<T, Status> {
        let _alone = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut memory = read(&self.file(volume))?;
        let result = effect(&mut memory);
        self.write(volume, &memory)?;
        result
    }

    /// Forgets a volume that is deleted.
    pub(crate) fn forget(&self, volume: &str) {
        fs::remove_file(self.file(volume)).ok();
    }

    fn file(&self, volume: &str) -> PathBuf {
        self.directory.join(file_name(volume))
    }

    fn write(&self, volume: &str, memory: &Memory) -> Result<(), Status> {
        let (file, aside) = (self.file(volume), self.directory.join(".new"));
        let text = serde_json::to_vec(memory).map_err(|error| Status::internal(error.to_string()))?;
        fs::write(&aside, text)
            .and_then(|()| fs::rename(&aside, &file))
            .map_err(|error| failed("write", &file, &error))
    }

    fn broken(&self, rule: u32, what: impl FnOnce() -> String) -> Result<(), Status> {
        if self.lenient {
            return Ok(());
        }
        Err(Status::failed_precondition(format!("contract violation (csi.md 10, {rule}): {}", what())))
    }

    /// A capability is there, of one type for the volume's whole life, and asks only for what the driver has (12, 13).
    pub(crate) fn capability(
        &self,
        memory: &mut Memory,
        capability: Option<&csi::VolumeCapability>,
    ) -> Result<Kind, Status> {
        let missing = |what: &str| Status::invalid_argument(format!("{what} is missing"));
        let capability = capability.ok_or_else(|| missing("volume_capability"))?;
        let (kind, group) = match &capability.access_type {
            None => return Err(missing("volume_capability.access_type")),
            Some(AccessType::Block(_)) => (Kind::Block, ""),
            Some(AccessType::Mount(mount)) => (Kind::Mount, mount.volume_mount_group.as_str()),
        };
        if let Some(first) = memory.kind.filter(|first| *first != kind) {
            self.broken(12, || format!("the capability's type is {kind:?}, and was {first:?} before"))?;
        }
        memory.kind = Some(kind);
        if !group.is_empty() && !self.mount_group {
            self.broken(13, || format!("volume_mount_group {group} without VOLUME_MOUNT_GROUP"))?;
        }
        let mode = access_mode(capability);
        if matches!(mode, AccessMode::SingleNodeSingleWriter | AccessMode::SingleNodeMultiWriter)
            && !self.multi_writer
        {
            self.broken(13, || format!("{} without SINGLE_NODE_MULTI_WRITER", mode.as_str_name()))?;
        }
        Ok(kind)
    }

    /// The staging path is a directory that the caller made (11, 12), and the only one of the volume (2).
    pub(crate) fn staging(&self, memory: &Memory, path: &Path) -> Result<(), Status> {
        if !fs::symlink_metadata(path).is_ok_and(|at| at.is_dir()) {
            self.broken(12, || format!("staging_target_path {} is no directory", path.display()))?;
        }
        if let Some(other) = memory.staged.as_ref().filter(|other| *other != path) {
            self.broken(2, || format!("the volume is staged at {} already", other.display()))?;
        }
        Ok(())
    }

    /// The target's parent is there, and the target itself only if this driver was asked for it before (11).
    pub(crate) fn target(&self, memory: &Memory, target: &Path) -> Result<(), Status> {
        let parent = target.parent().unwrap_or(Path::new("/"));
        if !fs::symlink_metadata(parent).is_ok_and(|at| at.is_dir()) {
            self.broken(11, || format!("{}, the parent of target_path, is no directory", parent.display()))?;
        }
        let repeated = memory.targets.contains_key(target);
        // What is mounted there may be the work of a driver with another memory.
        if !repeated && fs::symlink_metadata(target).is_ok() && mounted(target)?.is_none() {
            self.broken(11, || format!("target_path {} is there before the first call", target.display()))?;
        }
        Ok(())
    }

    /// SINGLE_NODE_SINGLE_WRITER has one target (csi.md 2.7).
    pub(crate) fn single_writer(
        memory: &Memory,
        capability: Option<&csi::VolumeCapability>,
        target: &Path,
    ) -> Result<(), Status> {
        let single = capability
            .is_some_and(|capability| access_mode(capability) == AccessMode::SingleNodeSingleWriter);
        match memory.targets.iter().find(|(path, done)| **done && *path != target) {
            Some((path, _)) if single => Err(Status::failed_precondition(format!(
                "SINGLE_NODE_SINGLE_WRITER: published at {} already",
                path.display()
            ))),
            _ => Ok(()),
        }
    }

    /// No more volumes than max_volumes_per_node (25).
    pub(crate) fn room(&self, memory: &Memory) -> Result<(), Status> {
        if self.max_volumes <= 0 || memory.is_in_use() {
            return Ok(());
        }
        let entries =
            fs::read_dir(&self.directory).map_err(|error| failed("list", &self.directory, &error))?;
        let mut used = 0;
        for entry in entries.flatten() {
            used += i64::from(read(&entry.path())?.is_in_use());
        }
        if used >= self.max_volumes {
            return Err(Status::resource_exhausted(format!(
                "contract violation (csi.md 10, 25): {used} volumes are here, and the limit is {}",
                self.max_volumes
            )));
        }
        Ok(())
    }

    /// Nothing is unstaged while it is published (4).
    pub(crate) fn unstaging(&self, memory: &Memory) -> Result<(), Status> {
        if let Some((target, _)) = memory.targets.iter().find(|(_, done)| **done) {
            self.broken(4, || format!("the volume is still published at {}", target.display()))?;
        }
        Ok(())
    }
}

fn access_mode(capability: &csi::VolumeCapability) -> AccessMode {
    capability.access_mode.as_ref().map(csi::volume_capability::AccessMode::mode).unwrap_or_default()
}

fn read(file: &Path) -> Result<Memory, Status> {
    match fs::read(file) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| Status::internal(error.to_string())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Memory::default()),
        Err(error) => Err(failed("read", file, &error)),
    }
}
