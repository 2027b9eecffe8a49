//! What an object must be beyond its types. Whatever may become a part of a path is checked before anything else sees it.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    PersistentVolume, PersistentVolumeClaim, Pod, PodSpec, Secret, Volume, VolumeDevice, VolumeMount,
};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use super::objects::shorten;
use crate::model::{DriverName, ManifestSource, ObjectRef, Problem};

/// Something wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault {
    field: String,
    detail: String,
    remedy: String,
    warning: bool,
}

impl Fault {
    pub(super) fn new(
        field: impl Into<String>,
        detail: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { field: field.into(), detail: detail.into(), remedy: remedy.into(), warning: false }
    }

    /// Makes it a doubt: the object is used all the same.
    pub(super) fn warning(mut self) -> Self {
        self.warning = true;
        self
    }

    pub(super) fn is_warning(&self) -> bool {
        self.warning
    }

    /// Says where the field is.
    pub(super) fn about(self, source: &ManifestSource, object: Option<ObjectRef>) -> Problem {
        Problem {
            path: source.file.clone(),
            position: Some((source.line, 1)),
            object,
            field: (!self.field.is_empty()).then_some(self.field),
            detail: self.detail,
            remedy: self.remedy,
            warning: self.warning,
        }
    }
}

const ACCESS_MODES: [&str; 4] = ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany", "ReadWriteOncePod"];
const RECLAIM_POLICIES: [&str; 3] = ["Retain", "Delete", "Recycle"];
const VOLUME_MODES: [&str; 2] = ["Filesystem", "Block"];
/// A CSI string's and a CSI map's limit in bytes; mount flags have the map's (csi.md 2.1).
const CSI_STRING: usize = 128;
const CSI_MAP: usize = 4096;

/// A DNS-1123 subdomain: what Kubernetes lets most objects be called.
pub(super) fn subdomain(field: &str, name: &str) -> Result<(), Fault> {
    let parts_fit = name.split('.').all(|part| dns_label(part, 253));
    if name.len() <= 253 && parts_fit {
        return Ok(());
    }
    let remedy =
        "use at most 253 lower-case letters, digits, '-' and '.', with a letter or digit at each end";
    Err(Fault::new(field, wrong_name(name, 253), remedy))
}

/// A DNS-1123 label: namespaces, and volumes in a pod.
pub(super) fn label(field: &str, name: &str) -> Result<(), Fault> {
    if dns_label(name, 63) {
        return Ok(());
    }
    let remedy = "use at most 63 lower-case letters, digits and '-', with a letter or digit at each end";
    Err(Fault::new(field, wrong_name(name, 63), remedy))
}

/// A CSI driver's name.
pub(super) fn driver_name(field: &str, name: &str) -> Result<(), Fault> {
    match DriverName::new(name) {
        Ok(_) => Ok(()),
        Err(error) => Err(Fault::new(
            field,
            shorten(&error.to_string()),
            "write the name that the driver registers with",
        )),
    }
}

fn dns_label(part: &str, longest: usize) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.len() <= longest
        && part.starts_with(inner)
        && part.ends_with(inner)
        && part.chars().all(|c| inner(c) || c == '-')
}

fn wrong_name(name: &str, longest: usize) -> String {
    if name.len() > longest {
        format!("has {} characters: {:?}…", name.chars().count(), name.chars().take(20).collect::<String>())
    } else {
        format!("is {name:?}, which is no DNS name")
    }
}

/// `value` is the pod as it was written.
pub(super) fn pod(pod: &Pod, value: &Value, faults: &mut Vec<Fault>) {
    let Some(spec) = &pod.spec else {
        faults.push(Fault::new("spec", "is missing", "write the pod's spec"));
        return;
    };
    let mut names = BTreeSet::new();
    for (i, volume) in spec.volumes.iter().flatten().enumerate() {
        let field = format!("spec.volumes[{i}]");
        if let Err(fault) = label(&format!("{field}.name"), &volume.name) {
            faults.push(fault);
        } else if !names.insert(volume.name.as_str()) {
            let detail = format!("is {:?}, as another volume of the pod", volume.name);
            faults.push(Fault::new(format!("{field}.name"), detail, "give each volume a name of its own"));
        }
        let written = value.pointer(&format!("/spec/volumes/{i}")).and_then(Value::as_object);
        let sources: Vec<_> = written
            .into_iter()
            .flatten()
            .filter(|(key, source)| source.is_object() && key.as_str() != "name")
            .map(|(key, _)| shorten(key))
            .collect();
        if sources.len() > 1 {
            let detail = format!("has more than one source: {}", sources.join(", "));
            faults.push(Fault::new(&field, detail, "leave one of them"));
        }
        pod_volume(volume, &field, faults);
    }
    uses(spec, &names, faults);
}

