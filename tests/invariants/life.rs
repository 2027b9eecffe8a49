//! What restarts, reboots and lost inputs do not do: 23, 26, 28, 29, 34.

use std::process::Command;

use serde_json::json;

use super::*;
use crate::support::{Process, claim, pod_using};

/// A host with one pod that has its volume, and what was called and mounted for it.
struct Up {
    // In the order in which they must end.
    daemon: Process,
    driver: Process,
    host: TestHost,
    calls: usize,
    mounts: Vec<(PathBuf, u64)>,
}

impl Up {
    fn new() -> Self {
        Self::on(TestHost::new())
    }

    fn on(host: TestHost) -> Self {
        let driver = host.fakecsi(&[]);
        let daemon = host.volumed(&[("VOLUMED_TEST_BOOT_ID", "first")]);
        host.manifest("data.yaml", &claim("data"));
        host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
        host.wait(&["pod/web"]);
        let mounts = mount_ids(&host);
        let calls = of(&host, &NODE).len();
        Self { host, driver, daemon, calls, mounts }
    }

    /// Nobody was called and nothing was mounted or unmounted since.
    fn assert_untouched(&self, why: &str) {
        assert_eq!(mount_ids(&self.host), self.mounts, "{why}\n{}", self.host.logs());
        assert_eq!(of(&self.host, &NODE).len(), self.calls, "{why}: {:?}", of(&self.host, &NODE));
    }
}

/// Waits for several readings, the last begun longer than the removal grace after the first.
fn readings_a_grace_apart(host: &TestHost) {
    let began = std::time::Instant::now();
    until("readings a grace apart", || {
        let asked = host.volumectl(&["wait", "--timeout", "1s", "pod/none"]);
        asked.status.code() == Some(3) && began.elapsed() > std::time::Duration::from_millis(2500)
    });
}

fn status(host: &TestHost) -> String {
    String::from_utf8_lossy(&host.volumectl(&["status"]).stdout).into_owned()
}

#[test]
fn invariant_23_a_claim_in_use_that_is_removed_takes_nothing_from_its_pod() {
    let up = Up::new();
    up.host.remove_manifest("data.yaml");
    until("it is missed", || explain(&up.host, "web").contains("PersistentVolumeClaim"));
    readings_a_grace_apart(&up.host);
    up.assert_untouched("the claim and its volume are gone");
    // The takedown needs neither of them.
    release(&up.host, &["web"]);
    assert_released(&up.host);
    assert_eq!(names(&of(&up.host, &NODE))[up.calls..], [UNPUBLISH, UNSTAGE]);
}

#[test]
fn invariant_26_a_size_is_reached_before_another_is_asked_for_and_not_while_the_driver_says_in_use() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let _daemon = host.volumed(&[]);
    let size = |size: &str| {
        host.manifest("data.yaml", &claim("data").replace("storage: 1Gi", &format!("storage: {size}")));
    };
    size("1Gi");
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    assert!(of(&host, &[EXPAND]).is_empty(), "it has its size");
    host.faults(&json!([fails(EXPAND, 2, "after", "UNAVAILABLE")]));
    size("2Gi");
    until("it is asked for", || !of(&host, &[EXPAND]).is_empty());
    size("3Gi");
    let asked = || -> Vec<u64> {
        let calls = of(&host, &[EXPAND]);
        let bytes = |call: &Call| call.request["required_bytes"].as_u64().expect("a size") >> 30;
        calls.iter().map(bytes).collect()
    };
    until("both are reached", || of(&host, &[EXPAND]).iter().filter(|call| call.code == "OK").count() == 2);
    assert_eq!(asked(), [2, 2, 2, 3], "what is begun is finished first");
    // Smaller is never asked for.
    size("1Gi");
    readings_a_grace_apart(&host);
    assert_eq!(asked(), [2, 2, 2, 3]);
    // A driver that cannot do it now is not asked again while a pod uses the volume.
    host.faults(&json!([{"method": EXPAND, "action": {"code": "FAILED_PRECONDITION"}}]));
    size("4Gi");
    until("it is refused", || {
        of(&host, &[EXPAND]).last().is_some_and(|call| call.code == "FAILED_PRECONDITION")
    });
    until("it is shown", || host.explain().contains("expand: FAILED_PRECONDITION"));
    for _ in 0..3 {
        host.volumectl(&["retry"]);
        readings_a_grace_apart(&host);
    }
    assert_eq!(asked(), [2, 2, 2, 3, 4], "it is in use");
    host.faults(&json!([]));
    release(&host, &["web"]);
    assert_released(&host);
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    assert_eq!(asked(), [2, 2, 2, 3, 4, 4], "and grows when it comes up again");
    assert_lawful(&host);
}

