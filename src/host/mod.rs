//! The kernel, behind one trait: whole operations on the root directory and the mount table. Descriptors never cross it.
//!
//! Paths below the root are `RootPath`s: made of checked names, opened by `openat2` with BENEATH and NO_SYMLINKS.

pub mod images;
pub mod lease;

mod accounts;
mod bind;
mod block;
mod child;
mod detached;
mod device_users;
mod disk;
mod empty_dir;
mod error;
mod exec;
mod files;
mod grow;
mod linux;
mod listen;
mod look;
mod loops;
mod lun;
mod mount_table;
mod nfs;
mod on_disk;
mod options;
mod path;
mod pool;
mod quota;
mod raw;
mod startup;
mod token;
mod uevents;
mod unmount;
mod unmounter;
mod usage;
mod users;
mod wanted;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;

use crate::BoxFuture;
use crate::model::{
    BootId, DiskIdentity, DiskMount, Formatted, FsGrowth, Inspected, Intent, Millis, MountIdentity,
    MountTable, Ownership, RootPath,
};

pub use accounts::{group_number, is_member, set_group};
pub use bind::Bind;
pub use child::as_child;
pub use disk::{DiskError, DiskGrowth, DiskMounted, EncryptedDisks, LuksOpened};
pub use error::HostError;
pub use linux::Linux;
pub use listen::{ListenError, listen};
pub use lun::{LunAttached, LunCause, LunError, Luns};
#[doc(hidden)]
pub use mount_table::{Reader as MountReader, mounts as parse_mountinfo};
pub use nfs::{NfsCause, NfsError, NfsMount};
pub use on_disk::{FoundVolume, Part};
pub use raw::inherited;
pub use startup::{Lock, StartError, is_root, lock_root, lock_state, propagates_to_init};
pub use unmount::Unmount;
pub use usage::{NoUsage, Usage, Usages};

/// Stops the whole process until somebody sends SIGCONT (`VOLUMED_TEST_FAULT`).
#[cfg(debug_assertions)]
pub(crate) fn stop_this_process() {
    // To this thread: sent to the process, another one takes it, and until that one runs this one goes on past its point.
    // It cannot fail: a process may always signal itself. If it did, the test that waits for the stop would say so.
    let _sent = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
}

/// What the rest of volumed asks of the kernel. `Linux` is the real one; the simulation has its own.
pub trait Host: EncryptedDisks + Luns + Send + Sync + Debug {
    /// Returns the boot that this is.
    fn boot(&self) -> BootId;

    /// Returns the mount table: read again only when the kernel says that it changed. One that is still kept then has to be
    /// copied: it is better dropped before something else is awaited.
    fn mounts(&self) -> BoxFuture<'_, Result<Arc<MountTable>, HostError>>;

    /// Waits until the mount table may have changed since the last call of this method. Cancel-safe: no change is lost.
    fn mounts_changed(&self) -> BoxFuture<'_, ()>;

    /// Waits until the kernel says that a block device came, went or has another size. Cancel-safe: nothing is lost.
    fn disks_changed(&self) -> BoxFuture<'_, DiskNews>;

    /// Makes directories and then files, each left as it is where it is already right. A file appears whole or not at all.
    /// Nothing is synced: these are made again from the record.
    fn create(&self, tree: Tree) -> BoxFuture<'_, Result<(), HostError>>;

    /// Says what is at a path, without following it or crossing a mount. Not to be asked where something is mounted.
    fn look(&self, path: RootPath) -> BoxFuture<'_, Result<Seen, HostError>>;

    /// Unlinks known files and removes empty directories, none of them across a mount; what is gone already is fine.
    fn remove(&self, removal: Removal) -> BoxFuture<'_, Result<(), HostError>>;

    /// Unmounts a path below the root if exactly this mount is there, alone, with nothing below it. Never lazily.
    fn unmount(
        &self,
        path: RootPath,
        expected: MountIdentity,
        how: Unmount,
    ) -> BoxFuture<'_, Result<(), HostError>>;

    /// Shows a directory of the host on an empty one below the root: its own mount alone, not those below it. Where it is shown
    /// already nothing is done. The way to it may hang: then this ends at its deadline.
    ///
    /// Errors: `WrongKind`: it is no directory; `WrongMount`: something else is mounted there; `Io`.
    fn bind(&self, bind: Bind) -> BoxFuture<'_, Result<(), HostError>>;

    /// Shows an export of an NFS server on an empty directory below the root, by mount.nfs in a child process: with its options
    /// from the first moment on, or not at all.
    ///
    /// Errors: `Nfs`; nothing is mounted. `WrongMount`, `NotEmpty`: something is there. After any other error it is not known.
    fn mount_nfs(&self, mount: NfsMount) -> BoxFuture<'_, Result<(), HostError>>;

