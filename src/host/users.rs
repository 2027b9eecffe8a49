//! Who uses a directory: mounts of every mount namespace, and every process's open files, working and root directories.
//!
//! Paths differ from namespace to namespace, so places are compared as file system and path inside it. What cannot be
//! looked at makes the answer `Busy`, not "nobody".

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, StatxFlags};

use super::mount_table;
use super::raw;
use super::unmount::new_device_each_time;
use crate::model::Mount;

/// A directory, independent of where it is mounted.
#[derive(Debug)]
pub(super) struct Place {
    /// Its path in our namespace.
    absolute: PathBuf,
    /// The file system, as mountinfo numbers it.
    device: (u32, u32),
    /// The path inside the file system.
    inside: PathBuf,
    /// The file system, as stat numbers it (btrfs has another number for each subvolume).
    stat_device: (u32, u32),
}

/// Why a directory cannot be called unused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct InUse(pub(super) String);

/// A thread, by its directory in `/proc`.
#[derive(Debug, Clone)]
struct Task {
    pid: u32,
    tid: u32,
    directory: PathBuf,
}

impl Task {
    fn name(&self) -> String {
        let comm = std::fs::read_to_string(self.directory.join("comm")).unwrap_or_default();
        format!("process {} ({})", self.pid, comm.trim())
    }

    /// Reads one of its links; `None` when the task or the link is gone.
    fn link(&self, name: &str) -> Result<Option<PathBuf>, InUse> {
        match std::fs::read_link(self.directory.join(name)) {
            Ok(target) => Ok(Some(target)),
            Err(e) if is_gone(&e) => Ok(None),
            Err(e) => Err(self.hidden(name, &e)),
        }
    }

    fn hidden(&self, what: &str, why: &io::Error) -> InUse {
        InUse(format!("an unknown user: cannot read {what} of {}: {why}", self.name()))
    }
}

/// ESRCH: the process ended; ENOENT: so did the link; EINVAL: mountinfo of a process on its way out.
fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOENT | Errno::SRCH | Errno::INVAL))
}

/// All mounts of all namespaces.
#[derive(Debug, Default)]
struct Mounts {
    /// Mount ids are unique in the whole kernel.
    by_id: BTreeMap<u64, Mount>,
    /// The ids of each namespace, by its link's text (`mnt:[4026531841]`), with a task that lives there.
    namespaces: BTreeMap<OsString, (Vec<u64>, Task)>,
}

