//! `resolve`, rule by rule, on objects written as manifests are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::manifest::{Manifests, Sourced, Stale};
use crate::model::{Attach, CsiWant, HoldCode, Lifecycle, LinkState, Plugin, WantedVolume};

const UID: &str = "11111111-2222-3333-4444-555555555555";

/// A set of manifests that grows object by object.
#[derive(Default)]
struct World {
    manifests: Manifests,
    stale: Option<Stale>,
}

impl World {
    /// One pod `web` whose only container mounts volume `data`, of claim `data`, bound to PV `pv-1` of driver `d.example`.
    fn with_claim() -> Self {
        Self::default()
            .add(pod(&json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}])))
            .add(claim(json!({"volumeName": "pv-1"})))
            .add(pv("pv-1", json!({})))
    }

    /// One pod `web` whose only container mounts volume `data` of this source.
    fn with_source(source: Value) -> Self {
        let mut volume = json!({"name": "data"});
        merge(&mut volume, source);
        Self::default().add(pod(&json!([volume])))
    }

    fn sourced<T: DeserializeOwned>(&mut self, object: Value) -> Sourced<T> {
        let file = PathBuf::from(format!("/m/{}.yaml", object["kind"].as_str().unwrap()));
        Sourced {
            object: Arc::new(serde_json::from_value(object).unwrap()),
            source: ManifestSource { file, line: 7 },
            stale: self.stale.take(),
        }
    }

    /// The next object is stale.
    fn stale(mut self) -> Self {
        self.stale = Some(Stale::Broken("does not parse any more".to_owned()));
        self
    }

    /// Adds an object, or replaces the one of its name.
    fn add(mut self, object: Value) -> Self {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let name = text(&object["metadata"]["name"]).unwrap();
        let namespace = text(&object["metadata"]["namespace"]).unwrap_or_else(|| "default".to_owned());
        let kind = text(&object["kind"]).unwrap();
        match kind.as_str() {
            "Pod" => {
                let uid = PodUid::new(object["metadata"]["uid"].as_str().unwrap()).unwrap();
                let pod = self.sourced(object);
                self.manifests.objects.pods.insert(uid, pod);
            }
            "PersistentVolumeClaim" => {
                let claim = self.sourced(object);
                self.manifests.objects.claims.insert((namespace, name), claim);
            }
            "PersistentVolume" => {
                let volume = self.sourced(object);
                self.manifests.objects.volumes.insert(name, volume);
            }
            "Secret" => {
                let secret = self.sourced(object);
                self.manifests.objects.secrets.insert((namespace, name), secret);
            }
            "CSIDriver" => {
                let driver = self.sourced(object);
                self.manifests.objects.drivers.insert(name, driver);
            }
            "VolumeAttachment" => {
                let attachment = self.sourced(object);
                self.manifests.objects.attachments.insert(name, attachment);
            }
            other => panic!("no kind {other}"),
        }
        self
    }

    fn pod(&self) -> ResolvedPod {
        resolve(&self.manifests, "node-1").pods.remove(&PodUid::new(UID).unwrap()).unwrap()
    }

    fn want(&self, name: &str) -> ResolvedWant {
        self.pod().volumes.remove(name).unwrap_or_else(|| panic!("no volume {name}")).want
    }

    fn hold(&self) -> Hold {
        self.hold_of("data")
    }

    fn hold_of(&self, name: &str) -> Hold {
        match self.want(name) {
            ResolvedWant::Held(hold) => {
                assert!(!hold.detail.is_empty() && !hold.remedy.is_empty(), "{hold:?}");
                hold
            }
            ResolvedWant::Wanted { .. } => panic!("{name} is wanted"),
        }
    }

    #[track_caller]
    fn is_held(&self, code: HoldCode, words: &str) {
        let hold = self.hold();
        assert_eq!(hold.code, code, "{hold:?}");
        assert!(hold.detail.contains(words), "{hold:?} does not say {words:?}");
    }

    fn wanted_of(&self, name: &str) -> (VolumeKey, PublicationId, Wanted) {
        match self.want(name) {
            ResolvedWant::Wanted { key, id, wanted } => (key, id, *wanted),
            ResolvedWant::Held(hold) => panic!("{name} is held: {hold:?}"),
        }
    }

    fn csi(&self) -> CsiWant {
        match self.wanted_of("data").2.volume {
            WantedVolume::Csi(csi) => csi,
            other => panic!("{other:?}"),
        }
    }
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// A pod that mounts every volume that it lists.
fn pod(volumes: &Value) -> Value {
    let mounts: Vec<Value> = volumes
        .as_array()
        .unwrap()
        .iter()
        .map(|v| json!({"name": v["name"], "mountPath": format!("/{}", v["name"])}))
        .collect();
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "default", "uid": UID},
        "spec": {"volumes": volumes, "containers": [{"name": "c", "volumeMounts": mounts}]}})
}

