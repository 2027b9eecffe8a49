//! Project quotas: how much the files of one project may take in a file system, and to which project a directory gives what is
//! made in it (quotactl(2), ioctl_xfs_fsgetxattr(2)).
//!
//! The commands are XFS's for every file system: the kernel translates them for ext4, and they are in units of 512 bytes, 64
//! bits wide. `quotactl_fd` came with Linux 5.14; before it the same is asked by the device that the file system is on.

#![expect(
    unsafe_code,
    reason = "nobody wraps quotactl for projects, nor the ioctl for a directory's project"
)]

use std::ffi::{CString, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use rustix::fs::{major, makedev, minor};
use rustix::io::Errno;

/// PRJQUOTA
const PROJECTS: u32 = 2;
/// FS_PROJ_QUOTA
const PROJECT: i8 = 2;
/// FS_DQUOT_VERSION, FS_QSTATV_VERSION1
const VERSION: i8 = 1;
/// FS_DQ_BSOFT, FS_DQ_BHARD
const BLOCK_LIMITS: u16 = 4 | 8;
/// FS_QUOTA_PDQ_ACCT
const COUNTED: u16 = 1 << 4;
/// FS_QUOTA_PDQ_ENFD
const ENFORCED: u16 = 1 << 5;
/// FS_XFLAG_PROJINHERIT
const INHERITED: u32 = 0x200;
/// The unit of limits and usage, in bytes.
const UNIT: u64 = 512;

const Q_XGETQUOTA: u32 = 0x5803;
const Q_XSETQLIM: u32 = 0x5804;
const Q_XGETQSTATV: u32 = 0x5808;
const FS_IOC_FSGETXATTR: libc::Ioctl = 0x801C_581F;
const FS_IOC_FSSETXATTR: libc::Ioctl = 0x401C_5820;

/// What a file system does about projects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limits {
    /// It keeps them within their limits.
    Enforced,
    /// It counts what they take, and no more.
    Counted,
    /// Nothing, or it knows none.
    Off,
}

/// A project in a file system. One that nobody ever used is all zeros.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Project {
    /// What its files may take, in bytes; 0: no limit.
    pub limit: u64,
    /// What they take, in bytes.
    pub used: u64,
    /// How many they are, directories included.
    pub files: u64,
}

/// `struct fs_disk_quota` of linux/dqblk_xfs.h.
#[repr(C)]
#[derive(Default)]
struct DiskQuota {
    version: i8,
    flags: i8,
    field_mask: u16,
    id: u32,
    block_hard: u64,
    block_soft: u64,
    inode_hard: u64,
    inode_soft: u64,
    blocks: u64,
    inodes: u64,
    timers: [i32; 2],
    warnings: [u16; 2],
    timers_high: [i8; 4],
    realtime: [u64; 3],
    realtime_timer: i32,
    realtime_warnings: u16,
    padding: [u8; 10],
}

/// `struct fs_quota_statv` of linux/dqblk_xfs.h.
#[repr(C)]
#[derive(Default)]
struct State {
    version: i8,
    padding: u8,
    flags: u16,
    in_core: u32,
    files: [[u64; 3]; 3],
    rest: [u64; 10],
}

/// `struct fsxattr` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    rest: [u32; 3],
}

// The kernel writes as much as it knows to be there.
const _: () =
    assert!(size_of::<DiskQuota>() == 112 && size_of::<State>() == 160 && size_of::<Attributes>() == 28);

/// Asks what the file system of a directory does about projects.
///
/// # Errors
/// EPERM: the kernel tells it only to CAP_SYS_ADMIN.
pub(super) fn limits(directory: BorrowedFd<'_>) -> io::Result<Limits> {
    let mut state = State { version: VERSION, ..State::default() };
    // SAFETY: for this command the kernel writes one `struct fs_quota_statv`, of which State is the C layout (integers only,
    // so that any bytes are a value), to `state`, which nothing else looks at meanwhile.
    let asked = unsafe { quotactl(directory, Q_XGETQSTATV, 0, (&raw mut state).cast()) };
    match asked {
        Ok(()) if state.flags & ENFORCED != 0 => Ok(Limits::Enforced),
        Ok(()) if state.flags & COUNTED != 0 => Ok(Limits::Counted),
        Ok(()) => Ok(Limits::Off),
        Err(error) if is_off(&error) => Ok(Limits::Off),
        Err(error) => Err(error),
    }
}

/// Asks for a project in the file system of a directory.
///
/// # Errors
/// The kernel's; ENOSYS or ESRCH where nothing is counted.
pub(super) fn project(directory: BorrowedFd<'_>, id: u32) -> io::Result<Project> {
    let mut quota = DiskQuota::default();
    // SAFETY: for this command the kernel writes one `struct fs_disk_quota`, of which DiskQuota is the C layout (integers
    // only), to `quota`, which nothing else looks at meanwhile.
    let asked = unsafe { quotactl(directory, Q_XGETQUOTA, id, (&raw mut quota).cast()) };
    match asked {
        Ok(()) => Ok(Project {
            limit: quota.block_hard.saturating_mul(UNIT),
            used: quota.blocks.saturating_mul(UNIT),
            files: quota.inodes,
        }),
        // XFS has no record of one that was never used.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::NOENT) => Ok(Project::default()),
        Err(error) => Err(error),
    }
}

