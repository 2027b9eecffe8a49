//! What the bundled driver refuses, with which code, and what it does all the same: calls that ask for something else than what
//! is there, options that the kernel does not know, and a host without room.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::path::Path;

use looped::calls::{As, From, refused};
use looped::full::fill_host;
use looped::{Loop, path, run, write};
use support::{loop_devices, until};
use tonic::Code;
use volumed::proto::csi::volume_capability::access_mode::Mode;

const MIB: u64 = 1 << 20;

/// Takes away what the driver noted of a volume's use, from its memory too.
fn forget(driver: &mut Loop, volume: &str) {
    fs::remove_file(driver.dir.join("volumes").join(volume).join("use.json")).expect("it was noted");
    driver.restart(&[]);
}

#[test]
fn on_a_full_host_what_is_shown_can_go() {
    let driver = Loop::on("ext4", "64M");
    let thick = [("allocation", "thick")];
    for (volume, used) in [("fs", As::file_system("ext4")), ("raw", As::block())] {
        driver.create_as(volume, &used, 8 * MIB, From::Nothing, &thick).unwrap();
        driver.stage(volume, &driver.staging(volume), &used).unwrap();
        driver.publish(volume, &driver.staging(volume), &driver.target(volume), &used, false).unwrap();
    }
    fill_host(&driver);
    for volume in ["fs", "raw"] {
        driver.unpublish(volume, &driver.target(volume)).unwrap();
        driver.unstage(volume, &driver.staging(volume)).unwrap();
    }
    assert!(driver.log().contains("its use is not written down"), "the host was not full\n{}", driver.log());
    driver.delete("fs").unwrap();
    driver.delete("raw").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_target_is_published_again_only_as_it_is() {
    let mut driver = Loop::new();
    let used = As::file_system("ext4").group(4711).flag("noatime").flag("nodev");
    driver.create("v", &used, 16 * MIB, From::Nothing);
    let (staged, target) = (driver.staging("v"), driver.target("t"));
    driver.stage("v", &staged, &used).unwrap();
    driver.publish("v", &staged, &target, &used, false).unwrap();
    let plain = As::file_system("ext4");
    for _ in 0..2 {
        driver.publish("v", &staged, &target, &used, false).unwrap();
        // The same options, written in another way.
        let same = plain.clone().group(4711).flag("nodev,noatime");
        driver.publish("v", &staged, &target, &same, false).unwrap();
        for (other, what) in [
            (used.clone().flag("noexec"), "mount flags"),
            (plain.clone().group(4711), "mount flags"),
            (used.clone().group(4712), "VOLUME_MOUNT_GROUP"),
            (plain.clone().flag("nodev,noatime"), "VOLUME_MOUNT_GROUP"),
            (used.clone().mode(Mode::SingleNodeWriter), "access mode"),
        ] {
            let why = refused(driver.publish("v", &staged, &target, &other, false), Code::AlreadyExists);
            assert!(why.contains(what), "{what}: {why}");
        }
        let why = refused(driver.publish("v", &staged, &target, &used, true), Code::AlreadyExists);
        assert!(why.contains("read-only"), "{why}");
        // What was asked outlives the process.
        driver.restart(&[]);
    }
    driver.unpublish("v", &target).unwrap();
    driver.publish("v", &staged, &target, &used.clone().flag("noexec"), true).unwrap();
}

#[test]
fn a_volume_is_staged_again_only_as_it_is() {
    let mut driver = Loop::new();
    let used = As::file_system("ext4").group(4711).flag("noatime");
    let raw = As::block();
    driver.create("v", &used, 16 * MIB, From::Nothing);
    driver.create("raw", &raw, MIB, From::Nothing);
    let (staged, raw_staged) = (driver.staging("v"), driver.staging("raw"));
    for _ in 0..2 {
        driver.stage("v", &staged, &used).unwrap();
        driver.stage("raw", &raw_staged, &raw).unwrap();
        for (other, what) in [
            (used.clone().flag("noexec"), "mount flags"),
            (used.clone().group(4712), "VOLUME_MOUNT_GROUP"),
            (used.clone().mode(Mode::SingleNodeReaderOnly), "access mode"),
        ] {
            let why = refused(driver.stage("v", &staged, &other), Code::AlreadyExists);
            assert!(why.contains(what), "{what}: {why}");
        }
        let other = raw.clone().mode(Mode::SingleNodeSingleWriter);
        refused(driver.stage("raw", &raw_staged, &other), Code::AlreadyExists);
        driver.restart(&[]);
    }
}

#[test]
fn where_what_was_asked_is_lost_what_is_mounted_decides() {
    let mut driver = Loop::new();
    let used = As::file_system("ext4").group(4711).flag("noatime");
    driver.create("v", &used, 16 * MIB, From::Nothing);
    let (staged, target) = (driver.staging("v"), driver.target("t"));
    driver.stage("v", &staged, &used).unwrap();
    driver.publish("v", &staged, &target, &used, false).unwrap();
    forget(&mut driver, "v");
    // Not as it is mounted; nothing is noted of it.
    for other in [used.clone().flag("noexec"), As::file_system("ext4").group(4711), used.clone().group(4712)]
    {
        refused(driver.stage("v", &staged, &other), Code::AlreadyExists);
        refused(driver.publish("v", &staged, &target, &other, false), Code::AlreadyExists);
    }
    refused(driver.publish("v", &staged, &target, &used, true), Code::AlreadyExists);
    driver.stage("v", &staged, &used).unwrap();
    driver.publish("v", &staged, &target, &used, false).unwrap();
    // It is noted again: what the mount table does not show counts too.
    let other = used.clone().mode(Mode::SingleNodeWriter);
    refused(driver.stage("v", &staged, &other), Code::AlreadyExists);
    refused(driver.publish("v", &staged, &target, &other, false), Code::AlreadyExists);
    driver.unpublish("v", &target).unwrap();
    driver.unstage("v", &staged).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_block_volume_whose_use_is_lost_is_staged_and_published_again() {
    let mut driver = Loop::new();
    let used = As::block();
    driver.create("v", &used, MIB, From::Nothing);
    let (staged, target) = (driver.staging("v"), driver.target("t"));
    driver.stage("v", &staged, &used).unwrap();
    driver.publish("v", &staged, &target, &used, false).unwrap();
    forget(&mut driver, "v");
    driver.stage("v", &staged, &used).unwrap();
    driver.publish("v", &staged, &target, &used, false).unwrap();
    assert_eq!(loop_devices(&driver.dir).len(), 1);
    driver.unpublish("v", &target).unwrap();
    driver.unstage("v", &staged).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn an_option_that_the_kernel_refuses_is_an_invalid_argument_in_its_own_words() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    driver.create("v", &used, 16 * MIB, From::Nothing);
    let staged = driver.staging("v");
    // The last one is refused only with the file system before the kernel's eyes.
    for (option, words) in [
        ("nonsense", "Unknown parameter 'nonsense'"),
        ("errors=never", "errors"),
        ("journal_async_commit", "Invalid argument"),
    ] {
        let used = used.clone().flag("noatime").flag(option);
        let why = refused(driver.stage("v", &staged, &used), Code::InvalidArgument);
        assert!(why.contains(words) && why.contains(option), "{why}");
        until("the loop device is gone", || loop_devices(&driver.dir).is_empty());
    }
    driver.stage("v", &staged, &used.clone().flag("errors=remount-ro")).unwrap();
    driver.unstage("v", &staged).unwrap();
    // What is wrong with the file system is not the options' fault.
    let image = driver.dir.join("volumes/v/image");
    run("dd", &["if=/dev/zero", &format!("of={}", path(&image)), "bs=64k", "count=1", "conv=notrunc"]);
    refused(driver.stage("v", &staged, &used.clone().flag("errors=remount-ro")), Code::Internal);
    until("the loop device is gone", || loop_devices(&driver.dir).is_empty());
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_target_with_something_in_it_is_left_alone() {
    let driver = Loop::new();
    let (used, raw) = (As::file_system("ext4"), As::block());
    driver.create("v", &used, 16 * MIB, From::Nothing);
    driver.create("raw", &raw, MIB, From::Nothing);
    driver.stage("v", &driver.staging("v"), &used).unwrap();
    driver.stage("raw", &driver.staging("raw"), &raw).unwrap();
    let target = driver.target("t");
    let publish = |volume: &str, at: &Path, used: &As| {
        refused(driver.publish(volume, &driver.staging(volume), at, used, false), Code::FailedPrecondition)
    };
    fs::create_dir(&target).unwrap();
    write(&target.join("precious"), b"x");
    let why = publish("v", &target, &used);
    assert!(why.contains("not empty") && why.contains(path(&target)), "{why}");
    let inline = driver.publish_inline("csi-1", &target, &[("size", "16Mi")], false);
    let why = refused(inline, Code::FailedPrecondition);
    assert!(why.contains("not empty"), "{why}");
    publish("raw", &target.join("precious"), &raw);
    publish("v", &target.join("precious"), &used);
    assert_eq!(fs::read(target.join("precious")).unwrap(), b"x");
}
