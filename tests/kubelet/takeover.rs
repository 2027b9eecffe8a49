//! A kubelet's volumes become volumed's when manifests want them: with the calls of a kubelet that was restarted, and without a
//! mount made or unmade.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use volumed::model::{Presence, Status};

use super::compare::{Difference, Only, assert_in_order, assert_same, assert_same_calls, assert_same_tree};
use super::node::{Node, isolated};
use super::reconstruct::Volume;
use super::shown::held;
use super::{asked, drivers, recording};

const ENDS: &[&str] = &[
    "a/all-removed",
    "b/all-removed",
    "c/all-removed",
    "d/all-removed",
    "h/all-removed",
    "j/all-removed",
    "i1/all-removed",
    "k/pods-deleted",
];

/// What is otherwise when volumed has taken everything down that a kubelet brought up.
const ON_PURPOSE: &[Difference] = &[
    Difference {
        only: Only::Ours,
        recordings: ENDS,
        path: "pods/*",
        reason: "the pod's directory has files of the kubelet's own in it, which volumed does not know and so does not remove",
    },
    Difference {
        only: Only::Ours,
        // Not h: volumed knows what it is for where there is an emptyDir.
        recordings: &[
            "a/all-removed",
            "b/all-removed",
            "c/all-removed",
            "d/all-removed",
            "j/all-removed",
            "i1/all-removed",
            "k/pods-deleted",
        ],
        path: "pods/*/plugins",
        reason: "as above: a kubelet makes it for every pod",
    },
    Difference {
        only: Only::Ours,
        recordings: &["b/all-removed", "k/pods-deleted"],
        path: "pods/*/volumes",
        reason: "as above; it goes where a file-system volume was in it",
    },
    Difference {
        only: Only::Ours,
        // What i1 and k left has no containers: their volumes were never up.
        recordings: &[
            "a/all-removed",
            "b/all-removed",
            "c/all-removed",
            "d/all-removed",
            "h/all-removed",
            "j/all-removed",
        ],
        path: "pods/*/containers/**",
        reason: "as above",
    },
    Difference {
        only: Only::Ours,
        recordings: &[
            "a/all-removed",
            "b/all-removed",
            "c/all-removed",
            "d/all-removed",
            "h/all-removed",
            "j/all-removed",
        ],
        path: "pods/*/etc-hosts",
        reason: "as above",
    },
    Difference {
        only: Only::Theirs,
        recordings: &["d/all-removed"],
        path: "plugins/kubernetes.io/csi/*/*",
        reason: "a kubelet leaves the empty staging directory of a driver without staging for ever; volumed removes it",
    },
    Difference {
        only: Only::Theirs,
        recordings: &["d/all-removed"],
        path: "plugins/kubernetes.io/csi/*/*/globalmount",
        reason: "as above",
    },
];

/// Starts volumed on a phase's root and wishes the phase's own objects; asserts that all becomes volumed's as it is. Returns
/// the node and how many calls the takeover took.
async fn taken_over(recording: &str) -> (Node, usize) {
    let objects = recording::objects(recording);
    let asked = calls_from_nothing(recording, objects.clone()).await;
    let mut node = Node::take_over(recording, drivers::of(recording));
    let before = (node.tree(), node.mount_numbers(), node.locks());
    assert!(before.1.len() > 1, "{recording} has nothing to take over");
    let status = node.wish(objects).await;
    let mut tree = node.tree();
    tree.retain(|path, _| before.0.contains_key(path) || !path.ends_with("/plugins"));
    assert_same_tree(&tree, &before.0, recording);
    assert_eq!((node.mount_numbers(), node.locks()), (before.1, before.2), "{recording}");
    let calls = node.calls();
    assert_in_order(&calls);
    assert_same_calls(calls.clone(), asked);
    assert_eq!(
        foreign(&node, &status),
        theirs(recording, &node, &status),
        "{recording}: what is left to the kubelet"
    );
    (node, calls.len())
}

/// Returns the calls that volumed makes for these objects on an empty root: a kubelet that was restarted makes them again.
pub(super) async fn calls_from_nothing(recording: &str, objects: Vec<Value>) -> Vec<recording::Call> {
    let mut node = Node::start(drivers::of(recording));
    node.wish(objects).await;
    let calls = node.calls();
    node.stop().await;
    calls
}

