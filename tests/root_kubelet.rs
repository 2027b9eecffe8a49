//! The same objects, the same drivers: what lies on disk, what is mounted and what the drivers are sent is compared with what a
//! real kubelet 1.36.2 left and sent (`tests/fixtures/kubelet-1.36/README.md`). Needs root; each test runs in
//! namespaces of its own.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    unreachable_pub,
    reason = "a test: its helpers may fail loudly, spawn tasks and look at paths on a runtime of their own"
)]

mod kubelet;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use volumed::model::{HoldCode, Status};

use kubelet::compare::{Difference, Only, assert_in_order, assert_same, assert_same_calls};
use kubelet::drivers::{A, B, C, D, H, J};
use kubelet::node::{Node, TOKEN_EXPIRES, isolated};
use kubelet::recording::{self, Call};
use kubelet::shown::{held, published};

const RUNNING: &[&str] = &[
    "a/running",
    "a/one-pod-removed",
    "b/running",
    "b/one-pod-removed",
    "c/running",
    "d/running",
    "h/running",
    "j/running",
];

/// All differences. None is `Only::Ours`: nothing of ours is unknown to a kubelet.
const ON_PURPOSE: &[Difference] = &[
    Difference {
        only: Only::Theirs,
        recordings: RUNNING,
        path: "pods/*/containers/**",
        reason: "the kubelet's and the container runtime's own; volumed runs no containers",
    },
    Difference { only: Only::Theirs, recordings: RUNNING, path: "pods/*/etc-hosts", reason: "as above" },
    Difference {
        only: Only::Theirs,
        // Not h: its pod has an emptyDir, and so volumed makes the directory, too.
        recordings: &[
            "a/running",
            "a/one-pod-removed",
            "b/running",
            "b/one-pod-removed",
            "c/running",
            "d/running",
            "j/running",
        ],
        path: "pods/*/plugins",
        reason: "a kubelet makes it for every pod, volumed when an emptyDir needs it",
    },
    Difference {
        only: Only::Theirs,
        recordings: &["b/running", "b/one-pod-removed"],
        path: "pods/*/volumes",
        reason: "a kubelet makes it for every pod, volumed when a file-system volume needs it",
    },
    Difference {
        only: Only::Theirs,
        recordings: &["d/all-removed"],
        path: "plugins/kubernetes.io/csi/kvd.csi.example.com/*/globalmount",
        reason: "a kubelet leaves the empty staging directory of a driver without staging for ever; volumed removes it",
    },
    Difference {
        only: Only::Theirs,
        recordings: &["d/all-removed"],
        path: "plugins/kubernetes.io/csi/noop.csi.example.com/*/globalmount",
        reason: "as above",
    },
    Difference {
        only: Only::Theirs,
        recordings: &["d/all-removed"],
        path: "plugins/kubernetes.io/csi/*/*",
        reason: "as above: the volume's directory, which holds the staging directory",
    },
];

/// The long names of h.
const H_EMPTY_DIR: &str = "h1/vvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvvv";
const H_INLINE: &str = "h1/iiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiiii";

/// Each request once, as if all tokens had been given at the same time: a kubelet that was restarted asked for new ones.
fn each_once(mut calls: Vec<Call>) -> Vec<Call> {
    for call in &mut calls {
        let tokens = call.request.pointer_mut("/volumeContext/csi.storage.k8s.io~1serviceAccount.tokens");
        if let Some(Value::String(tokens)) = tokens {
            *tokens = tokens.replace("2026-11-21T15:40:40Z", TOKEN_EXPIRES);
        }
    }
    let by_text: BTreeMap<String, Call> = calls.into_iter().map(|call| (call.text(), call)).collect();
    by_text.into_values().collect()
}

/// Asserts which volumes are refused to their pods as not supported, and which are up.
fn assert_held(status: &Status, not_supported: &[&str], up: &[&str]) {
    let expected: BTreeMap<String, HoldCode> =
        not_supported.iter().map(|name| ((*name).to_owned(), HoldCode::NotSupported)).collect();
    assert_eq!(held(status), expected);
    assert_eq!(published(status), up.iter().map(|name| (*name).to_owned()).collect());
}

// === the roots ===