/// Limits what the files of a project may take in the file system of a directory, in bytes; 0: without a limit.
///
/// # Errors
/// The kernel's; ENOSYS or ESRCH where nothing is counted.
pub(super) fn limit_project(directory: BorrowedFd<'_>, id: u32, bytes: u64) -> io::Result<()> {
    let mut quota = DiskQuota {
        version: VERSION,
        flags: PROJECT,
        field_mask: BLOCK_LIMITS,
        id,
        block_hard: bytes / UNIT,
        ..DiskQuota::default()
    };
    // SAFETY: for this command the kernel reads one `struct fs_disk_quota`, of which DiskQuota is the C layout, from `quota`,
    // which is live across the call.
    unsafe { quotactl(directory, Q_XSETQLIM, id, (&raw mut quota).cast()) }
}

/// Gives a directory, and what is made in it from now on, to a project.
///
/// # Errors
/// EOPNOTSUPP: the file system keeps no projects.
pub(super) fn give_to_project(directory: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    let mut attributes = attributes(directory)?;
    attributes.flags |= INHERITED;
    attributes.project = id;
    // SAFETY: the kernel reads one `struct fsxattr`, of which Attributes is the C layout, from `attributes`, which is live across
    // the call, and writes nothing.
    let done = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSSETXATTR, &raw const attributes) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the project to which a directory gives what is made in it.
///
/// # Errors
/// The kernel's.
pub(super) fn project_of(directory: BorrowedFd<'_>) -> io::Result<Option<u32>> {
    match attributes(directory) {
        Ok(found) => Ok((found.flags & INHERITED != 0).then_some(found.project)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::NOTTY | Errno::OPNOTSUPP) => Ok(None),
            _ => Err(error),
        },
    }
}

fn attributes(directory: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut found = Attributes::default();
    // SAFETY: the kernel writes one `struct fsxattr`, of which Attributes is the C layout (integers only), to `found`, which
    // nothing else looks at meanwhile.
    let asked = unsafe { libc::ioctl(directory.as_raw_fd(), FS_IOC_FSGETXATTR, &raw mut found) };
    if asked == 0 { Ok(found) } else { Err(io::Error::last_os_error()) }
}

/// Returns whether the kernel says that there are no quotas: none in it, in the file system, or switched on.
pub(super) fn is_off(error: &io::Error) -> bool {
    let off = [Errno::NOSYS, Errno::OPNOTSUPP, Errno::SRCH, Errno::NOTBLK, Errno::NODEV, Errno::INVAL];
    Errno::from_io_error(error).is_some_and(|errno| off.contains(&errno))
}

/// `quotactl_fd(directory, QCMD(command, PRJQUOTA), id, data)`, or what came before it.
///
/// # Safety
/// `data` points to what the kernel reads or writes for this command, and nobody else looks at it meanwhile.
unsafe fn quotactl(directory: BorrowedFd<'_>, command: u32, id: u32, data: *mut c_void) -> io::Result<()> {
    let command = libc::c_ulong::from(command << 8 | PROJECTS);
    let id = libc::c_ulong::from(id);
    // SAFETY: the caller's; the others are numbers.
    let done = unsafe { libc::syscall(libc::SYS_quotactl_fd, directory.as_raw_fd(), command, id, data) };
    if done == 0 {
        return Ok(());
    }
    let error = io::Error::last_os_error();
    if Errno::from_io_error(&error) != Some(Errno::NOSYS) {
        return Err(error);
    }
    // This kernel is older; or its file system has no quotas, as is asked again then. One without a device has none.
    let Ok(device) = device_of(directory) else { return Err(error) };
    // SAFETY: the caller's; `device` is a NUL-terminated string that is live across the call.
    let done = unsafe { libc::syscall(libc::SYS_quotactl, command, device.as_ptr(), id, data) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Finds the node of the device that the file system of a directory is on.
fn device_of(directory: BorrowedFd<'_>) -> io::Result<CString> {
    let device = rustix::fs::fstat(directory)?.st_dev;
    let about = format!("/sys/dev/block/{}:{}/uevent", major(device), minor(device));
    let text = std::fs::read_to_string(about)?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let node = format!("/dev/{}", name.ok_or(Errno::NODEV)?);
    let found = std::fs::symlink_metadata(&node)?;
    if !found.file_type().is_block_device() || found.rdev() != makedev(major(device), minor(device)) {
        return Err(Errno::NODEV.into());
    }
    CString::new(node).map_err(io::Error::other)
}
