//! Which mounts came to and went from a mount namespace: fanotify's events of it (Linux 6.15).

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::io::Errno;

// What linux/fanotify.h has and nix has not.
const FAN_REPORT_MNT: u32 = 0x4000;
const FAN_MARK_MNTNS: u32 = 0x110;
const FAN_MNT_ATTACH: u64 = 0x0100_0000;
const FAN_MNT_DETACH: u64 = 0x0200_0000;
const FAN_Q_OVERFLOW: u64 = 0x4000;
const FAN_EVENT_INFO_TYPE_MNT: u8 = 7;

/// The length of `struct fanotify_event_metadata`.
const METADATA: usize = 24;

/// What was heard since the last time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// The unique ids of mounts that came, went or moved.
    pub(super) mounts: BTreeSet<u64>,
    /// Those of them that went from where they were, perhaps to another place.
    pub(super) went: BTreeSet<u64>,
    /// The kernel had more than it could keep.
    pub(super) lost: bool,
}

/// The events of one namespace.
#[derive(Debug)]
pub(super) struct Changes {
    group: Fanotify,
}

impl Changes {
    /// Begins to hear of the calling thread's namespace.
    ///
    /// # Errors
    /// When the kernel does not tell, or not us.
    pub(super) fn open() -> io::Result<Self> {
        let flags =
            InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | InitFlags::from_bits_retain(FAN_REPORT_MNT);
        let group = Fanotify::init(flags, EventFFlags::O_RDONLY)?;
        let namespace = File::open("/proc/thread-self/ns/mnt")?;
        let mark = MarkFlags::FAN_MARK_ADD | MarkFlags::from_bits_retain(FAN_MARK_MNTNS);
        let mask = MaskFlags::from_bits_retain(FAN_MNT_ATTACH | FAN_MNT_DETACH);
        group.mark::<_, str>(mark, mask, &namespace, None)?;
        Ok(Self { group })
    }

    /// Takes what there is, without waiting.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub(super) fn take(&self, news: &mut News) -> io::Result<()> {
        let mut buffer = [0_u8; 4096];
        loop {
            match rustix::io::read(&self.group, &mut buffer) {
                Ok(length) => {
                    let events = buffer.get(..length).unwrap_or_default();
                    understand(events, news).ok_or_else(|| {
                        io::Error::new(io::ErrorKind::InvalidData, "fanotify's events are not understood")
                    })?;
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.group.as_fd()
    }
}

/// Adds what events say (fanotify(7)). `None`: they are cut off or of another kind.
fn understand(mut events: &[u8], news: &mut News) -> Option<()> {
    while !events.is_empty() {
        let length = usize::try_from(u32_at(events, 0)?).ok()?;
        let header = usize::from(u16::from_ne_bytes(events.get(6..8)?.try_into().ok()?));
        let mask = u64_at(events, 8)?;
        let event = events.get(..length).filter(|_| header >= METADATA)?;
        if mask & FAN_Q_OVERFLOW != 0 {
            news.lost = true;
        } else {
            let mount = mount_of(event.get(header..)?)?;
            news.mounts.insert(mount);
            if mask & FAN_MNT_DETACH != 0 {
                news.went.insert(mount);
            }
        }
        events = events.get(length..)?;
    }
    Some(())
}

/// Returns the unique id among an event's records.
fn mount_of(mut records: &[u8]) -> Option<u64> {
    loop {
        let kind = *records.first()?;
        let length = usize::from(u16::from_ne_bytes(records.get(2..4)?.try_into().ok()?));
        let record = records.get(..length).filter(|record| record.len() >= 4)?;
        if kind == FAN_EVENT_INFO_TYPE_MNT {
            return u64_at(record, 8);
        }
        records = records.get(length..)?;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(mask: u64, record: &[u8]) -> Vec<u8> {
        let length = u32::try_from(METADATA + record.len()).unwrap();
        let mut bytes = length.to_ne_bytes().to_vec();
        bytes.extend([3, 0]);
        bytes.extend(24_u16.to_ne_bytes());
        bytes.extend(mask.to_ne_bytes());
        bytes.extend((-1_i32).to_ne_bytes());
        bytes.extend(7_i32.to_ne_bytes());
        bytes.extend(record);
        bytes
    }

    fn of_mount(id: u64) -> Vec<u8> {
        let mut record = vec![FAN_EVENT_INFO_TYPE_MNT, 0];
        record.extend(16_u16.to_ne_bytes());
        record.extend([0; 4]);
        record.extend(id.to_ne_bytes());
        record
    }

    #[test]
    fn each_mount_is_told_once_and_an_overflow_too() {
        let mut bytes = event(FAN_MNT_ATTACH, &of_mount(11));
        // A record of another kind before it is passed over.
        bytes.extend(event(FAN_MNT_DETACH, &[[9, 0, 4, 0].as_slice(), &of_mount(12)].concat()));
        bytes.extend(event(FAN_MNT_DETACH, &of_mount(11)));
        let mut news = News::default();
        understand(&bytes, &mut news).unwrap();
        assert_eq!(news, News { mounts: [11, 12].into(), went: [11, 12].into(), lost: false });
        understand(&event(FAN_MNT_ATTACH, &of_mount(13)), &mut news).unwrap();
        understand(&event(FAN_MNT_ATTACH | FAN_MNT_DETACH, &of_mount(14)), &mut news).unwrap();
        assert_eq!(news.went, [11, 12, 14].into(), "one came, the other moved");
        understand(&event(FAN_Q_OVERFLOW, &[]), &mut news).unwrap();
        assert!(news.lost);
        let mut cut = bytes.clone();
        cut.pop();
        assert_eq!(understand(&cut, &mut News::default()), None);
        assert_eq!(understand(&event(FAN_MNT_ATTACH, &[]), &mut News::default()), None);
    }

    proptest! {
        #[test]
        fn junk_is_no_panic_and_ends(junk in prop::collection::vec(any::<u8>(), 0..200)) {
            let _result = understand(&junk, &mut News::default());
        }
    }
}
