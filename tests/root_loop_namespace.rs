//! The bundled driver and the mount namespace that it is started in: whether others see what it mounts.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

mod support;

use std::fs;
use std::process::Command;

use support::{TestHost, until};

/// Starts a driver by a shell's words (`"$@"` is the driver) in a process namespace of its own, where that shell is PID 1 and its
/// mounts are shared. Returns what the driver said until it was ready.
fn said(words: &str) -> String {
    let host = TestHost::new();
    let mut command = Command::new("unshare");
    command.args([
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--",
    ]);
    command.args(["sh", "-c", &format!("mount --make-rshared / && {words}"), "sh"]);
    command.arg(env!("CARGO_BIN_EXE_volumed-csi-loop"));
    command.arg("--dir").arg(host.path("images")).arg("--endpoint").arg(host.path("csi.sock"));
    command.args(["--node-id", "test-node"]);
    let process = host.spawn(command, "driver.log");
    let log = || fs::read_to_string(&process.log).expect("a log");
    until("the driver is ready", || log().contains(" ready "));
    let said = log();
    process.kill();
    said
}

#[test]
fn a_driver_whose_mounts_nobody_sees_says_so_once_and_what_helps() {
    for propagation in ["private", "slave"] {
        let said = said(&format!("unshare --mount --propagation {propagation} -- \"$@\"; exit"));
        let warnings: Vec<&str> = said.lines().filter(|line| line.contains("WARN")).collect();
        let [warning] = warnings.as_slice() else { panic!("not one warning: {said}") };
        let text = warning.split("WARN ").nth(1).unwrap();
        assert!(!text.contains("  "), "{text}");
        for words in ["/var/lib/kubelet", "mount namespace", "PrivateTmp=", "ProtectSystem=", "unshare"] {
            assert!(warning.contains(words), "{words}: {warning}");
        }
    }
}

#[test]
fn a_driver_that_has_the_mounts_of_pid_1_says_nothing() {
    for words in ["exec \"$@\"", "\"$@\"; exit"] {
        let said = said(words);
        assert!(!said.contains("WARN"), "{said}");
    }
}
