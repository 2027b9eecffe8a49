//! The bundled driver's volumes, from CreateVolume to DeleteVolume: each file system, block devices, growth, snapshots and clones,
//! beside each other on one host.

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
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use looped::calls::{As, From, refused};
use looped::{Loop, capacity, run, write};
use support::{loop_devices, until};
use tonic::Code;
use volumed::proto::csi::volume_capability::access_mode::Mode;

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

fn put(device: &Path, at: u64, bytes: &[u8]) {
    let mut device = fs::File::options().write(true).open(device).expect("a device");
    device.seek(SeekFrom::Start(at)).expect("a place on it");
    device.write_all(bytes).expect("it can be written");
}

fn get(device: &Path, at: u64) -> [u8; 4] {
    let mut device = fs::File::open(device).expect("a device");
    device.seek(SeekFrom::Start(at)).expect("a place on it");
    let mut bytes = [0; 4];
    device.read_exact(&mut bytes).expect("it can be read");
    bytes
}

fn end_of(device: &Path) -> u64 {
    fs::File::open(device).expect("a device").seek(SeekFrom::End(0)).expect("it has an end")
}

#[test]
fn who_writes_past_a_volume_s_size_is_told_and_nobody_else() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let small = driver.create("small", &used, 8 * MIB, From::Nothing);
    let other = driver.create("other", &used, 8 * MIB, From::Nothing);
    for id in [&small, &other] {
        driver.stage(id, &driver.staging(id), &used).unwrap();
    }
    let full = fs::write(driver.staging(&small).join("file"), vec![1; 16 << 20]);
    assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    write(&driver.staging(&other).join("file"), &[1; 1 << 20]);
    let usage = driver.stats(&small, &driver.staging(&small)).unwrap().usage;
    assert!(usage[0].total <= i64::try_from(8 * MIB).unwrap(), "{usage:?}");
}

