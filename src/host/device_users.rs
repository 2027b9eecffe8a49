//! Who has a block device: processes with it open, mounts of a file system on it, devices built on it.
//!
//! Only a look before a device is taken away, nothing is deleted after it; so what cannot be seen is passed over.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, StatxFlags};

use super::unmount::new_device_each_time;
use super::{Holder, mount_table, raw};
use crate::model::Mount;

/// The paths of one pod among several that share a device: only who opened it there counts.
#[derive(Debug)]
pub(super) struct Through<'a> {
    /// The file on which it is bound for the pod, and where the driver published it: absolute.
    pub(super) paths: [&'a Path; 2],
}

/// Finds somebody who has a device, by its number: a container opens a node of its own. A driver, and what it started, may
/// serve the device and does not count.
///
/// # Errors
/// When `/proc` cannot be read at all.
pub(super) fn first(
    device: (u32, u32),
    through: Option<&Through<'_>>,
    driver: Option<u32>,
) -> io::Result<Option<String>> {
    let pids = numbers(Path::new("/proc"))?;
    let mut mounts = Mounts::default();
    pids.iter().for_each(|pid| mounts.add(*pid));
    let own = std::process::id();
    for pid in pids.into_iter().filter(|pid| *pid != own) {
        let tasks = PathBuf::from(format!("/proc/{pid}/task"));
        // A process that ended meanwhile has nothing open.
        for tid in numbers(&tasks).unwrap_or_default() {
            if tid != pid && raw::same_files(pid, tid) == Some(true) {
                continue;
            }
            let look = || open_file(&tasks.join(tid.to_string()), device, &mounts, through);
            if let Some(how) = look()
                && !driver.is_some_and(|driver| descends(pid, driver))
                && !is_ours(pid, own)
                // A child of ours may have got its own program meanwhile: it has closed our descriptors by then.
                && look().is_some()
            {
                return Ok(Some(holder(pid, how).to_string()));
            }
        }
    }
    if through.is_some() {
        return Ok(None);
    }
    if let Some((pid, point)) = mounts.of_device(device) {
        let how = format!("has a file system on it mounted at {}", point.display());
        return Ok(Some(holder(pid, how).to_string()));
    }
    Ok(built_on(device))
}

fn holder(pid: u32, how: String) -> Holder {
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    Holder { pid, command: command.trim().to_owned(), unit: None, how }
}

/// Whether a process is a child of ours without a program of its own: it has our descriptors until it has closed them.
fn is_ours(pid: u32, own: u32) -> bool {
    let program = |pid: u32| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    descends(pid, own) && program(pid).is_some_and(|theirs| Some(theirs) == program(own))
}

/// Whether a process is another or was started by it, by as many others as may be between.
fn descends(pid: u32, from: u32) -> bool {
    let parent = |pid: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        field(&status, "PPid:")?.parse::<u32>().ok().filter(|parent| *parent != 0)
    };
    std::iter::successors(Some(pid), parent).any(|pid| pid == from)
}

/// Lists what is a number in a directory of `/proc`.
fn numbers(directory: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        found.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    Ok(found)
}

/// The mounts of the namespaces seen so far. Mount ids are unique in the whole kernel.
#[derive(Debug, Default)]
struct Mounts {
    by_id: BTreeMap<u64, (Mount, u32)>,
    seen: BTreeSet<PathBuf>,
}

impl Mounts {
    /// Reads the table of a process, once for each namespace.
    fn add(&mut self, pid: u32) {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let Ok(namespace) = std::fs::read_link(process.join("ns/mnt")) else { return };
        if !self.seen.insert(namespace) {
            return;
        }
        let table = std::fs::read(process.join("mountinfo")).and_then(|text| mount_table::parse(&text));
        for mount in table.unwrap_or_default().into_iter().map(|line| line.mount) {
            self.by_id.entry(mount.id).or_insert((mount, pid));
        }
    }

    /// Finds a mount of the file system on a device.
    fn of_device(&self, device: (u32, u32)) -> Option<(u32, &Path)> {
        let of_it = |(mount, _): &&(Mount, u32)| mount.device == device;
        self.by_id.values().find(of_it).map(|(mount, pid)| (*pid, mount.point.as_path()))
    }
}

/// Finds an open file of a task that is the device.
fn open_file(
    task: &Path,
    device: (u32, u32),
    mounts: &Mounts,
    through: Option<&Through<'_>>,
) -> Option<String> {
    for fd in std::fs::read_dir(task.join("fd")).ok()?.flatten() {
        let Ok(target) = std::fs::read_link(fd.path()) else { continue };
        // Sockets, pipes and the like have no path.
        if !target.is_absolute() || through.is_some_and(|t| !t.paths.contains(&target.as_path())) {
            continue;
        }
        let Ok(info) = std::fs::read_to_string(task.join("fdinfo").join(fd.file_name())) else { continue };
        if is_path_only(&info) {
            continue;
        }
        // Asking a file on a network or FUSE file system may never be answered; no device is on one. Of a mount that
        // nobody has any more (unmounted lazily) only what its path calls a device is asked.
        let id = field(&info, "mnt_id:").and_then(|text| text.parse::<u64>().ok());
        let safe = match id.and_then(|id| mounts.by_id.get(&id)) {
            Some((mount, _)) => !new_device_each_time(&mount.fs_type),
            None => target.starts_with("/dev"),
        };
        if safe && is_device(&fd.path(), device) {
            return Some(format!("has {} open", target.display()));
        }
    }
    None
}

/// O_PATH: such a descriptor names a device and does not hold it.
fn is_path_only(info: &str) -> bool {
    const O_PATH: u32 = 0o10_000_000;
    field(info, "flags:").and_then(|text| u32::from_str_radix(text, 8).ok()).is_some_and(|f| f & O_PATH != 0)
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn is_device(fd: &Path, device: (u32, u32)) -> bool {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    rustix::fs::statx(rustix::fs::CWD, fd, flags, StatxFlags::TYPE).is_ok_and(|stat| {
        FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::BlockDevice
            && (stat.stx_rdev_major, stat.stx_rdev_minor) == device
    })
}

/// Names a device that the kernel built on this one: device mapper, RAID, bcache.
fn built_on((major, minor): (u32, u32)) -> Option<String> {
    let holders = std::fs::read_dir(format!("/sys/dev/block/{major}:{minor}/holders")).ok()?;
    let name = holders.flatten().next()?.file_name();
    Some(format!("the device /dev/{}, which is built on it", name.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_descriptor_for_the_path_alone_does_not_hold() {
        assert!(is_path_only("pos:\t0\nflags:\t012000000\nmnt_id:\t24\n"));
        assert!(!is_path_only("pos:\t0\nflags:\t02100002\nmnt_id:\t24\n"));
    }

    #[test]
    fn nobody_has_a_device_that_does_not_exist() {
        assert_eq!(first((4095, 1_048_575), None, None).unwrap(), None);
    }
}