/// The pod with one claim, changed.
fn claim_pod(change: Value) -> Value {
    let mut pod = pod(&json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]));
    merge(&mut pod, change);
    pod
}

fn claim(spec: Value) -> Value {
    let mut claim = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "data", "namespace": "default"}});
    claim["spec"] = spec;
    claim
}

fn pv(name: &str, change: Value) -> Value {
    let mut pv = json!({"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "capacity": {"storage": "1Gi"},
            "csi": {"driver": "d.example", "volumeHandle": format!("handle-{name}")}}});
    merge(&mut pv, change);
    pv
}

fn driver(spec: Value) -> Value {
    let mut driver =
        json!({"apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": "d.example"}});
    driver["spec"] = spec;
    driver
}

fn inline_driver(change: Value) -> Value {
    let mut driver = driver(json!({"volumeLifecycleModes": ["Ephemeral"]}));
    merge(&mut driver["spec"], change);
    driver
}

fn attachment(change: Value) -> Value {
    let mut va = json!({"apiVersion": "storage.k8s.io/v1", "kind": "VolumeAttachment", "metadata": {"name": "va"},
        "spec": {"attacher": "d.example", "nodeName": "node-1", "source": {"persistentVolumeName": "pv-1"}},
        "status": {"attached": true, "attachmentMetadata": {"lun": "3"}}});
    merge(&mut va, change);
    va
}

fn secret(name: &str, change: Value) -> Value {
    let mut secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "default"}});
    merge(&mut secret, change);
    secret
}

// ---- claims ----

#[test]
fn a_claim_becomes_its_pv_at_the_kubelets_place() {
    let world = World::with_claim().add(pv(
        "pv-1",
        json!({"spec": {"mountOptions": ["noatime", "noatime"], "csi": {"fsType": "xfs", "readOnly": true,
            "volumeAttributes": {"pool": "fast"}}}}),
    ));
    let (key, id, wanted) = world.wanted_of("data");
    assert_eq!(key.as_str(), "kubernetes.io/csi/d.example^handle-pv-1");
    assert_eq!(id.to_string(), format!("{UID}/kubernetes.io~csi/pv-1"));
    assert_eq!(wanted.pod.to_string(), "pod/default/web");
    assert_eq!(wanted.names, ["data".to_owned()].into());
    assert_eq!(wanted.claim, Some(ObjectRef::new("PersistentVolumeClaim", "default", "data")));
    assert_eq!(wanted.manifest, Some(PathBuf::from("/m/Pod.yaml")));
    let csi = world.csi();
    assert_eq!((csi.fs_type.as_str(), csi.access_mode.as_str()), ("xfs", "ReadWriteOnce"));
    assert_eq!(csi.mount_flags, ["noatime", "noatime"]);
    assert_eq!(csi.volume_context, BTreeMap::from([("pool".to_owned(), "fast".to_owned())]));
    // The PV's readOnly does not count on a node (csi.md 2.10).
    assert!(!csi.read_only);
    assert_eq!((csi.lifecycle, csi.pod_info), (Lifecycle::Persistent, None));
    let volume = &world.pod().volumes["data"];
    assert_eq!(volume.capacity, Some(1 << 30));
    assert_eq!(volume.access_mode.as_deref(), Some("ReadWriteOnce"));
    let links: Vec<_> = volume.links.iter().map(|l| (l.step.as_str(), l.state, l.detail.as_str())).collect();
    assert_eq!(
        links,
        [("manifest", LinkState::Good, "/m/Pod.yaml:7"), ("claim", LinkState::Good, "bound to pv pv-1")]
    );
}