/// Returns the foreign places, relative to the root.
fn foreign(node: &Node, status: &Status) -> BTreeSet<PathBuf> {
    let inside = |path: &Path| path.strip_prefix(node.root()).expect("below the root").to_owned();
    status.foreign.iter().map(|foreign| inside(&foreign.path)).collect()
}

/// Returns where the volumes lie that are of no type that volumed knows, or are held: they stay the kubelet's.
fn theirs(recording: &str, node: &Node, status: &Status) -> BTreeSet<PathBuf> {
    let is_held = |pod: &str, name: &str| {
        let pod = status.pods.iter().find(|(uid, _)| uid.as_str() == pod);
        pod.and_then(|(_, pod)| pod.volumes.get(name)).is_some_and(|volume| volume.hold.is_some())
    };
    let is_known = |volume: &Volume| {
        let places = status.volumes.values().flat_map(|known| known.publications.keys());
        places.into_iter().any(|id| id.pod.as_str() == volume.pod && id.spec.as_str() == volume.spec)
    };
    let volumes = asked::volumes(recording, true).into_iter().filter(|volume| match volume.plugin.as_str() {
        "kubernetes.io/csi" => !is_known(volume),
        // Its directory is called as the pod calls it.
        "kubernetes.io/empty-dir" => is_held(&volume.pod, &volume.spec),
        _ => true,
    });
    let tree = node.tree();
    let places = volumes.flat_map(|volume| {
        let plugin = volume.plugin.replace('/', "~");
        let at = |kind: &str| Path::new("pods").join(&volume.pod).join(kind).join(&plugin).join(&volume.spec);
        let staging = volume.csi.as_ref().and_then(|csi| Some(csi.staging.as_ref()?.parent()?.to_owned()));
        [at("volumes"), at("volumeDevices")].into_iter().chain(staging)
    });
    places.filter(|place| tree.contains_key(place.to_str().expect("UTF-8"))).collect()
}

/// Takes a phase over and then takes everything down; asserts that the root ends as the kubelet's own did.
async fn there_and_back(recording: &str, end: &str) {
    let (mut node, taken) = taken_over(recording).await;
    node.wish(recording::objects(end)).await;
    assert_same(end, &node, ON_PURPOSE);
    assert_eq!(node.locks(), BTreeSet::new());
    let calls = node.calls();
    assert_in_order(&calls);
    assert_eq!(calls.len(), 2 * taken, "each call is undone once: {calls:#?}");
    node.stop().await;
}

#[test]
fn a_shared_staged_volume_is_taken_over_without_a_remount() {
    isolated("kubelet::takeover::a_shared_staged_volume_is_taken_over_without_a_remount", async {
        there_and_back("a/running", "a/all-removed").await;
        there_and_back("a/one-pod-removed", "a/all-removed").await;
    });
}

#[test]
fn block_volumes_are_taken_over_with_their_locks() {
    isolated("kubelet::takeover::block_volumes_are_taken_over_with_their_locks", async {
        there_and_back("b/running", "b/all-removed").await;
        there_and_back("b/one-pod-removed", "b/all-removed").await;
    });
}

#[test]
fn inline_volumes_are_taken_over_without_a_remount() {
    isolated("kubelet::takeover::inline_volumes_are_taken_over_without_a_remount", async {
        there_and_back("c/running", "c/all-removed").await;
    });
}

#[test]
fn volumes_of_drivers_without_staging_are_taken_over_without_a_remount() {
    isolated(
        "kubelet::takeover::volumes_of_drivers_without_staging_are_taken_over_without_a_remount",
        async {
            there_and_back("d/running", "d/all-removed").await;
        },
    );
}

#[test]
fn volumes_with_odd_names_are_taken_over_without_a_remount() {
    isolated("kubelet::takeover::volumes_with_odd_names_are_taken_over_without_a_remount", async {
        there_and_back("h/running", "h/all-removed").await;
    });
}

#[test]
fn volumes_with_contexts_secrets_and_all_access_modes_are_taken_over_without_a_remount() {
    isolated(
        "kubelet::takeover::volumes_with_contexts_secrets_and_all_access_modes_are_taken_over_without_a_remount",
        async {
            there_and_back("j/running", "j/all-removed").await;
        },
    );
}

