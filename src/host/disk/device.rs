//! A device, open, locked and known, for as long as one operation on it lasts.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{FileType, FlockOperation, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::super::exec::Tools;
use super::super::path::descriptor_path;
use super::super::{device_users, loops};
use super::blkid::{self, Said};
use super::error::{DiskError, failed};
use super::identity::Sysfs;
use super::judge;
use super::places::{self, Ends, Look};
use crate::model::{Content, DiskIdentity, FsUuid, Inspected};

/// How long others are waited for: udev has its lock while it probes.
const LOCK: Duration = Duration::from_secs(20);

/// How long somebody may have it open who looks only.
const PASSING: Duration = Duration::from_secs(1);

/// What is going to be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// Nothing is written: others may look too, udev among them.
    Read,
    /// Nobody else may have the lock; udev looks again when the device is closed.
    Write,
}

/// What a look saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Looked {
    pub(super) content: Content,
    /// The UUID of a LUKS header.
    pub(super) luks: Option<FsUuid>,
}

/// Both opinions of what is on a device.
#[derive(Debug)]
pub(in crate::host) struct Opinions {
    number: (u32, u32),
    said: Said,
    look: Look,
}

impl Opinions {
    /// Returns whether there may be something to be mounted: only a mount takes what a look found.
    fn is_for_a_mount(&self) -> bool {
        matches!(self.said, Said::Found(_))
    }

    pub(super) fn content(&self) -> Content {
        judge::content(&self.said, &self.look)
    }
}

/// A device, open and locked.
#[derive(Debug)]
pub(super) struct Device {
    /// As it was given: for people.
    pub(super) path: PathBuf,
    pub(super) fd: Arc<OwnedFd>,
    pub(super) number: (u32, u32),
    pub(super) bytes: u64,
    pub(super) sysfs: Sysfs,
    pub(super) tools: Tools,
    /// Who waits is told how long what comes now may last.
    pub(super) tell: fn(Duration),
}

