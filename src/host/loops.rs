//! Loop devices as locks: each holds a block device that a pod sees open, so that the device's number cannot become another
//! volume's meanwhile (kubelet.md 1.11).
//!
//! Ours carry a name by which they are known whatever becomes of the paths: after a restart, and after their mount went.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::HostError;
use super::path::Root;
use super::raw::{self, LoopStatus};
use super::unmount::pause;
use super::unmounter::{Ended, Unmounters};
use crate::model::RootPath;

/// Letting go of a device's last hold writes back what a pod left unwritten.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// How long somebody else's look at a lock is waited for: udev probes every new loop device.
const PROBED: Duration = Duration::from_secs(2);

const CONTROL: &str = "/dev/loop-control";

/// What all our locks' names begin with.
const OURS: &str = "volumed:";

/// What the kernel appends to the path of a file that was unlinked.
const DELETED: &[u8] = b" (deleted)";

/// The name of a lock: which root directory, and which file below it. 57 bytes of the 63 there are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag(String);

impl Tag {
    /// Returns the lock's name of a map file.
    ///
    /// # Errors
    /// When the root directory cannot be looked at.
    pub(super) fn of(root: &Root, map: &RootPath) -> io::Result<Self> {
        Ok(Self(format!("{}{}", Self::root(root)?, hex(map.as_path().as_os_str().as_bytes(), 16))))
    }

    /// Returns what the names of one root's locks begin with. The path alone would be the same in two containers.
    ///
    /// # Errors
    /// As `of`.
    pub(super) fn root(root: &Root) -> io::Result<String> {
        let (device, inode) = root.identity()?;
        let mut whole = root.path().as_os_str().as_bytes().to_vec();
        whole.push(0);
        whole.extend(device.to_be_bytes());
        whole.extend(inode.to_be_bytes());
        Ok(format!("{OURS}{}:", hex(&whole, 8)))
    }

    fn bytes(&self) -> [u8; 64] {
        let mut name = [0; 64];
        // A tag is shorter, and the last byte is the kernel's.
        name.iter_mut().take(63).zip(self.0.bytes()).for_each(|(to, from)| *to = from);
        name
    }
}

/// The first bytes of a hash, in hex.
fn hex(of: &[u8], bytes: usize) -> String {
    use std::fmt::Write as _;
    Sha256::digest(of).iter().take(bytes).fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _written = write!(text, "{byte:02x}");
        text
    })
}

/// A loop device that holds something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Loop {
    number: u32,
    status: LoopStatus,
    /// The backing file as the kernel shows it now: `/` where it was a mount that is gone.
    pub(super) shown: PathBuf,
    /// Its backing file was unlinked.
    pub(super) deleted: bool,
    /// It goes with the last who has it open.
    pub(super) going: bool,
}

impl Loop {
    /// Returns its number.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Returns `st_dev` and `st_ino` of its backing file.
    pub(super) fn file(&self) -> (u64, u64) {
        self.status.file
    }

    /// Returns its device node.
    pub(super) fn node(&self) -> PathBuf {
        PathBuf::from(format!("/dev/loop{}", self.number))
    }

    /// Returns the number of the device that it holds; (0, 0) where it holds a file.
    pub(super) fn device(&self) -> (u32, u32) {
        (rustix::fs::major(self.status.device), rustix::fs::minor(self.status.device))
    }

    /// Returns whether it has this name.
    pub(super) fn is(&self, tag: &Tag) -> bool {
        self.status.name == tag.bytes()
    }

    /// Returns whether it is over all of its backing file, under exactly this name.
    pub(super) fn is_whole_and_named(&self, name: &[u8; 64]) -> bool {
        self.status.whole && self.status.name == *name
    }

    /// Returns its name, as far as it is text.
    pub(super) fn name(&self) -> &str {
        let end = self.status.name.iter().position(|b| *b == 0).unwrap_or(self.status.name.len());
        self.status.name.get(..end).and_then(|name| std::str::from_utf8(name).ok()).unwrap_or_default()
    }

    /// Returns whether a volumed made it, this one or another.
    pub(super) fn is_a_volumed_s(&self) -> bool {
        self.status.name.starts_with(OURS.as_bytes())
    }
}

