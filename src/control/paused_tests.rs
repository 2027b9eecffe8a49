use crate::control::render::{self, Style};
use crate::control::samples::{self, NOW};
use crate::control::views::{self, Scene};
use crate::model::{Blocked, BlockedCause, DriverName, HealthMap, ObjectRef, Presence, Scope, Status};
use crate::proto::control as api;

const SCENE: Scene<'_> = Scene { node: "n1", now: NOW, health: &HealthMap::new() };

/// Two pods that share a volume, and one with its own.
fn shared() -> Status {
    let mut status = samples::ready();
    status.drivers = samples::all().drivers;
    samples::add(&mut status, "a", "data", Presence::Yes);
    samples::add(&mut status, "b", "data", Presence::Yes);
    samples::add(&mut status, "c", "other", Presence::Yes);
    status
}

fn paused_by(status: &Status) -> Vec<String> {
    let view = views::status(status, SCENE);
    let mut all: Vec<_> = view.volumes.iter().map(|v| format!("{} {}", v.pod, v.paused_by)).collect();
    all.sort();
    all
}

fn explained(status: &Status, object: &str) -> String {
    let view: api::GetStatusResponse = views::status_of(status, SCENE, &[object.parse().unwrap()]);
    render::explain(&view.volumes, NOW, Style::default())
}

#[test]
fn a_pause_is_of_every_pod_that_has_the_volume() {
    let mut status = shared();
    status.paused = vec![Scope::Object(ObjectRef::new("Pod", "db", "a"))];
    assert_eq!(paused_by(&status), ["a pod/db/a", "b pod/db/a", "c "]);
    status.paused = vec![Scope::Object(ObjectRef::new("PersistentVolumeClaim", "db", "other"))];
    assert_eq!(paused_by(&status), ["a ", "b ", "c pvc/db/other"]);
    status.paused = vec![Scope::Driver(DriverName::new("nfs.csi.k8s.io").unwrap())];
    assert_eq!(paused_by(&status), ["a", "b", "c"].map(|pod| format!("{pod} driver/nfs.csi.k8s.io")));
    status.paused = vec![Scope::Driver(DriverName::new("other.csi").unwrap())];
    assert_eq!(paused_by(&status), ["a ", "b ", "c "]);
    status.paused.insert(0, Scope::All);
    assert_eq!(paused_by(&status), ["a all", "b all", "c all"]);
}

#[test]
fn a_pause_is_shown_in_the_list_the_status_and_the_overview() {
    let mut status = shared();
    status.paused = vec![Scope::All, Scope::Driver(DriverName::new("nfs.csi.k8s.io").unwrap())];
    let view = views::status(&status, SCENE);
    let list = render::list(&view, Style::default());
    assert_eq!(list.matches("  paused\n").count(), 3, "{list}");
    assert!(list.ends_with("\n2 pauses: see volumectl status\n"), "{list}");
    let overview = render::overview(&view, Style::default());
    let line = "     Paused: all, driver/nfs.csi.k8s.io: nothing is begun for these until volumectl resume\n";
    assert!(overview.contains(line), "{overview}");
    let status = render::status(&view, Style::default());
    assert!(status.contains("    Paused: by the operator: all\n"), "{status}");
}

#[test]
fn what_a_pause_keeps_back_waits_for_resume() {
    let mut status = shared();
    let key = samples::add(&mut status, "d", "late", Presence::No);
    status.paused = vec![Scope::Object(ObjectRef::new("Pod", "db", "d"))];
    status.volumes.get_mut(&key).unwrap().blocked.push(Blocked {
        step: "stage".into(),
        publication: None,
        cause: BlockedCause::new("paused", "paused by the operator"),
        since: NOW - 1000,
        attempts: 0,
        next_try: None,
        remedy: "volumectl resume".into(),
    });
    let view = views::status_of(&status, SCENE, &["pod/db/d".parse().unwrap()]);
    let [volume] = view.volumes.as_slice() else { panic!("{view:?}") };
    assert_eq!((volume.state.as_str(), volume.remedy.as_str()), ("waiting", "volumectl resume pod/db/d"));
    assert_eq!(view.paused, ["pod/db/d"]);
    insta::assert_snapshot!(explained(&status, "pod/db/d"), @r#"
    db/late is not published for pod/db/d
     ✓ manifest  /m/a.yaml:12
     ✓ claim     bound to pv-late
     ✓ driver    nfs.csi.k8s.io at /run/csi/nfs.sock
     … paused    by the operator: pod/db/d
                 remedy: volumectl resume pod/db/d
     … stage     waiting on paused
     … publish   waiting on paused
    "#);
    insta::assert_snapshot!(render::list(&view, Style::default()), @r#"
      VOLUME   DRIVER          MODE  SIZE   DESIRED    ACTUAL   SINCE  USED BY   REASON
    ○ db/late  nfs.csi.k8s.io  RWO   100Gi  published  pending  4m12s  pod/db/d  stage: paused by the operator

    1 pause: see volumectl status
    "#);
    insta::assert_snapshot!(explained(&{ status.paused = vec![Scope::All]; status }, "pod/db/a"), @r#"
    db/data is published for pod/db/a
     ✓ manifest  /m/a.yaml:12
     ✓ claim     bound to pv-data
     ✓ driver    nfs.csi.k8s.io at /run/csi/nfs.sock
     ✓ stage     /r/plugins/data/globalmount
     ✓ publish   /r/pods/a/volumes/kubernetes.io~csi/pv-data/mount
     … paused    by the operator: all
                 remedy: volumectl resume --all
    "#);
}
