//! Roots in which `vol_data.json` is empty, cut short or gone: volumed starts, says which volumes it cannot know, touches none of
//! them, and brings the others up.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use volumed::model::Status;

use super::node::{Node, isolated, published};
use super::{drivers, recording};

/// Starts volumed on a damaged root and wishes the phase's own objects, until no volume waits for a first try any more.
async fn wished(recording: &str, up: &[&str], blocked: usize) -> (Node, Status) {
    let mut node = Node::take_over(recording, drivers::of(recording));
    node.wish_unsettled(recording::objects(recording)).await;
    let up: BTreeSet<String> = up.iter().map(|name| (*name).to_owned()).collect();
    let fits = |status: &Status| published(status) == up && causes(status).len() == blocked;
    let status = node.until("what is whole is up, what is not is blocked", fits).await;
    (node, status)
}

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
        let before = (node.tree(), node.stamps(), node.mount_numbers());
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
        assert_eq!(node.calls(), []);
        assert_eq!((node.tree(), node.stamps(), node.mount_numbers()), before);
        node.stop().await;
    });
}

#[test]
#[ignore = "the core does not adopt yet"]
fn a_damaged_file_stops_no_other_volume() {
    isolated("kubelet::damaged::a_damaged_file_stops_no_other_volume", async {
        let before = recording::root("i8/damaged-by-hand");
        let (node, status) = wished("i8/damaged-by-hand", &["i8-ro/data"], 2).await;
        assert_eq!(unknown(&node, &status).len(), 2);
        let methods: Vec<String> = node.calls().into_iter().map(|call| call.method).collect();
        assert_eq!(methods, ["NodeStageVolume", "NodePublishVolume"]);
        let mut now = node.tree();
        now.insert(".".to_owned(), before["."].clone());
        assert_eq!(now, before);
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