#[test]
fn what_was_promised_is_not_promised_again() {
    let driver = Loop::on("ext4", "512M");
    let used = As::file_system("ext4");
    driver.create("a", &used, 300 * MIB, From::Nothing);
    let why = refused(driver.create_as("b", &used, 300 * MIB, From::Nothing, &[]), Code::ResourceExhausted);
    assert!(why.contains("promised"), "{why}");
    // Nor to two that grow at the same moment.
    let small = ["e", "f"].map(|name| driver.create(name, &As::block(), MIB, From::Nothing));
    let grown: Vec<bool> = std::thread::scope(|scope| {
        let driver = &driver;
        let all: Vec<_> = small
            .iter()
            .map(|id| scope.spawn(move || driver.controller_expand(id, 120 * MIB).is_ok()))
            .collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    assert!(grown != [true, true], "more was promised than there is");
    for id in &small {
        driver.delete(id).unwrap();
    }
    driver.create_as("c", &used, 64 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    let image = fs::metadata(driver.dir.join("volumes/c/image")).unwrap();
    assert!(image.blocks() * 512 >= 64 * MIB, "a thick volume is not all there");
    // What its user gives back nobody else gets, and it has it again when it is staged again.
    let staged = driver.staging("c");
    driver.stage("c", &staged, &used).unwrap();
    run("fstrim", &[looped::path(&staged)]);
    driver.unstage("c", &staged).unwrap();
    let image = || fs::metadata(driver.dir.join("volumes/c/image")).unwrap().blocks() * 512;
    assert!(image() < 64 * MIB, "nothing was trimmed");
    refused(driver.create_as("d", &used, 100 * MIB, From::Nothing, &[]), Code::ResourceExhausted);
    driver.stage("c", &staged, &used).unwrap();
    assert!(image() >= 64 * MIB, "a thick volume lost blocks");
}

#[test]
fn a_full_host_directory_is_told_before_a_thin_volume_meets_it() {
    let driver = Loop::on("ext4", "256M");
    let used = As::file_system("ext4");
    let volume = driver.create("v", &used, 128 * MIB, From::Nothing);
    let staged = driver.staging("v");
    driver.stage(&volume, &staged, &used).unwrap();
    let condition = || driver.stats(&volume, &staged).unwrap().volume_condition.expect("a condition");
    assert!(!condition().abnormal, "{:?}", condition());
    // Somebody else fills the file system that the directory is on.
    let others = driver.dir.parent().expect("a parent").join("others");
    let space = run("stat", &["--file-system", "--format=%a %S", looped::path(&driver.dir)]);
    let free: u64 = space.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product();
    run("fallocate", &["-l", &(free - 8 * MIB).to_string(), looped::path(&others)]);
    let condition = condition();
    assert!(condition.abnormal && condition.message.contains("may still need"), "{condition:?}");
    // The volume still works: it was told before.
    write(&staged.join("file"), b"x");
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
    driver.assert_nothing_left();
}

#[test]
fn the_rights_of_a_publication_are_those_that_were_asked_for() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let volume = driver.create("v", &used, 16 * MIB, From::Nothing);
    let (staged, target, other) = (driver.staging("v"), driver.target("a"), driver.target("b"));
    refused(driver.publish(&volume, &staged, &target, &used, false), Code::FailedPrecondition);
    let mine = used.clone().group(4711);
    driver.stage(&volume, &staged, &mine).unwrap();
    refused(driver.stage(&volume, &driver.staging("w"), &mine), Code::FailedPrecondition);
    refused(driver.stage(&volume, &staged, &mine.clone().flag("noexec")), Code::AlreadyExists);
    refused(driver.stage(&volume, &staged, &As::file_system("xfs")), Code::InvalidArgument);
    driver.publish(&volume, &staged, &target, &used, true).unwrap();
    refused(driver.publish(&volume, &staged, &target, &used, false), Code::AlreadyExists);
    let denied = fs::write(target.join("x"), b"x").unwrap_err();
    assert_eq!(denied.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    assert_eq!(fs::metadata(&target).unwrap().gid(), 4711);
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o2070, 0o2070);
    let single = used.clone().mode(Mode::SingleNodeSingleWriter);
    refused(driver.publish(&volume, &staged, &other, &single, false), Code::FailedPrecondition);
    driver.publish(&volume, &staged, &other, &used, false).unwrap();
    write(&other.join("x"), b"x");
}

#[test]
fn a_mount_option_reaches_the_kernel_and_its_refusal_the_caller() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let volume = driver.create("v", &used, 16 * MIB, From::Nothing);
    let staged = driver.staging("v");
    let why = refused(driver.stage(&volume, &staged, &used.clone().flag("nonsense")), Code::Internal);
    assert!(why.contains("nonsense"), "{why}");
    until("the loop device is gone", || loop_devices(&driver.dir).is_empty());
    driver.stage(&volume, &staged, &used.clone().flag("noexec,errors=remount-ro").flag("noatime")).unwrap();
    let options = run("findmnt", &["-n", "-o", "OPTIONS", looped::path(&staged)]);
    assert!(
        options.contains("noexec") && options.contains("noatime") && options.contains("remount-ro"),
        "{options}"
    );
}

#[test]
fn what_is_mounted_by_others_is_not_touched() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let volume = driver.create("v", &used, 16 * MIB, From::Nothing);
    let (staged, target) = (driver.staging("v"), driver.target("t"));
    run("mount", &["-t", "tmpfs", "none", looped::path(&staged)]);
    write(&staged.join("precious"), b"x");
    refused(driver.stage(&volume, &staged, &used), Code::FailedPrecondition);
    refused(driver.unstage(&volume, &staged), Code::FailedPrecondition);
    assert!(staged.join("precious").exists());
    run("umount", &[looped::path(&staged)]);
    driver.stage(&volume, &staged, &used).unwrap();
    // A directory with something in it is no target, and what is in it stays.
    fs::create_dir(&target).unwrap();
    write(&target.join("precious"), b"x");
    refused(driver.publish(&volume, &staged, &target, &used, false), Code::Internal);
    refused(driver.unpublish(&volume, &target), Code::Internal);
    assert!(target.join("precious").exists());
    fs::remove_file(target.join("precious")).unwrap();
    driver.publish(&volume, &staged, &target, &used, false).unwrap();
    // Something mounted below it keeps it where it is.
    fs::create_dir(target.join("below")).unwrap();
    run("mount", &["-t", "tmpfs", "none", looped::path(&target.join("below"))]);
    refused(driver.unpublish(&volume, &target), Code::Internal);
    run("umount", &[looped::path(&target.join("below"))]);
    driver.unpublish(&volume, &target).unwrap();
    // Somebody works in it: told who.
    let busy = fs::File::open(&staged).unwrap();
    let why = refused(driver.unstage(&volume, &staged), Code::FailedPrecondition);
    assert!(why.contains("in use by") && why.contains(&std::process::id().to_string()), "{why}");
    drop(busy);
    driver.unstage(&volume, &staged).unwrap();
    driver.delete(&volume).unwrap();
    driver.assert_nothing_left();
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

#[test]
fn a_snapshot_takes_no_room_that_volumes_were_promised() {
    let driver = Loop::on("ext4", "512M");
    let used = As::block();
    driver.create_as("v", &used, 200 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    driver.create("w", &used, 200 * MIB, From::Nothing);
    refused(driver.snapshot("v", "s"), Code::ResourceExhausted);
    driver.snapshot("w", "s").unwrap();
    driver.delete_snapshot("s").unwrap();
    driver.delete("v").unwrap();
    driver.delete("w").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_published_block_volume_is_copied_where_blocks_can_be_shared() {
    let driver = Loop::on("xfs", "512M");
    let used = As::block();
    driver.create("v", &used, 8 * MIB, From::Nothing);
    driver.stage("v", &driver.staging("v"), &used).unwrap();
    driver.publish("v", &driver.staging("v"), &driver.target("v"), &used, false).unwrap();
    put(&driver.target("v"), MIB, b"here");
    driver.snapshot("v", "s").unwrap();
    let image = driver.dir.join("snapshots/s/image");
    assert_eq!(get(&image, MIB), *b"here");
}

#[test]
fn a_shared_snapshot_for_whose_writes_there_is_no_room_is_not_taken() {
    let driver = Loop::on("xfs", "512M");
    let used = As::block();
    driver.create_as("v", &used, 300 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    let why = refused(driver.snapshot("v", "s"), Code::ResourceExhausted);
    assert!(why.contains("promised"), "{why}");
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_clone_needs_its_own_room_and_no_more() {
    let driver = Loop::on("ext4", "512M");
    let used = As::block();
    driver.create_as("v", &used, 200 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    driver.create("w", &used, 200 * MIB, From::Volume("v"));
}

#[test]
fn on_a_full_host_a_volume_can_be_deleted() {
    let driver = Loop::on("ext4", "64M");
    driver.create("v", &As::block(), 16 * MIB, From::Nothing);
    driver.create_as("w", &As::block(), 8 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    let filler = driver.dir.parent().expect("a parent").join("filler");
    for size in ["1M", "4k", "1k"] {
        let mut fill = std::process::Command::new("dd");
        fill.args(["if=/dev/zero", "conv=notrunc", "oflag=append"]).arg(format!("bs={size}"));
        fill.arg(format!("of={}", looped::path(&filler))).stderr(std::process::Stdio::null());
        assert!(!fill.status().unwrap().success(), "the disk is not full");
    }
    refused(driver.create_as("x", &As::block(), MIB, From::Nothing, &[]), Code::ResourceExhausted);
    driver.delete("w").unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_group_of_snapshots_comes_and_goes_as_one() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let ids = ["a", "b"].map(|name| driver.create(name, &used, 16 * MIB, From::Nothing));
    for id in &ids {
        driver.stage(id, &driver.staging(id), &used).unwrap();
        write(&driver.staging(id).join("file"), id.as_bytes());
    }
    // A name that reads like a member's place is somebody's own snapshot.
    let own = driver.snapshot("a", "g:a").unwrap();
    let group = driver.group_snapshot("g", &["a", "b"]).unwrap();
    assert_eq!(driver.snapshot("a", "g:a").unwrap(), own);
    assert_eq!(driver.group_snapshot("g", &["b", "a"]).unwrap(), group);
    assert_eq!(group.snapshots.len(), 2);
    refused(driver.group_snapshot("g", &["a"]), Code::AlreadyExists);
    refused(driver.group_snapshot("h", &["a", "none"]), Code::NotFound);
    refused(driver.delete_snapshot(&group.snapshots[0].snapshot_id), Code::InvalidArgument);
    let mut wrong = group.clone();
    wrong.snapshots.pop();
    refused(driver.delete_group(&wrong), Code::InvalidArgument);
    driver.delete_group(&group).unwrap();
    driver.delete_group(&group).unwrap();
    assert_eq!(driver.snapshot("a", "g:a").unwrap(), own);
    driver.delete_snapshot(&own.snapshot_id).unwrap();
    for id in &ids {
        driver.unstage(id, &driver.staging(id)).unwrap();
        driver.delete(id).unwrap();
    }
    driver.assert_nothing_left();
}

#[test]
fn calls_for_one_volume_at_a_time() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let call = || driver.create_as("same", &used, 16 * MIB, From::Nothing, &[]);
        let all: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    for answer in answers {
        assert!(answer.as_ref().is_ok_and(|volume| volume.volume_id == "same"), "{answer:?}");
    }
}
