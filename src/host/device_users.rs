//! Who has a block device: processes with it open, mounts of a file system on it, devices built on it.
//!
//! Before a device is taken away nothing is deleted, so what cannot be seen is passed over (`first`); before one is formatted it
//! is told (`look`). Nobody sees the processes outside of our pid namespace.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, StatxFlags};
use rustix::io::Errno;

use super::unmount::new_device_each_time;
use super::users::text;
use super::{Holder, mount_table, raw};
use crate::model::Mount;

/// The paths of one pod among several that share a device: only who opened it there counts.
#[derive(Debug)]
pub(super) struct Through<'a> {
    /// The file on which it is bound for the pod, and where the driver published it: absolute.
    pub(super) paths: [&'a Path; 2],
}

/// What a look found.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Somebody who has the device.
    pub(super) holder: Option<String>,
    /// The first thing that could not be looked at.
    pub(super) unseen: Option<String>,
}

/// Finds somebody who has a device, by its number: a container opens a node of its own. A driver, and what it started, may
/// serve the device and does not count. What cannot be seen is passed over.
///
/// # Errors
/// When `/proc` cannot be read at all.
pub(super) fn first(
    device: (u32, u32),
    through: Option<&Through<'_>>,
    driver: Option<u32>,
) -> io::Result<Option<String>> {
    Ok(find(device, through, driver)?.holder)
}

/// As `first`, but tells what could not be looked at: root needs CAP_SYS_PTRACE to see the files of a process with more
/// capabilities than its own, and to see any process in a `/proc` that hides them.
///
/// # Errors
/// As `first`.
pub(super) fn look(device: (u32, u32)) -> io::Result<Found> {
    let mut found = find(device, None, None)?;
    let own = std::fs::read_to_string("/proc/self/status")?;
    if found.unseen.is_none() && !may_trace(&own) {
        let table = std::fs::read_to_string("/proc/thread-self/mountinfo")?;
        found.unseen = hides_processes(&table).then(|| "/proc hides processes (hidepid)".to_owned());
    }
    Ok(found)
}

/// Finds a mount, of any mount namespace, that shows the node of a device: so a pod sees a raw volume, and until it opens it
/// nothing else tells.
///
/// # Errors
/// As `first`.
pub(super) fn shown(device: (u32, u32)) -> io::Result<Found> {
    let pids = numbers(Path::new("/proc"))?;
    let mut mounts = Mounts::default();
    let mut unseen = Unseen::default();
    pids.iter().for_each(|pid| mounts.add(*pid, &mut unseen));
    let is_it = |pid: u32, point: &Path| {
        let point = point.strip_prefix("/").unwrap_or(point);
        is_device(&Path::new(&format!("/proc/{pid}/root")).join(point), device)
    };
    let found = mounts.showing(is_it, &mut unseen).map(|(pid, point)| {
        let how = format!("has it mounted at {}", point.display());
        holder(pid, how).to_string()
    });
    Ok(Found { holder: found, unseen: unseen.first })
}

/// Whether a status of `/proc` has CAP_SYS_PTRACE in effect.
fn may_trace(status: &str) -> bool {
    const SYS_PTRACE: u64 = 1 << 19;
    field(status, "CapEff:")
        .and_then(|text| u64::from_str_radix(text, 16).ok())
        .is_some_and(|capabilities| capabilities & SYS_PTRACE != 0)
}

/// Whether the `/proc` of this mount table may not list all processes.
fn hides_processes(table: &str) -> bool {
    // Of stacked mounts the last one is seen.
    let line = table.lines().rfind(|line| line.split(' ').nth(4) == Some("/proc"));
    let options = line.and_then(|line| line.rsplit(' ').next()).unwrap_or_default();
    let hidden = options.split(',').find_map(|option| option.strip_prefix("hidepid="));
    hidden.is_some_and(|how| how != "0" && how != "off")
}

