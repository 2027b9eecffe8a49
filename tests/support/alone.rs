//! A root test in namespaces of its own: its mounts and processes are seen nowhere else, it sees no others, and nothing stays.

#![allow(
    clippy::allow_attributes,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a module of test binaries, and of the library's own tests, to which not all of these apply"
)]

use std::path::Path;
use std::process::{Command, Stdio};

/// Set in the process that really runs the test.
const INSIDE: &str = "VOLUMED_TEST_INSIDE";

const NAMESPACES: [&str; 8] =
    ["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc", "--"];

/// Runs the test of this name: starts this program again for it alone, in mount and process namespaces of its own and with a
/// directory for temporary files of its own. `after` gets that directory once the namespaces have gone, however the test
/// ended: what belongs to the whole machine outlives them.
pub fn run(name: &str, test: impl Future<Output = ()>, after: fn(&Path)) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        return runtime.expect("a runtime").block_on(test);
    }
    if !nix::unistd::geteuid().is_root() {
        println!("NOT-RUN: {name}: only root can mount");
        return;
    }
    let top = tempfile::tempdir().expect("a directory");
    let output = Command::new("unshare")
        .args(NAMESPACES)
        .arg(std::env::current_exe().expect("this program"))
        .args(["--exact", name, "--nocapture", "--include-ignored"])
        .env(INSIDE, "1")
        .env("TMPDIR", top.path())
        .stdin(Stdio::null())
        .output()
        .expect("unshare runs");
    after(top.path());
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    let text = text.concat();
    // What could not run, and what was measured, is for the reader of the whole run. On one CPU it stands behind the name.
    let started = format!("test {name} ... ");
    let lines = text.lines().map(|line| line.strip_prefix(&started).unwrap_or(line));
    let told = lines.filter(|line| line.starts_with("NOT-RUN: ") || line.starts_with("FIGURE: "));
    told.for_each(|line| println!("{line}"));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}
