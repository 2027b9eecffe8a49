//! The only unsafe code: what neither std nor rustix nor nix offers.

#![expect(
    unsafe_code,
    reason = "close_range, kcmp, loop devices, freezing, mount_setattr, statmount, listmount, what ties a tool to us, tokio's registration of a descriptor, and one that systemd passed"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a file with tokio for exceptional conditions (EPOLLPRI: mountinfo changed). Panics outside a runtime.
///
/// # Errors
/// When epoll refuses the file.
pub(super) fn watch_priority(file: File) -> io::Result<AsyncFd<File>> {
    // SAFETY: a File owns its open descriptor and closes it only when dropped, and its `as_raw_fd` always returns that one.
    // The AsyncFd owns the File, and nothing here takes it out or replaces it. No memory of ours is handed to the kernel.
    Ok(unsafe { AsyncFd::register_with_interest(file, Interest::PRIORITY) }?)
}

/// Registers a descriptor with tokio for reading; one of a process is readable when that has ended. To be called in a runtime.
///
/// # Errors
/// When epoll refuses it.
pub(super) fn watch_readable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd owns its open descriptor and closes it only when dropped, and its `as_raw_fd` always returns that
    // one. The AsyncFd owns the OwnedFd, and nothing here takes it out. No memory of ours is handed to the kernel.
    Ok(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?)
}

/// Duplicates a descriptor that the service manager passed by number (LISTEN_FDS).
///
/// # Errors
/// When no such descriptor is open, or no more can be.
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    // SAFETY: the number is not -1, and it is borrowed only for the call below, which answers EBADF when it is not open. No
    // memory of ours is handed to the kernel, and whoever owns the descriptor keeps it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    Ok(rustix::io::fcntl_dupfd_cloexec(borrowed, 3)?)
}

/// Closes every descriptor from this number on. Only for a child process that has just begun: whoever owned one of them in
/// this process would be left with a number.
///
/// # Errors
/// When the kernel refuses.
pub(super) fn close_from(first: u32) -> io::Result<()> {
    // SAFETY: close_range takes three numbers and touches no memory. Its only caller is the first thread of a child process,
    // before it opened anything: the descriptors closed were inherited, and nothing in this process owns one of them.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns whether two threads have one table of open files. `None`: the kernel does not say.
pub(super) fn same_files(a: u32, b: u32) -> Option<bool> {
    /// `KCMP_FILES` of linux/kcmp.h, which libc lacks.
    const KCMP_FILES: libc::c_long = 2;
    // SAFETY: kcmp takes five numbers, looks the two threads up by id, and neither reads nor writes our memory.
    let order = unsafe {
        libc::syscall(libc::SYS_kcmp, libc::c_long::from(a), libc::c_long::from(b), KCMP_FILES, 0, 0)
    };
    (order >= 0).then_some(order == 0)
}

/// What a loop device says of itself: the part of `LOOP_GET_STATUS64` that knows it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoopStatus {
    /// `lo_file_name`: whatever the one who configured it wrote there, NUL-padded.
    pub(super) name: [u8; 64],
    /// `lo_rdevice`: what it is backed by where that is a device, else 0.
    pub(super) device: u64,
    /// `lo_device` and `lo_inode`: `st_dev` and `st_ino` of the backing file.
    pub(super) file: (u64, u64),
    /// It is over all of that: neither `lo_offset` nor `lo_sizelimit` is set.
    pub(super) whole: bool,
}

/// `struct loop_info64` of linux/loop.h.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    const EMPTY: Self = Self {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: 0,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
}

/// `struct loop_config` of linux/loop.h.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

const LOOP_CLR_FD: libc::Ioctl = 0x4C01;
const LOOP_SET_STATUS64: libc::Ioctl = 0x4C04;
const LOOP_GET_STATUS64: libc::Ioctl = 0x4C05;
const LOOP_SET_CAPACITY: libc::Ioctl = 0x4C07;
const LOOP_CONFIGURE: libc::Ioctl = 0x4C0A;
const LOOP_CTL_GET_FREE: libc::Ioctl = 0x4C82;

