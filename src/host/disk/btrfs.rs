//! Which btrfs a mount shows, and which of its subvolumes: its device number tells neither, and its root is not `/` where an
//! option or its default names a subvolume.

use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::io::Errno;

use super::super::grow::package;
use super::LOOK;
use super::device::Device;
use super::error::{DiskError, failed};
use crate::model::{FsKind, FsUuid};

/// The subvolume that all others lie in (`BTRFS_FS_TREE_OBJECTID`).
const TOP: u64 = 5;

/// Which subvolume mount options ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Subvolume {
    /// `subvolid=`
    id: Option<u64>,
    /// `subvol=`, as the mount table shows it: from the top on.
    path: Option<PathBuf>,
}

impl Subvolume {
    /// Finds it in the file system's own options; of two that say the same the later one counts, as in the kernel.
    ///
    /// # Errors
    /// Says which option cannot be understood.
    pub(super) fn of(options: &[String]) -> Result<Self, String> {
        let mut found = Self::default();
        for option in options {
            if let Some(text) = option.strip_prefix("subvolid=") {
                let id = number(text).ok_or_else(|| format!("{option}: {text:?} is no number"))?;
                // The kernel's other name for the top.
                found.id = Some(if id == 0 { TOP } else { id });
            } else if let Some(text) = option.strip_prefix("subvol=") {
                let path = Path::new("/").join(text.trim_start_matches('/'));
                if path.components().any(|part| part == Component::ParentDir) {
                    return Err(format!("{option}: name the subvolume from the top on, without `..`"));
                }
                found.path = Some(path);
            }
        }
        Ok(found)
    }

    /// Says what is wrong with a mount of the subvolume `id`, which the mount table shows as `root`.
    ///
    /// # Errors
    /// When the default subvolume cannot be found out.
    pub(super) async fn differs(
        &self,
        device: &Device,
        at: &Path,
        id: u64,
        root: &Path,
    ) -> Result<Option<String>, DiskError> {
        let wrong = |asked: String| {
            Some(format!("it shows the subvolume {} (ID {id}), and asked for was {asked}", root.display()))
        };
        if let Some(asked) = self.id.filter(|asked| *asked != id) {
            return Ok(wrong(format!("the one with the ID {asked}")));
        }
        if let Some(asked) = self.path.as_ref().filter(|asked| asked.as_path() != root) {
            return Ok(wrong(format!("{}", asked.display())));
        }
        if *self != Self::default() || id == TOP {
            return Ok(None);
        }
        let default = default_of(device, at).await?;
        Ok(if default == id { None } else { wrong(format!("the default, which has the ID {default}")) })
    }

    /// Returns whether a mount that nobody sees yet, of the subvolume `id`, may be what is asked for.
    pub(super) fn may_be(&self, id: u64) -> bool {
        self.id.is_none_or(|asked| asked == id)
    }
}

/// As the kernel reads numbers in options: `0x` is hexadecimal, `0` octal.
fn number(text: &str) -> Option<u64> {
    match (text.strip_prefix("0x").or(text.strip_prefix("0X")), text.strip_prefix('0')) {
        (Some(digits), _) => u64::from_str_radix(digits, 16).ok(),
        (None, Some(digits)) if !digits.is_empty() => u64::from_str_radix(digits, 8).ok(),
        (None, _) => text.parse().ok(),
    }
}

/// Asks which subvolume is mounted where no option names one.
async fn default_of(device: &Device, at: &Path) -> Result<u64, DiskError> {
    const DOING: &str = "find the default subvolume of the btrfs at";
    let tool = device.tools.tool("btrfs", package(FsKind::Btrfs))?;
    let arguments = ["subvolume".as_ref(), "get-default".as_ref(), at.as_os_str()];
    let ended = device.tools.run(DOING, at, &tool, arguments, LOOK).await?;
    let text = String::from_utf8_lossy(&ended.stdout);
    // `ID 256 gen 7 top level 5 path name`
    let id = text.strip_prefix("ID ").and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    id.filter(|_| ended.status.success()).ok_or_else(|| DiskError::Failed {
        doing: DOING.to_owned(),
        path: at.to_owned(),
        why: format!("btrfs: {}: {}", ended.status, ended.said),
    })
}

