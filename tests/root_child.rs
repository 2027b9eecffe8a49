//! Ownership of volumes, changed by the real child process on real mounts. Needs root.

#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

#[path = "isolated/dice.rs"]
mod dice;
mod isolated;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use volumed::host::{Host, HostError, Progress};
use volumed::model::Ownership;

use dice::Dice;
use isolated::{World, at, children, eventually, isolated, run, states, waits};

const VOLUME: &str = "pods/u1/volumes/kubernetes.io~csi/pv1/mount";
const GROUP: u32 = 4711;
const NONE: Option<&str> = None;

impl World {
    async fn give(&self, on_root_mismatch: bool) -> Result<(), HostError> {
        let ownership = Ownership { group: GROUP, on_root_mismatch };
        self.linux.set_ownership(at(VOLUME), ownership, Progress::new(|_| ())).await
    }
}

/// What a test compares of a file: group, mode with its type, owner, and when it was last changed in any way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Look {
    group: u32,
    mode: u32,
    owner: u32,
    changed: (i64, i64),
}

fn look(path: &Path) -> Look {
    let found = std::fs::symlink_metadata(path).unwrap();
    Look {
        group: found.gid(),
        mode: found.mode(),
        owner: found.uid(),
        changed: (found.ctime(), found.ctime_nsec()),
    }
}

/// Looks at everything at and below a path.
fn tree(top: &Path) -> BTreeMap<PathBuf, Look> {
    let mut found = BTreeMap::from([(top.to_owned(), look(top))]);
    if std::fs::symlink_metadata(top).unwrap().is_dir() {
        for entry in std::fs::read_dir(top).unwrap() {
            found.extend(tree(&entry.unwrap().path()));
        }
    }
    found
}

/// What kubelet.md 6.1 makes of a file, but for what our module says to be different (pipes, sockets, devices).
fn by_the_rule(before: &Look) -> (u32, u32, u32) {
    let added = match before.mode & 0o170_000 {
        0o040_000 => 0o0660 | 0o0110 | 0o2000,
        0o100_000 => 0o0660,
        _ => 0,
    };
    (GROUP, before.mode | added, before.owner)
}

#[test]
fn a_random_volume_is_given_to_the_group_by_the_kubelets_rule_and_then_left_alone() {
    isolated("a_random_volume_is_given_to_the_group_by_the_kubelets_rule_and_then_left_alone", async {
        let world = World::new();
        let volume = world.directory(VOLUME);
        let outside = world.top.path().join("outside");
        std::fs::write(&outside, "x").unwrap();
        let of_outside = look(&outside);
        let mut kinds = 0;
        for seed in 0..40 {
            let point = world.tmpfs(VOLUME);
            Dice(seed).fill(&point, 4, &outside);
            let before = tree(&point);
            world.give(false).await.unwrap();
            let after = tree(&point);
            assert_eq!(before.len(), after.len());
            for (path, was) in &before {
                let is = &after[path];
                assert_eq!(
                    (is.group, is.mode, is.owner),
                    by_the_rule(was),
                    "seed {seed}: {path:?} was {was:?}"
                );
                kinds |= 1_u32 << (was.mode >> 12);
            }
            world.give(false).await.unwrap();
            assert_eq!(tree(&point), after, "seed {seed}: what is right was written");
            nix::mount::umount(&point).unwrap();
        }
        assert_eq!(look(&outside), of_outside, "a symlink was followed");
        assert_eq!(
            kinds,
            (1 << 0o10) | (1 << 0o04) | (1 << 0o12) | (1 << 0o01) | (1 << 0o14),
            "kinds of files"
        );
        assert_eq!(look(&volume).group, 0, "the directory under the mount");
    });
}

#[test]
fn on_root_mismatch_looks_at_group_bits_and_setgid_of_the_volume_only() {
    isolated("on_root_mismatch_looks_at_group_bits_and_setgid_of_the_volume_only", async {
        let world = World::new();
        let volume = world.tmpfs(VOLUME);
        let file = volume.join("file");
        let walked = async |group: u32, mode: u32| {
            std::fs::write(&file, "").unwrap();
            chown(&file, None, Some(0)).unwrap();
            chown(&volume, None, Some(group)).unwrap();
            std::fs::set_permissions(&volume, std::fs::Permissions::from_mode(mode)).unwrap();
            world.give(true).await.unwrap();
            look(&file).group == GROUP
        };
        assert!(!walked(GROUP, 0o2770).await);
        assert!(!walked(GROUP, 0o3777).await);
        for (group, mode) in
            [(0, 0o2770), (GROUP, 0o0770), (GROUP, 0o2750), (GROUP, 0o2760), (GROUP, 0o2670), (GROUP, 0o2570)]
        {
            assert!(walked(group, mode).await, "{group} {mode:o}");
            assert_eq!((look(&volume).group, look(&volume).mode & 0o7777), (GROUP, mode | 0o2770));
        }
    });
}

