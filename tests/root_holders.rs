//! Who still has a staged volume (design rule 4), with real mounts and processes. Needs root.
//!
//! Each test runs alone (`support/alone.rs`), so that the look at all processes sees those of this test only.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

mod holders;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use volumed::host::Host;
use volumed::model::RootPath;

use holders::{
    OTHER, Process, STAGED, World, bind, copied, isolated, on_cpu, unmount, wait_until_stuck, waiting,
};

// ---- mounts

#[test]
fn a_volume_that_nobody_has_has_no_holders() {
    isolated("a_volume_that_nobody_has_has_no_holders", async {
        let world = World::new();
        world.directory(STAGED);
        world.assert_held(&[]).await;
        let path = world.staged();
        world.assert_held(&[]).await;
        // Neighbours do not count, whatever their names.
        let beside = world.root.join(format!("{STAGED}x"));
        std::fs::create_dir(&beside).unwrap();
        let _process = Process::start("cd \"$1\"; exec 3>file", &beside);
        world.assert_held(&[]).await;
        unmount(&path);
        world.assert_held(&[]).await;
    });
}

#[test]
fn a_private_copy_in_another_namespace_holds_until_it_is_gone() {
    isolated("a_private_copy_in_another_namespace_holds_until_it_is_gone", async {
        let world = World::new();
        let path = world.staged();
        let process = Process::elsewhere("private", "true", &path);
        world.assert_held(&[(process.pid(), copied(&path))]).await;
        let holders = world.holders().await;
        assert_eq!(holders[0].command, "sh");
        assert_eq!(holders[0].to_string(), format!("pid {} (sh) {}", process.pid(), copied(&path)));
        drop(process);
        world.assert_held(&[]).await;
        // Under another path, and only a directory of it: a container's view.
        for source in ["$1", "$1/sub"] {
            let script = format!("mount --bind \"{source}\" /mnt; umount \"$1\"");
            let process = Process::elsewhere("private", &script, &path);
            world.assert_held(&[(process.pid(), copied(Path::new("/mnt")))]).await;
        }
        world.assert_held(&[]).await;
    });
}

#[test]
fn a_copy_that_follows_ours_does_not_hold_and_goes() {
    isolated("a_copy_that_follows_ours_does_not_hold_and_goes", async {
        let world = World::new();
        let path = world.staged();
        let peer = Process::elsewhere("shared", "true", &path);
        let slave = Process::elsewhere("slave", "true", &path);
        // Its own tags say private; the mount below it decides.
        let private = Process::elsewhere("slave", "mount --make-private \"$1\"", &path);
        // A follower of a follower.
        let script = "unshare -m --propagation slave sh -c 'echo ready; read -r _'";
        let later = Process::elsewhere("slave", &format!("mount --make-rshared /; exec {script}"), &path);
        let all = [&peer, &slave, &private, &later];
        assert!(all.iter().all(|process| process.shows(&path)));
        world.assert_held(&[]).await;
        unmount(&path);
        assert!(!all.iter().any(|process| process.shows(&path)), "as it was said");
    });
}

#[test]
fn a_copy_that_a_follower_keeps_holds_and_stays() {
    isolated("a_copy_that_a_follower_keeps_holds_and_stays", async {
        let world = World::new();
        let path = world.staged();
        let mnt = Path::new("/mnt");
        for (script, point) in [
            // A follower of the mount, but at a place where nothing is unmounted.
            ("mount --bind \"$1\" /mnt", mnt),
            ("mount -t tmpfs t \"$1/sub\"", &path),
        ] {
            let process = Process::elsewhere("slave", script, &path);
            world.assert_held(&[(process.pid(), copied(point))]).await;
            unmount(&path);
            assert!(process.shows(point), "as it was said");
            drop(process);
            world.staged();
        }
    });
}

