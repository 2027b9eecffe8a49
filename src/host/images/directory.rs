//! Volumes that are directories: made, given to a project whose limit is their size, found in the mount table, copied, emptied.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::{AtFlags, FsWord, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::super::exec::Tools;
use super::super::path::{DIRECTORY, open_within};
use super::super::{HostError, empty_dir, quota};
use super::{FsType, Images, Limits, Project, failed};
use crate::model::Mount;

/// How long the content of one may take to go in one call; the next goes on.
const REMOVAL: Duration = Duration::from_secs(600);

/// How long a file system may take to write a copy out.
const SYNC: Duration = Duration::from_secs(600);

/// A copy is made to its end, in practice without a limit: the caller is answered by a limit of its own.
const TO_ITS_END: Duration = Duration::from_secs(1 << 30);

/// What a new one may be used by: as the root of a file system that was just made.
const MODE: u32 = 0o755;

const XFS: FsWord = 0x5846_5342;
const EXT4: FsWord = 0xEF53;

/// A directory that was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FoundDirectory {
    /// The project to which it gives what is made in it.
    pub project: Option<u32>,
}

impl Images {
    /// Returns which file system our directory is on, if it is one that can limit directories, and whether it does.
    ///
    /// # Errors
    /// `Io`
    pub async fn limits(&self) -> Result<(Option<FsType>, Limits), HostError> {
        self.about_the_host("ask for the project quotas of", |directory| {
            let fs_type = match rustix::fs::fstatfs(directory)?.f_type {
                XFS => Some(FsType::Xfs),
                EXT4 => Some(FsType::Ext4),
                _ => None,
            };
            let limits = if fs_type.is_some() { quota::limits(directory.as_fd())? } else { Limits::Off };
            Ok((fs_type, limits))
        })
        .await
    }

    /// Returns what a project may take and takes on the file system of our directory.
    ///
    /// # Errors
    /// `Io`, also where nothing is counted.
    pub async fn project(&self, id: u32) -> Result<Project, HostError> {
        self.about_the_host("ask for a project's quota of", move |directory| {
            quota::project(directory.as_fd(), id)
        })
        .await
    }

    /// Returns what projects take, in bytes; 0 where nothing is counted.
    ///
    /// # Errors
    /// `Io`
    pub async fn used_by(&self, projects: Vec<u32>) -> Result<Vec<u64>, HostError> {
        self.about_the_host("ask for the projects' quotas of", move |directory| {
            let used = |id| match quota::project(directory.as_fd(), id) {
                Ok(project) => Ok(project.used),
                Err(error) if quota::is_off(&error) => Ok(0),
                Err(error) => Err(error),
            };
            projects.into_iter().map(used).collect()
        })
        .await
    }

    /// Limits a project on the file system of our directory, in bytes; 0: without a limit.
    ///
    /// # Errors
    /// `Io`: the limit is what it was.
    pub async fn limit_project(&self, id: u32, bytes: u64) -> Result<(), HostError> {
        self.about_the_host("set a project's quota of", move |directory| {
            quota::limit_project(directory.as_fd(), id, bytes)
        })
        .await
    }

