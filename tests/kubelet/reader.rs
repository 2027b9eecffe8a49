//! What a kubelet can read after a restart: first of what a kubelet left, then of what volumed leaves.

use std::collections::BTreeMap;
use std::path::Path;

use super::again;
use super::asked;
use super::node::{Node, isolated, unmount_below};
use super::reconstruct::{Reading, reconstruct};
use super::{drivers, recording};

/// Reads a recorded phase that is set up again.
fn read(recording: &str) -> Reading {
    let top = tempfile::tempdir().expect("a directory");
    let root = top.path().join("root");
    std::fs::create_dir(&root).expect("a directory");
    again::set_up(recording, &root, &top.path().join("drivers"));
    let reading = reconstruct(&root);
    unmount_below(top.path());
    reading
}

#[test]
fn the_reader_reconstructs_what_a_kubelet_left() {
    isolated("kubelet::reader::the_reader_reconstructs_what_a_kubelet_left", async {
        for recording in [
            "a/running",
            "a/one-pod-removed",
            "b/running",
            "b/one-pod-removed",
            "c/running",
            "d/running",
            "e/running",
            "e/kubelet-restarted",
            "f/running",
            "g/running",
            "h/running",
            "i1/recovered",
            "i4/running",
            "i6/restarted-pod-wanted",
            "i7/running",
            "i7/kubelet-after-reboot-pod-wanted",
            "j/running",
            "j/kubelet-restarted",
            "m/running",
        ] {
            let reading = read(recording);
            assert_eq!(reading.failed, BTreeMap::new(), "{recording}");
            let expected = asked::volumes(recording, true);
            assert!(!expected.is_empty(), "{recording} has nothing to read");
            assert_eq!(reading.volumes, expected, "{recording}");
        }
    });
}

#[test]
fn the_reader_finds_no_lock_after_a_reboot() {
    isolated("kubelet::reader::the_reader_finds_no_lock_after_a_reboot", async {
        let reading = read("i7/rebooted");
        let expected = asked::volumes("i7/rebooted", false);
        assert_eq!((reading.volumes, reading.failed), (expected, BTreeMap::new()));
    });
}

#[test]
fn the_reader_fails_where_a_kubelet_failed() {
    isolated("kubelet::reader::the_reader_fails_where_a_kubelet_failed", async {
        let directory = Path::new("pods/94595854-0f14-41f0-805e-460dfa513ec8/volumes/kubernetes.io~csi");
        let reading = read("i6/damaged");
        let failed: Vec<_> = reading.failed.keys().map(|path| path.strip_prefix(directory)).collect();
        // Empty, absent, and beside the staging cut short.
        let expected = ["pv-data", "pv-data2", "pv-data3"].map(|name| Ok(Path::new(name)));
        assert_eq!(failed, expected);
        // The block volume that leaked in i4 has no link any more: nothing tells a kubelet of it.
        assert_eq!(read("i4/driver-back"), Reading::default());
    });
}

#[test]
fn a_kubelet_can_read_all_that_volumed_leaves() {
    isolated("kubelet::reader::a_kubelet_can_read_all_that_volumed_leaves", async {
        for recording in [
            "a/running",
            "a/one-pod-removed",
            "b/running",
            "b/one-pod-removed",
            "c/running",
            "d/running",
            "h/running",
            "j/running",
        ] {
            let mut node = Node::start(drivers::of(recording));
            node.wish(recording::objects(recording)).await;
            let reading = reconstruct(node.root());
            node.stop().await;
            let expected = asked::volumes(recording, true);
            assert!(!expected.is_empty(), "{recording} has nothing to read");
            assert_eq!((reading.volumes, reading.failed), (expected, BTreeMap::new()), "{recording}");
        }
    });
}