impl Device {
    /// Opens a device and takes the lock that udev honours: on the disk, also of a partition. As long as it is open, its number
    /// is no other device's, and as long as a tool runs, nobody else gets the lock.
    ///
    /// # Errors
    /// `NoDevice`, `InUse` when somebody else keeps the lock, `Failed`.
    pub(super) async fn open(
        path: &Path,
        to: To,
        directories: Arc<[PathBuf]>,
        tell: fn(Duration),
    ) -> Result<Self, DiskError> {
        let missing = |found: String| DiskError::NoDevice { path: path.to_owned(), found };
        // Named before it is opened: opening a pipe or a tape would have an effect.
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let how = ResolveFlags::NO_MAGICLINKS;
        let named =
            rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), how).map_err(|e| match e {
                Errno::NOENT | Errno::NOTDIR => missing("missing".to_owned()),
                e => failed("find the device", path)(e),
            })?;
        let stat = rustix::fs::fstat(&named).map_err(failed("look at", path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::BlockDevice => {}
            FileType::Directory => return Err(missing("a directory".to_owned())),
            FileType::RegularFile => return Err(missing("a file".to_owned())),
            _ => return Err(missing("something else".to_owned())),
        }
        let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        let fd = reopen(&named, to).map_err(|e| match e {
            Errno::NXIO | Errno::NODEV | Errno::NOMEDIUM => {
                missing("there without a disk behind it".to_owned())
            }
            Errno::ROFS | Errno::ACCESS if to == To::Write => DiskError::ReadOnly { path: path.to_owned() },
            e => failed("open", path)(e),
        })?;
        let fd = Arc::new(fd);
        let sysfs = Sysfs::of(number).map_err(failed("find in /sys/dev/block", path))?;
        let mut held = vec![Arc::clone(&fd)];
        if let Some((major, minor)) = sysfs.disk_number().map_err(failed("find the disk of", path))? {
            let disk = disk_node(&sysfs, (major, minor)).map_err(failed("open the disk of", path))?;
            held.push(Arc::new(disk));
        }
        for fd in &held {
            lock(fd, to, path, number).await?;
        }
        let bytes = size(&fd).map_err(failed("find the size of", path))?;
        if bytes == 0 {
            return Err(missing("there without a byte: nothing is behind it".to_owned()));
        }
        let tools = Tools::holding(held, directories);
        Ok(Self { path: path.to_owned(), fd, number, bytes, sysfs, tools, tell })
    }

    /// Tells who waits how long what comes now may last.
    pub(super) fn lasts(&self, limit: Duration) {
        (self.tell)(limit);
    }

    /// Returns the path that names this very device in our tools, whatever its node is by now.
    pub(super) fn in_tools(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Returns the node that was opened, as the kernel names it: what a mount shows as its source.
    ///
    /// # Errors
    /// When it cannot be found out.
    pub(super) fn node(&self) -> Result<PathBuf, DiskError> {
        descriptor_path(&self.fd).map_err(failed("find the node of", &self.path))
    }

    /// Reads which disk it is.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub(super) fn identity(&self) -> Result<DiskIdentity, DiskError> {
        self.sysfs.identity(&self.fd).map_err(failed("find out which disk it is:", &self.path))
    }

    /// Refuses any disk but the recorded one.
    ///
    /// # Errors
    /// `OtherDisk`, with both.
    pub(super) fn must_be(&self, recorded: &DiskIdentity) -> Result<(), DiskError> {
        let found = self.identity()?;
        if found.is_the_recorded(recorded) {
            return Ok(());
        }
        Err(DiskError::OtherDisk { path: self.path.clone(), recorded: recorded.clone(), found })
    }

    /// Looks what is on it, with both opinions.
    ///
    /// # Errors
    /// When blkid is missing or the device cannot be read: then nothing is known.
    pub(super) async fn content(&self) -> Result<Content, DiskError> {
        Ok(self.look().await?.content)
    }

    /// As `content`, and also whose header it is where the device is encrypted.
    ///
    /// # Errors
    /// As `content`.
    pub(super) async fn look(&self) -> Result<Looked, DiskError> {
        let opinions = self.opinions().await?;
        Ok(Looked { content: opinions.content(), luks: judge::luks(&opinions.said) })
    }

    /// Our own look comes last: whoever formats looks as late as can be. What is fetched before is the kernel's cache, which is as
    /// new as what anybody of this host writes.
    async fn opinions(&self) -> Result<Opinions, DiskError> {
        places::fetch(&self.fd, self.bytes);
        let said = blkid::ask(&self.tools, &self.path, &self.in_tools()).await?;
        // What blkid finds something on is not blank.
        let ends = if said == Said::Nothing { Ends::Whole } else { Ends::Outermost };
        let look = places::look(&self.fd, self.bytes, ends).map_err(failed("read", &self.path))?;
        Ok(Opinions { number: self.number, said, look })
    }

    /// As `opinions`, but blkid is not asked again about what it was asked a moment before, as long as no byte has changed of what
    /// is looked at. For who formats nothing.
    ///
    /// # Errors
    /// As `content`.
    pub(super) async fn opinions_after(&self, before: Option<Opinions>) -> Result<Opinions, DiskError> {
        if let Some(before) = before
            && before.number == self.number
            && before.look.bytes() == self.bytes
            && before.look.is_still(&self.fd).map_err(failed("read", &self.path))?
        {
            return Ok(before);
        }
        self.opinions().await
    }

    /// Looks at all of it.
    ///
    /// # Errors
    /// As `content` and `identity`; of what cannot be read the content is `Unclear`.
    pub(super) async fn inspect(&self) -> Result<(Inspected, Option<Opinions>), DiskError> {
        let (content, opinions) = match self.opinions().await {
            Ok(opinions) => (opinions.content(), Some(opinions).filter(Opinions::is_for_a_mount)),
            Err(DiskError::Failed { doing, path, why }) => {
                (Content::Unclear { why: format!("cannot {doing} {}: {why}", path.display()) }, None)
            }
            Err(other) => return Err(other),
        };
        let read_only = self.sysfs.read_only().map_err(failed("look at", &self.path))?;
        let bytes = self.bytes;
        Ok((Inspected { identity: self.identity()?, content, bytes, read_only }, opinions))
    }

    /// Refuses a device that anybody has: mounted, part of another device, behind a loop device, or open in a process.
    ///
    /// # Errors
    /// `InUse`, with who; `Unseen` where a process cannot be looked at.
    pub(super) async fn must_be_free(&self) -> Result<(), DiskError> {
        let in_use = |holder: String| DiskError::InUse { path: self.path.clone(), holder };
        if let Some(holder) = self.sysfs.built_on().map_err(failed("look who has", &self.path))? {
            return Err(in_use(holder));
        }
        // The kernel's own claims: mounts, swap, device mapper, RAID.
        match reopen_exclusively(&self.fd) {
            Ok(claimed) => drop(claimed),
            Err(Errno::BUSY) => {
                let holder = device_users::first(self.number, None, None).ok().flatten();
                return Err(in_use(
                    holder.unwrap_or_else(|| "the kernel (a mount, swap, RAID, a mapping)".to_owned()),
                ));
            }
            Err(e) => return Err(failed("test who has", &self.path)(e)),
        }
        // A loop device claims nothing.
        let all = loops::list_if(|_shown, _going| true)?;
        if let Some(one) = all.iter().find(|one| one.device() == self.number) {
            return Err(in_use(format!("the loop device {}", one.node().display())));
        }
        // udev opens a device before it finds that it is locked.
        let until = tokio::time::Instant::now() + PASSING;
        loop {
            let seen = device_users::look(self.number).map_err(failed("look who has", &self.path))?;
            let error = match (seen.holder, seen.unseen) {
                (None, None) => return Ok(()),
                (Some(holder), _) => in_use(holder),
                (None, Some(what)) => DiskError::Unseen { path: self.path.clone(), what },
            };
            if tokio::time::Instant::now() > until {
                return Err(error);
            }
            tokio::time::sleep(PASSING / 10).await;
        }
    }
}

