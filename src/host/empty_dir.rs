//! The one recursive deletion there is: the content of an emptyDir that volumed made (design rule 1), and, by the same way, of a
//! directory volume of the bundled driver (`remove_content`).
//!
//! First a look that must find nobody; then removal through descriptors that can neither follow a symlink nor enter a
//! mount. One that appears meanwhile stops it.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use tokio::time::Instant;

use super::HostError;
use super::path::{DIRECTORY, Root, open_within};
use super::users::{InUse, Place};
use crate::model::RootPath;

const DOING: &str = "remove the emptyDir";

/// How often a directory is listed again because others put something into it.
const PASSES: usize = 8;

/// Why the kernel lets root not remove something, and what can be done.
const IMMUTABLE: &str =
    "something in it is immutable or append-only: find it with lsattr -Ra, and let it go with chattr -i -a";

/// Removes an emptyDir, content and all (`Host::remove_empty_dir`).
///
/// # Errors
/// `Busy`: nothing was deleted, unless somebody came in between look and removal: then some of the content is gone.
/// `Deadline`: some of the content is gone, the next try goes on.
pub(super) fn remove(root: &Root, path: &RootPath, until: Instant) -> Result<(), HostError> {
    let absolute = root.absolute(path);
    let failed = |errno| match errno {
        // A mount on it is a user of it.
        Errno::XDEV => busy(&absolute, "a mount".to_owned()),
        other => root.failed(DOING, path, "a directory", other),
    };
    let (parent, name) = match root.open_parent(path) {
        Ok(found) => found,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let top = match open_within(&parent, &name, DIRECTORY) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let removal = Removal { doing: DOING, shown: &absolute, until, limit: super::linux::EMPTY_DIR_LIMIT };
    removal.empty_unused(top)?;
    match rustix::fs::unlinkat(&parent, &name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(removal.stopped(e)),
    }
}

/// Looks for whoever uses a directory or anything below it.
///
/// # Errors
/// `Busy`
pub(super) fn check_unused(directory: &OwnedFd, path: &Path) -> Result<(), HostError> {
    place_of(directory, path)?.check_unused(directory).map_err(|InUse(holder)| busy(path, holder))
}

/// Looks for whoever can write to a directory or to anything below it, but for what is staged at a path.
///
/// # Errors
/// `Busy`
pub(super) fn check_not_written(
    directory: &OwnedFd,
    path: &Path,
    staged: Option<&Path>,
) -> Result<(), HostError> {
    place_of(directory, path)?
        .check_not_written(directory, staged)
        .map_err(|InUse(holder)| busy(path, holder))
}

fn place_of(directory: &OwnedFd, path: &Path) -> Result<Place, HostError> {
    let doing = "find the place of";
    Place::of(directory, path).map_err(|source| HostError::Io { doing, path: path.to_owned(), source })
}

/// Removes all that is in a directory of ours, which stays.
///
/// # Errors
/// As `remove`.
pub(super) fn remove_content(
    directory: OwnedFd,
    path: &Path,
    doing: &'static str,
    limit: Duration,
) -> Result<(), HostError> {
    Removal { doing, shown: path, until: Instant::now() + limit, limit }.empty_unused(directory)
}

fn busy(path: &Path, holder: String) -> HostError {
    HostError::Busy { path: path.to_owned(), holder }
}

/// A removal under way.
struct Removal<'a> {
    doing: &'static str,
    shown: &'a Path,
    until: Instant,
    /// The time that it had.
    limit: Duration,
}

/// A directory that is being emptied, above the one at work. Not held open: a tree may be deeper than descriptors last.
struct Above {
    /// Of the directory itself, to know it again on the way back.
    id: (u64, u64),
    /// The name in it of the directory below.
    below: OsString,
}

