//! Growth of a mounted file system to the size of its device (kubelet.md 4.13), by the tool that belongs to it.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::HostError;
use super::exec::Tools;
use crate::model::FsKind;

/// How growing a mounted file system ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grown {
    /// It fills its device.
    Whole,
    /// ext4 asks for a capability that this process does not have.
    NeedsSysResource,
    /// The kernel lets no btrfs have a size between what it has and `BTRFS_LEAST_GROWN`: 6.1 is one of those.
    TooSmall,
}

/// What a btrfs grows to on every kernel, in bytes: btrfs_ioctl_resize of older ones answers EINVAL to less.
pub const BTRFS_LEAST_GROWN: u64 = 256 << 20;

/// Returns the Debian package that has a file system's tools.
pub(super) fn package(kind: FsKind) -> &'static str {
    match kind {
        FsKind::Ext3 | FsKind::Ext4 => "e2fsprogs",
        FsKind::Xfs => "xfsprogs",
        FsKind::Btrfs => "btrfs-progs",
    }
}

/// Grows a mounted file system to the size of its device, which has so many bytes. `node` is what the tools of ext4 are given,
/// `mounted` what those of the others are.
///
/// # Errors
/// With what the tool said; it can be done again.
pub(super) async fn mounted(
    tools: &Tools,
    kind: FsKind,
    (node, mounted): (&Path, &Path),
    bytes: u64,
    limit: Duration,
) -> Result<Grown, HostError> {
    const DOING: &str = "grow the file system at";
    let (tool, arguments): (_, Vec<OsString>) = match kind {
        FsKind::Ext3 | FsKind::Ext4 => ("resize2fs", vec![node.into()]),
        FsKind::Xfs => ("xfs_growfs", vec!["-d".into(), mounted.into()]),
        FsKind::Btrfs => ("btrfs", vec!["filesystem".into(), "resize".into(), "max".into(), mounted.into()]),
    };
    let tool = tools.tool(tool, package(kind))?;
    let ended = tools.run(DOING, mounted, &tool, arguments, limit).await?;
    if ended.status.success() {
        return Ok(Grown::Whole);
    }
    // The words of resize2fs for EPERM of EXT4_IOC_RESIZE_FS.
    if tool.ends_with("resize2fs") && ended.said.contains("Permission denied to resize filesystem") {
        return Ok(Grown::NeedsSysResource);
    }
    if kind == FsKind::Btrfs && bytes < BTRFS_LEAST_GROWN && ended.said.contains("Invalid argument") {
        return Ok(Grown::TooSmall);
    }
    Err(ended.failure(DOING, mounted, &tool))
}