fn find(device: (u32, u32), through: Option<&Through<'_>>, driver: Option<u32>) -> io::Result<Found> {
    let pids = numbers(Path::new("/proc"))?;
    let mut mounts = Mounts::default();
    let mut unseen = Unseen::default();
    pids.iter().for_each(|pid| mounts.add(*pid, &mut unseen));
    let own = std::process::id();
    for pid in pids.into_iter().filter(|pid| *pid != own) {
        let tasks = numbers(Path::new(&format!("/proc/{pid}/task")));
        // A process that ended meanwhile has nothing open.
        for tid in unseen.unless_gone(pid, "threads", tasks).unwrap_or_default() {
            if tid != pid && raw::same_files(pid, tid) == Some(true) {
                continue;
            }
            let mut look = || open_file((pid, tid), device, &mounts, through, &mut unseen);
            if let Some(how) = look()
                && !driver.is_some_and(|driver| descends(pid, driver))
                && !is_ours(pid, own)
                // A child of ours may have got its own program meanwhile: it has closed our descriptors by then.
                && look().is_some()
            {
                return Ok(Found { holder: Some(holder(pid, how).to_string()), unseen: None });
            }
        }
    }
    let found = |holder| Ok(Found { holder, unseen: unseen.first });
    if through.is_some() {
        return found(None);
    }
    if let Some((pid, point)) = mounts.of_device(device) {
        let how = format!("has a file system on it mounted at {}", point.display());
        return found(Some(holder(pid, how).to_string()));
    }
    found(built_on(device))
}

/// Remembers the first thing that could not be looked at.
#[derive(Debug, Default)]
struct Unseen {
    first: Option<String>,
}

impl Unseen {
    /// Takes what a look at a process found; one that ended meanwhile has nothing.
    fn unless_gone<T>(&mut self, pid: u32, what: &str, found: io::Result<T>) -> Option<T> {
        let error = match found {
            Ok(found) => return Some(found),
            Err(error) => error,
        };
        let gone = match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOENT | Errno::SRCH) => true,
            // So the kernel answers for the mounts of a process that ended and that nobody has waited for.
            Some(Errno::INVAL) => is_zombie(pid),
            _ => false,
        };
        if !gone && self.first.is_none() {
            let name = text(format!("/proc/{pid}/comm")).unwrap_or_default();
            self.first = Some(format!("the {what} of pid {pid} ({}): {error}", name.trim()));
        }
        None
    }
}

fn is_zombie(pid: u32) -> bool {
    let status = text(format!("/proc/{pid}/status")).unwrap_or_default();
    field(&status, "State:").is_none_or(|state| state.starts_with(['Z', 'X']))
}

fn holder(pid: u32, how: String) -> Holder {
    let command = text(format!("/proc/{pid}/comm")).unwrap_or_default();
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
        let status = text(format!("/proc/{pid}/status")).ok()?;
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
    fn add(&mut self, pid: u32, unseen: &mut Unseen) {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let namespace =
            unseen.unless_gone(pid, "mount namespace", std::fs::read_link(process.join("ns/mnt")));
        let Some(namespace) = namespace.filter(|namespace| !self.seen.contains(namespace)) else { return };
        let table = std::fs::read(process.join("mountinfo")).and_then(|text| mount_table::parse(&text));
        // Of one that ended meanwhile another process may tell.
        let Some(table) = unseen.unless_gone(pid, "mounts", table) else { return };
        self.seen.insert(namespace);
        for mount in table.into_iter().map(|line| line.mount) {
            self.by_id.entry(mount.id).or_insert((mount, pid));
        }
    }

    /// Finds a mount of the file system on a device.
    fn of_device(&self, device: (u32, u32)) -> Option<(u32, &Path)> {
        let of_it = |(mount, _): &&(Mount, u32)| mount.device == device;
        self.by_id.values().find(of_it).map(|(mount, pid)| (*pid, mount.point.as_path()))
    }

    /// Finds a mount that is a node by itself, according to `is_it`: only part of a file system is shown there. Of network and
    /// FUSE file systems nothing is asked, as in `open_file`.
    fn showing(
        &self,
        mut is_it: impl FnMut(u32, &Path) -> io::Result<bool>,
        unseen: &mut Unseen,
    ) -> Option<(u32, &Path)> {
        let parts = self.by_id.values().filter(|(mount, _)| {
            mount.root != Path::new("/") && !new_device_each_time(&mount.fs_type) && mount.fs_type != "nsfs"
        });
        parts.map(|(mount, pid)| (*pid, mount.point.as_path())).find(|(pid, point)| {
            unseen.unless_gone(*pid, &format!("mount at {}", point.display()), is_it(*pid, point))
                == Some(true)
        })
    }
}

