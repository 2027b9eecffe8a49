//! What API objects ask for, computed from their fields alone (kubelet.md 1.5, 3): what a reader of the root has to find.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::reconstruct::{Block, Csi, Volume};
use super::recording::hex;
use super::{drivers, recording};

/// Returns the volumes that lie on disk when the pods of a phase are up. `locked`: block volumes are held by a loop device.
pub fn volumes(recording: &str, locked: bool) -> BTreeSet<Volume> {
    let objects = recording::objects(recording);
    of_objects(&objects, |driver| drivers::stages(recording, driver), locked)
}

fn of_objects(objects: &[Value], stages: impl Fn(&str) -> bool, locked: bool) -> BTreeSet<Volume> {
    let mut volumes = BTreeSet::new();
    for pod in objects.iter().filter(|object| object["kind"] == "Pod") {
        let uid = text(&pod["metadata"]["uid"]);
        for volume in pod["spec"]["volumes"].as_array().into_iter().flatten() {
            let name = text(&volume["name"]);
            if !is_used(pod, &name) {
                continue;
            }
            let of = |plugin: &str| Volume {
                pod: uid.clone(),
                plugin: format!("kubernetes.io/{plugin}"),
                spec: name.clone(),
                csi: None,
            };
            let kinds = volume.as_object().expect("an object").keys().filter(|key| *key != "name");
            match kinds.map(String::as_str).next().expect("a kind of volume") {
                "persistentVolumeClaim" => {
                    let claim = text(&volume["persistentVolumeClaim"]["claimName"]);
                    volumes.insert(claimed(objects, &uid, &claim, &stages, locked));
                }
                "ephemeral" => {
                    let claim = format!("{}-{name}", text(&pod["metadata"]["name"]));
                    volumes.insert(claimed(objects, &uid, &claim, &stages, locked));
                }
                "csi" => drop(volumes.insert(inline(&uid, &name, &volume["csi"]))),
                "emptyDir" => drop(volumes.insert(of("empty-dir"))),
                "configMap" => drop(volumes.insert(of("configmap"))),
                "secret" => drop(volumes.insert(of("secret"))),
                "downwardAPI" => drop(volumes.insert(of("downward-api"))),
                "projected" => drop(volumes.insert(of("projected"))),
                // Nothing of these lies in a pod's directory.
                "hostPath" | "image" => {}
                other => panic!("a volume of kind {other}"),
            }
        }
    }
    volumes
}

fn inline(pod: &str, name: &str, source: &Value) -> Volume {
    let csi = Csi {
        driver: text(&source["driver"]),
        handle: format!("csi-{}", sha256(&format!("{pod}{name}"))),
        lifecycle: "Ephemeral".to_owned(),
        staging: None,
        staged: false,
        block: None,
    };
    Volume {
        pod: pod.to_owned(),
        plugin: "kubernetes.io/csi".to_owned(),
        spec: name.to_owned(),
        csi: Some(csi),
    }
}

fn claimed(objects: &[Value], pod: &str, claim: &str, stages: impl Fn(&str) -> bool, locked: bool) -> Volume {
    let named = |kind: &str, name: &str| {
        let mut objects = objects.iter();
        let found = objects.find(|object| object["kind"] == kind && object["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("{kind} {name}")).clone()
    };
    let spec = text(&named("PersistentVolumeClaim", claim)["spec"]["volumeName"]);
    let pv = named("PersistentVolume", &spec);
    let source = &pv["spec"]["csi"];
    if source.is_null() {
        let plugin = "kubernetes.io/local-volume".to_owned();
        return Volume { pod: pod.to_owned(), plugin, spec, csi: None };
    }
    let (driver, handle) = (text(&source["driver"]), text(&source["volumeHandle"]));
    let all = Path::new("plugins/kubernetes.io/csi");
    let csi = if pv["spec"]["volumeMode"] == "Block" {
        let devices = all.join("volumeDevices");
        Csi {
            staging: Some(devices.join("staging").join(&spec)),
            block: Some(Block {
                published: devices.join("publish").join(&spec).join(pod),
                map: devices.join(&spec).join("dev").join(pod),
                locks: usize::from(locked),
            }),
            staged: stages(&driver),
            lifecycle: "Persistent".to_owned(),
            driver,
            handle,
        }
    } else {
        let own: PathBuf = all.join(&driver).join(sha256(&handle));
        Csi {
            staging: Some(own.join("globalmount")),
            block: None,
            staged: stages(&driver),
            lifecycle: "Persistent".to_owned(),
            driver,
            handle,
        }
    };
    Volume { pod: pod.to_owned(), plugin: "kubernetes.io/csi".to_owned(), spec, csi: Some(csi) }
}

/// Volumes that no container mounts are ignored everywhere (kubelet.md 1.3).
fn is_used(pod: &Value, volume: &str) -> bool {
    let containers = ["containers", "initContainers", "ephemeralContainers"];
    let containers = containers.iter().flat_map(|kind| pod["spec"][kind].as_array().into_iter().flatten());
    let uses = containers.flat_map(|container| {
        ["volumeMounts", "volumeDevices"]
            .into_iter()
            .flat_map(|kind| container[kind].as_array().into_iter().flatten())
    });
    uses.into_iter().any(|used| used["name"] == volume)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("a text, not {value}")).to_owned()
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text))
}
