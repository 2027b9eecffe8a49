//! The bundled driver's volumes, from CreateVolume to DeleteVolume: each file system, block devices, a pod's own, with growth,
//! snapshots and clones beside each other on one host.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use looped::calls::{As, From, refused};
use looped::device::{end_of, get, put};
use looped::{Loop, capacity, run, write};
use support::loop_devices;
use tonic::Code;

const MIB: u64 = 1 << 20;

/// What each test makes of: enough for every file system.
const SIZE: u64 = 320 * MIB;

/// A volume's whole life on the file system that the test has, with a snapshot, a larger restore and a clone beside it.
fn whole_life(driver: &Loop, fs_type: &'static str) {
    let used = As::file_system(fs_type);
    let volume = driver.create("one", &used, SIZE, From::Nothing);
    assert_eq!(driver.create("one", &used, SIZE, From::Nothing), volume, "the same name is the same volume");
    let (staged, target) = (driver.staging("one"), driver.target("one"));
    for _ in 0..2 {
        driver.stage(&volume, &staged, &used).unwrap();
        driver.publish(&volume, &staged, &target, &used, false).unwrap();
    }
    let full = capacity(&target);
    assert!(full > SIZE / 2 && full <= SIZE, "a volume of {SIZE} bytes has {full}");
    write(&target.join("file"), b"first");

    let snapshot = driver.snapshot(&volume, "snap").unwrap();
    assert_eq!(driver.snapshot(&volume, "snap").unwrap(), snapshot, "the same name is the same snapshot");
    write(&target.join("file"), b"second");

    // Source, restored and cloned volume are mounted side by side.
    let restored = driver.create("restored", &used, SIZE * 2, From::Snapshot(&snapshot.snapshot_id));
    let cloned = driver.create("cloned", &used, SIZE, From::Volume(&volume));
    let mut uuids = vec![uuid_of(driver, &volume)];
    for (id, content) in [(&restored, "first"), (&cloned, "second")] {
        let (staged, target) = (driver.staging(id), driver.target(id));
        driver.stage(id, &staged, &used).unwrap();
        driver.publish(id, &staged, &target, &used, false).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), content);
        write(&target.join("own"), id.as_bytes());
        let uuid = uuid_of(driver, id);
        assert!(!uuids.contains(&uuid), "{uuid} again");
        uuids.push(uuid);
    }
    assert!(!target.join("own").exists(), "a copy's file is in its source");
    assert!(capacity(&driver.target(&restored)) > full + SIZE / 2, "the restored volume was not grown");

    online_growth(driver, fs_type, &volume, &target, full);

    for id in [&restored, &cloned] {
        driver.unpublish(id, &driver.target(id)).unwrap();
        driver.unstage(id, &driver.staging(id)).unwrap();
        driver.delete(id).unwrap();
    }
    driver.delete_snapshot(&snapshot.snapshot_id).unwrap();
    refused(driver.delete(&volume), Code::FailedPrecondition);
    refused(driver.unstage(&volume, &staged), Code::FailedPrecondition);
    for _ in 0..2 {
        driver.unpublish(&volume, &target).unwrap();
    }
    for _ in 0..2 {
        driver.unstage(&volume, &staged).unwrap();
    }
    for _ in 0..2 {
        driver.delete(&volume).unwrap();
    }
    driver.assert_nothing_left();
}

/// Grows a published volume while somebody writes to it; an ext4 where the kernel allows it.
fn online_growth(driver: &Loop, fs_type: &str, volume: &str, target: &Path, full: u64) {
    assert!(driver.controller_expand(volume, SIZE * 2).unwrap(), "the node has to go on");
    let grown = driver.node_expand(volume, target, SIZE * 2);
    if fs_type == "ext4" && !has_sys_resource() {
        let why = refused(grown, Code::FailedPrecondition);
        assert!(why.contains("CAP_SYS_RESOURCE") && why.contains("staged again"), "{why}");
        // Staged again, it has grown.
        driver.unpublish(volume, target).unwrap();
        driver.unstage(volume, &driver.staging("one")).unwrap();
        let used = As::file_system("ext4");
        driver.stage(volume, &driver.staging("one"), &used).unwrap();
        driver.publish(volume, &driver.staging("one"), target, &used, false).unwrap();
    } else {
        grown.unwrap();
    }
    assert!(capacity(target) > full + SIZE / 2, "it was not grown");
    assert!(!driver.controller_expand(volume, SIZE * 2).unwrap(), "there is nothing more to do");
    assert_eq!(fs::read(target.join("file")).unwrap(), b"second");
}

