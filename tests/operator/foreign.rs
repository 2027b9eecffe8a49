//! What lies on disk that volumed did not make: shown, adopted, taken over with a manifest, and let go.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{DOWN, UP, refused, restart, said, stop, until_ready};
use crate::drift::{assert_released, count, methods, staging, text, two_readings};
use crate::support::seen::mount_ids;
use crate::support::{DRIVER, Process, TestHost, pod_with_claim, until};

/// An adopted volume's pod is named by its UID, which has to look like one.
const UID: &str = "1f7b8f2e-6c0e-4c4e-9d0a-0a1b2c3d4e5f";

/// A volume that volumed does not know any more, and no manifest.
struct Forgotten {
    daemon: Option<Process>,
    _driver: Process,
    host: TestHost,
    target: PathBuf,
    staged: PathBuf,
    manifest: String,
    mounts: Vec<(PathBuf, u64)>,
}

impl Forgotten {
    fn new() -> Self {
        let host = TestHost::new();
        let driver = host.fakecsi(&[]);
        let daemon = host.volumed(&[]);
        let manifest = pod_with_claim("web", UID, "data");
        host.manifest("web.yaml", &manifest);
        host.wait(&["pod/web"]);
        stop(daemon);
        fs::remove_dir_all(&host.state).expect("the state can be removed");
        host.remove_manifest("web.yaml");
        let (target, staged, mounts) = (host.target(UID, "data"), staging(&host), mount_ids(&host));
        let daemon = host.volumed(&[]);
        let this = Self { daemon: Some(daemon), _driver: driver, host, target, staged, manifest, mounts };
        this.until_foreign(&[&this.target, &this.staged]);
        this
    }

    fn restart(&mut self) {
        let daemon = self.daemon.take().map(|daemon| restart(&self.host, daemon));
        self.daemon = daemon;
    }

    /// Waits until exactly what has these targets is shown as foreign.
    fn until_foreign(&self, targets: &[&Path]) {
        let mut expected: Vec<String> = targets.iter().map(|path| path.display().to_string()).collect();
        expected.sort();
        let shown = || {
            let answer = self.host.volumectl(&["foreign", "-o", "json"]);
            let answer: Value = serde_json::from_slice(&answer.stdout).unwrap_or_default();
            let mut found: Vec<String> = answer
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|one| one["target"].as_str().map(str::to_owned))
                .collect();
            found.sort();
            answer.is_array() && found == expected
        };
        until(&format!("foreign are {expected:?}"), shown);
    }

    /// Nobody was called, and nothing was mounted again.
    fn assert_untouched(&self) {
        two_readings(&self.host);
        assert_eq!(methods(&self.host), UP, "nobody is called\n{}", self.host.explain());
        assert_eq!(mount_ids(&self.host), self.mounts, "the mounts are the same");
    }
}

#[test]
fn a_foreign_volume_is_shown_adopted_by_its_publication_and_released_in_two_steps() {
    let mut left = Forgotten::new();
    left.assert_untouched();
    let table = said(&left.host, &["foreign"]);
    for words in [UID, DRIVER, "handle-data"] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let refusal = refused(&left.host, &["adopt", text(&left.staged)]);
    assert!(refusal.contains("staged for no pod") && refusal.contains("volumectl release"), "{refusal}");
    let refusal = refused(&left.host, &["adopt", text(&left.host.manifests)]);
    assert!(refusal.contains("no foreign volume"), "{refusal}");

    said(&left.host, &["adopt", text(&left.target)]);
    left.until_foreign(&[&left.staged]);
    left.assert_untouched();
    left.restart();
    until_ready(&left.host);
    left.until_foreign(&[&left.staged]);
    let name = format!("foreign/{UID}");
    let explained = said(&left.host, &["explain", &name]);
    assert!(explained.contains("adopted"), "{explained}");
    left.assert_untouched();

    said(&left.host, &["release", &name]);
    until("it is unpublished", || !left.host.mounts().contains(&left.target));
    left.until_foreign(&[&left.staged]);
    two_readings(&left.host);
    assert_eq!(methods(&left.host)[2..], [DOWN[0]], "the staging stays");
    said(&left.host, &["release", text(&left.staged)]);
    until("it is unstaged", || count(&left.host, DOWN[1]) > 0);
    assert_released(&left.host);
    left.until_foreign(&[]);
    assert_eq!(methods(&left.host)[2..], DOWN);
}

#[test]
fn a_foreign_volume_is_taken_over_as_it_is_when_its_pod_s_manifest_is_there_again() {
    for adopted in [false, true] {
        let mut left = Forgotten::new();
        if adopted {
            said(&left.host, &["adopt", text(&left.target)]);
        }
        left.host.manifest("web.yaml", &left.manifest);
        left.host.wait(&["pod/web"]);
        left.until_foreign(&[]);
        two_readings(&left.host);
        assert_eq!(mount_ids(&left.host), left.mounts, "adopted: {adopted}: the mounts are the same");
        assert_eq!(left.host.calls(&DOWN), [], "adopted: {adopted}");
        left.restart();
        left.host.wait(&["pod/web"]);
        assert_eq!(mount_ids(&left.host), left.mounts, "adopted: {adopted}: the mounts are the same");
        left.host.remove_manifest("web.yaml");
        left.host.wait(&["--for=released", "pod/web"]);
        assert_released(&left.host);
        assert_eq!(left.host.calls(&DOWN).len(), 2, "adopted: {adopted}\n{}", left.host.logs());
    }
}
