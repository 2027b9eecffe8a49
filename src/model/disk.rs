//! Block devices that carry, or shall carry, a file system: what is known of one, and what is intended with it.
//!
//! The order of things is the caller's: it looks (`Inspected`), decides, syncs an `Intent` into its record, and lets the host
//! format. What is known afterwards (`Formatted`) is synced before the first mount (design 6, rule 2).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A file system that can be made, checked, mounted and grown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsKind {
    /// With a journal, without extents; the kernel's ext4 serves it.
    Ext3,
    /// The default (kubelet.md 4.11).
    Ext4,
    /// Grows only while it is mounted.
    Xfs,
    /// As `Xfs`.
    Btrfs,
}

impl FsKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Ext3, Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Returns its name, as mount(2) and blkid have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext3 => "ext3",
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Finds one by its name; `None` for every other file system.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

impl std::fmt::Display for FsKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// The UUID of a file system: 32 lower-case hexadecimal digits in five groups.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FsUuid(String);

impl FsUuid {
    /// Takes a UUID as blkid, mkfs and /proc write them; upper case becomes lower case. Anything else becomes `None`.
    pub fn new(text: &str) -> Option<Self> {
        const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
        let text = text.to_ascii_lowercase();
        let groups: Vec<usize> = text.split('-').map(str::len).collect();
        let digits = text.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
        (digits && groups == GROUPS).then_some(Self(text))
    }

    /// Takes the 16 bytes of a superblock.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let mut text = String::with_capacity(36);
        for (index, byte) in bytes.into_iter().enumerate() {
            use std::fmt::Write as _;
            if matches!(index, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            // Writing to a String cannot fail.
            let _written = write!(text, "{byte:02x}");
        }
        Self(text)
    }

    /// Returns it as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns it as four numbers, of eight digits each.
    pub fn words(&self) -> [u32; 4] {
        let mut words = [0; 4];
        for (index, digit) in self.0.chars().filter_map(|digit| digit.to_digit(16)).enumerate() {
            if let Some(word) = words.get_mut(index / 8) {
                *word = *word << 4 | digit;
            }
        }
        words
    }
}

impl std::fmt::Display for FsUuid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<FsUuid> for String {
    fn from(uuid: FsUuid) -> Self {
        uuid.0
    }
}

impl TryFrom<String> for FsUuid {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::new(&text).ok_or_else(|| format!("{text:?} is not a UUID"))
    }
}

/// A file system on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileSystem {
    /// Which.
    pub kind: FsKind,
    /// Its own name for itself.
    pub uuid: FsUuid,
}

impl std::fmt::Display for FileSystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind, self.uuid)
    }
}

/// What a device is known by, whatever its name is today.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mark {
    /// World-wide id of a SCSI disk or an NVMe namespace.
    Wwid,
    /// Serial number of the disk.
    Serial,
    /// Of a device-mapper device: LVM, LUKS and multipath have ones that last.
    DmUuid,
    /// Of a software RAID.
    MdUuid,
    /// Of a loop device: device and inode number of the file behind it.
    BackingFile,
    /// Of a network block device: what its server calls it.
    Backend,
    /// Of a partition: its number and first sector on the disk.
    Partition,
    /// The kernel's name of a device that has nothing better: another disk may have it after the next start of the host.
    Name,
}

impl Mark {
    /// Returns whether another disk cannot have the same one.
    pub fn lasts(self) -> bool {
        match self {
            Self::Wwid | Self::Serial | Self::DmUuid | Self::MdUuid | Self::BackingFile | Self::Backend => {
                true
            }
            Self::Partition | Self::Name => false,
        }
    }

    /// Returns whether the disk itself brings it, so that no other can ever have had it. A file behind a loop device is no such
    /// thing: once it is removed, another gets the number of its inode.
    fn is_the_disk_s_own(self) -> bool {
        match self {
            Self::Wwid | Self::Serial | Self::DmUuid | Self::MdUuid | Self::Backend => true,
            Self::BackingFile | Self::Partition | Self::Name => false,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::Wwid => "WWID",
            Self::Serial => "serial",
            Self::DmUuid => "device-mapper UUID",
            Self::MdUuid => "RAID UUID",
            Self::BackingFile => "file",
            Self::Backend => "backend",
            Self::Partition => "partition",
            Self::Name => "name",
        }
    }
}