/// Lists the loop devices whose backing file is shown as one that the caller may mean. Others are not even opened: asking
/// one for its status asks its file, which may be on a file system that hangs. Those that go with the last who has them open
/// (autoclear) are no locks any more, and left out: the last might be this look.
///
/// # Errors
/// When one that may be meant cannot be asked: an incomplete list must not look like a whole one.
pub(super) fn list(meant: impl Fn(&Path) -> bool) -> Result<Vec<Loop>, HostError> {
    list_if(|path, going| !going && meant(path))
}

/// As `list`, but the caller also says whether it means those that go by themselves.
///
/// # Errors
/// As `list`.
pub(super) fn list_if(meant: impl Fn(&Path, bool) -> bool) -> Result<Vec<Loop>, HostError> {
    let blocks = Path::new("/sys/block");
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| HostError::Io { doing: "list the loop devices in", path, source }
    };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(blocks).map_err(failed(blocks))? {
        let name = entry.map_err(failed(blocks))?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("loop")?.parse::<u32>().ok());
        if let Some(number) = number {
            found.extend(one_if(number, &meant)?);
        }
    }
    found.sort_by_key(|one| one.number);
    Ok(found)
}

/// Looks at one loop device, if it holds something and the caller means it.
///
/// # Errors
/// When it cannot be asked.
pub(super) fn one_if(number: u32, meant: impl Fn(&Path, bool) -> bool) -> Result<Option<Loop>, HostError> {
    let directory = PathBuf::from(format!("/sys/block/loop{number}"));
    let shown = shown(number).map_err(|source| HostError::Io {
        doing: "list the loop devices in",
        path: directory,
        source,
    })?;
    let Some(Shown { path: shown, deleted, going }) = shown.filter(|shown| meant(&shown.path, shown.going))
    else {
        return Ok(None);
    };
    let node = PathBuf::from(format!("/dev/loop{number}"));
    match open(number, OFlags::RDONLY).and_then(|device| raw::loop_status(device.as_fd())) {
        Ok(status) => Ok(Some(Loop { number, status, shown, deleted, going })),
        Err(e) if is_free(&e) => Ok(None),
        Err(source) => Err(HostError::Io { doing: "ask the loop device", path: node, source }),
    }
}

/// ENXIO: it holds nothing; ENODEV: it is no more.
fn is_free(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NXIO | Errno::NODEV))
}

/// What the kernel shows of a loop device without asking its file.
struct Shown {
    path: PathBuf,
    deleted: bool,
    going: bool,
}

/// Reads which file a loop device is backed by and whether it goes by itself. `None`: by none.
fn shown(number: u32) -> io::Result<Option<Shown>> {
    let directory = PathBuf::from(format!("/sys/block/loop{number}/loop"));
    let read = |name: &str| match std::fs::read(directory.join(name)) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound || is_free(&e) => Ok(None),
        Err(e) => Err(e),
    };
    let (Some(path), Some(going)) = (read("backing_file")?, read("autoclear")?) else { return Ok(None) };
    let path = path.strip_suffix(b"\n").unwrap_or(&path);
    let unlinked = path.strip_suffix(DELETED);
    let path = unlinked.unwrap_or(path).to_vec();
    Ok(Some(Shown {
        path: std::ffi::OsString::from_vec(path).into(),
        deleted: unlinked.is_some(),
        going: going.starts_with(b"1"),
    }))
}

pub(super) fn open(number: u32, flags: OFlags) -> io::Result<OwnedFd> {
    const LOOP_MAJOR: u32 = 7;
    let path = format!("/dev/loop{number}");
    let device = rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    let stat = rustix::fs::fstat(&device)?;
    let is_loop = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice
        && rustix::fs::major(stat.st_rdev) == LOOP_MAJOR;
    is_loop
        .then_some(device)
        .ok_or_else(|| io::Error::other("it is not a loop device; is /dev the kernel's?"))
}

/// Holds an open block device with a new loop device: all of it, writable where the descriptor is, not going by itself.
///
/// # Errors
/// Nothing is held.
pub(super) fn hold(device: &OwnedFd, tag: &Tag) -> Result<(), HostError> {
    configure(device, tag.bytes(), 0, 0).map(drop)
}