#[test]
fn another_mount_in_our_own_namespace_holds_and_is_named() {
    isolated("another_mount_in_our_own_namespace_holds_and_is_named", async {
        let world = World::new();
        let path = world.staged();
        let place = world.aside.join("x");
        bind(&path, &place);
        let how = format!("is in the mount namespace where it is also mounted at {}", place.display());
        world.assert_held(&[(std::process::id(), how.clone())]).await;
        // Who works there has the volume as well.
        let process = Process::start("cd \"$1/sub\"", &place);
        let works = format!("works in {}/sub", place.display());
        world.assert_held(&[(std::process::id(), how), (process.pid(), works)]).await;
        drop(process);
        unmount(&place);
        world.assert_held(&[]).await;
    });
}

#[test]
fn a_second_volume_of_the_same_network_share_does_not_hold_the_first() {
    isolated("a_second_volume_of_the_same_network_share_does_not_hold_the_first", async {
        let world = World::new();
        let path = world.staged();
        bind(&path, &world.root.join(OTHER));
        world.assert_held(&[]).await;
        assert_eq!(world.holders_at(OTHER, None).await, []);
    });
}

#[test]
fn a_bind_of_another_directory_of_the_same_device_does_not_hold() {
    isolated("a_bind_of_another_directory_of_the_same_device_does_not_hold", async {
        let world = World::new();
        let path = world.bound("v1", STAGED);
        std::fs::create_dir(world.aside.join("v10")).unwrap();
        let place = world.aside.join("x");
        for source in ["v10", "../aside"] {
            bind(&world.aside.join(source), &place);
            world.assert_held(&[]).await;
            unmount(&place);
        }
        bind(&path.join("sub"), &place);
        let how = format!("is in the mount namespace where it is also mounted at {}", place.display());
        world.assert_held(&[(std::process::id(), how)]).await;
    });
}

// ---- files

#[test]
fn each_way_to_have_a_file_is_named() {
    isolated("each_way_to_have_a_file_is_named", async {
        let world = World::new();
        let path = world.staged();
        let shown = path.display();
        std::fs::copy("/bin/cat", path.join("cat")).unwrap();
        for (script, how) in [
            ("exec 3<\"$1/data\"", format!("has {shown}/data open")),
            ("exec 3<\"$1\"", format!("has {shown} open")),
            ("exec 3>\"$1/gone\"; rm \"$1/gone\"", format!("has {shown}/gone (deleted) open")),
            ("cd \"$1/sub\"", format!("works in {shown}/sub")),
            ("cd \"$1\"", format!("works in {shown}")),
        ] {
            let process = Process::start(script, &path);
            world.assert_held(&[(process.pid(), how)]).await;
        }
        let program = Process::cat(&mut Command::new(path.join("cat")));
        world.assert_held(&[(program.pid(), format!("runs {shown}/cat"))]).await;
        drop(program);
        world.assert_held(&[]).await;
    });
}

#[test]
fn a_root_directory_and_a_mapped_file_hold() {
    isolated("a_root_directory_and_a_mapped_file_hold", async {
        let world = World::new();
        let path = world.staged();
        // A process that left its open files and working directory behind and only has a library of the volume.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps.lines().filter_map(|l| l.split_whitespace().nth(5)).find(|p| p.contains("libc.so"));
        std::fs::copy(libc.unwrap(), path.join("libc.so.6")).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", &waiting("true")]).env("LD_LIBRARY_PATH", &path);
        let process = Process::spawn(&mut command);
        world.assert_held(&[(process.pid(), format!("has {}/libc.so.6 mapped", path.display()))]).await;
        drop(process);
        for directory in ["bin", "lib", "lib64", "usr"] {
            let place = path.join(directory);
            std::fs::create_dir(&place).unwrap();
            bind(&Path::new("/").join(directory), &place);
        }
        let mut command = Command::new("chroot");
        let process = Process::spawn(command.arg(&path).args(["/bin/sh", "-c", &waiting("true")]));
        let how = format!("has its root directory at {}", path.display());
        let held = world.holders().await;
        assert!(held.iter().any(|holder| (holder.pid, &holder.how) == (process.pid(), &how)), "{held:?}");
    });
}

