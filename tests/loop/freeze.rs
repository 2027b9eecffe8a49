//! Who keeps a file system frozen, and whether it is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use super::{path, run};
use crate::support::{PATIENCE, Process, until};

/// Somebody can write, soon: a write to a frozen file system waits for good.
pub fn writes(mounted: &Path, context: &str) {
    let file = mounted.join("writer");
    let mut writer = Command::new("dd");
    writer.args(["if=/dev/zero", "bs=4k", "count=1", "conv=fsync"]).arg(format!("of={}", path(&file)));
    let mut writer = writer.stderr(std::process::Stdio::null()).spawn().expect("dd can be run");
    let deadline = Instant::now() + PATIENCE;
    while writer.try_wait().expect("it can be waited for").is_none() {
        if Instant::now() > deadline {
            // A failed test leaves nobody frozen.
            run("fsfreeze", &["--unfreeze", path(mounted)]);
            panic!("{context}: nobody can write");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub fn state_of(process: &Process) -> char {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or(' ')
}

pub fn keeper_of(process: &Process) -> u32 {
    let children = format!("/proc/{0}/task", process.pid());
    let tasks = fs::read_dir(children).expect("it runs").flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let children: String = tasks.map(of).collect();
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.find(|pid| name(pid).trim() == "volumed-freeze").expect("it has a keeper")
}

/// Returns whether a mounted file system is frozen: it cannot be frozen again.
pub fn is_frozen(mounted: &Path) -> bool {
    let output = Command::new("fsfreeze").args(["--freeze", path(mounted)]).output();
    let output = output.expect("fsfreeze can be run");
    if output.status.success() {
        run("fsfreeze", &["--unfreeze", path(mounted)]);
        return false;
    }
    String::from_utf8_lossy(&output.stderr).contains("busy")
}

/// Waits until a keeper has ended.
pub fn ended(keeper: u32) {
    until("the keeper has ended", || {
        let stat = fs::read_to_string(format!("/proc/{keeper}/stat")).unwrap_or_default();
        stat.is_empty() || stat.contains(") Z ")
    });
}
