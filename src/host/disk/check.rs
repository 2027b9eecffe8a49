//! Checks: before a mount, as a kubelet makes them (`fsck -a`, kubelet.md 4.11), and of what an mkfs made before a crash.
//!
//! A log that was not written out (xfs, btrfs, a journal) is no error: the kernel replays it when it mounts.

use std::ffi::OsString;
use std::time::Duration;

use super::super::grow::package;
use super::LOOK;
use super::device::Device;
use super::error::DiskError;
use crate::model::{Checked, FsKind};

/// How long a check may take, which may read every inode.
pub(super) const LIMIT: Duration = Duration::from_secs(4 * 3600);

/// e2fsck(8): errors were mended; the host should be started again, which is said of a root file system.
const MENDED: i32 = 3;
/// e2fsck(8): errors are left.
const LEFT: i32 = 4;
/// e2fsck(8): the check itself failed, from here on.
const FAILED: i32 = 8;

/// Checks a file system that is mounted nowhere, and lets the tool mend what needs no decision. A repair that stops halfway may
/// leave less than there was, so the tool goes on to its end whatever becomes of us: it holds the lock of the disk until then,
/// for which the next who comes waits.
///
/// # Errors
/// `Errors`: it must not be mounted. A tool that is missing or fails is no error (kubelet.md 4.11).
pub(super) async fn before_mount(device: &Device, kind: FsKind) -> Result<Checked, DiskError> {
    match kind {
        FsKind::Ext3 | FsKind::Ext4 => {}
        // Their fsck does nothing (fsck.xfs(8), fsck.btrfs(8)): the kernel checks what it reads.
        FsKind::Xfs | FsKind::Btrfs => {
            return Ok(Checked::Not(format!("{kind} is checked by the kernel when it is mounted")));
        }
    }
    let name = format!("fsck.{kind}");
    let tool = match device.tools.tool(&name, package(kind)) {
        Ok(tool) => tool,
        Err(missing) => return Ok(Checked::Not(DiskError::from(missing).to_string())),
    };
    let arguments = ["-a".into(), device.in_tools().into_os_string()];
    let ended = device.tools.finish(&device.path, &tool, arguments).await?;
    match ended.status.code() {
        Some(0) => Ok(Checked::Clean),
        Some(1..=MENDED) => Ok(Checked::Mended(ended.said)),
        Some(LEFT..FAILED) => Err(DiskError::Errors { path: device.path.clone(), said: ended.said }),
        // A kubelet only logs it: the kernel has the last word.
        _ => Ok(Checked::Not(format!("{name}: {}: {}", ended.status, ended.said))),
    }
}

/// Returns whether a file system that was just made, as its superblock says, is whole. Nothing is written.
///
/// # Errors
/// When its tool is missing or cannot be run.
pub(super) async fn is_whole(device: &Device, kind: FsKind) -> Result<bool, DiskError> {
    let (name, arguments): (_, &[&str]) = match kind {
        FsKind::Ext3 | FsKind::Ext4 => ("e2fsck", &["-f", "-n"]),
        FsKind::Xfs => ("xfs_repair", &["-n"]),
        FsKind::Btrfs => ("btrfs", &["check", "--readonly"]),
    };
    let tool = device.tools.tool(name, package(kind))?;
    let mut arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
    arguments.push(device.in_tools().into());
    device.lasts(LIMIT + LOOK);
    let ended = device.tools.run("check the file system on", &device.path, &tool, arguments, LIMIT).await?;
    device.lasts(LOOK);
    Ok(ended.status.success())
}
