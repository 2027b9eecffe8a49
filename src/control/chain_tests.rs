use std::sync::Arc;

use crate::control::render::{self, Style};
use crate::control::samples::{self, NOW};
use crate::control::views::{self, Scene};
use crate::model::{
    Blocked, BlockedCause, Event, EventKind, HealthMap, Hold, HoldCode, InProgress, Presence, Status,
    VolumeKey,
};

const SCENE: Scene<'_> = Scene { node: "n1", now: NOW, health: &HealthMap::new() };

/// Three texts: explain, the row of a list, status.
fn texts(status: &Status, object: &str) -> String {
    let view = views::status_of(status, SCENE, &[object.parse().unwrap()]);
    let plain = Style::default();
    [render::explain(&view.volumes, NOW, plain), render::list(&view, plain), render::status(&view, plain)]
        .join("--\n")
}

fn running(status: &mut Status, key: &VolumeKey, step: &'static str, detail: Option<&str>) {
    let detail = detail.map(ToOwned::to_owned);
    let running = InProgress { step, publication: None, detail, again: None, since: NOW - 3000 };
    status.volumes.get_mut(key).unwrap().in_progress = Some(running);
}

fn blocked(step: &str, code: &str, detail: &str, next_try: Option<i64>, remedy: &str) -> Blocked {
    Blocked {
        step: step.into(),
        publication: None,
        cause: BlockedCause::new(code, detail),
        since: NOW - 30_000,
        attempts: u32::from(next_try.is_some()) * 4,
        next_try,
        remedy: remedy.into(),
    }
}

