//! Roots in which `vol_data.json` is empty, cut short or gone, or orphans lie about: volumed starts, takes the volumes that are
//! wanted over by their places without a new mount, writes their files again, and touches nothing that nobody wants.

use std::collections::BTreeMap;
use std::path::PathBuf;

use volumed::model::Status;

use super::node::{Node, isolated};
use super::shown::published;
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
fn volumes_whose_files_are_damaged_are_known_by_their_places_and_taken_over() {
    isolated(
        "kubelet::damaged::volumes_whose_files_are_damaged_are_known_by_their_places_and_taken_over",
        async {
            // Of pv-data the pod's file is empty, of pv-data2 there is none, of pv-data3 the staging's is cut short.
            let mut node = Node::take_over("i6/damaged", drivers::of("i6/damaged"));
            let before = node.mount_numbers();
            let status = node.wish(recording::objects("i6/damaged")).await;
            assert_eq!(causes(&status), BTreeMap::new());
            assert_eq!(unknown(&node, &status), Vec::<PathBuf>::new());
            assert_eq!(published(&status).len(), 3);
            assert_eq!(node.mount_numbers(), before, "nothing was mounted anew");
            let publications = ["pv-data", "pv-data2", "pv-data3"].map(|name| {
                let pod = "pods/94595854-0f14-41f0-805e-460dfa513ec8/volumes/kubernetes.io~csi";
                std::fs::read(node.root().join(pod).join(name).join("vol_data.json"))
                    .expect("it is written again")
            });
            assert!(publications.iter().all(|bytes| volumed::model::VolData::parse(bytes).is_some()));
            node.wish_unsettled(Vec::new()).await;
            node.until("everything is taken down", |status| status.volumes.is_empty()).await;
            assert!(node.mount_numbers().len() < before.len());
            node.stop().await;
        },
    );
}

#[test]
fn a_damaged_publication_that_nobody_wants_keeps_its_volume_staged() {
    isolated("kubelet::damaged::a_damaged_publication_that_nobody_wants_keeps_its_volume_staged", async {
        let mut node = Node::take_over("i6/damaged", drivers::of("i6/damaged"));
        let before = (node.tree(), node.mount_numbers());
        node.wish_unsettled(Vec::new()).await;
        let status = node.until("they are shown", |status| !status.foreign.is_empty()).await;
        assert_eq!(unknown(&node, &status).len(), 3);
        assert_eq!(node.calls().len(), 0);
        assert_eq!((node.tree(), node.mount_numbers()), before);
        node.stop().await;
    });
}

#[test]
fn files_damaged_under_a_living_kubelet_stop_no_takeover() {
    isolated("kubelet::damaged::files_damaged_under_a_living_kubelet_stop_no_takeover", async {
        let mut node = Node::take_over("i8/damaged-by-hand", drivers::of("i8/damaged-by-hand"));
        let before = node.mount_numbers();
        let status = node.wish(recording::objects("i8/damaged-by-hand")).await;
        assert_eq!(published(&status).len(), 3);
        assert_eq!(node.mount_numbers(), before, "nothing was mounted anew");
        node.stop().await;
    });
}

#[test]
fn orphans_of_all_kinds_stop_no_start() {
    isolated("kubelet::damaged::orphans_of_all_kinds_stop_no_start", async {
        // As it was damaged, and what a kubelet made of it in twenty seconds.
        for recording in ["n/damaged-by-hand", "n/after-20s"] {
            let mut node = Node::take_over(recording, drivers::of(recording));
            let before = (node.tree(), node.stamps(), node.mount_numbers());
            // The one living pod has a volume of a type that is not volumed's.
            let status = node.wish(recording::objects(recording)).await;
            assert_eq!((status.pods.len(), status.volumes.len()), (1, 0), "{recording}");
            assert_eq!((node.tree(), node.stamps(), node.mount_numbers()), before, "{recording}");
            node.stop().await;
        }
    });
}
