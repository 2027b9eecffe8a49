//! Both ways to the mount table, with real mounts: what the kernel tells of single mounts (Linux 6.15), and mountinfo. Needs
//! root. VOLUMED_SEED repeats a run.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

#[path = "support/alone.rs"]
mod alone;

use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use volumed::host::MountReader;
use volumed::model::{Mount, MountTable};

const NONE: Option<&str> = None;

fn isolated(name: &str, test: impl Future<Output = ()>) {
    alone::run(name, test, |_directory| {});
}

/// Two readers of the same namespace.
struct Both {
    told: MountReader,
    text: MountReader,
    top: PathBuf,
    random: u64,
}

impl Both {
    fn new(top: &Path) -> Self {
        let told = MountReader::open().unwrap();
        if !told.is_told() {
            println!(
                "NOT-RUN: root_mount_table: this kernel does not tell of single mounts (Linux 6.15 does)"
            );
        }
        let seed = std::env::var("VOLUMED_SEED")
            .map_or_else(|_| RandomState::new().build_hasher().finish(), |s| s.parse().unwrap());
        println!("VOLUMED_SEED={seed}");
        Self { told, text: MountReader::of_mountinfo().unwrap(), top: top.to_owned(), random: seed }
    }

    fn random(&mut self, below: usize) -> usize {
        // splitmix64
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) >> 33).unwrap() % below
    }

    /// Asserts that both give the same, with the same order of what is stacked.
    fn assert_same(&mut self, after: &str) {
        let (told, text) = (self.told.read().unwrap(), self.text.read().unwrap());
        let lines = |table: &MountTable| table.iter().cloned().collect::<Vec<Mount>>();
        assert_eq!(lines(&told), lines(&text), "after {after}");
    }

    fn directory(&mut self) -> PathBuf {
        const NAMES: [&str; 5] = ["plain", "two words", "a\nnew line", "back\\slash", "h#sh"];
        let name = NAMES[self.random(NAMES.len())];
        let mut path = self.top.join(name);
        if self.random(2) == 0 {
            path = path.join("below");
        }
        let _refused = std::fs::create_dir_all(&path);
        path
    }

    /// Does something to the mounts, and returns what. Much of it is refused: below what was removed, below itself, where
    /// nothing is mounted, or what is there is covered.
    fn step(&mut self) -> String {
        let (one, two) = (self.directory(), self.directory());
        let flags = |flags, path: &Path| mount(NONE, path, NONE, flags, NONE);
        match self.random(9) {
            0 | 1 => {
                let made = mount(Some("a source"), &one, Some("tmpfs"), MsFlags::empty(), Some("size=64k"));
                format!("tmpfs at {one:?}: {made:?}")
            }
            2 | 3 => {
                let made = mount(Some(&one), &two, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE);
                format!("bind of {one:?} at {two:?}: {made:?}")
            }
            4 => {
                let remount = MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
                let set = flags(remount | MsFlags::MS_RDONLY, &one);
                self.assert_same("read-only");
                // Whatever comes next can write there again.
                let cleared = flags(remount, &one);
                format!("{one:?} read-only: {set:?}, and not: {cleared:?}")
            }
            5 => {
                let how = [MsFlags::MS_SHARED, MsFlags::MS_PRIVATE, MsFlags::MS_SLAVE][self.random(3)];
                format!("{one:?} {how:?}: {:?}", flags(how, &one))
            }
            6 => {
                let moved = mount(Some(&one), &two, NONE, MsFlags::MS_MOVE, NONE);
                format!("{one:?} moved to {two:?}: {moved:?}")
            }
            7 => {
                let source = self.top.join("gone");
                let made = std::fs::create_dir(&source);
                let bound = mount(Some(&source), &one, NONE, MsFlags::MS_BIND, NONE);
                let gone = std::fs::remove_dir(&source);
                format!("bind of what was removed at {one:?}: {made:?}, {bound:?}, {gone:?}")
            }
            _ => {
                let gone = umount2(&one, MntFlags::MNT_DETACH);
                format!("{one:?} unmounted: {gone:?}")
            }
        }
    }
}

