//! The children of a test's own process, and states that take a moment to come.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "every test binary uses a part of it, and helper functions are not covered by the allow-in-tests settings"
)]

use std::time::{Duration, Instant};

/// How long a state may take to come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for a state; what it is comes with the failure.
pub async fn eventually(what: &str, state: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !state() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        // Not tokio's clock: a test may have stopped it.
        tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(5))).await.unwrap();
    }
}

/// Returns the children of this process, by pid and name, without those that ended with all their threads.
pub fn children() -> Vec<(u32, String)> {
    let own = format!("PPid:\t{}", std::process::id());
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        if status.lines().any(|line| line == own) && states(pid).iter().any(|state| !"ZX".contains(*state)) {
            let name = status.lines().find_map(|line| line.strip_prefix("Name:\t"));
            found.push((pid, name.unwrap_or_default().to_owned()));
        }
    }
    found
}

/// Returns the states of a process's threads, as in /proc: `D` for one that no signal reaches.
pub fn states(pid: u32) -> Vec<char> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let status =
        threads.map(|thread| std::fs::read_to_string(thread.path().join("status")).unwrap_or_default());
    status
        .filter_map(|text| text.lines().find_map(|line| line.strip_prefix("State:\t"))?.chars().next())
        .collect()
}

/// Returns where in the kernel a process's threads wait.
pub fn waits(pid: u32) -> Vec<String> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    threads.map(|thread| std::fs::read_to_string(thread.path().join("wchan")).unwrap_or_default()).collect()
}
