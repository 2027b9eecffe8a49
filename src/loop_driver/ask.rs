//! What a request asks for, checked: ids, names, capabilities, sizes. Pure.

use super::errors::Failure;
use super::store::{Asked, Id};
use super::volumes::Backing;
use crate::host::images::{Allocation, FsType};
use crate::proto::csi::volume_capability::access_mode::Mode;
use crate::proto::csi::{self, volume_capability};

/// The size of a volume for which nobody said one.
const DEFAULT_BYTES: u64 = 1 << 30;

/// Sizes are whole pages: neither a loop device nor a file system has a use for less.
const STEP: u64 = 4096;

/// How a volume is to be used, or was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Capability {
    /// As a file system of this type (empty: as it was made), or as a block device.
    pub access: Access,
    /// Number of writers.
    pub mode: Mode,
}

/// The access type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Access {
    /// A device.
    Block,
    /// A mounted file system.
    Mount {
        /// `None`: as the volume is.
        fs_type: Option<FsType>,
        /// `mount_flags`
        flags: Vec<String>,
        /// `volume_mount_group`
        group: Option<u32>,
    },
}

impl Capability {
    /// Takes a capability that has to be there.
    ///
    /// # Errors
    /// `Invalid`
    pub(super) fn of(given: Option<&csi::VolumeCapability>) -> Result<Self, Failure> {
        let given = given.ok_or_else(|| missing("volume_capability"))?;
        let access = match given.access_type.as_ref() {
            None => return Err(missing("volume_capability.access_type")),
            Some(volume_capability::AccessType::Block(_)) => Access::Block,
            Some(volume_capability::AccessType::Mount(mount)) => Access::Mount {
                fs_type: fs_type(&mount.fs_type)?,
                flags: mount.mount_flags.clone(),
                group: group(&mount.volume_mount_group)?,
            },
        };
        let mode = given.access_mode.ok_or_else(|| missing("volume_capability.access_mode"))?.mode();
        match mode {
            Mode::Unknown => Err(missing("volume_capability.access_mode.mode")),
            Mode::MultiNodeReaderOnly | Mode::MultiNodeSingleWriter | Mode::MultiNodeMultiWriter => {
                Err(Failure::Invalid(format!(
                    "{} is not possible: a volume is on one node (there, several pods may share it with ReadWriteOnce)",
                    mode.as_str_name()
                )))
            }
            Mode::SingleNodeReaderOnly if access == Access::Block => Err(read_only_device()),
            Mode::SingleNodeWriter
            | Mode::SingleNodeReaderOnly
            | Mode::SingleNodeSingleWriter
            | Mode::SingleNodeMultiWriter => Ok(Self { access, mode }),
        }
    }

    /// Takes the capabilities of a volume that is to be made: at least one, all of one access type.
    ///
    /// # Errors
    /// `Invalid`
    pub(super) fn of_all(given: &[csi::VolumeCapability]) -> Result<Vec<Self>, Failure> {
        if given.is_empty() {
            return Err(missing("volume_capabilities"));
        }
        let all: Vec<Self> = given.iter().map(|one| Self::of(Some(one))).collect::<Result<_, _>>()?;
        let blocks = all.iter().filter(|one| one.access == Access::Block).count();
        if blocks != 0 && blocks != all.len() {
            return Err(Failure::Invalid("a volume is either a block device or a file system".to_owned()));
        }
        Ok(all)
    }

    /// Returns what is kept of it.
    pub(super) fn asked(&self, read_only: bool) -> Asked {
        let (block, flags, group) = match &self.access {
            Access::Block => (true, Vec::new(), None),
            Access::Mount { flags, group, .. } => (false, flags.clone(), *group),
        };
        let read_only = read_only || self.mode == Mode::SingleNodeReaderOnly;
        Asked { mode: i32::from(self.mode), block, read_only, flags, group }
    }
}

/// Refuses a device that is to be read only: the kernel lets whoever may open a device node write through it, however the node
/// is mounted.
pub(super) fn read_only_device() -> Failure {
    Failure::Invalid(
        "a block device cannot be shown read-only: a read-only mount of its node does not keep anybody from writing; make the \
         claim's volume writable for this pod, or use volumeMode Filesystem"
            .to_owned(),
    )
}

/// Finds a file system by the name that a request or a parameter gives; empty is none.
///
/// # Errors
/// `Invalid`
pub(super) fn fs_type(name: &str) -> Result<Option<FsType>, Failure> {
    if name.is_empty() {
        return Ok(None);
    }
    let known = FsType::ALL.map(FsType::name).join(", ");
    FsType::of(name)
        .map(Some)
        .ok_or_else(|| Failure::Invalid(format!("the file system {name:?} is none of {known}")))
}

/// Reads how an image is allocated.
///
/// # Errors
/// `Invalid`
pub(super) fn allocation(text: &str) -> Result<Allocation, Failure> {
    match text {
        "thin" => Ok(Allocation::Thin),
        "thick" => Ok(Allocation::Thick),
        other => Err(Failure::Invalid(format!("the allocation {other:?} is neither thin nor thick"))),
    }
}

/// Reads what a volume is kept in.
///
/// # Errors
/// `Invalid`
pub(super) fn backing(text: &str) -> Result<Backing, Failure> {
    match text {
        "image" => Ok(Backing::Image),
        "directory" => Ok(Backing::Directory),
        other => Err(Failure::Invalid(format!("the backing {other:?} is neither image nor directory"))),
    }
}

