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

use std::process::{Command, Stdio};

use looped::calls::{As, From};
use looped::{Loop, path};

const MIB: u64 = 1 << 20;

/// Leaves the driver's host file system without a free block.
fn fill_host(driver: &Loop) {
    let filler = driver.dir.parent().expect("a parent").join("filler");
    for size in ["1M", "4k", "1k"] {
        let mut fill = Command::new("dd");
        fill.args(["if=/dev/zero", "conv=notrunc", "oflag=append"]).arg(format!("bs={size}"));
        fill.arg(format!("of={}", path(&filler))).stderr(Stdio::null());
        assert!(!fill.status().expect("dd runs").success(), "the disk is not full");
    }
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
    assert!(
        driver.log().contains("what is noted of its use stays"),
        "the host was not full\n{}",
        driver.log()
    );
    driver.delete("fs").unwrap();
    driver.delete("raw").unwrap();
    driver.assert_nothing_left();
}
