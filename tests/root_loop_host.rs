//! The bundled driver beside others: registered with volumed as a kubelet would have it, and several of it on one host.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use looped::calls::{As, From};
use looped::{Loop, path, run};
use support::{TestHost, until};
use volumed::proto::csi;
use volumed::proto::csi::controller_client::ControllerClient;
use volumed::proto::csi::node_client::NodeClient;

const MIB: u64 = 1 << 20;

/// A driver of its own beside `driver`, registered in a directory.
fn beside(host: &TestHost, name: &str, registry: &std::path::Path) -> support::Process {
    let mut command = Command::new(looped::PROGRAM);
    command.args(["--name", name, "--node-id", "n", "--dir", path(&host.path(&format!("images-{name}")))]);
    command.args(["--endpoint", &format!("unix://{}", path(&host.path(&format!("{name}.sock"))))]);
    command.arg("--plugins-registry").arg(registry);
    host.spawn(command, &format!("{name}.log"))
}

#[test]
fn volumed_learns_of_it_and_mounts_its_volumes() {
    let driver = Loop::new();
    let registry = driver.host.root.join("plugins_registry");
    fs::create_dir_all(&registry).unwrap();
    let name = "loop.example.com";
    let process = beside(&driver.host, name, &registry);
    let _volumed = driver.host.volumed(&[]);
    until("registered", || fs::read_to_string(&process.log).unwrap_or_default().contains("registered"));
    let socket = registry.join(format!("{name}-reg.sock"));
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    driver.host.manifest(
        "pod.yaml",
        &format!(
            "apiVersion: v1
kind: Pod
metadata: {{name: p, uid: u1}}
spec:
  securityContext: {{fsGroup: 4711}}
  containers:
  - name: main
    image: example
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes:
  - name: data
    csi: {{driver: {name}, volumeAttributes: {{size: 32Mi}}}}
---
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {{name: {name}}}
spec: {{attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Persistent, Ephemeral]}}
"
        ),
    );
    let target = driver.host.target("u1", "data");
    until("published", || driver.host.mounts().contains(&target));
    fs::write(target.join("file"), "x").unwrap();
    driver.host.remove_manifest("pod.yaml");
    until("unpublished", || driver.host.mounts().is_empty());
    let volumes = driver.host.path(&format!("images-{name}")).join("volumes");
    until("deleted", || fs::read_dir(&volumes).unwrap().next().is_none());
    process.signal("-TERM");
    assert!(process.ended().success());
    assert!(!socket.exists(), "the registration stays");
}

#[test]
fn instances_run_side_by_side_and_know_nothing_of_each_other_s_volumes() {
    let mut driver = Loop::new();
    let registry = driver.host.path("registry");
    let other = beside(&driver.host, "other.example.com", &registry);
    until("both are registered", || registry.join("other.example.com-reg.sock").exists());
    let used = As::block();
    driver.create("v", &used, MIB, From::Nothing);
    driver.stage("v", &driver.staging("v"), &used).unwrap();
    // The other starts again: what the first has attached stays.
    other.kill();
    let _other = beside(&driver.host, "other.example.com", &registry);
    until("it is back", || {
        let log = fs::read_to_string(driver.host.path("other.example.com.log")).unwrap_or_default();
        log.matches(" ready ").count() == 2
    });
    assert_eq!(support::loop_devices(&driver.dir).len(), 1);
    driver.unstage("v", &driver.staging("v")).unwrap();
    driver.restart(&[]);
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn what_it_is_told_about_capacity_and_topology_is_what_it_does() {
    let driver = Loop::new();
    let info = driver
        .call(async |channel| NodeClient::new(channel).node_get_info(csi::NodeGetInfoRequest {}).await)
        .unwrap();
    let here = info.accessible_topology.expect("a topology");
    let segments = [("loop.csi.volumed.io/node".to_owned(), "elsewhere".to_owned())].into();
    let capacity = |topology: &csi::Topology| {
        let request =
            csi::GetCapacityRequest { accessible_topology: Some(topology.clone()), ..Default::default() };
        driver
            .call(async |channel| ControllerClient::new(channel).get_capacity(request).await)
            .unwrap()
            .available_capacity
    };
    let before = capacity(&here);
    assert_eq!(capacity(&csi::Topology { segments }), 0);
    driver.create("v", &As::block(), 64 * MIB, From::Nothing);
    let promised = before - capacity(&here);
    // Others use the disk meanwhile.
    assert!(promised > 32 << 20, "a thin volume of 64 MiB took {promised} bytes of the capacity");
}

#[test]
fn a_volume_is_made_where_it_is_asked_for_or_not_at_all() {
    let driver = Loop::new();
    let segments = |node: &str| csi::Topology {
        segments: [("loop.csi.volumed.io/node".to_owned(), node.to_owned())].into(),
    };
    let create = |name: &str, requisite: &[&str], preferred: &[&str]| {
        let all = |nodes: &[&str]| nodes.iter().map(|node| segments(node)).collect();
        let request = csi::CreateVolumeRequest {
            name: name.to_owned(),
            volume_capabilities: As::block().capability().into_iter().collect(),
            accessibility_requirements: Some(csi::TopologyRequirement {
                requisite: all(requisite),
                preferred: all(preferred),
            }),
            ..Default::default()
        };
        driver.call(async |channel| ControllerClient::new(channel).create_volume(request).await)
    };
    let made = create("here", &["elsewhere", "test-node"], &["elsewhere"]).unwrap().volume.unwrap();
    assert_eq!(made.accessible_topology, [segments("test-node")]);
    create("preferred", &[], &["elsewhere", "test-node"]).unwrap();
    let why = looped::calls::refused(create("there", &["elsewhere"], &[]), tonic::Code::ResourceExhausted);
    assert!(why.contains("test-node"), "{why}");
    assert!(!driver.dir.join("volumes/there").try_exists().unwrap());
    driver.delete("here").unwrap();
    driver.delete("preferred").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn devices_have_direct_io_where_the_host_s_file_system_allows_it() {
    for fs_type in ["ext4", "xfs"] {
        let driver = Loop::on(fs_type, "512M");
        for used in [As::file_system("ext4"), As::block()] {
            driver.create("v", &used, 32 * MIB, From::Nothing);
            let staging = driver.staging("v");
            driver.stage("v", &staging, &used).unwrap();
            let [device] = support::loop_devices(&driver.dir).try_into().expect("one device");
            let name = device.file_name().unwrap().to_str().unwrap();
            let direct = fs::read_to_string(format!("/sys/block/{name}/loop/dio")).unwrap();
            assert_eq!(direct.trim(), "1", "{used:?} on {fs_type}");
            driver.unstage("v", &staging).unwrap();
            driver.delete("v").unwrap();
        }
        driver.assert_nothing_left();
    }
}

#[test]
fn wrong_settings_say_which() {
    let wrong = |arguments: &[&str]| {
        let output = Command::new(looped::PROGRAM).args(arguments).output().expect("it can be run");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    assert_eq!(wrong(&["--nonsense"]).0, Some(64));
    let (code, said) = wrong(&["--node-id", "-"]);
    assert!(code == Some(78) && said.contains("node-id"), "{code:?} {said}");
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("precious"), "").unwrap();
    let socket = directory.path().join("s.sock");
    let (code, said) =
        wrong(&["--node-id", "n", "--dir", path(directory.path()), "--endpoint", path(&socket)]);
    assert!(
        code == Some(1) && said.contains("precious") && said.contains("shared with nothing else"),
        "{said}"
    );
    let left = run("ls", &["-A", path(directory.path())]);
    assert_eq!(left.trim(), "precious", "something was made in it");
}