#[test]
fn the_first_access_mode_counts_and_read_write_once_is_the_default() {
    let world = World::with_claim()
        .add(pv("pv-1", json!({"spec": {"accessModes": ["ReadOnlyMany", "ReadWriteOnce"]}})));
    assert_eq!(world.csi().access_mode, "ReadOnlyMany");
    let world = World::with_claim().add(pv("pv-1", json!({"spec": {"accessModes": []}})));
    assert_eq!(world.csi().access_mode, "ReadWriteOnce");
}

#[test]
fn read_only_is_the_pods() {
    let volumes = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}]);
    assert!(World::with_claim().add(pod(&volumes)).csi().read_only);
}

#[test]
fn a_pv_that_names_the_claim_is_enough() {
    let reserved = pv("pv-1", json!({"spec": {"claimRef": {"namespace": "default", "name": "data"}}}));
    let world = World::with_claim().add(claim(json!({}))).add(reserved);
    assert_eq!(world.csi().handle, "handle-pv-1");
}

#[test]
fn the_claim_refs_uid_must_be_the_claims_if_it_has_one() {
    let uid = |uid: &str| {
        let mut claim = claim(json!({"volumeName": "pv-1"}));
        merge(&mut claim, json!({"metadata": {"uid": uid}}));
        claim
    };
    let reserved =
        pv("pv-1", json!({"spec": {"claimRef": {"namespace": "default", "name": "data", "uid": "u1"}}}));
    assert_eq!(World::with_claim().add(reserved.clone()).csi().handle, "handle-pv-1");
    assert_eq!(World::with_claim().add(reserved.clone()).add(uid("u1")).csi().handle, "handle-pv-1");
    World::with_claim().add(reserved).add(uid("u2")).is_held(HoldCode::ObjectInvalid, "UIDs differ");
}

#[test]
fn of_two_pvs_that_name_a_claim_the_uid_decides() {
    let reserved = |name: &str, uid: &str| {
        pv(name, json!({"spec": {"claimRef": {"namespace": "default", "name": "data", "uid": uid}}}))
    };
    let mut mine = claim(json!({}));
    merge(&mut mine, json!({"metadata": {"uid": "u2"}}));
    let world = World::with_claim().add(reserved("pv-1", "u1")).add(reserved("pv-2", "u2"));
    assert_eq!(world.add(mine).csi().handle, "handle-pv-2");
    let world = World::with_claim().add(reserved("pv-1", "")).add(reserved("pv-2", "")).add(claim(json!({})));
    world.is_held(HoldCode::ObjectInvalid, "pv-1, pv-2");
}

#[test]
fn a_pv_of_another_claim_is_held_with_both_names() {
    let other = pv("pv-1", json!({"spec": {"claimRef": {"namespace": "db", "name": "other"}}}));
    let hold = World::with_claim().add(other).hold();
    assert!(hold.detail.contains("db/other") && hold.detail.contains("default/data"), "{hold:?}");
}

#[test]
fn two_claims_that_name_one_pv_are_both_held() {
    let mut second = claim(json!({"volumeName": "pv-1"}));
    merge(&mut second, json!({"metadata": {"name": "second"}}));
    let hold = World::with_claim().add(second).hold();
    assert!(hold.detail.contains("default/data and PersistentVolumeClaim default/second"), "{hold:?}");
}

#[test]
fn an_unbound_claim_says_what_to_write() {
    let world = World::with_claim().add(claim(json!({"storageClassName": "fast",
        "resources": {"requests": {"storage": "5Gi"}}})));
    world.is_held(HoldCode::ClaimUnbound, "StorageClass fast");
    assert!(world.hold().remedy.contains("spec.volumeName"));
    let volume = &world.pod().volumes["data"];
    assert_eq!(volume.capacity, Some(5 << 30));
    assert_eq!(volume.links[1].state, LinkState::Failed);
}

