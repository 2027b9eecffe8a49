//! The mount table of this process's namespace, and how it is kept up to date.
//!
//! Where the kernel tells each mount that comes and goes (fanotify, Linux 6.15) only that one is asked for (statmount);
//! elsewhere the whole text of `/proc/<pid>/mountinfo` is read again after each change, which with a thousand mounts takes a
//! hundred times as long. Both give the same values: `tests/root_mount_table.rs`.

mod changes;
mod listed;
mod mountinfo;
mod reader;
mod shared;
mod statmount;

use std::io;

pub use mountinfo::mounts;
pub(super) use mountinfo::{Line, parse};
pub use reader::Reader;
pub(super) use shared::{Shared, Watch};

use crate::model::MountTable;

/// What the kernel puts after the root of a bind mount whose source directory was removed.
const DELETED: &[u8] = b"//deleted";

/// Returns a mount's root without what the kernel adds to one whose directory was removed. A name has no `/`, so it cannot be
/// part of one; the mount is the one it was, so its root is too.
fn shown_root(root: &[u8]) -> &[u8] {
    root.strip_suffix(DELETED).unwrap_or(root)
}

/// Reads the calling thread's mount table once, whole.
///
/// # Errors
/// When it cannot be read or understood.
pub(super) fn once() -> io::Result<MountTable> {
    Ok(MountTable::new(mounts(&std::fs::read("/proc/thread-self/mountinfo")?)?))
}