    /// Removes an emptyDir that volumed made, content and all, after a look that found no mount at or below it in any mount
    /// namespace and no open file or working directory below it (design rule 1). Otherwise nothing is deleted: `Busy`.
    fn remove_empty_dir(&self, path: RootPath) -> BoxFuture<'_, Result<(), HostError>>;

    /// Shows a published block device to a pod as a kubelet does (kubelet.md 1.11): binds the device on `map`, holds it with a
    /// loop device so that its number cannot be another device's while it is shown, and links to it. What is right already is
    /// left as it is.
    fn map_block(&self, map: BlockMap) -> BoxFuture<'_, Result<(), HostError>>;

    /// Undoes `map_block`: lets the lock go, unlinks, unmounts and removes the file. What is gone already is fine. `Busy` when
    /// a process still has the device open, unless nobody counts: then nothing was changed.
    fn unmap_block(&self, map: BlockMap, users: DeviceUsers) -> BoxFuture<'_, Result<(), HostError>>;

    /// Lets go of the locks of block volumes below this root whose map is neither known nor bound any more: what a crash left
    /// between lock and record. Returns what was let go, in words.
    fn collect_locks(&self, known: BTreeSet<RootPath>) -> BoxFuture<'_, Result<Vec<String>, HostError>>;

    /// Gives everything in a mounted volume to a group (kubelet.md 6.1), in a child process. `progress` hears how many files
    /// were done. Dropping the future ends the child; the root directory comes last, so that it is done again.
    fn set_ownership(
        &self,
        path: RootPath,
        ownership: Ownership,
        progress: Progress,
    ) -> BoxFuture<'_, Result<(), HostError>>;

    /// Finds who still has a staged volume, before it is unstaged (design rule 4): other mounts of it that would not go with
    /// ours, in any mount namespace, and processes with a file on it, up to ten, in order. Where the superblock is this
    /// volume's alone (all of a block device) a file counts wherever the device is mounted, else only on mounts of this
    /// volume. To be asked after the last unpublish; nothing mounted at the path means nobody.
    ///
    /// The driver (`driver`: its pid) and what it started do not count, nor does volumed. No file system is asked, so one
    /// that is dead or hangs does not hold this up; whether its holders count is the caller's to say. Who cannot be looked
    /// at is not found: a process that not even root may trace, a mount namespace without a process, a file open on a mount
    /// that was unmounted lazily. Those who ask before a look begins share it.
    ///
    /// Errors: `Io` where nothing can be looked at at all, `Deadline`.
    fn holders(&self, path: RootPath, driver: Option<u32>) -> BoxFuture<'_, Result<Vec<Holder>, HostError>>;

    /// Asks the file systems at these mount points whether they still answer, in one child for all; returns those that are
    /// dead (ENOTCONN, ESTALE, EIO of a FUSE server that ended), with the reason. One that hangs is not dead. One on a disk is
    /// dead when the kernel has that disk no more.
    fn dead_mounts(
        &self,
        points: Vec<PathBuf>,
    ) -> BoxFuture<'_, Result<BTreeMap<PathBuf, String>, HostError>>;

    /// Asks file systems how full they are, in one child for all. What hangs or fails has its reason in place of figures.
    fn usage(&self, paths: Vec<PathBuf>) -> BoxFuture<'_, Result<Usages, HostError>>;

    /// Reads a small file that the configuration names; returns its text and when it was changed, ms since the epoch.
    fn read_token(&self, file: PathBuf) -> BoxFuture<'_, Result<(String, Millis), HostError>>;

    /// Looks at a block device: which disk it is, and what is on it. Nothing is written, and nobody is kept from it.
    ///
    /// Errors: `Disk`. What cannot be read or understood is no error but `Content::Unclear`.
    fn inspect_disk(&self, device: PathBuf) -> BoxFuture<'_, Result<Inspected, HostError>>;

    /// Makes the file system of an intent that is in the record, synced, on a device that nobody has, if that is blank or has
    /// only what an mkfs with this intent left (design 6, rule 2). Dropped, mkfs is killed. May be called again with the same
    /// intent, then `begun`.
    ///
    /// Errors: mkfs was started, or that is not known (its child died or was given up), if `HostError::may_have_written`; else
    /// nothing was written. A future that was dropped tells nothing: as if it had been started.
    fn format_disk(&self, device: PathBuf, intent: Intent) -> BoxFuture<'_, Result<Formatted, HostError>>;

    /// Checks the recorded file system of the recorded disk (kubelet.md 4.11) and mounts it on a directory where nothing is
    /// mounted yet: read-only and with its options from the first moment on. What is mounted there already is left.
    ///
    /// Errors: `Disk`; nothing is mounted. After any other error it is not known.
    fn mount_disk(
        &self,
        device: PathBuf,
        mount: DiskMount,
        at: RootPath,
    ) -> BoxFuture<'_, Result<DiskMounted, HostError>>;

