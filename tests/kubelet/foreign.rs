//! What no manifest wants is a kubelet's: shown, and never touched. What a dying kubelet leaked is among it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use volumed::model::{Foreign, Status};

use super::asked;
use super::node::{Node, isolated};
use super::reconstruct::Volume;
use super::{drivers, recording};

/// Lets volumed find a recorded root with nothing wished, and asserts that it leaves everything as it was.
async fn found(recording: &str) -> (Node, BTreeMap<PathBuf, Foreign>) {
    let mut node = Node::take_over(recording, drivers::of(recording));
    // The loop has not run yet: this waits for nothing.
    let before = (node.tree(), node.stamps(), node.mount_numbers());
    assert_eq!(before.0, recorded_tree(recording), "{recording} is not set up as recorded");
    let mut status = Status::default();
    for _ in 0..3 {
        node.disturb();
        status = node.wish(Vec::new()).await;
    }
    assert!(status.pass > 3, "several passes");
    assert_eq!(node.calls(), [], "{recording}");
    assert_eq!((node.tree(), node.stamps(), node.mount_numbers()), before, "{recording}");
    let found = status.foreign.into_iter().map(|foreign| (foreign.path.clone(), foreign));
    (node, found.collect())
}

fn recorded_tree(recording: &str) -> recording::Tree {
    let mut tree = recording::root(recording);
    tree.remove(".");
    tree
}

/// What is shown of a foreign place: the volume's key, the pod, and whether something is mounted.
type Shown = (Option<String>, Option<String>, bool);

fn shown(foreign: &Foreign) -> Shown {
    let key = foreign.key.as_ref().map(ToString::to_string);
    (key, foreign.publication.as_ref().map(|(pod, ..)| pod.to_string()), foreign.mounted)
}

/// Returns what has to be shown of a phase's file-system volumes, by path relative to the root: each publication, and the
/// staging of each CSI volume that was staged.
fn expected_file_systems(recording: &str) -> BTreeMap<PathBuf, Shown> {
    let mounts = recording::mounts(recording);
    let mounted = |path: &Path| mounts.iter().any(|(point, _)| Path::new(point).starts_with(path));
    let mut expected = BTreeMap::new();
    for Volume { pod, plugin, spec, csi } in asked::volumes(recording, true) {
        if csi.as_ref().is_some_and(|csi| csi.block.is_some()) {
            continue;
        }
        let path = Path::new("pods").join(&pod).join("volumes").join(plugin.replace('/', "~")).join(&spec);
        let of_pod = || format!("{plugin}/{pod}-{spec}");
        let key = match &csi {
            Some(csi) if csi.lifecycle == "Persistent" => {
                Some(format!("{plugin}/{}^{}", csi.driver, csi.handle))
            }
            Some(_) => Some(of_pod()),
            // Its place alone says whose it is.
            None => (plugin == "kubernetes.io/empty-dir").then(of_pod),
        };
        if let Some(staging) = csi.filter(|csi| csi.staged).and_then(|csi| csi.staging) {
            let own = staging.parent().expect("a directory");
            expected.insert(own.to_owned(), (key.clone(), None, mounted(own)));
        }
        expected.insert(path.clone(), (key, Some(pod), mounted(&path)));
    }
    // A directory that is empty is nobody's; in an emptyDir a directory is its pod's.
    let tree = recording::root(recording);
    let holds = |path: &Path| {
        let is_empty_dir = path.components().any(|part| part.as_os_str() == "kubernetes.io~empty-dir");
        let below = tree.values().filter(|entry| Path::new(&entry.path).starts_with(path));
        below
            .into_iter()
            .any(|entry| entry.kind != "directory" || is_empty_dir && Path::new(&entry.path) != path)
    };
    expected.retain(|path, (_, _, mounted)| *mounted || holds(path));
    expected
}

#[test]
fn what_no_manifest_wants_is_left_as_it_is() {
    isolated("kubelet::foreign::what_no_manifest_wants_is_left_as_it_is", async {
        // Living, half made, leaked and damaged.
        for recording in recording::phases() {
            let (node, _found) = found(&recording).await;
            node.stop().await;
        }
    });
}

#[test]
fn every_volume_of_a_living_kubelet_is_shown_as_foreign() {
    isolated("kubelet::foreign::every_volume_of_a_living_kubelet_is_shown_as_foreign", async {
        for recording in [
            "a/running",
            "a/one-pod-removed",
            "c/running",
            "d/running",
            "e/running",
            "e/configmap-changed",
            "e/kubelet-restarted",
            "f/running",
            "g/running",
            "h/running",
            "i1/recovered",
            "i4/running",
            "i6/restarted-pod-wanted",
            "i7/running",
            "i7/rebooted",
            "i7/kubelet-after-reboot-pod-wanted",
            "j/running",
            "j/kubelet-restarted",
            "m/running",
        ] {
            let (node, found) = found(recording).await;
            let found = found.values().filter(|foreign| !is_block(foreign)).map(|foreign| {
                let path = foreign.path.strip_prefix(node.root()).expect("below the root");
                (path.to_owned(), shown(foreign))
            });
            let expected = expected_file_systems(recording);
            assert!(!expected.is_empty(), "{recording} has nothing to show");
            assert_eq!(found.collect::<BTreeMap<_, _>>(), expected, "{recording}");
            node.stop().await;
        }
    });
}

