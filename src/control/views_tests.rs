use super::*;
use crate::control::samples::{self, NOW};

const SCENE: Scene<'_> = Scene { node: "n1", now: NOW, health: &HealthMap::new() };

fn name(text: &str) -> ObjectName {
    text.parse().unwrap()
}

#[test]
fn each_volume_has_one_state_and_they_are_counted() {
    let view = status(&samples::all(), SCENE);
    let states: Vec<_> =
        view.volumes.iter().map(|v| [&*v.claim, &*v.desired, &*v.actual, &*v.state].join(" ")).collect();
    assert_eq!(
        states,
        [
            "db/assets published staged working",
            "db/scratch held pending waiting",
            "db/backup released uncertain failed",
            "db/data published published good",
        ]
    );
    assert_eq!(view.counts, Some(api::Counts { published: 1, working: 1, waiting: 1, failed: 1 }));
}

#[test]
fn a_claim_joins_the_volumes_of_all_pods_that_use_it() {
    let mut all = samples::ready();
    samples::add(&mut all, "a", "data", Presence::Yes);
    samples::add(&mut all, "b", "data", Presence::No);
    samples::add(&mut all, "c", "other", Presence::No);
    let view = status_of(&all, SCENE, &[name("db/data"), name("pod/db/c"), name("pod/c")]);
    let pods: Vec<_> = view.volumes.iter().map(|volume| volume.pod.as_str()).collect();
    assert_eq!(pods, ["a", "b", "c"]);
    assert_eq!(view.unknown, ["pod/default/c"]);
}

#[test]
fn a_volume_that_no_pod_has_any_more_is_shown_while_it_is_staged() {
    let mut all = samples::ready();
    let key = samples::add(&mut all, "a", "data", Presence::Yes);
    all.pods.clear();
    all.volumes.get_mut(&key).unwrap().publications.clear();
    let view = status(&all, SCENE);
    let [volume] = view.volumes.as_slice() else { panic!("{view:?}") };
    assert_eq!((volume.desired.as_str(), volume.actual.as_str()), ("released", "staged"));
    assert_eq!(volume.key, key.to_string());
}

#[test]
fn the_chain_marks_the_first_link_that_fails_and_what_waits_on_it() {
    let chain = |claim: &str| {
        let view = status_of(&samples::all(), SCENE, &[name(claim)]);
        let links = view.volumes[0].chain.iter();
        links.map(|link| format!("{} {}: {}", link.step, link.state, link.detail)).collect::<Vec<_>>()
    };
    assert_eq!(
        chain("db/assets"),
        [
            "manifest good: /m/a.yaml:12",
            "claim good: bound to pv-assets",
            "driver good: nfs.csi.k8s.io at /run/csi/nfs.sock",
            "stage good: /r/assets",
            "publish failed: UNAVAILABLE: server down",
        ]
    );
    assert_eq!(
        chain("db/scratch"),
        ["manifest good: /m/a.yaml:12", "claim failed: no PV for it", "publish waiting: waiting on claim"]
    );
    assert_eq!(
        chain("db/backup"),
        [
            "manifest good: the pod is being deleted, or does not use it any more",
            "unpublish failed: UNAVAILABLE: server down",
            "unstage waiting: waiting on unpublish",
        ]
    );
}

#[test]
fn a_driver_that_is_not_there_is_the_failing_link_with_its_remedy() {
    let mut all = samples::all();
    all.drivers.clear();
    let view = status_of(&all, SCENE, &[name("db/assets")]);
    let driver = view.volumes[0].chain.iter().find(|link| link.step == "driver").unwrap();
    assert_eq!(driver.state, "failed");
    assert!(driver.remedy.contains("[drivers.\"nfs.csi.k8s.io\"]"), "{driver:?}");
}

#[test]
fn what_a_driver_answered_without_mounting_is_said() {
    let mut all = samples::ready();
    let key = samples::add(&mut all, "a", "data", Presence::Yes);
    samples::publication(&mut all, &key, |publication| publication.not_a_mount_point = true);
    let view = status(&all, SCENE);
    assert_eq!(view.volumes[0].state, "good");
    assert_eq!(view.volumes[0].reason, "not a mount point");
}

#[test]
fn drivers_show_how_many_volumes_they_have_here() {
    let view = drivers(&samples::all(), NOW);
    assert_eq!(view.drivers[0].volumes, 3);
    assert_eq!(view.drivers[0].state, "ready");
}