fn pod_volume(volume: &Volume, field: &str, faults: &mut Vec<Fault>) {
    if let Some(host) = &volume.host_path {
        host_path(&host.path, &format!("{field}.hostPath.path"), faults);
    }
    if let Some(csi) = &volume.csi {
        faults.extend(driver_name(&format!("{field}.csi.driver"), &csi.driver).err());
        csi_map(csi.volume_attributes.as_ref(), &format!("{field}.csi.volumeAttributes"), faults);
        if let Some(secret) = &csi.node_publish_secret_ref {
            faults.extend(subdomain(&format!("{field}.csi.nodePublishSecretRef.name"), &secret.name).err());
        }
    }
    if let Some(claim) = &volume.persistent_volume_claim {
        faults
            .extend(subdomain(&format!("{field}.persistentVolumeClaim.claimName"), &claim.claim_name).err());
    }
}

/// Every mount and device of every container must name a volume of the pod.
fn uses(spec: &PodSpec, names: &BTreeSet<&str>, faults: &mut Vec<Fault>) {
    let mut check = |list: &str, i: usize, mounts: &[VolumeMount], devices: &[VolumeDevice]| {
        let mounts = mounts.iter().map(|m| ("volumeMounts", "mountPath", &m.name, &m.mount_path));
        let devices = devices.iter().map(|d| ("volumeDevices", "devicePath", &d.name, &d.device_path));
        for (j, (kind, path_field, name, path)) in mounts.enumerate().chain(devices.enumerate()) {
            let field = format!("spec.{list}[{i}].{kind}[{j}]");
            if !names.contains(name.as_str()) {
                let detail = format!("is {:?}, which is no volume of the pod", shorten(name));
                faults.push(Fault::new(
                    format!("{field}.name"),
                    detail,
                    "add it to spec.volumes, or correct the name",
                ));
            }
            if path.is_empty() {
                let remedy = "write where the container is to see the volume";
                faults.push(Fault::new(format!("{field}.{path_field}"), "is missing", remedy));
            }
        }
    };
    let all = |v: &Option<Vec<VolumeMount>>| v.clone().unwrap_or_default();
    let devices = |v: &Option<Vec<VolumeDevice>>| v.clone().unwrap_or_default();
    for (i, c) in spec.containers.iter().enumerate() {
        check("containers", i, &all(&c.volume_mounts), &devices(&c.volume_devices));
    }
    for (i, c) in spec.init_containers.iter().flatten().enumerate() {
        check("initContainers", i, &all(&c.volume_mounts), &devices(&c.volume_devices));
    }
    for (i, c) in spec.ephemeral_containers.iter().flatten().enumerate() {
        check("ephemeralContainers", i, &all(&c.volume_mounts), &devices(&c.volume_devices));
    }
}

/// A host path is used as it is, so it must say what it means.
fn host_path(path: &str, field: &str, faults: &mut Vec<Fault>) {
    let why = if !path.starts_with('/') {
        "is not absolute"
    } else if path.split('/').any(|part| part == "..") {
        "has a '..'"
    } else if path.contains('\0') {
        "has a NUL byte"
    } else if path.len() > 4095 {
        "is longer than 4095 bytes"
    } else {
        return;
    };
    faults.push(Fault::new(field, why, "write an absolute path without '..'"));
}

