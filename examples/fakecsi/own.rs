//! What a volume is: a directory of the host's file system, or a file system of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use tonic::Status;

use crate::fuse;
use crate::mounts::{Mounts, bind, failed};

/// What is mounted where a volume is mounted first: at its staging path, or at its target without staging.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum FileSystem {
    /// A directory below `--state`, bound
    Directory,
    /// A tmpfs: its content goes with it
    Tmpfs,
    /// An ext4 in a file below `--state`
    Ext4,
    /// A FUSE that this very process serves: it dies with it
    Fuse,
}

impl Mounts {
    /// Mounts the volume itself.
    pub(crate) fn show(&self, volume: &str, at: &Path) -> Result<(), Status> {
        let none = None::<&str>;
        match self.file_system {
            FileSystem::Directory => bind(&self.directory(volume), at),
            FileSystem::Tmpfs => mount(Some(volume), at, Some("tmpfs"), MsFlags::empty(), none)
                .map_err(|error| failed("mount a tmpfs at", at, &error.into())),
            FileSystem::Ext4 => {
                let image = self.directory(volume).with_extension("ext4");
                if !image.exists() {
                    make(&image, self.block_size)?;
                }
                // The loop device goes with the mount.
                run(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(at), at)
            }
            FileSystem::Fuse => fuse::mount(at, self.hang()),
        }
    }

    /// Returns the file that keeps a FUSE from answering as long as it is there.
    fn hang(&self) -> PathBuf {
        self.state.join(".hang")
    }
}

/// Makes an ext4 in a file; one that was cut off does not count as made.
fn make(image: &Path, size: u64) -> Result<(), Status> {
    let aside = image.with_extension("new");
    std::fs::File::create(&aside)
        .and_then(|file| file.set_len(size))
        .map_err(|error| failed("make", &aside, &error))?;
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&aside), &aside)?;
    std::fs::rename(&aside, image).map_err(|error| failed("rename", &aside, &error))
}

fn run(command: &mut Command, at: &Path) -> Result<(), Status> {
    let output = command.output().map_err(|error| failed("run a tool for", at, &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Status::internal(format!("{}: {}", at.display(), said.trim())))
}