#[test]
fn invariant_28_a_driver_that_goes_takes_no_mount_and_an_unmount_waits_for_it() {
    let Up { host, driver, daemon: _daemon, mounts, .. } = Up::new();
    driver.kill();
    until("the driver is shown as disconnected", || {
        String::from_utf8_lossy(&host.volumectl(&["drivers"]).stdout).contains("disconnected")
    });
    assert_eq!(mount_ids(&host), mounts);
    // Its registration goes too.
    for socket in fs::read_dir(host.root.join("plugins_registry")).expect("the registry").flatten() {
        fs::remove_file(socket.path()).expect("a socket");
    }
    host.remove_manifest("web.yaml");
    until("the takedown waits for the driver", || explain(&host, "web").contains(DRIVER));
    assert_eq!(mount_ids(&host), mounts, "nothing is unmounted without the driver");
    assert_eq!(records(&host).len(), 1);
    let _driver = host.fakecsi(&[]);
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
}

#[test]
fn invariant_29_a_restart_undoes_nothing_before_all_is_read_and_a_reboot_makes_all_anew() {
    let up = Up::new();
    up.daemon.signal("-KILL");
    let Up { host, daemon, calls, mounts, driver } = up;
    assert!(!daemon.ended().success());
    // Not all can be read: a file is broken, then the directory is another.
    host.manifest("web.yaml", "apiVersion: v1\nkind: Pod\nmetadata: {name: [");
    let boot = |name| [("VOLUMED_TEST_BOOT_ID", name)];
    let daemon = host.volumed(&boot("first"));
    until("the file is reported", || status(&host).contains("web.yaml"));
    readings_a_grace_apart(&host);
    let up = Up { host, driver, daemon, calls, mounts };
    up.assert_untouched("a file cannot be read");
    up.host.manifest("web.yaml", &pod_using("web", "uid-web", "data"));
    up.host.wait(&["pod/web"]);
    up.assert_untouched("what was recorded in this boot is so");

    // A reboot, and what is wanted is made again, a mount or not.
    let Up { host, driver, daemon, .. } = up;
    daemon.kill();
    driver.kill();
    host.unmount_all();
    let _driver = host.fakecsi(&[]);
    let daemon = host.volumed(&boot("second"));
    host.wait(&["pod/web"]);
    assert_eq!(names(&of(&host, &NODE)), [STAGE, PUBLISH, STAGE, PUBLISH]);
    assert!(host.mounts().contains(&host.target("uid-web", "data")));
    // Another reboot, and the pod is gone meanwhile: what the driver may remember is undone.
    daemon.kill();
    host.unmount_all();
    host.remove_manifest("web.yaml");
    let _daemon = host.volumed(&boot("third"));
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
    assert_eq!(names(&of(&host, &NODE))[4..], [UNPUBLISH, UNSTAGE]);
}

#[test]
fn invariant_34_what_cannot_be_read_is_not_gone() {
    // The manifests lie on a mount of their own.
    let host = TestHost::new();
    let mount = |options: &[&str]| {
        let mounted = Command::new("mount").args(options).arg(&host.manifests).status();
        assert!(mounted.expect("mount").success());
    };
    mount(&["-t", "tmpfs", "-o", "mode=755", "manifests"]);
    let mut up = Up::on(host);
    let host = &up.host;
    let web = host.manifests.join("web.yaml");
    let whole = pod_using("web", "uid-web", "data");
    for (why, bytes) in [
        ("cut", whole.as_bytes()[..whole.find("uid").expect("it has one")].to_vec()),
        ("empty", Vec::new()),
        ("zeros", vec![0; whole.len()]),
        ("not UTF-8", [whole.as_bytes(), b"# \xff\n"].concat()),
        ("no name", whole.replace("name: web, ", "").into_bytes()),
    ] {
        fs::write(&web, bytes).expect("the manifest");
        until(why, || status(host).contains("web.yaml"));
        readings_a_grace_apart(host);
        up.assert_untouched(why);
        host.manifest("web.yaml", &whole);
        host.wait(&["pod/web"]);
        until("nothing is reported", || !status(host).contains("web.yaml"));
    }
    // The directory is there and empty: what was mounted on it is not.
    let unmounted = Command::new("umount").arg(&host.manifests).status();
    assert!(unmounted.expect("umount").success());
    let manifests = host.manifests.clone();
    up.mounts.retain(|(point, _)| *point != manifests);
    until("it is reported", || status(&up.host).contains("is not the directory it was"));
    readings_a_grace_apart(&up.host);
    up.assert_untouched("the directory is empty");
    // Nor when it goes.
    fs::remove_dir(&manifests).expect("an empty directory");
    until("it is reported", || status(&up.host).contains("cannot be opened"));
    readings_a_grace_apart(&up.host);
    up.assert_untouched("the directory is gone");
}
