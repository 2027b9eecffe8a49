//! The content of an emptyDir goes (design rule 1's exception) only where nobody has any of it.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};
use volumed::host::{Host, HostError};

use crate::world::{Holder, SPEC, World, at, isolated};

#[test]
fn an_unused_empty_dir_goes_with_its_content() {
    isolated("empty_dirs::an_unused_empty_dir_goes_with_its_content", async {
        let world = World::new();
        let path = world.empty_dir();
        symlink("/etc", path.join("etc")).unwrap();
        nix::unistd::mkfifo(&path.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for i in 0..3000 {
            std::fs::write(path.join(format!("a/{i}")), "").unwrap();
        }
        world.assert_removed().await;
        world.linux.remove_empty_dir(at(SPEC)).await.unwrap();
        assert!(Path::new("/etc/passwd").is_file());
    });
}

#[test]
fn a_tree_deeper_than_descriptors_last_is_removed() {
    isolated("empty_dirs::a_tree_deeper_than_descriptors_last_is_removed", async {
        let world = World::new();
        let path = world.directory(SPEC);
        // Deeper than PATH_MAX allows in one path, too. (Real file systems take milliseconds for each removal at such depths.)
        let name = "a directory with a long name";
        let flags = nix::fcntl::OFlag::O_DIRECTORY;
        let mut here = nix::dir::Dir::open(&path, flags, nix::sys::stat::Mode::empty()).unwrap();
        for _ in 0..200 {
            nix::sys::stat::mkdirat(&here, name, nix::sys::stat::Mode::S_IRWXU).unwrap();
            here = nix::dir::Dir::openat(&here, name, flags, nix::sys::stat::Mode::empty()).unwrap();
        }
        let few = rustix::process::Rlimit { current: Some(64), maximum: Some(64) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, few).unwrap();
        drop(here);
        world.assert_removed().await;
    });
}

#[test]
fn an_empty_dir_with_a_mount_below_is_kept() {
    isolated("empty_dirs::an_empty_dir_with_a_mount_below_is_kept", async {
        let world = World::new();
        let path = world.empty_dir();
        let below = world.tmpfs(&format!("{SPEC}/a/b/c"));
        std::fs::write(below.join("precious"), "data").unwrap();
        world.assert_kept("the mount at").await;
        assert_eq!(std::fs::read(below.join("precious")).unwrap(), b"data");
        umount2(&below, MntFlags::empty()).unwrap();
        // On it, not below it.
        world.tmpfs(SPEC);
        let refused = world.linux.remove_empty_dir(at(SPEC)).await;
        assert!(matches!(refused, Err(HostError::Busy { .. })), "{refused:?}");
        umount2(&path, MntFlags::empty()).unwrap();
        world.assert_removed().await;
    });
}

#[test]
fn an_empty_dir_with_a_mount_below_in_another_namespace_is_kept() {
    isolated("empty_dirs::an_empty_dir_with_a_mount_below_in_another_namespace_is_kept", async {
        let world = World::new();
        let path = world.empty_dir();
        for script in [
            // At a place below it.
            "mount -t tmpfs tmpfs \"$1/a/b/c\"",
            // Below it, under another path.
            "mount --bind \"$1/a\" /mnt && umount /mnt && mount --bind \"$1\" /mnt && mount -t tmpfs tmpfs /mnt/a/b",
            // It, or something in it, under another path: a container's view.
            "mount --bind \"$1\" /mnt",
            "mount --bind \"$1/a/b/file\" /etc/hostname",
        ] {
            let holder = Holder::start_elsewhere("private", script, &path);
            world.assert_kept(&format!("in the mount namespace of process {} ", holder.0.id())).await;
            drop(holder);
        }
        world.assert_removed().await;
    });
}

#[test]
fn an_empty_dir_that_a_process_uses_is_kept() {
    isolated("empty_dirs::an_empty_dir_that_a_process_uses_is_kept", async {
        let world = World::new();
        let path = world.empty_dir();
        std::fs::copy("/bin/cat", path.join("program")).unwrap();
        for script in ["exec 3<\"$1/data\"", "exec 3<\"$1\"", "cd \"$1/a/b\"", "cd \"$1\""] {
            let holder = Holder::start(script, &path);
            world.assert_kept(&format!("process {} (sh)", holder.0.id())).await;
        }
        // An open file that has lost its name still tells of a user.
        let holder = Holder::start("exec 3>\"$1/a/gone\"; rm \"$1/a/gone\"", &path);
        world.assert_kept(&format!("process {} (sh)", holder.0.id())).await;
        drop(holder);
        // A program that runs from it.
        let mut program =
            Command::new(path.join("program")).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        world.assert_kept(&format!("process {} (program)", program.id())).await;
        drop(program.stdin.take());
        program.wait().unwrap();
        world.assert_removed().await;
    });
}

#[test]
fn an_open_file_on_a_detached_mount_keeps_the_empty_dir() {
    isolated("empty_dirs::an_open_file_on_a_detached_mount_keeps_the_empty_dir", async {
        let world = World::new();
        let path = world.empty_dir();
        for script in ["exec 3</mnt/data", "cd /mnt/a"] {
            let holder = Holder::start_elsewhere(
                "private",
                &format!("mount --bind \"$1\" /mnt; {script}; umount -l /mnt"),
                &path,
            );
            world.assert_kept(&format!("process {} (sh)", holder.0.id())).await;
        }
        world.assert_removed().await;
    });
}

#[test]
fn an_open_file_elsewhere_on_a_detached_mount_does_not_keep_it() {
    isolated("empty_dirs::an_open_file_elsewhere_on_a_detached_mount_does_not_keep_it", async {
        let world = World::new();
        world.empty_dir();
        let beside = world.directory("pods/u1/volumes/kubernetes.io~empty-dir/cache2");
        std::fs::write(beside.join("data"), "").unwrap();
        let script = "mount --bind \"$1\" /mnt; exec 3</mnt/data; cd /mnt; umount -l /mnt";
        let _holder = Holder::start_elsewhere("private", script, &beside);
        world.assert_removed().await;
    });
}

#[test]
fn a_namespace_that_only_a_descriptor_keeps_is_not_taken_for_empty() {
    isolated("empty_dirs::a_namespace_that_only_a_descriptor_keeps_is_not_taken_for_empty", async {
        let world = World::new();
        let path = world.empty_dir();
        let elsewhere = Holder::start_elsewhere("private", "mount -t tmpfs tmpfs \"$1/a\"", &path);
        let namespace = PathBuf::from(format!("/proc/{}/ns/mnt", elsewhere.0.id()));
        let holder = Holder::start("exec 3<\"$1\"", &namespace);
        drop(elsewhere);
        world.assert_kept("holds a mount namespace").await;
        drop(holder);
        world.assert_removed().await;
    });
}

#[test]
fn neighbours_of_an_empty_dir_do_not_keep_it() {
    isolated("empty_dirs::neighbours_of_an_empty_dir_do_not_keep_it", async {
        let world = World::new();
        world.empty_dir();
        let beside = world.directory("pods/u1/volumes/kubernetes.io~empty-dir/cache2");
        world.tmpfs("pods/u1/volumes/kubernetes.io~empty-dir/cache3");
        std::fs::write(beside.join("file"), "").unwrap();
        let _holder = Holder::start("cd \"$1\"; exec 3<file", &beside);
        world.assert_removed().await;
    });
}
