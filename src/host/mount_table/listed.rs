//! The table of a kernel that tells which mounts came and went: what is known is kept, and only those are asked for.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use super::changes::{Changes, News};
use super::statmount;
use crate::model::{MountTable, MountsAt};

/// An attribute that changes just when a mount comes or goes leaves no trace of its own. So at a change all is asked for again
/// after this time.
const WHOLE_AFTER: Duration = Duration::from_secs(60);

/// So many mounts are asked for in a tenth of a millisecond (harness.md 7).
const FEW: usize = 32;

/// A table of so many paths is copied in a tenth of a millisecond.
const SMALL: usize = 4000;

/// Where the mounts are, by the ids that the kernel gives only once.
#[derive(Debug)]
pub(super) struct Listed {
    changes: Changes,
    news: News,
    points: BTreeMap<u64, PathBuf>,
    /// Mounts that came so shortly before all were asked for that the word of their coming is still to be heard.
    expected: BTreeSet<u64>,
    /// When all were asked for.
    whole: Option<Instant>,
}

impl Listed {
    /// Begins with the calling thread's namespace; nothing is read yet.
    ///
    /// # Errors
    /// When the kernel does not tell all that is needed, or not us.
    pub(super) fn open() -> io::Result<Self> {
        let changes = Changes::open()?;
        let first = statmount::all()?.first().copied().map(statmount::mount);
        first.transpose()?.flatten().ok_or_else(|| io::Error::other("no mount is to be seen"))?;
        Ok(Self {
            changes,
            news: News::default(),
            points: BTreeMap::new(),
            expected: BTreeSet::new(),
            whole: None,
        })
    }

    /// Takes what the kernel has to tell.
    ///
    /// # Errors
    /// When it is not understood; then all will be asked for.
    pub(super) fn hear(&mut self) -> io::Result<()> {
        self.changes.take(&mut self.news).inspect_err(|_error| self.news.lost = true)
    }

    /// Takes what the kernel has to tell of a change that it has marked, on a thread that may wait: only when the change is made
    /// it tells, so that who asks between the two would have to ask for all. Where it was an attribute, nothing comes.
    ///
    /// # Errors
    /// As `hear`.
    pub(super) fn hear_late(&mut self) -> io::Result<()> {
        /// The word comes within microseconds, but from a thread that may have to wait for this processor.
        const TRIES: usize = 4;
        for _ in 0..TRIES {
            statmount::wait_for_changes()?;
            self.hear()?;
            if self.is_behind() {
                break;
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// Returns whether something was heard that was not read yet.
    pub(super) fn is_behind(&self) -> bool {
        self.whole.is_none() || self.news != News::default()
    }

    /// Lets `table`, which was read last, be what is there now. `marked`: it changed in some way; where nothing was heard of a
    /// mount that came or went, it was one's attributes.
    ///
    /// # Errors
    /// The kernel's. `table` may have changed in part then, and is nobody's until the next call, which asks for all.
    pub(super) fn read(&mut self, table: &mut Arc<MountTable>, marked: bool) -> io::Result<()> {
        if self.is_followed(marked) && self.follow_news(table)? {
            return Ok(());
        }
        self.read_all(table)
    }

    /// As `read`, where a few system calls are enough. False: they are not, and `table` is nobody's until `read`.
    ///
    /// # Errors
    /// As `read`.
    pub(super) fn read_few(&mut self, table: &mut Arc<MountTable>, marked: bool) -> io::Result<bool> {
        let is_little = self.news.mounts.len() <= FEW && table.count() <= SMALL;
        Ok(is_little && self.is_followed(marked) && self.follow_news(table)?)
    }

    /// Whether what changed is known well enough to ask for that alone.
    fn is_followed(&self, marked: bool) -> bool {
        let fresh = self.whole.is_some_and(|whole| whole.elapsed() < WHOLE_AFTER);
        fresh && !self.news.lost && !(marked && self.news.mounts.is_empty())
    }

    /// Asks for what was told of. False: more than that changed; all is to be asked for.
    fn follow_news(&mut self, table: &mut Arc<MountTable>) -> io::Result<bool> {
        let news = std::mem::take(&mut self.news);
        // Whatever stops it leaves it without a time, so that all is asked for.
        let whole = self.whole.take();
        // Copied only where somebody still has it.
        let followed = Arc::make_mut(table);
        for unique in &news.mounts {
            let is_followed = self.follow(*unique, !news.went.contains(unique), followed);
            if !matches!(is_followed, Ok(true)) {
                self.news = news;
                return is_followed;
            }
        }
        self.whole = whole;
        Ok(true)
    }

    /// Lets the table have a mount that came, or not have one that went. False: others may have changed with it, of which
    /// nothing is told. With a mount that moves go those below it, and where several are at one path, the kernel puts new ones
    /// between the old. `came`: it did nothing else.
    fn follow(&mut self, unique: u64, came: bool, table: &mut MountTable) -> io::Result<bool> {
        match (self.points.remove(&unique), statmount::mount(unique)?) {
            (None, None) => {}
            // It was in the last listing of all already, which came before word of it.
            (Some(point), Some(mount))
                if self.expected.remove(&unique)
                    && came
                    && matches!(table.at(&point), MountsAt::One(known) if *known == mount) =>
            {
                self.points.insert(unique, point);
            }
            (None, Some(mount)) if matches!(table.at(&mount.point), MountsAt::None) => {
                self.points.insert(unique, mount.point.clone());
                table.set(&mount.point.clone(), [mount]);
            }
            (Some(point), None) if matches!(table.at(&point), MountsAt::One(_)) => table.set(&point, []),
            (None | Some(_), Some(_)) | (Some(_), None) => return Ok(false),
        }
        Ok(true)
    }

    fn read_all(&mut self, table: &mut Arc<MountTable>) -> io::Result<()> {
        let heard = std::mem::take(&mut self.news).mounts;
        let before = std::mem::take(&mut self.points);
        self.whole = None;
        let mut mounts = Vec::new();
        for unique in statmount::all()? {
            if let Some(mount) = statmount::mount(unique)? {
                self.points.insert(unique, mount.point.clone());
                mounts.push(mount);
            }
        }
        let is_new = |unique: &&u64| !before.contains_key(unique) && !heard.contains(unique);
        // The first listing has all that were there before anything could be heard.
        self.expected = if before.is_empty() {
            BTreeSet::new()
        } else {
            self.points.keys().filter(is_new).copied().collect()
        };
        self.whole = Some(Instant::now());
        *table = Arc::new(MountTable::new(mounts));
        Ok(())
    }
}

impl AsFd for Listed {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }
}