#[test]
fn a_missing_claim_or_pv_holds() {
    let mut world = World::with_claim();
    world.manifests.objects.volumes.clear();
    world.is_held(HoldCode::ObjectMissing, "PersistentVolume pv-1");
    world.manifests.objects.claims.clear();
    world.is_held(HoldCode::ObjectMissing, "PersistentVolumeClaim default/data");
}

#[test]
fn a_claim_being_deleted_holds_unless_it_is_protected() {
    let deleted = |finalizers: Value| {
        let mut claim = claim(json!({"volumeName": "pv-1"}));
        merge(
            &mut claim,
            json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z", "finalizers": finalizers}}),
        );
        World::with_claim().add(claim)
    };
    deleted(json!([])).is_held(HoldCode::ObjectInvalid, "being deleted");
    assert_eq!(deleted(json!(["kubernetes.io/pvc-protection"])).csi().handle, "handle-pv-1");
}

#[test]
fn volume_mode_must_fit_how_containers_use_it() {
    let devices = json!({"spec": {"containers": [{"name": "c",
        "volumeDevices": [{"name": "data", "devicePath": "/dev/x"}]}]}});
    let block = pv("pv-1", json!({"spec": {"volumeMode": "Block"}}));
    World::with_claim()
        .add(claim_pod(devices.clone()))
        .is_held(HoldCode::ObjectInvalid, "volumeMode Filesystem, but is specified in volumeDevices");
    World::with_claim()
        .add(block.clone())
        .is_held(HoldCode::ObjectInvalid, "volumeMode Block, but is specified in volumeMounts");
    World::with_claim()
        .add(block)
        .add(claim_pod(devices))
        .is_held(HoldCode::NotSupported, "volumeMode Block is not supported yet");
}

#[test]
fn two_volumes_of_one_claim_are_one_with_both_names() {
    let volumes = json!([
        {"name": "a", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "b", "persistentVolumeClaim": {"claimName": "data"}},
    ]);
    let world = World::with_claim().add(pod(&volumes));
    let (a, b) = (world.wanted_of("a"), world.wanted_of("b"));
    assert_eq!(a, b);
    assert_eq!(a.2.names, ["a".to_owned(), "b".to_owned()].into());
}

#[test]
fn two_different_volumes_at_one_place_are_both_held() {
    let volumes = json!([
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "pv-1", "csi": {"driver": "d.example"}},
        {"name": "scratch", "emptyDir": {}},
    ]);
    let both = driver(json!({"volumeLifecycleModes": ["Persistent", "Ephemeral"]}));
    let world = World::with_claim().add(pod(&volumes)).add(both);
    assert!(world.hold().detail.contains("data and pv-1"));
    assert_eq!(world.hold_of("pv-1"), world.hold());
    world.wanted_of("scratch");
}

#[test]
fn of_two_pvs_with_one_handle_the_first_by_name_is_used() {
    let same = json!({"spec": {"csi": {"volumeHandle": "same"}}});
    let world = World::with_claim().add(pv("pv-1", same.clone())).add(pv("pv-2", same.clone()));
    assert_eq!(world.csi().handle, "same");
    let problems = resolve(&world.manifests, "node-1").problems;
    assert_eq!(problems.len(), 1);
    assert!(problems[0].to_string().contains("pv-2") && problems[0].to_string().contains("pv-1"));
    let hold = world.add(pv("pv-0", same)).hold();
    assert_eq!(hold.code, HoldCode::ObjectInvalid);
    assert!(hold.detail.contains("pv-0") && hold.detail.contains("pv-1"), "{hold:?}");
}

// ---- what is used ----

#[test]
fn only_volumes_that_some_container_uses_count() {
    let mut pod = pod(&json!([
        {"name": "init", "emptyDir": {}}, {"name": "plain", "emptyDir": {}},
        {"name": "debug", "emptyDir": {}}, {"name": "unused", "emptyDir": {}},
    ]));
    let using = |name: &str| json!([{"name": format!("c-{name}"), "volumeMounts": [{"name": name, "mountPath": "/x"}]}]);
    pod["spec"]["containers"] = using("plain");
    pod["spec"]["initContainers"] = using("init");
    pod["spec"]["ephemeralContainers"] = using("debug");
    let names: Vec<String> = World::default().add(pod).pod().volumes.into_keys().collect();
    assert_eq!(names, ["debug", "init", "plain"]);
}

