//! The manifests of a simulated host: a few pods, claims and volumes, and readings of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use volumed::manifest::{Manifests, Objects, Sourced};
use volumed::model::{
    DirectoryState, Layout, ManifestSource, Plugin, PodUid, Problem, PublicationId, ReadingState, SpecName,
};

use super::world::ROOT;

/// The simulated driver's name.
pub const DRIVER: &str = "sim.example.com";
/// How many PVs there are; claim `c<i>` is bound to PV `pv<i>`.
pub const VOLUMES: u64 = 4;

/// What one pod uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodWish {
    pub claims: BTreeSet<u64>,
    pub inline: bool,
    pub empty_dir: bool,
    /// `metadata.deletionTimestamp`
    pub leaving: bool,
}

/// What all manifests say.
pub type Wish = BTreeMap<String, PodWish>;

/// Returns the handle of a volume: one of them is of the kind that is never mounted.
pub fn handle(volume: u64) -> String {
    if volume == 3 { "unmounted-3".to_owned() } else { format!("handle-{volume}") }
}

/// Returns the places that a wish leads to.
pub fn places(pod: &str, wish: &PodWish) -> Vec<PublicationId> {
    let id = |plugin, spec: String| PublicationId {
        pod: PodUid::new(uid(pod)).expect("good"),
        plugin,
        spec: SpecName::new(spec).expect("good"),
    };
    let mut places: Vec<PublicationId> =
        wish.claims.iter().map(|volume| id(Plugin::Csi, format!("pv{volume}"))).collect();
    if wish.inline {
        places.push(id(Plugin::Csi, "inline".to_owned()));
    }
    if wish.empty_dir {
        places.push(id(Plugin::EmptyDir, "scratch".to_owned()));
    }
    places
}

/// Returns where a place is mounted, if it is a CSI volume.
pub fn target(id: &PublicationId) -> PathBuf {
    let layout = Layout::new(ROOT);
    layout.absolute(&layout.csi_target(id))
}

fn uid(pod: &str) -> String {
    format!("uid-{pod}")
}

/// Makes one reading of a wish.
pub fn reading(wish: &Wish, generation: u64, began_ms: u64, incomplete: bool) -> Manifests {
    let source = |name: &str| ManifestSource { file: format!("/manifests/{name}.yaml").into(), line: 1 };
    let mut objects = Objects::default();
    for volume in 0..VOLUMES {
        let name = format!("pv{volume}");
        let pv = json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "claimRef": {"namespace": "default", "name": format!("c{volume}")},
                "csi": {"driver": DRIVER, "volumeHandle": handle(volume), "volumeAttributes": {"a": "b"}},
            },
        });
        let pvc = json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": format!("c{volume}"), "namespace": "default"},
            "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": name},
        });
        objects.volumes.insert(name.clone(), sourced(pv, source(&name)));
        objects.claims.insert(("default".to_owned(), format!("c{volume}")), sourced(pvc, source(&name)));
    }
    let csi_driver = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": DRIVER},
        "spec": {"attachRequired": false, "volumeLifecycleModes": ["Persistent", "Ephemeral"]},
    });
    objects.drivers.insert(DRIVER.to_owned(), sourced(csi_driver, source("driver")));
    for (name, pod) in wish {
        objects
            .pods
            .insert(PodUid::new(uid(name)).expect("good"), sourced(self::pod(name, pod), source(name)));
    }
    let directory = DirectoryState { identity: None, files: objects.pods.len() + 9 };
    let unread = Problem {
        path: "/manifests/other.yaml".into(),
        position: None,
        object: None,
        field: None,
        detail: "cannot be read".to_owned(),
        remedy: "mend it".to_owned(),
        warning: false,
    };
    let reading = ReadingState {
        generation,
        began_ms,
        incomplete: if incomplete { vec![unread] } else { Vec::new() },
        directories: BTreeMap::from([("/manifests".into(), directory)]),
    };
    Manifests { objects, problems: Vec::new(), reading }
}

fn sourced<T: serde::de::DeserializeOwned>(object: serde_json::Value, source: ManifestSource) -> Sourced<T> {
    let object = serde_json::from_value(object).expect("the simulation writes valid objects");
    Sourced { object: Arc::new(object), source, stale: None }
}

fn pod(name: &str, wish: &PodWish) -> serde_json::Value {
    let mut volumes = Vec::new();
    for claim in &wish.claims {
        let claim_name = format!("c{claim}");
        volumes
            .push(json!({"name": format!("v{claim}"), "persistentVolumeClaim": {"claimName": claim_name}}));
    }
    if wish.inline {
        volumes.push(json!({"name": "inline", "csi": {"driver": DRIVER}}));
    }
    if wish.empty_dir {
        volumes.push(json!({"name": "scratch", "emptyDir": {}}));
    }
    let mounts: Vec<serde_json::Value> = volumes
        .iter()
        .map(|volume| json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"])}))
        .collect();
    let mut metadata = json!({"name": name, "namespace": "default", "uid": uid(name)});
    if wish.leaving {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"volumes": volumes, "containers": [{"name": "c", "image": "i", "volumeMounts": mounts}]},
    })
}