#[test]
fn a_shared_staged_volume_leaves_the_root_that_a_kubelet_leaves() {
    isolated("a_shared_staged_volume_leaves_the_root_that_a_kubelet_leaves", async {
        let mut node = Node::start(A);
        let status = node.wish(recording::objects("a/running")).await;
        assert_held(&status, &[], &["a1/data", "a2/other-name"]);
        assert_same("a/running", &node, ON_PURPOSE);
        let calls = node.calls();
        let staged = calls.iter().filter(|call| call.method == "NodeStageVolume").count();
        assert_eq!((staged, calls.len()), (1, 3), "staged once, published twice: {calls:#?}");
        let status = node.wish(recording::objects("a/one-pod-removed")).await;
        assert_held(&status, &[], &["a2/other-name"]);
        assert_same("a/one-pod-removed", &node, ON_PURPOSE);
        node.wish(recording::objects("a/all-removed")).await;
        assert_same("a/all-removed", &node, ON_PURPOSE);
        assert_in_order(&node.calls());
        node.stop().await;
    });
}

#[test]
fn block_volumes_leave_the_root_that_a_kubelet_leaves() {
    isolated("block_volumes_leave_the_root_that_a_kubelet_leaves", async {
        let mut node = Node::start(B);
        let status = node.wish(recording::objects("b/running")).await;
        assert_held(&status, &[], &["b1/blk", "b1/blk2", "b2/blk"]);
        assert_same("b/running", &node, ON_PURPOSE);
        let status = node.wish(recording::objects("b/one-pod-removed")).await;
        assert_held(&status, &[], &["b2/blk"]);
        assert_same("b/one-pod-removed", &node, ON_PURPOSE);
        node.wish(recording::objects("b/all-removed")).await;
        assert_same("b/all-removed", &node, ON_PURPOSE);
        let calls = node.calls();
        assert_in_order(&calls);
        let count = |method: &str| calls.iter().filter(|call| call.method == method).count();
        assert_eq!([count("NodeStageVolume"), count("NodePublishVolume")], [2, 3]);
        node.stop().await;
    });
}

#[test]
fn inline_volumes_leave_the_root_that_a_kubelet_leaves() {
    isolated("inline_volumes_leave_the_root_that_a_kubelet_leaves", async {
        let mut node = Node::start(C);
        let status = node.wish(recording::objects("c/running")).await;
        assert_held(&status, &[], &["c1/scratch", "c1/scratch2"]);
        assert_same("c/running", &node, ON_PURPOSE);
        node.wish(recording::objects("c/all-removed")).await;
        assert_same("c/all-removed", &node, ON_PURPOSE);
        assert_in_order(&node.calls());
        node.stop().await;
    });
}

#[test]
fn drivers_without_staging_get_the_requests_and_leave_the_root_that_a_kubelet_sends_and_leaves() {
    isolated(
        "drivers_without_staging_get_the_requests_and_leave_the_root_that_a_kubelet_sends_and_leaves",
        async {
            let mut node = Node::start(D);
            let status = node.wish(recording::objects("d/running")).await;
            assert_held(&status, &[], &["d1/nostage", "d1/nostage2", "d1/nostageblk"]);
            assert_same("d/running", &node, ON_PURPOSE);
            let quiet = status.volumes.values().flat_map(|volume| volume.publications.values());
            let quiet: Vec<_> = quiet.filter(|p| p.not_a_mount_point).flat_map(|p| p.names.clone()).collect();
            assert_eq!(quiet, ["nostage"], "the status says which target is not a mount point");
            node.wish(recording::objects("d/all-removed")).await;
            assert_same("d/all-removed", &node, ON_PURPOSE);
            let (no_op, kvd): (Vec<Call>, Vec<Call>) =
                node.calls().into_iter().partition(|call| call.driver == "noop.csi.example.com");
            assert_same_calls(kvd, each_once(recording::calls("d", &["kvd.csi.example.com"])));
            let short = |call: &Call| {
                (call.method.clone(), call.request["volumeId"].as_str().unwrap_or("").to_owned())
            };
            let no_op: Vec<(String, String)> = no_op.iter().map(short).collect();
            assert_eq!(no_op, recording::short_calls("d", "noop.csi.example.com"));
            node.stop().await;
        },
    );
}

