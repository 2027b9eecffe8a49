//! Image files: made, grown, asked how much of them is there.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::super::HostError;
use super::{Images, failed};

/// How long a file system may take to allocate a whole image: quick where it knows unwritten extents, else it writes zeros.
const ALLOCATE: Duration = Duration::from_secs(600);

/// Whether an image's blocks are there before they are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allocation {
    /// They come with the first write: the host may run out of them.
    Thin,
    /// All of them, from the start.
    Thick,
}

/// A file, known again whatever it is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileId {
    /// `st_dev`
    pub device: u64,
    /// `st_ino`
    pub inode: u64,
}

/// An image file, and how much of it is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageFile {
    /// Which file it is.
    pub id: FileId,
    /// Its length in bytes.
    pub length: u64,
    /// Bytes that the host's file system has given it.
    pub allocated: u64,
}

/// How much room a file system has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// In all.
    pub total: u64,
    /// What can still be written without the file system's own reserve.
    pub available: u64,
}

impl Images {
    /// Makes an image file of zeros that must not be there yet. It is not synced.
    ///
    /// # Errors
    /// `Io`: nothing is left of it.
    pub async fn make(&self, path: &Path, bytes: u64, allocation: Allocation) -> Result<(), HostError> {
        let image = path.to_owned();
        self.inner
            .slow
            .run("make the image", path, ALLOCATE, move || {
                let fail = failed("make the image", &image);
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::open(&image, flags, Mode::from_raw_mode(0o600)).map_err(&fail)?;
                resize(&file, 0, bytes, allocation)
                    .inspect_err(|_| drop(std::fs::remove_file(&image)))
                    .map_err(&fail)
            })
            .await
    }

    /// Grows an image file to a size and syncs it; one that is as large already stays.
    ///
    /// # Errors
    /// `Io`: it is as it was.
    pub async fn grow(&self, path: &Path, bytes: u64, allocation: Allocation) -> Result<(), HostError> {
        let image = path.to_owned();
        self.inner
            .slow
            .run("grow the image", path, ALLOCATE, move || {
                let fail = failed("grow the image", &image);
                let file = open(&image, OFlags::RDWR).map_err(&fail)?;
                let length = u64::try_from(rustix::fs::fstat(&file).map_err(&fail)?.st_size).unwrap_or(0);
                if length >= bytes {
                    return Ok(());
                }
                if let Err(e) = resize(&file, length, bytes, allocation) {
                    // Nobody was told of the new size yet.
                    rustix::fs::ftruncate(&file, length).map_err(&fail)?;
                    return Err(fail(e));
                }
                rustix::fs::fsync(&file).map_err(&fail)
            })
            .await
    }

    /// Allocates what an image file has no blocks for. What is in it stays.
    ///
    /// # Errors
    /// `Io`.
    pub async fn allocate(&self, path: &Path) -> Result<(), HostError> {
        let image = path.to_owned();
        self.inner
            .slow
            .run("allocate the image", path, ALLOCATE, move || {
                let fail = failed("allocate the image", &image);
                let file = open(&image, OFlags::RDWR).map_err(&fail)?;
                let length = u64::try_from(rustix::fs::fstat(&file).map_err(&fail)?.st_size).unwrap_or(0);
                resize(&file, 0, length, Allocation::Thick).map_err(fail)
            })
            .await
    }

    /// Writes an image file out to the disk.
    ///
    /// # Errors
    /// `Io`.
    pub async fn sync(&self, path: &Path) -> Result<(), HostError> {
        let image = path.to_owned();
        self.inner
            .slow
            .run("sync", path, ALLOCATE, move || {
                let fail = failed("sync", &image);
                rustix::fs::fsync(open(&image, OFlags::RDONLY).map_err(&fail)?).map_err(&fail)
            })
            .await
    }

    /// Looks at an image file; `None` where there is none.
    ///
    /// # Errors
    /// `Io`, `WrongKind` where it is no regular file.
    pub async fn look(&self, path: &Path) -> Result<Option<ImageFile>, HostError> {
        let image = path.to_owned();
        self.local("look at", path, move || match std::fs::symlink_metadata(&image) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HostError::Io { doing: "look at", path: image, source }),
            Ok(found) if !found.is_file() => {
                Err(HostError::WrongKind { path: image, found: "something else", expected: "an image file" })
            }
            Ok(found) => Ok(Some(ImageFile {
                id: FileId { device: found.dev(), inode: found.ino() },
                length: found.len(),
                allocated: found.blocks().saturating_mul(512),
            })),
        })
        .await
    }

    /// Returns how many bytes the host's file system has given to each of these images; 0 to one that is not there.
    ///
    /// # Errors
    /// `Deadline`
    pub async fn allocated(&self, images: Vec<std::path::PathBuf>) -> Result<Vec<u64>, HostError> {
        let first = images.first().cloned().unwrap_or_default();
        self.local("look at", &first, move || {
            let blocks = |path| std::fs::symlink_metadata(path).map_or(0, |found| found.blocks());
            Ok(images.iter().map(|path| blocks(path).saturating_mul(512)).collect())
        })
        .await
    }

    /// Returns how much room there is for images in a directory.
    ///
    /// # Errors
    /// `Io`.
    pub async fn space(&self, directory: &Path) -> Result<Space, HostError> {
        let path = directory.to_owned();
        self.local("ask for the free space of", directory, move || {
            let found = rustix::fs::statvfs(&path).map_err(failed("ask for the free space of", &path))?;
            let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
            Ok(Space { total: bytes(found.f_blocks), available: bytes(found.f_bavail) })
        })
        .await
    }
}

/// Opens an image file, never through a symlink at its place.
pub(super) fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn resize(file: &OwnedFd, from: u64, to: u64, allocation: Allocation) -> Result<(), Errno> {
    match allocation {
        Allocation::Thin => rustix::fs::ftruncate(file, to),
        Allocation::Thick => loop {
            match rustix::fs::fallocate(file, FallocateFlags::empty(), from, to.saturating_sub(from)) {
                Err(Errno::INTR) => {}
                done => break done,
            }
        },
    }
}