#[test]
fn a_name_that_no_volume_has_is_held_and_stops_no_other() {
    let mut pod = pod(&json!([{"name": "scratch", "emptyDir": {}}]));
    pod["spec"]["containers"][0]["volumeMounts"] =
        json!([{"name": "scratch", "mountPath": "/a"}, {"name": "data", "mountPath": "/b"}]);
    let world = World::default().add(pod);
    world.is_held(HoldCode::ObjectInvalid, "spec.volumes does not list");
    world.wanted_of("scratch");
}

// ---- sources ----

#[test]
fn an_empty_dir_on_disk_belongs_to_its_pod() {
    let (key, id, wanted) = World::with_source(json!({"emptyDir": {}})).wanted_of("data");
    assert_eq!(wanted.volume, WantedVolume::EmptyDir { ownership: None });
    assert_eq!(id.plugin, Plugin::EmptyDir);
    assert_eq!(key.as_str(), format!("kubernetes.io/empty-dir/{UID}-data"));
    World::with_source(json!({"emptyDir": {"medium": ""}})).wanted_of("data");
}

#[test]
fn a_host_path_is_absolute_and_goes_nowhere_else() {
    let world = World::with_source(json!({"hostPath": {"path": "/srv/data"}}));
    assert_eq!(world.wanted_of("data").2.volume, WantedVolume::HostPath { path: "/srv/data".into() });
    for path in ["srv", "/srv/../etc", "..", "", "/srv/\u{0}x"] {
        World::with_source(json!({"hostPath": {"path": path}}))
            .is_held(HoldCode::ObjectInvalid, "absolute path");
    }
    World::with_source(json!({"hostPath": {"path": "/srv/..data"}})).wanted_of("data");
}

#[test]
fn what_is_not_supported_yet_says_so_and_stops_no_other() {
    for source in [
        json!({"emptyDir": {"medium": "Memory"}}),
        json!({"emptyDir": {"medium": "HugePages-2Mi"}}),
        json!({"hostPath": {"path": "/x", "type": "Directory"}}),
        json!({"configMap": {"name": "x"}}),
        json!({"secret": {"secretName": "x"}}),
        json!({"projected": {"sources": []}}),
        json!({"downwardAPI": {"items": []}}),
        json!({"nfs": {"server": "s", "path": "/"}}),
        json!({"iscsi": {"targetPortal": "p", "iqn": "i", "lun": 0}}),
        json!({"image": {"reference": "x"}}),
        json!({"gitRepo": {"repository": "x"}}),
        json!({"ephemeral": {"volumeClaimTemplate": {"spec": {}}}}),
    ] {
        let mut volume = json!({"name": "data"});
        merge(&mut volume, source);
        let world = World::default().add(pod(&json!([volume, {"name": "scratch", "emptyDir": {}}])));
        world.is_held(HoldCode::NotSupported, "is not supported yet");
        world.wanted_of("scratch");
    }
}

#[test]
fn a_pv_that_is_not_csi_is_not_supported_yet() {
    for (source, name) in [
        (json!({"nfs": {"server": "s", "path": "/"}}), "nfs"),
        (json!({"local": {"path": "/x"}}), "local"),
        (json!({"hostPath": {"path": "/x"}}), "hostPath"),
    ] {
        let mut pv = pv("pv-1", json!({"spec": source}));
        pv["spec"].as_object_mut().unwrap().remove("csi");
        World::with_claim().add(pv).is_held(HoldCode::NotSupported, name);
    }
}

#[test]
fn no_source_or_two_sources_is_no_empty_dir() {
    World::with_source(json!({})).is_held(HoldCode::ObjectInvalid, "names no source");
    World::with_source(json!({"emptyDir": {}, "hostPath": {"path": "/"}}))
        .is_held(HoldCode::ObjectInvalid, "several sources");
}

// ---- CSI ----

