//! Root tests of their own: each runs again as a process with its own mount and process namespaces, so its mounts are seen
//! nowhere else and nothing stays; and a host there whose children are the real volumed.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it"
)]

#[path = "../support/processes.rs"]
mod processes;
#[path = "../support/world.rs"]
mod world;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;

use nix::mount::{MsFlags, mount};

pub use processes::{children, eventually, states, waits};
use world::NONE;
pub use world::{World, at, isolated};

impl World {
    pub fn new() -> Self {
        Self::of(|linux| linux.with_child_program(env!("CARGO_BIN_EXE_volumed").into()))
    }

    /// A FUSE file system whose server does not answer as long as the file is open, and is dead when it is closed.
    pub fn fuse(&self, path: &str) -> (PathBuf, File) {
        let path = self.directory(path);
        let server = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
        mount(Some("test"), &path, Some("fuse"), MsFlags::empty(), Some(options.as_str())).unwrap();
        (path, server)
    }

    /// An ext4 file system on a loop device, which goes with its mount.
    pub fn ext4(&self, path: &str) -> PathBuf {
        let image = self.top.path().join("image");
        File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let point = self.directory(path);
        run("mkfs.ext4", &["-q".as_ref(), image.as_ref()]);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), point.as_ref()]);
        point
    }
}

/// Runs a program that must succeed.
pub fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}
