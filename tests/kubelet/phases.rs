//! Every recorded phase that has mounts is taken over by its own objects: what volumed knows becomes volumed's as it is, what it
//! does not know or nobody wants stays the kubelet's. And no recording lies here that no test uses.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use volumed::model::{DriverName, Foreign, HoldCode, Layout, Status, VolData, VolumeStatus};

use super::compare::{assert_same_calls, assert_same_tree};
use super::drivers;
use super::node::{Node, isolated};
use super::recording::{self, Tree};
use super::shown::{held, published};
use super::takeover::calls_from_nothing;
use crate::{H_EMPTY_DIR, H_INLINE};

/// A phase and what becomes of its pods' volumes, as `pod/volume`.
struct Phase {
    name: &'static str,
    up: &'static [&'static str],
    /// Of types that volumed does not have: it says so and leaves them to the kubelet.
    not_supported: &'static [&'static str],
    /// Not everything was up yet, so that there is something to mount.
    begun: bool,
    /// How many volumes stay when the pods go, because a mount of the kubelet's shows a part of them.
    kept: usize,
}

const fn up(name: &'static str, up: &'static [&'static str]) -> Phase {
    Phase { name, up, not_supported: &[], begun: false, kept: 0 }
}

const fn begun(name: &'static str, up: &'static [&'static str]) -> Phase {
    Phase { name, up, not_supported: &[], begun: true, kept: 0 }
}

const fn mixed(
    name: &'static str,
    up: &'static [&'static str],
    not_supported: &'static [&'static str],
) -> Phase {
    Phase { name, up, not_supported, begun: false, kept: 0 }
}

/// The pod's subPaths are mounts of the kubelet's: what they show of the root itself is not taken away under them.
const fn sub_paths(name: &'static str) -> Phase {
    let up: &[&str] = &["g1/data", "g1/ed", "g1/hp"];
    Phase { name, up, not_supported: &["g1/cm"], begun: false, kept: 1 }
}

/// No pod has anything of it, or only pods that are being deleted: all of it is foreign.
const fn left(name: &'static str) -> Phase {
    up(name, &[])
}

const E_UP: &[&str] = &["e1/ed", "e1/edl", "e2/ed", "e2/edl"];
const E_NOT: &[&str] = &[
    "e1/cm", "e1/cmi", "e1/cmo", "e1/dapi", "e1/edm", "e1/edm2", "e1/hp", "e1/hpc", "e1/proj", "e1/sec",
    "e2/cm", "e2/cmi", "e2/cmo", "e2/dapi", "e2/edm", "e2/edm2", "e2/hp", "e2/hpc", "e2/proj", "e2/sec",
];
const F_NOT: &[&str] = &["f1/locblank", "f1/locblk", "f1/locdir", "f1/locfs", "f2/data"];
const H_UP: &[&str] =
    &["h1/odd1", "h1/odd2", "h1/odd3", "h1/odd4", "h1/odd5", "h1/odd6", H_EMPTY_DIR, H_INLINE];
const I4_UP: &[&str] = &["i4/blk", "i4/data", "i4/inl"];
const I6_UP: &[&str] = &["i6/data", "i6/data2", "i6/data3"];
const I7_UP: &[&str] = &["i7/ed", "i7/hp", "i7/hpb", "i7/inl", "i7/kv"];
const I7_NOT: &[&str] = &["i7/cm", "i7/edm", "i7/locfs", "i7/sec"];
const J_UP: &[&str] = &["j1/ablk", "j1/cc", "j1/inl", "j1/rox", "j1/rwo", "j1/rwop", "j1/rwx"];

const LIVING: &[Phase] = &[
    up("a/running", &["a1/data", "a2/other-name"]),
    up("a/one-pod-removed", &["a2/other-name"]),
    up("b/running", &["b1/blk", "b1/blk2", "b2/blk"]),
    up("b/one-pod-removed", &["b2/blk"]),
    up("c/running", &["c1/scratch", "c1/scratch2"]),
    up("d/running", &["d1/nostage", "d1/nostage2", "d1/nostageblk"]),
    mixed("e/running", E_UP, E_NOT),
    mixed("e/configmap-changed", E_UP, E_NOT),
    mixed("e/kubelet-restarted", E_UP, E_NOT),
    mixed("f/running", &[], F_NOT),
    sub_paths("g/running"),
    up("h/running", H_UP),
    up("i1/recovered", &["i1/data"]),
    up("i4/running", I4_UP),
    up("i6/restarted-pod-wanted", I6_UP),
    mixed("i7/running", I7_UP, I7_NOT),
    mixed("i7/kubelet-after-reboot-pod-wanted", I7_UP, I7_NOT),
    up("i8/damaged-by-hand", &["i8-d1/data", "i8-d2/data", "i8-ro/data"]),
    up("j/running", J_UP),
    up("j/kubelet-restarted", J_UP),
    mixed("m/running", &["st-capture-node/ed", "st-capture-node/hp"], &["m1/gen", "m1/img"]),
];

