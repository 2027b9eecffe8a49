//! Our own look at a device: the second of two opinions. A device is blank only if there are zeros wherever anything of note is
//! known to lie; the names of what else lies there are for people.

use std::os::fd::OwnedFd;

use rustix::fs::Advice;
use rustix::io::Errno;

use super::superblock::{self, LENGTH, Superblock};
use crate::model::{FileSystem, FsKind};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// How much of a device's ends is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ends {
    /// A MiB each: on a blank device there is nothing.
    Whole,
    /// Of a device that is not blank, as far as most signatures lie: the last one of the head is a btrfs's, the first one of the
    /// tail a RAID's of the version 0.90. blkid knows some further inside.
    Outermost,
}

impl Ends {
    fn bytes(self) -> u64 {
        match self {
            Self::Whole => MIB,
            Self::Outermost => 128 * KIB,
        }
    }
}

/// How much is read at a place in between.
const PIECE: u64 = 4 * KIB;

/// Where copies of superblocks and headers lie, away from both ends: the second and third superblock of a btrfs, the first
/// copy of an ext4's for each size of its blocks, the second header of LUKS2, the second group of a large xfs.
const BETWEEN: [u64; 9] = [MIB, 2 * MIB, 4 * MIB, 8193 * KIB, 32 * MIB, 64 * MIB, 128 * MIB, 256 * GIB, TIB];

/// What was read of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Look {
    bytes: u64,
    /// By where they begin, in order.
    pieces: Vec<(u64, Vec<u8>)>,
}

/// A signature, where it lies, and what it is.
type Known = (u64, &'static [u8], &'static str);

