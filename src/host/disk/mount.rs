//! Mounts of the file system of a device, and its growth while it is mounted.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::super::detached::{Unmade, attach, make};
use super::super::grow::{self, Grown};
use super::super::mount_table;
use super::super::options::Options;
use super::super::path::Root;
use super::super::wanted::Waits;
use super::btrfs::{self, Subvolume};
use super::check;
use super::device::{Device, Opinions, size};
use super::error::{DiskError, failed};
use super::{DiskMounted, LOOK, MOUNT, limit, places};
use crate::model::{
    Checked, Content, DiskMount, FileSystem, FsGrowth, FsKind, Mount, MountTable, MountsAt, RootPath,
};

/// Where something is mounted.
#[derive(Debug)]
pub(super) struct At {
    pub(super) root: PathBuf,
    pub(super) path: RootPath,
}

impl At {
    pub(super) fn absolute(&self) -> PathBuf {
        self.root.join(self.path.as_path())
    }
}

/// Checks the recorded file system of the recorded disk and mounts it on an empty place: read-only and with its options from
/// the first moment that anybody can see it.
///
/// # Errors
/// Nothing is mounted.
pub(super) async fn mount(
    device: &Device,
    asked: &DiskMount,
    at: &At,
    before: Option<Opinions>,
) -> Result<DiskMounted, DiskError> {
    let mut options = Options::of(&asked.options);
    options.read_only |= asked.read_only;
    let subvolume = Subvolume::of(&options.own).map_err(|why| refused(device, at, why))?;
    let part = Part::Asked(&subvolume);
    device.must_be(&asked.identity)?;
    if let Some(mount) = already(device, &asked.file_system, part, at).await? {
        return Ok(DiskMounted {
            checked: Checked::Not("it is mounted".to_owned()),
            mount: mount.identity(),
            already: true,
            fills: fills(device, asked.file_system.kind),
        });
    }
    let found = device.opinions_after(before).await?.content();
    if found != Content::FileSystem(asked.file_system.clone()) {
        let recorded = asked.file_system.clone();
        return Err(DiskError::OtherContent { path: device.path.clone(), recorded, found });
    }
    let checked = if options.read_only {
        Checked::Not("it is mounted read-only".to_owned())
    } else {
        device.lasts(check::LIMIT);
        check::before_mount(device, asked.file_system.kind).await?
    };
    device.lasts(MOUNT);
    let id = show(device, &asked.file_system, &options, &subvolume, at)?;
    let error = match already(device, &asked.file_system, part, at).await {
        Ok(Some(mount)) => {
            let fills = fills(device, asked.file_system.kind);
            return Ok(DiskMounted { checked, mount: mount.identity(), already: false, fills });
        }
        Ok(None) => other_mount(device, at, "it was unmounted at once".to_owned()),
        Err(error) => error,
    };
    take_back(at, id)?;
    Err(error)
}

/// Mounts it; returns the mount's id.
fn show(
    device: &Device,
    file_system: &FileSystem,
    options: &Options,
    subvolume: &Subvolume,
    at: &At,
) -> Result<u64, DiskError> {
    let absolute = at.absolute();
    let root = Root::existing(&at.root).map_err(failed("open the root directory", &at.root))?;
    // Also refuses what something is mounted on by now.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let place = root
        .open_at(&at.path, flags)
        .map_err(|e| DiskError::from(root.failed("mount at", &at.path, "an empty directory", e)))?;
    let (_waits, wanted) = Waits::new();
    let mount = make(&device.node()?, file_system.kind.name(), options, &absolute, &wanted);
    let mount = mount.map_err(|unmade| match unmade {
        Unmade::Option(why) => refused(device, at, why),
        Unmade::Other(_, error) => error.into(),
    })?;
    // The node may be another disk's by now: what was mounted has to be what was looked at.
    let seen = failed("look at the mount of", &device.path);
    let top =
        rustix::fs::openat(&mount, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(&seen)?;
    let is_it = match file_system.kind {
        FsKind::Ext3 | FsKind::Ext4 | FsKind::Xfs => {
            let stat = rustix::fs::fstat(&top).map_err(&seen)?;
            (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)) == device.number
        }
        FsKind::Btrfs => {
            let shown = btrfs::shown(&top, &file_system.uuid).map_err(&seen)?;
            shown.is_some_and(|id| subvolume.may_be(id)) && btrfs::has(device, &file_system.uuid)?
        }
    };
    if !is_it {
        return Err(other_mount(device, at, "its node became another device's meanwhile".to_owned()));
    }
    let id = mount_id(&top).map_err(&seen)?;
    attach(&mount, &place, &wanted).map_err(failed("mount at", &absolute))?;
    Ok(id)
}

