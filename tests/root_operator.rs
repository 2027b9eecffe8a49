//! What an operator says while volumes are there: leave them alone, take them down whoever has them, take them over, let go.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

mod drift;
mod operator;
mod support;

use std::fs;
use std::process::Command;
use std::time::Duration;

use drift::{
    assert_released, block_paths, blocked, count, methods, staging, text, two_readings, umount,
    until_blocked, volumes, within,
};
use operator::{DOWN, UP, refused, restart, said, until_ready};
use serde_json::{Value, json};
use support::objects::{block, device_user};
use support::seen::explanation;
use support::{Process, TestHost, claim, loop_devices, pod_using, pod_with_claim, until};

const SOON: Duration = Duration::from_secs(5);

fn runs_sleep(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sleep")
}

/// Starts a process with a private copy of every mount, and waits until it has it.
fn copier(host: &TestHost) -> Process {
    let ours = fs::read_link("/proc/self/ns/mnt").expect("a namespace");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--", "sleep", "600"]);
    let process = host.spawn(command, "holder.log");
    let pid = process.pid();
    let apart = || fs::read_link(format!("/proc/{pid}/ns/mnt")).is_ok_and(|theirs| theirs != ours);
    until("the holder has its copy", || runs_sleep(pid) && apart());
    process
}

/// Starts a process that has a device open, and waits until it has it.
///
/// By a node of its own: what is open through a volume's mount keeps that mount from every driver, whatever volumed says.
fn opener(host: &TestHost) -> Process {
    let devices = loop_devices(&host.path("driver"));
    assert_eq!(devices.len(), 1, "the driver's devices: {devices:?}");
    let mut command = Command::new("sh");
    command.args(["-c", "exec sleep 600 < \"$0\"", text(&devices[0])]);
    let process = host.spawn(command, "holder.log");
    until("the holder has it open", || runs_sleep(process.pid()));
    process
}

/// The volume of a pod that is gone is not unstaged, for somebody has it.
fn until_unstage_waits(host: &TestHost, holder: &Process) {
    let pid = format!("pid {}", holder.pid());
    let waits = || {
        let list = host.volumectl(&["list", "-o", "json"]);
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        list.contains("in-use") && list.contains(&pid)
    };
    until("the holder is named", waits);
    let before = count(host, DOWN[1]);
    two_readings(host);
    assert_eq!(count(host, DOWN[1]), before, "it is not unstaged\n{}", host.explain());
}

#[test]
fn what_is_paused_is_not_repaired_until_it_is_resumed_also_over_a_restart() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let daemon = host.volumed(&[]);
    for (pod, volume) in [("web", "data"), ("other", "more")] {
        host.manifest(&format!("{pod}.yaml"), &pod_with_claim(pod, &format!("uid-{pod}"), volume));
    }
    host.wait(&["pod/web", "pod/other"]);
    let (target, other) = (host.target("uid-web", "data"), host.target("uid-other", "more"));
    assert!(said(&host, &["pause", "pod/web"]).contains("pod/default/web"));

    umount(&target);
    until_blocked(&host, "web", "paused");
    umount(&other);
    within("the other pod's volume is repaired", SOON, || host.mounts().contains(&other));
    two_readings(&host);
    assert!(!host.mounts().contains(&target), "it is left alone\n{}", host.explain());

    let _daemon = restart(&host, daemon);
    until_ready(&host);
    until_blocked(&host, "web", "paused");
    assert!(
        explanation(&host, "web").contains("volumectl resume pod/default/web"),
        "{}",
        explanation(&host, "web")
    );
    umount(&other);
    within("the other pod's volume is repaired", SOON, || host.mounts().contains(&other));
    host.manifest("third.yaml", &pod_with_claim("third", "uid-third", "some"));
    host.wait(&["pod/third"]);
    two_readings(&host);
    assert!(!host.mounts().contains(&target), "it is left alone\n{}", host.explain());
    // Nor is it taken down.
    host.remove_manifest("web.yaml");
    two_readings(&host);
    let of_it = |(_, request): &(String, Value)| request["volume_id"] == "handle-data";
    assert_eq!(host.calls(&DOWN).iter().filter(|call| of_it(call)).count(), 0, "{}", host.logs());
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));

    assert!(said(&host, &["resume", "pod/web"]).contains("nothing is paused"));
    within("it is repaired at once", SOON, || host.mounts().contains(&target));
    host.wait(&["pod/web"]);
    let calls = host.calls(&drift::CALLS).into_iter().filter(of_it).map(|(method, _)| method);
    assert_eq!(calls.collect::<Vec<_>>(), [UP[0], UP[1], UP[1]]);
}

