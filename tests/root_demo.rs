//! scripts/demo, which is the first thing that somebody new runs.

#![expect(clippy::disallowed_methods, reason = "a test: it runs a script")]

use std::path::Path;
use std::process::Command;

#[test]
fn the_demo_does_all_it_says() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/demo");
    // Those that are tested: a build of its own would replace them under the other tests.
    let programs = Path::new(env!("CARGO_BIN_EXE_volumed")).parent().unwrap();
    let output = Command::new(script).env("DEMO_PROGRAMS", programs).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{:?}\n{stdout}\n{stderr}", output.status);
    assert_eq!(stdout.lines().last(), Some("The demo did all it said."));
}
