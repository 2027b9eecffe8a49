//! Images that somebody else has: a loop device over one keeps the bundled driver's hands off it, by whatever path it was given.

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
use std::process::Command;

use looped::calls::{As, From, refused};
use looped::{Loop, path, run};
use tonic::Code;

const MIB: u64 = 1 << 20;

/// A loop device of the test's own, detached at its end.
struct Device(String);

impl Device {
    fn over(image: &Path, options: &[&str]) -> Self {
        let device = run("losetup", &[options, &["--find", "--show", path(image)]].concat());
        Self(device.trim().to_owned())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _detached = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn an_image_that_a_loop_device_has_by_another_name_stays() {
    let driver = Loop::new();
    let used = As::block();
    driver.create("v", &used, MIB, From::Nothing);
    let image = driver.dir.join("volumes/v/image");
    let link = driver.host.path("link");
    fs::hard_link(&image, &link).unwrap();
    for options in [&[][..], &["--read-only"]] {
        let device = Device::over(&link, options);
        for _ in 0..2 {
            let why = refused(driver.delete("v"), Code::FailedPrecondition);
            assert!(why.contains(&device.0), "{why}");
            assert!(image.exists(), "it was unlinked");
        }
        let why = refused(driver.stage("v", &driver.staging("v"), &used), Code::FailedPrecondition);
        assert!(why.contains(&device.0), "{why}");
    }
    let snapshot = driver.snapshot("v", "s").unwrap().snapshot_id;
    let snapshot_link = driver.host.path("snapshot-link");
    fs::hard_link(driver.dir.join("snapshots").join(&snapshot).join("image"), &snapshot_link).unwrap();
    let device = Device::over(&snapshot_link, &[]);
    let why = refused(driver.delete_snapshot(&snapshot), Code::FailedPrecondition);
    assert!(why.contains(&device.0), "{why}");
    drop(device);
    driver.delete_snapshot(&snapshot).unwrap();
    // Who only reads it keeps what he has, and nobody else from anything.
    let reader = fs::File::open(&image).unwrap();
    driver.delete("v").unwrap();
    assert_eq!(reader.metadata().unwrap().len(), MIB);
    driver.assert_nothing_left();
}
