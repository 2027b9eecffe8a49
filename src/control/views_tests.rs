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

#[test]
fn how_full_and_how_well_a_published_volume_is_belongs_to_it() {
    let all = samples::all();
    let (key, id) =
        all.pods.values().flat_map(|pod| pod.volumes.values()).find_map(|v| v.resolved.clone()).unwrap();
    let published =
        all.volumes.iter().find(|(_, v)| v.publications.values().any(|p| p.presence == Presence::Yes));
    let (good, place) =
        published.map(|(key, v)| (key.clone(), v.publications.keys().next().unwrap().clone())).unwrap();
    assert_ne!(good, key);
    let known = VolumeHealth {
        key: good.clone(),
        bytes: crate::model::Space { total: Some(4 << 30), used: Some(1 << 30), available: Some(2 << 30) },
        inodes: crate::model::Space { total: Some(100), used: None, available: None },
        ills: vec![crate::model::Ill {
            kind: crate::model::IllKind::Degraded,
            reason: "Rebuilding".into(),
            message: "9 %".into(),
            since: None,
        }],
        measured_at: Some(NOW - 12_000),
        error: None,
    };
    let other = VolumeHealth { key: good, ..known.clone() };
    // What is known of another volume at the place, and of a place where nothing is published, is not shown.
    let health = HealthMap::from([(place, known), (id, other)]);
    let view = status(&all, Scene { health: &health, ..SCENE });
    let with: Vec<_> = view.volumes.iter().filter(|volume| volume.usage.is_some()).collect();
    let [volume] = with.as_slice() else { panic!("{with:?}") };
    assert_eq!((volume.claim.as_str(), volume.state.as_str()), ("db/data", "good"));
    assert_eq!(volume.reason, "not well: degraded: Rebuilding: 9 %");
    let link = volume.chain.last().unwrap();
    assert_eq!((link.step.as_str(), link.state.as_str()), ("health", "failed"));
    assert_eq!(
        link.detail,
        "1Gi of 4Gi used, ? of 100 inodes used, degraded: Rebuilding: 9 %, as of 12s ago"
    );
    let wide =
        crate::control::render::list(&view, crate::control::render::Style { color: false, wide: true });
    assert!(wide.contains("1Gi of 4Gi") && wide.contains("degraded"), "{wide}");
    let text = crate::control::render::status(&view, crate::control::render::Style::default());
    assert!(
        text.contains("Measured: 12s ago") && text.contains("Not well: degraded Rebuilding 9 %"),
        "{text}"
    );
}

#[test]
fn what_a_driver_s_probe_says_is_shown() {
    let mut all = samples::all();
    let shown = |all: &Status| {
        let view = drivers(all, NOW);
        crate::control::render::drivers(&view, crate::control::render::Style::default())
    };
    all.drivers.values_mut().for_each(|driver| driver.unwell = Some("no iscsid".into()));
    let text = shown(&all);
    assert!(text.contains("unwell") && text.contains("no iscsid") && text.contains('○'), "{text}");
    let starting = Connection::Starting { reason: "not ready yet".into() };
    all.drivers.values_mut().for_each(|driver| (driver.unwell, driver.connection) = (None, starting.clone()));
    let text = shown(&all);
    assert!(text.contains("starting") && text.contains("not ready yet") && text.contains('○'), "{text}");
}
