//! Block volumes: a file for each, shown by a loop device.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{Mode, SFlag, mknod};
use tonic::Status;

use crate::mounts::{Mounts, bind, failed, mounted, read_only_from_now, unmount};

/// What a driver leaves at the target of a block volume: the contract leaves it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shown {
    /// A file on which the device is bound
    Bind,
    /// A link to the device
    Symlink,
    /// A device node of its own
    Mknod,
}

impl Mounts {
    /// Returns the file behind a block volume.
    pub(crate) fn image(&self, volume: &str) -> PathBuf {
        self.directory(volume).with_extension("img")
    }

    /// Attaches a volume's file to a loop device, or returns the one that it has. The file is made if it is not there.
    pub(crate) fn attach(&self, volume: &str) -> Result<PathBuf, Status> {
        let image = self.image(volume);
        let file = fs::File::options().create(true).append(true).open(&image);
        let file = file.map_err(|error| failed("open", &image, &error))?;
        let length = file.metadata().map_err(|error| failed("look at", &image, &error))?.len();
        if length < self.block_size {
            file.set_len(self.block_size).map_err(|error| failed("grow", &image, &error))?;
        }
        // --nooverlap: the same device again for the same file.
        let device = losetup(&["--find", "--show", "--nooverlap"], &image)?;
        Ok(PathBuf::from(device.trim()))
    }

    /// Lets a volume's loop device go. One that is still open goes with the last who has it open.
    pub(crate) fn detach(&self, volume: &str) -> Result<(), Status> {
        match device_of(&self.image(volume))? {
            Some(device) => losetup(&["--detach"], &device).map(drop),
            None => Ok(()),
        }
    }

    /// Grows a volume's file and its device; returns its size.
    pub(crate) fn grow(&self, volume: &str, size: u64) -> Result<u64, Status> {
        let image = self.image(volume);
        let file = fs::File::options().append(true).open(&image);
        let file = file.map_err(|error| Status::not_found(format!("{}: {error}", image.display())))?;
        let length = file.metadata().map_err(|error| failed("look at", &image, &error))?.len();
        if length < size {
            file.set_len(size).map_err(|error| failed("grow", &image, &error))?;
            if let Some(device) = device_of(&image)? {
                losetup(&["--set-capacity"], &device)?;
            }
        }
        Ok(length.max(size))
    }

    /// Shows a volume's device at a target.
    pub(crate) fn publish_block(&self, volume: &str, target: &Path, read_only: bool) -> Result<(), Status> {
        let device = self.attach(volume)?;
        let there = fs::symlink_metadata(target);
        match self.shown {
            Shown::Bind => {
                match mounted(target)? {
                    Some(mount) if mount.read_only == read_only => return Ok(()),
                    Some(_) => return Err(Status::already_exists("published with another readonly")),
                    None => {}
                }
                if there.is_err() {
                    fs::File::create_new(target).map_err(|error| failed("make", target, &error))?;
                }
                bind(&device, target)?;
                if read_only { read_only_from_now(target) } else { Ok(()) }
            }
            Shown::Symlink => match there {
                Ok(_) if fs::read_link(target).is_ok_and(|link| link == device) => Ok(()),
                Ok(_) => Err(Status::already_exists("something else is at the target")),
                Err(_) => std::os::unix::fs::symlink(&device, target)
                    .map_err(|error| failed("link", target, &error)),
            },
            Shown::Mknod => {
                let number =
                    fs::metadata(&device).map_err(|error| failed("look at", &device, &error))?.rdev();
                match there {
                    Ok(at) if at.file_type().is_block_device() && at.rdev() == number => Ok(()),
                    Ok(_) => Err(Status::already_exists("something else is at the target")),
                    Err(_) => mknod(target, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number)
                        .map_err(|error| failed("make the node", target, &error.into())),
                }
            }
        }
    }
}

/// Takes away what any of the ways left at a target, or the directory of a mounted volume.
pub(crate) fn clear(target: &Path) -> Result<(), Status> {
    if mounted(target)?.is_some() {
        unmount(target)?;
    }
    let removed = match fs::symlink_metadata(target) {
        Ok(at) if at.is_dir() => fs::remove_dir(target),
        Ok(_) => fs::remove_file(target),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", target, &error)),
        _ => Ok(()),
    }
}

/// Returns the loop device of a file, by what the kernel says.
fn device_of(image: &Path) -> Result<Option<PathBuf>, Status> {
    let devices = Path::new("/sys/block");
    let entries = fs::read_dir(devices).map_err(|error| failed("list", devices, &error))?;
    for entry in entries.flatten() {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        if Path::new(backing.trim_end()) == image {
            return Ok(Some(Path::new("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}

fn losetup(arguments: &[&str], path: &Path) -> Result<String, Status> {
    let output = Command::new("losetup").args(arguments).arg(path).output();
    let output = output.map_err(|error| failed("run losetup for", path, &error))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Status::internal(format!("losetup {arguments:?} {}: {}", path.display(), said.trim())));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