impl Place {
    /// Finds out where a directory lies, by our own mount table.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub(super) fn of(directory: &impl std::os::fd::AsFd, absolute: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
        let table = mount_table::parse(&std::fs::read("/proc/thread-self/mountinfo")?)?;
        let mount = table.into_iter().map(|line| line.mount).find(|m| m.id == stat.stx_mnt_id);
        let inside = mount.as_ref().and_then(|m| inside(m, absolute));
        let (Some(mount), Some(inside)) = (mount, inside) else {
            return Err(io::Error::other("its mount is not in the mount table"));
        };
        Ok(Self {
            absolute: absolute.to_owned(),
            device: mount.device,
            inside,
            stat_device: (stat.stx_dev_major, stat.stx_dev_minor),
        })
    }

    /// Looks for a user of the directory or of anything below it (design rule 1).
    ///
    /// # Errors
    /// The first user found, or what could not be looked at.
    pub(super) fn check_unused(&self) -> Result<(), InUse> {
        let tasks = tasks().map_err(|e| InUse(format!("an unknown user: cannot list /proc: {e}")))?;
        let mounts = survey(&tasks)?;
        self.check_mounts(&mounts)?;
        tasks.iter().try_for_each(|task| self.check_task(task, &mounts))
    }

    fn contains(&self, device: (u32, u32), inside: &Path) -> bool {
        device == self.device && inside.starts_with(&self.inside)
    }

    fn check_mounts(&self, mounts: &Mounts) -> Result<(), InUse> {
        for (ids, task) in mounts.namespaces.values() {
            for mount in ids.iter().filter_map(|id| mounts.by_id.get(id)) {
                let found = || {
                    InUse(format!(
                        "the mount at {} in the mount namespace of {}",
                        mount.point.display(),
                        task.name()
                    ))
                };
                // Shown somewhere: a container has it, or a directory in it, under another path.
                if self.contains(mount.device, &mount.root) {
                    return Err(found());
                }
                // Or covered somewhere. The namespace's own root mount has no parent that can be seen.
                let Some(parent) = mounts.by_id.get(&mount.parent).filter(|p| p.id != mount.id) else {
                    continue;
                };
                match inside(parent, &mount.point) {
                    Some(at) if self.contains(parent.device, &at) => return Err(found()),
                    None if parent.device == self.device => return Err(found()),
                    Some(_) | None => {}
                }
            }
        }
        Ok(())
    }

    fn check_task(&self, task: &Task, mounts: &Mounts) -> Result<(), InUse> {
        for name in ["cwd", "root", "exe"] {
            let Some(target) = task.link(name)? else { continue };
            if self.link_is_inside(task, name, &target, mounts)? {
                return Err(InUse(task.name()));
            }
        }
        if task.tid != task.pid && raw::same_files(task.pid, task.tid) == Some(true) {
            return Ok(());
        }
        let list = match std::fs::read_dir(task.directory.join("fd")) {
            Ok(list) => list,
            Err(e) if is_gone(&e) => return Ok(()),
            Err(e) => return Err(task.hidden("fd", &e)),
        };
        for entry in list {
            let entry = match entry {
                Ok(entry) => entry,
                Err(e) if is_gone(&e) => return Ok(()),
                Err(e) => return Err(task.hidden("fd", &e)),
            };
            let name = Path::new("fd").join(entry.file_name());
            let Some(name) = name.to_str() else { continue };
            let Some(target) = task.link(name)? else { continue };
            if target.to_str().is_some_and(|t| t.starts_with("mnt:[")) {
                // A namespace without a process can have any mount.
                if !mounts.namespaces.contains_key(target.as_os_str()) {
                    return Err(InUse(format!("an unknown user: {} holds a mount namespace", task.name())));
                }
                continue;
            }
            // Sockets, pipes and the like have no path.
            if !target.is_absolute() {
                continue;
            }
            // The descriptor that this look began with.
            if task.pid == std::process::id() && target == self.absolute {
                continue;
            }
            if self.file_is_inside(task, &entry.file_name(), &target, mounts)? {
                return Err(InUse(task.name()));
            }
        }
        Ok(())
    }

    /// Judges an open file by its mount, which fdinfo says without asking the file system.
    fn file_is_inside(
        &self,
        task: &Task,
        fd: &std::ffi::OsStr,
        target: &Path,
        mounts: &Mounts,
    ) -> Result<bool, InUse> {
        let info = match std::fs::read_to_string(task.directory.join("fdinfo").join(fd)) {
            Ok(info) => info,
            Err(e) if is_gone(&e) => return Ok(false),
            Err(e) => return Err(task.hidden("fdinfo", &e)),
        };
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
        match id.and_then(|id| mounts.by_id.get(&id)) {
            Some(mount) => Ok(self.path_is_inside(mount, target)),
            // A mount of no namespace: the kernel's own, or one that was unmounted lazily.
            None => self.stat_is_inside(task, &Path::new("fd").join(fd), mounts),
        }
    }

    /// Judges a directory that has no fdinfo. Where its path lies on a network or FUSE file system, which may never
    /// answer, it is not asked: an emptyDir is on none.
    fn link_is_inside(&self, task: &Task, name: &str, target: &Path, mounts: &Mounts) -> Result<bool, InUse> {
        let namespace = task.link("ns/mnt")?;
        let ids = namespace.and_then(|n| mounts.namespaces.get(n.as_os_str())).map(|(ids, _)| ids.as_slice());
        let on = ids
            .unwrap_or_default()
            .iter()
            .filter_map(|id| mounts.by_id.get(id))
            .filter(|m| target.starts_with(&m.point))
            .max_by_key(|m| m.point.as_os_str().len());
        if on.is_some_and(|m| new_device_each_time(&m.fs_type) && m.device != self.device) {
            return Ok(false);
        }
        match task_mount(task, Path::new(name)) {
            Ok((id, device)) => match mounts.by_id.get(&id) {
                Some(mount) => Ok(self.path_is_inside(mount, target)),
                None => Ok(device == self.stat_device),
            },
            Err(e) if is_gone(&e) => Ok(false),
            Err(e) => Err(task.hidden(name, &e)),
        }
    }

    /// A path on a known mount. One that is not below its mount point is of no known place: taken for ours if it could be.
    fn path_is_inside(&self, mount: &Mount, target: &Path) -> bool {
        match inside(mount, target) {
            Some(at) => self.contains(mount.device, &at),
            None => mount.device == self.device,
        }
    }

    /// A file on a mount of no namespace is taken for ours if it is on our file system.
    fn stat_is_inside(&self, task: &Task, link: &Path, mounts: &Mounts) -> Result<bool, InUse> {
        match task_mount(task, link) {
            // Mounted since the survey: its path can be anything.
            Ok((_, device)) => Ok(device == self.stat_device && !mounts.by_id.is_empty()),
            Err(e) if is_gone(&e) => Ok(false),
            Err(e) => Err(task.hidden("an open file", &e)),
        }
    }
}

