//! What is at a path below the root.

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

use super::path::{DIRECTORY, Root, names};
use super::{HostError, Seen};
use crate::model::RootPath;

impl Root {
    /// Says what is at a path (`Host::look`).
    ///
    /// # Errors
    /// `WrongKind` when the way there leads through a symlink or a mount.
    pub(super) fn look(&self, path: &RootPath) -> Result<Seen, HostError> {
        let failed = |e| self.failed("look at", path, "a plain file or directory", e);
        let fd = match self.open_at(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(Seen::Absent),
            Err(e) => return Err(failed(e)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(failed)?;
        Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let readable = rustix::fs::openat(&fd, ".", DIRECTORY, Mode::empty()).map_err(failed)?;
                if names(readable).map_err(failed)?.is_empty() {
                    Seen::EmptyDirectory
                } else {
                    Seen::Directory
                }
            }
            FileType::RegularFile if stat.st_size == 0 => Seen::EmptyFile,
            FileType::BlockDevice | FileType::CharacterDevice => Seen::Device,
            FileType::Symlink => Seen::Symlink,
            _ => Seen::Other,
        })
    }

    /// Says what is at a path, where that may only be one of these.
    pub(super) fn look_for(
        &self,
        path: &RootPath,
        fine: &[Seen],
        expected: &'static str,
    ) -> Result<Seen, HostError> {
        let seen = self.look(path)?;
        let wrong = || HostError::WrongKind { path: self.absolute(path), found: seen.words(), expected };
        fine.contains(&seen).then_some(seen).ok_or_else(wrong)
    }
}
