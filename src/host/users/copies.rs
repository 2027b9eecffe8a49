//! Copies of staged mounts in all mount namespaces, and which of them an unmount of ours takes along.
//!
//! Copies are known by device and root, never by a path (kubelet.md 10, 23). An unmount reaches what lies at the same
//! place of the mounts that follow the one *below*; what the copy's own tags say does not matter: a follower bound
//! elsewhere stays, and a copy made private goes (tried on Linux 6.18). One with something mounted below it stays too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::mounts::inside;
use crate::host::mount_table::Line;

/// Major and minor number.
pub(super) type Device = (u32, u32);

/// A mount at or below the place that is to be unstaged.
#[derive(Debug)]
pub(super) struct Target {
    /// Whose it is.
    pub(super) request: usize,
    /// Its id in our namespace.
    pub(super) id: u64,
    /// Whether its superblock is this volume's alone: all of a file system on a block device.
    pub(super) alone: bool,
    /// Its superblock.
    pub(super) device: Device,
    /// The directory of the superblock that is shown.
    root: PathBuf,
    /// Where it sits; `None` where the mount table does not say.
    seat: Option<Seat>,
}

/// Where a mount sits.
#[derive(Debug)]
struct Seat {
    device: Device,
    /// The path inside that file system.
    inside: PathBuf,
    /// The peer group of the mount that it sits on, and the one which that follows.
    group: Option<u64>,
    master: Option<u64>,
}

impl Seat {
    fn of(line: &Line, table: &BTreeMap<u64, &Line>) -> Option<Self> {
        // The first mount of a namespace is its own parent, or has one that is not shown: it never goes.
        let parent = table.get(&line.mount.parent).filter(|parent| parent.mount.id != line.mount.id)?;
        Some(Self {
            device: parent.mount.device,
            inside: inside(&parent.mount, &line.mount.point)?,
            group: parent.peer_group,
            master: parent.master,
        })
    }
}

/// The mounts at or below a path, by our own table.
pub(super) fn targets(request: usize, path: &Path, table: &[Line]) -> Vec<Target> {
    let at_or_below: Vec<&Line> = table.iter().filter(|line| line.mount.point.starts_with(path)).collect();
    if at_or_below.is_empty() {
        return Vec::new();
    }
    let by_id = by_id(table);
    let target = |line: &Line| Target {
        request,
        id: line.mount.id,
        // Major 0: tmpfs, network, FUSE, btrfs. These may be mounted again for another volume.
        alone: line.mount.device.0 != 0 && line.mount.root == Path::new("/"),
        device: line.mount.device,
        root: line.mount.root.clone(),
        seat: Seat::of(line, &by_id),
    };
    at_or_below.into_iter().map(target).collect()
}

fn by_id(table: &[Line]) -> BTreeMap<u64, &Line> {
    table.iter().map(|line| (line.mount.id, line)).collect()
}

/// Targets, by what they show.
#[derive(Debug, Default)]
pub(super) struct Index(BTreeMap<Device, BTreeMap<PathBuf, Vec<usize>>>);

impl Index {
    pub(super) fn new(targets: &[Target]) -> Self {
        let mut index = BTreeMap::<_, BTreeMap<_, Vec<_>>>::new();
        for (number, target) in targets.iter().enumerate() {
            index.entry(target.device).or_default().entry(target.root.clone()).or_default().push(number);
        }
        Self(index)
    }

    /// The targets that this mount shows, or a directory of them.
    fn shown_by(&self, line: &Line) -> Vec<usize> {
        let Some(roots) = self.0.get(&line.mount.device) else { return Vec::new() };
        line.mount.root.ancestors().filter_map(|root| roots.get(root)).flatten().copied().collect()
    }
}

/// A mount that shows a target, the target itself included.
#[derive(Debug)]
pub(super) struct Copy {
    pub(super) id: u64,
    /// What it shows, at least one, in no order.
    pub(super) targets: Vec<usize>,
    pub(super) device: Device,
    /// Where it is in its own namespace.
    pub(super) point: PathBuf,
    /// What hides parts of it: mount points at or below its own.
    covers: Vec<PathBuf>,
    seat: Option<Seat>,
    /// Something is mounted in it, not just on top of it: the kernel leaves it then.
    carries: bool,
}