    /// Makes a directory where there is none, empty and for everybody to read. It is not synced.
    ///
    /// # Errors
    /// `Io`, `WrongKind`.
    pub async fn make_directory(&self, path: &Path) -> Result<(), HostError> {
        let path = path.to_owned();
        self.local("make the directory", &path.clone(), move || {
            let fail = failed("make the directory", &path);
            match rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(fail(e)),
            }
            let directory = open(&path).map_err(&fail)?;
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(MODE)).map_err(fail)
        })
        .await
    }

    /// Gives an empty directory, and all that is made in it, to a project.
    ///
    /// # Errors
    /// `Io`
    pub async fn give_to_project(&self, path: &Path, id: u32) -> Result<(), HostError> {
        const DOING: &str = "give a project to";
        let path = path.to_owned();
        self.local(DOING, &path.clone(), move || {
            let directory = open(&path).map_err(failed(DOING, &path))?;
            let given = quota::give_to_project(directory.as_fd(), id);
            given.map_err(|source| HostError::Io { doing: DOING, path, source })
        })
        .await
    }

    /// Looks at a directory; `None` where there is none.
    ///
    /// # Errors
    /// `Io`
    pub async fn look_at_directory(&self, path: &Path) -> Result<Option<FoundDirectory>, HostError> {
        const DOING: &str = "look at";
        let path = path.to_owned();
        self.local(DOING, &path.clone(), move || match open(&path) {
            Ok(directory) => {
                let project = quota::project_of(directory.as_fd());
                let project = project.map_err(|source| HostError::Io { doing: DOING, path, source })?;
                Ok(Some(FoundDirectory { project }))
            }
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(failed(DOING, &path)(e)),
        })
        .await
    }

    /// Returns where a directory, or something in it, is mounted in the driver's namespace. One that was removed under its mounts
    /// is looked for where it was; where the directory that it was in is gone too it is nowhere.
    ///
    /// # Errors
    /// `Io`
    pub async fn shown(&self, path: &Path) -> Result<Vec<Mount>, HostError> {
        const DOING: &str = "find the mounts of";
        let (inner, path) = (Arc::clone(&self.inner), path.to_owned());
        self.local(DOING, &path.clone(), move || {
            let fail = failed(DOING, &path);
            let mount_of = |path: &Path| {
                let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_DONT_SYNC;
                let found = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::MNT_ID);
                found.map(|found| found.stx_mnt_id)
            };
            let id = match (mount_of(&path), path.parent()) {
                // Its mounts stay, with the root that they had, and have to be found to be unmounted.
                (Err(Errno::NOENT), Some(parent)) => mount_of(parent),
                (found, _) => found,
            };
            let id = match id {
                Ok(id) => id,
                Err(Errno::NOENT) => return Ok(Vec::new()),
                Err(e) => return Err(fail(e)),
            };
            let table = inner.table.look_here()?;
            let holding = table.iter().find(|mount| mount.id == id);
            let inside = holding.and_then(|mount| {
                Some((mount.device, mount.root.join(path.strip_prefix(&mount.point).ok()?)))
            });
            let Some((device, inside)) = inside else { return Err(fail(Errno::NODEV)) };
            let shows = |mount: &&Mount| mount.device == device && mount.root.starts_with(&inside);
            Ok(table.iter().filter(shows).cloned().collect())
        })
        .await
    }

    /// Copies what is in a directory into another one, which is there and empty, with its owners, rights, times, links and
    /// extended attributes. Blocks are shared where the file system can, else what is written is copied. Nobody may write to
    /// either. Not synced.
    ///
    /// # Errors
    /// With what cp said; part of it may be there.
    pub async fn copy_directory(&self, from: &Path, to: &Path) -> Result<(), HostError> {
        let tool = Tools::find("cp", "coreutils")?;
        let arguments = [
            "--archive".as_ref(),
            "--no-target-directory".as_ref(),
            "--one-file-system".as_ref(),
            "--reflink=auto".as_ref(),
            // Said by name what cannot be kept is an error.
            "--preserve=mode,ownership,timestamps,links,xattr".as_ref(),
            "--".as_ref(),
            from.as_os_str(),
            to.as_os_str(),
        ];
        self.inner.tools.must("copy the directory", from, &tool, arguments, TO_ITS_END).await.map(drop)
    }

    /// Returns whether files on the file system of our directory can share blocks (XFS made with reflink): tried with two files
    /// that have no name and no bytes.
    ///
    /// # Errors
    /// `Io`
    pub async fn shares_blocks(&self) -> Result<bool, HostError> {
        self.about_the_host("try to share blocks in", |directory| {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            let file = || rustix::fs::openat(directory, ".", flags, Mode::from_raw_mode(0o600));
            match rustix::fs::ioctl_ficlone(file()?, file()?) {
                Ok(()) => Ok(true),
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::INVAL | Errno::NOSYS | Errno::XDEV) => Ok(false),
                Err(e) => Err(e.into()),
            }
        })
        .await
    }

    /// Writes a directory out to the disk, and all that is in it. That is all of its file system: what a copy wrote has no list.
    ///
    /// # Errors
    /// `Io`
    pub async fn sync_directory(&self, path: &Path) -> Result<(), HostError> {
        let path = path.to_owned();
        self.inner
            .slow
            .run("sync", &path.clone(), SYNC, move || {
                let fail = failed("sync", &path);
                rustix::fs::syncfs(open(&path).map_err(&fail)?).map_err(fail)
            })
            .await
    }

    /// Looks for whoever can write to a directory, but for what is staged at a path; to one that is not there nobody can.
    ///
    /// # Errors
    /// `Busy`: a mount in any namespace that is not read-only, a mount in it, a file that is open for writing.
    pub async fn check_not_written(&self, path: &Path, staged: Option<&Path>) -> Result<(), HostError> {
        const DOING: &str = "look for the writers of";
        let (path, staged) = (path.to_owned(), staged.map(Path::to_owned));
        self.local(DOING, &path.clone(), move || match open_if_there(&path, DOING)? {
            Some(directory) => empty_dir::check_not_written(&directory, &path, staged.as_deref()),
            None => Ok(()),
        })
        .await
    }

    /// Looks for whoever uses a directory; one that is not there is used by nobody.
    ///
    /// # Errors
    /// `Busy`: a mount in any namespace, an open file, a working directory.
    pub async fn check_unused(&self, path: &Path) -> Result<(), HostError> {
        const DOING: &str = "look for the users of";
        let path = path.to_owned();
        self.local(DOING, &path.clone(), move || match open_if_there(&path, DOING)? {
            Some(directory) => empty_dir::check_unused(&directory, &path),
            None => Ok(()),
        })
        .await
    }

    /// Removes all that is in a directory, which stays; one that is not there is fine. Through descriptors that follow no
    /// symlink and enter no mount, and only if nobody has anything of it: no mount in any namespace, no open file.
    ///
    /// # Errors
    /// `Busy`: somebody has. `Deadline`: part of it is gone, the next call goes on.
    pub async fn remove_content(&self, path: &Path) -> Result<(), HostError> {
        const DOING: &str = "remove what is in";
        let (path, shown) = (path.to_owned(), path);
        let remove = move || match open_if_there(&path, DOING)? {
            Some(directory) => empty_dir::remove_content(directory, &path, DOING, REMOVAL),
            None => Ok(()),
        };
        self.inner.slow.run(DOING, shown, REMOVAL + super::LIMIT, remove).await
    }

    /// Asks the file system of our directory for something.
    async fn about_the_host<T: Send + 'static>(
        &self,
        doing: &'static str,
        ask: impl FnOnce(&OwnedFd) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, HostError> {
        let directory = Arc::clone(&self.inner.directory);
        let path = super::super::path::descriptor_path(&directory).unwrap_or_default();
        self.local(doing, &path.clone(), move || {
            ask(&directory).map_err(|source| HostError::Io { doing, path, source })
        })
        .await
    }
}

