//! Paths below the root, walked by descriptors: no symlink is followed and no mount is crossed on the way.
//!
//! Only the first name (`pods`, `plugins`) may be a mount point: an administrator may give it a file system of its own.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;

use super::files::{temporary_name, write_new};
use super::{Directory, HostError, Removal, Seen, Tree};
use crate::model::RootPath;

/// A directory to be read or to work in.
pub(super) const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A regular file to be read. A pipe or a device in its place must neither block nor take over the terminal.
pub(super) const FILE: OFlags =
    OFlags::RDONLY.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Never above the start, never through a symlink.
pub(super) const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// And never into another mount.
const WITHIN: ResolveFlags = BENEATH.union(ResolveFlags::NO_XDEV);

/// Of directories that nobody asked for by name (kubelet.md 3).
const PARENT_MODE: u32 = 0o750;

/// Opens a path below a directory: no symlink, no other mount, nothing above.
pub(super) fn open_within(at: impl AsFd, path: impl AsRef<Path>, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat2(at, path.as_ref(), flags, Mode::empty(), WITHIN)
}

/// The root directory, held by a descriptor.
#[derive(Debug)]
pub(super) struct Root {
    fd: OwnedFd,
    path: PathBuf,
}

impl Root {
    /// Makes the root directory where it is missing, and finds its real path: absolute, without symlinks, as the mount
    /// table shows it.
    ///
    /// # Errors
    /// `Io`; directories made so far stay.
    pub(super) fn open(given: &Path) -> Result<Self, HostError> {
        let fail = |doing| move |source: io::Error| HostError::Io { doing, path: given.to_owned(), source };
        make_missing(given).map_err(fail("make the root directory"))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(given, flags, Mode::empty())
            .map_err(|e| fail("open the root directory")(e.into()))?;
        let path = descriptor_path(&fd).map_err(fail("find the real path of"))?;
        Ok(Self { fd, path })
    }

