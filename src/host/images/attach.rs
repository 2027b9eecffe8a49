//! Loop devices over image files. A device is known by the file behind it, not by a name: paths and numbers are reused.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::super::lease::{self, Lease};
use super::super::loops::{self, Loop};
use super::super::{HostError, raw};
use super::file::{FileId, open};
use super::{Images, Inner, failed};
use crate::model::Mount;

/// What the names of our devices begin with, for who looks at `losetup --list`.
const NAME: &str = "volumed-csi-loop:";

/// The sector of a file system that this driver made: direct I/O can be had with it on every disk and file system.
pub(super) const FILE_SYSTEM_SECTOR: u32 = 4096;

/// The sector of a block volume: what its users may have laid out for the disk that it was copied from. Where the host has no
/// direct I/O with it, there is none.
const BLOCK_SECTOR: u32 = 512;

/// When a loop device lets its image go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Going {
    /// With the last who has it open: a mounted file system holds its device.
    WithItsMount,
    /// When it is told to: a raw block volume is in use without anybody who has it open, and its number must stay its own.
    WhenTold,
}

/// A loop device over an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    one: Loop,
}

impl Attached {
    /// Returns its number.
    pub fn number(&self) -> u32 {
        self.one.number()
    }

    /// Returns its node.
    pub fn node(&self) -> PathBuf {
        self.one.node()
    }

    /// Returns when it goes.
    pub fn going(&self) -> Going {
        if self.one.going { Going::WithItsMount } else { Going::WhenTold }
    }

    /// Returns the file behind it.
    pub fn file(&self) -> FileId {
        let (device, inode) = self.one.file();
        FileId { device, inode }
    }

    /// Returns whether a driver like this one attached all of a volume's image with it. Whoever else attaches an image gives
    /// the device another name.
    pub fn is_for(&self, volume: &str) -> bool {
        self.one.is_whole_and_named(&name_for(volume))
    }

    /// Returns whether its image was at this path, or below it, and was unlinked. What the kernel shows is a path of whoever
    /// attached it: in another mount namespace, or below a mount that covers it, the same path is another file, which is there.
    pub fn lost_its_image(&self, below: &Path) -> bool {
        self.one.deleted && self.one.shown.starts_with(below)
    }

    /// Returns the path of its image as the kernel shows it.
    pub(super) fn shown(&self) -> &Path {
        &self.one.shown
    }
}

/// A loop device that was just attached, held open: one that goes with its mount goes with this too if it never gets one.
#[derive(Debug)]
pub struct Held {
    node: OwnedFd,
    number: u32,
}

impl Held {
    /// Returns its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Returns its node.
    pub fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }
}

impl Images {
    /// Attaches an image to a free loop device, with direct I/O where the image's file system has it.
    ///
    /// # Errors
    /// `Io`: nothing is attached.
    pub async fn attach(&self, image: &Path, volume: &str, going: Going) -> Result<Held, HostError> {
        let (path, volume) = (image.to_owned(), volume.to_owned());
        let inner = std::sync::Arc::clone(&self.inner);
        self.wanted("attach", image, move |wanted| {
            let file = open(&path, OFlags::RDWR).map_err(failed("open", &path))?;
            // Always the same: left to the kernel, the sectors of an image would become larger with its first reflink.
            let block_size = match going {
                Going::WithItsMount => FILE_SYSTEM_SECTOR,
                Going::WhenTold => BLOCK_SECTOR,
            };
            // Until it is clear that somebody still waits for it, it goes by itself.
            let flags = raw::LO_FLAGS_AUTOCLEAR | raw::LO_FLAGS_DIRECT_IO;
            let held = take(&inner, &file, name_for(&volume), (flags, block_size), &path)?;
            if going == Going::WhenTold {
                wanted.check().map_err(failed("attach", &path))?;
                raw::loop_stay(held.node.as_fd()).map_err(|source| HostError::Io {
                    doing: "keep the device of",
                    path,
                    source,
                })?;
            }
            Ok(held)
        })
        .await
    }