/// Which disk a device is, as far as the kernel tells.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DiskIdentity {
    /// At least one.
    pub marks: BTreeMap<Mark, String>,
}

impl DiskIdentity {
    /// Returns whether a device is the one that was recorded: it has every recorded mark that lasts, and where none of those
    /// was recorded the others. A mark that a newer kernel tells in addition makes no other disk of it, nor does a new name.
    pub fn is_the_recorded(&self, recorded: &Self) -> bool {
        let is_there = |(mark, value): (&Mark, &String)| self.marks.get(mark) == Some(value);
        // A partition table can be written anew, but a partition that was recorded is one of this number still.
        let counts = |mark: Mark| mark.lasts() || mark == Mark::Partition;
        let anything_lasts = recorded.marks.keys().any(|mark| mark.lasts());
        !recorded.marks.is_empty()
            && self.marks.contains_key(&Mark::Partition) == recorded.marks.contains_key(&Mark::Partition)
            && recorded.marks.iter().filter(|(mark, _)| !anything_lasts || counts(**mark)).all(is_there)
    }

    /// Returns whether it can only be this one disk's: it has a mark that the disk itself brings. Bytes that nobody knows are
    /// taken for what an interrupted mkfs left only on such a disk, or where they name our UUID.
    pub fn is_one_disk_s(&self) -> bool {
        self.marks.keys().any(|mark| mark.is_the_disk_s_own())
    }
}

impl std::fmt::Display for DiskIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.marks.is_empty() {
            return f.write_str("nothing by which it is known");
        }
        for (index, (mark, value)) in self.marks.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{} {value}", mark.words())?;
        }
        Ok(())
    }
}

/// What is on a device. Only `Blank` is ever formatted, and what an `Intent` that was `begun` explains.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// No signature, and zeros wherever one could be.
    Blank,
    /// A file system, and nothing that contradicts.
    FileSystem(FileSystem),
    /// A file system that says of itself that its mkfs did not get to its end.
    Unfinished(FileSystem),
    /// Bytes that nobody knows: no signature, and not zeros.
    Unknown {
        /// Where the first of them lies, in bytes.
        at: u64,
        /// Whose copies of a superblock lie where file systems keep them.
        copies: Vec<FileSystem>,
    },
    /// Somebody else's: a partition table, another file system, encryption, LVM, RAID, swap.
    Foreign {
        /// Which, for people.
        what: String,
    },
    /// It could not be found out, or the answers contradict each other.
    Unclear {
        /// Why.
        why: String,
    },
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Blank => f.write_str("nothing"),
            Self::FileSystem(found) => write!(f, "the file system {found}"),
            Self::Unfinished(found) => write!(f, "the unfinished file system {found}"),
            Self::Unknown { at, copies } => {
                write!(f, "data of an unknown kind (not zero from byte {at} on")?;
                copies.iter().try_for_each(|copy| write!(f, "; a copy of the superblock of {copy}"))?;
                f.write_str(")")
            }
            Self::Foreign { what } => f.write_str(what),
            Self::Unclear { why } => write!(f, "something unclear ({why})"),
        }
    }
}

/// What a look at a device found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspected {
    /// Which disk it is.
    pub identity: DiskIdentity,
    /// What is on it.
    pub content: Content,
    /// Its size in bytes.
    pub bytes: u64,
    /// The kernel lets nobody write to it.
    pub read_only: bool,
}