/// `ioctl(control, LOOP_CTL_GET_FREE)`: the number of a loop device that nobody had configured at that moment.
///
/// # Errors
/// The kernel's.
pub(super) fn loop_free(control: BorrowedFd<'_>) -> io::Result<u32> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
    u32::try_from(number).map_err(|_negative| io::Error::last_os_error())
}

/// `lo_flags`: the device goes with the last who has it open.
pub(super) const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// `lo_flags`: past the page cache of the backing file; the kernel leaves it out where that cannot be done.
pub(super) const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `ioctl(device, LOOP_CONFIGURE, ...)`: backs a free loop device with all of a file, under a name. The kernel makes it
/// read-only where the file is open for reading only. A block size of 0 leaves that to the kernel.
///
/// # Errors
/// EBUSY: it is not free any more.
pub(super) fn loop_configure(
    device: BorrowedFd<'_>,
    backing: BorrowedFd<'_>,
    name: [u8; 64],
    flags: u32,
    block_size: u32,
) -> io::Result<()> {
    let fd = u32::try_from(backing.as_raw_fd()).map_err(io::Error::other)?;
    let info = LoopInfo { file_name: name, flags, ..LoopInfo::EMPTY };
    let config = LoopConfig { fd, block_size, info, reserved: [0; 8] };
    // SAFETY: the kernel reads one `struct loop_config`, of which LoopConfig is the C layout, from `config`, which is live
    // across the call, and writes nothing.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw const config) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `ioctl(device, LOOP_GET_STATUS64, ...)`
///
/// # Errors
/// ENXIO: it is not configured.
pub(super) fn loop_status(device: BorrowedFd<'_>) -> io::Result<LoopStatus> {
    let mut info = LoopInfo::EMPTY;
    // SAFETY: the kernel writes one `struct loop_info64`, of which LoopInfo is the C layout (integers only, so that any bytes
    // are a value), to `info`, which nothing else looks at meanwhile.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(LoopStatus {
        name: info.file_name,
        device: info.rdevice,
        file: (info.device, info.inode),
        whole: info.offset == 0 && info.size_limit == 0,
    })
}

