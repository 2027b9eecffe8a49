//! The bundled driver and a mount namespace that has a copy of its mounts. Alone in its program: the copy is of all mounts that
//! there are, and keeps other tests' devices too.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::io::Read as _;

use looped::calls::{As, From, refused};
use looped::{Loop, run};
use tonic::Code;

const MIB: u64 = 1 << 20;

#[test]
fn a_file_system_that_is_mounted_where_the_driver_does_not_see_it_is_not_copied() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    driver.create("v", &used, 16 * MIB, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    let mut elsewhere = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", "echo here; read line"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut word = [0; 5];
    elsewhere.stdout.as_mut().unwrap().read_exact(&mut word).unwrap();
    run("umount", &[looped::path(&staged)]);
    let why = refused(driver.snapshot("v", "s"), Code::FailedPrecondition);
    assert!(why.contains("cannot be frozen"), "{why}");
    drop(elsewhere.stdin.take());
    elsewhere.wait().unwrap();
    driver.snapshot("v", "s").unwrap();
}
