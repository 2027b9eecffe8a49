//! The table as it was read last, and whether that still holds.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::listed::Listed;
use super::mountinfo::mounts;
use crate::model::MountTable;

/// The mount table of the namespace that it was opened in, read again only when the kernel says that it changed.
#[derive(Debug)]
pub struct Reader {
    /// Its mountinfo: the kernel marks it at each change, whatever it is.
    file: File,
    cached: Arc<MountTable>,
    /// `cached` is not what the kernel has. The kernel reports a change once per descriptor, so it is kept here until read.
    stale: bool,
    /// `None`: this kernel does not tell what changed.
    listed: Option<Listed>,
    readings: u64,
}

impl Reader {
    /// Opens the calling thread's mount table; nothing is read yet.
    ///
    /// # Errors
    /// When `/proc` is not there.
    pub fn open() -> io::Result<Self> {
        let listed = Listed::open().inspect_err(|e| {
            tracing::debug!("mounts are read from mountinfo, because the kernel does not tell of each: {e}");
        });
        Ok(Self { listed: listed.ok(), ..Self::of_mountinfo()? })
    }

    /// As `open`, for a table that is read from mountinfo whatever else the kernel offers.
    ///
    /// # Errors
    /// As `open`.
    pub fn of_mountinfo() -> io::Result<Self> {
        Ok(Self { file: open()?, cached: Arc::default(), stale: true, listed: None, readings: 0 })
    }

    /// Returns whether the kernel tells of each mount.
    pub fn is_told(&self) -> bool {
        self.listed.is_some()
    }

    /// Returns what is readable when the kernel tells of a mount.
    pub(super) fn told(&self) -> Option<BorrowedFd<'_>> {
        self.listed.as_ref().map(AsFd::as_fd)
    }

    /// Returns how often the table was read.
    pub(super) fn readings(&self) -> u64 {
        self.readings
    }

    /// Returns the table if what was read last still holds. Costs one poll.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn current(&mut self) -> io::Result<Option<Arc<MountTable>>> {
        self.ask()?;
        let told = self.listed.as_ref().is_some_and(Listed::is_behind);
        Ok((!self.stale && !told).then(|| Arc::clone(&self.cached)))
    }

    /// Returns the table if that costs a few system calls at most: what was read last still holds, or the kernel has told
    /// which few mounts came or went since.
    ///
    /// # Errors
    /// As `read`.
    pub fn soon(&mut self) -> io::Result<Option<Arc<MountTable>>> {
        if let Some(current) = self.current()? {
            return Ok(Some(current));
        }
        let Some(listed) = &mut self.listed else { return Ok(None) };
        if !listed.read_few(&mut self.cached, self.stale)? {
            return Ok(None);
        }
        self.stale = false;
        self.readings += 1;
        self.current()
    }

    /// Returns the table, after reading it if it changed.
    ///
    /// # Errors
    /// When it cannot be read or understood; the next call tries again.
    pub fn read(&mut self) -> io::Result<Arc<MountTable>> {
        /// A table is read in several pieces. No mount that stays is left out when others come and go between two pieces
        /// (mountinfo: since Linux 5.8), so after a few tries to get a quiet moment the last reading is good enough: the
        /// change after it is reported by the next poll.
        const TRIES: usize = 3;
        for _ in 0..TRIES {
            if let Some(current) = self.current()? {
                return Ok(current);
            }
            match &mut self.listed {
                Some(listed) => {
                    if self.stale && !listed.is_behind() {
                        listed.hear_late()?;
                    }
                    listed.read(&mut self.cached, self.stale)?;
                }
                None => self.cached = Arc::new(self.whole_text()?),
            }
            self.stale = false;
            self.readings += 1;
        }
        Ok(Arc::clone(&self.cached))
    }

    fn whole_text(&mut self) -> io::Result<MountTable> {
        self.file.rewind()?;
        let mut text = Vec::new();
        self.file.read_to_end(&mut text)?;
        Ok(MountTable::new(mounts(&text)?))
    }

    /// Asks once, without waiting, whether the table changed since it was last asked.
    fn ask(&mut self) -> io::Result<()> {
        let Self { file, listed, stale, .. } = self;
        let mut fds = vec![PollFd::new(file, PollFlags::PRI)];
        fds.extend(listed.as_ref().map(|listed| PollFd::from_borrowed_fd(listed.as_fd(), PollFlags::IN)));
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        *stale |= ready.next().unwrap_or(false);
        let told = ready.next().unwrap_or(false);
        if let Some(listed) = listed.as_mut().filter(|_| told) {
            listed.hear()?;
        }
        Ok(())
    }
}

/// Opens the calling thread's mountinfo: a descriptor stays with the namespace that it was opened in.
pub(super) fn open() -> io::Result<File> {
    File::open("/proc/thread-self/mountinfo")
}