#[test]
fn both_ways_give_the_same_after_each_change() {
    isolated("both_ways_give_the_same_after_each_change", async {
        let top = tempfile::tempdir().unwrap();
        mount(Some(top.path()), top.path(), NONE, MsFlags::MS_BIND, NONE).unwrap();
        let mut both = Both::new(top.path());
        both.assert_same("nothing");
        let mut done = Vec::new();
        for _ in 0..400 {
            // What is bound into itself again and again doubles with each time.
            if both.text.read().unwrap().iter().count() > 300 {
                umount2(top.path(), MntFlags::MNT_DETACH).unwrap();
                mount(Some(top.path()), top.path(), NONE, MsFlags::MS_BIND, NONE).unwrap();
            }
            done.push(both.step());
            both.assert_same(&done.join("\n"));
        }
    });
}

#[test]
fn what_happened_between_two_looks_is_seen_at_once() {
    isolated("what_happened_between_two_looks_is_seen_at_once", async {
        let top = tempfile::tempdir().unwrap();
        let mut both = Both::new(top.path());
        both.assert_same("nothing");
        // More than the kernel keeps for who does not ask (16,384 events).
        let path = top.path().join("x");
        std::fs::create_dir(&path).unwrap();
        for _ in 0..9_000 {
            mount(Some("x"), &path, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
            umount2(&path, MntFlags::MNT_DETACH).unwrap();
        }
        for number in 0..200 {
            let path = top.path().join(number.to_string());
            std::fs::create_dir(&path).unwrap();
            mount(Some("x"), &path, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        }
        both.assert_same("9,000 that came and went");
        assert!(both.told.current().unwrap().is_some(), "nothing changed since");
        for number in 0..100 {
            umount2(&top.path().join(number.to_string()), MntFlags::MNT_DETACH).unwrap();
        }
        assert!(both.told.current().unwrap().is_none());
        assert!(both.told.soon().unwrap().is_none(), "more than a few");
        both.assert_same("a hundred less");
        umount2(&top.path().join("100"), MntFlags::MNT_DETACH).unwrap();
        assert!(both.told.current().unwrap().is_none());
        let soon = both.told.soon().unwrap();
        assert_eq!(soon.is_some(), both.told.is_told(), "one is a few, where it is told");
        assert!(soon.is_none_or(|soon| soon == both.text.read().unwrap()));
    });
}

#[test]
fn a_table_that_is_read_while_mounts_come_and_go_is_right_in_the_end() {
    isolated("a_table_that_is_read_while_mounts_come_and_go_is_right_in_the_end", async {
        let top = tempfile::tempdir().unwrap();
        let mut both = Both::new(top.path());
        for round in 0..20 {
            let below = top.path().join(round.to_string());
            let others = std::thread::spawn(move || {
                for number in 0..100 {
                    let path = below.join(number.to_string());
                    std::fs::create_dir_all(&path).unwrap();
                    mount(Some("x"), &path, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
                    if number % 10 == 0 {
                        // What a move takes along is not told, so all is asked for, while others come and go.
                        std::fs::create_dir(path.join("in")).unwrap();
                        mount(Some("y"), &path.join("in"), Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
                        let moved = below.join(format!("moved-{number}"));
                        std::fs::create_dir(&moved).unwrap();
                        mount(Some(&path), &moved, NONE, MsFlags::MS_MOVE, NONE).unwrap();
                    } else if number % 3 == 0 {
                        umount2(&path, MntFlags::empty()).unwrap();
                    }
                }
            });
            let mut looks = 0;
            while !others.is_finished() {
                if both.told.soon().unwrap().is_none() {
                    both.told.read().unwrap();
                }
                looks += 1;
            }
            others.join().unwrap();
            both.assert_same(&format!("round {round}, with {looks} looks"));
        }
    });
}
