//! What hangs is alone with it: a driver that never answers delays no other pod, no operator and no watchdog.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod support;

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use support::objects::pod_of;
use support::{DRIVER, PATIENCE, Process, TestHost, example, pod_with_claim, until};

const OTHER: &str = "other.csi.volumed.io";

/// Another example driver beside the host's own.
fn other_driver(host: &TestHost) -> Process {
    let state = host.path("other");
    fs::create_dir_all(&state).expect("the driver's directory");
    let mut command = Command::new(example("fakecsi"));
    command.args(["--name", OTHER]).arg("--endpoint").arg(host.path("other.sock")).arg("--state").arg(state);
    command.arg("--registry").arg(host.root.join("plugins_registry"));
    host.spawn(command, "other.log")
}

/// Starts the daemon as systemd does: its watchdog's variables name its own pid.
fn watched(host: &TestHost, notify: &str) -> Process {
    let config = host.path("volumed.toml");
    fs::write(&config, "").expect("an empty configuration");
    let mut command = Command::new("sh");
    command.args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_volumed")]).args([
        "--allow-private-mounts",
        "--node-name",
        "test-node",
    ]);
    let paths: [(&str, &PathBuf); 5] = [
        ("--manifest-dir", &host.manifests),
        ("--root-dir", &host.root),
        ("--state-dir", &host.state),
        ("--socket", &host.socket),
        ("--config", &config),
    ];
    for (option, path) in paths {
        command.arg(option).arg(path);
    }
    command.env("NOTIFY_SOCKET", notify).env("WATCHDOG_USEC", "2000000");
    host.spawn(command, "volumed.log")
}

fn empty_dir_pod(pod: &str) -> String {
    pod_of(&format!("name: {pod}, uid: uid-{pod}"), "emptyDir: {}")
}

/// Counts what the watchdog is fed, each time sooner than it bites.
fn assert_fed(notify: &UnixDatagram, times: usize) {
    let limit = Duration::from_secs(2);
    let mut fed = Instant::now();
    let mut seen = 0;
    let mut buffer = [0; 4096];
    while seen < times {
        let left = limit.checked_sub(fed.elapsed()).filter(|left| !left.is_zero());
        notify.set_read_timeout(Some(left.expect("the watchdog bites"))).expect("a time limit");
        let length = notify.recv(&mut buffer).expect("the watchdog is fed within its limit");
        if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == "WATCHDOG=1") {
            seen += 1;
            fed = Instant::now();
        }
    }
}

/// Throws away what was told up to now.
fn forget_told(notify: &UnixDatagram) {
    notify.set_nonblocking(true).expect("it can be asked without waiting");
    let mut buffer = [0; 4096];
    while notify.recv(&mut buffer).is_ok() {}
    notify.set_nonblocking(false).expect("it can be waited for");
}

#[test]
fn a_hung_driver_delays_no_other_pod_and_the_watchdog_is_fed() {
    let host = TestHost::new();
    let socket = host.path("notify");
    let notify = UnixDatagram::bind(&socket).expect("a socket");
    let (_driver, _other) = (host.fakecsi(&[]), other_driver(&host));
    host.faults(&json!([{"method": "NodePublishVolume", "action": "hang"}]));
    let _daemon = watched(&host, socket.to_str().expect("text"));
    let stuck = ["one", "two", "three", "four"];
    for pod in stuck {
        host.manifest(&format!("{pod}.yaml"), &pod_with_claim(pod, &format!("uid-{pod}"), pod));
    }
    until("every volume hangs", || host.calls(&["NodePublishVolume"]).len() == stuck.len());

    let begun = Instant::now();
    host.manifest("other.yaml", &pod_with_claim("other", "uid-other", "more").replace(DRIVER, OTHER));
    host.manifest("plain.yaml", &empty_dir_pod("plain"));
    host.wait(&["pod/other", "pod/plain"]);
    assert!(begun.elapsed() < PATIENCE / 3, "they wait for nobody: {:?}", begun.elapsed());
    assert!(host.mounts().contains(&host.target("uid-other", "more")));
    assert!(host.root.join("pods/uid-plain/volumes/kubernetes.io~empty-dir/data").is_dir());

    let asked = Instant::now();
    let list = host.volumectl(&["list"]);
    assert!(list.status.success() && asked.elapsed() < Duration::from_secs(2), "{list:?}");
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    for pod in stuck {
        let line = list.lines().find(|line| line.contains(&format!("pod/default/{pod}")));
        assert!(line.is_some_and(|line| line.contains("publishing")), "{pod}\n{list}");
    }
    forget_told(&notify);
    assert_fed(&notify, 5);
    // They go again while the others hang.
    host.remove_manifest("other.yaml");
    host.wait(&["--for=released", "pod/other"]);
    assert!(!host.mounts().contains(&host.target("uid-other", "more")));
    assert_fed(&notify, 2);
    assert_eq!(host.calls(&["NodePublishVolume"]).len(), stuck.len(), "the hung calls still hang");
}
