//! Drivers that fail, with a final code and with another: what lies on disk between two tries, what they are asked, and what is
//! left when the pods are gone is compared with what a kubelet did in the same failure (recording k).

use std::collections::{BTreeMap, BTreeSet};

use volumed::model::Status;

use super::compare::{Difference, Only, assert_same, assert_same_calls};
use super::drivers::K_FAILING;
use super::node::{Node, isolated};
use super::recording::{self, Call};
use crate::each_once;

const FAILING: &[&str] = &["k/failing"];
const VOLUMES: usize = 10;

const UNDO_OWED: &str = "after a final error a kubelet takes its directory and file away, and the driver's effect, if there is one, is \
                         forgotten; volumed owes the undo after any error (design.md 5) and keeps what it needs for it";

/// All differences.
const ON_PURPOSE: &[Difference] = &[
    Difference {
        only: Only::Theirs,
        recordings: FAILING,
        path: "pods/*",
        reason: "a kubelet makes it with every pod, volumed with the pod's first volume",
    },
    Difference { only: Only::Theirs, recordings: FAILING, path: "pods/*/plugins", reason: "as above" },
    Difference { only: Only::Theirs, recordings: FAILING, path: "pods/*/volumes", reason: "as above" },
    Difference {
        only: Only::Ours,
        recordings: FAILING,
        path: "plugins/kubernetes.io/csi/si.kvd.example.com/**",
        reason: UNDO_OWED,
    },
    Difference {
        only: Only::Ours,
        recordings: FAILING,
        path: "plugins/kubernetes.io/csi/volumeDevices/staging/pv-si-blk",
        reason: UNDO_OWED,
    },
    Difference {
        only: Only::Ours,
        recordings: FAILING,
        path: "pods/599bf95f-0759-495c-858a-8dc8c308a4e5/volumes/kubernetes.io~csi/pv-pi-fs/**",
        reason: UNDO_OWED,
    },
    Difference {
        only: Only::Ours,
        recordings: FAILING,
        path: "pods/245327ca-f5ad-4c68-8918-7bcc54184627/volumes/kubernetes.io~csi/data/**",
        reason: UNDO_OWED,
    },
];

/// Every volume has failed three times and is not just tried again: the pause is longer than a look.
fn all_wait(status: &Status) -> bool {
    let waits = status.volumes.values().filter(|volume| {
        volume.in_progress.is_none() && volume.blocked.iter().any(|blocked| blocked.attempts >= 3)
    });
    waits.count() == VOLUMES
}

/// The codes that are shown, by driver.
fn codes(status: &Status) -> BTreeSet<(String, String)> {
    let blocked = status.volumes.values().flat_map(|volume| {
        volume
            .blocked
            .iter()
            .filter_map(|blocked| Some((volume.csi.as_ref()?.0.to_string(), blocked.cause.code.clone())))
    });
    blocked.collect()
}

/// The requests of some methods, each once.
fn of(calls: &[Call], methods: &[&str]) -> Vec<Call> {
    each_once(calls.iter().filter(|call| methods.contains(&call.method.as_str())).cloned().collect())
}

#[test]
fn a_failing_driver_leaves_what_it_leaves_with_a_kubelet() {
    isolated("kubelet::failing::a_failing_driver_leaves_what_it_leaves_with_a_kubelet", async {
        let mut node = Node::start(K_FAILING);
        node.wish_unsettled(recording::objects("k/failing")).await;
        let status = node.until("all have failed three times", all_wait).await;
        assert_same("k/failing", &node, ON_PURPOSE);
        let expected = [("pi", "INTERNAL"), ("pu", "UNAVAILABLE"), ("si", "INTERNAL"), ("su", "UNAVAILABLE")];
        let expected = expected.map(|(name, code)| (format!("{name}.kvd.example.com"), code.to_owned()));
        assert_eq!(codes(&status), expected.into());

        node.wish(recording::objects("k/pods-deleted")).await;
        assert_same("k/pods-deleted", &node, ON_PURPOSE);
        let names: Vec<&str> = K_FAILING.iter().map(|(name, ..)| *name).collect();
        let theirs = recording::calls("k", &names);
        let (ours, _) = node.calls_and_failures();
        const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];
        assert_same_calls(of(&ours, &UP), of(&theirs, &UP));
        // What was up or in doubt is taken down; for us also what a final error may have left.
        let mut down: BTreeMap<String, Call> = BTreeMap::new();
        const DOWN: [&str; 2] = ["NodeUnpublishVolume", "NodeUnstageVolume"];
        down.extend(of(&ours, &DOWN).into_iter().map(|call| (call.text(), call)));
        for call in of(&theirs, &DOWN) {
            assert!(down.remove(&call.text()).is_some(), "a kubelet also calls {}", call.text());
        }
        let more: Vec<_> =
            down.values().map(|call| (call.driver.split('.').next(), call.method.as_str())).collect();
        let owed = [
            (Some("pi"), DOWN[0]),
            (Some("pi"), DOWN[0]),
            (Some("pi"), DOWN[0]),
            (Some("si"), DOWN[1]),
            (Some("si"), DOWN[1]),
        ];
        assert_eq!(more, owed, "{UNDO_OWED}");
        node.stop().await;
    });
}
