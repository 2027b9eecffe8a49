//! Which directories the kernel is asked to watch. An event only says that it is time to read again (dependencies.md 7).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};

use inotify::{EventMask, EventOwned, WatchDescriptor, WatchMask};

/// As many links as the kernel follows.
const LINKS_MAX: usize = 40;

/// The watches of the last reading, and what each is for.
#[derive(Debug)]
pub(super) struct Watches {
    kernel: inotify::Watches,
    by_descriptor: BTreeMap<WatchDescriptor, Interest>,
    /// Those of the reading that goes on.
    next: BTreeMap<WatchDescriptor, Interest>,
}

/// Which names in a watched directory matter.
#[derive(Debug, Clone, Default)]
struct Interest {
    manifests: bool,
    names: BTreeSet<OsString>,
}

impl Watches {
    pub(super) fn new(kernel: inotify::Watches) -> Self {
        Self { kernel, by_descriptor: BTreeMap::new(), next: BTreeMap::new() }
    }

    /// Watches a manifest directory. To be called before it is listed, or what comes in between is lost.
    pub(super) fn directory(&mut self, path: &Path) -> io::Result<()> {
        let descriptor = self.add(path)?;
        self.next.entry(descriptor).or_default().manifests = true;
        Ok(())
    }

    /// Watches what decides where a path leads: each symlink on the way, and its last name; where there is nothing, the
    /// nearest directory that exists.
    pub(super) fn way(&mut self, path: &Path) -> io::Result<()> {
        let mut done = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = names(path).collect();
        let mut links = 0;
        while let Some(name) = rest.pop_front() {
            if name == ".." {
                done.pop();
                continue;
            }
            let next = done.join(&name);
            match std::fs::read_link(&next) {
                Ok(target) => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Ok(());
                    }
                    self.name_in(&done, &name)?;
                    if target.is_absolute() {
                        done = PathBuf::from("/");
                    }
                    let target: Vec<_> = names(&target).collect();
                    target.into_iter().rev().for_each(|n| rest.push_front(n));
                }
                // No link.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    if rest.is_empty() {
                        self.name_in(&done, &name)?;
                    }
                    done = next;
                }
                Err(_) => return self.name_in(&done, &name),
            }
        }
        Ok(())
    }

    fn name_in(&mut self, directory: &Path, name: &OsStr) -> io::Result<()> {
        match self.add(directory) {
            Ok(descriptor) => {
                self.next.entry(descriptor).or_default().names.insert(name.to_owned());
                Ok(())
            }
            // It went away this moment, or it is no directory: nothing to be seen there. The next reading looks again.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    fn add(&mut self, path: &Path) -> io::Result<WatchDescriptor> {
        // The kernel gives the same descriptor for the same directory, and the last mask counts: so it is one for all.
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::CREATE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        self.kernel.add(path, mask)
    }

    /// Ends a reading: what it did not ask for is watched no longer.
    pub(super) fn settle(&mut self) {
        let next = std::mem::take(&mut self.next);
        let before = std::mem::replace(&mut self.by_descriptor, next);
        for descriptor in before.into_keys().filter(|d| !self.by_descriptor.contains_key(d)) {
            // Fails when the directory is gone and the kernel has dropped the watch itself: just as well.
            drop(self.kernel.remove(descriptor));
        }
    }

    /// Says whether an event is a reason to read again.
    pub(super) fn concerns(&mut self, event: &EventOwned) -> bool {
        if event.mask.contains(EventMask::Q_OVERFLOW) {
            return true;
        }
        let Some(interest) = self.by_descriptor.get(&event.wd) else {
            // An event of a watch that was given up meanwhile.
            return false;
        };
        match &event.name {
            Some(name) => interest.names.contains(name) || (interest.manifests && is_manifest(name)),
            // The directory itself: moved, deleted, unmounted, its mode changed, or no longer watched.
            None => {
                if event.mask.contains(EventMask::IGNORED) {
                    self.by_descriptor.remove(&event.wd);
                }
                true
            }
        }
    }
}

/// The names in a path, without the root.
fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsString::from("..")),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// `*.yaml`, `*.yml` and `*.json`; not dot files, nor what editors leave (`x.yaml~`, `#x.yaml#`).
pub(super) fn is_manifest(name: &OsStr) -> bool {
    let bytes = name.as_encoded_bytes();
    !bytes.starts_with(b".")
        && !bytes.starts_with(b"#")
        && [&b".yaml"[..], b".yml", b".json"].iter().any(|end| bytes.ends_with(end))
}