/// `ioctl(device, LOOP_SET_STATUS64, ...)` without LO_FLAGS_AUTOCLEAR: it no more goes with the last who has it open.
///
/// # Errors
/// ENXIO: it is not configured.
pub(super) fn loop_stay(device: BorrowedFd<'_>) -> io::Result<()> {
    let mut info = LoopInfo::EMPTY;
    // SAFETY: as in `loop_status`.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_GET_STATUS64, &raw mut info) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    info.flags &= !LO_FLAGS_AUTOCLEAR;
    // SAFETY: the kernel reads one `struct loop_info64` from `info`, which is live across the call, and writes nothing.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_STATUS64, &raw const info) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `ioctl(device, LOOP_CLR_FD)`: lets go of what it holds, where somebody else has it open with the last of them.
///
/// # Errors
/// ENXIO: it is not configured.
pub(super) fn loop_clear(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CLR_FD) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `ioctl(device, LOOP_SET_CAPACITY)`: takes the size that the backing file has now.
///
/// # Errors
/// The kernel's.
pub(super) fn loop_set_capacity(device: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the request takes no argument and touches no memory of ours.
    let done = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_SET_CAPACITY) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

const FIFREEZE: libc::Ioctl = 0xC004_5877;
const FITHAW: libc::Ioctl = 0xC004_5878;

/// `ioctl(mounted, FIFREEZE, 0)`: writes the file system out and holds every writer back until `thaw`.
///
/// # Errors
/// EBUSY: it is frozen already. EOPNOTSUPP: this file system cannot be.
pub(super) fn freeze(mounted: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the kernel looks at the number 0 and touches no memory of ours.
    let done = unsafe { libc::ioctl(mounted.as_raw_fd(), FIFREEZE, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `ioctl(mounted, FITHAW, 0)`
///
/// # Errors
/// EINVAL: it is not frozen.
pub(super) fn thaw(mounted: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the kernel looks at the number 0 and touches no memory of ours.
    let done = unsafe { libc::ioctl(mounted.as_raw_fd(), FITHAW, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `mount_setattr(mount, "", AT_EMPTY_PATH, { attr_set: set, attr_clr: clear, propagation })`; a propagation of 0 leaves it.
///
/// # Errors
/// The kernel's.
pub(super) fn set_attributes(
    mount: BorrowedFd<'_>,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: clear, propagation, userns_fd: 0 };
    // SAFETY: the path is a NUL-terminated literal, `attributes` is live across the call and the size passed is its own, so
    // the kernel reads nothing else; it writes nothing.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of_val(&attributes),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `struct mnt_id_req` of linux/mount.h, as it was first.
#[repr(C)]
struct MountIdRequest {
    size: u32,
    spare: u32,
    id: u64,
    parameter: u64,
}

impl MountIdRequest {
    /// `MNT_ID_REQ_SIZE_VER0`
    const SIZE: u32 = 24;
}

const _: () = assert!(size_of::<MountIdRequest>() == 24);

// The same on every architecture that got them with the common table (Linux 6.8).
const SYS_STATMOUNT: libc::c_long = 457;
const SYS_LISTMOUNT: libc::c_long = 458;

/// `statmount(id, mask)`: writes a `struct statmount` with its strings to the buffer.
///
/// # Errors
/// EOVERFLOW: the buffer is too small. ENOENT: there is no such mount in this namespace. The kernel's others.
pub(super) fn statmount(id: u64, mask: u64, buffer: &mut [u8]) -> io::Result<()> {
    let request = MountIdRequest { size: MountIdRequest::SIZE, spare: 0, id, parameter: mask };
    // SAFETY: the kernel reads one request of the size that it says, from `request`, which is live across the call, and writes
    // at most `buffer.len()` bytes to `buffer`, which nothing else looks at meanwhile.
    let done =
        unsafe { libc::syscall(SYS_STATMOUNT, &raw const request, buffer.as_mut_ptr(), buffer.len(), 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `listmount(LSMT_ROOT, after)`: writes the unique ids of this namespace's mounts that follow one to the buffer, and returns
/// how many.
///
/// # Errors
/// The kernel's.
pub(super) fn listmount(after: u64, ids: &mut [u64]) -> io::Result<usize> {
    const LSMT_ROOT: u64 = u64::MAX;
    let request = MountIdRequest { size: MountIdRequest::SIZE, spare: 0, id: LSMT_ROOT, parameter: after };
    // SAFETY: as in `statmount`; the kernel writes at most `ids.len()` numbers.
    let count = unsafe { libc::syscall(SYS_LISTMOUNT, &raw const request, ids.as_mut_ptr(), ids.len(), 0) };
    usize::try_from(count).map_err(|_negative| io::Error::last_os_error())
}

/// Lets the command's process die with the thread that starts it, and keeps descriptors open in it, under the same numbers: a
/// lock that is not free again before the process has ended, and what it is to work on.
pub(super) fn tie(command: &mut tokio::process::Command, kept: &[Arc<OwnedFd>]) {
    let (parent, kept) = (rustix::process::getpid(), kept.to_vec());
    let child = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // A parent that died before that sends no signal.
        if rustix::process::getppid() != Some(parent) {
            return Err(io::Error::from(rustix::io::Errno::SRCH));
        }
        keep_open(&kept)
    };
    // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(child) };
}

/// Keeps descriptors open in the command's process, which no signal ends that is meant for all of a service: those are ignored.
pub(super) fn outlive(command: &mut tokio::process::Command, kept: &[Arc<OwnedFd>]) {
    let kept = kept.to_vec();
    let child = move || {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
            // SAFETY: SIG_IGN is a disposition that needs no handler, and exec keeps it.
            if unsafe { libc::signal(signal, libc::SIG_IGN) } == libc::SIG_ERR {
                return Err(io::Error::last_os_error());
            }
        }
        keep_open(&kept)
    };
    // SAFETY: between fork and exec the closure makes system calls only; it allocates nothing and takes no lock.
    unsafe { command.pre_exec(child) };
}

/// Lets the program that is executed next have descriptors. Called between fork and exec: the table is the child's own.
fn keep_open(kept: &[Arc<OwnedFd>]) -> io::Result<()> {
    for fd in kept {
        rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?;
    }
    Ok(())
}