#[test]
fn a_volume_that_grows_says_to_what_size() {
    let mut status = samples::all();
    let key = samples::add(&mut status, "web", "data", Presence::Yes);
    running(&mut status, &key, "expand", Some("growing to 21474836480 bytes"));
    insta::assert_snapshot!(texts(&status, "db/data"), @r#"
    db/data is published for pod/db/web
     ✓ manifest  /m/a.yaml:12
     ✓ claim     bound to pv-data
     ✓ driver    nfs.csi.k8s.io at /run/csi/nfs.sock
     ✓ stage     /r/plugins/data/globalmount
     ✓ publish   /r/pods/web/volumes/kubernetes.io~csi/pv-data/mount
     … expand    under way: growing to 20Gi (for 3s)
    --
      VOLUME   DRIVER          MODE  SIZE   DESIRED    ACTUAL   SINCE  USED BY     REASON
    ↻ db/data  nfs.csi.k8s.io  RWO   100Gi  published  growing  4m12s  pod/db/web  growing to 20Gi
    --
    ↻ db/data
         State: growing, published wanted; for 4m12s
        Reason: growing to 20Gi
       Used by: pod/db/web
      Manifest: /m/a.yaml:12
            PV: pv-data
        Driver: nfs.csi.k8s.io
        Handle: vol-data
          Size: 100Gi
          Mode: ReadWriteOnce
       Staging: /r/plugins/data/globalmount (yes)
          Path: /r/pods/web/volumes/kubernetes.io~csi/pv-data/mount
       Running: expand for 3s: growing to 20Gi

    Events:
      4m12s ago  publish for pod/db/web done in 7 ms
    "#);
    let view = views::status_of(&status, SCENE, &["db/data".parse().unwrap()]);
    // Programs get what volumed said.
    assert_eq!(view.volumes[0].running.as_ref().unwrap().detail, "growing to 21474836480 bytes");
}

#[test]
fn a_volume_that_grew_or_cannot_grow_says_so_after_its_publish() {
    let mut status = samples::all();
    let key = samples::add(&mut status, "web", "data", Presence::Yes);
    let kind = EventKind::StepDone {
        claim: None,
        key: key.clone(),
        step: "expand",
        publication: None,
        pod: None,
        driver: None,
        took_ms: 12,
        not_a_mount_point: false,
    };
    status.volumes.get_mut(&key).unwrap().events.push_back(Event { at: NOW - 60_000, kind });
    let grown = texts(&status, "db/data");
    assert!(
        grown.contains(" ✓ publish   /r/pods/web/") && grown.contains("\n ✓ expand    grown while in use\n"),
        "{grown}"
    );
    let detail = "driver nfs.csi.k8s.io does not expand the volume to 21474836480 bytes while it is in use";
    let remedy = "remove the pods that use the volume: it grows when it comes up again";
    let refused = blocked("expand", "FAILED_PRECONDITION", detail, None, remedy);
    status.volumes.get_mut(&key).unwrap().blocked.push(refused);
    insta::assert_snapshot!(texts(&status, "db/data"), @r#"
    db/data is published for pod/db/web
     ✓ manifest  /m/a.yaml:12
     ✓ claim     bound to pv-data
     ✓ driver    nfs.csi.k8s.io at /run/csi/nfs.sock
     ✓ stage     /r/plugins/data/globalmount
     ✓ publish   /r/pods/web/volumes/kubernetes.io~csi/pv-data/mount
     ✗ expand    FAILED_PRECONDITION: driver nfs.csi.k8s.io does not expand the volume to 20Gi while it is in use
                 remedy: remove the pods that use the volume: it grows when it comes up again
    --
      VOLUME   DRIVER          MODE  SIZE   DESIRED    ACTUAL     SINCE  USED BY     REASON
    ○ db/data  nfs.csi.k8s.io  RWO   100Gi  published  published  4m12s  pod/db/web  expand: FAILED_PRECONDITION: driver nfs.csi.k8s.io does not expand the volume to 20Gi while it is in use
    --
    ○ db/data
         State: published, published wanted; for 4m12s
        Reason: expand: FAILED_PRECONDITION: driver nfs.csi.k8s.io does not expand the volume to 20Gi while it is in use
        Remedy: remove the pods that use the volume: it grows when it comes up again
       Used by: pod/db/web
      Manifest: /m/a.yaml:12
            PV: pv-data
        Driver: nfs.csi.k8s.io
        Handle: vol-data
          Size: 100Gi
          Mode: ReadWriteOnce
       Staging: /r/plugins/data/globalmount (yes)
          Path: /r/pods/web/volumes/kubernetes.io~csi/pv-data/mount

    Events:
      4m12s ago  publish for pod/db/web done in 7 ms
      1m ago  expand done in 12 ms
    "#);
}

#[test]
fn a_publish_that_changes_owners_says_how_far_it_got() {
    let mut status = samples::all();
    let key = samples::add(&mut status, "api", "assets", Presence::No);
    status.volumes.get_mut(&key).unwrap().blocked.clear();
    running(&mut status, &key, "publish", Some("12000 files done"));
    let text = texts(&status, "db/assets");
    assert!(text.contains(" … publish   under way: 12000 files done (for 3s)\n"), "{text}");
    assert!(text.contains("publishing  4m12s  pod/db/api  12000 files done\n"), "{text}");
    assert!(text.contains("   Running: publish for 3s: 12000 files done\n"), "{text}");
}

#[test]
fn a_republish_is_a_link_only_while_there_is_something_to_tell() {
    let mut status = samples::all();
    let key = samples::add(&mut status, "web", "data", Presence::Yes);
    assert!(!texts(&status, "db/data").contains("republish"));
    running(&mut status, &key, "republish", None);
    let text = texts(&status, "db/data");
    assert!(
        text.contains(" … republish under way (for 3s)\n") && text.contains("  publishing again  "),
        "{text}"
    );
    status.volumes.get_mut(&key).unwrap().in_progress = None;
    let failed = blocked("republish", "UNAVAILABLE", "no token", Some(NOW + 2000), "wait");
    status.volumes.get_mut(&key).unwrap().blocked.push(failed);
    let text = texts(&status, "db/data");
    assert!(text.contains(" ✗ republish UNAVAILABLE: no token (try 4, for 30s)\n"), "{text}");
}

#[test]
fn a_step_that_is_tried_again_still_says_why_it_failed() {
    let mut status = samples::all();
    let key = samples::add(&mut status, "web", "data", Presence::No);
    let volume = status.volumes.get_mut(&key).unwrap();
    let last = blocked("publish", "UNAVAILABLE", "no token", Some(NOW), "look at the driver's log");
    let running = |detail| InProgress {
        step: "publish",
        publication: None,
        detail,
        again: Some(Box::new(last.clone())),
        since: NOW - 3000,
    };
    volume.blocked.clear();
    volume.in_progress = Some(running(None));
    let text = texts(&status, "db/data");
    for words in [
        " … publish   under way, after UNAVAILABLE: no token (try 5, for 3s)\n             remedy: look at the driver's log\n",
        "  publish: UNAVAILABLE: no token\n",
        "    Reason: publish: UNAVAILABLE: no token\n    Remedy: look at the driver's log\n",
    ] {
        assert!(text.contains(words), "{words}\n{text}");
    }
    // What it tells of itself is newer.
    status.volumes.get_mut(&key).unwrap().in_progress = Some(running(Some("12000 files done".to_owned())));
    let text = texts(&status, "db/data");
    assert!(text.contains("under way: 12000 files done (for 3s)\n") && !text.contains("no token"), "{text}");
}

#[test]
fn who_has_a_volume_that_is_going_is_named_with_the_command_that_does_not_wait() {
    let mut status = samples::all();
    let key = samples::add(&mut status, "old", "backup", Presence::No);
    samples::publication(&mut status, &key, |publication| {
        (publication.presence, publication.desired) = (Presence::No, "released");
    });
    Arc::make_mut(status.pods.get_mut(&samples::identity("old").uid).unwrap()).leaving = true;
    let volume = status.volumes.get_mut(&key).unwrap();
    volume.staging = Some(("/r/plugins/backup/globalmount".into(), Presence::Yes));
    let remedy = "stop who has it; volumed goes on by itself, or at once after volumectl release --force";
    let holder = "pid 412 (postgres, postgresql.service) has /r/plugins/backup open";
    volume.blocked = vec![blocked("unstage", "in-use", holder, Some(NOW + 4000), remedy)];
    insta::assert_snapshot!(texts(&status, "db/backup"), @r#"
    db/backup is not released for pod/db/old
     ✓ manifest  the pod is being deleted, or does not use it any more
     ✓ unpublish /r/pods/old/volumes/kubernetes.io~csi/pv-backup/mount
     ✗ unstage   in-use: pid 412 (postgres, postgresql.service) has /r/plugins/backup open (try 4, for 30s)
                 next try in 4s; retry now: volumectl retry pvc/db/backup
                 remedy: stop who has it; volumed goes on by itself, or at once after volumectl release --force pod/db/old
    --
      VOLUME     DRIVER          MODE  SIZE   DESIRED   ACTUAL  SINCE  USED BY     REASON
    ↻ db/backup  nfs.csi.k8s.io  RWO   100Gi  released  staged  4m12s  pod/db/old  unstage: in-use: pid 412 (postgres, postgresql.service) has /r/plugins/backup open, try 4; next try in 4s
    --
    ↻ db/backup
         State: staged, released wanted; for 4m12s
        Reason: unstage: in-use: pid 412 (postgres, postgresql.service) has /r/plugins/backup open, try 4; next try in 4s
        Remedy: stop who has it; volumed goes on by itself, or at once after volumectl release --force pod/db/old
       Used by: pod/db/old
      Manifest: /m/a.yaml:12
            PV: pv-backup
        Driver: nfs.csi.k8s.io
        Handle: vol-backup
          Size: 100Gi
          Mode: ReadWriteOnce
       Staging: /r/plugins/backup/globalmount (yes)
          Path: /r/pods/old/volumes/kubernetes.io~csi/pv-backup/mount
    "#);
    // After a restart of volumed nobody knows any more whose it was.
    let volume = status.volumes.get_mut(&key).unwrap();
    volume.publications.clear();
    status.pods.clear();
    let view = views::status(&status, SCENE);
    let left = view.volumes.iter().find(|volume| volume.key == key.to_string()).unwrap();
    assert!(left.remedy.ends_with("release --force /r/plugins/backup/globalmount"), "{left:?}");
}

#[test]
fn an_obstacle_needs_somebody() {
    let mut status = samples::all();
    let key = samples::add(&mut status, "web", "data", Presence::Uncertain);
    let cause = blocked("publish", "obstacle", "/r/x: another mount lies on top", None, "unmount it");
    status.volumes.get_mut(&key).unwrap().blocked.push(cause);
    let view = views::status_of(&status, SCENE, &["db/data".parse().unwrap()]);
    assert_eq!(view.volumes[0].state, "failed");
}

#[test]
fn an_adopted_volume_is_explained_by_the_uid_of_its_pod() {
    let uid = "1f7b8f2e-6c0e-4c4e-9d0a-0a1b2c3d4e5f";
    let mut status = samples::ready();
    let key = samples::add(&mut status, "a", "data", Presence::Uncertain);
    let old = samples::identity("a").uid;
    let mut pod = Arc::unwrap_or_clone(status.pods.remove(&old).unwrap());
    (pod.identity.namespace, pod.identity.name, pod.source) = ("foreign".into(), uid.into(), None);
    pod.leaving = true;
    let identity = pod.identity.clone();
    for volume in pod.volumes.values_mut() {
        (volume.claim, volume.links) = (None, Vec::new());
    }
    status.pods.insert(old, Arc::new(pod));
    samples::publication(&mut status, &key, |publication| {
        publication.pod = identity.clone();
        publication.desired = "held";
        publication.hold = Some(Hold {
            code: HoldCode::Adopted,
            detail: format!("{identity} is in no manifest; the operator adopted its volume"),
            remedy: "add the pod's manifest, or take it down with: volumectl release".into(),
        });
    });
    let view = views::status_of(&status, SCENE, &[format!("foreign/{uid}").parse().unwrap()]);
    insta::assert_snapshot!(render::explain(&view.volumes, NOW, Style::default()), @r#"
    pod/foreign/1f7b8f2e-6c0e-4c4e-9d0a-0a1b2c3d4e5f:data is not published for pod/foreign/1f7b8f2e-6c0e-4c4e-9d0a-0a1b2c3d4e5f
     ✗ held      pod/foreign/1f7b8f2e-6c0e-4c4e-9d0a-0a1b2c3d4e5f is in no manifest; the operator adopted its volume
                 remedy: add the pod's manifest, or take it down with: volumectl release pod/foreign/1f7b8f2e-6c0e-4c4e-9d0a-0a1b2c3d4e5f
     ✗ driver    nfs.csi.k8s.io is not registered
                 remedy: start the driver, or name its socket in [drivers."nfs.csi.k8s.io"] of volumed.toml
     … stage     waiting on held
     … publish   waiting on held
    "#);
    assert_eq!(view.volumes[0].object, format!("pod/foreign/{uid}"));
}