#[test]
fn odd_names_leave_the_root_that_a_kubelet_leaves() {
    isolated("odd_names_leave_the_root_that_a_kubelet_leaves", async {
        let mut node = Node::start(H);
        let status = node.wish(recording::objects("h/running")).await;
        let up = ["odd1", "odd2", "odd3", "odd4", "odd5", "odd6"].map(|name| format!("h1/{name}"));
        let up: Vec<&str> = up.iter().map(String::as_str).chain([H_EMPTY_DIR, H_INLINE]).collect();
        assert_held(&status, &[], &up);
        assert_same("h/running", &node, ON_PURPOSE);
        let handles: BTreeSet<String> = recording::objects("h/running")
            .iter()
            .filter_map(|object| Some(object.pointer("/spec/csi/volumeHandle")?.as_str()?.to_owned()))
            .collect();
        assert_eq!(handles.len(), 6);
        let staged = node.calls().into_iter().filter(|call| call.method == "NodeStageVolume");
        let staged: BTreeSet<String> =
            staged.filter_map(|call| Some(call.request["volumeId"].as_str()?.to_owned())).collect();
        assert_eq!(staged, handles, "every handle reaches the driver as it is written");
        node.wish(recording::objects("h/all-removed")).await;
        assert_same("h/all-removed", &node, ON_PURPOSE);
        assert_in_order(&node.calls());
        node.stop().await;
    });
}

// === the requests ===

#[test]
fn drivers_get_the_requests_that_a_kubelet_sends() {
    isolated("drivers_get_the_requests_that_a_kubelet_sends", async {
        let mut node = Node::start(J);
        let status = node.wish(recording::objects("j/running")).await;
        assert_held(&status, &[], &["j1/ablk", "j1/cc", "j1/inl", "j1/rox", "j1/rwo", "j1/rwop", "j1/rwx"]);
        assert_same("j/running", &node, ON_PURPOSE);
        node.wish(recording::objects("j/all-removed")).await;
        assert_same("j/all-removed", &node, ON_PURPOSE);
        let mut theirs = each_once(recording::calls(
            "j",
            &["a.kvd.example.com", "b.kvd.example.com", "c.kvd.example.com"],
        ));
        // The objects are those of a claim that has grown already.
        theirs.retain(|call| call.method != "NodeExpandVolume");
        let count = |method: &str| theirs.iter().filter(|call| call.method == method).count();
        let counts =
            ["NodeStageVolume", "NodePublishVolume", "NodeUnpublishVolume", "NodeUnstageVolume"].map(count);
        assert_eq!(counts, [6, 7, 7, 6], "what there is to compare with");
        let ours = node.calls();
        assert_in_order(&ours);
        assert_same_calls(ours, theirs);
        node.stop().await;
    });
}

#[test]
fn an_inline_volume_gets_its_own_handle_and_the_pod_info() {
    isolated("an_inline_volume_gets_its_own_handle_and_the_pod_info", async {
        const POD: &str = "e3c2e548-0d2f-4cac-8642-db8f01d56f21";
        let mut node = Node::start(C);
        node.wish(recording::objects("c/running")).await;
        let recorded = recording::root("c/running");
        let expected = |volume: &str, mut rest: Value| {
            let directory = format!("pods/{POD}/volumes/kubernetes.io~csi/{volume}");
            let data = recorded[&format!("{directory}/vol_data.json")].content.as_deref().expect("a file");
            let data: Value = serde_json::from_str(data).expect("JSON");
            rest["volumeId"] = data["volumeHandle"].clone();
            rest["targetPath"] = json!(format!("{directory}/mount"));
            // csi.md 2.10: what CSIDriver.podInfoOnMount adds, here for an inline volume.
            for (key, value) in [
                ("csi.storage.k8s.io/pod.name", "c1"),
                ("csi.storage.k8s.io/pod.namespace", "default"),
                ("csi.storage.k8s.io/pod.uid", POD),
                ("csi.storage.k8s.io/serviceAccount.name", "default"),
                ("csi.storage.k8s.io/ephemeral", "true"),
            ] {
                rest["volumeContext"][key] = json!(value);
            }
            let (driver, method) = ("hostpath.csi.k8s.io".to_owned(), "NodePublishVolume".to_owned());
            Call { driver, method, request: rest }
        };
        let mode = json!({"mode": "SINGLE_NODE_WRITER"});
        let plain = json!({"volumeCapability": {"mount": {}, "accessMode": mode}});
        let full = json!({
            "volumeCapability": {"mount": {"fsType": "ext4"}, "accessMode": mode},
            "readonly": true,
            "secrets": {"user": "admin"},
            "volumeContext": {"a": "b", "size": "2Mi"},
        });
        assert_same_calls(node.calls(), vec![expected("scratch", plain), expected("scratch2", full)]);
        node.stop().await;
    });
}

