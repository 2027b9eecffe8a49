//! Mounts of image file systems, binds of them and of devices, and their end. Everything is attached by descriptor to exactly
//! the directory or file that was looked at; nothing is mounted over a mount, and nothing is unmounted lazily.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use super::super::detached::{Unmade, attach, make, place};
use super::super::options::Options;
use super::super::path::descriptor_path;
use super::super::unmount;
use super::super::unmounter::Ended;
use super::super::wanted::Wanted;
use super::super::{HostError, raw, users};
use super::attach::Held;
use super::file_system::FsType;
use super::{Attributes, Images, Inner, failed};
use crate::error::Chain;
use crate::model::{Mount, MountsAt};

/// How mounting a file system ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mounted {
    /// It is mounted.
    Done,
    /// It is not, because of the options: which, and the kernel's own words.
    OptionsRefused(String),
}

impl Images {
    /// Finds the real path of a directory that is there: absolute and without symlinks, as the mount table has it. `None`:
    /// there is nothing.
    ///
    /// # Errors
    /// `WrongKind` where something else is there.
    pub async fn real_directory(&self, path: &Path) -> Result<Option<PathBuf>, HostError> {
        let given = path.to_owned();
        self.local("find the directory", path, move || {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match rustix::fs::open(&given, flags, Mode::empty()) {
                Ok(fd) => real(&fd, &given).map(Some),
                Err(Errno::NOENT) => Ok(None),
                Err(Errno::NOTDIR) => {
                    Err(HostError::WrongKind { path: given, found: "no directory", expected: "a directory" })
                }
                Err(e) => Err(failed("find the directory", &given)(e)),
            }
        })
        .await
    }

    /// Returns the mount at a real path, if one is there alone.
    ///
    /// # Errors
    /// `WrongMount` where mounts are stacked: nobody here makes such.
    pub async fn mount_at(&self, path: &Path) -> Result<Option<Mount>, HostError> {
        match self.mounts().await?.at(path) {
            MountsAt::None => Ok(None),
            MountsAt::One(mount) => Ok(Some(mount.clone())),
            MountsAt::Stacked(mounts) => Err(HostError::WrongMount {
                path: path.to_owned(),
                found: format!("{} mounts are stacked there", mounts.len()),
            }),
        }
    }

    /// Mounts the file system of an attached image on a directory.
    ///
    /// Options are those of mount(8): those that every file system has become attributes of the mount, the others are the
    /// file system's.
    ///
    /// # Errors
    /// `Io` with the kernel's own words; nothing is mounted. The directory is not looked at: the caller knows that nothing is
    /// mounted on it.
    pub async fn mount(
        &self,
        device: &Held,
        fs_type: FsType,
        options: &[String],
        at: &Path,
    ) -> Result<Mounted, HostError> {
        let (source, at, options) = (device.node(), at.to_owned(), Options::of(options));
        self.wanted("mount", &at.clone(), move |wanted| {
            let fail = failed("mount the file system at", &at);
            let place = place(&at, OFlags::DIRECTORY).map_err(&fail)?;
            let mount = match make(&source, fs_type.name(), &options, &at, wanted) {
                Ok(mount) => mount,
                Err(Unmade::Option(refused)) => return Ok(Mounted::OptionsRefused(refused)),
                Err(Unmade::Other(Errno::INVAL, error)) if !options.own.is_empty() => {
                    // The kernel says the same of a file system that is none: one that can be mounted without them is well.
                    let well = make(&source, fs_type.name(), &options.common(), &at, wanted).is_ok();
                    let refused = format!("the kernel refuses the mount options {}", options.own.join(","));
                    let refused = format!("{refused}: {}", Chain(&error));
                    return if well { Ok(Mounted::OptionsRefused(refused)) } else { Err(error) };
                }
                Err(Unmade::Other(_, error)) => return Err(error),
            };
            attach(&mount, &place, wanted).map_err(fail)?;
            Ok(Mounted::Done)
        })
        .await
    }

    /// Mounts the file system of an attached image where nobody sees it and lets it go again: its log is empty afterwards.
    ///
    /// # Errors
    /// As `mount`.
    pub async fn replay(&self, device: &Held, fs_type: FsType, options: &[String]) -> Result<(), HostError> {
        let (source, options) = (device.node(), Options::of(options));
        self.wanted("replay the log of", &source.clone(), move |wanted| {
            make(&source, fs_type.name(), &options, &source, wanted)
                .map(drop)
                .map_err(|unmade| unmade.error(&source))
        })
        .await
    }