impl Copy {
    /// Finds the copies in one namespace's table.
    pub(super) fn all(table: &[Line], index: &Index) -> Vec<Self> {
        let shown = |line: &Line| Some(index.shown_by(line)).filter(|targets| !targets.is_empty());
        let found: Vec<_> =
            table.iter().enumerate().filter_map(|(at, line)| Some((at, line, shown(line)?))).collect();
        if found.is_empty() {
            return Vec::new();
        }
        let by_id = by_id(table);
        let copy = |(at, line, targets): (usize, &Line, Vec<usize>)| {
            let point = &line.mount.point;
            // The kernel lists an upper mount after the one it covers.
            let covers = table.iter().enumerate().filter(|(other, above)| {
                above.mount.point.starts_with(point) && (*other > at || above.mount.point != *point)
            });
            let carries = table.iter().any(|above| {
                above.mount.parent == line.mount.id
                    && above.mount.id != line.mount.id
                    && above.mount.point != *point
            });
            Self {
                id: line.mount.id,
                targets,
                device: line.mount.device,
                point: point.clone(),
                covers: covers
                    .filter(|(other, _)| *other != at)
                    .map(|(_, a)| a.mount.point.clone())
                    .collect(),
                seat: Seat::of(line, &by_id),
                carries,
            }
        };
        found.into_iter().map(copy).collect()
    }

    /// Whether a path of its namespace leads to a file of it.
    pub(super) fn has(&self, path: &Path) -> bool {
        path.starts_with(&self.point) && !self.covers.iter().any(|cover| path.starts_with(cover))
    }

    /// Whether unmounting the target takes this copy along.
    pub(super) fn goes_with(&self, target: &Target, groups: &Groups) -> bool {
        let (Some(seat), Some(of_target)) = (&self.seat, &target.seat) else { return false };
        let Some(group) = of_target.group else { return false };
        !self.carries
            && seat.device == of_target.device
            && seat.inside == of_target.inside
            && [seat.group, seat.master].into_iter().flatten().any(|g| groups.hears(group, g))
    }
}

/// Which peer groups follow which, of all namespaces.
#[derive(Debug, Default)]
pub(super) struct Groups {
    followers: BTreeMap<u64, BTreeSet<u64>>,
}

impl Groups {
    pub(super) fn add(&mut self, table: &[Line]) {
        for line in table {
            if let (Some(group), Some(master)) = (line.peer_group, line.master) {
                self.followers.entry(master).or_default().insert(group);
            }
        }
    }