#[test]
fn a_volume_waits_for_its_attachment_and_then_gets_its_context() {
    isolated("a_volume_waits_for_its_attachment_and_then_gets_its_context", async {
        let mut node = Node::start(J);
        let (attachments, others): (Vec<Value>, Vec<Value>) = recording::objects("j/running")
            .into_iter()
            .partition(|object| object["kind"] == "VolumeAttachment");
        assert_eq!(attachments.len(), 4);
        node.wish_unsettled(others.clone()).await;
        let unattached = |status: &Status| {
            let volumes = status.volumes.values();
            let blocked = volumes.flat_map(|volume| volume.blocked.iter().map(|b| b.cause.code.clone()));
            blocked.filter(|code| code == "not-attached").count()
        };
        // Not that of driver c: no CSIDriver says that it needs one, and it has no controller service. The others are up before
        // the wish is edited.
        let fits = |status: &Status| unattached(status) == 3 && published(status).len() == 4;
        node.until("the volumes of driver a wait, and no others", fits).await;
        assert!(node.calls().iter().all(|call| call.driver != "a.kvd.example.com"), "{:#?}", node.calls());
        node.wish(others.into_iter().chain(attachments).collect()).await;
        let published = node
            .calls()
            .into_iter()
            .find(|call| call.method == "NodePublishVolume" && call.request["volumeId"] == "a-rwop");
        let context = json!({"devicePath": "/dev/meta-a-rwop", "lun": "3"});
        assert_eq!(published.expect("it is published").request["publishContext"], context);
        node.stop().await;
    });
}

#[test]
fn a_volume_grows_with_the_request_that_a_kubelet_sends() {
    isolated("a_volume_grows_with_the_request_that_a_kubelet_sends", async {
        let mut node = Node::start(J);
        let mut objects = recording::objects("j/running");
        let claim = objects
            .iter_mut()
            .find(|object| object["kind"] == "PersistentVolumeClaim" && object["metadata"]["name"] == "rwo");
        // As it was before it had grown.
        claim.expect("the claim")["status"]["capacity"]["storage"] = json!("1Mi");
        node.wish(objects).await;
        let grown = |calls: Vec<Call>| -> Vec<Call> {
            calls.into_iter().filter(|call| call.method == "NodeExpandVolume").collect()
        };
        let mut theirs = grown(recording::calls("j", &["a.kvd.example.com"]));
        assert_eq!(theirs.len(), 2, "a kubelet asks twice: it does not note the size during a mount");
        theirs.truncate(1);
        assert_same_calls(grown(node.calls()), theirs);
        node.stop().await;
    });
}

// === what is not supported ===

/// The objects of j, whose driver a asks for a token that nobody has.
fn with_tokens_that_nobody_has() -> Vec<Value> {
    let mut objects = recording::objects("j/running");
    let driver = objects.iter_mut().find(|object| object["metadata"]["name"] == "a.kvd.example.com");
    driver.expect("the CSIDriver")["spec"]["tokenRequests"] = json!([{"audience": "nobody"}]);
    objects
}

#[test]
fn what_is_not_supported_is_held_and_stops_no_other_volume() {
    isolated("what_is_not_supported_is_held_and_stops_no_other_volume", async {
        let mut node = Node::start(J);
        let status = node.wish(with_tokens_that_nobody_has()).await;
        // A block volume gets no tokens.
        let up = ["j1/ablk", "j1/cc", "j1/inl", "j1/rox", "j1/rwx"];
        assert_held(&status, &["j1/rwo", "j1/rwop"], &up);
        let targets = node.calls().into_iter().filter(|call| call.method == "NodePublishVolume").count();
        assert_eq!(targets, up.len(), "nothing is called for what is held");
        node.stop().await;
    });
}

#[test]
fn a_volume_that_is_up_stays_when_its_driver_asks_for_what_is_not_supported() {
    isolated("a_volume_that_is_up_stays_when_its_driver_asks_for_what_is_not_supported", async {
        let mut node = Node::start(J);
        node.wish(recording::objects("j/running")).await;
        let (calls, mounts, tree) = (node.calls(), node.mounts(), node.tree());
        let status = node.wish(with_tokens_that_nobody_has()).await;
        assert_eq!(held(&status).get("j1/rwo"), Some(&HoldCode::NotSupported));
        assert_eq!(node.calls(), calls);
        assert_eq!(node.mounts(), mounts);
        assert_eq!(node.tree(), tree);
        // And it still goes when the pod goes.
        node.wish(recording::objects("j/all-removed")).await;
        assert_same("j/all-removed", &node, ON_PURPOSE);
        node.stop().await;
    });
}