/// What is to be made of a device: in the record, and synced, before the host is asked to format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// The UUID that the file system is to get, chosen at random: by it an mkfs that was interrupted is known again.
    pub file_system: FileSystem,
    /// The disk that was looked at.
    pub identity: DiskIdentity,
    /// A device that has fewer bytes is not the one that was meant.
    pub least_bytes: u64,
    /// mkfs may have been started with this very intent before, and what became of it is not known; nothing was ever recorded as
    /// formatted or mounted. Only then is anything but a blank device formatted: what such an mkfs left.
    pub begun: bool,
}

/// How formatting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Formatted {
    /// The file system was made.
    Made,
    /// It had been made with this intent before, was found whole, and left as it is.
    AlreadyThere,
}

/// What a check before the mount found (kubelet.md 4.11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Checked {
    /// Nothing to mend.
    Clean,
    /// Errors that were mended: what the tool said.
    Mended(String),
    /// It was not checked: why. A kubelet mounts then too, and the kernel has the last word.
    Not(String),
}

/// A file system to be mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMount {
    /// Which disk was recorded.
    pub identity: DiskIdentity,
    /// Which file system was recorded.
    pub file_system: FileSystem,
    /// As mount(8) takes them: `spec.mountOptions` of a PersistentVolume.
    pub options: Vec<String>,
    /// Nothing is written: neither a check nor (for ext3 and ext4 with a clean journal) the mount.
    pub read_only: bool,
}

/// How growing ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FsGrowth {
    /// It filled its device already.
    Enough {
        /// Its size.
        bytes: u64,
    },
    /// It was smaller.
    Grown {
        /// Its size before.
        from: u64,
        /// Its size now, as read back.
        bytes: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(marks: &[(Mark, &str)]) -> DiskIdentity {
        DiskIdentity { marks: marks.iter().map(|(mark, value)| (*mark, (*value).to_owned())).collect() }
    }

    #[test]
    fn a_disk_is_known_by_what_lasts() {
        use Mark::{Name, Partition, Serial, Wwid};
        let sda = identity(&[(Wwid, "naa.1"), (Serial, "s"), (Name, "sda")]);
        for (found, same) in [
            (identity(&[(Wwid, "naa.1"), (Serial, "s"), (Name, "sdb")]), true),
            (identity(&[(Wwid, "naa.2"), (Serial, "s"), (Name, "sda")]), false),
            (identity(&[(Wwid, "naa.1"), (Name, "sda")]), false),
            (identity(&[(Wwid, "naa.1"), (Serial, "s"), (Partition, "1 at 2048")]), false),
            (identity(&[]), false),
        ] {
            assert_eq!(found.is_the_recorded(&sda), same, "{found}");
        }
        // A newer kernel tells more.
        assert!(sda.is_the_recorded(&identity(&[(Serial, "s")])));
        // Nothing better.
        let vda = identity(&[(Name, "vda")]);
        assert!(vda.is_the_recorded(&vda) && !identity(&[(Name, "vdb")]).is_the_recorded(&vda));
        // Nothing recorded is never the same.
        assert!(!sda.is_the_recorded(&identity(&[])));
        let first = identity(&[(Wwid, "naa.1"), (Partition, "1 at 2048")]);
        assert!(!identity(&[(Wwid, "naa.1"), (Partition, "2 at 4096")]).is_the_recorded(&first));
    }

    #[test]
    fn a_uuid_is_one_however_it_is_written() {
        let text = "0F1E2D3C-4b5a-6978-8796-a5b4c3d2e1f0";
        let uuid = FsUuid::new(text).unwrap();
        let bytes =
            [0x0f, 0x1e, 0x2d, 0x3c, 0x4b, 0x5a, 0x69, 0x78, 0x87, 0x96, 0xa5, 0xb4, 0xc3, 0xd2, 0xe1, 0xf0];
        assert_eq!(FsUuid::from_bytes(bytes), uuid);
        assert_eq!(uuid.words(), [0x0f1e_2d3c, 0x4b5a_6978, 0x8796_a5b4, 0xc3d2_e1f0]);
        for bad in ["", "0f1e2d3c", "A1B2-C3D4", "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1fx", "é"] {
            assert_eq!(FsUuid::new(bad), None, "{bad}");
        }
    }
}
