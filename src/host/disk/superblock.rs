//! The superblocks of the file systems that are made here, as far as they are needed: whose they are, how large, and whether
//! their mkfs got to its end.
//!
//! Layouts are the kernel's (fs/ext4/ext4.h, fs/xfs/libxfs/xfs_format.h, fs/btrfs: include/uapi/linux/btrfs_tree.h).

use crate::model::{FileSystem, FsKind, FsUuid};

/// Where each lies on its device, in bytes.
pub(super) const EXT: u64 = 1024;
pub(super) const XFS: u64 = 0;
pub(super) const BTRFS: u64 = 64 << 10;

/// How much of one is read.
pub(super) const LENGTH: usize = 1024;

/// What a superblock says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Superblock {
    pub(super) file_system: FileSystem,
    /// How much of its device the file system uses.
    pub(super) bytes: u64,
    /// The smallest amount by which it can grow, in bytes.
    pub(super) grain: u64,
    pub(super) mkfs: Mkfs,
}

/// What a superblock says of the program that made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mkfs {
    /// It is not done, and says so.
    AtWork,
    /// It wrote the superblock, which is the last that it writes, but in a power cut that may be all that reached the disk.
    /// Nobody ever mounted it since.
    WroteThisAndNobodyMounted,
    /// It is done, or that cannot be told.
    Done,
}

/// Reads the superblock of a kind from where it lies.
pub(super) fn of(kind: FsKind, at: &[u8]) -> Option<Superblock> {
    match kind {
        FsKind::Ext3 | FsKind::Ext4 => ext(at),
        FsKind::Xfs => xfs(at),
        FsKind::Btrfs => btrfs(at),
    }
}

/// Returns where the superblock of a kind lies.
pub(super) fn place(kind: FsKind) -> u64 {
    match kind {
        FsKind::Ext3 | FsKind::Ext4 => EXT,
        FsKind::Xfs => XFS,
        FsKind::Btrfs => BTRFS,
    }
}

pub(super) fn ext(at: &[u8]) -> Option<Superblock> {
    const MAGIC: u16 = 0xef53;
    /// `EXT4_FEATURE_INCOMPAT_64BIT`
    const WIDE: u32 = 0x80;
    /// EXTENTS, 64BIT, MMP, FLEX_BG: what makes an ext4 of an ext3.
    const OF_EXT4: u32 = 0x40 | WIDE | 0x100 | 0x200;
    /// HUGE_FILE, GDT_CSUM, DIR_NLINK, EXTRA_ISIZE, METADATA_CSUM.
    const READ_ONLY_OF_EXT4: u32 = 0x8 | 0x10 | 0x20 | 0x40 | 0x400;
    if u16::from_le_bytes(bytes(at, 0x38)?) != MAGIC {
        return None;
    }
    let (incompatible, read_only) = (le32(at, 0x60)?, le32(at, 0x64)?);
    let is_ext4 = incompatible & OF_EXT4 != 0 || read_only & READ_ONLY_OF_EXT4 != 0;
    let high = if incompatible & WIDE == 0 { 0 } else { le32(at, 0x150)? };
    let blocks = u64::from(high) << 32 | u64::from(le32(at, 0x4)?);
    let block = 1024_u64.checked_shl(le32(at, 0x18)?)?;
    let (mounted_at, mounts) = (le32(at, 0x2c)?, u16::from_le_bytes(bytes(at, 0x34)?));
    Some(Superblock {
        file_system: FileSystem {
            kind: if is_ext4 { FsKind::Ext4 } else { FsKind::Ext3 },
            uuid: FsUuid::from_bytes(bytes(at, 0x68)?),
        },
        bytes: blocks.checked_mul(block)?,
        // A last group with less room than its own tables need is left out.
        grain: block.saturating_mul(4096),
        mkfs: if mounted_at == 0 && mounts == 0 { Mkfs::WroteThisAndNobodyMounted } else { Mkfs::Done },
    })
}

pub(super) fn xfs(at: &[u8]) -> Option<Superblock> {
    /// `XFS_MIN_AG_BLOCKS`: a last allocation group with fewer is left out.
    const LEAST_GROUP: u64 = 64;
    if at.get(..4)? != b"XFSB" {
        return None;
    }
    let block = u64::from(u32::from_be_bytes(bytes(at, 4)?));
    Some(Superblock {
        file_system: FileSystem { kind: FsKind::Xfs, uuid: FsUuid::from_bytes(bytes(at, 32)?) },
        bytes: u64::from_be_bytes(bytes(at, 8)?).checked_mul(block)?,
        grain: block.saturating_mul(LEAST_GROUP),
        // sb_inprogress
        mkfs: if *at.get(126)? == 0 { Mkfs::Done } else { Mkfs::AtWork },
    })
}

pub(super) fn btrfs(at: &[u8]) -> Option<Superblock> {
    let mkfs = match at.get(64..72)? {
        b"_BHRfS_M" => Mkfs::Done,
        // What mkfs.btrfs writes there until it is done.
        b"!BHRfS_M" => Mkfs::AtWork,
        _ => return None,
    };
    Some(Superblock {
        file_system: FileSystem { kind: FsKind::Btrfs, uuid: FsUuid::from_bytes(bytes(at, 32)?) },
        // Of this device, not of all that the file system may have.
        bytes: u64::from_le_bytes(bytes(at, 0xc9 + 8)?),
        grain: 1 << 20,
        mkfs,
    })
}

fn le32(at: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes(at, offset)?))
}

fn bytes<const N: usize>(at: &[u8], offset: usize) -> Option<[u8; N]> {
    at.get(offset..offset.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_are_a_surprise(
            mut at in proptest::collection::vec(any::<u8>(), 0..LENGTH), magic in 0..4_usize
        ) {
            let (offset, bytes) = [(0x38, &b"\x53\xef"[..]), (0, b"XFSB"), (64, b"_BHRfS_M"), (64, b"")][magic];
            if let Some(place) = at.get_mut(offset..offset + bytes.len()) {
                place.copy_from_slice(bytes);
            }
            for kind in FsKind::ALL {
                let _found = of(kind, &at);
            }
        }
    }
}
