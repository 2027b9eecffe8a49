//! What is checked before anything is touched: the kernel, the user, the mount namespace, and that nobody else is at work.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::mount_table::{self, Line};

/// The oldest kernel: 5.8 reads the mount table whole, 5.9 has close_range, 5.12 mount_setattr (dependencies.md 5).
const KERNEL_FLOOR: (u32, u32) = (5, 12);

/// Why volumed does not start here.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Mounts made here would not be seen outside.
    #[error(
        "mounts made below {} do not reach PID 1's mount namespace; run volumed without the systemd settings that \
         give it a mount namespace of its own (PrivateMounts=, ProtectSystem=, PrivateTmp= and the like)",
        root.display()
    )]
    OtherNamespace {
        /// The root directory.
        root: PathBuf,
    },
    /// Mounts made here would not be seen in other mount namespaces.
    #[error(
        "the mount at {} is private, so mounts made below {} reach no container; run: mount --make-shared {}",
        point.display(), root.display(), point.display()
    )]
    PrivateMount {
        /// The root directory.
        root: PathBuf,
        /// The mount that it lies on.
        point: PathBuf,
    },
    /// The namespaces could not be compared.
    #[error("cannot find out whether mounts below {} reach PID 1: cannot read {}", root.display(), path.display())]
    Unknown {
        /// The root directory.
        root: PathBuf,
        /// What could not be read.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another instance is at work.
    #[error("{} is in use by another volumed{}", path.display(), pid.map(|p| format!(" (pid {p})")).unwrap_or_default())]
    Locked {
        /// The root directory or the state directory.
        path: PathBuf,
        /// Who, where the kernel says it.
        pid: Option<u32>,
    },
    /// The lock could not be taken for another reason.
    #[error("cannot lock {}", path.display())]
    Lock {
        /// The directory or file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A lock that is held until it is dropped or the process ends, however it ends.
#[derive(Debug)]
#[must_use = "the lock is held only as long as this value"]
pub struct Lock {
    _held: OwnedFd,
}

/// Returns whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Locks the root directory itself (flock on its own descriptor: nothing is written, a kubelet does not notice).
///
/// # Errors
/// `Locked` by another volumed, or `Lock`.
pub fn lock_root(root: &Path) -> Result<Lock, StartError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    lock(root, root, flags, Mode::empty())
}

/// Locks the state directory by the file `lock` in it, which stays when the lock is dropped.
///
/// # Errors
/// `Locked` by another volumed, or `Lock`.
pub fn lock_state(state_dir: &Path) -> Result<Lock, StartError> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    lock(state_dir, &state_dir.join("lock"), flags, Mode::from_raw_mode(0o600))
}

fn lock(shown: &Path, path: &Path, flags: OFlags, mode: Mode) -> Result<Lock, StartError> {
    let failed = |source: io::Error| StartError::Lock { path: path.to_owned(), source };
    let fd = rustix::fs::open(path, flags, mode).map_err(|e| failed(e.into()))?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _held: fd }),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            let inode = rustix::fs::fstat(&fd).ok().map(|stat| stat.st_ino);
            let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
            Err(StartError::Locked {
                path: shown.to_owned(),
                pid: inode.and_then(|i| flock_owner(&locks, i)),
            })
        }
        Err(e) => Err(failed(e.into())),
    }
}

/// Finds who holds a flock: `1: FLOCK  ADVISORY  WRITE 4711 fe:00:1234 0 EOF`. By inode only: on btrfs and overlay the
/// device there is not stat's.
fn flock_owner(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let kind = fields.next()?;
        let pid = fields.nth(2)?;
        let found = fields.next()?.rsplit(':').next()?.parse::<u64>().ok()?;
        (kind == "FLOCK" && found == inode).then(|| pid.parse().ok()).flatten()
    })
}

