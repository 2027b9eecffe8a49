//! What is seen of a test's host from outside: the driver's calls, the mounts, the records, what volumectl says.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{PATIENCE, TestHost};

/// The calls that have an effect on the node.
pub const CALLS: [&str; 5] =
    ["NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume", "NodeExpandVolume"];

/// Returns the methods of the example driver's calls that have an effect, in order.
pub fn methods(host: &TestHost) -> Vec<String> {
    host.calls(&CALLS).into_iter().map(|(method, _)| method).collect()
}

/// Returns the mounts below a host's directory with their ids, by path: another mount at the same place has another id.
pub fn mount_ids(host: &TestHost) -> Vec<(PathBuf, u64)> {
    let table = fs::read_to_string("/proc/self/mountinfo").expect("the mount table");
    let mounts = host.mounts();
    let lines = table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        Some((PathBuf::from(fields.nth(3)?), id))
    });
    let mut found: Vec<(PathBuf, u64)> = lines.filter(|(point, _)| mounts.contains(point)).collect();
    found.sort();
    found
}

/// Returns the records on disk.
pub fn records(host: &TestHost) -> Vec<String> {
    let entries = fs::read_dir(host.state.join("volumes")).into_iter().flatten().flatten();
    entries.filter_map(|entry| fs::read_to_string(entry.path()).ok()).collect()
}

/// Waits until nothing is recorded any more, then checks that nothing else is left.
pub fn assert_released(host: &TestHost) {
    let deadline = Instant::now() + PATIENCE;
    while !records(host).is_empty() {
        assert!(Instant::now() < deadline, "records stay\n{}\n{}", host.explain(), host.logs());
        std::thread::sleep(Duration::from_millis(10));
    }
    host.assert_nothing_left();
}

/// Returns what volumectl says to explain a pod.
pub fn explanation(host: &TestHost, pod: &str) -> String {
    String::from_utf8_lossy(&host.volumectl(&["explain", &format!("pod/{pod}")]).stdout).into_owned()
}

/// Returns the volumes of `list -o json`.
pub fn volumes(host: &TestHost) -> Vec<Value> {
    let answer = host.volumectl(&["list", "-o", "json"]);
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
    answer["volumes"].as_array().cloned().unwrap_or_default()
}