/// Unmounts what was just mounted and is not what was asked for.
///
/// # Errors
/// When it stays.
fn take_back(at: &At, id: u64) -> Result<(), DiskError> {
    let absolute = at.absolute();
    match table()?.at(&absolute) {
        MountsAt::One(mount) if mount.id == id => {
            rustix::mount::unmount(&absolute, UnmountFlags::NOFOLLOW).map_err(failed("unmount", &absolute))
        }
        MountsAt::None | MountsAt::One(_) | MountsAt::Stacked(_) => Ok(()),
    }
}

fn mount_id(fd: &OwnedFd) -> Result<u64, Errno> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT;
    Ok(rustix::fs::statx(fd, c"", flags, StatxFlags::MNT_ID)?.stx_mnt_id)
}

fn refused(device: &Device, at: &At, why: String) -> DiskError {
    DiskError::Options { path: device.path.clone(), at: at.absolute(), why }
}

/// What of a file system a mount has to show.
#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    /// What mount options ask for.
    Asked(&'a Subvolume),
    /// Any subvolume: they share what there is of room.
    Any,
}

/// Returns the mount of a device's file system at a place, if it is there alone and is that.
///
/// # Errors
/// `OtherMount`: something else is there.
async fn already(
    device: &Device,
    file_system: &FileSystem,
    part: Part<'_>,
    at: &At,
) -> Result<Option<Mount>, DiskError> {
    let absolute = at.absolute();
    match table()?.at(&absolute) {
        MountsAt::None => Ok(None),
        MountsAt::One(mount) => match differs(device, file_system, part, &absolute, mount).await? {
            None => Ok(Some(mount.clone())),
            Some(how) => Err(other_mount(device, at, format!("{}: {how}", mount.identity()))),
        },
        MountsAt::Stacked(mounts) => {
            Err(other_mount(device, at, format!("{} mounts are stacked there", mounts.len())))
        }
    }
}

/// Says why a mount is not the one of a file system on a device.
async fn differs(
    device: &Device,
    file_system: &FileSystem,
    part: Part<'_>,
    absolute: &Path,
    mount: &Mount,
) -> Result<Option<String>, DiskError> {
    let because = |why: &str| Ok(Some(why.to_owned()));
    if mount.fs_type != file_system.kind.name() {
        return because("the file system is of another type");
    }
    match file_system.kind {
        FsKind::Ext3 | FsKind::Ext4 | FsKind::Xfs => {
            if mount.device != device.number {
                return because("it is another device's");
            }
            if mount.root != Path::new("/") {
                return because("it shows a part of the file system");
            }
            let there =
                places::superblock(&device.fd, file_system.kind).map_err(failed("read", &device.path))?;
            if there.is_none_or(|there| there.file_system.uuid != file_system.uuid) {
                return because("the file system has another UUID");
            }
            Ok(None)
        }
        FsKind::Btrfs => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let seen = failed("look at the mount at", absolute);
            let top = rustix::fs::open(absolute, flags, Mode::empty()).map_err(&seen)?;
            if mount_id(&top).map_err(&seen)? != mount.id {
                return because("something was mounted there meanwhile");
            }
            let Some(id) = btrfs::shown(&top, &file_system.uuid).map_err(&seen)? else {
                return because("the file system has another UUID");
            };
            if !btrfs::has(device, &file_system.uuid)? {
                return because("the file system is not on this device");
            }
            match part {
                Part::Asked(subvolume) => subvolume.differs(device, absolute, id, &mount.root).await,
                Part::Any => Ok(None),
            }
        }
    }
}

fn other_mount(device: &Device, at: &At, found: String) -> DiskError {
    DiskError::OtherMount { path: device.path.clone(), at: at.absolute(), found }
}

fn table() -> Result<MountTable, DiskError> {
    let path = Path::new("/proc/thread-self/mountinfo");
    mount_table::once().map_err(failed("read", path))
}