    /// Shows the recorded disk raw: binds its node on a file below the root, which is made, so that the path is that very disk
    /// whatever becomes of its name. Where it is shown already nothing is done.
    ///
    /// Errors: `Disk`; after any other error it is not known.
    fn show_disk(
        &self,
        device: PathBuf,
        identity: DiskIdentity,
        at: RootPath,
    ) -> BoxFuture<'_, Result<(), HostError>>;

    /// Lets a mounted file system take all of its device, where it does not (kubelet.md 4.13); its size is read back.
    ///
    /// Errors: `Disk`. It can be done again.
    fn grow_disk(&self, growth: DiskGrowth) -> BoxFuture<'_, Result<FsGrowth, HostError>>;

    /// Lists the volumes that lie on disk below the root, ours and others', without touching what is mounted.
    fn volumes_on_disk(&self) -> BoxFuture<'_, Result<Vec<FoundVolume>, HostError>>;
}

/// What the kernel said of block devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum DiskNews {
    /// Something was done with a device-mapper device, perhaps by volumed: it may have another size.
    Perhaps,
    /// One came, went, or has another size.
    Changed,
}

/// What `Host::create` makes, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tree {
    /// With the mode of those that are new (umask-proof); missing parents get 0750. An existing one keeps its mode unless
    /// `exact`.
    pub directories: Vec<Directory>,
    /// Path, content, mode. Replaced by rename when the content differs.
    pub files: Vec<(RootPath, Vec<u8>, u32)>,
}

/// A directory to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Where.
    pub path: RootPath,
    /// Permission bits.
    pub mode: u32,
    /// Set the mode of an existing one too.
    pub exact: bool,
}

/// What `Host::remove` removes, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removal {
    /// Our own known files, and the temporary names `create` gives them; a directory of this name is an error.
    pub files: Vec<RootPath>,
    /// Files that a driver or a kubelet made and that go only without a byte in them (the target of a block volume); one with
    /// content, or anything else of this name, is an error.
    pub empty_files: Vec<RootPath>,
    /// Directories that must go; one that is not empty is `NotEmpty`.
    pub directories: Vec<RootPath>,
    /// Directories that go if they are empty by then.
    pub if_empty: Vec<RootPath>,
}

/// A block device and where it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlockMap {
    /// Where the driver published it: a device node, a file on which one is bound, or a symlink to one.
    pub published: RootPath,
    /// The file on which it is bound for a pod.
    pub map: RootPath,
    /// The link in the pod's directory.
    pub link: RootPath,
}

/// Whether somebody who has a block device open keeps it from being taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceUsers {
    /// Everybody but the driver (its pid) and what it started, which may serve the device.
    Count {
        /// `None` where it is not known.
        driver: Option<u32>,
    },
    /// Nobody: the operator said so.
    Ignored,
}

/// Somebody who has a volume.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Holder {
    /// A process, in our pid namespace.
    pub pid: u32,
    /// Its command.
    pub command: String,
    /// Its systemd unit, by its control group; `None` outside one.
    pub unit: Option<String>,
    /// How: "has /x/y open", "works in /x", "has a copy of the mount at /z in another mount namespace". volumed itself "is in
    /// the mount namespace where it is also mounted at /z". Paths are those of the process's namespace.
    pub how: String,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pid, command, unit, how } = self;
        write!(f, "pid {pid} ({command}")?;
        if let Some(unit) = unit {
            write!(f, ", {unit}")?;
        }
        write!(f, ") {how}")
    }
}

/// Hears how far a long operation got, in words for people. Cheap to clone; telling never waits.
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(String) + Send + Sync>);

impl Progress {
    /// Takes what is done with each word.
    pub fn new(tell: impl Fn(String) + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    /// Tells how far it got.
    pub fn tell(&self, how_far: impl Into<String>) {
        (self.0)(how_far.into());
    }
}

impl Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").finish_non_exhaustive()
    }
}

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Nothing.
    Absent,
    /// An empty directory.
    EmptyDirectory,
    /// A directory with something in it.
    Directory,
    /// A regular file without a byte.
    EmptyFile,
    /// A block or character device.
    Device,
    /// A symlink, whatever it leads to.
    Symlink,
    /// A socket, a pipe, or a file with content.
    Other,
}

impl Seen {
    /// Returns what it is, for errors.
    fn words(self) -> &'static str {
        match self {
            Self::Absent => "nothing",
            Self::EmptyDirectory | Self::Directory => "a directory",
            Self::EmptyFile => "a file",
            Self::Device => "a device",
            Self::Symlink => "a symlink",
            Self::Other => "a file with content, a pipe or a socket",
        }
    }
}