#[test]
fn what_a_killed_kubelet_had_begun_is_finished() {
    isolated("kubelet::takeover::what_a_killed_kubelet_had_begun_is_finished", async {
        // Killed between staging and publishing; refused by the drivers, which work by now.
        for (recording, end) in [("i1/kubelet-killed", "i1/all-removed"), ("k/failing", "k/pods-deleted")] {
            let asked = calls_from_nothing(recording, recording::objects(recording)).await;
            let mut node = Node::take_over(recording, drivers::of(recording));
            let before = node.mount_numbers();
            let status = node.wish(recording::objects(recording)).await;
            assert_same_calls(node.calls(), asked);
            let after = node.mount_numbers();
            let kept = before.iter().all(|(point, number)| after.get(point) == Some(number));
            assert!(kept, "{recording}: before {before:#?}, after {after:#?}");
            assert_eq!(foreign(&node, &status), theirs(recording, &node, &status), "{recording}");
            node.wish(recording::objects(end)).await;
            assert_same(end, &node, ON_PURPOSE);
            node.stop().await;
        }
    });
}

#[test]
fn what_was_wanted_before_a_reboot_comes_up_again() {
    isolated("kubelet::takeover::what_was_wanted_before_a_reboot_comes_up_again", async {
        let mut node = Node::take_over("i7/rebooted", drivers::of("i7/rebooted"));
        let before = node.tree();
        let status = node.wish(recording::objects("i7/rebooted")).await;
        assert!(foreign(&node, &status).is_subset(&theirs("i7/rebooted", &node, &status)));
        // The same volumes, in the places that they had: what is new is only what stands for their mounts.
        assert_eq!(node.tree().keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
        assert_eq!(node.locks().len(), 1);
        let staged = status.volumes.values().filter_map(|volume| volume.staging.as_ref());
        assert!(staged.into_iter().all(|(_, presence)| *presence == Presence::Yes), "{:#?}", status.volumes);
        node.stop().await;
    });
}

#[test]
fn a_foreign_publication_holds_the_staging_of_its_volume() {
    isolated("kubelet::takeover::a_foreign_publication_holds_the_staging_of_its_volume", async {
        // Two pods had the volume; only the second has a manifest, and that goes.
        let mut node = Node::take_over("a/running", drivers::of("a/running"));
        let first = Path::new("pods/f048eb28-c738-4638-8829-95cf8745c110/volumes/kubernetes.io~csi/pv-data");
        let status = node.wish(recording::objects("a/one-pod-removed")).await;
        assert_eq!(foreign(&node, &status), [first.to_owned()].into());
        let theirs = node.root().join(first).join("mount");
        let number = node.mount_numbers()[&theirs];
        node.wish_unsettled(recording::objects("a/all-removed")).await;
        let waits = |status: &Status| {
            let blocked = status.volumes.values().flat_map(|volume| &volume.blocked);
            blocked
                .into_iter()
                .any(|blocked| blocked.step == "unstage" && blocked.cause.code == "foreign-publication")
        };
        node.until("the volume stays staged for the first pod", waits).await;
        assert_eq!(node.mount_numbers().get(&theirs), Some(&number));
        let methods: Vec<String> = node.calls().into_iter().map(|call| call.method).collect();
        assert_eq!(methods, ["NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume"]);
        node.stop().await;
    });
}

#[test]
fn volumes_of_types_not_supported_stay_the_kubelets() {
    isolated("kubelet::takeover::volumes_of_types_not_supported_stay_the_kubelets", async {
        for recording in ["e/running", "f/running", "m/running"] {
            let mut node = Node::take_over(recording, drivers::of(recording));
            let before = (node.tree(), node.mount_numbers());
            let status = node.wish(recording::objects(recording)).await;
            assert!(!held(&status).is_empty(), "{recording} has nothing that is not supported");
            let places = theirs(recording, &node, &status);
            assert_eq!(foreign(&node, &status), places, "{recording}");
            assert_eq!(node.calls(), [], "{recording}");
            assert_same_tree(&node.tree(), &before.0, recording);
            assert_eq!(node.mount_numbers(), before.1, "{recording}");
            let others = recording::objects(recording).into_iter().filter(|object| object["kind"] != "Pod");
            node.wish(others.collect()).await;
            let mut left = node.tree();
            let below = |path: &str| places.iter().any(|place| Path::new(path).starts_with(place));
            left.retain(|path, _| below(path));
            let mut theirs = before.0;
            theirs.retain(|path, _| below(path));
            assert_eq!(left, theirs, "{recording}: the pods are gone, their other volumes are not volumed's");
            node.stop().await;
        }
    });
}