#[test]
fn an_inline_volume_has_the_kubelets_handle_and_key() {
    let source = json!({"csi": {"driver": "d.example", "fsType": "ext4", "readOnly": true,
        "volumeAttributes": {"size": "1Gi"}}});
    let world = World::with_source(source).add(inline_driver(json!({})));
    let (key, id, _) = world.wanted_of("data");
    assert_eq!(key.as_str(), format!("kubernetes.io/csi/{UID}-data"));
    assert_eq!(id.spec.as_str(), "data");
    let csi = world.csi();
    // printf '%s' 11111111-2222-3333-4444-555555555555data | sha256sum
    assert_eq!(csi.handle, "csi-e0e2b75806e876d63a85957d2797336825a703651cde295266d20131a0117810");
    assert_eq!(
        (csi.lifecycle, &csi.attach, csi.read_only),
        (Lifecycle::Ephemeral, &Attach::NotRequired, true)
    );
    assert_eq!((csi.fs_type.as_str(), csi.access_mode.as_str()), ("ext4", "ReadWriteOnce"));
    assert_eq!(csi.volume_context, BTreeMap::from([("size".to_owned(), "1Gi".to_owned())]));
    assert!(csi.mount_flags.is_empty());
}

#[test]
fn an_inline_volume_needs_a_driver_object_that_lists_ephemeral() {
    let inline = || World::with_source(json!({"csi": {"driver": "d.example"}}));
    inline().is_held(HoldCode::ObjectMissing, "CSIDriver d.example");
    inline().add(driver(json!({}))).is_held(HoldCode::ObjectInvalid, "does not list Ephemeral");
    inline()
        .add(driver(json!({"volumeLifecycleModes": ["Persistent"]})))
        .is_held(HoldCode::ObjectInvalid, "Ephemeral");
}

#[test]
fn a_pv_needs_no_driver_object_but_one_for_ephemeral_only_holds_it() {
    World::with_claim().csi();
    World::with_claim().add(driver(json!({}))).csi();
    World::with_claim()
        .add(inline_driver(json!({})))
        .is_held(HoldCode::ObjectInvalid, "does not list Persistent");
}

#[test]
fn pod_info_is_given_only_when_the_driver_asks() {
    assert_eq!(World::with_claim().add(driver(json!({"podInfoOnMount": false}))).csi().pod_info, None);
    let world = World::with_claim().add(driver(json!({"podInfoOnMount": true})));
    assert_eq!(world.csi().pod_info.unwrap().service_account, "default");
    let world = world.add(claim_pod(json!({"spec": {"serviceAccountName": "robot"}})));
    assert_eq!(world.csi().pod_info.unwrap().service_account, "robot");
}

#[test]
fn attachment_follows_the_driver_object_and_the_attachment_of_this_node() {
    let attached = Attach::Attached(BTreeMap::from([("lun".to_owned(), "3".to_owned())]));
    let of = |spec: Option<Value>, va: Option<Value>| {
        let mut world = World::with_claim();
        if let Some(spec) = spec {
            world = world.add(driver(spec));
        }
        if let Some(change) = va {
            world = world.add(attachment(change));
        }
        world.csi().attach
    };
    let required = |yes: bool| Some(json!({"attachRequired": yes}));
    let here = || Some(json!({}));
    assert_eq!(of(required(false), here()), Attach::NotRequired);
    assert_eq!(of(required(true), here()), attached);
    assert_eq!(of(None, here()), attached);
    assert_eq!(of(required(true), None), Attach::Missing);
    assert_eq!(of(Some(json!({})), None), Attach::MissingIfGated);
    assert_eq!(of(None, None), Attach::MissingIfGated);
    assert_eq!(of(required(true), Some(json!({"spec": {"nodeName": "node-2"}}))), Attach::Missing);
    assert_eq!(of(required(true), Some(json!({"spec": {"attacher": "other"}}))), Attach::Missing);
    assert_eq!(of(required(true), Some(json!({"status": {"attached": false}}))), Attach::Missing);
    let other = Some(json!({"spec": {"source": {"persistentVolumeName": "pv-2"}}}));
    assert_eq!(of(required(true), other), Attach::Missing);
}

#[test]
fn token_requests_are_not_supported_yet() {
    let driver = driver(json!({"tokenRequests": [{"audience": "x"}]}));
    World::with_claim().add(driver).is_held(HoldCode::NotSupported, "tokenRequests");
}

