//! Whether there is anything to check in an ext3 or ext4: what `e2fsck -a` decides from its superblocks before it leaves a file
//! system alone (e2fsck(8), -p). That saves a process before each mount, and a disk that is written to three times.
//!
//! All doubt is a yes: then e2fsck decides. Errors in what neither reads are found by the kernel, as after an e2fsck that
//! found the mark of a clean file system.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::places;
use super::superblock::{EXT, bytes, le32};

/// `s_state`: it was unmounted, no error was met, and no orphan is left.
const VALID: u16 = 1;

/// `s_magic`
const MAGIC: u16 = 0xef53;

/// `s_feature_compat`: backups lie elsewhere than in the second group.
const SPARSE_SUPER2: u32 = 0x200;
/// `s_feature_incompat`: a log to be replayed, one that is a device of its own, a mark against a second mount.
const NOT_AT_REST: u32 = 0x4 | 0x8 | 0x100;
/// `s_feature_ro_compat`: the file of orphans is not empty.
const ORPHANS: u32 = 0x1_0000;

/// What the kernel sets in the first superblock alone: EXT_ATTR; RECOVER, EXTENTS; LARGE_FILE, DIR_NLINK.
const SET_BY_THE_KERNEL: [u32; 3] = [0x8, 0x4 | 0x40, 0x2 | 0x20];

/// Returns whether a file system is clean and due for no check; what cannot be read is not. `now` is the time since the epoch.
pub(super) fn is_clean(device: &OwnedFd, now: Duration) -> bool {
    let read = |place| places::superblock_at(device, place).ok();
    let first = read(EXT).filter(|first| is_at_rest(first, now) == Some(true));
    first.is_some_and(|first| match backup(&first) {
        Some(Backup::At(place)) => read(place).and_then(|second| is_alike(&first, &second)) == Some(true),
        Some(Backup::None) => true,
        None => false,
    })
}

/// Where the second superblock is.
#[derive(Debug, PartialEq, Eq)]
enum Backup {
    /// There is one group only.
    None,
    /// In bytes.
    At(u64),
}

fn is_at_rest(at: &[u8], now: Duration) -> Option<bool> {
    let half = |offset| Some(u16::from_le_bytes(bytes(at, offset)?));
    // Of so old a revision nothing of what follows is there.
    let revised = le32(at, 0x4c)? >= 1;
    let valid = half(0x38)? == MAGIC && half(0x3a)? == VALID;
    let errors = le32(at, 0x194)?;
    let orphans = le32(at, 0xe8)? != 0 || le32(at, 0x64)? & ORPHANS != 0;
    let at_work = le32(at, 0x60)? & NOT_AT_REST != 0;
    // Signed: -1 for never.
    let most_mounts = i16::from_le_bytes(bytes(at, 0x36)?);
    let mounts_up = most_mounts > 0 && half(0x34)? >= most_mounts.unsigned_abs();
    let interval = le32(at, 0x44)?;
    let checked_high = u64::from(*at.get(0x277)?);
    let checked = checked_high << 32 | u64::from(le32(at, 0x40)?);
    // A check in the future is due as well: some clock was wrong.
    let since = now.as_secs().checked_sub(checked);
    let time_up = interval > 0 && since.is_none_or(|since| since >= u64::from(interval));
    Some(revised && valid && errors == 0 && !orphans && !at_work && !mounts_up && !time_up)
}

/// Finds the second superblock. `None`: it is not where it usually is.
fn backup(at: &[u8]) -> Option<Backup> {
    if le32(at, 0x5c)? & SPARSE_SUPER2 != 0 {
        return None;
    }
    let block = 1024_u64.checked_shl(le32(at, 0x18)?)?;
    let (first, in_group) = (u64::from(le32(at, 0x14)?), u64::from(le32(at, 0x20)?));
    let second = first.checked_add(in_group).filter(|_| in_group > 0)?;
    // More than 2^32 blocks are more than one group.
    let one_group = le32(at, 0x150)? == 0 && u64::from(le32(at, 0x4)?) <= second;
    if one_group { Some(Backup::None) } else { Some(Backup::At(second.checked_mul(block)?)) }
}

/// Returns whether a second superblock is of the same file system with the same features.
fn is_alike(first: &[u8], second: &[u8]) -> Option<bool> {
    let same =
        |offset, ignored: u32| Some(le32(first, offset)? & !ignored == le32(second, offset)? & !ignored);
    let [compatible, incompatible, read_only] = SET_BY_THE_KERNEL;
    let features = same(0x5c, compatible)? && same(0x60, incompatible)? && same(0x64, read_only)?;
    let (inodes, blocks) = (same(0x0, 0)?, same(0x4, 0)?);
    let uuid = bytes::<16>(first, 0x68)? == bytes::<16>(second, 0x68)?;
    let magic = u16::from_le_bytes(bytes(second, 0x38)?) == MAGIC;
    Some(magic && features && inodes && blocks && uuid)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_bytes_are_a_surprise(at in proptest::collection::vec(any::<u8>(), 0..1025), now: u64) {
            let _any = (is_at_rest(&at, Duration::from_secs(now)), backup(&at), is_alike(&at, &at));
        }
    }
}