    /// Shows a mounted directory at another, empty one, with these attributes from the first moment that anybody can see it.
    ///
    /// # Errors
    /// `Io`: nothing is shown.
    pub async fn bind(&self, from: &Path, to: &Path, with: Attributes) -> Result<(), HostError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        self.wanted("bind at", &to.clone(), move |wanted| {
            let fail = failed("bind at", &to);
            let source = place(&from, OFlags::DIRECTORY).map_err(failed("bind", &from))?;
            show(&source, &place(&to, OFlags::DIRECTORY).map_err(&fail)?, with, wanted).map_err(fail)
        })
        .await
    }

    /// Shows a loop device's node on an empty file, which is made where it is missing.
    ///
    /// # Errors
    /// `Io`; `WrongKind` where something else is there.
    pub async fn bind_device(&self, number: u32, to: &Path) -> Result<(), HostError> {
        let to = to.to_owned();
        self.wanted("bind a device at", &to.clone(), move |wanted| {
            let fail = failed("bind a device at", &to);
            wanted.check().map_err(&fail)?;
            let node = place(Path::new(&format!("/dev/loop{number}")), OFlags::empty()).map_err(&fail)?;
            let flags =
                OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let file = rustix::fs::open(&to, flags, Mode::from_raw_mode(0o640)).map_err(&fail)?;
            let found = rustix::fs::fstat(&file).map_err(&fail)?;
            if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile || found.st_size != 0 {
                return Err(HostError::WrongKind {
                    path: to.clone(),
                    found: "something else",
                    expected: "an empty file",
                });
            }
            show(&node, &file, Attributes::default(), wanted).map_err(fail)
        })
        .await
    }

    /// Makes a directory where there is none (0750), whose parent must be there.
    ///
    /// # Errors
    /// `Io`, `NotEmpty`, `WrongKind`.
    pub async fn make_target(&self, path: &Path) -> Result<(), HostError> {
        let path = path.to_owned();
        self.local("make the directory", &path.clone(), move || {
            let fail = failed("make the directory", &path);
            match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o750)) {
                Ok(()) => return Ok(()),
                Err(Errno::EXIST) => {}
                Err(e) => return Err(fail(e)),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let directory = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| match e {
                Errno::NOTDIR | Errno::LOOP => HostError::WrongKind {
                    path: path.clone(),
                    found: "no directory",
                    expected: "a directory",
                },
                e => fail(e),
            })?;
            let names = super::super::path::names(directory).map_err(fail)?;
            if names.is_empty() { Ok(()) } else { Err(HostError::NotEmpty { path: path.clone() }) }
        })
        .await
    }

    /// Removes what a publication leaves when its mount is gone: an empty directory or an empty file.
    ///
    /// # Errors
    /// `NotEmpty`, `WrongKind`: something else is there, and stays.
    pub async fn remove_target(&self, path: &Path) -> Result<(), HostError> {
        let path = path.to_owned();
        self.local("remove", &path.clone(), move || {
            let fail = failed("remove", &path);
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let found = match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(fd) => rustix::fs::fstat(&fd).map_err(&fail)?,
                Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
                Err(e) => return Err(fail(e)),
            };
            let flags = match FileType::from_raw_mode(found.st_mode) {
                FileType::Directory => AtFlags::REMOVEDIR,
                FileType::RegularFile if found.st_size == 0 => AtFlags::empty(),
                _ => {
                    return Err(HostError::WrongKind {
                        path: path.clone(),
                        found: "something else",
                        expected: "an empty directory or file",
                    });
                }
            };
            match rustix::fs::unlinkat(rustix::fs::CWD, &path, flags) {
                Ok(()) | Err(Errno::NOENT) => Ok(()),
                Err(Errno::NOTEMPTY | Errno::EXIST) => Err(HostError::NotEmpty { path: path.clone() }),
                Err(e) => Err(fail(e)),
            }
        })
        .await
    }

    /// Unmounts a real path if exactly this mount is there, alone, with nothing below it. What is gone already is fine.
    ///
    /// # Errors
    /// `WrongMount`: nothing was done. `Busy`: somebody has a file open there. `Deadline`: not known.
    pub async fn unmount(&self, mount: &Mount) -> Result<(), HostError> {
        let (inner, mount) = (Arc::clone(&self.inner), mount.clone());
        let limit = unmount::LIMIT + super::LIMIT;
        let path = mount.point.clone();
        self.inner.slow.run("unmount", &path, limit, move || take_away(&inner, &mount)).await
    }

    /// Lets writers go on in the file system mounted at a path, where a freeze was left over.
    ///
    /// # Errors
    /// `Io`; that it was not frozen is fine.
    pub async fn thaw(&self, at: &Path) -> Result<bool, HostError> {
        let path = at.to_owned();
        self.local("thaw", at, move || {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let mounted = rustix::fs::open(&path, flags, Mode::empty()).map_err(failed("thaw", &path))?;
            match raw::thaw(mounted.as_fd()) {
                Ok(()) => Ok(true),
                Err(e) if Errno::from_io_error(&e) == Some(Errno::INVAL) => Ok(false),
                Err(source) => Err(HostError::Io { doing: "thaw", path: path.clone(), source }),
            }
        })
        .await
    }
}

