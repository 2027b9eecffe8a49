//! Whoever is killed on the way, between two calls or in the middle of one: it goes on where it was.

use std::fs;

use crate::foreign::{assert_same_arguments, for_each, methods};
use crate::hostpath::{Hostpath, NAME, Programs, driver_object, drivers, shows};
use crate::support::until;
use crate::{DOWN, EPHEMERAL, UP, inline_pod};

/// One death of the daemon.
#[derive(Debug)]
struct Death {
    point: &'static str,
    inline: bool,
    removed_meanwhile: bool,
}

/// Kills the daemon at a point of its way, and starts it again.
fn outlives(programs: &Programs, death: &Death) {
    let Death { point, inline, removed_meanwhile } = *death;
    let context = format!("{point}, inline {inline}, removed {removed_meanwhile}");
    let down = point.starts_with("un");
    let real = Hostpath::with(programs.clone());
    let host = &real.host;
    let (_driver, _registrar) = (real.driver(&[]), real.registrar());
    let spec = if inline { "scratch" } else { "data" };
    if inline {
        host.manifest("csidriver.yaml", &driver_object(EPHEMERAL));
        host.manifest("web.yaml", &inline_pod("web"));
    } else {
        real.volume("data");
        real.pod("web", "data");
    }
    let target = host.target("uid-web", spec);
    if down {
        let daemon = host.volumed(&[]);
        host.wait(&["pod/web"]);
        fs::write(target.join("file"), "precious").expect("the volume");
        daemon.kill();
        host.remove_manifest("web.yaml");
    }
    let status = host.volumed(&[("VOLUMED_TEST_FAULT", point)]).ended();
    assert!(!status.success(), "{context}: it was to die");
    if removed_meanwhile {
        host.remove_manifest("web.yaml");
    }
    let _daemon = host.volumed(&[]);
    if down || removed_meanwhile {
        host.wait(&["--for=released", "pod/web"]);
        real.assert_released();
        if !inline && down {
            let (handle, ..) = real.believes().remove(0);
            assert_eq!(fs::read_to_string(real.data(&handle).join("file")).expect("data"), "precious");
        }
    } else {
        host.wait(&["pod/web"]);
        assert_eq!(host.mounts(), std::slice::from_ref(&target), "{context}");
        let (handle, staged, published) = real.believes().remove(0);
        assert!(shows(&target, &real.data(&handle), "file"), "{context}");
        assert_eq!(staged.len(), usize::from(!inline), "{context}: {staged:?}");
        assert_eq!(published, [target.to_str().expect("text")], "{context}");
        real.release("web");
        real.assert_released();
    }
    assert_same_arguments(&real.calls(), &context);
    // Stage before publish, unpublish before unstage, whatever was repeated.
    let calls = real.calls();
    let mut order = methods(&calls);
    order.dedup();
    let mut rank: Vec<_> =
        order.iter().map(|method| UP.iter().chain(&DOWN).position(|known| known == method)).collect();
    let seen = rank.clone();
    rank.sort();
    assert_eq!(seen, rank, "{context}: {order:?}");
}

const STAGING: [&str; 6] =
    ["stage:intent", "stage:call", "stage:outcome", "unstage:intent", "unstage:call", "unstage:outcome"];
const PUBLISHING: [&str; 6] = [
    "publish:intent",
    "publish:call",
    "publish:outcome",
    "unpublish:intent",
    "unpublish:call",
    "unpublish:outcome",
];

/// Every point, with the manifest kept and, on the way up, removed meanwhile.
fn deaths(points: &[&'static str], inline: bool) -> Vec<Death> {
    let kept = points.iter().map(|point| Death { point, inline, removed_meanwhile: false });
    let up = points.iter().filter(|point| !point.starts_with("un"));
    kept.chain(up.map(|point| Death { point, inline, removed_meanwhile: true })).collect()
}

#[test]
fn killed_at_any_point_it_goes_on() {
    let Some(programs) = Programs::find("killed_at_any_point_it_goes_on") else { return };
    let cases = deaths(&[STAGING, PUBLISHING].concat(), false);
    for_each(&cases, |death| outlives(&programs, death));
}

#[test]
fn killed_at_any_point_with_an_inline_volume_it_goes_on() {
    // Undoing one twice asks the driver for a volume that it has deleted: NOT_FOUND.
    let test = "killed_at_any_point_with_an_inline_volume_it_goes_on";
    let Some(programs) = Programs::find(test) else { return };
    for_each(&deaths(&PUBLISHING, true), |death| outlives(&programs, death));
}

/// Who dies while a call is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Driver,
    Daemon,
    Both,
}

/// Stops the driver in the middle of a call, kills, and starts again what was killed.
fn outlives_in_a_call(programs: &Programs, (down, victim): (bool, Victim)) {
    let real = Hostpath::with(programs.clone());
    let host = &real.host;
    let (mut driver, _registrar) = (real.driver(&[]), real.registrar());
    let mut daemon = host.volumed(&[]);
    let handle = real.volume("data");
    until("the driver is known", || drivers(host).contains(NAME));
    let target = host.target("uid-web", "data");
    if down {
        real.pod("web", "data");
        host.wait(&["pod/web"]);
    }
    driver.signal("-STOP");
    let under_way = if down {
        host.remove_manifest("web.yaml");
        "unpublish"
    } else {
        real.pod("web", "data");
        "stage"
    };
    until("the call is under way", || {
        let status = host.volumectl(&["status", "pod/web", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        status["volumes"][0]["running"]["step"] == under_way
    });
    if victim != Victim::Driver {
        daemon.kill();
        daemon = host.volumed(&[]);
    }
    if victim == Victim::Daemon {
        // It carries out what nobody waits for any more.
        driver.signal("-CONT");
    } else {
        driver.kill();
        driver = real.driver(&[]);
    }
    if down {
        host.wait(&["--for=released", "pod/web"]);
    } else {
        host.wait(&["pod/web"]);
        assert_eq!(host.mounts(), std::slice::from_ref(&target));
        assert!(shows(&target, &real.data(&handle), "file"));
        real.release("web");
    }
    real.assert_released();
    assert_same_arguments(&real.calls(), "after a death in a call");
    drop((daemon, driver));
}

#[test]
fn whoever_dies_in_the_middle_of_a_call_it_goes_on() {
    let Some(programs) = Programs::find("whoever_dies_in_the_middle_of_a_call_it_goes_on") else { return };
    let victims = [Victim::Driver, Victim::Daemon, Victim::Both];
    let cases: Vec<_> = [false, true].iter().flat_map(|down| victims.map(|victim| (*down, victim))).collect();
    for_each(&cases, |case| outlives_in_a_call(&programs, *case));
}