/// Whether it is about a block volume: those are below `volumeDevices`, in the pod and beside the drivers.
fn is_block(foreign: &Foreign) -> bool {
    foreign.path.components().any(|part| part.as_os_str() == "volumeDevices")
}

#[test]
fn what_was_damaged_by_hand_is_shown_as_far_as_it_can_be_read() {
    isolated("kubelet::foreign::what_was_damaged_by_hand_is_shown_as_far_as_it_can_be_read", async {
        let (node, found) = found("n/damaged-by-hand").await;
        let of = |pod: &str, rest: &str| node.root().join("pods").join(pod).join(rest);
        let expected: BTreeSet<PathBuf> = [
            of("33138b45-ed7c-4ecf-8be3-7460875e466d", "volumes/kubernetes.io~empty-dir/ed"),
            of("372af4dd-e3e8-4d54-890f-0295622cdc6a", "volumes/kubernetes.io~csi/pv-o2"),
            of("37f7746e-bb52-49af-84c7-9b56f3c66133", "volumes/kubernetes.io~csi/pv-o4"),
            of("56c761a9-7235-4653-8bb4-0bc32b101cb4", "volumes/kubernetes.io~configmap/cm"),
            of("b4a500f1-8b2f-41b7-8abf-569e62b6e156", "volumes/kubernetes.io~csi/pv-o1"),
            of("b6a9efdd-fe61-45b2-8550-cbbf865cadd8", "volumeDevices/kubernetes.io~csi/pv-blk-gone"),
            of("dc42b15b-306b-4b21-8509-ddc9e446177e", "volumes/kubernetes.io~csi/pv-o5"),
            // As kubelets before 1.24 staged.
            node.root().join("plugins/kubernetes.io/csi/pv/pv-o5"),
        ]
        .into();
        assert_eq!(found.keys().cloned().collect::<BTreeSet<_>>(), expected);
        assert!(found.values().all(|foreign| !foreign.mounted), "{found:#?}");
        let with_key =
            found.values().filter(|foreign| foreign.key.is_some()).map(|foreign| foreign.path.clone());
        // pv-o2 and pv-blk-gone have no vol_data.json, and the configMap is of a type that is not volumed's.
        assert_eq!(with_key.count(), 5, "{found:#?}");
        node.stop().await;
    });
}

/// Returns what is shown of a root that a dying kubelet left, whatever the places are called.
async fn leaked(recording: &str) -> BTreeSet<Shown> {
    let (node, found) = found(recording).await;
    node.stop().await;
    found.values().map(shown).collect()
}

fn of_kvd(handle: &str, pod: Option<&str>, mounted: bool) -> Shown {
    let key = format!("kubernetes.io/csi/kvd.csi.example.com^{handle}");
    (Some(key), pod.map(ToOwned::to_owned), mounted)
}

#[test]
fn staged_volumes_without_a_pod_are_shown() {
    isolated("kubelet::foreign::staged_volumes_without_a_pod_are_shown", async {
        // Killed between staging and publishing, and the pod deleted: only the block volume is left.
        assert_eq!(leaked("i2/restarted-pod-gone").await, [of_kvd("vol-i2-blk", None, false)].into());
        // Killed during staging.
        let both = [of_kvd("vol-i3", None, false), of_kvd("vol-i3-blk", None, false)];
        assert_eq!(leaked("i3/restarted-pod-gone").await, both.into());
        // Killed during unstaging: the file system is mounted.
        let both = [of_kvd("vol-i5", None, true), of_kvd("vol-i5-blk", None, false)];
        assert_eq!(leaked("i5/restarted").await, both.into());
        // A second reboot, and the pod gone meanwhile: of a driver without a mount there was nothing to find.
        let handle = "1479bd12-e5ba-11f1-8063-0a78bfbb37c1";
        let key = format!("kubernetes.io/csi/hostpath.csi.k8s.io^{handle}");
        assert_eq!(leaked("i7/kubelet-after-reboot-pod-gone").await, [(Some(key), None, false)].into());
    });
}

#[test]
fn a_published_block_device_without_a_pod_is_shown() {
    isolated("kubelet::foreign::a_published_block_device_without_a_pod_is_shown", async {
        let pod = "ed7f0fc3-5e25-41ee-8032-900060a093d5";
        let found = leaked("i4/driver-back").await;
        assert!(found.contains(&of_kvd("vol-i4-blk", Some(pod), true)), "{found:#?}");
        let keys: BTreeSet<_> = found.into_iter().map(|(key, ..)| key).collect();
        assert_eq!(keys.len(), 1, "nothing else was left");
    });
}
