//! One reading of a wish, as the manifest reader would make it of files that may be half written or away.

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use volumed::manifest::{Manifests, Objects, Sourced, Stale};
use volumed::model::{DirectoryState, ManifestSource, Problem, ReadingState};

use super::wish::{self, DRIVERS, Damage, PodWish, VOLUMES, Wish};

/// The manifest reader of one life: it remembers the last good version of what it has read.
#[derive(Debug, Default)]
pub struct Reading {
    good: Objects,
}

thread_local! {
    /// Objects by edition: most of a run's time would go into parsing the same few again.
    static PARSED: RefCell<HashMap<String, Arc<dyn Any + Send + Sync>>> = RefCell::default();
}

impl Reading {
    /// Reads.
    pub fn read(&mut self, wish: &Wish, damage: &Damage, generation: u64, began_ms: u64) -> Manifests {
        let mut objects = Objects::default();
        let mut lost = damage.incomplete;
        let mut taken = Taken { damage, lost: &mut lost };
        for volume in 0..VOLUMES {
            let (pv, claim) = (format!("pv{volume}"), format!("c{volume}"));
            let attribute = wish.attributes[usize::try_from(volume).unwrap_or(0)];
            let read = || pv_object(volume, attribute);
            taken.take((&pv, &attribute), pv.clone(), &self.good.volumes, &mut objects.volumes, read);
            let name = ("default".to_owned(), claim.clone());
            taken.take((&claim, &()), name, &self.good.claims, &mut objects.claims, || claim_object(volume));
        }
        for (driver, name) in DRIVERS.iter().enumerate() {
            let file = format!("driver{driver}");
            let read = || driver_object(name);
            taken.take((&file, &()), (*name).to_owned(), &self.good.drivers, &mut objects.drivers, read);
        }
        for (name, pod) in &wish.pods {
            taken.take((name, pod), wish::uid(name), &self.good.pods, &mut objects.pods, || {
                pod_object(name, pod)
            });
        }
        self.remember(&objects);
        let directory = DirectoryState { identity: None, files: objects.pods.len() + 9 };
        let unread = || Problem {
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
            incomplete: if lost { vec![unread()] } else { Vec::new() },
            directories: BTreeMap::from([("/manifests".into(), directory)]),
        };
        Manifests { objects, problems: Vec::new(), reading }
    }

    fn remember(&mut self, objects: &Objects) {
        let Objects { pods, claims, volumes, drivers, .. } = objects;
        self.good.pods.extend(pods.clone());
        self.good.claims.extend(claims.clone());
        self.good.volumes.extend(volumes.clone());
        self.good.drivers.extend(drivers.clone());
    }
}

struct Taken<'a> {
    damage: &'a Damage,
    lost: &'a mut bool,
}

impl Taken<'_> {
    /// Takes one file's object: as it is, as it last was when the file is broken now, or not at all.
    fn take<K: Ord, T: DeserializeOwned + Send + Sync + 'static>(
        &mut self,
        (file, edition): (&str, &dyn std::fmt::Debug),
        key: K,
        good: &BTreeMap<K, Sourced<T>>,
        into: &mut BTreeMap<K, Sourced<T>>,
        read: impl FnOnce() -> Value,
    ) {
        if self.damage.missing.contains(file) {
            return;
        }
        let taken = if self.damage.broken.contains(file) {
            let Some(good) = good.get(&key) else {
                // Broken since the start: nobody knows what was in it.
                *self.lost = true;
                return;
            };
            let stale = Some(Stale::Broken("it is half written".to_owned()));
            Sourced { object: Arc::clone(&good.object), source: good.source.clone(), stale }
        } else {
            let source = ManifestSource { file: format!("/manifests/{file}.yaml").into(), line: 1 };
            Sourced { object: parsed(format!("{file} {edition:?}"), read), source, stale: None }
        };
        into.insert(key, taken);
    }
}

/// Returns an object, made the first time that `edition` of it is read.
fn parsed<T: DeserializeOwned + Send + Sync + 'static>(
    edition: String,
    object: impl FnOnce() -> Value,
) -> Arc<T> {
    PARSED.with_borrow_mut(|known| {
        let known = known.entry(edition).or_insert_with(|| {
            let object: T = serde_json::from_value(object()).expect("the simulation writes valid objects");
            Arc::new(object)
        });
        Arc::clone(known).downcast().expect("the edition names the kind")
    })
}

fn pv_object(volume: u64, attribute: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("pv{volume}")},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
            "claimRef": {"namespace": "default", "name": format!("c{volume}")},
            "csi": {
                "driver": DRIVERS[wish::driver(volume)], "volumeHandle": wish::handle(volume),
                "volumeAttributes": {"edition": attribute.to_string()},
            },
        },
    })
}

fn claim_object(volume: u64) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": format!("c{volume}"), "namespace": "default"},
        "spec": {"accessModes": ["ReadWriteOnce"], "volumeName": format!("pv{volume}")},
    })
}

fn driver_object(name: &str) -> Value {
    json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "CSIDriver", "metadata": {"name": name},
        "spec": {"attachRequired": false, "volumeLifecycleModes": ["Persistent", "Ephemeral"]},
    })
}

fn pod_object(name: &str, wish: &PodWish) -> Value {
    let mut volumes = Vec::new();
    for claim in &wish.claims {
        let source = json!({"claimName": format!("c{claim}"), "readOnly": wish.read_only});
        volumes.push(json!({"name": format!("v{claim}"), "persistentVolumeClaim": source}));
    }
    if let Some(driver) = wish.inline {
        volumes.push(json!({"name": "inline", "csi": {"driver": DRIVERS[driver]}}));
    }
    if wish.empty_dir {
        volumes.push(json!({"name": "scratch", "emptyDir": {}}));
    }
    let mounts: Vec<Value> = volumes
        .iter()
        .map(|volume| json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"])}))
        .collect();
    let mut metadata = json!({"name": name, "namespace": "default", "uid": wish::uid(name).to_string()});
    if wish.leaving {
        metadata["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": metadata,
        "spec": {"volumes": volumes, "containers": [{"name": "c", "image": "i", "volumeMounts": mounts}]},
    })
}
