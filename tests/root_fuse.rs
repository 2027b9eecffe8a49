//! File systems whose server is the driver: what happens when it dies, is back, or hangs (design 4).

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly, print figures and start processes of their own"
)]

mod drift;
mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use drift::{assert_released, blocked, methods, staging, two_readings, volumes, within};
use support::seen::explanation;
use support::{Process, TestHost, pod_using, pod_with_claim, until};

const UP: [&str; 2] = ["NodeStageVolume", "NodePublishVolume"];
const DOWN: [&str; 2] = ["NodeUnpublishVolume", "NodeUnstageVolume"];
const STAGED: [&str; 2] = ["--file-system", "fuse"];
const NOT_STAGED: [&str; 3] = ["--file-system", "fuse", "--no-stage"];

/// A host with a pod whose volume is a FUSE; `None`, and said so, where there is no /dev/fuse.
fn up(test: &str, arguments: &[&str]) -> Option<(TestHost, Process, Process, PathBuf)> {
    if fs::File::options().read(true).write(true).open("/dev/fuse").is_err() {
        println!("NOT-RUN: {test}: /dev/fuse cannot be opened");
        return None;
    }
    let host = TestHost::new();
    let driver = host.fakecsi(arguments);
    let daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    let target = host.target("uid-web", "data");
    assert!(answers(&target), "the volume answers");
    Some((host, driver, daemon, target))
}

fn answers(path: &Path) -> bool {
    fs::read_dir(path).is_ok()
}

/// Whether a file system's server is gone.
fn is_dead(path: &Path) -> bool {
    fs::metadata(path).is_err_and(|error| error.raw_os_error() == Some(107))
}

/// Kills the driver, and waits until that is seen.
fn kill(host: &TestHost, driver: Process, target: &Path) {
    driver.kill();
    until("the file system is dead", || is_dead(target));
    until("the driver is shown as gone", || {
        String::from_utf8_lossy(&host.volumectl(&["drivers"]).stdout).contains("disconnected")
    });
}

fn calls_of(arguments: &[&str], up: bool) -> Vec<&'static str> {
    match (arguments == STAGED, up) {
        (true, true) => UP.to_vec(),
        (true, false) => DOWN.to_vec(),
        (false, true) => vec![UP[1]],
        (false, false) => vec![DOWN[0]],
    }
}

#[test]
fn a_dead_volume_is_mounted_anew_when_its_driver_is_back() {
    for arguments in [&STAGED[..], &NOT_STAGED] {
        let name = "a_dead_volume_is_mounted_anew_when_its_driver_is_back";
        let Some((host, driver, daemon, target)) = up(name, arguments) else { return };
        kill(&host, driver, &target);
        until("the death is told", || {
            fs::read_to_string(&daemon.log).is_ok_and(|log| log.contains("does not answer any more"))
        });
        until("the driver is what it waits for", || explanation(&host, "web").contains("does not answer"));
        two_readings(&host);
        assert_eq!(methods(&host), calls_of(arguments, true), "there is nobody to call");
        let _driver = host.fakecsi(arguments);
        let time = within("the volume answers again", Duration::from_secs(20), || answers(&target));
        println!("FIGURE: a dead volume answers {time:?} after its driver was started ({arguments:?})");
        host.wait(&["pod/web"]);
        let cycle =
            [calls_of(arguments, true), calls_of(arguments, false), calls_of(arguments, true)].concat();
        assert_eq!(methods(&host), cycle, "{}", host.logs());
        assert_eq!(blocked(&host, "web"), []);
        assert_eq!(volumes(&host)[0]["state"], "good");
        host.remove_manifest("web.yaml");
        host.wait(&["--for=released", "pod/web"]);
        assert_released(&host);
    }
}