#[test]
fn a_staging_that_waits_for_a_holder_goes_at_once_when_it_is_forced_by_pod() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let refusal = refused(&host, &["release", "--force", "pod/web"]);
    assert!(refusal.contains("still in a manifest"), "{refusal}");
    let holder = copier(&host);
    host.remove_manifest("web.yaml");
    until_unstage_waits(&host, &holder);
    assert_eq!(methods(&host), [UP[0], UP[1], DOWN[0]]);
    // Without the word nothing happens.
    refused(&host, &["release", "pod/web"]);
    two_readings(&host);
    assert_eq!(count(&host, DOWN[1]), 0);
    said(&host, &["release", "--force", "pod/web"]);
    within("it is unstaged", SOON, || count(&host, DOWN[1]) == 1);
    assert_released(&host);
    assert_eq!(methods(&host)[2..], DOWN);
    assert!(runs_sleep(holder.pid()), "the holder is not killed");
}

#[test]
fn a_staging_that_waits_for_a_holder_is_forced_by_its_path_after_a_restart() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let staged = staging(&host);
    let holder = copier(&host);
    host.remove_manifest("web.yaml");
    until_unstage_waits(&host, &holder);
    let _daemon = restart(&host, daemon);
    until_unstage_waits(&host, &holder);
    let refusal = refused(&host, &["release", text(&staged)]);
    assert!(refusal.contains("no foreign volume"), "{refusal}");
    said(&host, &["release", "--force", text(&staged)]);
    within("it is unstaged", SOON, || count(&host, DOWN[1]) == 1);
    assert_released(&host);
    assert_eq!(methods(&host)[2..], DOWN);
}

/// A pod with a block volume, and the manifest of both.
fn block_up(host: &TestHost) -> String {
    let manifest =
        format!("{}---\n{}", block(&claim("data")), device_user(&pod_using("db", "uid-db", "data")));
    host.manifest("db.yaml", &manifest);
    host.wait(&["pod/db"]);
    manifest
}

/// The device of a pod that is gone is not taken, for somebody has it.
fn until_unpublish_waits(host: &TestHost, holder: &Process) {
    let before = count(host, DOWN[0]);
    let detail = until_blocked(host, "db", "in-use");
    assert!(detail.contains(&holder.pid().to_string()), "{detail}");
    two_readings(host);
    assert_eq!(count(host, DOWN[0]), before, "the driver is not asked\n{}", host.explain());
}

#[test]
fn a_device_that_a_process_has_open_is_taken_when_it_is_forced() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    block_up(&host);
    let paths = block_paths(&host, "uid-db", "data");
    let holder = opener(&host);
    host.remove_manifest("db.yaml");
    until_unpublish_waits(&host, &holder);
    said(&host, &["release", "--force", "pod/db"]);
    within("it is unpublished", SOON, || count(&host, DOWN[0]) > 0 && !paths.map.exists());
    assert!(!paths.link.exists() && runs_sleep(holder.pid()), "the holder is not killed");
    // The driver's own device is in use for as long as the holder lives; what volumed has to do is done.
    until("the driver is asked to unstage it", || count(&host, DOWN[1]) > 0);
    holder.kill();
    assert_released(&host);
}

#[test]
fn force_ends_when_the_pod_comes_back_before_the_device_is_taken() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    let manifest = block_up(&host);
    let paths = block_paths(&host, "uid-db", "data");
    let first = opener(&host);
    host.remove_manifest("db.yaml");
    until_unpublish_waits(&host, &first);
    host.faults(&json!([{"method": DOWN[0], "action": {"code": "INTERNAL", "message": "not now"}}]));
    said(&host, &["release", "--force", "pod/db"]);
    until("it was tried", || count(&host, DOWN[0]) > 0);
    host.manifest("db.yaml", &manifest);
    first.kill();
    host.faults(&json!([]));
    host.wait(&["pod/db"]);
    until("it is up", || blocked(&host, "db").is_empty() && fs::metadata(&paths.link).is_ok());

    let second = opener(&host);
    host.remove_manifest("db.yaml");
    until_unpublish_waits(&host, &second);
    second.kill();
    host.wait(&["--for=released", "pod/db"]);
    assert_released(&host);
}

#[test]
fn force_ends_when_the_pod_comes_back_before_the_staging_is_taken() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    let manifest = pod_with_claim("web", "uid-web", "data");
    host.manifest("web.yaml", &manifest);
    host.wait(&["pod/web"]);
    let first = copier(&host);
    host.remove_manifest("web.yaml");
    until_unstage_waits(&host, &first);
    host.faults(&json!([{"method": DOWN[1], "action": {"code": "INTERNAL", "message": "not now"}}]));
    said(&host, &["release", "--force", "pod/web"]);
    until("it was tried", || count(&host, DOWN[1]) > 0);
    host.manifest("web.yaml", &manifest);
    until("the pod is back", || volumes(&host).iter().any(|volume| volume["desired"] == "published"));
    // The undo that was begun waits for the holder again: whoever forced it did not speak of the pod that came back.
    let detail = until_blocked(&host, "web", "in-use");
    assert!(detail.contains(&format!("pid {}", first.pid())), "{detail}");
    first.kill();
    host.faults(&json!([]));
    host.wait(&["pod/web"]);

    let second = copier(&host);
    host.remove_manifest("web.yaml");
    until_unstage_waits(&host, &second);
    second.kill();
    assert_released(&host);
}
