//! What a kubelet leaves when it dies at a bad moment (recordings i2 to i5 of `tests/fixtures/kubelet-1.36`) is found on disk,
//! with whose it is, and shown as foreign. Needs root: the recorded mounts are made again.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test: helper functions are not covered by the allow-in-tests settings"
)]

#[path = "support/alone.rs"]
mod alone;

use std::collections::BTreeMap;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use volumed::host::{FoundVolume, Host, Linux, Part};
use volumed::model::{Layout, VolumeKey};

const NONE: Option<&str> = None;
const THEIR_ROOT: &str = "/var/lib/kubelet-capture";

/// Runs a test alone in new namespaces.
fn isolated(name: &str, test: impl Future<Output = ()>) {
    alone::run(name, test, |_| ());
}

/// A recorded root, set up again with a stand-in for each of its mounts. Everything goes with the mount namespace, and the
/// files with the directory.
struct Recorded {
    linux: Linux,
    layout: Layout,
    mounted: Vec<PathBuf>,
    _top: tempfile::TempDir,
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // All at once, with what lies below: only in this namespace, and nobody has anything there.
        let _gone = umount2(self.layout.root(), MntFlags::MNT_DETACH);
    }
}

impl Recorded {
    fn set_up(phase: &str) -> Self {
        let top = tempfile::tempdir().unwrap();
        // A file system of its own: deleting the directory afterwards meets no mount, the namespace's end unmounts.
        let root = top.path().join("root");
        std::fs::create_dir(&root).unwrap();
        mount(Some("tmpfs"), &root, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
        let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kubelet-1.36").join(phase);
        for line in std::fs::read_to_string(recording.join("root.jsonl")).unwrap().lines() {
            let entry: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| entry[key].as_str().unwrap_or_default();
            let path = root.join(text("path"));
            match text("kind") {
                "directory" => std::fs::create_dir_all(&path).unwrap(),
                "file" => std::fs::write(&path, text("content")).unwrap(),
                "link" => symlink(text("target"), &path).unwrap(),
                other => panic!("{other}"),
            }
            if text("kind") != "link" {
                let mode = u32::from_str_radix(text("mode"), 8).unwrap();
                std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            }
        }
        let mut mounted = Vec::new();
        for line in std::fs::read_to_string(recording.join("mountinfo.txt")).unwrap().lines() {
            let point = Path::new(line.split(' ').nth(4).unwrap()).strip_prefix(THEIR_ROOT).unwrap();
            if point.as_os_str().is_empty() {
                continue;
            }
            let point = root.join(point);
            if point.is_dir() {
                mount(Some("tmpfs"), &point, Some("tmpfs"), MsFlags::empty(), NONE).unwrap();
                // What is in a volume is not ours to read.
                std::fs::write(point.join("vol_data.json"), "{\"driverName\":\"a lie\"}").unwrap();
            } else {
                mount(Some("/dev/null"), &point, NONE, MsFlags::MS_BIND, NONE).unwrap();
            }
            mounted.push(point);
        }
        let linux = Linux::open(&root).unwrap();
        let layout = Layout::new(linux.root());
        Self { linux, layout, mounted, _top: top }
    }

    async fn found(&self) -> Vec<(Part, String, Option<String>, bool)> {
        let line = |found: &FoundVolume| {
            let handle = found.vol_data.as_ref().and_then(|data| data.get("volumeHandle"));
            (found.part, found.path.as_path().display().to_string(), handle.map(str::to_owned), found.empty)
        };
        self.linux.volumes_on_disk().await.unwrap().iter().map(line).collect()
    }

    /// What an operator is shown: path below the root, volume, mounted.
    async fn shown(&self) -> Vec<(String, Option<VolumeKey>, bool)> {
        let found = self.linux.volumes_on_disk().await.unwrap();
        let mounts = self.linux.mounts().await.unwrap();
        let foreign = volumed::observe::foreign(&found, &BTreeMap::new(), &mounts, &self.layout);
        let below = |path: &Path| path.strip_prefix(self.layout.root()).unwrap().display().to_string();
        foreign.into_iter().map(|f| (below(&f.path), f.key, f.mounted)).collect()
    }

    /// Asserts that everything mounted is at or below something shown as mounted.
    async fn assert_mounts_are_shown(&self) {
        let shown = self.shown().await;
        for point in &self.mounted {
            let is_shown = |(path, _, mounted): &(String, Option<VolumeKey>, bool)| {
                *mounted && point.starts_with(self.layout.root().join(path))
            };
            assert!(shown.iter().any(is_shown), "{} in {shown:#?}", point.display());
        }
    }
}

const CSI: &str = "plugins/kubernetes.io/csi";

fn block(part: Part, path: &str, handle: &str, empty: bool) -> (Part, String, Option<String>, bool) {
    (part, format!("{CSI}/volumeDevices/{path}"), Some(handle.to_owned()), empty)
}

#[test]
fn a_block_volume_of_a_pod_that_went_with_a_dead_kubelet_is_found() {
    isolated("a_block_volume_of_a_pod_that_went_with_a_dead_kubelet_is_found", async {
        let world = Recorded::set_up("i2/restarted-pod-gone");
        let found = world.found().await;
        let handle = found[0].2.clone().unwrap();
        assert_eq!(
            found,
            [
                block(Part::BlockVolume, "pv-data3", &handle, false),
                block(Part::BlockStaging, "staging/pv-data3", &handle, true),
            ]
        );
        let shown = world.shown().await;
        assert_eq!(shown.len(), 1, "{shown:?}");
        assert!(shown[0].1.is_some(), "the volume is named: {shown:?}");
    });
}

#[test]
fn a_kubelet_killed_during_staging_leaves_both_kinds_to_be_found() {
    isolated("a_kubelet_killed_during_staging_leaves_both_kinds_to_be_found", async {
        let world = Recorded::set_up("i3/restarted-pod-gone");
        let found = world.found().await;
        let parts: Vec<Part> = found.iter().map(|(part, ..)| *part).collect();
        assert_eq!(parts, [Part::Staging, Part::BlockVolume, Part::BlockStaging]);
        assert!(found.iter().all(|(_, _, handle, _)| handle.is_some()), "{found:#?}");
        assert_eq!(world.shown().await.len(), 2);
    });
}

#[test]
fn a_device_still_published_for_a_pod_without_directory_is_found() {
    isolated("a_device_still_published_for_a_pod_without_directory_is_found", async {
        let world = Recorded::set_up("i4/driver-back");
        let found = world.found().await;
        let handle = found[0].2.clone().unwrap();
        let target = "publish/pv-blk/ed7f0fc3-5e25-41ee-8032-900060a093d5";
        assert_eq!(
            found,
            [
                block(Part::BlockPublished, target, &handle, false),
                block(Part::BlockVolume, "pv-blk", &handle, false),
                block(Part::BlockStaging, "staging/pv-blk", &handle, true),
            ]
        );
        assert_eq!(world.mounted.len(), 1);
        world.assert_mounts_are_shown().await;
        // The same as long as the pod ran: with its map, its link and its file systems.
        let world = Recorded::set_up("i4/running");
        let found = world.found().await;
        assert_eq!(found.len(), 8, "{found:#?}");
        assert!(found.iter().all(|(_, _, handle, _)| handle.is_some()), "{found:#?}");
        world.assert_mounts_are_shown().await;
    });
}

#[test]
fn what_was_never_unstaged_is_found() {
    isolated("what_was_never_unstaged_is_found", async {
        let world = Recorded::set_up("i5/restarted");
        let found = world.found().await;
        let parts: Vec<(Part, bool)> = found.iter().map(|(part, _, _, empty)| (*part, *empty)).collect();
        assert_eq!(parts, [(Part::Staging, false), (Part::BlockVolume, false), (Part::BlockStaging, true)]);
        assert!(found.iter().all(|(_, _, handle, _)| handle.is_some()), "{found:#?}");
        assert_eq!(world.mounted.len(), 1);
        world.assert_mounts_are_shown().await;
    });
}