/// Returns which subvolume a mount shows, by a descriptor of its root; `None`: it is not the btrfs with this UUID.
///
/// # Errors
/// The kernel's.
pub(super) fn shown(root: &OwnedFd, uuid: &FsUuid) -> Result<Option<u64>, Errno> {
    /// `BTRFS_SUPER_MAGIC`
    const MAGIC: u64 = 0x9123_683e;
    let kind = u64::try_from(rustix::fs::fstatfs(root)?.f_type).ok();
    if kind != Some(MAGIC) {
        return Ok(None);
    }
    Ok(subvolume(rustix::fs::fstatvfs(root)?.f_fsid, uuid))
}

/// Reads a subvolume's number out of statfs(2)'s id of a btrfs: the halves of its UUID, one over the other, and over them the
/// number (fs/btrfs/super.c, btrfs_statfs).
fn subvolume(f_fsid: u64, uuid: &FsUuid) -> Option<u64> {
    let [a, b, c, d] = uuid.words();
    // The word that holds the number's upper half comes first in memory.
    let folded = u64::from(a ^ c) << 32 | u64::from(b ^ d);
    let id = f_fsid.rotate_left(32) ^ folded;
    // A number that no host ever reached is another UUID.
    (id == TOP || (256..1 << 32).contains(&id)).then_some(id)
}

/// Returns whether the kernel has a device as one of the mounted btrfs with this UUID.
///
/// # Errors
/// When the kernel does not tell the device's name.
pub(super) fn has(device: &Device, uuid: &FsUuid) -> Result<bool, DiskError> {
    let name = device.sysfs.name().map_err(failed("find the name of", &device.path))?;
    let name = name.replace('/', "!");
    let text = std::fs::read_to_string(format!("/sys/fs/btrfs/{uuid}/devices/{name}/dev"));
    let (major, minor) = device.number;
    Ok(text.unwrap_or_default().trim() == format!("{major}:{minor}"))
}

/// Returns whether the only disk of a mounted btrfs was taken away. In doubt it is there.
pub(super) fn is_gone(source: &str) -> bool {
    let Some(name) = source.strip_prefix("/dev/").filter(|name| !name.contains('/')) else { return false };
    let Ok(all) = std::fs::read_dir("/sys/fs/btrfs") else { return false };
    let disks = |directory: std::fs::DirEntry| {
        let entries = std::fs::read_dir(directory.path().join("devices")).ok()?;
        Some(entries.flatten().map(|entry| entry.file_name()).collect::<Vec<_>>())
    };
    let mut of_it = all.flatten().filter_map(disks).filter(|disks| disks.iter().any(|disk| disk == name));
    let there = std::fs::symlink_metadata(format!("/sys/class/block/{name}"));
    let is_missing = there.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
    is_missing && of_it.next().is_some_and(|disks| disks.len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(options: &[&str]) -> Result<Subvolume, String> {
        Subvolume::of(&options.iter().map(|&option| option.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn a_subvolume_is_asked_for_in_several_words() {
        let path = |text: &str| Subvolume { id: None, path: Some(text.into()) };
        let id = |id| Subvolume { id: Some(id), path: None };
        for (option, expected) in [
            ("subvol=a/b", path("/a/b")),
            ("subvol=/a//b/", path("/a/b")),
            ("subvolid=256", id(256)),
            ("subvolid=0x100", id(256)),
            ("subvolid=0400", id(256)),
            ("subvolid=0", id(TOP)),
            ("compress=zstd", Subvolume::default()),
        ] {
            assert_eq!(of(&["noatime", option]), Ok(expected), "{option}");
        }
        for bad in ["subvolid=", "subvolid=x", "subvolid=-1", "subvol=a/../b"] {
            assert!(of(&[bad]).is_err(), "{bad}");
        }
        assert_eq!(of(&["subvol=a", "subvol=b"]), Ok(path("/b")));
    }

    #[test]
    fn the_number_of_a_subvolume_is_in_the_id_of_its_file_system() {
        let uuid = FsUuid::new("0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0").unwrap();
        let (high, low) = (0x0f1e_2d3c_u64 ^ 0x8796_a5b4, 0x4b5a_6978_u64 ^ 0xc3d2_e1f0);
        for id in [TOP, 256, 70_000] {
            assert_eq!(subvolume((low ^ id) << 32 | high, &uuid), Some(id));
        }
        let other = FsUuid::from_bytes([7; 16]);
        assert_eq!(subvolume((low ^ TOP) << 32 | high, &other), None);
    }
}