/// Returns the mount id and the device behind a link of `/proc`.
fn task_mount(task: &Task, link: &Path) -> io::Result<(u64, (u32, u32))> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(rustix::fs::CWD, task.directory.join(link), flags, StatxFlags::MNT_ID)?;
    Ok((stat.stx_mnt_id, (stat.stx_dev_major, stat.stx_dev_minor)))
}

/// Returns a path of a mount as a path inside its file system.
fn inside(mount: &Mount, path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(&mount.point).ok()?;
    // Joining an empty path would add a slash, which Path's comparison does not mind.
    Some(mount.root.join(below))
}

/// Lists all threads of all processes.
fn tasks() -> io::Result<Vec<Task>> {
    let numbers = |directory: &Path| -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(directory)? {
            found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        Ok(found)
    };
    let mut all = Vec::new();
    for pid in numbers(Path::new("/proc"))? {
        let directory = PathBuf::from(format!("/proc/{pid}/task"));
        match numbers(&directory) {
            Ok(tids) => all.extend(tids.into_iter().map(|tid| Task {
                pid,
                tid,
                directory: directory.join(tid.to_string()),
            })),
            Err(e) if is_gone(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(all)
}

/// Reads the mount table of each namespace once.
fn survey(tasks: &[Task]) -> Result<Mounts, InUse> {
    let mut by_namespace: BTreeMap<OsString, Vec<&Task>> = BTreeMap::new();
    for task in tasks {
        if let Some(namespace) = task.link("ns/mnt")? {
            by_namespace.entry(namespace.into_os_string()).or_default().push(task);
        }
    }
    let mut mounts = Mounts::default();
    for (namespace, members) in &by_namespace {
        let Some((table, task)) = whole_table(members)? else { continue };
        let ids = table.iter().map(|mount| mount.id).collect();
        mounts.by_id.extend(table.into_iter().map(|mount| (mount.id, mount)));
        mounts.namespaces.insert(namespace.clone(), (ids, task));
    }
    // A namespace can be kept by a bind mount of its file alone (snapd does that): nobody's mountinfo shows its mounts.
    let pinned = mounts.by_id.values().find(|mount| {
        mount.fs_type == "nsfs"
            && mount.root.to_str().is_some_and(|r| r.trim_start_matches('/').starts_with("mnt:["))
            && !mounts.namespaces.contains_key(mount.root.as_os_str())
    });
    match pinned {
        Some(mount) => Err(InUse(format!(
            "an unknown user: the mount namespace kept at {} cannot be looked into",
            mount.point.display()
        ))),
        None => Ok(mounts),
    }
}

/// Reads a namespace's table from a member that sees all of it: one that is not chrooted. `None`: all members are gone.
fn whole_table(members: &[&Task]) -> Result<Option<(Vec<Mount>, Task)>, InUse> {
    let mut chrooted = None;
    for task in members {
        let Some(root) = task.link("root")? else { continue };
        let text = match std::fs::read(task.directory.join("mountinfo")) {
            Ok(text) => text,
            Err(e) if is_gone(&e) => continue,
            Err(e) => return Err(task.hidden("mountinfo", &e)),
        };
        let table = mount_table::parse(&text).map_err(|e| task.hidden("mountinfo", &e))?;
        // A root on a detached mount also reads as "/", but shows no mount at it.
        let whole = root == Path::new("/") && table.iter().any(|line| line.mount.point == Path::new("/"));
        if whole {
            return Ok(Some((table.into_iter().map(|line| line.mount).collect(), (*task).clone())));
        }
        chrooted = Some(task);
    }
    match chrooted {
        // Kernel threads on their way up and tasks that ended meanwhile are no members any more.
        None => Ok(None),
        Some(task) => Err(InUse(format!(
            "an unknown user: the mount namespace of {} can only be seen from its chroot",
            task.name()
        ))),
    }
}

/// Names a process that keeps a mount of our namespace busy: only for the message, so what cannot be seen is left out.
pub(super) fn holder_of_mount(id: u64, point: &Path) -> Option<String> {
    let wanted = format!("mnt_id:\t{id}");
    let holds = |task: &Task| {
        let links = ["cwd", "root", "exe"];
        if links.iter().any(|name| matches!(task.link(name), Ok(Some(t)) if t.starts_with(point))) {
            return true;
        }
        let Ok(files) = std::fs::read_dir(task.directory.join("fdinfo")) else { return false };
        files.flatten().any(|file| {
            std::fs::read_to_string(file.path()).is_ok_and(|info| info.lines().any(|line| line == wanted))
        })
    };
    tasks().ok()?.iter().find(|task| task.pid == task.tid && holds(task)).map(Task::name)
}
