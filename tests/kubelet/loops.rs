//! Loop devices, by `losetup`: they belong to the whole machine and outlive a namespace, so that whoever starts a test lets them
//! go when it has ended.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Large enough for the smallest ext4.
const SIZE: u64 = 1 << 20;

/// Attaches a loop device to a file or to another device; returns its path.
pub fn attach(file: &Path) -> PathBuf {
    run(Command::new("losetup").args(["--find", "--show"]).arg(file)).trim().into()
}

/// Returns the loop device of an image file, which is made and attached where it is not.
pub fn of_image(image: &Path) -> PathBuf {
    if let Some((device, _)) = all().into_iter().find(|(_, backing)| Path::new(backing) == image) {
        return device;
    }
    std::fs::create_dir_all(image.parent().expect("a directory")).expect("a directory");
    let file = std::fs::File::create(image).expect("an image");
    file.set_len(SIZE).expect("an image's size");
    attach(image)
}

/// Makes a small file system on a device, unless there is one.
pub fn format(device: &Path) {
    // Probed: blkid's cache remembers what another test had on a device of this name.
    let known = Command::new("blkid").arg("--probe").arg(device).output().expect("blkid runs");
    if !known.status.success() {
        run(Command::new("mkfs.ext4").arg("-q").arg(device));
    }
}

/// Returns the loop devices whose backing file is exactly this (kubelet.md 2, 9).
pub fn on(file: &Path) -> Vec<PathBuf> {
    all().into_iter().filter(|(_, backing)| Path::new(backing) == file).map(|(device, _)| device).collect()
}

/// Returns the loop devices on files below a directory, and those files.
pub fn below(directory: &Path) -> Vec<(PathBuf, PathBuf)> {
    let all = all().into_iter().map(|(device, backing)| (device, PathBuf::from(backing)));
    all.filter(|(_, backing)| backing.starts_with(directory)).collect()
}

/// Lets go what a test left: devices on files below a directory that is the test's alone, and devices on those devices. No
/// device of anybody else is opened: who unmaps it would take that for use.
pub fn release(top: &Path) {
    let name = top.file_name().and_then(|name| name.to_str()).expect("UTF-8");
    let ours = |backing: &str| backing.split('/').any(|part| part == name);
    let (images, others): (Vec<_>, Vec<_>) = all().into_iter().partition(|(_, backing)| ours(backing));
    let nodes: Vec<(String, u64)> = images
        .iter()
        .filter_map(|(device, _)| std::fs::metadata(device).ok())
        .map(|meta| inode(&meta))
        .collect();
    // A lock whose namespace has gone shows what is left of its path: in `/dev`, or nothing of it.
    let lost =
        |backing: &str| backing == "/" || backing.starts_with("/loop") || backing.starts_with("/dev/loop");
    let locks = others
        .into_iter()
        .filter(|(device, backing)| lost(backing) && inode_below(device).is_some_and(|i| nodes.contains(&i)));
    for (device, _) in locks.chain(images) {
        let _gone = Command::new("losetup").arg("--detach").arg(device).output();
    }
}

/// A file's file system and inode.
fn inode(meta: &std::fs::Metadata) -> (String, u64) {
    let device = meta.dev();
    (format!("{}:{}", nix::sys::stat::major(device), nix::sys::stat::minor(device)), meta.ino())
}

/// Returns the file system and inode of what a loop device stands on.
fn inode_below(device: &Path) -> Option<(String, u64)> {
    const COLUMNS: [&str; 4] = ["--list", "--noheadings", "--output", "BACK-MAJ:MIN,BACK-INO"];
    let output = Command::new("losetup").args(COLUMNS).arg(device).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let (device, inode) = text.trim().split_once(char::is_whitespace)?;
    Some((device.to_owned(), inode.trim().parse().ok()?))
}

/// Returns all loop devices in use with their backing files.
fn all() -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir("/sys/block").expect("/sys");
    let backed = entries.filter_map(|entry| {
        let entry = entry.ok()?.path();
        let backing = std::fs::read_to_string(entry.join("loop/backing_file")).ok()?;
        let backing = backing.trim_end_matches('\n');
        let backing = backing.strip_suffix(" (deleted)").unwrap_or(backing);
        Some((Path::new("/dev").join(entry.file_name()?), backing.to_owned()))
    });
    backed.collect()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{command:?}: {}", text.concat());
    text[0].clone()
}
