//! What the tests of an operator's word share, and those of what others left.

#![allow(unreachable_pub, clippy::allow_attributes, reason = "a module of a test binary")]

mod foreign;

use crate::support::{Process, TestHost, until};

/// What brings a volume up.
pub const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];
/// What takes it down.
pub const DOWN: [&str; 2] = ["NodeUnpublishVolume", "NodeUnstageVolume"];

/// Runs volumectl, which must succeed; returns what it says.
pub fn said(host: &TestHost, arguments: &[&str]) -> String {
    let output = host.volumectl(arguments);
    assert!(
        output.status.success(),
        "volumectl {arguments:?}: {output:?}\n{}\n{}",
        host.explain(),
        host.logs()
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs volumectl, which must refuse; returns why.
pub fn refused(host: &TestHost, arguments: &[&str]) -> String {
    let output = host.volumectl(arguments);
    assert!(
        !output.status.success(),
        "volumectl {arguments:?} is not refused: {output:?}\n{}",
        host.explain()
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub fn stop(daemon: Process) {
    daemon.signal("-TERM");
    daemon.ended();
}

pub fn restart(host: &TestHost, daemon: Process) -> Process {
    stop(daemon);
    host.volumed(&[])
}

/// Waits until a daemon that was just started knows what it is to do.
pub fn until_ready(host: &TestHost) {
    until("it is ready", || {
        host.volumectl(&["wait", "--timeout", "2s", "pod/none"]).status.code() == Some(3)
    });
}