    /// Opens a root directory that is there, by its real path.
    ///
    /// # Errors
    /// Also when a symlink is on the way: then it is not the real path.
    pub(super) fn existing(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(
            rustix::fs::CWD,
            path,
            flags,
            Mode::empty(),
            ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens a directory on which something may be mounted, and so is what is mounted there: the last name may cross into
    /// another mount, the way to it does not.
    pub(super) fn open_mounted(&self, path: &RootPath) -> Result<OwnedFd, Errno> {
        let (parent, name) = self.open_parent(path)?;
        rustix::fs::openat2(&parent, name, DIRECTORY, Mode::empty(), BENEATH)
    }

    /// Returns the real path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns device and inode of the root directory: the same until it is another one.
    pub(super) fn identity(&self) -> io::Result<(u64, u64)> {
        let stat = rustix::fs::fstat(&self.fd)?;
        Ok((stat.st_dev, stat.st_ino))
    }

    /// Returns the absolute form of a path.
    pub(super) fn absolute(&self, path: &RootPath) -> PathBuf {
        self.path.join(path.as_path())
    }

    /// Opens what is at a path.
    pub(super) fn open_at(&self, path: &RootPath, flags: OFlags) -> Result<OwnedFd, Errno> {
        let mut names = path.as_path().components();
        // A RootPath has at least one name.
        let first = names.next().map_or(OsStr::new("."), |c| c.as_os_str());
        let rest = names.as_path();
        if rest.as_os_str().is_empty() {
            return rustix::fs::openat2(&self.fd, first, flags, Mode::empty(), BENEATH);
        }
        let top = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let top = rustix::fs::openat2(&self.fd, first, top, Mode::empty(), BENEATH)?;
        open_within(&top, rest, flags)
    }

    /// Opens the directory that holds a path, and returns it with the path's last name.
    pub(super) fn open_parent(&self, path: &RootPath) -> Result<(OwnedFd, OsString), Errno> {
        let name = path.as_path().file_name().unwrap_or_default().to_owned();
        let parent = match path.parent() {
            Some(parent) => self.open_at(&parent, DIRECTORY)?,
            None => rustix::fs::openat(&self.fd, ".", DIRECTORY, Mode::empty())?,
        };
        Ok((parent, name))
    }

    /// Makes an error of what the kernel said, and names the component that is not what it should be.
    pub(super) fn failed(
        &self,
        doing: &'static str,
        path: &RootPath,
        expected: &'static str,
        errno: Errno,
    ) -> HostError {
        let found = match errno {
            Errno::LOOP => "a symlink",
            Errno::XDEV => "a mount point",
            Errno::NOTDIR => "a file",
            _ => return HostError::Io { doing, path: self.absolute(path), source: errno.into() },
        };
        let mut wrong = path.clone();
        let mut expected = expected;
        while let Some(parent) = wrong.parent() {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            if self.open_at(&parent, flags).is_ok() {
                break;
            }
            wrong = parent;
            expected = "a directory";
        }
        HostError::WrongKind { path: self.absolute(&wrong), found, expected }
    }

    /// Makes directories, then files (`Host::create`).
    ///
    /// # Errors
    /// What was made before the failure stays; a file is whole or not there.
    pub(super) fn create(&self, tree: &Tree) -> Result<(), HostError> {
        for Directory { path, mode, exact } in &tree.directories {
            let (fd, new) = self.make_directory(path, *mode)?;
            if *exact && !new {
                self.set_mode(&fd, path, *mode)?;
            }
        }
        tree.files.iter().try_for_each(|(path, content, mode)| self.make_file(path, content, *mode))
    }

    /// Opens a directory, made with this mode if it is missing, its missing parents with 0750. True: it is new.
    fn make_directory(&self, path: &RootPath, mode: u32) -> Result<(OwnedFd, bool), HostError> {
        let failed = |e| self.failed("make the directory", path, "a directory", e);
        match self.open_at(path, DIRECTORY) {
            Ok(fd) => return Ok((fd, false)),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e)),
        }
        let (above, resolve) = match path.parent() {
            Some(parent) => (self.make_directory(&parent, PARENT_MODE)?.0, WITHIN),
            None => (rustix::fs::openat(&self.fd, ".", DIRECTORY, Mode::empty()).map_err(failed)?, BENEATH),
        };
        let name = path.as_path().file_name().unwrap_or_default();
        let new = match rustix::fs::mkdirat(&above, name, Mode::from_raw_mode(mode)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(e) => return Err(failed(e)),
        };
        let fd = rustix::fs::openat2(&above, name, DIRECTORY, Mode::empty(), resolve).map_err(failed)?;
        if new {
            // mkdirat took the umask off.
            rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).map_err(failed)?;
        }
        Ok((fd, new))
    }

    fn set_mode(&self, fd: &OwnedFd, path: &RootPath, mode: u32) -> Result<(), HostError> {
        let failed = |e| self.failed("set the mode of", path, "a directory", e);
        let now = rustix::fs::fstat(fd).map_err(failed)?;
        if now.st_mode & 0o7777 == mode {
            return Ok(());
        }
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode)).map_err(failed)
    }

    fn make_file(&self, path: &RootPath, content: &[u8], mode: u32) -> Result<(), HostError> {
        let failed = |e| self.failed("write", path, "a file", e);
        if let Some(parent) = path.parent() {
            self.make_directory(&parent, PARENT_MODE)?;
        }
        let (parent, name) = self.open_parent(path).map_err(failed)?;
        match open_within(&parent, &name, FILE) {
            Ok(fd) => {
                if let Some(fd) = self.same_content(fd, path, content)? {
                    return self.set_mode(&fd, path, mode);
                }
            }
            Err(Errno::NOENT) => {}
            Err(e) => return Err(failed(e)),
        }
        let temporary = temporary_name(&name);
        let done = write_new(&parent, &temporary, content, mode)
            .and_then(|()| Ok(rustix::fs::renameat(&parent, &temporary, &parent, &name)?));
        done.map_err(|source| {
            // Best effort: `remove` knows the name too.
            let _gone = rustix::fs::unlinkat(&parent, &temporary, AtFlags::empty());
            HostError::Io { doing: "write", path: self.absolute(path), source }
        })
    }

    /// Returns the descriptor if the file has exactly this content.
    fn same_content(
        &self,
        fd: OwnedFd,
        path: &RootPath,
        content: &[u8],
    ) -> Result<Option<OwnedFd>, HostError> {
        let read = |source: io::Error| HostError::Io { doing: "read", path: self.absolute(path), source };
        let stat = rustix::fs::fstat(&fd).map_err(|e| read(e.into()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            other => return Err(self.wrong_kind(path, other, "a file")),
        }
        let mut file = File::from(fd);
        let mut found = Vec::new();
        let limit = u64::try_from(content.len()).unwrap_or(u64::MAX).saturating_add(1);
        (&mut file).take(limit).read_to_end(&mut found).map_err(read)?;
        Ok((found == content).then(|| file.into()))
    }

    pub(super) fn wrong_kind(&self, path: &RootPath, found: FileType, expected: &'static str) -> HostError {
        let found = match found {
            FileType::Directory => "a directory",
            FileType::Symlink => "a symlink",
            FileType::RegularFile => "a file",
            _ => "a device, pipe or socket",
        };
        HostError::WrongKind { path: self.absolute(path), found, expected }
    }

    /// Unlinks known files and removes empty directories (`Host::remove`).
    ///
    /// # Errors
    /// What was removed before the failure stays removed.
    pub(super) fn remove(&self, removal: &Removal) -> Result<(), HostError> {
        removal.files.iter().try_for_each(|path| self.unlink(path))?;
        removal.empty_files.iter().try_for_each(|path| self.unlink_leftover(path))?;
        removal.directories.iter().try_for_each(|path| self.remove_directory(path))?;
        for path in &removal.if_empty {
            match self.remove_directory(path) {
                Ok(()) | Err(HostError::NotEmpty { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    pub(super) fn unlink(&self, path: &RootPath) -> Result<(), HostError> {
        let failed = |e| self.failed("remove", path, "a file", e);
        let (parent, name) = match self.open_parent(path) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        for name in [&temporary_name(&name), &name] {
            // NO_AUTOMOUNT and a stat that follows nothing: what is not a plain file is not ours.
            match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT) {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::RegularFile => {}
                    other => return Err(self.wrong_kind(path, other, "a file")),
                },
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(failed(e)),
            }
            match rustix::fs::unlinkat(&parent, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Of an unlink this means: a mount point.
                Err(Errno::BUSY) => return Err(failed(Errno::XDEV)),
                Err(e) => return Err(failed(e)),
            }
        }
        Ok(())
    }

    /// Unlinks a regular file without content, or a symlink, and the temporary name beside a file; one that is gone is fine.
    fn unlink_leftover(&self, path: &RootPath) -> Result<(), HostError> {
        // The look and the unlink are two calls: nobody but a driver writes here, and none writes to its target file.
        let fine = [Seen::Absent, Seen::EmptyFile, Seen::Symlink];
        if self.look_for(path, &fine, "an empty file or a symlink")? != Seen::Symlink {
            return self.unlink(path);
        }
        let failed = |e| self.failed("remove", path, "a symlink", e);
        let (parent, name) = self.open_parent(path).map_err(failed)?;
        match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(failed(e)),
        }
    }

    /// Removes a directory if it is empty; one that is gone is fine.
    pub(super) fn remove_directory(&self, path: &RootPath) -> Result<(), HostError> {
        let failed = |e| self.failed("remove the directory", path, "an empty directory", e);
        let (parent, name) = match self.open_parent(path) {
            Ok(found) => found,
            Err(Errno::NOENT) => return Ok(()),
            Err(e) => return Err(failed(e)),
        };
        match rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) => Err(HostError::NotEmpty { path: self.absolute(path) }),
            Err(Errno::BUSY) => Err(failed(Errno::XDEV)),
            Err(e) => Err(failed(e)),
        }
    }
}

/// Makes a directory with 0750 and what is missing above it with 0755.
fn make_missing(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    match std::fs::DirBuilder::new().mode(PARENT_MODE).create(path) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        done => done,
    }
}

/// Returns whether a descriptor names the top of a mount.
///
/// # Errors
/// The kernel's.
pub(super) fn is_mount_root(fd: &OwnedFd) -> Result<bool, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(fd, "", flags, StatxFlags::empty())?;
    Ok(found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Returns the path by which the kernel knows an open descriptor.
pub(super) fn descriptor_path(fd: &OwnedFd) -> io::Result<PathBuf> {
    use std::os::fd::AsRawFd;
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Returns the names in a directory, without `.` and `..`, in the kernel's order, with their kind where it says it.
pub(super) fn names(directory: OwnedFd) -> Result<Vec<(OsString, FileType)>, Errno> {
    use std::os::unix::ffi::OsStrExt;
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::new(directory)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => found.push((OsStr::from_bytes(name).to_owned(), entry.file_type())),
        }
    }
    Ok(found)
}
