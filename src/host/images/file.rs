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

/// How long a file system may take to write an image out.
const SYNC: Duration = Duration::from_secs(600);

/// What changes an image is waited for to its end, in practice without a limit: the caller holds the volume's lock, and a
/// thread that was given up would work on without it. Who asked is answered by the caller's own limit.
const TO_ITS_END: Duration = Duration::from_secs(1 << 30);

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
            .run("make the image", path, TO_ITS_END, move || {
                let fail = failed("make the image", &image);
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = rustix::fs::open(&image, flags, Mode::from_raw_mode(0o600)).map_err(&fail)?;
                resize(&file, 0, bytes, allocation)
                    .inspect_err(|_| remove_if_same(&image, &file))
                    .map_err(&fail)
            })
            .await
    }

    /// Grows an image file to a size and syncs it; one that is as large already stays. Waited for to its end.
    ///
    /// # Errors
    /// `Io`: what is in it is as it was; where only the sync failed it is longer.
    pub async fn grow(&self, path: &Path, bytes: u64, allocation: Allocation) -> Result<(), HostError> {
        let image = path.to_owned();
        self.inner
            .slow
            .run("grow the image", path, TO_ITS_END, move || {
                let fail = failed("grow the image", &image);
                let file = open(&image, OFlags::RDWR).map_err(&fail)?;
                let length = u64::try_from(rustix::fs::fstat(&file).map_err(&fail)?.st_size).unwrap_or(0);
                if length >= bytes {
                    return Ok(());
                }
                resize(&file, length, bytes, allocation).map_err(&fail)?;
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
            .run("allocate the image", path, TO_ITS_END, move || {
                let fail = failed("allocate the image", &image);
                let file = open(&image, OFlags::RDWR).map_err(&fail)?;
                let length = u64::try_from(rustix::fs::fstat(&file).map_err(&fail)?.st_size).unwrap_or(0);
                allocate(&file, 0, length).map_err(fail)
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
            .run("sync", path, SYNC, move || {
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

/// Makes a file longer, never shorter: until everything is allocated its length stays.
fn resize(file: &OwnedFd, from: u64, to: u64, allocation: Allocation) -> Result<(), Errno> {
    if allocation == Allocation::Thick
        && let Err(e) = allocate(file, from, to)
    {
        // To its own length: what was allocated beyond it goes.
        if rustix::fs::fstat(file).is_ok_and(|found| u64::try_from(found.st_size) == Ok(from)) {
            let _freed = rustix::fs::ftruncate(file, from);
        }
        return Err(e);
    }
    rustix::fs::ftruncate(file, to)
}

fn allocate(file: &OwnedFd, from: u64, to: u64) -> Result<(), Errno> {
    loop {
        match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, from, to.saturating_sub(from)) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Unlinks a file that was made, not what has its name since.
fn remove_if_same(path: &Path, file: &OwnedFd) {
    let (Ok(made), Ok(found)) = (rustix::fs::fstat(file), std::fs::symlink_metadata(path)) else { return };
    if (made.st_dev, made.st_ino) == (found.dev(), found.ino()) {
        let _gone = std::fs::remove_file(path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// More than any file system has.
    const TOO_MUCH: u64 = 1 << 55;

    fn file(path: &Path) -> OwnedFd {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::open(path, flags, Mode::from_raw_mode(0o600)).unwrap()
    }

    #[test]
    fn a_growth_that_failed_leaves_the_length_and_a_later_one_makes_nothing_shorter() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let image = file(&path);
        let length = || std::fs::metadata(&path).unwrap().len();
        resize(&image, 0, 8192, Allocation::Thick).unwrap();
        assert!(resize(&image, 8192, TOO_MUCH, Allocation::Thick).is_err());
        assert_eq!(length(), 8192);
        resize(&image, 8192, 16384, Allocation::Thin).unwrap();
        // One that began before that.
        assert!(resize(&image, 8192, TOO_MUCH, Allocation::Thick).is_err());
        assert_eq!(length(), 16384);
    }

    #[test]
    fn only_the_file_that_was_made_is_unlinked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("image");
        let first = file(&path);
        std::fs::rename(&path, directory.path().join("moved")).unwrap();
        let second = file(&path);
        remove_if_same(&path, &first);
        assert!(path.try_exists().unwrap());
        remove_if_same(&path, &second);
        assert!(!path.try_exists().unwrap());
    }
}
