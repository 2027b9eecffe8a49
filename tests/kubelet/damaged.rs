//! Roots in which `vol_data.json` is empty, cut short or gone: volumed starts, says which volumes it cannot know, touches none of
//! them, and brings the others up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use volumed::model::Status;

use super::node::{Node, isolated, published};
use super::{drivers, recording};

/// Returns why each volume waits, by its key.
fn causes(status: &Status) -> BTreeMap<String, String> {
    let blocked = status.volumes.iter().flat_map(|(key, volume)| {
        volume
            .blocked
            .iter()
            .map(|blocked| (key.to_string(), format!("{}: {}", blocked.cause.code, blocked.cause.detail)))
    });
    blocked.collect()
}

/// Returns the places that are shown without saying which volume they are of, relative to the root.
fn unknown(node: &Node, status: &Status) -> Vec<PathBuf> {
    let unknown = status.foreign.iter().filter(|foreign| foreign.key.is_none());
    unknown
        .map(|foreign| foreign.path.strip_prefix(node.root()).expect("below the root").to_owned())
        .collect()
}

#[test]
fn volumes_whose_files_are_damaged_are_named_and_left_alone() {
    isolated("kubelet::damaged::volumes_whose_files_are_damaged_are_named_and_left_alone", async {
        // Of pv-data the pod's file is empty, of pv-data2 there is none, of pv-data3 the staging's is cut short.
        let mut node = Node::take_over("i6/damaged", drivers::of("i6/damaged"));
        let before = (node.tree(), node.mount_numbers());
        node.wish_unsettled(recording::objects("i6/damaged")).await;
        let status = node.until("each volume says why it waits", |status| causes(status).len() == 3).await;
        assert!(
            causes(&status).values().all(|cause| cause.starts_with("foreign: ")),
            "{:#?}",
            causes(&status)
        );
        let pod = "pods/94595854-0f14-41f0-805e-460dfa513ec8/volumes/kubernetes.io~csi";
        let staging = "plugins/kubernetes.io/csi/kvd.csi.example.com/eb19f618f0406df617e1e31cdea6c8d72ca998761e3dde7e245416038d619342";
        let expected =
            [staging.to_owned(), format!("{pod}/pv-data"), format!("{pod}/pv-data2")].map(PathBuf::from);
        assert_eq!(unknown(&node, &status), expected);
        assert_eq!(published(&status), BTreeSet::new());
        // The stagings that can be read are taken over.
        assert_eq!(called(&node), ["NodeStageVolume vol-i6-data", "NodeStageVolume vol-i6-data2"]);
        assert_eq!((node.tree(), node.mount_numbers()), before);
        node.stop().await;
    });
}

/// Returns the calls so far, each with its volume, in order of volumes.
fn called(node: &Node) -> Vec<String> {
    let volume = |call: &recording::Call| call.request["volumeId"].as_str().expect("a handle").to_owned();
    let mut called: Vec<String> =
        node.calls().iter().map(|call| format!("{} {}", call.method, volume(call))).collect();
    called.sort();
    called
}

#[test]
fn a_publication_whose_file_is_damaged_holds_its_volumes_staging() {
    isolated("kubelet::damaged::a_publication_whose_file_is_damaged_holds_its_volumes_staging", async {
        let mut node = Node::take_over("i6/damaged", drivers::of("i6/damaged"));
        let before = (node.tree(), node.mount_numbers());
        node.wish_unsettled(recording::objects("i6/damaged")).await;
        node.until("each volume says why it waits", |status| causes(status).len() == 3).await;
        node.wish_unsettled(Vec::new()).await;
        let held = |status: &Status| {
            causes(status).values().filter(|cause| cause.starts_with("foreign-publication: ")).count()
        };
        node.until("both stay staged", |status| held(status) == 2).await;
        assert_eq!(called(&node), ["NodeStageVolume vol-i6-data", "NodeStageVolume vol-i6-data2"]);
        assert_eq!((node.tree(), node.mount_numbers()), before);
        node.stop().await;
    });
}

#[test]
fn a_damaged_file_stops_no_other_volume() {
    isolated("kubelet::damaged::a_damaged_file_stops_no_other_volume", async {
        let mut node = Node::take_over("i8/damaged-by-hand", drivers::of("i8/damaged-by-hand"));
        let before = (node.tree(), node.mount_numbers());
        node.wish_unsettled(recording::objects("i8/damaged-by-hand")).await;
        let up = BTreeSet::from(["i8-ro/data".to_owned()]);
        let fits = |status: &Status| published(status) == up && causes(status).len() == 2;
        let status = node.until("what is whole is up, what is not is blocked", fits).await;
        assert_eq!(unknown(&node, &status).len(), 2);
        let stages = ["d1", "d2", "ro"].map(|name| format!("NodeStageVolume vol-i8-{name}"));
        let all: Vec<String> = ["NodePublishVolume vol-i8-ro".to_owned()].into_iter().chain(stages).collect();
        assert_eq!(called(&node), all);
        assert_eq!((node.tree(), node.mount_numbers()), before);
        node.stop().await;
    });
}

#[test]
fn orphans_of_all_kinds_stop_no_start() {
    isolated("kubelet::damaged::orphans_of_all_kinds_stop_no_start", async {
        let mut node = Node::take_over("n/damaged-by-hand", drivers::of("n/damaged-by-hand"));
        let before = (node.tree(), node.stamps(), node.mount_numbers());
        // The one living pod has a volume of a type that is not volumed's.
        let status = node.wish(recording::objects("n/damaged-by-hand")).await;
        assert_eq!((status.pods.len(), status.volumes.len()), (1, 0));
        assert_eq!((node.tree(), node.stamps(), node.mount_numbers()), before);
        node.stop().await;
    });
}
