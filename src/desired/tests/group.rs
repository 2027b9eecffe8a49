//! The pod's fsGroup.

use crate::model::{FsGroup, HoldCode, Ownership, WantedVolume};

use super::*;

/// The pod with these volumes and this security context.
fn grouped(volumes: &Value, context: Value) -> Value {
    let mut pod = pod(volumes);
    pod["spec"]["securityContext"] = context;
    pod
}

fn claimed() -> Value {
    json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}])
}

#[test]
fn every_volume_is_told_the_group_and_only_those_that_a_kubelet_would_change_are_changed() {
    let with = |volumes: Value, change: Value, policy: Option<&str>| {
        let pod = grouped(&volumes, json!({"fsGroup": 7}));
        let world = World::with_claim().add(pod).add(pv("pv-1", change));
        let world = match policy {
            None => world,
            Some(policy) => world.add(driver(json!({"fsGroupPolicy": policy,
                "volumeLifecycleModes": ["Persistent", "Ephemeral"]}))),
        };
        let group = world.csi().fs_group.expect("the pod has a group");
        assert_eq!(group.ownership, Ownership { group: 7, on_root_mismatch: false });
        group.change
    };
    let rw = claimed;
    let ro = || json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}]);
    let inline = |fs: &str, ro: bool| json!([{"name": "data", "csi": {"driver": "d.example", "fsType": fs, "readOnly": ro}}]);
    let ext4 = || json!({"spec": {"csi": {"fsType": "ext4"}}});
    let modes = |modes: Value| json!({"spec": {"accessModes": modes, "csi": {"fsType": "ext4"}}});
    let default = Some("ReadWriteOnceWithFSType");
    for unchanged in [
        with(rw(), json!({}), None),
        with(rw(), json!({}), default),
        with(rw(), json!({}), Some("None")),
        with(rw(), ext4(), Some("None")),
        with(ro(), ext4(), Some("File")),
        with(rw(), modes(json!(["ReadWriteMany"])), default),
        with(rw(), modes(json!([])), default),
        with(rw(), modes(json!(["ReadOnlyMany"])), Some("File")),
        with(rw(), json!({"spec": {"csi": {"fsType": "ext4", "readOnly": true}}}), Some("File")),
        with(inline("", false), json!({}), default),
        with(inline("ext4", true), json!({}), default),
    ] {
        assert!(!unchanged);
    }
    for changed in [
        with(rw(), ext4(), None),
        with(rw(), ext4(), default),
        with(rw(), ext4(), Some("")),
        with(rw(), modes(json!(["ReadWriteMany", "ReadWriteOnce"])), default),
        with(rw(), modes(json!(["ReadWriteOncePod"])), default),
        with(rw(), json!({}), Some("File")),
        with(rw(), modes(json!(["ReadWriteMany"])), Some("File")),
        with(inline("ext4", false), json!({}), default),
        with(inline("", false), json!({}), Some("File")),
    ] {
        assert!(changed);
    }
}

#[test]
fn without_an_fs_group_nothing_is_told() {
    let pod = grouped(&claimed(), json!({"fsGroupChangePolicy": "OnRootMismatch"}));
    assert_eq!(
        World::with_claim().add(pod).add(driver(json!({"fsGroupPolicy": "File"}))).csi().fs_group,
        None
    );
}

#[test]
fn the_change_policy_is_the_pods() {
    for (policy, on_root_mismatch) in [("Always", false), ("OnRootMismatch", true)] {
        let pod = grouped(&claimed(), json!({"fsGroup": 0, "fsGroupChangePolicy": policy}));
        let ownership = Ownership { group: 0, on_root_mismatch };
        assert_eq!(World::with_claim().add(pod).csi().fs_group, Some(FsGroup { ownership, change: false }));
    }
    let pod = grouped(&claimed(), json!({"fsGroup": 0, "fsGroupChangePolicy": "Never"}));
    let world = World::with_claim().add(pod);
    world.is_held(
        HoldCode::ObjectInvalid,
        "pod/default/web: spec.securityContext.fsGroupChangePolicy \"Never\"",
    );
    assert!(world.hold().remedy.contains("OnRootMismatch"));
}

#[test]
fn a_group_is_a_number_that_the_kernel_takes() {
    let volumes = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "host", "hostPath": {"path": "/x"}},
    ]);
    for (number, fits) in
        [(-1, false), (0, true), (4_294_967_294_i64, true), (4_294_967_295, false), (i64::MAX, false)]
    {
        let world = World::with_claim().add(grouped(&volumes, json!({"fsGroup": number})));
        world.wanted_of("host");
        if fits {
            assert_eq!(world.csi().fs_group.map(|g| i64::from(g.ownership.group)), Some(number));
            world.wanted_of("scratch");
        } else {
            world.is_held(
                HoldCode::ObjectInvalid,
                &format!("spec.securityContext.fsGroup {number} is no group"),
            );
            assert_eq!(world.hold_of("scratch"), world.hold());
        }
    }
}

#[test]
fn an_unknown_fs_group_policy_is_held() {
    let world = World::with_claim().add(driver(json!({"fsGroupPolicy": "Sometimes"})));
    world
        .is_held(HoldCode::ObjectInvalid, "CSIDriver d.example: spec.fsGroupPolicy \"Sometimes\" is unknown");
}

#[test]
fn an_empty_dir_is_given_to_the_group_whatever_the_change_policy_is() {
    for policy in ["OnRootMismatch", "Always"] {
        let volumes = json!([{"name": "data", "emptyDir": {}}, {"name": "host", "hostPath": {"path": "/x"}}]);
        let world =
            World::default().add(grouped(&volumes, json!({"fsGroup": 7, "fsGroupChangePolicy": policy})));
        let ownership = Some(Ownership { group: 7, on_root_mismatch: false });
        assert_eq!(world.wanted_of("data").2.volume, WantedVolume::EmptyDir { ownership });
        assert_eq!(world.wanted_of("host").2.volume, WantedVolume::HostPath { path: "/x".into() });
    }
}