/// Checks that mounts made below the root are seen by PID 1 and by other mount namespaces (design 7).
///
/// # Errors
/// Says what is in the way and what to do.
pub fn propagates_to_init(root: &Path) -> Result<(), StartError> {
    let unknown = |path: &str| {
        let path = PathBuf::from(path);
        move |source| StartError::Unknown { root: root.to_owned(), path, source }
    };
    let read =
        |path: &str| std::fs::read(path).and_then(|text| mount_table::parse(&text)).map_err(unknown(path));
    let namespace = |path: &str| std::fs::metadata(path).map(|m| (m.dev(), m.ino())).map_err(unknown(path));
    let own = read("/proc/thread-self/mountinfo")?;
    let same = namespace("/proc/thread-self/ns/mnt")? == namespace("/proc/1/ns/mnt")?;
    let init = if same { Vec::new() } else { read("/proc/1/mountinfo")? };
    propagates(root, &own, if same { None } else { Some(&init) })
}

/// Decides from the tables; `init` is PID 1's where it is another than our own.
fn propagates(root: &Path, own: &[Line], init: Option<&[Line]>) -> Result<(), StartError> {
    // Of several mounts at the longest prefix the last is on top.
    let on = own
        .iter()
        .filter(|line| root.starts_with(&line.mount.point))
        .max_by_key(|line| line.mount.point.as_os_str().len());
    let group = on.and_then(|line| line.peer_group);
    match (group, init) {
        (Some(_), None) => Ok(()),
        (Some(group), Some(init)) if init.iter().any(|line| line.peer_group == Some(group)) => Ok(()),
        (_, Some(_)) => Err(StartError::OtherNamespace { root: root.to_owned() }),
        (None, None) => Err(StartError::PrivateMount {
            root: root.to_owned(),
            point: on.map_or_else(|| "/".into(), |line| line.mount.point.clone()),
        }),
    }
}

/// Checks the kernel's version.
///
/// # Errors
/// `Unsupported`, with the version found and the one needed.
pub(super) fn check_kernel() -> io::Result<()> {
    check_release(std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim())
}

fn check_release(release: &str) -> io::Result<()> {
    let (major, minor) = KERNEL_FLOOR;
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(a), Some(b)) if (a, b) >= KERNEL_FLOOR => Ok(()),
        _ => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this is Linux {release}; volumed needs {major}.{minor} or newer"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_older_than_the_floor_is_refused_by_name() {
        for good in ["5.12.0", "5.12", "6.1.0-56-cloud-amd64", "6.18.44-fc-v445"] {
            assert!(check_release(good).is_ok(), "{good}");
        }
        for bad in ["5.11.22", "4.18.0-553.el8", "", "x"] {
            let text = check_release(bad).unwrap_err().to_string();
            assert!(text.contains("5.12"), "{text}");
        }
    }

    fn table(text: &str) -> Vec<Line> {
        mount_table::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_shared_mount_of_pid_1_propagates() {
        let own = table("1 0 8:1 / / rw shared:1 - ext4 /dev/vda rw\n");
        assert!(propagates(Path::new("/var/lib/kubelet"), &own, None).is_ok());
        assert!(propagates(Path::new("/var/lib/kubelet"), &own, Some(&own)).is_ok());
    }

    #[test]
    fn a_namespace_that_only_receives_does_not_propagate() {
        let init = table("1 0 8:1 / / rw shared:1 - ext4 /dev/vda rw\n");
        let own = table("9 0 8:1 / / rw shared:7 master:1 - ext4 /dev/vda rw\n");
        let found = propagates(Path::new("/var/lib/kubelet"), &own, Some(&init));
        assert!(matches!(found, Err(StartError::OtherNamespace { .. })), "{found:?}");
    }

    #[test]
    fn a_private_mount_is_named_with_the_remedy() {
        let own = table("1 0 8:1 / / rw shared:1 - ext4 /dev/vda rw\n2 1 8:2 / /var rw - ext4 /dev/vdb rw\n");
        let text = propagates(Path::new("/var/lib/kubelet"), &own, None).unwrap_err().to_string();
        assert!(text.contains("mount --make-shared /var"), "{text}");
    }

    #[test]
    fn a_second_instance_is_told_who_has_the_lock() {
        let directory = tempfile::tempdir().unwrap();
        for take in [lock_root, lock_state] {
            let first = take(directory.path()).unwrap();
            let second = take(directory.path());
            assert!(
                matches!(&second, Err(StartError::Locked { pid: Some(pid), .. }) if *pid == std::process::id()),
                "{second:?}"
            );
            drop(first);
            let _again = take(directory.path()).unwrap();
        }
    }
}
