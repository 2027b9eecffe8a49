//! `resolve`, rule by rule, on objects written as manifests are.

mod again;
mod annotations;
mod claims;
mod csi;
mod group;
mod iscsi;
mod kubelet;
mod modes;
mod nfs;
mod secrets;
mod size;
mod sources;
mod tokens;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::*;
use crate::manifest::{Manifests, Sourced, Stale};
use crate::model::{CsiWant, HoldCode, WantedVolume};

const UID: &str = "11111111-2222-3333-4444-555555555555";

/// A set of manifests that grows object by object.
#[derive(Default)]
struct World {
    manifests: Manifests,
    stale: Option<Stale>,
    tokens: TokenFiles,
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

    fn objects(&mut self) -> &mut crate::manifest::Objects {
        Arc::make_mut(&mut self.manifests.objects)
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
                self.objects().pods.insert(uid, pod);
            }
            "PersistentVolumeClaim" => {
                let claim = self.sourced(object);
                self.objects().claims.insert((namespace, name), claim);
            }
            "PersistentVolume" => {
                let volume = self.sourced(object);
                self.objects().volumes.insert(name, volume);
            }
            "Secret" => {
                let secret = self.sourced(object);
                self.objects().secrets.insert((namespace, name), secret);
            }
            "CSIDriver" => {
                let driver = self.sourced(object);
                self.objects().drivers.insert(name, driver);
            }
            "VolumeAttachment" => {
                let attachment = self.sourced(object);
                self.objects().attachments.insert(name, attachment);
            }
            other => panic!("no kind {other}"),
        }
        self
    }

    /// The configuration names a file with a token of a service account of namespace `default`.
    fn token(mut self, account: &str, audience: &str, file: &str) -> Self {
        self.tokens.insert("default", account, audience, file);
        self
    }

    fn resolved(&self) -> Resolved {
        let node = Node { name: "node-1".to_owned(), tokens: self.tokens.clone(), ..Node::default() };
        Resolver::new(node).resolve(&Arc::new(self.manifests.clone()))
    }

    fn pod(&self) -> ResolvedPod {
        let pod = self.resolved().pods[&PodUid::new(UID).unwrap()].clone();
        ResolvedPod::clone(&pod)
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
            ResolvedWant::Wanted { key, id, wanted } => (key, id, Wanted::clone(&wanted)),
            ResolvedWant::Held(hold) => panic!("{name} is held: {hold:?}"),
        }
    }

    fn csi(&self) -> CsiWant {
        match self.wanted_of("data").2.volume {
            WantedVolume::Csi(csi) => *csi,
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