const KILLED: &[Phase] = &[
    mixed("e/kubelet-killed", E_UP, E_NOT),
    mixed("f/kubelet-killed", &[], F_NOT),
    sub_paths("g/kubelet-killed"),
    up("h/kubelet-killed", H_UP),
    begun("i1/publish-in-flight", &["i1/data"]),
    begun("i2/kubelet-killed", &["i2/data", "i2/data2", "i2/data3"]),
    begun("i3/kubelet-killed", &["i3/blk", "i3/data"]),
    up("i6/damaged", I6_UP),
    begun(
        "k/failing",
        &[
            "k-pi-blk/data",
            "k-pi-fs/data",
            "k-pi-inl/data",
            "k-pu-blk/data",
            "k-pu-fs/data",
            "k-pu-inl/data",
            "k-si-blk/data",
            "k-si-fs/data",
            "k-su-blk/data",
            "k-su-fs/data",
        ],
    ),
];

const UNWANTED: &[Phase] = &[
    left("i4/kubelet-killed"),
    left("i4/pod-deleted-driver-down"),
    left("i4/restarted-driver-down"),
    left("i4/driver-back"),
    left("i5/kubelet-killed"),
    left("i5/restarted"),
    left("i6/restarted-pod-gone"),
    // The pods whose files were damaged; the third is still wanted.
    up("i8/pods-deleted", &["i8-ro/data"]),
];

/// Takes a phase over and then takes the pods away. With nothing wished everything is shown as foreign; then what the objects
/// want becomes volumed's without a mount made or unmade, and in the end just that is gone.
async fn taken_over(phase: &Phase) {
    let name = phase.name;
    let objects = recording::objects(name);
    let asked = calls_from_nothing(name, objects.clone()).await;
    let mut node = Node::take_over(name, drivers::of(name));
    let before = (node.tree(), node.mount_numbers(), node.locks());
    let found = node.wish(Vec::new()).await.foreign;

    let status = node.wish(objects.clone()).await;
    let said = phase.not_supported.iter().map(|name| ((*name).to_owned(), HoldCode::NotSupported));
    assert_eq!(held(&status), said.collect(), "{name}");
    assert_eq!(published(&status), phase.up.iter().map(|name| (*name).to_owned()).collect(), "{name}");
    assert_same_calls(node.calls(), asked);
    let after = node.mount_numbers();
    let kept: BTreeMap<_, _> =
        after.clone().into_iter().filter(|(at, _)| before.1.contains_key(at)).collect();
    assert_eq!(kept, before.1, "{name}: a mount went, or was made anew");
    if !phase.begun {
        assert_eq!((after.len(), node.locks()), (before.1.len(), before.2), "{name}");
        assert_same_tree(
            &without_repairs(node.tree(), &before.0),
            &without_repairs(before.0.clone(), &before.0),
            name,
        );
    }
    let foreign: BTreeSet<PathBuf> = status.foreign.iter().map(|foreign| foreign.path.clone()).collect();
    let not_taken = found.iter().filter(|foreign| !is_taken(&node, &status, foreign));
    assert_eq!(foreign, not_taken.map(|foreign| foreign.path.clone()).collect(), "{name}");

    let others = objects.into_iter().filter(|object| object["kind"] != "Pod").collect();
    node.wish_unsettled(others).await;
    let only_kept = |status: &Status| {
        let in_use = |volume: &VolumeStatus| volume.blocked.iter().any(|b| b.cause.code == "in-use");
        status.volumes.len() == phase.kept && status.volumes.values().all(in_use)
    };
    let gone = node.until(&format!("{name}: taken down"), only_kept).await;
    assert_eq!(gone.brake, None, "{name}");
    let is_foreign = |path: &Path| foreign.iter().any(|place| path.starts_with(place));
    let theirs = |path: &Path| is_foreign(path) || is_kubelets_own(path) || path == node.root();
    let left: BTreeMap<_, _> = before.1.into_iter().filter(|(point, _)| theirs(point)).collect();
    assert_eq!(node.mount_numbers(), left, "{name}: what is the kubelet's");
    let below = |tree: Tree| -> Tree {
        tree.into_iter().filter(|(path, _)| theirs(&node.root().join(path))).collect()
    };
    assert_same_tree(&below(node.tree()), &below(before.0), name);
    node.stop().await;
}

