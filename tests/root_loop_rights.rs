//! Whom the bundled driver lets do what: the rights and mount options of a publication, and what belongs to others, which it neither
//! uses nor takes away.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use looped::calls::{As, From, refused};
use looped::{Loop, path, run, write};
use support::{loop_devices, until};
use tonic::Code;
use volumed::proto::csi::volume_capability::access_mode::Mode;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

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
    let why = refused(driver.stage(&volume, &staged, &used.clone().flag("nonsense")), Code::InvalidArgument);
    assert!(why.contains("nonsense"), "{why}");
    until("the loop device is gone", || loop_devices(&driver.dir).is_empty());
    driver.stage(&volume, &staged, &used.clone().flag("noexec,errors=remount-ro").flag("noatime")).unwrap();
    let options = run("findmnt", &["-n", "-o", "OPTIONS", path(&staged)]);
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
    run("mount", &["-t", "tmpfs", "none", path(&staged)]);
    write(&staged.join("precious"), b"x");
    refused(driver.stage(&volume, &staged, &used), Code::FailedPrecondition);
    refused(driver.unstage(&volume, &staged), Code::FailedPrecondition);
    assert!(staged.join("precious").exists());
    run("umount", &[path(&staged)]);
    driver.stage(&volume, &staged, &used).unwrap();
    // A directory with something in it is no target, and what is in it stays.
    fs::create_dir(&target).unwrap();
    write(&target.join("precious"), b"x");
    refused(driver.publish(&volume, &staged, &target, &used, false), Code::FailedPrecondition);
    refused(driver.unpublish(&volume, &target), Code::Internal);
    assert!(target.join("precious").exists());
    fs::remove_file(target.join("precious")).unwrap();
    driver.publish(&volume, &staged, &target, &used, false).unwrap();
    // Something mounted below it keeps it where it is.
    fs::create_dir(target.join("below")).unwrap();
    run("mount", &["-t", "tmpfs", "none", path(&target.join("below"))]);
    refused(driver.unpublish(&volume, &target), Code::Internal);
    run("umount", &[path(&target.join("below"))]);
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
fn an_image_that_somebody_has_attached_is_not_deleted() {
    let driver = Loop::new();
    driver.create("v", &As::block(), SIZE, From::Nothing);
    let image = driver.dir.join("volumes/v/image");
    // By another name: known by device and inode.
    let elsewhere = driver.host.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    run("mount", &["--bind", path(&driver.dir.join("volumes")), path(&elsewhere)]);
    let device = run("losetup", &["--find", "--show", path(&elsewhere.join("v/image"))]);
    let why = refused(driver.delete("v"), Code::FailedPrecondition);
    assert!(why.contains(device.trim()), "{why}");
    refused(driver.stage("v", &driver.staging("v"), &As::file_system("ext4")), Code::InvalidArgument);
    assert!(image.exists());
    run("losetup", &["--detach", device.trim()]);
    run("umount", &[path(&elsewhere)]);
    until("the image is free", || driver.delete("v").is_ok());
    driver.assert_nothing_left();
}

#[test]
fn a_loop_device_of_somebody_else_is_neither_used_nor_let_go() {
    let driver = Loop::new();
    let used = As::block();
    driver.create("v", &used, SIZE, From::Nothing);
    let (staged, target) = (driver.staging("v"), driver.target("v"));
    let image = driver.dir.join("volumes/v/image");
    let device = run("losetup", &["--find", "--show", path(&image)]);
    let why = refused(driver.stage("v", &staged, &used), Code::FailedPrecondition);
    assert!(why.contains(device.trim()), "{why}");
    driver.unstage("v", &staged).unwrap();
    assert_eq!(loop_devices(&driver.dir).len(), 1, "a stranger's device was let go");
    run("losetup", &["--detach", device.trim()]);
    until("it is staged", || driver.stage("v", &staged, &used).is_ok());
    // Beside ours, it is neither published nor taken away with it.
    let device = run("losetup", &["--find", "--show", path(&image)]);
    driver.publish("v", &staged, &target, &used, false).unwrap();
    driver.unpublish("v", &target).unwrap();
    driver.unstage("v", &staged).unwrap();
    let left: Vec<_> = loop_devices(&driver.dir);
    assert!(left.len() == 1 && left.iter().all(|one| path(one) == device.trim()), "{left:?}");
    run("losetup", &["--detach", device.trim()]);
    until("the image is free", || driver.delete("v").is_ok());
    driver.assert_nothing_left();
}

#[test]
fn a_volume_whose_image_is_gone_can_be_taken_down_and_is_not_deleted_before() {
    let driver = Loop::new();
    for used in [As::file_system("ext4"), As::block()] {
        driver.create("v", &used, SIZE, From::Nothing);
        let (staged, target) = (driver.staging("v"), driver.target("v"));
        driver.stage("v", &staged, &used).unwrap();
        driver.publish("v", &staged, &target, &used, false).unwrap();
        fs::remove_file(driver.dir.join("volumes/v/image")).unwrap();
        refused(driver.delete("v"), Code::FailedPrecondition);
        driver.unpublish("v", &target).unwrap();
        driver.unstage("v", &staged).unwrap();
        driver.delete("v").unwrap();
        driver.assert_nothing_left();
    }
}

#[test]
fn two_drivers_share_no_directory_and_one_waits_for_the_other_s_tools() {
    let driver = Loop::new();
    let other = |arguments: &[&str]| {
        let mut command = std::process::Command::new(looped::PROGRAM);
        command.args(["--dir", path(&driver.dir), "--endpoint", path(&driver.host.path("other.sock"))]);
        command.args(["--node-id", "n"]).args(arguments);
        let output = command.output().expect("it can be run");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(other(&["--name", "other.example.com"]).contains("belongs to the driver"));
    assert!(other(&[]).contains("in use by another driver"), "the lock");
    fs::remove_file(driver.dir.join("lock")).unwrap();
    assert!(other(&[]).contains("in use by another driver"), "the lock of the directory");
}