fn group(text: &str) -> Result<Option<u32>, Failure> {
    if text.is_empty() {
        return Ok(None);
    }
    let number = text.parse().map_err(|_no_number| {
        Failure::Invalid(format!("volume_mount_group {text:?} is not the number of a group"))
    });
    number.map(Some)
}

/// Decides the size of a new volume: whole pages, at least what its content needs.
///
/// # Errors
/// `Invalid`, `OutOfRange`
pub(super) fn size(range: Option<csi::CapacityRange>, least: u64) -> Result<u64, Failure> {
    let (required, limit) = bounds(range)?;
    let wanted = required.unwrap_or(limit.map_or(DEFAULT_BYTES, |limit| limit.min(DEFAULT_BYTES)));
    let bytes = wanted.max(least).checked_next_multiple_of(STEP).unwrap_or(u64::MAX);
    // A limit that is no whole page leaves the page below it.
    let bytes = match limit {
        Some(limit) if bytes > limit && required.is_none_or(|required| limit - limit % STEP >= required) => {
            limit - limit % STEP
        }
        _ => bytes,
    };
    if bytes < least {
        return Err(Failure::OutOfRange(format!("the volume needs at least {least} bytes")));
    }
    check_limit(bytes, limit)
}

/// Decides the size that an existing volume is to have.
///
/// # Errors
/// `Invalid`, `OutOfRange`
pub(super) fn larger(range: Option<csi::CapacityRange>, now: u64) -> Result<u64, Failure> {
    let (required, limit) = bounds(range)?;
    let bytes = required.unwrap_or(0).checked_next_multiple_of(STEP).unwrap_or(u64::MAX).max(now);
    check_limit(bytes, limit)
}

fn check_limit(bytes: u64, limit: Option<u64>) -> Result<u64, Failure> {
    match limit {
        Some(limit) if bytes > limit => Err(Failure::OutOfRange(format!(
            "the volume would have {bytes} bytes, more than the limit {limit}"
        ))),
        _ if i64::try_from(bytes).is_err() => {
            Err(Failure::OutOfRange(format!("{bytes} bytes are more than any volume can have")))
        }
        _ => Ok(bytes),
    }
}

/// Returns the least and the most bytes of a range, where it says them.
///
/// # Errors
/// `Invalid`
pub(super) fn bounds(range: Option<csi::CapacityRange>) -> Result<(Option<u64>, Option<u64>), Failure> {
    let Some(csi::CapacityRange { required_bytes, limit_bytes }) = range else { return Ok((None, None)) };
    let number = |name: &str, bytes: i64| {
        u64::try_from(bytes).map_err(|_negative| Failure::Invalid(format!("{name} is negative")))
    };
    let required = number("required_bytes", required_bytes)?;
    let limit = number("limit_bytes", limit_bytes)?;
    if limit != 0 && limit < required {
        return Err(Failure::Invalid("limit_bytes is less than required_bytes".to_owned()));
    }
    let set = |bytes| (bytes != 0).then_some(bytes);
    Ok((set(required), set(limit)))
}

/// Takes the name of something new (csi.md 2.1): not empty, at most 128 bytes, no control characters.
///
/// # Errors
/// `Invalid`
pub(super) fn name(name: &str) -> Result<Id, Failure> {
    if name.is_empty() {
        return Err(missing("name"));
    }
    if name.len() > 128 || name.chars().any(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r')) {
        return Err(Failure::Invalid("name is longer than 128 bytes or has control characters".to_owned()));
    }
    Ok(Id::of_name(name))
}

/// Takes an id that has to be there. One that this driver cannot have given is `None`.
///
/// # Errors
/// `Invalid`
pub(super) fn id(field: &'static str, text: &str) -> Result<Option<Id>, Failure> {
    if text.is_empty() { Err(missing(field)) } else { Ok(Id::new(text).ok()) }
}

/// Takes a path that has to be there.
///
/// # Errors
/// `Invalid`
pub(super) fn path(field: &'static str, text: &str) -> Result<std::path::PathBuf, Failure> {
    use std::path::{Component, PathBuf};
    if text.is_empty() {
        return Err(missing(field));
    }
    let path = PathBuf::from(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.file_name().is_none() || text.contains('\0') {
        return Err(Failure::Invalid(format!("{field} is not an absolute path without ..: {text:?}")));
    }
    Ok(path)
}

/// Takes a path that has to be there and at which something is to be found. Any path may be asked for; where it is none that
/// a volume can be at, there is none.
///
/// # Errors
/// `Invalid`
pub(crate) fn place(field: &'static str, text: &str) -> Result<Option<std::path::PathBuf>, Failure> {
    if text.is_empty() { Err(missing(field)) } else { Ok(path(field, text).ok()) }
}

/// Takes the page size of a list; 0 is no limit.
///
/// # Errors
/// `Invalid`
pub(super) fn entries(most: i32) -> Result<usize, Failure> {
    match usize::try_from(most) {
        Ok(0) => Ok(usize::MAX),
        Ok(most) => Ok(most),
        Err(_negative) => Err(Failure::Invalid("max_entries is negative".to_owned())),
    }
}

/// Returns the error for a field that must be set.
pub(super) fn missing(field: &'static str) -> Failure {
    Failure::Invalid(format!("{field} is missing"))
}

#[cfg(test)]
#[path = "ask_tests.rs"]
mod tests;
