//! The bundled driver under csi-sanity, the CSI project's own suite of conformance tests (csi.md 9.7): every file system, mounted, and
//! raw block, each on a backing file system and in directories of its own. No spec may fail, and none may be skipped that a capability of
//! the driver asks for.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use looped::calls::{As, From};
use looped::{Loop, path, run};
use serde_json::Value;
use volumed::proto::csi::controller_client::ControllerClient;
use volumed::proto::csi::identity_client::IdentityClient;
use volumed::proto::csi::{self, controller_service_capability, plugin_capability};

const MIB: u64 = 1 << 20;

/// The least that every file system can be made in.
const SIZE: u64 = 320 * MIB;

/// How many specs of csi-test v5.6.0 (tests/drivers/sanity/go.mod) a driver with these capabilities has to pass. Whoever
/// takes another version looks at what is new in it and at `SKIPPED`.
const PASSED: usize = 83;

/// Why a spec may be skipped: what csi-sanity says, and the capability that the driver must not have then.
const SKIPPED: [(&str, &str); 6] = [
    // A volume is where its node is: there is nothing to attach.
    ("ControllerPublishVolume not supported", "PUBLISH_UNPUBLISH_VOLUME"),
    ("ControllerUnpublishVolume not supported", "PUBLISH_UNPUBLISH_VOLUME"),
    ("Controller Publish, UnpublishVolume not supported", "PUBLISH_UNPUBLISH_VOLUME"),
    // There are no mutable parameters: what a volume has is its size, and that has a call of its own.
    ("Modify Volume not supported", "MODIFY_VOLUME"),
    ("ControllerModifyVolume not supported", "MODIFY_VOLUME"),
    // A snapshot is on its volume's node; it cannot be asked for on another.
    ("SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported", "SNAPSHOT_ACCESSIBILITY_CONSTRAINTS"),
];

/// The specs that csi-test itself has switched off (`PIt`), whatever driver runs.
const PENDING: [&str; 1] = [
    "Controller Service [Controller Server] ListVolumes pagination should detect volumes added between pages and \
     accept tokens when the last volume from a page is deleted",
];

/// What every call gets, and nobody may find in the driver's log.
const SECRET: &str = "nobody-shall-read-this";

/// The calls that csi-sanity has a section of secrets for.
const SECRETS: [&str; 10] = [
    "CreateVolumeSecret",
    "DeleteVolumeSecret",
    "ControllerValidateVolumeCapabilitiesSecret",
    "NodeStageVolumeSecret",
    "NodePublishVolumeSecret",
    "CreateSnapshotSecret",
    "DeleteSnapshotSecret",
    "ControllerExpandVolumeSecret",
    "ListSnapshotsSecret",
    "GetSnapshotSecret",
];

#[test]
fn it_passes_with_ext4() {
    passes("it_passes_with_ext4", "ext4", Some("ext4"));
}

#[test]
fn it_passes_with_xfs() {
    passes("it_passes_with_xfs", "xfs", Some("xfs"));
}

#[test]
fn it_passes_with_btrfs() {
    passes("it_passes_with_btrfs", "btrfs", Some("btrfs"));
}

#[test]
fn it_passes_with_block_devices() {
    passes("it_passes_with_block_devices", "ext4", None);
}

#[test]
fn it_passes_with_block_devices_on_xfs() {
    passes("it_passes_with_block_devices_on_xfs", "xfs", None);
}

/// Runs the whole suite; `fs_type` is the volumes', none is raw block.
#[track_caller]
fn passes(test: &str, backing: &str, fs_type: Option<&str>) {
    let Some(sanity) = foreign::program(test, "VOLUMED_TEST_CSI_SANITY") else { return };
    let driver = Loop::on(backing, "6G");
    if let Some(fs_type) = fs_type {
        assert_is_made(&driver, fs_type);
    }
    let at = |name: &str| driver.host.path(name);
    let file = |name: &str, text: &str| {
        fs::write(at(name), text).expect("a file");
        at(name).display().to_string()
    };
    // The suite's capability names no file system: the class does. What a provisioner or a snapshotter adds comes along.
    let class = fs_type.map_or_else(|| "allocation: thin".to_owned(), |fs_type| format!("fsType: {fs_type}"));
    let class = file("class.yaml", &format!("{class}\ncsi.storage.k8s.io/pvc/name: claim\n"));
    let snapshots = file("snapshots.yaml", "csi.storage.k8s.io/volumesnapshot/name: snapshot\n");
    let secrets: String = SECRETS.iter().map(|call| format!("{call}:\n  key: {SECRET}\n")).collect();
    let secrets = file("secrets.yaml", &secrets);
    let (report, mut command) = (at("report.json"), Command::new(sanity));
    command
        .arg(format!("-csi.endpoint={}", path(&at("csi.sock"))))
        // It makes both directories itself, and removes them.
        .arg(format!("-csi.mountdir={}", path(&at("mount"))))
        .arg(format!("-csi.stagingdir={}", path(&at("stage"))))
        .arg(format!("-csi.testvolumeaccesstype={}", if fs_type.is_some() { "mount" } else { "block" }))
        .args([format!("-csi.testvolumesize={SIZE}"), format!("-csi.testvolumeexpandsize={}", SIZE * 2)])
        .arg(format!("-csi.testvolumeparameters={class}"))
        .arg(format!("-csi.testsnapshotparameters={snapshots}"))
        .arg(format!("-csi.secrets={secrets}"))
        .arg(format!("-ginkgo.json-report={}", path(&report)))
        .arg("-ginkgo.no-color");
    let output = command.output().expect("csi-sanity can be run");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}\n{}", driver.log());
    judge(&specs(&report), &claimed(&driver));
    for left in ["mount", "stage"] {
        assert!(!at(left).try_exists().expect("it can be looked at"), "{left} is left");
    }
    assert!(!driver.log().contains(SECRET), "a secret is in the log");
    driver.assert_nothing_left();
}