impl Removal<'_> {
    /// Deletes everything below a directory that nobody uses.
    fn empty_unused(&self, top: OwnedFd) -> Result<(), HostError> {
        check_unused(&top, self.shown)?;
        self.empty(top)
    }

    /// Deletes everything below a directory, depth first.
    fn empty(&self, top: OwnedFd) -> Result<(), HostError> {
        let mut above: Vec<Above> = Vec::new();
        let mut here = top;
        loop {
            match self.clear(&here)? {
                Some((below, name)) => {
                    above.push(Above { id: self.id(&here)?, below: name });
                    here = below;
                }
                None => {
                    let Some(Above { id, below }) = above.pop() else { return Ok(()) };
                    // `..` cannot be asked of RESOLVE_BENEATH; that it is the directory we came from is checked instead.
                    let flags = DIRECTORY | OFlags::NOFOLLOW;
                    let back =
                        rustix::fs::openat(&here, "..", flags, Mode::empty()).map_err(|e| self.stopped(e))?;
                    if self.id(&back)? != id {
                        return Err(busy(
                            self.shown,
                            "another process, which moves directories in it".to_owned(),
                        ));
                    }
                    here = back;
                    match rustix::fs::unlinkat(&here, &below, AtFlags::REMOVEDIR) {
                        Ok(()) | Err(Errno::NOENT) => {}
                        Err(e) => return Err(self.stopped(e)),
                    }
                }
            }
        }
    }

    /// Deletes files and empty directories in a directory until nothing is left, or until one must be entered.
    fn clear(&self, here: &OwnedFd) -> Result<Option<(OwnedFd, OsString)>, HostError> {
        use std::os::unix::ffi::OsStrExt;
        for _ in 0..PASSES {
            let again =
                rustix::fs::openat(here, ".", DIRECTORY, Mode::empty()).map_err(|e| self.stopped(e))?;
            let mut found = false;
            for entry in rustix::fs::Dir::new(again).map_err(|e| self.stopped(e))? {
                let entry = entry.map_err(|e| self.stopped(e))?;
                if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                    continue;
                }
                if Instant::now() > self.until {
                    // What is left is left for the next try; the limit is the caller's.
                    return Err(HostError::Deadline {
                        doing: self.doing,
                        path: self.shown.to_owned(),
                        seconds: self.limit.as_secs(),
                    });
                }
                found = true;
                let name = std::ffi::OsStr::from_bytes(entry.file_name().to_bytes());
                if let Some(below) = self.delete(here, name, entry.file_type())? {
                    return Ok(Some((below, name.to_owned())));
                }
            }
            if !found {
                return Ok(None);
            }
        }
        Err(busy(self.shown, "another process, which writes into it".to_owned()))
    }

    /// Deletes one entry; a directory that is not empty is opened instead.
    fn delete(
        &self,
        here: &OwnedFd,
        name: &std::ffi::OsStr,
        kind: FileType,
    ) -> Result<Option<OwnedFd>, HostError> {
        let mut refused = None;
        if kind != FileType::Directory {
            match rustix::fs::unlinkat(here, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => return Ok(None),
                // The listing did not know or things changed: it is a directory. Or it is none, and may not go.
                Err(e @ (Errno::ISDIR | Errno::PERM)) => refused = Some(e),
                Err(e) => return Err(self.stopped(e)),
            }
        }
        match open_within(here, name, DIRECTORY | OFlags::NOFOLLOW) {
            Ok(below) => Ok(Some(below)),
            Err(Errno::NOENT) => Ok(None),
            Err(e @ (Errno::NOTDIR | Errno::LOOP)) => Err(self.stopped(refused.unwrap_or(e))),
            Err(e) => Err(self.stopped(e)),
        }
    }

    fn id(&self, directory: &OwnedFd) -> Result<(u64, u64), HostError> {
        let stat = rustix::fs::fstat(directory).map_err(|e| self.stopped(e))?;
        Ok((stat.st_dev, stat.st_ino))
    }

    fn stopped(&self, errno: Errno) -> HostError {
        match errno {
            Errno::XDEV | Errno::BUSY => busy(self.shown, "a mount that was just made in it".to_owned()),
            Errno::NOTEMPTY | Errno::EXIST => {
                busy(self.shown, "another process, which writes into it".to_owned())
            }
            // Root may all but that.
            Errno::PERM => HostError::Io {
                doing: self.doing,
                path: self.shown.to_owned(),
                source: io::Error::new(io::ErrorKind::PermissionDenied, IMMUTABLE),
            },
            other => HostError::Io { doing: self.doing, path: self.shown.to_owned(), source: other.into() },
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountFlags, MountPropagationFlags};

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap()
    }

    fn removal(path: &Path) -> Removal<'_> {
        let limit = Duration::from_secs(60);
        Removal { doing: DOING, shown: path, until: Instant::now() + limit, limit }
    }

    #[test]
    fn everything_below_goes_and_the_directory_itself_stays() {
        let top = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(top.path().join("a/b/c")).unwrap();
        std::fs::write(top.path().join("a/b/file"), "").unwrap();
        std::os::unix::fs::symlink("/etc", top.path().join("a/etc")).unwrap();
        removal(top.path()).empty(open(top.path())).unwrap();
        assert_eq!(std::fs::read_dir(top.path()).unwrap().count(), 0);
    }

    /// Only root may set the flag, and only some file systems have it.
    #[test]
    #[expect(clippy::print_stdout, clippy::disallowed_methods, reason = "scripts/test reads it; chattr")]
    fn what_may_not_go_is_said_with_the_remedy() {
        let top = tempfile::tempdir().unwrap();
        let file = top.path().join("file");
        std::fs::write(&file, "").unwrap();
        let chattr = |flag| std::process::Command::new("chattr").arg(flag).arg(&file).status();
        if !chattr("+i").is_ok_and(|status| status.success()) {
            println!("NOT-RUN: what_may_not_go_is_said_with_the_remedy: chattr +i is not to be had");
            return;
        }
        let stopped = removal(top.path()).empty(open(top.path()));
        assert!(chattr("-i").unwrap().success());
        let Err(HostError::Io { source, .. }) = stopped else { panic!("{stopped:?}") };
        assert_eq!(source.kind(), io::ErrorKind::PermissionDenied);
        assert!(source.to_string().contains("chattr -i"), "{source}");
    }

    #[test]
    fn a_removal_stops_at_its_deadline() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("file"), "").unwrap();
        let late = Removal { until: Instant::now(), ..removal(top.path()) };
        // The clock may not have moved yet.
        while Instant::now() <= late.until {}
        assert!(matches!(late.empty(open(top.path())), Err(HostError::Deadline { .. })));
        assert!(top.path().join("file").is_file());
    }

    /// What the look did not see because it came later. Only root can mount, and only in this thread's own namespace.
    #[test]
    #[expect(clippy::print_stdout, reason = "scripts/test reads it")]
    fn a_mount_that_appears_meanwhile_stops_the_removal() {
        if !rustix::process::geteuid().is_root() {
            println!("NOT-RUN: a_mount_that_appears_meanwhile_stops_the_removal: only root can mount");
            return;
        }
        let in_thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            let top = tempfile::tempdir().unwrap();
            let mounted = top.path().join("a/mounted");
            std::fs::create_dir_all(&mounted).unwrap();
            rustix::mount::mount("tmpfs", &mounted, "tmpfs", MountFlags::empty(), None).unwrap();
            std::fs::write(mounted.join("precious"), "data").unwrap();
            let file = top.path().join("file");
            std::fs::write(&file, "").unwrap();
            let of_file = top.path().join("a/file");
            std::fs::write(&of_file, "").unwrap();
            rustix::mount::mount_bind(mounted.join("precious"), &of_file).unwrap();

            let stopped = removal(top.path()).empty(open(top.path()));
            assert!(matches!(stopped, Err(HostError::Busy { .. })), "{stopped:?}");
            rustix::mount::unmount(&of_file, rustix::mount::UnmountFlags::empty()).unwrap();
            let stopped = removal(top.path()).empty(open(top.path()));
            assert!(matches!(stopped, Err(HostError::Busy { .. })), "{stopped:?}");
            assert_eq!(std::fs::read(mounted.join("precious")).unwrap(), b"data");
            rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::empty()).unwrap();
        });
        in_thread.join().unwrap();
    }
}