#[test]
fn what_is_mounted_in_the_volume_is_not_entered() {
    isolated("what_is_mounted_in_the_volume_is_not_entered", async {
        let world = World::new();
        let volume = world.tmpfs(VOLUME);
        let other = world.tmpfs(&format!("{VOLUME}/a/other"));
        std::fs::write(other.join("file"), "").unwrap();
        let covered = volume.join("a/covered");
        for file in [&covered, &volume.join("a/after")] {
            std::fs::write(file, "").unwrap();
        }
        mount(Some(&other.join("file")), &covered, NONE, MsFlags::MS_BIND, NONE).unwrap();
        let before = (tree(&other), look(&covered));
        world.give(false).await.unwrap();
        assert_eq!((tree(&other), look(&covered)), before);
        for done in ["a/after", "a", ""] {
            assert_eq!(look(&volume.join(done)).group, GROUP, "{done}");
        }
    });
}

#[test]
fn the_first_error_names_its_file_and_leaves_the_volume_to_be_done_again() {
    isolated("the_first_error_names_its_file_and_leaves_the_volume_to_be_done_again", async {
        let world = World::new();
        let volume = world.tmpfs(VOLUME);
        let file = volume.join("a/b/immutable");
        std::fs::create_dir_all(volume.join("a/b")).unwrap();
        std::fs::write(&file, "").unwrap();
        let file = file.as_os_str();
        run("chattr", &["+i".as_ref(), file]);
        let error = world.give(true).await.unwrap_err();
        run("chattr", &["-i".as_ref(), file]);
        assert!(
            matches!(&error, HostError::Io { path, source, .. }
                if path == Path::new(file) && source.to_string().contains("chattr")),
            "{error:?}"
        );
        for undone in ["a/b", "a", ""] {
            assert_eq!(look(&volume.join(undone)).group, 0, "{undone}");
        }
        world.give(true).await.unwrap();
        assert_eq!(look(Path::new(file)).group, GROUP);
    });
}

#[test]
fn a_read_only_volume_and_one_that_is_no_directory_are_named() {
    isolated("a_read_only_volume_and_one_that_is_no_directory_are_named", async {
        let world = World::new();
        let missing = world.give(false).await.unwrap_err().to_string();
        assert!(missing.contains(VOLUME), "{missing}");
        let volume = world.tmpfs(VOLUME);
        std::fs::write(volume.join("file"), "").unwrap();
        mount(NONE, &volume, NONE, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, NONE).unwrap();
        let error = world.give(false).await.unwrap_err();
        assert!(
            matches!(&error, HostError::Io { path, source, .. }
                if *path == volume.join("file") && source.to_string().contains("readOnly")),
            "{error:?}"
        );
        nix::mount::umount(&volume).unwrap();
        std::fs::remove_dir(&volume).unwrap();
        symlink("/tmp", &volume).unwrap();
        let error = world.give(false).await.unwrap_err();
        assert!(
            matches!(&error, HostError::WrongKind { path, found: "a symlink", .. } if *path == volume),
            "{error:?}"
        );
    });
}

#[test]
fn a_tree_deeper_than_stacks_and_open_files_and_a_wide_one_are_done() {
    isolated("a_tree_deeper_than_stacks_and_open_files_and_a_wide_one_are_done", async {
        const DEEP: usize = 3000;
        let world = World::new();
        let volume = world.tmpfs(VOLUME);
        for n in 0..2000 {
            std::fs::create_dir(volume.join(format!("wide {n}"))).unwrap();
            std::fs::write(volume.join(format!("wide {n}/file")), "").unwrap();
        }
        let directory = nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_CLOEXEC;
        let mut here = nix::fcntl::open(&volume, directory, Mode::empty()).unwrap();
        for _ in 0..DEEP {
            nix::sys::stat::mkdirat(&here, "d", Mode::S_IRWXU).unwrap();
            here = nix::fcntl::openat(&here, "d", directory, Mode::empty()).unwrap();
        }
        world.give(false).await.unwrap();
        let deepest = nix::sys::stat::fstat(&here).unwrap();
        assert_eq!((deepest.st_gid, deepest.st_mode & 0o7777), (GROUP, 0o2770));
        for n in 0..2000 {
            assert_eq!(look(&volume.join(format!("wide {n}/file"))).group, GROUP);
            assert_eq!(look(&volume.join(format!("wide {n}"))).group, GROUP);
        }
        assert_eq!(look(&volume).group, GROUP);
    });
}