/// Mounts that a kubelet made of a volume which is mounted elsewhere, too: a subPath's, and a local volume's one for the node.
fn is_kubelets_own(path: &Path) -> bool {
    let path = path.to_str().expect("UTF-8");
    ["/volume-subpaths/", "/kubernetes.io/local-volume/", "/kubernetes.io~local-volume/"]
        .iter()
        .any(|own| path.contains(own))
}

/// A tree without what volumed mends while it takes over: `vol_data.json` where it could not be read, and the pod's `plugins`.
fn without_repairs(mut tree: Tree, before: &Tree) -> Tree {
    let data = |path: &str| before.get(path).and_then(|entry| entry.content.as_deref()).unwrap_or_default();
    tree.retain(|path, _| match path.ends_with("/vol_data.json") {
        true => VolData::parse(data(path).as_bytes()).is_some(),
        false => before.contains_key(path) || !path.ends_with("/plugins"),
    });
    tree
}

/// Whether a place is now a volume's that volumed has.
fn is_taken(node: &Node, status: &Status, foreign: &Foreign) -> bool {
    match &foreign.publication {
        Some((pod, _, spec)) => {
            let mut ids = status.volumes.values().flat_map(|volume| volume.publications.keys());
            ids.any(|id| id.pod == *pod && id.spec == *spec)
        }
        // Where `vol_data.json` cannot be read, the place says whose it is.
        None => status.volumes.iter().any(|(key, volume)| {
            let staging = |(driver, handle): &(DriverName, String)| {
                let layout = Layout::new(node.root());
                layout.absolute(&layout.csi_staging(driver, handle)).starts_with(&foreign.path)
            };
            foreign.key.as_ref() == Some(key) || volume.csi.as_ref().is_some_and(staging)
        }),
    }
}

#[test]
fn what_a_living_kubelet_has_up_is_taken_over_and_given_back() {
    isolated("kubelet::phases::what_a_living_kubelet_has_up_is_taken_over_and_given_back", async {
        for phase in LIVING {
            taken_over(phase).await;
        }
    });
}

#[test]
fn what_a_killed_kubelet_had_begun_is_taken_over_and_given_back() {
    isolated("kubelet::phases::what_a_killed_kubelet_had_begun_is_taken_over_and_given_back", async {
        for phase in KILLED {
            taken_over(phase).await;
        }
    });
}

#[test]
fn what_a_kubelet_leaves_of_deleted_pods_stays_foreign() {
    isolated("kubelet::phases::what_a_kubelet_leaves_of_deleted_pods_stays_foreign", async {
        for phase in UNWANTED {
            taken_over(phase).await;
        }
    });
}

#[test]
fn every_phase_with_mounts_is_taken_over_by_a_test() {
    let with_mounts = recording::phases().into_iter().filter(|phase| !recording::mounts(phase).is_empty());
    let tested = [LIVING, KILLED, UNWANTED].into_iter().flatten();
    let tested: BTreeSet<&str> = tested.map(|phase| phase.name).collect();
    let missing: Vec<String> = with_mounts.filter(|phase| !tested.contains(phase.as_str())).collect();
    assert!(missing.is_empty(), "nobody takes over {missing:?}");
}

#[test]
fn no_recording_lies_here_unused() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    let files = std::fs::read_dir(tests.join("kubelet")).expect("the tests");
    let files = files.map(|file| file.expect("a file").path()).chain([tests.join("root_kubelet.rs")]);
    let code: String = files.map(|file| std::fs::read_to_string(file).expect("a test")).collect();
    let phases = recording::phases();
    assert!(phases.len() > 40, "{phases:?}");
    let unused: Vec<_> = phases.iter().filter(|phase| !code.contains(&format!("{phase:?}"))).collect();
    assert!(unused.is_empty(), "no test uses {unused:?}");
}