    /// Whether what happens in one group also happens in another, directly or over others.
    fn hears(&self, from: u64, group: u64) -> bool {
        let mut seen = BTreeSet::from([from]);
        let mut next = vec![from];
        while let Some(at) = next.pop() {
            if at == group {
                return true;
            }
            next.extend(self.followers.get(&at).into_iter().flatten().copied().filter(|g| seen.insert(*g)));
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::mount_table::parse;

    /// Our namespace: the volume at /k/s on a shared mount.
    const OURS: &str = "1 1 8:1 / / rw shared:1 - ext4 /dev/a rw\n\
        2 1 8:2 / /k rw shared:2 - ext4 /dev/b rw\n\
        3 2 8:3 / /k/s rw shared:3 - ext4 /dev/c rw\n";

    /// Whether each copy in another namespace's table goes with the mount at /k/s; other tables only add groups.
    fn goes(ours: &str, theirs: &str, others: &str) -> Vec<(u64, bool)> {
        let ours = parse(ours.as_bytes()).unwrap();
        let theirs = parse(theirs.as_bytes()).unwrap();
        let targets = targets(0, Path::new("/k/s"), &ours);
        let mut groups = Groups::default();
        for table in [&ours, &theirs, &parse(others.as_bytes()).unwrap()] {
            groups.add(table);
        }
        let copies = Copy::all(&theirs, &Index::new(&targets));
        copies.iter().map(|copy| (copy.id, copy.goes_with(&targets[0], &groups))).collect()
    }

    #[test]
    fn a_copy_goes_where_the_mount_below_it_follows_ours() {
        let below = "11 11 8:1 / / rw - ext4 /dev/a rw\n12 11 8:2 / /k rw TAGS - ext4 /dev/b rw\n\
                     13 12 8:3 / /k/s rw - ext4 /dev/c rw\n";
        for (tags, expected) in
            [("shared:2", true), ("master:2", true), ("shared:9 master:2", true), ("master:8", false)]
        {
            assert_eq!(goes(OURS, &below.replace("TAGS", tags), ""), [(13, expected)], "{tags}");
        }
        let private = below.replace("TAGS ", "");
        assert_eq!(goes(OURS, &private, ""), [(13, false)]);
        assert_eq!(
            goes(&OURS.replace("shared:2 ", ""), &below.replace("TAGS", "master:8"), ""),
            [(13, false)]
        );
    }

    #[test]
    fn a_copy_follows_over_a_group_that_only_a_third_namespace_shows() {
        let theirs = "11 11 8:2 / / rw master:9 - ext4 /dev/b rw\n13 11 8:3 / /s rw - ext4 /dev/c rw\n";
        let third = "21 21 8:2 / / rw shared:9 master:2 - ext4 /dev/b rw\n";
        assert_eq!(goes(OURS, theirs, third), [(13, true)]);
        assert_eq!(goes(OURS, theirs, ""), [(13, false)], "nobody says what group 9 follows");
    }

    #[test]
    fn a_follower_of_the_mount_itself_that_sits_elsewhere_stays() {
        let theirs = "11 11 8:1 / / rw master:1 - ext4 /dev/a rw\n12 11 8:2 / /k rw master:2 - ext4 /dev/b rw\n\
                      13 12 8:3 / /k/s rw master:3 - ext4 /dev/c rw\n14 11 8:3 / /z rw master:3 - ext4 /dev/c rw\n";
        assert_eq!(goes(OURS, theirs, ""), [(13, true), (14, false)]);
    }

    #[test]
    fn a_copy_that_carries_a_mount_stays_and_one_that_is_covered_goes() {
        let theirs = "12 12 8:2 / /k rw master:2 - ext4 /dev/b rw\n13 12 8:3 / /k/s rw - ext4 /dev/c rw\n";
        assert_eq!(goes(OURS, &format!("{theirs}14 13 0:9 / /k/s/x rw - tmpfs t rw\n"), ""), [(13, false)]);
        assert_eq!(goes(OURS, &format!("{theirs}14 13 0:9 / /k/s rw - tmpfs t rw\n"), ""), [(13, true)]);
    }

    #[test]
    fn copies_are_known_by_device_and_root_not_by_path() {
        let ours = "1 1 8:1 / / rw - ext4 /dev/a rw\n3 1 8:1 /srv/v1 /k/s rw - ext4 /dev/a rw\n";
        let theirs = "11 11 8:1 / / rw - ext4 /dev/a rw\n12 11 8:1 /srv/v1 /z rw - ext4 /dev/a rw\n\
                      13 11 8:1 /srv/v1/sub /y rw - ext4 /dev/a rw\n14 11 8:1 /srv/v10 /k/s rw - ext4 /dev/a rw\n\
                      15 11 8:9 /srv/v1 /k/s rw - ext4 /dev/x rw\n16 11 8:1 /srv /w rw - ext4 /dev/a rw\n";
        assert_eq!(goes(ours, theirs, ""), [(12, false), (13, false)]);
    }

    #[test]
    fn a_path_on_a_mount_in_the_copy_is_not_on_the_copy() {
        let table = format!("{OURS}4 3 0:9 / /k/s/in rw - tmpfs t rw\n");
        let table = parse(table.as_bytes()).unwrap();
        let copies = Copy::all(&table, &Index::new(&targets(0, Path::new("/k/s"), &table[..3])));
        assert_eq!(copies.len(), 1);
        assert!(copies[0].has(Path::new("/k/s/file")) && copies[0].has(Path::new("/k/s")));
        assert!(!copies[0].has(Path::new("/k/s/in/file")) && !copies[0].has(Path::new("/k/sx")));
    }
}