/// A file system that is frozen keeps whoever writes to it in the kernel, whatever signal comes. Dropped, it is thawed: a
/// test that failed must not leave that behind.
struct Frozen(PathBuf);

impl Frozen {
    fn new(point: &Path) -> Self {
        run("fsfreeze", &["-f".as_ref(), point.as_os_str()]);
        Self(point.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        run("fsfreeze", &["-u".as_ref(), self.0.as_os_str()]);
    }
}

#[test]
fn progress_is_told_while_a_file_takes_its_time() {
    isolated("progress_is_told_while_a_file_takes_its_time", async {
        let world = World::new();
        let volume = world.ext4(VOLUME);
        world.give(false).await.unwrap();
        for n in 0..5 {
            std::fs::write(volume.join(n.to_string()), "").unwrap();
        }
        world.give(false).await.unwrap();
        std::fs::create_dir(volume.join("new")).unwrap();
        chown(volume.join("new"), None, Some(0)).unwrap();
        let frozen = Frozen::new(&volume);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = Arc::clone(&heard);
        let progress = Progress::new(move |how_far| ears.lock().unwrap().push(how_far));
        let ownership = Ownership { group: GROUP, on_root_mismatch: false };
        let change = world.linux.set_ownership(at(VOLUME), ownership, progress);
        let thaw = async {
            eventually("progress", || !heard.lock().unwrap().is_empty()).await;
            drop(frozen);
        };
        let (done, ()) = tokio::join!(change, thaw);
        done.unwrap();
        // Five files and lost+found; the new directory is counted when its turn came.
        let first = heard.lock().unwrap()[0].clone();
        assert!(first.ends_with(" files done") && !first.starts_with('0'), "{first}");
        assert_eq!(look(&volume.join("new")).group, GROUP);
    });
}

#[test]
fn a_child_that_not_even_a_kill_ends_is_given_up_and_not_joined_by_another() {
    isolated("a_child_that_not_even_a_kill_ends_is_given_up_and_not_joined_by_another", async {
        let world = World::new();
        let volume = world.ext4(VOLUME);
        let frozen = Frozen::new(&volume);
        let hangs = async {
            // For the freeze, which counts who writes: a program that is only being loaded cannot be killed for a moment either.
            let frozen =
                |pid| states(pid).contains(&'D') && waits(pid).iter().any(|at| at.contains("percpu"));
            let stuck = || children().iter().any(|(pid, _)| frozen(*pid));
            eventually("a child that hangs", stuck).await;
            // From here on time goes by at once where nothing else is to do: two minutes without progress.
            tokio::time::pause();
        };
        let (done, ()) = tokio::join!(world.give(false), hangs);
        tokio::time::resume();
        let error = done.unwrap_err();
        assert!(
            matches!(&error, HostError::Deadline { path, seconds: 120, .. } if *path == volume),
            "{error:?}"
        );
        let hanging = children();
        assert_eq!(hanging.len(), 1, "{hanging:?}");
        let error = world.give(false).await.unwrap_err();
        assert!(matches!(&error, HostError::Busy { path, .. } if *path == volume), "{error:?}");
        assert_eq!(children(), hanging, "another child was started");
        drop(frozen);
        eventually("the child ends", || children().is_empty()).await;
        world.give(false).await.unwrap();
        assert_eq!(look(&volume).group, GROUP);
    });
}

#[test]
fn dropping_the_change_ends_its_child() {
    isolated("dropping_the_change_ends_its_child", async {
        let world = World::new();
        let (_point, _server) = world.fuse(VOLUME);
        tokio::select! {
            done = world.give(false) => panic!("{done:?}"),
            () = eventually("a child", || children().iter().any(|(_, name)| name == "volumed-child")) => {}
        }
        eventually("its end", || children().is_empty()).await;
    });
}

#[test]
fn a_child_that_is_killed_is_an_error_that_says_so() {
    isolated("a_child_that_is_killed_is_an_error_that_says_so", async {
        let world = World::new();
        let (point, _server) = world.fuse(VOLUME);
        let named = || children().into_iter().find(|(_, name)| name == "volumed-child");
        let kill = async {
            eventually("a child", || named().is_some()).await;
            let pid = nix::unistd::Pid::from_raw(i32::try_from(named().unwrap().0).unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        };
        let (done, ()) = tokio::join!(world.give(false), kill);
        let error = done.unwrap_err();
        assert!(
            matches!(&error, HostError::Io { path, source, .. }
                if *path == point && source.to_string().contains("signal: 9")),
            "{error:?}"
        );
    });
}