/// Signatures at the head of a device: for people, since blkid knows more.
const AT_HEAD: &[Known] = &[
    (0, b"LUKS\xba\xbe", "an encrypted volume (LUKS)"),
    (16 * KIB, b"SKUL\xba\xbe", "an encrypted volume (LUKS2, its second header)"),
    (3, b"-FVE-FS-", "an encrypted volume (BitLocker)"),
    (0, b"LABELONE", "an LVM physical volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, b"LABELONE", "an LVM physical volume"),
    (1536, b"LABELONE", "an LVM physical volume"),
    (0, b"\xfc\x4e\x2b\xa9", "a member of a software RAID"),
    (4096, b"\xfc\x4e\x2b\xa9", "a member of a software RAID"),
    (4120, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81", "a bcache device"),
    (4120, b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef", "a bcachefs"),
    (512, b"EFI PART", "a partition table (GPT)"),
    (4096, b"EFI PART", "a partition table (GPT)"),
    (4086, b"SWAPSPACE2", "swap space"),
    (4086, b"SWAP-SPACE", "swap space"),
    (8182, b"SWAPSPACE2", "swap space"),
    (16374, b"SWAPSPACE2", "swap space"),
    (65526, b"SWAPSPACE2", "swap space"),
    (4086, b"S1SUSPEND", "a suspended system"),
    (3, b"NTFS    ", "an NTFS"),
    (3, b"EXFAT   ", "an exFAT"),
    (54, b"FAT", "a FAT"),
    (82, b"FAT32", "a FAT"),
    (0x8001, b"CD001", "an ISO 9660"),
    (0x8001, b"NSR0", "a UDF"),
    (0x8001, b"BEA01", "a UDF"),
    (0x10034, b"ReIsEr", "a ReiserFS"),
    (0x8000, b"JFS1", "a JFS"),
    (0x400, b"\x10\x20\xf5\xf2", "an F2FS"),
    (0x400, b"\xe2\xe1\xf5\xe0", "an EROFS"),
    (0, b"hsqs", "a SquashFS"),
    (0x20, b"NXSB", "an APFS"),
    (516, b"!Stra0tis\x86\xff\x02^\x41rh", "a Stratis device"),
    (0, b"bluestore block device", "a Ceph OSD"),
    (0x20, b"ORCLDISK", "an Oracle ASM disk"),
    (0, b"integrit", "a device with dm-integrity"),
    (0, b"verity\0\0", "a device with dm-verity"),
    (510, b"\x55\xaa", "a partition table or boot sector (MBR)"),
];

/// Reads a device.
///
/// # Errors
/// Also when the device ends before its size.
pub(super) fn look(device: &OwnedFd, bytes: u64, ends: Ends) -> Result<Look, Errno> {
    let places = of(bytes, ends);
    let read = |(at, length)| Ok((at, read(device, at, length)?));
    Ok(Look { bytes, pieces: places.into_iter().map(read).collect::<Result<_, Errno>>()? })
}

/// Has the kernel begin to read where signatures lie: blkid asks for a little here and there.
pub(super) fn fetch(device: &OwnedFd, bytes: u64) {
    for (at, length) in of(bytes, Ends::Outermost) {
        // Whoever reads reads it then.
        let _begun = rustix::fs::fadvise(device, at, std::num::NonZeroU64::new(length), Advice::WillNeed);
    }
}

/// Returns where a device of so many bytes is read, and how much: with whole ends all that has to be zeros on a blank one.
pub(super) fn of(bytes: u64, ends: Ends) -> Vec<(u64, u64)> {
    let end = ends.bytes().min(bytes);
    // xfs makes four groups of all but very large devices.
    let group = bytes.div_ceil(4 * PIECE).saturating_mul(PIECE);
    let mut places = vec![(0, end), (bytes.saturating_sub(end), end)];
    places.extend(BETWEEN.into_iter().chain([group]).filter(|at| at + PIECE <= bytes).map(|at| (at, PIECE)));
    places.sort_unstable();
    places
}

/// Writes zeros to all of these places, and waits until they are on the device.
///
/// # Errors
/// The kernel's; some of it may be written.
pub(super) fn blank(device: &OwnedFd, bytes: u64) -> Result<(), Errno> {
    for (at, length) in of(bytes, Ends::Whole) {
        let zeros = vec![0; usize::try_from(length).map_err(|_too_long| Errno::FBIG)?];
        let mut done = 0;
        while let Some(rest) = zeros.get(done..).filter(|rest| !rest.is_empty()) {
            let offset = at.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
            match rustix::io::pwrite(device, rest, offset) {
                Ok(0) => return Err(Errno::NOSPC),
                Ok(more) => done += more,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
    rustix::fs::fsync(device)
}

fn read(device: &OwnedFd, at: u64, length: u64) -> Result<Vec<u8>, Errno> {
    let mut content = vec![0; usize::try_from(length).map_err(|_too_long| Errno::FBIG)?];
    let mut done = 0;
    while let Some(rest) = content.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let offset = at.saturating_add(u64::try_from(done).unwrap_or(u64::MAX));
        match rustix::io::pread(device, rest, offset) {
            // A device that ends before its size is none to be trusted.
            Ok(0) => return Err(Errno::IO),
            Ok(more) => done += more,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(content)
}

/// Reads the superblock of a kind.
///
/// # Errors
/// The kernel's.
pub(super) fn superblock(device: &OwnedFd, kind: FsKind) -> Result<Option<Superblock>, Errno> {
    let at = read(device, superblock::place(kind), u64::try_from(LENGTH).unwrap_or(u64::MAX))?;
    Ok(superblock::of(kind, &at))
}

impl Look {
    /// Returns how large the device was.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether a device still has every byte that was read.
    ///
    /// # Errors
    /// As `look`.
    pub(super) fn is_still(&self, device: &OwnedFd) -> Result<bool, Errno> {
        for (at, before) in &self.pieces {
            if read(device, *at, u64::try_from(before.len()).unwrap_or(u64::MAX))? != *before {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns where the first byte lies that is not zero.
    pub(super) fn not_zero(&self) -> Option<u64> {
        self.pieces.iter().find_map(|(at, content)| {
            let found = content.iter().position(|byte| *byte != 0)?;
            Some(at.saturating_add(u64::try_from(found).ok()?))
        })
    }

    /// Returns what was read from a place on, if it was read.
    fn from(&self, at: u64) -> Option<&[u8]> {
        self.pieces.iter().find_map(|(start, content)| {
            let offset = usize::try_from(at.checked_sub(*start)?).ok()?;
            content.get(offset..).filter(|rest| !rest.is_empty())
        })
    }

    fn is(&self, at: u64, bytes: &[u8]) -> bool {
        self.from(at).is_some_and(|content| content.starts_with(bytes))
    }

    /// Returns the superblock of a kind, where it belongs.
    pub(super) fn superblock(&self, kind: FsKind) -> Option<Superblock> {
        superblock::of(kind, self.from(superblock::place(kind))?)
    }

    /// Returns the superblocks that lie where they belong, of any kind.
    pub(super) fn superblocks(&self) -> Vec<Superblock> {
        [FsKind::Ext4, FsKind::Xfs, FsKind::Btrfs]
            .into_iter()
            .filter_map(|kind| self.superblock(kind))
            .collect()
    }

    /// Returns whose copies of superblocks lie where file systems keep them, each once.
    pub(super) fn copies(&self) -> Vec<FileSystem> {
        let mut found = Vec::new();
        for (_, content) in self.pieces.iter().filter(|(at, _)| *at > 0) {
            for one in [superblock::ext(content), superblock::xfs(content), superblock::btrfs(content)] {
                found.extend(one.map(|one| one.file_system).filter(|one| !found.contains(one)));
            }
        }
        found
    }

    /// Names a signature that is somebody else's.
    pub(super) fn foreign(&self) -> Option<&'static str> {
        let named = AT_HEAD.iter().find(|(at, bytes, _)| self.is(*at, bytes)).map(|(_, _, name)| *name);
        named.or_else(|| self.foreign_at_tail()).or_else(|| self.zfs())
    }

    fn foreign_at_tail(&self) -> Option<&'static str> {
        const RAID: &[u8] = b"\xfc\x4e\x2b\xa9";
        let from_end = |back: u64| self.bytes.checked_sub(back);
        let gpt = [512, 4096].into_iter().filter_map(from_end).any(|at| self.is(at, b"EFI PART"));
        // Version 0.90 in the last whole 64 KiB but one, 1.0 in the last 8 KiB and 4 KiB aligned.
        let old = (self.bytes / (64 * KIB)).checked_sub(1).map(|blocks| blocks * 64 * KIB);
        let new = from_end(8 * KIB).map(|at| at / (4 * KIB) * (4 * KIB));
        let raid = [old, new].into_iter().flatten().any(|at| self.is(at, RAID));
        let intel = from_end(1024).is_some_and(|at| self.is(at, b"Intel Raid ISM Cfg Sig. "));
        match (gpt, raid || intel) {
            (true, _) => Some("a partition table (GPT, its copy)"),
            (_, true) => Some("a member of a RAID"),
            (false, false) => None,
        }
    }

    /// The labels of ZFS: two of 256 KiB at either end, the second half of each full of uberblocks.
    fn zfs(&self) -> Option<&'static str> {
        const LABEL: u64 = 256 * KIB;
        let tail = (self.bytes / LABEL).checked_sub(2).map(|labels| labels * LABEL);
        let labels = [Some(0), Some(LABEL), tail, tail.map(|at| at + LABEL)];
        let mut uberblocks =
            labels.into_iter().flatten().flat_map(|label| (128..256).map(move |k| label + k * KIB));
        let magic =
            |at| self.is(at, &0x00ba_b10c_u64.to_le_bytes()) || self.is(at, &0x00ba_b10c_u64.to_be_bytes());
        uberblocks.any(magic).then_some("a member of a ZFS pool")
    }
}
