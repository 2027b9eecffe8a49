//! Volumes of any content, from a seed.

#![allow(unreachable_pub, clippy::allow_attributes, reason = "a module of a test binary")]

use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, mknod};

use crate::GROUP;

/// A generator of no quality; the seed is printed with a failure.
pub struct Dice(pub u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn mode(&mut self) -> u32 {
        u32::try_from(self.roll(0o10000)).unwrap()
    }

    fn group(&mut self) -> u32 {
        [0, 1000, GROUP][usize::try_from(self.roll(3)).unwrap()]
    }

    /// Fills a directory with anything a volume may hold.
    pub fn fill(&mut self, directory: &Path, depth: u32, outside: &Path) {
        let mut files: Vec<PathBuf> = Vec::new();
        for n in 0..self.roll(8) {
            let path = directory.join(format!("{n} \u{fc}\n"));
            match self.roll(8) {
                0..=1 if depth > 0 => {
                    std::fs::create_dir(&path).unwrap();
                    self.fill(&path, depth - 1, outside);
                }
                2 => symlink(outside, &path).unwrap(),
                3 => symlink("nowhere", &path).unwrap(),
                4 => nix::unistd::mkfifo(&path, Mode::empty()).unwrap(),
                5 if !files.is_empty() => {
                    std::fs::hard_link(files.last().unwrap(), &path).unwrap();
                    continue;
                }
                // Bound by its path it could not lie as deep: an address has 108 bytes.
                6 => mknod(&path, SFlag::S_IFSOCK, Mode::empty(), 0).unwrap(),
                _ => {
                    std::fs::write(&path, "content").unwrap();
                    files.push(path.clone());
                }
            }
            if let Ok(found) = std::fs::symlink_metadata(&path) {
                lchown(&path, Some(u32::try_from(self.roll(3)).unwrap()), Some(self.group())).unwrap();
                if !found.is_symlink() {
                    let mode = std::fs::Permissions::from_mode(self.mode());
                    std::fs::set_permissions(&path, mode).unwrap();
                }
            }
        }
    }
}
