//! What one process has of the volumes that a look is for: directories, program, open and mapped files.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags};

use super::copies::{Copy, Device};
use super::holders::{Look, Way};
use super::processes::Task;
use crate::host::raw;

impl Look {
    /// Looks at one thread; what its process has as a whole is looked at with the first. `stuck`: its memory's locks may
    /// be held for good, so its mappings are not asked for.
    pub(super) fn at_task(&mut self, task: &Task, namespace: &OsStr, stuck: bool) {
        let first = task.tid == task.pid;
        let here = self.by_point.contains_key(namespace);
        if here {
            for (name, way) in [("root", Way::Root), ("cwd", Way::Works), ("exe", Way::Runs)] {
                if (first || way != Way::Runs)
                    && let Ok(path) = std::fs::read_link(task.directory.join(name))
                {
                    self.at_path(task.pid, way, namespace, &path);
                }
            }
        }
        if first && !stuck && (here || !self.alone.is_empty()) {
            self.at_mappings(task, namespace);
        }
        if first || raw::same_files(task.pid, task.tid) != Some(true) {
            // A process that ended, or may not be looked at, has nothing that could be named.
            let _looked = self.at_open_files(task);
        }
    }

    fn at_path(&mut self, pid: u32, way: Way, namespace: &OsStr, path: &Path) {
        let of = self.volumes_at(namespace, path, None);
        self.note(&of, pid, way, || told(way, path));
    }

    /// The questions about what a path of a namespace leads to, by its mount points.
    fn volumes_at(&self, namespace: &OsStr, path: &Path, device: Option<Device>) -> BTreeSet<usize> {
        let Some(points) = self.by_point.get(namespace) else { return BTreeSet::new() };
        let above = path.ancestors().filter_map(|point| points.get(point)).flatten();
        let copies = above.filter_map(|at| self.copies.get(*at));
        let on = copies.filter(|copy: &&Copy| copy.has(path) && device.is_none_or(|d| d == copy.device));
        on.flat_map(|copy| self.asked_of(copy)).collect()
    }

    /// Judges open files by their mount, which fdinfo names by id. Only files whose path is below a copy are asked for it:
    /// a link shows the path in the namespace of the file's own mount.
    fn at_open_files(&mut self, task: &Task) -> rustix::io::Result<()> {
        let open = |name: &str| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            rustix::fs::open(task.directory.join(name), flags, Mode::empty())
        };
        let files: OwnedFd = open("fd")?;
        for entry in Dir::read_from(&files)? {
            let Ok(entry) = entry else { break };
            let name = entry.file_name();
            let Ok(link) = rustix::fs::readlinkat(&files, name, Vec::new()) else { continue };
            let link = link.into_bytes();
            // Sockets, pipes and the like have no path.
            if link.first() != Some(&b'/') {
                continue;
            }
            let path = PathBuf::from(OsString::from_vec(link));
            if !path.ancestors().any(|point| self.points.contains(point)) {
                continue;
            }
            let info = task.directory.join("fdinfo").join(OsStr::from_bytes(name.to_bytes()));
            let Ok(info) = std::fs::read_to_string(info) else { continue };
            let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
            let copy = id.and_then(|id| self.by_id.get(&id)).and_then(|at| self.copies.get(*at));
            let of = copy.map(|copy| self.asked_of(copy)).unwrap_or_default();
            self.note(&of, task.pid, Way::Open, || told(Way::Open, &path));
        }
        Ok(())
    }

    /// Judges mapped files by device where that is a volume's alone, else by path and device.
    fn at_mappings(&mut self, task: &Task, namespace: &OsStr) {
        let Ok(text) = task.read("maps") else { return };
        let mut last: &[u8] = b"";
        for mapping in text.split(|b| *b == b'\n').filter_map(Mapping::parse) {
            // Each file is mapped in several pieces.
            if mapping.path == last {
                continue;
            }
            last = mapping.path;
            let path = PathBuf::from(OsString::from_vec(unescape(mapping.path)));
            let mut of = self.volumes_at(namespace, &path, Some(mapping.device));
            of.extend(self.alone.get(&mapping.device).into_iter().flatten());
            // A program that runs is mapped, too.
            of.retain(|question| !self.is_noted(*question, task.pid, Way::Runs));
            self.note(&of, task.pid, Way::Maps, || told(Way::Maps, &path));
        }
    }
}

fn told(way: Way, path: &Path) -> String {
    let path = path.display();
    match way {
        Way::Mount => format!("has it mounted at {path}"),
        Way::Root => format!("has its root directory at {path}"),
        Way::Works => format!("works in {path}"),
        Way::Runs => format!("runs {path}"),
        Way::Open => format!("has {path} open"),
        Way::Maps => format!("has {path} mapped"),
    }
}

/// A line of `/proc/<pid>/maps` that is about a file.
#[derive(Debug, PartialEq, Eq)]
struct Mapping<'a> {
    device: Device,
    path: &'a [u8],
}

impl<'a> Mapping<'a> {
    /// `7f00-7f10 r-xp 00000000 fd:01 1234     /usr/lib/x`: the device in hexadecimal.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |b| *b == b' ');
        let device = std::str::from_utf8(fields.nth(3)?).ok()?;
        let (major, minor) = device.split_once(':')?;
        let path = fields.nth(1)?.trim_ascii_start();
        let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
        path.starts_with(b"/").then_some(Self { device, path })
    }
}

/// Undoes the only escape that maps has: a line's end.
fn unescape(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((first, tail)) = rest.split_first() {
        if let Some(tail) = rest.strip_prefix(b"\\012") {
            out.push(b'\n');
            rest = tail;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_names_device_and_path() {
        let line =
            b"7f2c1000-7f2c2000 r--p 0001a000 fd:01 4711                       /data/a file\\012x (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!(mapping.device, (0xfd, 1));
        assert_eq!(unescape(mapping.path), b"/data/a file\nx (deleted)");
        for line in [
            "7ffc1000-7ffc2000 rw-p 00000000 00:00 0                          [stack]",
            "7f2c1000-7f2c2000 rw-p 00000000 00:00 0 ",
            "7f2c1000-7f2c2000 rw-p",
            "",
        ] {
            assert_eq!(Mapping::parse(line.as_bytes()), None, "{line}");
        }
    }
}