fn has_sys_resource() -> bool {
    const CAP_SYS_RESOURCE: u32 = 24;
    let status = fs::read_to_string("/proc/self/status").expect("proc is mounted");
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("a line");
    u64::from_str_radix(held.trim(), 16).expect("a number") & (1 << CAP_SYS_RESOURCE) != 0
}

fn uuid_of(driver: &Loop, volume: &str) -> String {
    let image = driver.dir.join("volumes").join(volume).join("image");
    run("blkid", &["--probe", "--match-tag=UUID", "--output=value", looped::path(&image)])
}

#[test]
fn an_ext4_volume_lives_and_leaves_nothing() {
    whole_life(&Loop::new(), "ext4");
}

#[test]
fn an_xfs_volume_lives_and_leaves_nothing() {
    whole_life(&Loop::new(), "xfs");
}

#[test]
fn a_btrfs_volume_lives_and_leaves_nothing() {
    whole_life(&Loop::new(), "btrfs");
}

#[test]
fn on_xfs_copies_share_their_blocks_until_they_are_written() {
    let driver = Loop::on("xfs", "2G");
    whole_life(&driver, "ext4");
    whole_life(&driver, "xfs");
    let used = As::file_system("ext4");
    let volume = driver.create("v", &used, SIZE, From::Nothing);
    let staged = driver.staging("v");
    driver.stage(&volume, &staged, &used).unwrap();
    write(&staged.join("large"), &vec![7; 64 << 20]);
    let free = || run("stat", &["--file-system", "--format=%a", looped::path(&driver.dir)]);
    let before: u64 = free().trim().parse().unwrap();
    driver.snapshot(&volume, "s").unwrap();
    let taken = before - free().trim().parse::<u64>().unwrap();
    assert!(taken * 4096 < 16 * MIB, "a snapshot of 64 MiB took {taken} blocks");
}

#[test]
fn on_btrfs_too() {
    whole_life(&Loop::on("btrfs", "3G"), "btrfs");
}

