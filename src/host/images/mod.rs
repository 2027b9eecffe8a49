//! What the bundled driver asks of the kernel: image files, loop devices over them, file systems in them, directories with a
//! limit, and the mounts of all of them.
//!
//! Blocking calls run in a bounded share of the blocking pool with a deadline; what may write for long (mkfs, resize, an
//! unmount) runs in a child process. Everything is about files of one directory.
//!
//! The directory is locked as long as an `Images` of it lives, and as long as a tool that it started runs: there is one driver of
//! it on this host, and the next begins only when nothing of a killed one can still write to an image. The locks are flocks, of
//! the file `lock` and of the directory itself: the kernel drops them with their holders, and removing the file frees nothing.

mod attach;
mod copy;
mod directory;
mod file;
mod file_system;
mod freeze;
mod inside;
mod mount;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;

use super::HostError;
use super::child::Children;
use super::exec::Tools;
use super::mount_table::Shared;
use super::pool::Pool;
use super::unmounter::Unmounters;
use super::wanted::{Waits, Wanted};
use crate::model::MountTable;

pub use super::grow::{BTRFS_LEAST_GROWN, Grown};
pub use super::options::{Attributes, Seen, of_the_file_system, ordered, read_only};
pub use super::quota::{Limits, Project};
pub use attach::{Attached, Going, Held};
pub use copy::{Copied, HowFar, Leave};
pub use directory::FoundDirectory;
pub use file::{Allocation, FileId, ImageFile, Space};
pub use file_system::FsType;
pub use freeze::{Frozen, as_keeper};
pub use mount::Mounted;

/// How long a call on a local file system may take (design 5, "Deadlines").
const LIMIT: Duration = Duration::from_secs(60);

/// How long an earlier process's last tool is waited for.
const LEFTOVERS: Duration = Duration::from_secs(10);

/// The kernel, for the driver of one directory of images. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Images {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    tools: Tools,
    children: Children,
    table: Shared,
    local: Pool,
    /// For what may last: allocation, syncs, unmounts. It cannot take the places of what is quick.
    slow: Pool,
    unmounters: Unmounters,
    /// Holds the directory's lock as long as one of us lives; tools hold it too.
    _lock: Arc<OwnedFd>,
    /// The same for the directory itself.
    directory: Arc<OwnedFd>,
}

/// A directory that no other driver has any more. Tools of one that was killed may still work in it.
#[derive(Debug)]
pub struct Claim {
    directory: PathBuf,
    itself: Arc<OwnedFd>,
}

impl Claim {
    /// Locks a directory itself, which no tool does: removing the file `lock` in it, and making it again, frees nothing.
    ///
    /// # Errors
    /// `Busy` when another driver has it, and keeps it for a moment.
    pub async fn new(directory: &Path) -> Result<Self, HostError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let itself = rustix::fs::open(directory, flags, Mode::empty()).map_err(failed("lock", directory))?;
        take(&itself, directory, tokio::time::Instant::now() + LEFTOVERS).await?;
        let directory = mount::real(&itself, directory)?;
        Ok(Self { directory, itself: Arc::new(itself) })
    }

    /// Returns its real path: absolute and without symlinks.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Thaws what is mounted from images of this name in it (`Images::thaw_all`): for that no tool need have ended.
    ///
    /// # Errors
    /// When devices or mounts cannot be listed.
    pub async fn thaw_all(&self, image_name: &'static str) -> Result<(), HostError> {
        // No tool is started with it.
        let images = Images::with(Arc::clone(&self.itself), Arc::clone(&self.itself))?;
        images.thaw_all(image_name, &self.directory).await
    }

    /// Locks the directory by the file `lock` in it too, and waits a moment for the tools of a process that was killed: they
    /// hold that lock, and must not write to an image that is repaired meanwhile.
    ///
    /// # Errors
    /// `Busy` when one has not ended.
    pub async fn open(self) -> Result<Images, HostError> {
        let path = self.directory.join("lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock =
            rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(failed("lock", &path))?;
        take(&lock, &self.directory, tokio::time::Instant::now() + LEFTOVERS).await?;
        Images::with(Arc::new(lock), self.itself)
    }
}

impl Images {
    /// `lock` is held by the tools too.
    fn with(lock: Arc<OwnedFd>, directory: Arc<OwnedFd>) -> Result<Self, HostError> {
        Ok(Self {
            inner: Arc::new(Inner {
                tools: Tools::new(Arc::clone(&lock)),
                children: Children::new(),
                table: Shared::open()?,
                local: Pool::new(),
                slow: Pool::new(),
                unmounters: Unmounters::new(),
                _lock: lock,
                directory,
            }),
        })
    }

    /// Returns the mount table of the namespace that the driver runs in: read again only when it changed.
    ///
    /// # Errors
    /// When it cannot be read.
    pub async fn mounts(&self) -> Result<Arc<MountTable>, HostError> {
        self.inner.table.look().await
    }

    /// As `local`, for what somebody would meet later: before it has an effect the work looks whether its call was given up.
    async fn wanted<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: &Path,
        work: impl FnOnce(&Wanted) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let (_waits, wanted) = Waits::new();
        self.local(doing, path, move || work(&wanted)).await
    }

    /// Runs work on local files in the pool.
    async fn local<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: &Path,
        work: impl FnOnce() -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        self.inner.local.run(doing, path, LIMIT, work).await
    }
}

/// Takes a lock, once others let it go.
async fn take(lock: &OwnedFd, directory: &Path, until: tokio::time::Instant) -> Result<(), HostError> {
    loop {
        match rustix::fs::flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            Err(Errno::WOULDBLOCK) => {
                let holder =
                    "another driver, or a program that one started and that has not ended".to_owned();
                return Err(HostError::Busy { path: directory.to_owned(), holder });
            }
            Err(e) => return Err(failed("lock", directory)(e)),
        }
    }
}

/// Takes a path as an error of the host.
fn failed(doing: &'static str, path: &Path) -> impl Fn(Errno) -> HostError {
    let path: PathBuf = path.to_owned();
    move |errno| HostError::Io { doing, path: path.clone(), source: errno.into() }
}
