//! The locks of maps: found, made, and let go.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::super::HostError;
use super::super::loops::{self, Loop, Tag};
use super::{Blocks, Bound};
use crate::model::{MountsAt, RootPath};

impl Blocks {
    /// Lets the locks of this root go whose map nobody knows and where nothing is bound any more; returns them, for people.
    ///
    /// # Errors
    /// The first lock that could not be asked or let go; those before it are gone.
    pub(in crate::host) fn collect(&self, known: &BTreeSet<RootPath>) -> Result<Vec<String>, HostError> {
        let ours = Tag::root(&self.root).map_err(|e| self.failed_root(e))?;
        let known: BTreeSet<Tag> = known.iter().map(|map| self.tag(map)).collect::<Result<_, _>>()?;
        let mut gone = Vec::new();
        let may_be = |shown: &Path| is_detached(shown) || shown.iter().any(|name| name == "volumeDevices");
        let locks = loops::list(may_be)?;
        // Read after the list: what is mapped meanwhile is bound before it is locked.
        let table = self.mounts()?;
        for lock in locks {
            let is_known = known.iter().any(|tag| lock.is(tag));
            // Still bound: somebody's record was lost, not the device. It stays what it is: found, and shown as foreign.
            let is_bound = !is_detached(&lock.shown) && table.at(&lock.shown) != MountsAt::None;
            if lock.name().starts_with(&ours) && !is_known && !is_bound {
                loops::let_go(&lock, &self.unmounters, loops::LIMIT)?;
                let (major, minor) = lock.device();
                gone.push(format!("{} (of {major}:{minor})", lock.node().display()));
            }
        }
        Ok(gone)
    }

    fn tag(&self, map: &RootPath) -> Result<Tag, HostError> {
        Tag::of(&self.root, map).map_err(|e| self.failed_root(e))
    }

    fn failed_root(&self, source: io::Error) -> HostError {
        HostError::Io { doing: "look at", path: self.root.path().to_owned(), source }
    }

    /// Lists our locks of a map.
    pub(super) fn tagged(&self, map: &RootPath) -> Result<Vec<Loop>, HostError> {
        let tag = self.tag(map)?;
        // By the end of the path: in another mount namespace the root may have another place.
        let locks = loops::list(|shown| is_detached(shown) || shown.ends_with(map.as_path()))?;
        Ok(locks.into_iter().filter(|lock| lock.is(&tag)).collect())
    }

    /// Lists a kubelet's locks of a map: by the path, and where a bind of the same device was taken away under the lock, by
    /// the path that it was given, as far as it fitted.
    pub(super) fn kubelet_s(
        &self,
        map: &RootPath,
        device: Option<(u32, u32)>,
    ) -> Result<Vec<Loop>, HostError> {
        let absolute = self.root.absolute(map);
        let given = |lock: &Loop| {
            let name = lock.name();
            let name = name.strip_suffix('*').unwrap_or(name).as_bytes();
            name.len() > self.root.path().as_os_str().len()
                && absolute.as_os_str().as_bytes().starts_with(name)
        };
        let mut locks = loops::list(|shown| is_detached(shown) || shown == absolute)?;
        locks.retain(|lock| {
            !lock.is_a_volumed_s()
                && device.is_none_or(|device| lock.device() == device)
                && (lock.shown == absolute || (device.is_some() && given(lock)))
        });
        Ok(locks)
    }

    /// Sees to it that exactly one lock holds the bound device, by the bind itself, where a kubelet looks for it.
    pub(super) fn lock(&self, map: &RootPath, bound: &Bound) -> Result<(), HostError> {
        let absolute = self.root.absolute(map);
        let mut locks = self.tagged(map)?;
        locks.extend(self.kubelet_s(map, Some(bound.number))?);
        let right = |lock: &Loop| lock.device() == bound.number && lock.shown == absolute;
        match locks.iter().position(right) {
            Some(first) => drop(locks.remove(first)),
            None => {
                let device = self.open(map, bound)?;
                loops::hold(&device, &self.tag(map)?)?;
            }
        }
        // Of another device, of a bind that is gone, or made twice. Only now, so that the device is held throughout.
        locks.iter().try_for_each(|lock| loops::let_go(lock, &self.unmounters, loops::LIMIT))
    }

    /// Opens the bound device: for writing, unless it is read-only.
    fn open(&self, map: &RootPath, bound: &Bound) -> Result<OwnedFd, HostError> {
        // The descriptor leads to the very node that was looked at, by the path of the bind.
        let path = format!("/proc/self/fd/{}", bound.node.as_raw_fd());
        let failed = |e: Errno| HostError::Io {
            doing: "open the device at",
            path: self.root.absolute(map),
            source: e.into(),
        };
        let open = |flags| rustix::fs::open(&path, flags | OFlags::CLOEXEC, Mode::empty());
        // The kernel lets some read-only devices be opened for writing, and refuses the writes.
        let (major, minor) = bound.number;
        let said = std::fs::read(format!("/sys/dev/block/{major}:{minor}/ro")).unwrap_or_default();
        if said.starts_with(b"1") {
            return open(OFlags::RDONLY).map_err(failed);
        }
        match open(OFlags::RDWR) {
            Err(Errno::ACCESS | Errno::ROFS | Errno::PERM) => open(OFlags::RDONLY),
            opened => opened,
        }
        .map_err(failed)
    }
}

/// The backing file of a loop device whose bind mount was taken away is shown as the root of nothing.
fn is_detached(shown: &Path) -> bool {
    shown == Path::new("/")
}
