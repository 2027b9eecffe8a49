//! The mount table as a value, and what makes two looks at a mount the same mount.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// One line of the mount table, unescaped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's id; reused after an unmount, so never stored.
    pub id: u64,
    /// The id of the mount it sits on.
    pub parent: u64,
    /// Major and minor number of the superblock.
    pub device: (u32, u32),
    /// The directory of the file system that is shown.
    pub root: PathBuf,
    /// Where it is shown.
    pub point: PathBuf,
    /// `ext4`, `nfs4`, `fuse.s3`, ...
    pub fs_type: String,
    /// Device or remote name, as given to mount(2).
    pub source: String,
    /// Whether this mount is read-only.
    pub read_only: bool,
}

impl Mount {
    /// Returns what is stored of a mount to know it again.
    pub fn identity(&self) -> MountIdentity {
        MountIdentity {
            fs_type: self.fs_type.clone(),
            source: self.source.clone(),
            root: self.root.to_string_lossy().into_owned(),
            device: self.device,
        }
    }
}

/// A mount, to be known again in the same boot: file-system type, source, root and device number (design 4).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountIdentity {
    /// `ext4`, `nfs4`, ...
    pub fs_type: String,
    /// As given to mount(2).
    pub source: String,
    /// The directory of the file system that is shown.
    pub root: String,
    /// Major and minor number.
    pub device: (u32, u32),
}

impl MountIdentity {
    /// Returns whether only the device number differs: FUSE and network file systems get a new one with each mount.
    pub fn same_but_device(&self, other: &Self) -> bool {
        self.fs_type == other.fs_type && self.source == other.source && self.root == other.root
    }
}

impl std::fmt::Display for MountIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { fs_type, source, root, device: (major, minor) } = self;
        write!(f, "{fs_type} {source} (device {major}:{minor}, root {root})")
    }
}

/// Returns whether file systems of this type have a server that can die under them: FUSE and network file systems.
pub fn has_server(fs_type: &str) -> bool {
    let family = fs_type.split('.').next().unwrap_or(fs_type);
    matches!(
        family,
        "fuse"
            | "fuseblk"
            | "nfs"
            | "nfs4"
            | "cifs"
            | "smb3"
            | "ceph"
            | "9p"
            | "virtiofs"
            | "afs"
            | "lustre"
            | "gpfs"
            | "beegfs"
            | "glusterfs"
            | "orangefs"
            | "pvfs2"
    )
}

/// All mounts of the daemon's namespace at one moment, found by path.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountTable {
    /// Shared with the tables before and after it: most of a table stays when it changes.
    by_point: BTreeMap<Arc<Path>, Arc<[Mount]>>,
}

/// What is mounted at exactly one path.
#[derive(Debug, PartialEq, Eq)]
pub enum MountsAt<'a> {
    /// Nothing.
    None,
    /// One mount.
    One(&'a Mount),
    /// Mounts on top of each other, the lowest first.
    Stacked(&'a [Mount]),
}

impl MountTable {
    /// Takes the mounts in the kernel's order, in which an upper mount follows the one it covers.
    pub fn new(mounts: impl IntoIterator<Item = Mount>) -> Self {
        let mut by_point: BTreeMap<PathBuf, Vec<Mount>> = BTreeMap::new();
        for mount in mounts {
            by_point.entry(mount.point.clone()).or_default().push(mount);
        }
        let shared = by_point.into_iter().map(|(point, mounts)| (point.into(), mounts.into()));
        Self { by_point: shared.collect() }
    }

    /// Puts these mounts, the lowest first, in place of what is at the path.
    pub fn set(&mut self, point: &Path, mounts: impl IntoIterator<Item = Mount>) {
        let mounts: Arc<[Mount]> = mounts.into_iter().collect();
        if mounts.is_empty() {
            self.by_point.remove(point);
        } else {
            self.by_point.insert(point.into(), mounts);
        }
    }

    /// Returns what is mounted at the path.
    pub fn at(&self, path: &Path) -> MountsAt<'_> {
        match self.by_point.get(path).map(AsRef::as_ref) {
            None | Some([]) => MountsAt::None,
            Some([one]) => MountsAt::One(one),
            Some(more) => MountsAt::Stacked(more),
        }
    }

    /// Returns the mounts strictly below the path.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Mount> {
        use std::ops::Bound;
        self.by_point
            .range::<Path, _>((Bound::Excluded(path), Bound::Unbounded))
            .take_while(move |(point, _)| point.starts_with(path))
            .flat_map(|(_, mounts)| mounts.iter())
    }

    /// Returns the paths at which something else is mounted than in an older table, ordered.
    pub fn changes_since<'a>(&'a self, old: &'a Self) -> Vec<&'a Path> {
        let mut changed = Vec::new();
        let (mut new, mut old) = (self.by_point.iter().peekable(), old.by_point.iter().peekable());
        loop {
            // Both are ordered by path.
            let order = match (new.peek(), old.peek()) {
                (None, None) => return changed,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((new, _)), Some((old, _))) if Arc::ptr_eq(new, old) => Ordering::Equal,
                (Some((new, _)), Some((old, _))) => new.cmp(old),
            };
            let came = new.next_if(|_| order.is_le());
            let went = old.next_if(|_| order.is_ge());
            let same = match (came, went) {
                (Some((_, new)), Some((_, old))) => Arc::ptr_eq(new, old) || new == old,
                (Some(_) | None, None) | (None, Some(_)) => false,
            };
            changed.extend(came.or(went).filter(|_| !same).map(|(point, _)| point.as_ref()));
        }
    }

    /// Returns at how many paths something is mounted.
    pub fn count(&self) -> usize {
        self.by_point.len()
    }

    /// Returns every mount, ordered by path.
    pub fn iter(&self) -> impl Iterator<Item = &Mount> {
        self.by_point.values().flat_map(|mounts| mounts.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(id: u64, point: &str) -> Mount {
        Mount {
            id,
            parent: 1,
            device: (0, 40),
            root: "/".into(),
            point: point.into(),
            fs_type: "tmpfs".to_owned(),
            source: "none".to_owned(),
            read_only: false,
        }
    }

    #[test]
    fn what_came_went_was_replaced_or_was_covered_is_a_change() {
        let old = MountTable::new([mount(2, "/same"), mount(3, "/went"), mount(4, "/new"), mount(5, "/top")]);
        let new = MountTable::new([
            mount(2, "/same"),
            mount(6, "/new"),
            mount(5, "/top"),
            mount(7, "/top"),
            mount(8, "/came"),
        ]);
        let changed = ["/came", "/new", "/top", "/went"].map(Path::new);
        assert_eq!(new.changes_since(&old), changed);
        let mut set = old.clone();
        set.set(Path::new("/went"), []);
        set.set(Path::new("/new"), [mount(6, "/new")]);
        set.set(Path::new("/top"), [mount(5, "/top"), mount(7, "/top")]);
        set.set(Path::new("/came"), [mount(8, "/came")]);
        assert_eq!((set.changes_since(&old), &set), (changed.to_vec(), &new));
        assert!(new.changes_since(&new).is_empty());
    }
}