/// Finds an open file of a task that is the device.
fn open_file(
    (pid, tid): (u32, u32),
    device: (u32, u32),
    mounts: &Mounts,
    through: Option<&Through<'_>>,
    unseen: &mut Unseen,
) -> Option<String> {
    let task = PathBuf::from(format!("/proc/{pid}/task/{tid}"));
    // What was closed meanwhile is nobody's.
    for fd in unseen.unless_gone(pid, "open files", std::fs::read_dir(task.join("fd")))? {
        let Some(fd) = unseen.unless_gone(pid, "open files", fd) else { continue };
        let target = std::fs::read_link(fd.path());
        let Some(target) = unseen.unless_gone(pid, "open files", target) else { continue };
        // Sockets, pipes and the like have no path.
        if !target.is_absolute() || through.is_some_and(|t| !t.paths.contains(&target.as_path())) {
            continue;
        }
        let info = std::fs::read_to_string(task.join("fdinfo").join(fd.file_name()));
        let Some(info) = unseen.unless_gone(pid, "open files", info) else { continue };
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
        if safe && unseen.unless_gone(pid, "open files", is_device(&fd.path(), device)) == Some(true) {
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

fn is_device(fd: &Path, device: (u32, u32)) -> io::Result<bool> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let stat = rustix::fs::statx(rustix::fs::CWD, fd, flags, StatxFlags::TYPE)?;
    let is_block = FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::BlockDevice;
    Ok(is_block && (stat.stx_rdev_major, stat.stx_rdev_minor) == device)
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
    fn a_proc_that_hides_processes_is_known_and_who_sees_them_all_the_same() {
        let table = |options: &str| {
            format!("1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 0:5 / /proc rw shared:9 - proc proc {options}\n")
        };
        for (options, hides) in [
            ("rw", false),
            ("rw,hidepid=0", false),
            ("rw,hidepid=off", false),
            ("rw,hidepid=2", true),
            ("rw,gid=7,hidepid=invisible", true),
            ("rw,hidepid=ptraceable", true),
        ] {
            assert_eq!(hides_processes(&table(options)), hides, "{options}");
        }
        assert!(may_trace("Name:\tx\nCapEff:\t0000000000080000\n"));
        assert!(!may_trace("CapEff:\tfffffffffff7ffff\n") && !may_trace(""));
    }

    #[test]
    fn what_a_process_that_ended_had_is_not_missed() {
        let mut unseen = Unseen::default();
        let none: Option<()> = None;
        let error = |errno: Errno| Err(io::Error::from(errno));
        assert_eq!(unseen.unless_gone(1, "open files", error(Errno::NOENT)), none);
        assert_eq!(unseen.unless_gone(1, "open files", error(Errno::SRCH)), none);
        assert_eq!(unseen.first, None);
        assert_eq!(unseen.unless_gone(1, "open files", error(Errno::ACCESS)), none);
        assert!(unseen.first.is_some_and(|what| what.starts_with("the open files of pid 1 (")));
    }

    #[test]
    fn a_node_that_is_bound_somewhere_is_found_and_no_server_is_asked() {
        let line = |id: u64, root: &str, point: &str, fs_type: &str| {
            format!("{id} 1 0:5 {root} {point} rw - {fs_type} some rw\n")
        };
        let table = [
            line(2, "/", "/dev", "devtmpfs"),
            line(3, "/share", "/mnt/share", "nfs4"),
            line(4, "/sdb", "/pods/one/disk", "devtmpfs"),
            line(5, "/sdc", "/pods/two/disk", "devtmpfs"),
        ];
        let mut mounts = Mounts::default();
        for line in mount_table::parse(table.concat().as_bytes()).unwrap() {
            mounts.by_id.insert(line.mount.id, (line.mount, 7));
        }
        let mut asked = Vec::new();
        let mut unseen = Unseen::default();
        let is_two = |pid, point: &Path| {
            asked.push(point.to_owned());
            assert_eq!(pid, 7);
            Ok(point == Path::new("/pods/two/disk"))
        };
        assert_eq!(mounts.showing(is_two, &mut unseen), Some((7, Path::new("/pods/two/disk"))));
        assert_eq!(asked, [Path::new("/pods/one/disk"), Path::new("/pods/two/disk")]);
        assert_eq!(unseen.first, None);
        // What cannot be asked is told, and what is gone meanwhile is not.
        let gone = mounts.showing(|_, _| Err(Errno::NOENT.into()), &mut unseen);
        assert_eq!((gone, unseen.first.is_none()), (None, true));
        let denied = mounts.showing(|_, _| Err(Errno::ACCESS.into()), &mut unseen);
        assert_eq!(denied, None);
        assert!(unseen.first.is_some_and(|what| what.starts_with("the mount at /pods/one/disk of pid 7")));
    }

    #[test]
    fn nobody_has_a_device_that_does_not_exist() {
        assert_eq!(first((4095, 1_048_575), None, None).unwrap(), None);
    }
}