#[test]
fn fs_group_holds_only_what_a_kubelet_would_change() {
    let with = |volumes: Value, change: Value, policy: Option<&str>| {
        let mut pod = pod(&volumes);
        merge(&mut pod, json!({"spec": {"securityContext": {"fsGroup": 7}}}));
        let world = World::with_claim().add(pod).add(pv("pv-1", change));
        match policy {
            None => world,
            Some(policy) => world.add(driver(json!({"fsGroupPolicy": policy,
                "volumeLifecycleModes": ["Persistent", "Ephemeral"]}))),
        }
    };
    let rw = || json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}]);
    let ro = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "data", "readOnly": true}}]);
    let inline = |fs: &str| json!([{"name": "data", "csi": {"driver": "d.example", "fsType": fs}}]);
    let ext4 = || json!({"spec": {"csi": {"fsType": "ext4"}}});
    let many = json!({"spec": {"accessModes": ["ReadWriteMany"], "csi": {"fsType": "ext4"}}});
    let default = Some("ReadWriteOnceWithFSType");
    with(rw(), json!({}), None).csi();
    with(rw(), ext4(), Some("None")).csi();
    with(ro, ext4(), Some("File")).csi();
    with(rw(), many.clone(), default).csi();
    with(inline(""), json!({}), default).csi();
    with(json!([{"name": "data", "hostPath": {"path": "/x"}}]), ext4(), None).wanted_of("data");
    for held in [
        with(rw(), ext4(), None),
        with(rw(), ext4(), default),
        with(rw(), json!({}), Some("File")),
        with(rw(), many, Some("File")),
        with(inline("ext4"), json!({}), default),
        with(json!([{"name": "data", "emptyDir": {}}]), ext4(), None),
    ] {
        held.is_held(HoldCode::NotSupported, "fsGroup is not supported yet");
    }
}

#[test]
fn a_context_mount_is_not_supported_yet() {
    let label = json!({"spec": {"securityContext": {"seLinuxOptions": {"level": "s0:c1"}}}});
    let once = |mode: &str, pod: Value| {
        World::with_claim()
            .add(driver(json!({"seLinuxMount": true})))
            .add(pv("pv-1", json!({"spec": {"accessModes": [mode]}})))
            .add(claim_pod(pod))
    };
    once("ReadWriteOncePod", label.clone()).is_held(HoldCode::NotSupported, "seLinuxMount");
    once("ReadWriteOncePod", json!({})).csi();
    once("ReadWriteOnce", label.clone()).csi();
    let mut recursive = label;
    merge(&mut recursive, json!({"spec": {"securityContext": {"seLinuxChangePolicy": "Recursive"}}}));
    once("ReadWriteOncePod", recursive).csi();
}

#[test]
fn names_that_could_leave_their_directory_are_held() {
    let bad = pv("pv-1", json!({"spec": {"csi": {"driver": "../evil"}}}));
    World::with_claim().add(bad).is_held(HoldCode::ObjectInvalid, "driver name");
    World::with_claim()
        .add(pv("pv-1", json!({"spec": {"csi": {"volumeHandle": ""}}})))
        .is_held(HoldCode::ObjectInvalid, "volumeHandle");
    let volumes = json!([{"name": "../../etc", "emptyDir": {}}]);
    let world = World::default().add(pod(&volumes));
    assert!(world.hold_of("../../etc").detail.contains("has a '/'"));
}

// ---- secrets ----

fn with_secret(field: &str) -> World {
    let reference = json!({"spec": {"csi": {field: {"namespace": "default", "name": "s"}}}});
    World::with_claim().add(pv("pv-1", reference))
}

#[test]
fn secrets_reach_the_call_they_are_for() {
    let s = secret("s", json!({"data": {"user": "Ym9i", "key": "b2xk"}, "stringData": {"key": "new"}}));
    let expected =
        BTreeMap::from([("user".to_owned(), "bob".to_owned()), ("key".to_owned(), "new".to_owned())]);
    let stage = with_secret("nodeStageSecretRef").add(s.clone()).csi();
    assert_eq!(stage.stage_secrets.reveal(), &expected);
    assert!(stage.publish_secrets.reveal().is_empty());
    let publish = with_secret("nodePublishSecretRef").add(s.clone()).csi();
    assert_eq!(publish.publish_secrets.reveal(), &expected);
    assert!(publish.stage_secrets.reveal().is_empty());
    let inline =
        World::with_source(json!({"csi": {"driver": "d.example", "nodePublishSecretRef": {"name": "s"}}}));
    let inline = inline.add(inline_driver(json!({}))).add(s).csi();
    assert_eq!(inline.publish_secrets.reveal(), &expected);
}

