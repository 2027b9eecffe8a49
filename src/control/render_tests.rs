use super::*;
use crate::control::samples::{self, NOW};
use crate::control::views::{self, Scene};
use crate::model::HealthMap;

const SCENE: Scene<'_> = Scene { node: "n1", now: NOW, health: &HealthMap::new() };
const PLAIN: Style = Style { color: false, wide: false };

fn of(claim: &str) -> api::GetStatusResponse {
    views::status_of(&samples::all(), SCENE, &[claim.parse().unwrap()])
}

#[test]
fn a_list_has_the_state_first_and_the_reason_last() {
    let text = list(&views::status(&samples::all(), SCENE), PLAIN);
    insta::assert_snapshot!(text, @r#"
      VOLUME      DRIVER          MODE  SIZE   DESIRED    ACTUAL     SINCE  USED BY     REASON
    ↻ db/assets   nfs.csi.k8s.io  RWO   100Gi  published  staged     4m12s  pod/db/api  publish: UNAVAILABLE: server down, try 3; next try in 8s
    ○ db/scratch  -               RWO   100Gi  held       pending    -      pod/db/ci   no PV for it
    ✗ db/backup   nfs.csi.k8s.io  RWO   100Gi  released   uncertain  4m12s  pod/db/old  unpublish: UNAVAILABLE: server down, try 3
    ● db/data     nfs.csi.k8s.io  RWO   100Gi  published  published  4m12s  pod/db/web  -

    1 problem, 1 foreign volume, 1 brake: see volumectl status
    "#);
}

#[test]
fn explain_shows_the_chain_the_next_try_and_the_remedy() {
    let mut text = String::new();
    for claim in ["db/data", "db/assets", "db/scratch", "db/backup"] {
        text.push_str(&explain(&of(claim).volumes, NOW, PLAIN));
    }
    insta::assert_snapshot!(text, @r#"
    db/data is published for pod/db/web
     ✓ manifest  /m/a.yaml:12
     ✓ claim     bound to pv-data
     ✓ driver    nfs.csi.k8s.io at /run/csi/nfs.sock
     ✓ stage     /r/plugins/data/globalmount
     ✓ publish   /r/pods/web/volumes/kubernetes.io~csi/pv-data/mount
    db/assets is not published for pod/db/api
     ✓ manifest  /m/a.yaml:12
     ✓ claim     bound to pv-assets
     ✓ driver    nfs.csi.k8s.io at /run/csi/nfs.sock
     ✓ stage     /r/assets
     ✗ publish   UNAVAILABLE: server down (try 3, for 30s)
                 next try in 8s; retry now: volumectl retry pvc/db/assets
                 remedy: look at the driver's log
    db/scratch is not published for pod/db/ci
     ✓ manifest  /m/a.yaml:12
     ✗ claim     no PV for it
                 remedy: add a PersistentVolume
     … publish   waiting on claim
    db/backup is not released for pod/db/old
     ✓ manifest  the pod is being deleted, or does not use it any more
     ✗ unpublish UNAVAILABLE: server down (try 3, for 30s)
                 remedy: look at the driver's log
     … unstage   waiting on unpublish
    "#);
}

#[test]
fn status_of_an_object_has_all_there_is() {
    insta::assert_snapshot!(status(&of("db/data"), PLAIN), @r#"
    ● db/data
         State: published, published wanted; for 4m12s
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
    "#);
}

#[test]
fn status_without_a_name_shows_problems_foreign_volumes_and_the_brake() {
    insta::assert_snapshot!(overview(&views::status(&samples::all(), SCENE), PLAIN), @r#"
    ✗ volumed 0.1.0 on n1
        Volumes: 1 published, 1 working, 1 waiting, 1 failed
      Manifests: complete (reading 1)
        Foreign: 1 (1 mounted), left untouched: volumectl foreign

    Problems:
      /m/b.yaml:3:7: spec: is no map [31m (mend it)

    Mass-delete brake:
      12 volumes are held: 12 of 14 went away
        if that is meant: volumectl approve

    Failed:
      db/backup unpublish: UNAVAILABLE: server down, try 3
    "#);
}

#[test]
fn drivers_are_listed_with_their_volumes() {
    insta::assert_snapshot!(drivers(&views::drivers(&samples::all(), NOW), PLAIN), @r#"
      DRIVER          VERSION  NODE  VOLUMES  INFLIGHT  STATE  SINCE  SOCKET             REASON
    ● nfs.csi.k8s.io  4.11     n1    3        0         ready  3d     /run/csi/nfs.sock  -
    "#);
}

#[test]
fn nothing_from_a_manifest_reaches_the_terminal_as_an_escape() {
    let everything = views::status(&samples::all(), SCENE);
    for text in [list(&everything, PLAIN), overview(&everything, PLAIN)] {
        assert!(!text.contains('\u{1b}'), "{text:?}");
    }
    let colored = list(&everything, Style { color: true, wide: true });
    assert!(colored.contains("\u{1b}[31m✗\u{1b}[0m"), "{colored:?}");
}