#[test]
fn a_block_volume_lives_and_leaves_nothing() {
    let driver = Loop::new();
    let (used, size) = (As::block(), 8 * MIB);
    let volume = driver.create("raw", &used, size, From::Nothing);
    let (staged, target, other) = (driver.staging("raw"), driver.target("raw"), driver.target("other"));
    for _ in 0..2 {
        driver.stage(&volume, &staged, &used).unwrap();
        driver.publish(&volume, &staged, &target, &used, false).unwrap();
        driver.publish(&volume, &staged, &other, &used, false).unwrap();
    }
    let why =
        refused(driver.publish(&volume, &staged, &driver.target("ro"), &used, true), Code::InvalidArgument);
    assert!(why.contains("cannot be shown read-only"), "{why}");
    assert_eq!(loop_devices(&driver.dir).len(), 1);
    assert_eq!(driver.stats(&volume, &target).unwrap().usage[0].total, i64::try_from(size).unwrap());
    put(&target, 5 * MIB, b"deep");
    // Whoever has it writes while it is copied.
    let why = refused(driver.snapshot(&volume, "snap"), Code::FailedPrecondition);
    assert!(why.contains("published"), "{why}");
    for at in [&target, &other] {
        driver.unpublish(&volume, at).unwrap();
    }
    let snapshot = driver.snapshot(&volume, "snap").unwrap().snapshot_id;
    driver.publish(&volume, &staged, &target, &used, false).unwrap();
    driver.publish(&volume, &staged, &other, &used, false).unwrap();
    put(&target, 5 * MIB, b"over");
    let copy = driver.create("copy", &used, size * 2, From::Snapshot(&snapshot));
    let (copy_staged, copy_target) = (driver.staging("copy"), driver.target("copy"));
    driver.stage(&copy, &copy_staged, &used).unwrap();
    driver.publish(&copy, &copy_staged, &copy_target, &used, false).unwrap();
    assert_eq!((get(&copy_target, 5 * MIB), get(&target, 5 * MIB)), (*b"deep", *b"over"));
    assert_eq!(end_of(&copy_target), size * 2);
    // The device grows under whoever has it.
    assert!(!driver.controller_expand(&volume, size * 4).unwrap(), "there is no file system to grow");
    driver.node_expand(&volume, &target, size * 4).unwrap();
    assert_eq!(end_of(&target), size * 4);

    refused(driver.unstage(&volume, &staged), Code::FailedPrecondition);
    for (id, at) in [(&volume, &target), (&volume, &other), (&copy, &copy_target)] {
        driver.unpublish(id, at).unwrap();
        driver.unpublish(id, at).unwrap();
    }
    refused(driver.delete(&volume), Code::FailedPrecondition);
    for (id, at) in [(&volume, &staged), (&copy, &copy_staged)] {
        driver.unstage(id, at).unwrap();
        driver.unstage(id, at).unwrap();
        driver.delete(id).unwrap();
    }
    driver.delete_snapshot(&snapshot).unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_pod_s_own_volume_comes_and_goes_with_its_publication() {
    let driver = Loop::new();
    let target = driver.target("inline");
    let id = format!("csi-{}", "a".repeat(64));
    for _ in 0..2 {
        driver.publish_inline(&id, &target, &[("size", "32Mi"), ("fsType", "ext4")], false).unwrap();
    }
    let full = capacity(&target);
    assert!(full > 16 * MIB && full <= 32 * MIB, "{full}");
    write(&target.join("file"), b"x");
    for _ in 0..2 {
        driver.unpublish(&id, &target).unwrap();
    }
    driver.assert_nothing_left();
    refused(driver.publish_inline(&id, &target, &[("sise", "32Mi")], false), Code::InvalidArgument);
    // An id that CreateVolume can give: the volume would be adopted by whoever asks for that name.
    refused(driver.publish_inline("pvc-1", &target, &[("size", "32Mi")], false), Code::InvalidArgument);
    driver.publish_inline(&id, &target, &[("size", "32Mi")], true).unwrap();
    let read_only = fs::write(target.join("file"), b"x").unwrap_err();
    assert_eq!(read_only.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    driver.unpublish(&id, &target).unwrap();
    let attributes = [("size", "320Mi"), ("fsType", "xfs"), ("allocation", "thick")];
    driver.publish_inline(&id, &target, &attributes, false).unwrap();
    assert_eq!(file_system_at(&target), "xfs");
    let image = fs::metadata(driver.dir.join("volumes").join(&id).join("image")).unwrap();
    assert!(image.blocks() * 512 >= 320 * MIB, "it has {} bytes of its own", image.blocks() * 512);
    driver.unpublish(&id, &target).unwrap();
    driver.assert_nothing_left();
}

/// What the mount table says is mounted there.
fn file_system_at(target: &Path) -> String {
    let table = fs::read_to_string("/proc/self/mounts").unwrap();
    let mut mounts = table.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    mounts.find(|mount| Path::new(mount[1]) == target).unwrap()[2].to_owned()
}

#[test]
fn a_staging_that_was_unmounted_under_its_publications_comes_back() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let volume = driver.create("v", &used, 16 * MIB, From::Nothing);
    let (staged, target) = (driver.staging("v"), driver.target("t"));
    driver.stage(&volume, &staged, &used).unwrap();
    driver.publish(&volume, &staged, &target, &used, false).unwrap();
    run("umount", &[looped::path(&staged)]);
    write(&target.join("file"), b"x");
    driver.stage(&volume, &staged, &used).unwrap();
    assert_eq!(fs::read(staged.join("file")).unwrap(), b"x");
    driver.unpublish(&volume, &target).unwrap();
    driver.unstage(&volume, &staged).unwrap();
    driver.delete(&volume).unwrap();
    driver.assert_nothing_left();
}