#[test]
fn a_missing_or_incomplete_secret_reference_holds() {
    with_secret("nodeStageSecretRef").is_held(HoldCode::ObjectMissing, "Secret default/s");
    let elsewhere = secret("s", json!({"metadata": {"namespace": "other"}}));
    with_secret("nodePublishSecretRef").add(elsewhere).is_held(HoldCode::ObjectMissing, "Secret default/s");
    let half = pv("pv-1", json!({"spec": {"csi": {"nodeStageSecretRef": {"name": "s"}}}}));
    World::with_claim().add(half).is_held(HoldCode::ObjectInvalid, "nodeStageSecretRef.namespace");
}

#[test]
fn a_secret_that_is_not_text_names_the_key_and_never_the_value() {
    // base64 of "hunter2" and 0xff.
    let s = secret("s", json!({"data": {"pass": "aHVudGVyMv8="}}));
    let world = with_secret("nodeStageSecretRef").add(s);
    world.is_held(HoldCode::ObjectInvalid, "data.pass");
    assert!(!format!("{:?}", world.hold()).contains("hunter2"));
}

// ---- stale and broken ----

#[test]
fn a_stale_pod_is_held_with_all_its_volumes() {
    let world = World::with_claim().stale().add(claim_pod(json!({})));
    let pod = world.pod();
    assert!(pod.held.as_ref().unwrap().detail.contains("does not parse any more"));
    assert_eq!(world.hold(), pod.held.unwrap());
    assert_eq!(pod.volumes["data"].links[0].state, LinkState::Failed);
}

#[test]
fn a_volume_that_needs_a_stale_object_is_held() {
    World::with_claim()
        .stale()
        .add(claim(json!({"volumeName": "pv-1"})))
        .is_held(HoldCode::ObjectInvalid, "Claim default/data: does not parse");
    World::with_claim()
        .stale()
        .add(pv("pv-1", json!({})))
        .is_held(HoldCode::ObjectInvalid, "Volume pv-1: does not parse");
    World::with_claim()
        .stale()
        .add(driver(json!({})))
        .is_held(HoldCode::ObjectInvalid, "CSIDriver d.example: does not parse");
    World::with_claim()
        .stale()
        .add(attachment(json!({})))
        .is_held(HoldCode::ObjectInvalid, "Attachment va: does not parse");
    with_secret("nodeStageSecretRef")
        .stale()
        .add(secret("s", json!({})))
        .is_held(HoldCode::ObjectInvalid, "Secret default/s: does not parse");
}

#[test]
fn a_broken_pod_is_there_held_and_without_volumes() {
    let mut world = World::default();
    let problem = Problem {
        path: "/m/web.yaml".into(),
        position: Some((3, 5)),
        object: None,
        field: Some("spec.volumes".to_owned()),
        detail: "is a string".to_owned(),
        remedy: "write a list".to_owned(),
        warning: false,
    };
    let name = ObjectRef::new("Pod", "default", "web");
    world.manifests.objects.broken_pods.insert(PodUid::new(UID).unwrap(), (name, problem));
    let pod = world.pod();
    let hold = pod.held.unwrap();
    assert_eq!(hold.detail, "Pod default/web: /m/web.yaml:3:5: spec.volumes: is a string");
    assert_eq!(hold.remedy, "write a list");
    assert!(pod.volumes.is_empty() && !pod.leaving);
    assert_eq!(pod.identity.to_string(), "pod/default/web");
}

#[test]
fn a_pod_with_a_deletion_timestamp_is_leaving() {
    assert!(!World::with_claim().pod().leaving);
    let leaving = claim_pod(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}));
    assert!(World::with_claim().add(leaving).pod().leaving);
}
