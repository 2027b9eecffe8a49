//! What the kernel says of block devices as it happens: its uevents, from a netlink socket.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::unix::AsyncFd;

use super::{DiskNews, raw};

/// The kernel's own events; those that udev sends on are another group's.
const FROM_THE_KERNEL: u32 = 1;

/// A socket on which they arrive.
#[derive(Debug)]
pub(super) struct Uevents(AsyncFd<OwnedFd>);

impl Uevents {
    /// Opens the socket; to be called in a tokio runtime.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let kind = SockProtocol::NetlinkKObjectUEvent;
        let fd = socket(AddressFamily::Netlink, SockType::Datagram, flags, kind)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, FROM_THE_KERNEL))?;
        Ok(Self(raw::watch_readable(fd)?))
    }

    /// Waits until a block device came or went, or may have another size. Cancel-safe: what was not waited for stays in the socket.
    pub(super) async fn disks_changed(&self) -> DiskNews {
        let mut message = [0; 8192];
        loop {
            // The runtime is going down: nobody waits for long.
            let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
            let mut news = None;
            loop {
                match recv(self.0.get_ref().as_fd().as_raw_fd(), &mut message, MsgFlags::empty()) {
                    Ok(length) => news = news.max(message.get(..length).and_then(of_a_disk)),
                    Err(Errno::EINTR) => {}
                    Err(Errno::EAGAIN) => break,
                    // More came than there was room for: any of them may have been one.
                    Err(_) => {
                        news = Some(DiskNews::Changed);
                        break;
                    }
                }
            }
            ready.clear_ready();
            if let Some(news) = news {
                return news;
            }
        }
    }
}

/// Reads `change@/devices/...`, then `KEY=value`, each with a NUL at its end. A device-mapper device says `change` without a word
/// of its size, and says it for whatever is done with it.
fn of_a_disk(message: &[u8]) -> Option<DiskNews> {
    let mut lines = message.split(|byte| *byte == 0);
    let first = lines.next()?;
    let lines: Vec<&[u8]> = lines.collect();
    let says = |line: &[u8]| lines.contains(&line);
    // What udev asks the kernel to say again, after each close of a disk that was open for writing, is no news.
    let is_asked_for = lines.iter().any(|line| line.starts_with(b"SYNTH_UUID="));
    if !says(b"SUBSYSTEM=block") || is_asked_for {
        return None;
    }
    let is_mapped = first.windows(4).any(|part| part == b"/dm-");
    let came_or_went = says(b"ACTION=add") || says(b"ACTION=remove");
    match (is_mapped, came_or_went || says(b"RESIZE=1")) {
        (false, true) => Some(DiskNews::Changed),
        (false, false) => None,
        (true, _) => Some(DiskNews::Perhaps),
    }
}

#[cfg(test)]
mod tests {
    use super::super::DiskNews::{Changed, Perhaps};
    use super::of_a_disk;

    #[test]
    fn a_disk_that_came_went_or_grew_is_told_from_the_rest() {
        for (message, is) in [
            (
                "change@/devices/virtual/block/loop0\0ACTION=change\0SUBSYSTEM=block\0RESIZE=1\0SEQNUM=7\0",
                Some(Changed),
            ),
            ("add@/devices/pci/block/vdb\0ACTION=add\0SUBSYSTEM=block\0", Some(Changed)),
            (
                "change@/devices/virtual/block/dm-0\0ACTION=change\0SUBSYSTEM=block\0DM_COOKIE=1\0",
                Some(Perhaps),
            ),
            ("change@/devices/virtual/block/dm-0\0ACTION=change\0SUBSYSTEM=block\0SYNTH_UUID=0\0", None),
            ("change@/devices/virtual/block/loop0\0ACTION=change\0SUBSYSTEM=block\0", None),
            ("remove@/devices/pci/block/vdb\0ACTION=remove\0SUBSYSTEM=block\0", Some(Changed)),
            ("add@/devices/x/net/eth0\0ACTION=add\0SUBSYSTEM=net\0", None),
            ("", None),
        ] {
            assert_eq!(of_a_disk(message.as_bytes()), is, "{message:?}");
        }
    }
}
