//! What the driver does on the host: directories below `--state`, and bind mounts of them.

use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tonic::Status;

use crate::block::{self, Shown};
use crate::own::FileSystem;

/// The directories of the volumes.
#[derive(Debug)]
pub(crate) struct Mounts {
    pub(crate) state: PathBuf,
    /// Does nothing at all.
    pub(crate) none: bool,
    /// The size of a block volume that was never grown, in bytes.
    pub(crate) block_size: u64,
    /// How block volumes are published.
    pub(crate) shown: Shown,
    /// What a volume with a file system is.
    pub(crate) file_system: FileSystem,
}

impl Mounts {
    /// Returns a volume's directory.
    pub(crate) fn directory(&self, volume: &str) -> PathBuf {
        self.state.join(file_name(volume))
    }

    /// Makes a volume's directory.
    pub(crate) fn make(&self, volume: &str) -> Result<PathBuf, Status> {
        let directory = self.directory(volume);
        if !self.none {
            std::fs::create_dir_all(&directory).map_err(|error| failed("mkdir", &directory, &error))?;
        }
        Ok(directory)
    }

    /// Binds the volume at the staging path, which is there.
    pub(crate) fn stage(&self, volume: &str, staging: &Path) -> Result<(), Status> {
        self.make(volume)?;
        if self.none || mounted(staging)?.is_some() {
            return Ok(());
        }
        self.show(volume, staging)
    }

    /// Unmounts the staging path.
    pub(crate) fn unstage(&self, staging: &Path) -> Result<(), Status> {
        if !self.none && mounted(staging)?.is_some() {
            unmount(staging)?;
        }
        Ok(())
    }

    /// Makes the target and binds what is staged there, or the volume itself.
    pub(crate) fn publish(
        &self,
        volume: &str,
        staging: Option<&Path>,
        target: &Path,
        read_only: bool,
    ) -> Result<(), Status> {
        self.make(volume)?;
        if self.none {
            return Ok(());
        }
        match mounted(target)? {
            Some(mount) if mount.read_only == read_only => return Ok(()),
            Some(_) => return Err(Status::already_exists("published with another readonly")),
            None => {}
        }
        if let Err(error) = std::fs::create_dir(target)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(failed("mkdir", target, &error));
        }
        match staging {
            Some(staging) => bind(staging, target)?,
            None => self.show(volume, target)?,
        }
        if read_only { read_only_from_now(target) } else { Ok(()) }
    }

    /// Unmounts and removes the target.
    pub(crate) fn unpublish(&self, target: &Path) -> Result<(), Status> {
        if self.none { Ok(()) } else { block::clear(target) }
    }
}

/// Returns a volume's name in the file system: its id with everything unusual as `%XX`.
pub(crate) fn file_name(volume: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_".contains(&byte);
    volume
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// Makes a bind mount read-only, or takes it away.
pub(crate) fn read_only_from_now(target: &Path) -> Result<(), Status> {
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, target, None::<&str>, flags, None::<&str>) {
        unmount(target)?;
        return Err(failed("remount", target, &error.into()));
    }
    Ok(())
}

pub(crate) fn bind(source: &Path, target: &Path) -> Result<(), Status> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| failed("bind", target, &error.into()))
}

pub(crate) fn unmount(path: &Path) -> Result<(), Status> {
    umount2(path, MntFlags::UMOUNT_NOFOLLOW).map_err(|error| failed("unmount", path, &error.into()))
}

pub(crate) fn failed(what: &str, path: &Path, error: &io::Error) -> Status {
    Status::internal(format!("{what} {}: {error}", path.display()))
}

/// A mount, as far as it matters here.
pub(crate) struct Mounted {
    pub(crate) read_only: bool,
}

/// Returns the uppermost mount at exactly this path.
pub(crate) fn mounted(path: &Path) -> Result<Option<Mounted>, Status> {
    let table = std::fs::read("/proc/self/mountinfo")
        .map_err(|error| failed("read", Path::new("/proc/self/mountinfo"), &error))?;
    let mut escaped = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b' ' | b'\t' | b'\n' | b'\\' => escaped.extend(format!("\\{byte:03o}").bytes()),
            other => escaped.push(*other),
        }
    }
    let last =
        table.split(|byte| *byte == b'\n').rfind(|line| line.split(|b| *b == b' ').nth(4) == Some(&escaped));
    Ok(last.and_then(|line| line.split(|byte| *byte == b' ').nth(5)).map(|options| Mounted {
        read_only: options.split(|byte| *byte == b',').any(|option| option == b"ro"),
    }))
}
