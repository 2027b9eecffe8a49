//! What a driver is told of the access mode and of writing: for every combination what a kubelet tells it (csi.md 2.8, 2.10).

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod support;

use std::collections::BTreeMap;

use serde_json::Value;
use support::objects::{block, csi_driver, device_user};
use support::{DRIVER, TestHost, claim, pod_using, until};

/// A PV's accessModes, and the mode that its driver is told: without SINGLE_NODE_MULTI_WRITER, and with it. Node calls look at the
/// first mode alone.
const MODES: [(&str, i64, i64); 11] = [
    ("", SINGLE_NODE_WRITER, SINGLE_NODE_MULTI_WRITER),
    ("ReadWriteOnce", SINGLE_NODE_WRITER, SINGLE_NODE_MULTI_WRITER),
    ("ReadWriteOncePod", SINGLE_NODE_WRITER, SINGLE_NODE_SINGLE_WRITER),
    ("ReadOnlyMany", MULTI_NODE_READER_ONLY, MULTI_NODE_READER_ONLY),
    ("ReadWriteMany", MULTI_NODE_MULTI_WRITER, MULTI_NODE_MULTI_WRITER),
    ("ReadWriteOnce, ReadOnlyMany", SINGLE_NODE_WRITER, SINGLE_NODE_MULTI_WRITER),
    ("ReadWriteOnce, ReadWriteMany", SINGLE_NODE_WRITER, SINGLE_NODE_MULTI_WRITER),
    ("ReadOnlyMany, ReadWriteOnce", MULTI_NODE_READER_ONLY, MULTI_NODE_READER_ONLY),
    ("ReadOnlyMany, ReadWriteMany", MULTI_NODE_READER_ONLY, MULTI_NODE_READER_ONLY),
    ("ReadWriteMany, ReadWriteOnce", MULTI_NODE_MULTI_WRITER, MULTI_NODE_MULTI_WRITER),
    ("ReadWriteMany, ReadOnlyMany, ReadWriteOnce", MULTI_NODE_MULTI_WRITER, MULTI_NODE_MULTI_WRITER),
];

const SINGLE_NODE_WRITER: i64 = 1;
const MULTI_NODE_READER_ONLY: i64 = 3;
const MULTI_NODE_MULTI_WRITER: i64 = 5;
const SINGLE_NODE_SINGLE_WRITER: i64 = 6;
const SINGLE_NODE_MULTI_WRITER: i64 = 7;

/// One volume: its modes, and who says that it is only read.
#[derive(Debug, Clone, Copy)]
struct Case {
    modes: &'static str,
    mode: i64,
    pod_reads: bool,
    source_reads: bool,
    is_block: bool,
}

impl Case {
    fn all(multi_writer: bool) -> Vec<Self> {
        let modes = MODES.map(|(modes, without, with)| (modes, if multi_writer { with } else { without }));
        let flags = (0..8).map(|bits| (bits & 1 != 0, bits & 2 != 0, bits & 4 != 0));
        let cases = flags.flat_map(|(pod_reads, source_reads, is_block)| {
            modes.map(|(modes, mode)| Self { modes, mode, pod_reads, source_reads, is_block })
        });
        cases.collect()
    }

    /// PV, claim and pod.
    fn manifest(&self, name: &str) -> String {
        let Self { modes, pod_reads, source_reads, is_block, .. } = self;
        let mut claim = claim(name)
            .replace("[ReadWriteOnce]", &format!("[{modes}]"))
            .replace("    volumeHandle", &format!("    readOnly: {source_reads}\n    volumeHandle"));
        let mut pod = pod_using(name, &format!("uid-{name}"), name)
            .replace("claimName: ", &format!("readOnly: {pod_reads}, claimName: "));
        if *is_block {
            (claim, pod) = (block(&claim), device_user(&pod));
        }
        format!("{claim}---\n{pod}")
    }
}

/// The requests of a method, by volume.
fn requests(host: &TestHost, method: &str) -> BTreeMap<String, Value> {
    let calls = host.calls(&[method]).into_iter();
    calls.map(|(_, request)| (request["volume_id"].as_str().expect("an id").to_owned(), request)).collect()
}

fn every_combination(multi_writer: bool) {
    let host = TestHost::new();
    let _driver =
        host.fakecsi(if multi_writer { &["--no-mount", "--multi-writer"] } else { &["--no-mount"] });
    let _daemon = host.volumed(&[]);
    let cases: BTreeMap<String, Case> =
        Case::all(multi_writer).into_iter().enumerate().map(|(i, case)| (format!("v{i}"), case)).collect();
    let manifests: Vec<String> = cases.iter().map(|(name, case)| case.manifest(name)).collect();
    host.manifest("all.yaml", &manifests.join("---\n"));
    // Without a device a block volume never comes up; asked for it is.
    until("all are asked for", || requests(&host, "NodePublishVolume").len() == cases.len());
    let (stages, publishes) = (requests(&host, "NodeStageVolume"), requests(&host, "NodePublishVolume"));
    for (name, case) in &cases {
        let handle = format!("handle-{name}");
        for request in [&stages[&handle], &publishes[&handle]] {
            let capability = &request["volume_capability"];
            assert_eq!(capability["access_mode"], case.mode, "{multi_writer} {case:?}: {request}");
            assert_eq!(capability.get("block").is_some(), case.is_block, "{case:?}: {request}");
        }
        // Of who reads only the pod's own word counts; NodeStageVolume has no such field.
        assert_eq!(publishes[&handle]["readonly"], case.pod_reads, "{multi_writer} {case:?}");
        assert!(stages[&handle].get("readonly").is_none());
    }
}

#[test]
fn a_driver_is_told_of_every_combination_of_modes_what_a_kubelet_tells_it() {
    every_combination(false);
    every_combination(true);
}

#[test]
fn an_inline_volume_is_as_if_it_were_read_write_once() {
    for (flags, mode) in [(&[][..], SINGLE_NODE_WRITER), (&["--multi-writer"], SINGLE_NODE_MULTI_WRITER)] {
        for read_only in [false, true] {
            let host = TestHost::new();
            let _driver = host.fakecsi(flags);
            let _daemon = host.volumed(&[]);
            let spec = "attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Ephemeral]";
            host.manifest("driver.yaml", &csi_driver(DRIVER, spec));
            let source = format!("csi: {{driver: {DRIVER}, readOnly: {read_only}}}");
            let pod = pod_using("web", "uid-web", "data");
            host.manifest("web.yaml", &pod.replace("persistentVolumeClaim: {claimName: data}", &source));
            host.wait(&["pod/web"]);
            let calls = host.calls(&["NodeStageVolume", "NodePublishVolume"]);
            let [(_, request)] = calls.as_slice() else { unreachable!("{calls:?}") };
            assert_eq!(request["volume_capability"]["access_mode"], mode, "{request}");
            assert_eq!(request["readonly"], read_only, "{request}");
        }
    }
}
