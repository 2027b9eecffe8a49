//! Which disk a device is, as sysfs tells: by what lasts (serial numbers, world-wide ids), not by its name of today.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::super::raw;
use crate::model::{DiskIdentity, Mark};

/// The files that may tell, below the directory of the disk; the first that has something counts.
const FILES: [(Mark, &[&str]); 5] = [
    (Mark::Wwid, &["wwid", "device/wwid"]),
    (Mark::Serial, &["serial", "device/serial", "device/cid"]),
    (Mark::DmUuid, &["dm/uuid"]),
    (Mark::MdUuid, &["md/uuid"]),
    (Mark::Backend, &["backend"]),
];

/// What sysfs has of a device.
#[derive(Debug)]
pub(super) struct Sysfs {
    /// Its own directory.
    directory: PathBuf,
    /// The directory of the disk that it is a partition of.
    disk: Option<PathBuf>,
}

impl Sysfs {
    /// Finds the directory of a device.
    ///
    /// # Errors
    /// When the kernel has none of this number, any more or yet.
    pub(super) fn of((major, minor): (u32, u32)) -> io::Result<Self> {
        // A link to `../../devices/.../block/sda/sda1`: the disk of a partition is the directory above.
        let directory = PathBuf::from(format!("/sys/dev/block/{major}:{minor}"));
        std::fs::read_link(&directory)?;
        let partition = read(&directory.join("partition"))?.is_some();
        let disk = partition.then(|| directory.join(".."));
        Ok(Self { directory, disk })
    }

    /// Returns the directory of the whole disk.
    fn disk(&self) -> &Path {
        self.disk.as_deref().unwrap_or(&self.directory)
    }

    /// Returns the number of the disk that this is a partition of.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn disk_number(&self) -> io::Result<Option<(u32, u32)>> {
        let Some(disk) = &self.disk else { return Ok(None) };
        let text = read(&disk.join("dev"))?.unwrap_or_default();
        let number = text.split_once(':').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
        number.map(Some).ok_or_else(|| io::Error::other("the kernel does not tell the number of its disk"))
    }

    /// Returns whether the kernel lets nobody write to it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn read_only(&self) -> io::Result<bool> {
        Ok(read(&self.directory.join("ro"))?.is_none_or(|text| text != "0"))
    }

    /// Names a device that the kernel built on it, or a partition of it.
    ///
    /// # Errors
    /// When the directory cannot be listed.
    pub(super) fn built_on(&self) -> io::Result<Option<String>> {
        let holders = match std::fs::read_dir(self.directory.join("holders")) {
            Ok(holders) => holders.collect::<io::Result<Vec<_>>>()?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(e),
        };
        if let Some(holder) = holders.first() {
            return Ok(Some(format!(
                "the device /dev/{}, which is built on it",
                holder.file_name().display()
            )));
        }
        for entry in std::fs::read_dir(&self.directory)? {
            let entry = entry?;
            if read(&entry.path().join("partition"))?.is_some() {
                return Ok(Some(format!("its partition /dev/{}", entry.file_name().display())));
            }
        }
        Ok(None)
    }

    /// Reads by what the device is known. `device` is it, open.
    ///
    /// # Errors
    /// When what is there cannot be read: an identity with a gap would be another disk's.
    pub(super) fn identity(&self, device: &OwnedFd) -> io::Result<DiskIdentity> {
        let mut marks = marks(self.disk())?;
        if let Some(path) = self.one_path()? {
            // By whichever path, and however many there are, it is the same disk.
            let of_path = marks_of_disk(&path)?;
            if !of_path.is_empty() {
                marks = of_path;
            }
        }
        if self.disk.is_none() && read(&self.directory.join("loop/backing_file"))?.is_some() {
            let (on, inode) = raw::loop_status(device.as_fd())?.file;
            marks.insert(Mark::BackingFile, format!("{on}:{inode}"));
        }
        if self.disk.is_some() {
            let number = read(&self.directory.join("partition"))?.unwrap_or_default();
            let start = read(&self.directory.join("start"))?.unwrap_or_default();
            marks.insert(Mark::Partition, format!("{number} at sector {start}"));
        }
        if !marks.keys().any(|mark| mark.lasts()) {
            marks.insert(Mark::Name, self.name()?);
        }
        Ok(DiskIdentity { marks })
    }

    /// Returns the directory of a path of a multipath device.
    fn one_path(&self) -> io::Result<Option<PathBuf>> {
        if !read(&self.disk().join("dm/uuid"))?.is_some_and(|uuid| uuid.starts_with("mpath-")) {
            return Ok(None);
        }
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(self.disk().join("slaves"))? {
            paths.push(entry?.path());
        }
        Ok(paths.into_iter().min())
    }

    /// Returns the kernel's name of it.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(super) fn name(&self) -> io::Result<String> {
        let text = read(&self.directory.join("uevent"))?.unwrap_or_default();
        let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        name.map(str::to_owned).ok_or_else(|| io::Error::other("the kernel does not tell its name"))
    }
}

/// Reads by what the disk of a directory is known.
fn marks(disk: &Path) -> io::Result<BTreeMap<Mark, String>> {
    let mut marks = BTreeMap::new();
    for (mark, files) in FILES {
        for file in files {
            if let Some(text) = read(&disk.join(file))?.filter(|text| !text.is_empty()) {
                marks.insert(mark, text);
                break;
            }
        }
    }
    Ok(marks)
}

/// As `marks`, but only what the disk itself says, which is the same by every path to it.
fn marks_of_disk(disk: &Path) -> io::Result<BTreeMap<Mark, String>> {
    let mut marks = marks(disk)?;
    marks.retain(|mark, _| matches!(mark, Mark::Wwid | Mark::Serial));
    Ok(marks)
}

/// Reads a file of sysfs in one line, without the blanks that disks fill their serial numbers with. `None`: there is none, or
/// the device does not have it.
fn read(path: &Path) -> io::Result<Option<String>> {
    match std::fs::read(path) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).trim_matches(['\0', ' ', '\n', '\t']).to_owned())),
        Err(e) => match e.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
            // Also of a loop device that holds nothing, and of a disk whose page of serial numbers cannot be asked for.
            Some(
                rustix::io::Errno::NOENT
                | rustix::io::Errno::NOTDIR
                | rustix::io::Errno::ISDIR
                | rustix::io::Errno::NXIO
                | rustix::io::Errno::INVAL
                | rustix::io::Errno::OPNOTSUPP,
            ) => Ok(None),
            _ => Err(e),
        },
    }
}
