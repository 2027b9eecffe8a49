//! The host's groups: who is in one, and files that belong to one.

use std::ffi::CString;
use std::io;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

/// Returns the number of a group given by name or number.
pub fn group_number(name: &str) -> Option<u32> {
    let by_name = || Group::from_name(name).ok().flatten().map(|group| group.gid.as_raw());
    name.parse().ok().or_else(by_name)
}

/// Returns whether the user database says that a user is in a group. May take its time: the database may be on the network.
pub fn is_member(uid: u32, group: u32) -> bool {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    getgrouplist(&name, user.gid).is_ok_and(|groups| groups.contains(&Gid::from_raw(group)))
}

/// Gives a file of ours to a group.
///
/// # Errors
/// The kernel's.
pub fn set_group(path: &Path, group: u32) -> io::Result<()> {
    std::os::unix::fs::chown(path, None, Some(group))
}
