use super::*;
use crate::control::samples::{self, NOW};
use crate::control::views::{self, Scene};
use crate::model::{DriverName, HealthMap, Lifecycle, PodUid, Presence, SpecName, VolumeKey};

const SCENE: Scene<'_> = Scene { node: "n1", now: NOW, health: &HealthMap::new() };

fn csi(path: &str, handle: &str, pod: Option<&str>, mounted: bool) -> Foreign {
    let driver = DriverName::new("nfs.csi.k8s.io").unwrap();
    let place = |pod| {
        (
            PodUid::new(pod).unwrap(),
            "kubernetes.io~csi".to_owned(),
            SpecName::new(format!("pv-{handle}")).unwrap(),
        )
    };
    Foreign {
        path: path.into(),
        key: Some(VolumeKey::csi(&driver, handle)),
        volume: Some(RecordedVolume::Csi { driver, handle: handle.into(), lifecycle: Lifecycle::Persistent }),
        volume_mode: VolumeMode::Filesystem,
        target: format!("{path}/mount").into(),
        publication: pod.map(place),
        mounted,
        mount: None,
    }
}

fn sample() -> Status {
    let mut status = samples::all();
    status.foreign.push(csi("/r/plugins/used", "a", None, true));
    status.foreign.push(csi("/r/pods/u-1/volumes/kubernetes.io~csi/pv-a", "a", Some("u-1"), true));
    status.foreign.push(csi("/r/plugins/left", "b", None, true));
    status.foreign.push(csi("/r/plugins/bare", "c", None, false));
    // Of a volume of ours.
    status.foreign.push(csi("/r/plugins/data", "vol-data", None, true));
    status
}

#[test]
fn foreign_volumes_are_listed_with_whose_they_are_and_what_a_kubelet_leaked() {
    let all = views::status(&sample(), SCENE).foreign;
    insta::assert_snapshot!(list(&all, Style::default()), @r#"
      PATH                                        DRIVER          HANDLE    POD UID  MOUNTED  NOTE
    ○ /r/pods/x                                   -               -         -        yes      no vol_data.json says whose it is
    ○ /r/plugins/used                             nfs.csi.k8s.io  a         -        yes      -
    ○ /r/pods/u-1/volumes/kubernetes.io~csi/pv-a  nfs.csi.k8s.io  a         u-1      yes      -
    ○ /r/plugins/left                             nfs.csi.k8s.io  b         -        yes      staged for no pod
    ○ /r/plugins/bare                             nfs.csi.k8s.io  c         -        no       -
    ○ /r/plugins/data                             nfs.csi.k8s.io  vol-data  -        yes      -
    "#);
    let wide = list(&all, Style { color: false, wide: true });
    assert!(
        wide.contains("pv-a") && wide.contains("/r/plugins/left/mount") && wide.contains("Filesystem"),
        "{wide}"
    );
}

#[test]
fn the_overview_counts_foreign_volumes_and_leaks() {
    let text = crate::control::render::overview(&views::status(&sample(), SCENE), Style::default());
    assert!(
        text.contains("    Foreign: 6 (5 mounted, 1 staged for no pod), left untouched: volumectl foreign\n"),
        "{text}"
    );
    let list = crate::control::render::list(&views::status(&sample(), SCENE), Style::default());
    assert!(list.contains("6 foreign volumes"), "{list}");
    assert_eq!(summary(&[]), "");
}

#[test]
fn an_empty_dir_without_vol_data_is_named_by_its_kind() {
    let mut status = samples::ready();
    status.foreign.push(Foreign {
        volume: Some(RecordedVolume::EmptyDir),
        publication: Some((
            PodUid::new("u-1").unwrap(),
            "kubernetes.io~empty-dir".into(),
            SpecName::new("tmp").unwrap(),
        )),
        ..csi("/r/pods/u-1/volumes/kubernetes.io~empty-dir/tmp", "x", None, false)
    });
    samples::add(&mut status, "a", "data", Presence::Yes);
    let view = views::status(&status, SCENE).foreign;
    assert_eq!((view[0].driver.as_str(), view[0].name.as_str()), ("", "tmp"));
    let text = list(&view, Style::default());
    assert!(text.contains("  empty-dir  -       u-1      no       -"), "{text}");
}