/// See the rules of a PV in kubelet.md 1.5 and csi.md 2.1.
pub(super) fn volume(volume: &PersistentVolume, faults: &mut Vec<Fault>) {
    let Some(spec) = &volume.spec else {
        faults.push(Fault::new("spec", "is missing", "write the volume's spec"));
        return;
    };
    quantities(spec.capacity.as_ref(), "spec.capacity", faults);
    each_of(spec.access_modes.as_deref(), "spec.accessModes", &ACCESS_MODES, faults);
    one_of(spec.volume_mode.as_deref(), "spec.volumeMode", &VOLUME_MODES, faults);
    let policy = spec.persistent_volume_reclaim_policy.as_deref();
    one_of(policy, "spec.persistentVolumeReclaimPolicy", &RECLAIM_POLICIES, faults);
    if let Some(claim) = &spec.claim_ref {
        if let Some(name) = claim.name.as_deref().filter(|n| !n.is_empty()) {
            faults.extend(subdomain("spec.claimRef.name", name).err());
        } else {
            faults.push(Fault::new("spec.claimRef.name", "is missing", "name the claim"));
        }
        if let Some(namespace) = claim.namespace.as_deref().filter(|n| !n.is_empty()) {
            faults.extend(label("spec.claimRef.namespace", namespace).err());
        }
    }
    if let Some(host) = &spec.host_path {
        host_path(&host.path, "spec.hostPath.path", faults);
    }
    if spec.mount_options.iter().flatten().map(String::len).sum::<usize>() > CSI_MAP {
        faults.push(too_long("spec.mountOptions", CSI_MAP));
    }
    let Some(csi) = &spec.csi else { return };
    faults.extend(driver_name("spec.csi.driver", &csi.driver).err());
    if csi.volume_handle.is_empty() {
        faults.push(Fault::new("spec.csi.volumeHandle", "is missing", "write the driver's id of the volume"));
    } else if csi.volume_handle.len() > CSI_STRING {
        faults.push(too_long("spec.csi.volumeHandle", CSI_STRING));
    }
    csi_map(csi.volume_attributes.as_ref(), "spec.csi.volumeAttributes", faults);
    for (name, secret) in [
        ("nodeStageSecretRef", &csi.node_stage_secret_ref),
        ("nodePublishSecretRef", &csi.node_publish_secret_ref),
        ("nodeExpandSecretRef", &csi.node_expand_secret_ref),
    ] {
        let Some(secret) = secret else { continue };
        let field = format!("spec.csi.{name}");
        faults.extend(subdomain(&format!("{field}.name"), secret.name.as_deref().unwrap_or_default()).err());
        let namespace = secret.namespace.as_deref().unwrap_or_default();
        faults.extend(label(&format!("{field}.namespace"), namespace).err());
    }
}

pub(super) fn claim(claim: &PersistentVolumeClaim, faults: &mut Vec<Fault>) {
    let Some(spec) = &claim.spec else {
        faults.push(Fault::new("spec", "is missing", "write the claim's spec"));
        return;
    };
    each_of(spec.access_modes.as_deref(), "spec.accessModes", &ACCESS_MODES, faults);
    one_of(spec.volume_mode.as_deref(), "spec.volumeMode", &VOLUME_MODES, faults);
    if let Some(name) = spec.volume_name.as_deref().filter(|n| !n.is_empty()) {
        faults.extend(subdomain("spec.volumeName", name).err());
    }
    if let Some(resources) = &spec.resources {
        quantities(resources.requests.as_ref(), "spec.resources.requests", faults);
        quantities(resources.limits.as_ref(), "spec.resources.limits", faults);
    }
}

pub(super) fn class(class: &StorageClass, faults: &mut Vec<Fault>) {
    if class.provisioner.is_empty() {
        faults.push(Fault::new(
            "provisioner",
            "is missing",
            "name the driver, or kubernetes.io/no-provisioner",
        ));
    }
    one_of(class.reclaim_policy.as_deref(), "reclaimPolicy", &RECLAIM_POLICIES[..2], faults);
    let modes = ["Immediate", "WaitForFirstConsumer"];
    one_of(class.volume_binding_mode.as_deref(), "volumeBindingMode", &modes, faults);
}