/// Opens a device that was named.
fn reopen(named: &OwnedFd, to: To) -> Result<OwnedFd, Errno> {
    let mode = match to {
        To::Read => OFlags::RDONLY,
        To::Write => OFlags::RDWR,
    };
    rustix::fs::open(magic(named), mode | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
}

fn reopen_exclusively(fd: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::fs::open(magic(fd), OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC, Mode::empty())
}

fn magic(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

/// Opens the node of a partition's disk, for its lock alone: when one that was open for writing is closed, udev has the kernel
/// read the partition table again.
fn disk_node(partition: &Sysfs, number: (u32, u32)) -> Result<OwnedFd, std::io::Error> {
    let name = Sysfs::of(number)?.name()?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::open(Path::new("/dev").join(&name), flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&node)?;
    let found = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    if FileType::from_raw_mode(stat.st_mode) != FileType::BlockDevice || found != number {
        return Err(std::io::Error::other(format!("/dev/{name} is not the disk of {}", partition.name()?)));
    }
    Ok(reopen(&node, To::Read)?)
}

async fn lock(fd: &OwnedFd, to: To, path: &Path, number: (u32, u32)) -> Result<(), DiskError> {
    let how = match to {
        To::Read => FlockOperation::NonBlockingLockShared,
        To::Write => FlockOperation::NonBlockingLockExclusive,
    };
    let until = tokio::time::Instant::now() + LOCK;
    loop {
        match rustix::fs::flock(fd, how) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if tokio::time::Instant::now() < until => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            Err(Errno::WOULDBLOCK) => {
                // A repair that outlived an earlier volumed, for one.
                let holder = device_users::first(number, None, None).ok().flatten();
                let holder = holder.unwrap_or_else(|| "a program that has locked its disk".to_owned());
                let holder = format!("{holder}; it has locked it (flock)");
                return Err(DiskError::InUse { path: path.to_owned(), holder });
            }
            Err(e) => return Err(failed("lock", path)(e)),
        }
    }
}

/// Returns the size of a device in bytes: also the sizes of what can be grown are read so.
pub(super) fn size(fd: &OwnedFd) -> Result<u64, Errno> {
    rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))
}