    /// Looks whether a loop device is over a file that is now at this path.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub async fn attached_by(
        &self,
        number: u32,
        image: &Path,
        id: FileId,
    ) -> Result<Option<Attached>, HostError> {
        let path = image.to_owned();
        self.local("find the loop device of", image, move || {
            let tail = tail(&path);
            let found = loops::one_if(number, |shown, _going| self::tail(shown) == tail)?;
            Ok(found.map(|one| Attached { one }).filter(|one| one.file() == id))
        })
        .await
    }

    /// Finds the loop devices over a file that is now at this path, by whatever path they were given it: another name, another
    /// mount, another root. Where nobody has it open there is none, and no device is asked.
    ///
    /// # Errors
    /// When one cannot be asked.
    pub async fn attached(&self, image: &Path, id: FileId) -> Result<Vec<Attached>, HostError> {
        let path = image.to_owned();
        self.local("find the loop devices of", image, move || {
            if is_alone(&path, id) {
                return Ok(Vec::new());
            }
            let over = |meant: &dyn Fn(&Path) -> bool| -> Result<Vec<Attached>, HostError> {
                let found = loops::list_if(|shown, _going| meant(shown))?;
                Ok(found.into_iter().map(|one| Attached { one }).filter(|one| one.file() == id).collect())
            };
            // All of them are asked only where this does not find who has it: each asks its file, which may lie anywhere.
            let tail = tail(&path);
            let near = over(&|shown| self::tail(shown) == tail)?;
            if near.is_empty() { over(&|_shown| true) } else { Ok(near) }
        })
        .await
    }

    /// Finds the loop devices that were given a file under the path that it has now, and those that were attached for a volume
    /// at this very path to a file that is there no more.
    ///
    /// # Errors
    /// When one that may be meant cannot be asked.
    pub async fn attached_for(
        &self,
        volume: &str,
        image: &Path,
        id: Option<FileId>,
    ) -> Result<Vec<Attached>, HostError> {
        let (path, volume) = (image.to_owned(), volume.to_owned());
        self.local("find the loop devices of", image, move || {
            let tail = tail(&path);
            let found = loops::list_if(|shown, _going| self::tail(shown) == tail)?;
            let meant = |device: &Attached| {
                Some(device.file()) == id || device.is_for(&volume) && device.lost_its_image(&path)
            };
            Ok(found.into_iter().map(|one| Attached { one }).filter(meant).collect())
        })
        .await
    }

    /// Lists the loop devices that this driver or another like it made over an image of a name, also over those that were
    /// deleted since.
    ///
    /// # Errors
    /// When one of them cannot be asked.
    pub async fn all_attached(&self, image_name: &'static str) -> Result<Vec<Attached>, HostError> {
        self.local("list the loop devices in", Path::new("/sys/block"), move || {
            let found =
                loops::list_if(|shown, _going| shown.file_name().is_some_and(|name| name == image_name))?;
            let ours = found.into_iter().filter(|one| one.name().starts_with(NAME));
            Ok(ours.map(|one| Attached { one }).collect())
        })
        .await
    }

    /// Lets a loop device take the size that its image has now.
    ///
    /// # Errors
    /// `WrongKind`: it is not over this image any more; nothing was done.
    pub async fn take_size(&self, device: &Attached) -> Result<(), HostError> {
        let (number, expected) = (device.number(), device.file());
        let node = device.node();
        self.local("set the size of", &device.node(), move || {
            let fail =
                |source: io::Error| HostError::Io { doing: "set the size of", path: node.clone(), source };
            let device = loops::open(number, OFlags::RDWR).map_err(fail)?;
            let (on, inode) = raw::loop_status(device.as_fd()).map_err(fail)?.file;
            if (FileId { device: on, inode }) != expected {
                return Err(HostError::WrongKind {
                    path: node.clone(),
                    found: "over another file by now",
                    expected: "over the volume's image",
                });
            }
            raw::loop_set_capacity(device.as_fd()).map_err(fail)
        })
        .await
    }

    /// Writes out what was written to a loop device through the page cache.
    ///
    /// # Errors
    /// `Io`.
    pub async fn flush(&self, device: &Attached) -> Result<(), HostError> {
        let (number, node) = (device.number(), device.node());
        self.local("write out", &device.node(), move || {
            let fail = |source: io::Error| HostError::Io { doing: "write out", path: node.clone(), source };
            let device = loops::open(number, OFlags::RDONLY).map_err(fail)?;
            rustix::fs::fsync(&device).map_err(|e| fail(e.into()))
        })
        .await
    }

    /// Lets a loop device go, if it is still over the file that it was over, and waits until it has.
    ///
    /// # Errors
    /// `Busy`: somebody has it open; it goes with them.
    pub async fn detach(&self, device: &Attached) -> Result<(), HostError> {
        let (one, inner) = (device.one.clone(), std::sync::Arc::clone(&self.inner));
        let limit = loops::LIMIT + super::LIMIT;
        let work = move || loops::let_go(&one, &inner.unmounters, loops::LIMIT);
        self.inner.slow.run("let go of", &device.node(), limit, work).await
    }
}

/// Takes a loop device whose node nobody shows: a pod from which somebody took the device away that it was shown still has
/// the node, and would see and write to this volume.
fn take(
    inner: &Inner,
    file: &OwnedFd,
    name: [u8; 64],
    (flags, block_size): (u32, u32),
    path: &Path,
) -> Result<Held, HostError> {
    /// The kernel gives the lowest free number, so those that are shown are held meanwhile; they go by themselves.
    const TRIES: usize = 64;
    let mut shown = Vec::new();
    while shown.len() < TRIES {
        let (node, number) = loops::configure(file, name, flags, block_size)?;
        let held = Held { node, number };
        let name = format!("loop{number}");
        let table = inner.table.look_here()?;
        let is_it = |mount: &&Mount| {
            matches!(mount.fs_type.as_str(), "devtmpfs" | "tmpfs")
                && mount.root.file_name().is_some_and(|root| root == name.as_str())
        };
        match table.iter().find(is_it) {
            None => return Ok(held),
            Some(mount) => {
                tracing::warn!(at = %mount.point.display(), "{name} is free, but still shown there");
            }
        }
        shown.push(held);
    }
    Err(HostError::Busy {
        path: path.to_owned(),
        holder: format!("{TRIES} stale mounts of loop devices' nodes"),
    })
}

/// Returns whether nobody has the file open that is at a path. Where that cannot be found out somebody may have.
fn is_alone(path: &Path, id: FileId) -> bool {
    // Not waiting for who has a lease on it himself.
    let Ok(file) = open(path, OFlags::RDONLY | OFlags::NONBLOCK) else { return false };
    let file = std::fs::File::from(file);
    let is_it = file.metadata().is_ok_and(|found| FileId { device: found.dev(), inode: found.ino() } == id);
    is_it && lease::probe_alone(&file).is_ok_and(|lease| lease == Lease::Granted)
}

/// What a volume's loop device is called, as far as there is room.
fn name_for(volume: &str) -> [u8; 64] {
    let mut name = [0; 64];
    // The last byte is the kernel's.
    name.iter_mut().take(63).zip(NAME.bytes().chain(volume.bytes())).for_each(|(to, from)| *to = from);
    name
}

/// The volume's directory and the image's name: where the image is shown from another root they stay.
fn tail(path: &Path) -> Vec<&std::ffi::OsStr> {
    let mut names: Vec<_> = path.iter().rev().take(2).collect();
    names.reverse();
    names
}
