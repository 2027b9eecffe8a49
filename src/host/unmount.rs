//! Unmounts: only what the table proves to be the recorded mount, never lazily, in a process that can be given up.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::event::{Timespec, poll};
use rustix::io::Errno;

use super::mount_table::Shared;
use super::path::Root;
use super::unmounter::{Ended, Unmounters};
use super::{HostError, users};
use crate::model::{MountIdentity, MountTable, MountsAt, RootPath, has_server};

/// How long an unmount may take: it writes back what the file system has not written yet.
pub(super) const LIMIT: Duration = Duration::from_secs(120);

/// The same where the operator said that what is not written may be lost.
pub(super) const FORCED_LIMIT: Duration = Duration::from_secs(30);

const DOING: &str = "unmount";

/// How a path is unmounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// What was written there is written back first; busy is an error.
    Plain,
    /// The same, but what waits for the file system's server is given up with an error (MNT_FORCE), never lazily: the operator
    /// said so. What the server has not got by then is lost.
    Forced,
}

/// What an unmount would meet, as the table shows it.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// Nothing is mounted there.
    Gone,
    /// Exactly the expected mount, by its id.
    Expected(u64),
}

/// A child of ours has our descriptors until it gets its own program: what another thread looked at that moment is busy for
/// a few milliseconds.
const FORKED_PAUSE: Duration = Duration::from_millis(4);
const FORKED_TRIES: usize = 3;

/// Unmounts a path if exactly this mount is there (`Host::unmount`).
///
/// # Errors
/// `WrongMount` and `Busy`: nothing was done, but that a forced one made calls to a server fail. `Deadline`: not known.
pub(super) fn unmount(
    root: &Root,
    table: &Shared,
    unmounters: &Unmounters,
    path: &RootPath,
    (expected, how): (&MountIdentity, Unmount),
    limit: Duration,
) -> Result<(), HostError> {
    let absolute = root.absolute(path);
    let failed = |source: io::Error| HostError::Io { doing: DOING, path: absolute.clone(), source };
    let look = || judge(&*table.look_here()?, &absolute, expected);
    let Found::Expected(id) = look()? else { return Ok(()) };
    // The parent is reached without a symlink and held, so that the name in it is the place that the table was asked about.
    let (parent, name) = root.open_parent(path).map_err(|e| root.failed(DOING, path, "a mount point", e))?;
    let once = || unmounters.unmount(&parent, &name, how == Unmount::Forced, limit).map_err(failed);
    let mut ended = once()?;
    for _ in 0..FORKED_TRIES {
        if ended != Ended::Failed(Errno::BUSY) {
            break;
        }
        pause(FORKED_PAUSE).map_err(failed)?;
        ended = once()?;
    }
    match ended {
        Ended::Done => Ok(()),
        Ended::Failed(Errno::BUSY) => Err(HostError::Busy {
            holder: users::holder_of_mount(id, &absolute).unwrap_or_else(|| "another process".to_owned()),
            path: absolute,
        }),
        // Somebody else was faster (EINVAL: not a mount point; ENOENT: not even a directory).
        Ended::Failed(e @ (Errno::INVAL | Errno::NOENT)) => match look()? {
            Found::Gone => Ok(()),
            Found::Expected(_) => Err(failed(e.into())),
        },
        Ended::Failed(e) => Err(failed(e.into())),
        // The kernel takes a mount away before it waits for the server to hear of it: then nobody has it any more, and the
        // operator said that what was not written may be lost.
        Ended::Silent if how == Unmount::Forced && matches!(look(), Ok(Found::Gone)) => Ok(()),
        Ended::Silent => Err(HostError::Deadline { doing: DOING, path: absolute, seconds: limit.as_secs() }),
    }
}

/// Waits, on a thread that may: one of the blocking pool.
pub(super) fn pause(time: Duration) -> io::Result<()> {
    let time = Timespec::try_from(time).map_err(io::Error::other)?;
    match poll(&mut [], Some(&time)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Decides from the table: one mount, the recorded one, nothing on it and nothing below it.
fn judge(table: &MountTable, path: &Path, expected: &MountIdentity) -> Result<Found, HostError> {
    let wrong = |found: String| Err(HostError::WrongMount { path: path.to_owned(), found });
    let mount = match table.at(path) {
        MountsAt::None => return Ok(Found::Gone),
        MountsAt::One(mount) => mount,
        MountsAt::Stacked(mounts) => return wrong(format!("{} mounts are stacked there", mounts.len())),
    };
    let found = mount.identity();
    let same =
        found == *expected || (new_device_each_time(&found.fs_type) && found.same_but_device(expected));
    if !same {
        return wrong(format!("there is {found}, recorded is {expected}"));
    }
    if let Some(below) = table.below(path).next() {
        return wrong(format!("something is mounted below it, at {}", below.point.display()));
    }
    Ok(Found::Expected(mount.id))
}

/// Returns whether each mount of this type gets a device number of its own: FUSE and network file systems.
pub(super) fn new_device_each_time(fs_type: &str) -> bool {
    has_server(fs_type) || matches!(fs_type, "ocfs2" | "gfs2")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Mount;

    fn mount(point: &str, fs_type: &str, device: (u32, u32)) -> Mount {
        Mount {
            id: 1,
            parent: 0,
            device,
            root: "/".into(),
            point: point.into(),
            fs_type: fs_type.to_owned(),
            source: "s".to_owned(),
            read_only: false,
        }
    }

    #[test]
    fn another_device_number_is_the_same_mount_for_fuse_and_network_only() {
        for (fs_type, allowed) in [("fuse.s3", true), ("nfs4", true), ("ext4", false), ("tmpfs", false)] {
            let table = MountTable::new([mount("/r/x", fs_type, (0, 5))]);
            let expected = mount("/r/x", fs_type, (0, 4)).identity();
            let found = judge(&table, Path::new("/r/x"), &expected);
            assert_eq!(found.is_ok(), allowed, "{fs_type}: {found:?}");
        }
    }

    #[test]
    fn a_mount_below_or_above_stops_the_unmount() {
        let one = mount("/r/x", "ext4", (8, 1));
        let expected = one.identity();
        let below = MountTable::new([one.clone(), mount("/r/x/y", "tmpfs", (0, 4))]);
        assert!(matches!(judge(&below, Path::new("/r/x"), &expected), Err(HostError::WrongMount { .. })));
        let stacked = MountTable::new([one.clone(), one.clone()]);
        assert!(matches!(judge(&stacked, Path::new("/r/x"), &expected), Err(HostError::WrongMount { .. })));
        let beside = MountTable::new([one, mount("/r/xy", "tmpfs", (0, 4))]);
        assert_eq!(judge(&beside, Path::new("/r/x"), &expected).unwrap(), Found::Expected(1));
    }

    #[test]
    fn nothing_there_is_success() {
        let expected = mount("/r/x", "ext4", (8, 1)).identity();
        assert_eq!(judge(&MountTable::default(), Path::new("/r/x"), &expected).unwrap(), Found::Gone);
    }
}