fn take_away(inner: &Inner, mount: &Mount) -> Result<(), HostError> {
    const DOING: &str = "unmount";
    let path = &mount.point;
    let io_failed = |source: io::Error| HostError::Io { doing: DOING, path: path.clone(), source };
    let table = inner.table.look_here()?;
    match table.at(path) {
        MountsAt::None => return Ok(()),
        MountsAt::One(found) if found.id == mount.id && found.identity() == mount.identity() => {}
        MountsAt::One(_) | MountsAt::Stacked(_) => {
            let found = "it was replaced or covered meanwhile".to_owned();
            return Err(HostError::WrongMount { path: path.clone(), found });
        }
    }
    if let Some(below) = table.below(path).next() {
        let found = format!("something is mounted below it, at {}", below.point.display());
        return Err(HostError::WrongMount { path: path.clone(), found });
    }
    drop(table);
    let parent = path.parent().unwrap_or(Path::new("/"));
    let parent = place(parent, OFlags::DIRECTORY).map_err(failed(DOING, path))?;
    let name = path.file_name().unwrap_or_default();
    match inner.unmounters.unmount(&parent, name, false, unmount::LIMIT).map_err(io_failed)? {
        Ended::Done => Ok(()),
        Ended::Failed(Errno::BUSY) => {
            let holder = users::holder_of_mount(mount.id, path);
            let holder = holder.unwrap_or_else(|| "another process".to_owned());
            Err(HostError::Busy { path: path.clone(), holder })
        }
        // Somebody else was faster.
        Ended::Failed(Errno::INVAL | Errno::NOENT) if inner.table.look_here()?.at(path) == MountsAt::None => {
            Ok(())
        }
        Ended::Failed(e) => Err(io_failed(e.into())),
        Ended::Silent => {
            let seconds = unmount::LIMIT.as_secs();
            Err(HostError::Deadline { doing: DOING, path: path.clone(), seconds })
        }
    }
}

pub(super) fn real(fd: &OwnedFd, given: &Path) -> Result<PathBuf, HostError> {
    descriptor_path(fd).map_err(|source| HostError::Io {
        doing: "find the real path of",
        path: given.to_owned(),
        source,
    })
}

fn show(source: &OwnedFd, at: &OwnedFd, with: Attributes, wanted: &Wanted) -> Result<(), Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(source, "", flags)?;
    if with != Attributes::default() {
        let (set, clear) = with.bits();
        let done = raw::set_attributes(tree.as_fd(), set, clear, 0);
        done.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    }
    attach(&tree, at, wanted)
}

#[cfg(test)]
mod tests {
    use super::super::Claim;
    use super::*;

    #[tokio::test]
    async fn what_was_given_up_is_not_mounted_later() {
        let directory = tempfile::tempdir().unwrap();
        let images = Claim::new(directory.path()).await.unwrap().open().await.unwrap();
        let (begin, mut began) = tokio::sync::mpsc::unbounded_channel();
        let (go, gone) = std::sync::mpsc::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let at = directory.path().to_owned();
        let work = images.wanted("mount", directory.path(), move |wanted| {
            begin.send(()).unwrap();
            // As a mount that the kernel keeps waiting; what it then attaches is no mount.
            let _told_to: Result<(), _> = gone.recv();
            let place = place(&at, OFlags::DIRECTORY).unwrap();
            tell.send(attach(&place, &place, wanted).unwrap_err()).unwrap();
            let unmade = make(&at, "ext4", &Options::of(&[]), &at, wanted).unwrap_err();
            tell.send(match unmade {
                Unmade::Other(e, _) => e,
                Unmade::Option(_) => Errno::INVAL,
            })
            .unwrap();
            Ok(())
        });
        tokio::select! {
            biased;
            done = work => panic!("it waits: {done:?}"),
            _ = began.recv() => {}
        }
        go.send(()).unwrap();
        assert_eq!(told.recv(), Ok(Errno::CANCELED));
        assert_eq!(told.recv(), Ok(Errno::CANCELED));
    }
}
