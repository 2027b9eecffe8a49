//! The only unsafe code: what neither std nor rustix nor nix offers.

#![expect(
    unsafe_code,
    reason = "a child without exec, close_range, kcmp, tokio's registration of a descriptor, and one that systemd passed"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::process::Pid;
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

/// Registers a process descriptor with tokio: readable when the process has ended. To be called in a runtime.
///
/// # Errors
/// When epoll refuses it.
pub(super) fn watch_process(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd owns its open descriptor and closes it only when dropped, and its `as_raw_fd` always returns that
    // one. The AsyncFd owns the OwnedFd, and nothing here takes it out. No memory of ours is handed to the kernel.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
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

/// Starts a child process whose whole life is `umount2(name, UMOUNT_NOFOLLOW)` inside the directory. Its exit status is
/// the errno, 0 for success. It dies with the calling thread, and holds none of our descriptors (locks, sockets) while it
/// hangs.
///
/// # Errors
/// When no process can be made.
pub(super) fn spawn_unmount(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Pid> {
    let directory = directory.as_raw_fd();
    let name = name.as_ptr();
    // SAFETY: takes no argument.
    let parent = unsafe { libc::getpid() };
    // SAFETY: fork copies the address space. Other threads may hold locks at this moment, so the child must make nothing
    // but async-signal-safe calls until it exits; `unmount_and_exit` does. The copy keeps `name` readable there.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        unmount_and_exit(parent, directory, name);
    }
    match Pid::from_raw(pid) {
        Some(child) if pid > 0 => Ok(child),
        Some(_) | None => Err(io::Error::last_os_error()),
    }
}

/// The child. Only system calls: no allocation, no lock, no unwinding. `name` points to a NUL-terminated string.
fn unmount_and_exit(parent: libc::pid_t, directory: libc::c_int, name: *const libc::c_char) -> ! {
    // SAFETY: PR_SET_PDEATHSIG takes a signal number and touches no memory.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: takes no argument. A parent that died before prctl took effect sends no signal.
    let orphan = unsafe { libc::getppid() } != parent;
    // SAFETY: fchdir looks at an open descriptor by number and touches no memory.
    let entered = !orphan && unsafe { libc::fchdir(directory) } == 0;
    // SAFETY: close_range closes descriptors of this process only: fork gave it a table of its own.
    unsafe { libc::syscall(libc::SYS_close_range, 0, libc::c_uint::MAX, 0) };
    // SAFETY: the kernel reads the NUL-terminated string at `name`, which the caller's &CStr keeps alive, and writes nothing.
    let done = entered && unsafe { libc::umount2(name, libc::UMOUNT_NOFOLLOW) } == 0;
    // Reads errno and allocates nothing.
    let errno = io::Error::last_os_error().raw_os_error().filter(|e| *e != 0).unwrap_or(libc::EIO);
    let status = if done { 0 } else { errno };
    // SAFETY: _exit runs no handler of the parent's and does not return.
    unsafe { libc::_exit(status) }
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
