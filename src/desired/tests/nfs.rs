//! NFS volumes: what is taken from a PersistentVolume or a pod, and what is refused.

use crate::model::{HoldCode, NfsWant, Plugin, WantedVolume};

use super::*;

fn volume(change: Value) -> World {
    let mut volume = json!({
        "kind": "PersistentVolume", "metadata": {"name": "pv-1"},
        "spec": {
            "nfs": {"server": "nas", "path": "/exp"}, "accessModes": ["ReadWriteMany"],
            "mountOptions": ["nfsvers=4.2", "soft,timeo=50"],
        },
    });
    merge(&mut volume["spec"], change);
    World::with_claim().add(volume)
}

fn of_volume(change: Value) -> NfsWant {
    match volume(change).wanted_of("data").2.volume {
        WantedVolume::Nfs(nfs) => *nfs,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_volume_is_its_server_s_directory_with_the_operator_s_options() {
    let (key, id, wanted) = volume(json!({})).wanted_of("data");
    assert_eq!(key.as_str(), "kubernetes.io/nfs/pv-1");
    assert_eq!((id.plugin, id.spec.as_str()), (Plugin::Nfs, "pv-1"));
    let WantedVolume::Nfs(nfs) = wanted.volume else { panic!("{wanted:?}") };
    let expected = NfsWant {
        server: "nas".to_owned(),
        path: "/exp".to_owned(),
        mount_flags: vec!["nfsvers=4.2".to_owned(), "soft,timeo=50".to_owned()],
        access_mode: "ReadWriteMany".to_owned(),
        read_only: false,
        single_pod: false,
    };
    assert_eq!(*nfs, expected);
    assert!(of_volume(json!({"accessModes": ["ReadWriteOncePod"]})).single_pod);
}

#[test]
fn a_pod_s_own_export_belongs_to_the_pod() {
    let world = World::with_source(json!({"nfs": {"server": "nas", "path": "/exp", "readOnly": true}}));
    let (key, id, wanted) = world.wanted_of("data");
    assert_eq!(key.as_str(), format!("kubernetes.io/nfs/{UID}-data"));
    assert_eq!(id.plugin, Plugin::Nfs);
    let WantedVolume::Nfs(nfs) = wanted.volume else { panic!("{wanted:?}") };
    assert!(nfs.read_only && nfs.mount_flags.is_empty(), "{nfs:?}");
}

#[test]
fn whoever_says_read_only_is_heard() {
    assert!(of_volume(json!({"nfs": {"server": "nas", "path": "/exp", "readOnly": true}})).read_only);
    assert!(of_volume(json!({"accessModes": ["ReadOnlyMany"]})).read_only);
    let reader =
        pod(&json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}]));
    let WantedVolume::Nfs(nfs) = volume(json!({})).add(reader).wanted_of("data").2.volume else { panic!() };
    assert!(nfs.read_only);
}

#[test]
fn an_ipv6_address_is_known_with_and_without_brackets() {
    for (written, server) in [
        ("fd00::1", "fd00::1"),
        ("[fd00::1]", "fd00::1"),
        ("fe80::1%eth0", "fe80::1%eth0"),
        ("10.0.0.1", "10.0.0.1"),
        ("nas.example.com", "nas.example.com"),
    ] {
        assert_eq!(of_volume(json!({"nfs": {"server": written, "path": "/"}})).server, server);
    }
}

#[test]
fn what_could_be_another_server_path_or_mount_is_held() {
    for (change, words) in [
        (json!({"nfs": {"server": "", "path": "/exp"}}), "spec.nfs.server \"\" is empty"),
        (json!({"nfs": {"server": "a b", "path": "/exp"}}), "is no host name or address"),
        (json!({"nfs": {"server": "a,b", "path": "/exp"}}), "is no host name or address"),
        (json!({"nfs": {"server": "a/b", "path": "/exp"}}), "is no host name or address"),
        (json!({"nfs": {"server": "-o", "path": "/exp"}}), "is no host name or address"),
        (json!({"nfs": {"server": "a\u{0}", "path": "/exp"}}), "is no host name or address"),
        (json!({"nfs": {"server": "nas:2049", "path": "/exp"}}), "has a colon"),
        (json!({"nfs": {"server": "[nas]", "path": "/exp"}}), "has brackets"),
        (json!({"nfs": {"server": "nas", "path": ""}}), "is not an absolute path"),
        (json!({"nfs": {"server": "nas", "path": "exp"}}), "is not an absolute path"),
        (json!({"nfs": {"server": "nas", "path": "/exp/../etc"}}), "has a .."),
        (json!({"nfs": {"server": "nas", "path": "/e\nxp"}}), "has a control character"),
        (json!({"volumeMode": "Block"}), "volumeMode"),
        (json!({"mountOptions": ["soft", "timeo=5,bind"]}), "spec.mountOptions[1] \"bind\""),
        (json!({"mountOptions": ["remount"]}), "\"remount\""),
        (json!({"mountOptions": ["bg"]}), "\"bg\""),
        (json!({"mountOptions": ["x-systemd.automount"]}), "x-systemd.automount"),
        (json!({"mountOptions": ["X-mount.mkdir=0700"]}), "X-mount.mkdir"),
        (json!({"mountOptions": ["so\u{0}ft"]}), "has a control character"),
        (
            json!({"nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "kubernetes.io/hostname", "operator": "In", "values": ["node-2"]}
            ]}]}}}),
            "does not name this node",
        ),
    ] {
        let hold = volume(change).hold();
        assert!(hold.detail.contains(words), "{hold:?} does not say {words:?}");
        assert_eq!(hold.code == HoldCode::ObjectInvalid, !hold.remedy.is_empty(), "{hold:?}");
    }
    for path in ["exp", "/a/.."] {
        World::with_source(json!({"nfs": {"server": "nas", "path": path}}))
            .is_held(HoldCode::ObjectInvalid, "nfs.path");
    }
    let several = volume(json!({"local": {"path": "/srv"}}));
    several.is_held(HoldCode::ObjectInvalid, "names several sources: local and nfs");
}