/// The class that the suite is given really makes volumes of this file system.
fn assert_is_made(driver: &Loop, fs_type: &str) {
    let used = As::file_system("");
    let made = driver.create_as("probe", &used, SIZE, From::Nothing, &[("fsType", fs_type)]);
    let id = made.expect("it can be made").volume_id;
    let staged = driver.staging("probe");
    driver.stage(&id, &staged, &used).expect("it can be staged");
    let found = run("findmnt", &["-n", "-o", "FSTYPE", path(&staged)]);
    assert_eq!(found.trim(), fs_type);
    driver.unstage(&id, &staged).expect("it can be unstaged");
    driver.delete(&id).expect("it can be deleted");
}

/// One spec: its name, how it ended, and what it said.
#[derive(Debug)]
struct Spec {
    name: String,
    state: String,
    message: String,
}

/// Reads Ginkgo's report.
fn specs(report: &Path) -> Vec<Spec> {
    let text = fs::read(report).expect("csi-sanity wrote its report");
    let report: Value = serde_json::from_slice(&text).expect("a report");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let specs = report[0]["SpecReports"].as_array().expect("specs");
    // What is around the specs (BeforeSuite and its kin) is no spec.
    let specs = specs.iter().filter(|spec| spec["LeafNodeType"] == "It");
    specs
        .map(|spec| {
            let groups = spec["ContainerHierarchyTexts"].as_array().into_iter().flatten();
            let names: Vec<String> = groups.chain([&spec["LeafNodeText"]]).map(text).collect();
            let (state, message) = (text(&spec["State"]), text(&spec["Failure"]["Message"]));
            Spec { name: names.join(" "), state, message }
        })
        .collect()
}

/// Every spec passed, but those that `SKIPPED` and `PENDING` name.
fn judge(specs: &[Spec], claimed: &BTreeSet<String>) {
    let (mut passed, mut reasons) = (0, BTreeSet::new());
    for spec in specs {
        match spec.state.as_str() {
            "passed" => passed += 1,
            "pending" => assert!(PENDING.contains(&spec.name.as_str()), "switched off: {spec:?}"),
            "skipped" => {
                let known = SKIPPED.iter().find(|(said, _)| spec.message.eq_ignore_ascii_case(said));
                let (said, capability) =
                    known.unwrap_or_else(|| panic!("skipped for no known reason: {spec:?}"));
                assert!(!claimed.contains(*capability), "skipped, and {capability} is claimed: {spec:?}");
                reasons.insert(*said);
            }
            _ => panic!("it did not pass: {spec:?}"),
        }
    }
    assert_eq!(passed, PASSED, "another number of specs ran");
    let idle: Vec<_> = SKIPPED.iter().filter(|(said, _)| !reasons.contains(said)).collect();
    assert!(idle.is_empty(), "nothing was skipped for these reasons: {idle:?}");
}

/// The names of the capabilities that the driver says it has, of its controller and of itself.
fn claimed(driver: &Loop) -> BTreeSet<String> {
    let controller = driver.call(async |channel| {
        ControllerClient::new(channel)
            .controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {})
            .await
    });
    let plugin = driver.call(async |channel| {
        IdentityClient::new(channel).get_plugin_capabilities(csi::GetPluginCapabilitiesRequest {}).await
    });
    let controller = controller.expect("an answer").capabilities.into_iter().map(|one| match one.r#type {
        Some(controller_service_capability::Type::Rpc(rpc)) => rpc.r#type().as_str_name(),
        None => "",
    });
    let plugin = plugin.expect("an answer").capabilities.into_iter().map(|one| match one.r#type {
        Some(plugin_capability::Type::Service(service)) => service.r#type().as_str_name(),
        Some(plugin_capability::Type::VolumeExpansion(_)) | None => "",
    });
    let claimed: BTreeSet<String> = controller.chain(plugin).map(str::to_owned).collect();
    assert!(
        claimed.contains("CREATE_DELETE_VOLUME") && claimed.contains("CONTROLLER_SERVICE"),
        "{claimed:?}"
    );
    claimed
}