#[test]
fn a_file_open_in_one_volume_of_a_file_system_does_not_hold_another() {
    isolated("a_file_open_in_one_volume_of_a_file_system_does_not_hold_another", async {
        let world = World::new();
        let first = world.bound("v1", STAGED);
        let second = world.bound("v2", OTHER);
        let process = Process::start("cd \"$1/sub\"; exec 3<../data", &second);
        world.assert_held(&[]).await;
        let ways: Vec<_> = world.holders_at(OTHER, None).await.into_iter().map(|h| (h.pid, h.how)).collect();
        let shown = second.display();
        let expected = [format!("has {shown}/data open"), format!("works in {shown}/sub")];
        assert_eq!(ways, expected.map(|how| (process.pid(), how)));
        drop(process);
        // The directory itself is the host's, and whoever uses it there keeps no mount.
        let _process = Process::start("exec 3<\"$1/data\"", &world.aside.join("v1"));
        world.assert_held(&[]).await;
        let _process = Process::start("exec 3<\"$1/data\"", &first);
        assert_eq!(world.holders().await.len(), 1);
    });
}

#[test]
fn a_file_open_in_a_copy_that_goes_holds() {
    isolated("a_file_open_in_a_copy_that_goes_holds", async {
        let world = World::new();
        let path = world.staged();
        let process = Process::elsewhere("slave", "exec 3<\"$1/data\"", &path);
        world.assert_held(&[(process.pid(), format!("has {}/data open", path.display()))]).await;
        assert_eq!(umount2(&path, MntFlags::empty()), Err(nix::Error::EBUSY), "as it was said");
    });
}

#[test]
fn a_file_system_on_a_device_is_held_by_whatever_is_on_the_device() {
    const NAME: &str = "a_file_system_on_a_device_is_held_by_whatever_is_on_the_device";
    isolated(NAME, async {
        let mut world = World::new();
        let Some(path) = world.ext4(NAME) else { return };
        world.assert_held(&[]).await;
        let shown = path.display().to_string();
        let process = Process::elsewhere("private", "exec 3<\"$1/data\"", &path);
        let expected = [format!("has {shown}/data open"), copied(&path)];
        world.assert_held(&expected.map(|how| (process.pid(), how))).await;
        drop(process);
        // The copy is gone, a file mapped over it is not: only the device tells.
        std::fs::copy("/bin/cat", path.join("cat")).unwrap();
        let script = "mount --bind \"$1\" /mnt; exec /mnt/cat";
        let mut command = Command::new("unshare");
        command.args(["-m", "--propagation", "private", "sh", "-c", script, "sh"]).arg(&path);
        let process = Process::cat(&mut command);
        let detach = Command::new("nsenter")
            .args(["-m", "-t", &process.pid().to_string(), "umount", "-l", "/mnt"])
            .arg(&path)
            .status();
        assert!(detach.unwrap().success());
        world.assert_held(&[(process.pid(), "has /cat mapped".to_owned())]).await;
        drop(process);
        world.assert_held(&[]).await;
        // Where nothing follows our mounts, the volume's own is still not another one.
        world.make_private();
        world.assert_held(&[]).await;
    });
}

// ---- who does not hold, and how many are told

#[test]
fn the_driver_and_what_it_started_do_not_hold() {
    isolated("the_driver_and_what_it_started_do_not_hold", async {
        let world = World::new();
        let path = world.staged();
        let script = "cd \"$1\"; sh -c \"exec 3<data; echo ready; read -r _\"; exec 3<data";
        let driver = Process::elsewhere("private", script, &path);
        let held = world.holders().await;
        assert!(held.iter().any(|h| h.pid == driver.pid()) && held.iter().any(|h| h.pid != driver.pid()));
        assert_eq!(world.holders_at(STAGED, Some(driver.pid())).await, []);
        // Another process in the driver's namespace does.
        let mut command = Command::new("nsenter");
        command.args(["-m", "-t", &driver.pid().to_string(), "sh", "-c", &waiting("true")]);
        let other = Process::spawn(&mut command);
        let held = world.holders_at(STAGED, Some(driver.pid())).await;
        assert_eq!(
            held.iter().map(|h| (h.pid, h.how.clone())).collect::<Vec<_>>(),
            [(other.pid(), copied(&path))]
        );
    });
}