#[test]
fn a_dead_volume_of_two_pods_is_staged_anew_once() {
    let Some((host, driver, _daemon, target)) = up("a_dead_volume_of_two_pods_is_staged_anew_once", &STAGED)
    else {
        return;
    };
    host.manifest("more.yaml", &pod_using("more", "uid-more", "data"));
    host.wait(&["pod/more"]);
    kill(&host, driver, &target);
    let _driver = host.fakecsi(&STAGED);
    let second = host.target("uid-more", "data");
    within("both answer again", Duration::from_secs(20), || answers(&target) && answers(&second));
    host.wait(&["pod/web", "pod/more"]);
    let [stage, publish] = UP;
    let [unpublish, unstage] = DOWN;
    let all = [stage, publish, publish, unpublish, unpublish, unstage, stage, publish, publish];
    assert_eq!(methods(&host), all, "{}", host.logs());
}

#[test]
fn a_dead_volume_that_nobody_wants_any_more_is_taken_down() {
    for arguments in [&STAGED[..], &NOT_STAGED] {
        let name = "a_dead_volume_that_nobody_wants_any_more_is_taken_down";
        let Some((host, driver, daemon, target)) = up(name, arguments) else { return };
        kill(&host, driver, &target);
        host.remove_manifest("web.yaml");
        // A daemon that starts beside dead file systems.
        daemon.kill();
        let _daemon = host.volumed(&[]);
        until("it is to go", || volumes(&host).iter().any(|volume| volume["desired"] == "released"));
        let _driver = host.fakecsi(arguments);
        host.wait(&["--for=released", "pod/web"]);
        assert_released(&host);
        assert_eq!(methods(&host), [calls_of(arguments, true), calls_of(arguments, false)].concat());
    }
}

#[test]
fn a_pause_stops_the_repair() {
    let Some((host, driver, _daemon, target)) = up("a_pause_stops_the_repair", &STAGED) else { return };
    assert!(host.volumectl(&["pause", "pod/web"]).status.success());
    kill(&host, driver, &target);
    let _driver = host.fakecsi(&STAGED);
    until("it is said to be paused", || blocked(&host, "web").iter().any(|(_, code, _)| code == "paused"));
    two_readings(&host);
    assert_eq!(methods(&host), UP, "nothing is done");
    assert!(is_dead(&target));
    assert!(host.volumectl(&["resume", "pod/web"]).status.success());
    within("the volume answers again", Duration::from_secs(20), || answers(&target));
    host.wait(&["pod/web"]);
    assert_eq!(methods(&host), [&UP[..], &DOWN, &UP].concat());
}

#[test]
fn a_volume_that_vanished_while_it_was_paused_waits() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let daemon = host.volumed(&[]);
    host.manifest("web.yaml", &pod_with_claim("web", "uid-web", "data"));
    host.wait(&["pod/web"]);
    assert!(host.volumectl(&["pause", "pod/web"]).status.success());
    let target = host.target("uid-web", "data");
    drift::umount(&target);
    until("it is said to be paused", || blocked(&host, "web").iter().any(|(_, code, _)| code == "paused"));
    // A pause outlives a restart.
    daemon.kill();
    let _daemon = host.volumed(&[]);
    until("it is said to be paused", || blocked(&host, "web").iter().any(|(_, code, _)| code == "paused"));
    two_readings(&host);
    assert_eq!(methods(&host), UP);
    assert!(host.volumectl(&["resume", "pod/web"]).status.success());
    within("it is published again", Duration::from_secs(5), || host.mounts().contains(&target));
}

#[test]
fn a_volume_whose_server_hangs_is_not_touched() {
    let name = "a_volume_whose_server_hangs_is_not_touched";
    let Some((host, _driver, daemon, target)) = up(name, &STAGED) else { return };
    let hang = host.path("driver").join(".hang");
    fs::write(&hang, "").expect("a file");
    // A start asks the file systems that can die at once.
    daemon.kill();
    let daemon = host.volumed(&[]);
    host.wait(&["pod/web"]);
    two_readings(&host);
    assert_eq!(methods(&host), UP, "it may answer yet");
    let log = fs::read_to_string(&daemon.log).expect("a log");
    assert!(!log.contains("does not answer any more"), "{log}");
    fs::remove_file(&hang).expect("it is there");
    assert!(answers(&target));
    assert_eq!(staging(&host), host.mounts().into_iter().find(|at| *at != target).expect("the staging"));
    host.remove_manifest("web.yaml");
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
}
