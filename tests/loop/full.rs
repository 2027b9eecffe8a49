//! A host without a free block.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Loop, path};

/// What fills it.
pub fn filler(driver: &Loop) -> PathBuf {
    driver.dir.parent().expect("a parent").join("filler")
}

/// Leaves the driver's host file system, which is the test's own, without a free block.
pub fn fill_host(driver: &Loop) {
    for size in ["1M", "4k", "1k"] {
        let mut fill = Command::new("dd");
        fill.args(["if=/dev/zero", "conv=notrunc", "oflag=append"]).arg(format!("bs={size}"));
        fill.arg(format!("of={}", path(&filler(driver)))).stderr(Stdio::null());
        assert!(!fill.status().expect("dd runs").success(), "the disk is not full");
    }
}