#[test]
fn our_own_open_files_do_not_hold() {
    isolated("our_own_open_files_do_not_hold", async {
        let world = World::new();
        let path = world.staged();
        let _file = File::open(path.join("data")).unwrap();
        world.assert_held(&[]).await;
    });
}

/// Set in a process that stands for a child of the daemon: it has the same program.
const CHILD: &str = "VOLUMED_TEST_CHILD";

#[test]
fn waits_when_it_is_a_child_of_another_test() {
    if std::env::var_os(CHILD).is_some() {
        println!("\nready");
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }
}

#[test]
fn a_child_of_ours_with_our_program_does_not_hold() {
    isolated("a_child_of_ours_with_our_program_does_not_hold", async {
        let world = World::new();
        let path = world.staged();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "waits_when_it_is_a_child_of_another_test", "--nocapture"]);
        let _child = Process::spawn(command.env(CHILD, "1").current_dir(&path));
        world.assert_held(&[]).await;
    });
}

#[test]
fn ten_holders_are_named_in_order() {
    isolated("ten_holders_are_named_in_order", async {
        let world = World::new();
        let path = world.staged();
        let _processes: Vec<_> = (0..12).map(|_| Process::start("cd \"$1\"", &path)).collect();
        let held = world.holders().await;
        assert_eq!(held.len(), 10);
        assert!(held.is_sorted());
    });
}

// ---- what may hang, and what it costs

#[test]
fn a_file_system_that_never_answers_is_not_asked() {
    isolated("a_file_system_that_never_answers_is_not_asked", async {
        let world = World::new();
        let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let path = world.directory(STAGED);
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("dead"), &path, Some("fuse.dead"), MsFlags::empty(), Some(options.as_str())).unwrap();
        // Nobody reads from the server's end: whoever asks this file system for anything waits for good.
        let process = Process::elsewhere("private", "true", Path::new("/"));
        let asked = Command::new("stat").arg(path.join("x")).stdout(Stdio::null()).spawn().unwrap();
        wait_until_stuck(asked.id());
        let found = tokio::time::timeout(Duration::from_secs(20), world.holders()).await;
        // Ends the waiting process whatever comes next.
        drop(server);
        Process(asked);
        let found: Vec<_> = found.unwrap().into_iter().map(|h| (h.pid, h.how)).collect();
        assert_eq!(found, [(process.pid(), copied(&path))]);
    });
}

#[test]
fn many_askers_share_a_look() {
    isolated("many_askers_share_a_look", async {
        let world = World::new();
        let path = world.staged();
        let processes: Vec<_> = (0..100).map(|_| Process::start("exec 3</dev/null", &path)).collect();
        let elsewhere: Vec<_> = (0..5).map(|_| Process::elsewhere("slave", "true", &path)).collect();
        let holder = Process::start("exec 3<\"$1/data\"", &path);
        let mut one = (Duration::MAX, Duration::MAX);
        for _ in 0..5 {
            let begun = (Instant::now(), on_cpu());
            world.holders().await;
            one = one.min((begun.0.elapsed(), on_cpu() - begun.1));
        }
        let ask = |_| {
            let linux = Arc::clone(&world.linux);
            tokio::task::spawn(
                async move { linux.holders(RootPath::new(STAGED).unwrap(), None).await.unwrap() },
            )
        };
        let begun = (Instant::now(), on_cpu());
        let asked: Vec<_> = (0..200).map(ask).collect();
        for answer in asked {
            assert_eq!(answer.await.unwrap().len(), 1);
        }
        let many = (begun.0.elapsed(), on_cpu() - begun.1);
        drop((processes, elsewhere, holder));
        println!(
            "FIGURE: a look at 106 processes in 6 mount namespaces: {one:?} (of which on a CPU); for 200 askers: {many:?}"
        );
        assert!(many.1 < one.1 * 50, "{many:?}, {one:?}");
    });
}