/// Backs a free loop device with all of an open file or device, under a name, and returns it open, with its number.
///
/// # Errors
/// Nothing was configured.
pub(super) fn configure(
    backing: &OwnedFd,
    name: [u8; 64],
    flags: u32,
    block_size: u32,
) -> Result<(OwnedFd, u32), HostError> {
    /// Another process can take a free one before us.
    const TRIES: usize = 64;
    let failed = |path: String| {
        move |source: io::Error| HostError::Io { doing: "take a loop device with", path: path.into(), source }
    };
    let control = rustix::fs::open(CONTROL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).map_err(|e| {
        let hint = format!("{}; load the kernel's loop module: modprobe loop", io::Error::from(e));
        failed(CONTROL.to_owned())(io::Error::new(io::Error::from(e).kind(), hint))
    })?;
    for _ in 0..TRIES {
        let number = raw::loop_free(control.as_fd()).map_err(failed(CONTROL.to_owned()))?;
        let path = format!("/dev/loop{number}");
        let node = match open(number, OFlags::RDWR) {
            Ok(node) => node,
            // Removed again (LOOP_CTL_REMOVE) before it was opened.
            Err(e) if is_free(&e) => continue,
            Err(e) => return Err(failed(path)(e)),
        };
        match raw::loop_configure(node.as_fd(), backing.as_fd(), name, flags, block_size) {
            Ok(()) => return Ok((node, number)),
            Err(e) if Errno::from_io_error(&e) == Some(Errno::BUSY) => {}
            Err(e) => return Err(failed(path)(e)),
        }
    }
    let source = io::Error::other(format!("others took {TRIES} free loop devices before it could"));
    Err(failed(CONTROL.to_owned())(source))
}

/// Lets go of what a loop device holds, and waits until it has.
///
/// # Errors
/// `Busy`: somebody has the loop device itself open; it goes with them. `Deadline`: not known.
pub(super) fn let_go(one: &Loop, unmounters: &Unmounters, limit: Duration) -> Result<(), HostError> {
    const DOING: &str = "let go of the loop device";
    let failed = |source: io::Error| HostError::Io { doing: DOING, path: one.node(), source };
    match unmounters.let_go(&one.node(), &one.status, limit).map_err(failed)? {
        Ended::Done => {}
        // Somebody else let it go.
        Ended::Failed(Errno::NXIO | Errno::NODEV) => return Ok(()),
        Ended::Failed(e) => return Err(failed(e.into())),
        Ended::Silent => {
            return Err(HostError::Deadline { doing: DOING, path: one.node(), seconds: limit.as_secs() });
        }
    }
    // Where somebody else has it open, the kernel lets it go with the last of them.
    let step = Duration::from_millis(10);
    for _ in 0..PROBED.as_millis().div_euclid(step.as_millis()) {
        if !still(one).map_err(failed)? {
            return Ok(());
        }
        pause(step).map_err(failed)?;
    }
    let number = (7, one.number);
    let holder = super::device_users::first(number, None, None).map_err(failed)?;
    Err(HostError::Busy { path: one.node(), holder: holder.unwrap_or_else(|| "another process".to_owned()) })
}

/// Returns whether a loop device that was told to let go still holds what it held. Not by opening it: the last to close it
/// is the one who waits.
fn still(one: &Loop) -> io::Result<bool> {
    Ok(shown(one.number)?.is_some_and(|shown| shown.going && shown.path == one.shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_fits_and_tells_roots_and_maps_apart() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (a, b) = (Root::open(a.path()).unwrap(), Root::open(b.path()).unwrap());
        let map = |name: &str| RootPath::new(format!("plugins/x/dev/{name}")).unwrap();
        let tag = Tag::of(&a, &map("u")).unwrap();
        assert!(tag.0.len() <= 63, "{tag:?}");
        assert_eq!(tag, Tag::of(&a, &map("u")).unwrap());
        assert!(tag.0.starts_with(&Tag::root(&a).unwrap()));
        assert_ne!(tag, Tag::of(&a, &map("v")).unwrap());
        assert_ne!(tag, Tag::of(&b, &map("u")).unwrap());
        assert!(!tag.0.starts_with(&Tag::root(&b).unwrap()));
    }
}