/// Lets a mounted file system take all of its device, where it does not.
///
/// # Errors
/// `NotWhole` where it says afterwards that it is smaller; it can be done again.
pub(super) async fn grow(device: &Device, file_system: &FileSystem, at: &At) -> Result<FsGrowth, DiskError> {
    let absolute = at.absolute();
    let Some(mount) = already(device, file_system, Part::Any, at).await? else {
        return Err(other_mount(device, at, "nothing is mounted there".to_owned()));
    };
    let (from, grain) = fs_size(device, file_system.kind, &absolute).await?;
    // Read again: it is the growth of the device that brings us here.
    let bytes = size(&device.fd).map_err(failed("find the size of", &device.path))?;
    if is_whole((from, grain), bytes) {
        return Ok(FsGrowth::Enough { bytes: from });
    }
    if mount.read_only {
        let why = "it is mounted read-only".to_owned();
        return Err(DiskError::Failed { doing: "grow the file system at".to_owned(), path: absolute, why });
    }
    let node = device.in_tools();
    let limit = limit(bytes);
    device.lasts(limit + LOOK);
    let refused = |why: &str| DiskError::Failed {
        doing: "grow the file system at".to_owned(),
        path: absolute.clone(),
        why: why.to_owned(),
    };
    match grow::mounted(&device.tools, file_system.kind, (&node, &absolute), bytes, limit).await? {
        Grown::Whole => {}
        Grown::NeedsSysResource => {
            return Err(refused("volumed needs the capability CAP_SYS_RESOURCE for it"));
        }
        Grown::TooSmall => {
            return Err(refused("this kernel grows no btrfs to less than 256 MiB; make the device larger"));
        }
    }
    let (now, _) = fs_size(device, file_system.kind, &absolute).await?;
    if is_whole((now, grain), bytes) {
        return Ok(FsGrowth::Grown { from, bytes: now });
    }
    Err(DiskError::NotWhole { path: device.path.clone(), bytes: now, device: bytes })
}

/// Returns whether a file system takes all of its device as it is now, as far as its superblock says: that of a mounted one may be
/// behind. What cannot be read does not: who grows it finds out why.
fn fills(device: &Device, kind: FsKind) -> bool {
    let superblock = places::superblock(&device.fd, kind).ok().flatten();
    let bytes = size(&device.fd).ok();
    superblock.zip(bytes).is_some_and(|(one, bytes)| is_whole((one.bytes, one.grain), bytes))
}

/// Returns whether there is no room left on a device of so many bytes.
fn is_whole((bytes, grain): (u64, u64), device: u64) -> bool {
    bytes.saturating_add(grain) > device
}

/// Returns the size of a mounted file system, and the least by which it can be smaller than its device and yet not grow.
async fn fs_size(device: &Device, kind: FsKind, mounted: &Path) -> Result<(u64, u64), DiskError> {
    let superblock = places::superblock(&device.fd, kind).map_err(failed("read", &device.path))?;
    let superblock = superblock.ok_or_else(|| DiskError::Failed {
        doing: "find the superblock of".to_owned(),
        path: device.path.clone(),
        why: format!("there is no {kind}"),
    })?;
    match kind {
        FsKind::Ext3 | FsKind::Ext4 | FsKind::Btrfs => Ok((superblock.bytes, superblock.grain)),
        // Of a mounted xfs the superblock on the device may be an old one.
        FsKind::Xfs => Ok((xfs_size(device, mounted).await?, superblock.grain)),
    }
}

/// Asks a mounted xfs for its size.
async fn xfs_size(device: &Device, mounted: &Path) -> Result<u64, DiskError> {
    const DOING: &str = "find the size of the file system at";
    let tool = device.tools.tool("xfs_growfs", grow::package(FsKind::Xfs))?;
    // -n changes nothing and prints what is.
    let ended = device.tools.run(DOING, mounted, &tool, ["-n".as_ref(), mounted.as_os_str()], LOOK).await?;
    let bytes = ended.status.success().then(|| xfs_bytes(&String::from_utf8_lossy(&ended.stdout))).flatten();
    bytes.ok_or_else(|| DiskError::Failed {
        doing: DOING.to_owned(),
        path: mounted.to_owned(),
        why: format!("xfs_growfs: {}: {}", ended.status, ended.said),
    })
}

/// Reads `data     =                       bsize=4096   blocks=76800, imaxpct=25`.
fn xfs_bytes(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("data "))?;
    let of = |name: &str| {
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(name))?;
        value.trim_end_matches(',').parse::<u64>().ok()
    };
    of("bsize=")?.checked_mul(of("blocks=")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_of_an_xfs_is_read() {
        let text = "meta-data=/dev/loop0 isize=512    agcount=4, agsize=19200 blks\n         =  crc=1\n\
                    data     =                       bsize=4096   blocks=76800, imaxpct=25\n\
                    log      =internal log           bsize=4096   blocks=16384, version=2\n";
        assert_eq!(xfs_bytes(text), Some(76800 * 4096));
        assert_eq!(xfs_bytes("log =internal log bsize=4096 blocks=16384"), None);
    }
}