pub(super) fn secret(secret: &Secret, faults: &mut Vec<Fault>) {
    for key in secret.data.iter().flatten().map(|(key, _)| key) {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if key.is_empty() || key.len() > 253 || key == "." || key.starts_with("..") || !key.chars().all(fits)
        {
            // The key itself is not told: it may be a value in the wrong place.
            let remedy = "use at most 253 letters, digits, '-', '_' and '.'";
            faults.push(Fault::new("data", "has a key that cannot be used", remedy));
            return;
        }
    }
}

pub(super) fn driver(driver: &CSIDriver, faults: &mut Vec<Fault>) {
    let modes = driver.spec.volume_lifecycle_modes.as_deref();
    each_of(modes, "spec.volumeLifecycleModes", &["Persistent", "Ephemeral"], faults);
    let policies = ["ReadWriteOnceWithFSType", "File", "None"];
    one_of(driver.spec.fs_group_policy.as_deref(), "spec.fsGroupPolicy", &policies, faults);
}

pub(super) fn attachment(attachment: &VolumeAttachment, faults: &mut Vec<Fault>) {
    let spec = &attachment.spec;
    faults.extend(driver_name("spec.attacher", &spec.attacher).err());
    if spec.node_name.is_empty() {
        faults.push(Fault::new("spec.nodeName", "is missing", "write the node's name"));
    }
    match (&spec.source.persistent_volume_name, &spec.source.inline_volume_spec) {
        (Some(name), None) => faults.extend(subdomain("spec.source.persistentVolumeName", name).err()),
        (None, Some(_)) => {}
        (None, None) => {
            faults.push(Fault::new(
                "spec.source",
                "names no volume",
                "write spec.source.persistentVolumeName",
            ));
        }
        (Some(_), Some(_)) => {
            faults.push(Fault::new("spec.source", "names two volumes", "leave one of them"));
        }
    }
}

fn one_of(value: Option<&str>, field: &str, known: &[&str], faults: &mut Vec<Fault>) {
    if let Some(value) = value.filter(|v| !v.is_empty() && !known.contains(v)) {
        let detail = format!("is {:?}", shorten(value));
        faults.push(Fault::new(field, detail, format!("write one of {}", known.join(", "))));
    }
}

fn each_of(values: Option<&[String]>, field: &str, known: &[&str], faults: &mut Vec<Fault>) {
    for (i, value) in values.unwrap_or_default().iter().enumerate() {
        if !known.contains(&value.as_str()) {
            let detail = format!("is {:?}", shorten(value));
            let remedy = format!("write one of {}", known.join(", "));
            faults.push(Fault::new(format!("{field}[{i}]"), detail, remedy));
        }
    }
}

fn csi_map(map: Option<&BTreeMap<String, String>>, field: &str, faults: &mut Vec<Fault>) {
    if map.into_iter().flatten().map(|(k, v)| k.len() + v.len()).sum::<usize>() > CSI_MAP {
        faults.push(too_long(field, CSI_MAP));
    }
}

/// A kubelet passes it on; some drivers then refuse it.
fn too_long(field: &str, limit: usize) -> Fault {
    let detail = format!("has more than the {limit} bytes that CSI lets a driver expect");
    Fault::new(field, detail, "shorten it if the driver refuses it").warning()
}

fn quantities(map: Option<&BTreeMap<String, Quantity>>, field: &str, faults: &mut Vec<Fault>) {
    for (name, quantity) in map.into_iter().flatten() {
        if !is_quantity(&quantity.0) {
            let detail = format!("is {:?}, which is no quantity", shorten(&quantity.0));
            let remedy = "write a number with an optional suffix: 10Gi, 500M, 1e9";
            faults.push(Fault::new(format!("{field}.{}", shorten(name)), detail, remedy));
        }
    }
}

/// A decimal number and a suffix: `m`, `k` to `E`, `Ki` to `Ei`, or an exponent.
fn is_quantity(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(end);
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let known = ["", "n", "u", "m", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let exponent = || {
        let power = suffix.strip_prefix(['e', 'E'])?;
        let power = power.strip_prefix(['+', '-']).unwrap_or(power);
        Some(!power.is_empty() && power.len() <= 3 && power.bytes().all(|b| b.is_ascii_digit()))
    };
    digits > 0 && number.len() - digits <= 1 && (known.contains(&suffix) || exponent().unwrap_or(false))
}