/// As `open`; `None`: it is not there.
///
/// # Errors
/// `Busy`: something is mounted on it.
fn open_if_there(path: &Path, doing: &'static str) -> Result<Option<OwnedFd>, HostError> {
    match open(path) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::XDEV) => Err(HostError::Busy { path: path.to_owned(), holder: "a mount".to_owned() }),
        Err(e) => Err(failed(doing, path)(e)),
    }
}

/// Opens a directory of ours: no symlink, no mount point.
fn open(path: &Path) -> Result<OwnedFd, Errno> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::INVAL) };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty())?;
    open_within(parent, name, DIRECTORY)
}

#[cfg(test)]
mod tests {
    use rustix::mount::{MountPropagationFlags, UnmountFlags};

    use super::super::Claim;

    /// Only root can mount, and only in this thread's own namespace.
    #[test]
    #[expect(clippy::print_stdout, reason = "scripts/test reads it")]
    fn a_directory_that_was_removed_under_its_mount_is_still_shown_there() {
        if !rustix::process::geteuid().is_root() {
            println!(
                "NOT-RUN: a_directory_that_was_removed_under_its_mount_is_still_shown: only root can mount"
            );
            return;
        }
        let in_thread = std::thread::spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            let top = tempfile::tempdir().unwrap();
            let (data, at) = (top.path().join("data"), top.path().join("at"));
            std::fs::create_dir(&data).unwrap();
            std::fs::create_dir(&at).unwrap();
            rustix::mount::mount_bind(&data, &at).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let images = Claim::new(top.path()).await.unwrap().open().await.unwrap();
                let points = async || {
                    let shown = images.shown(&data).await.unwrap();
                    shown.into_iter().map(|mount| mount.point).collect::<Vec<_>>()
                };
                let real = [at.clone()];
                assert_eq!(points().await, real);
                std::fs::remove_dir(&data).unwrap();
                assert_eq!(points().await, real);
                rustix::mount::unmount(&at, UnmountFlags::empty()).unwrap();
                assert!(points().await.is_empty());
                let nowhere = images.shown(&top.path().join("none/data")).await.unwrap();
                assert!(nowhere.is_empty(), "{nowhere:?}");
                // Where it can be told, it is what a copy would do.
                images.shares_blocks().await.unwrap();
            });
        });
        in_thread.join().unwrap();
    }
}
