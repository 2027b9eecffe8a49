//! The bundled driver and the paths of its images: what the kernel shows of a loop device is not always what is at that path.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::os::unix::fs::symlink;

use looped::calls::{As, From};
use looped::freeze::writes;
use looped::{Loop, path, run};
use support::{loop_devices, until};

const MIB: u64 = 1 << 20;

#[test]
fn a_device_over_an_image_that_is_only_covered_is_not_let_go() {
    let mut driver = Loop::new();
    let used = As::block();
    driver.create("v", &used, 16 * MIB, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    let before = loop_devices(&driver.dir);
    assert_eq!(before.len(), 1, "{before:?}");
    // As another mount namespace has it: the same path, and another directory there.
    let other = driver.host.path("other");
    fs::create_dir(&other).unwrap();
    run("mount", &["--bind", path(&other), path(&driver.dir)]);
    driver.restart(&[]);
    let now = loop_devices(&driver.dir);
    driver.process.take().unwrap().kill();
    run("umount", &[path(&driver.dir)]);
    assert_eq!(now, before);
    driver.restart(&[]);
    driver.unstage("v", &staged).unwrap();
    assert_eq!(loop_devices(&driver.dir), [""; 0].map(std::path::PathBuf::from));
    driver.delete("v").unwrap();
}

#[test]
fn a_directory_reached_by_a_symlink_is_as_good_as_any() {
    let mut driver = Loop::new();
    driver.process.take().unwrap().kill();
    let real = driver.dir.clone();
    driver.dir = driver.host.path("link");
    symlink(&real, &driver.dir).unwrap();
    driver.restart(&[]);
    let used = As::file_system("ext4");
    driver.create("v", &used, 16 * MIB, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    // What is left when the driver and the keeper of a freeze are killed together.
    run("fsfreeze", &["--freeze", path(&staged)]);
    driver.restart(&[]);
    writes(&staged, "thawed at the start");
    // An image that is gone is no reason to keep what was shown of it.
    fs::remove_file(real.join("volumes/v/image")).unwrap();
    driver.unstage("v", &staged).unwrap();
    until("the device is gone", || loop_devices(&real).is_empty());
}
