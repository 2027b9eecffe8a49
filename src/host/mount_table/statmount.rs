//! One mount by its unique id, and the ids of all: statmount(2) and listmount(2), Linux 6.8.

use std::ffi::{CStr, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::shown_root;
use crate::host::raw;
use crate::model::Mount;

// What linux/mount.h has and libc has not: what is asked for, and what the kernel says it answered.
const SB_BASIC: u64 = 0x1;
const MNT_BASIC: u64 = 0x2;
const MNT_ROOT: u64 = 0x8;
const MNT_POINT: u64 = 0x10;
const FS_TYPE: u64 = 0x20;
const FS_SUBTYPE: u64 = 0x100;
const SB_SOURCE: u64 = 0x200;
const ASKED: u64 = SB_BASIC | MNT_BASIC | MNT_ROOT | MNT_POINT | FS_TYPE | FS_SUBTYPE | SB_SOURCE;

/// `SB_RDONLY` and `MOUNT_ATTR_RDONLY`, which are the same bit.
const READ_ONLY: u64 = 1;

/// The length of `struct statmount` before its strings.
const FIXED: usize = 512;

/// Returns a mount of the calling thread's namespace. `None`: there is none of this id, or it is out of the process's reach.
///
/// # Errors
/// The kernel's, and `InvalidData` when its answer is not understood.
pub(super) fn mount(unique: u64) -> io::Result<Option<Mount>> {
    /// Each string but a path's is short.
    const USUAL: usize = 4096;
    /// No path of the kernel's is longer, and two are asked for.
    const MOST: usize = 1 << 20;
    let mut buffer = vec![0; USUAL];
    loop {
        match raw::statmount(unique, ASKED, &mut buffer) {
            Ok(()) => {
                return parse(&buffer).ok_or_else(|| {
                    io::Error::new(io::ErrorKind::InvalidData, "the answer of statmount is not understood")
                });
            }
            Err(e) if e.raw_os_error() == Some(libc::EOVERFLOW) && buffer.len() < MOST => {
                buffer.resize(buffer.len() * 4, 0);
            }
            // Gone by now, in another namespace by now, or not below this process's root.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::EPERM)) => return Ok(None),
            Err(e) => return Err(e),
        }
    }
}

/// Returns the unique ids of all mounts of the calling thread's namespace, oldest first.
///
/// # Errors
/// The kernel's.
pub(super) fn all() -> io::Result<Vec<u64>> {
    let mut ids = Vec::new();
    let mut some = vec![0; 1024];
    loop {
        let count = raw::listmount(ids.last().copied().unwrap_or(0), &mut some)?;
        ids.extend(some.iter().take(count));
        if count < some.len() {
            return Ok(ids);
        }
    }
}

/// Waits until a change of the mounts that is under way is made: the kernel answers nobody before.
///
/// # Errors
/// The kernel's.
pub(super) fn wait_for_changes() -> io::Result<()> {
    raw::listmount(0, &mut [0]).map(drop)
}

/// Reads a `struct statmount`. The outer `None`: it is not one; the inner one: a mount that is not to be seen from here.
fn parse(bytes: &[u8]) -> Option<Option<Mount>> {
    let number = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
    let wide = |at: usize| Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    let mask = wide(8)?;
    let string = |part: u64, at: usize| -> Option<Vec<u8>> {
        if mask & part == 0 {
            return Some(Vec::new());
        }
        let start = FIXED.checked_add(usize::try_from(number(at)?).ok()?)?;
        Some(CStr::from_bytes_until_nul(bytes.get(start..)?).ok()?.to_bytes().to_vec())
    };
    if mask & (SB_BASIC | MNT_BASIC | FS_TYPE) != SB_BASIC | MNT_BASIC | FS_TYPE {
        return None;
    }
    if mask & MNT_POINT == 0 {
        return Some(None);
    }
    let mut fs_type = text(&string(FS_TYPE, 36)?);
    let subtype = text(&string(FS_SUBTYPE, 120)?);
    if !subtype.is_empty() {
        fs_type = format!("{fs_type}.{subtype}");
    }
    let root = shown_root(&string(MNT_ROOT, 104)?).to_vec();
    // What mountinfo calls a source that there is none of.
    let source = if mask & SB_SOURCE == 0 { "none".to_owned() } else { text(&string(SB_SOURCE, 124)?) };
    Some(Some(Mount {
        id: u64::from(number(56)?),
        parent: u64::from(number(60)?),
        device: (number(16)?, number(20)?),
        root: path(root),
        point: path(string(MNT_POINT, 108)?),
        fs_type,
        source,
        read_only: u64::from(number(32)?) & READ_ONLY != 0 || wide(64)? & READ_ONLY != 0,
    }))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn path(bytes: Vec<u8>) -> PathBuf {
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_not_to_be_seen_is_none_and_what_is_cut_off_is_not_understood() {
        let mut bytes = vec![0; FIXED];
        bytes[8..16].copy_from_slice(&(SB_BASIC | MNT_BASIC | FS_TYPE).to_ne_bytes());
        assert_eq!(parse(&bytes), Some(None));
        bytes[8..16].copy_from_slice(&ASKED.to_ne_bytes());
        assert_eq!(parse(&bytes), None, "no string ends");
        bytes.push(0);
        assert!(parse(&bytes).unwrap().is_some());
        bytes[8..16].copy_from_slice(&MNT_BASIC.to_ne_bytes());
        assert_eq!(parse(&bytes), None, "the kernel did not answer all");
    }

    proptest! {
        #[test]
        fn junk_is_no_panic(junk in prop::collection::vec(any::<u8>(), 0..700)) {
            let _result = parse(&junk);
        }
    }
}
