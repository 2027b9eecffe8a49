//! A recorded phase again: the root directory with owners, modes, links and bytes, its mounts and its loop devices.

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use super::loops;
use super::recording::{self, Entry, THEIR_ROOT, hex};

const NONE: Option<&str> = None;
/// What stands in the recordings for the drivers' own state.
const THEIR_DRIVERS: &str = "/srv/drivers";

/// Makes a phase again below an existing, empty root directory. Mounts show directories and loop devices below `store` in place
/// of the drivers' own; their points, order, kinds and access are as recorded.
pub fn set_up(recording: &str, root: &Path, store: &Path) {
    extract(recording, root);
    let again = Again { root, store };
    let devices = again.devices(recording);
    for line in recording::mountinfo(recording).lines() {
        again.mount(&Recorded::of(line), &devices);
    }
    for (_, backing) in recording::loops(recording) {
        if let Some(map) = backing.strip_prefix(THEIR_ROOT) {
            loops::attach(&below(root, map));
        }
    }
}

/// Writes what a phase's root directory held, as seen without the mounts.
pub fn extract(recording: &str, root: &Path) {
    // By path: what holds something comes before it.
    for entry in recording::root(recording).into_values() {
        let path = root.join(&entry.path);
        write(&entry, &path, root);
        lchown(&path, Some(entry.uid), Some(entry.gid)).expect("an owner");
        if entry.kind != "link" {
            let mode = u32::from_str_radix(&entry.mode, 8).expect("an octal number");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("a mode");
        }
    }
}

fn write(entry: &Entry, path: &Path, root: &Path) {
    match entry.kind.as_str() {
        "directory" => std::fs::create_dir_all(path).expect("a directory"),
        "link" => {
            let target = entry.target.as_deref().expect("a link's target");
            let target = target.strip_prefix("<root>").map_or(target.into(), |inside| below(root, inside));
            symlink(target, path).expect("a link");
        }
        "file" => match (&entry.content, &entry.hex) {
            (Some(text), _) => std::fs::write(path, text).expect("a file"),
            (None, Some(digits)) => std::fs::write(path, bytes(digits)).expect("a file"),
            (None, None) => panic!("{} has no content", entry.path),
        },
        other => panic!("{} is a {other}", entry.path),
    }
}

fn bytes(digits: &str) -> Vec<u8> {
    let pairs = digits.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).expect("digits"));
    pairs.map(|pair| u8::from_str_radix(pair, 16).expect("digits")).collect()
}

/// Returns a path as it was before the mount table wrote its blanks as `\040`.
fn unescaped(path: &str) -> String {
    path.replace("\\040", " ")
}

fn below(directory: &Path, inside: &str) -> PathBuf {
    directory.join(inside.trim_start_matches('/'))
}

/// The name that the drivers of `driver.rs` give to a volume's own directory or image.
pub fn own_name(handle: &str) -> String {
    use sha2::{Digest, Sha256};
    hex(&Sha256::digest(handle)[..8])
}

/// One line of a recorded mount table.
struct Recorded<'a> {
    root: &'a str,
    point: &'a str,
    read_only: bool,
    kind: &'a str,
    source: &'a str,
    data: &'a str,
}

impl<'a> Recorded<'a> {
    fn of(line: &'a str) -> Self {
        let (mount, file_system) = line.split_once(" - ").expect("mountinfo");
        let mount: Vec<&str> = mount.split(' ').collect();
        let file_system: Vec<&str> = file_system.split(' ').collect();
        Self {
            root: mount[3],
            point: mount[4],
            read_only: mount[5].split(',').any(|option| option == "ro"),
            kind: file_system[0],
            source: file_system[1],
            data: file_system[2],
        }
    }
}

struct Again<'a> {
    root: &'a Path,
    store: &'a Path,
}

impl Again<'_> {
    /// Returns our loop device for each recorded one that had a file of a driver.
    fn devices(&self, recording: &str) -> BTreeMap<String, PathBuf> {
        let images = recording::loops(recording).into_iter().filter_map(|(name, backing)| {
            let image = self.own(backing.strip_prefix(THEIR_DRIVERS)?);
            Some((name, loops::of_image(&image.with_extension("img"))))
        });
        images.collect()
    }

    /// Returns where something of a driver is here: hostpath calls it after its handle, the others as `own_name` does.
    fn own(&self, theirs: &str) -> PathBuf {
        let mut names = theirs.trim_start_matches('/').split('/');
        let (directory, volume) = (names.next().expect("a directory"), names.next());
        let own = match (directory, volume) {
            ("hp-state", Some(handle)) => own_name(handle),
            (_, Some(name)) => name.to_owned(),
            (name, None) => name.to_owned(),
        };
        names.fold(self.store.join(own), |path, name| path.join(name))
    }

    /// Makes what a driver shows where it is not there: a directory, or a file.
    fn made(&self, theirs: &str, file: bool) -> PathBuf {
        let own = self.own(theirs.strip_prefix(THEIR_DRIVERS).expect("a driver's directory"));
        let directory = if file { own.parent().expect("a directory") } else { &own };
        std::fs::create_dir_all(directory).expect("a driver's directory");
        if file {
            std::fs::write(&own, "").expect("a driver's file");
        }
        own
    }

    fn mount(&self, recorded: &Recorded<'_>, devices: &BTreeMap<String, PathBuf>) {
        let Recorded { root, point, kind, source, data, .. } = *recorded;
        let inside = unescaped(point);
        let target = below(self.root, inside.strip_prefix(THEIR_ROOT).expect("below the root"));
        if point == THEIR_ROOT {
            // A kubelet binds its root on itself and shares it.
            bind(&target, &target);
            mount(NONE, &target, NONE, MsFlags::MS_SHARED, NONE).expect("a shared root");
            return;
        }
        match kind {
            "tmpfs" => {
                let data = data.trim_start_matches("rw,");
                mount(Some("tmpfs"), &target, Some("tmpfs"), MsFlags::empty(), Some(data)).expect("a tmpfs");
            }
            "devtmpfs" => bind(&devices[&format!("/dev{root}")], &target),
            "ext4" if source.starts_with("/dev/loop") => {
                let device = &devices[source];
                loops::format(device);
                mount(Some(device), &target, Some("ext4"), MsFlags::empty(), NONE).expect("a file system");
            }
            "ext4" => match unescaped(root).strip_prefix(THEIR_ROOT) {
                // A subPath of a volume that lies in the root directory itself.
                Some(inside) => bind(&below(self.root, inside), &target),
                None => bind(&self.made(root, target.is_file()), &target),
            },
            other => panic!("{point}: {other} is not made again"),
        }
        if recorded.read_only {
            let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(NONE, &target, NONE, flags, NONE).expect("a read-only mount");
        }
    }
}

fn bind(from: &Path, to: &Path) {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE)
        .unwrap_or_else(|error| panic!("{} on {}: {error}", from.display(), to.display()));
}
