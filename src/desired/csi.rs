//! CSI volumes: a PersistentVolume or an inline source, with what CSIDriver, VolumeAttachment and Secrets add (kubelet.md 5).

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{CSIVolumeSource, PersistentVolume, PersistentVolumeSpec};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};
use sha2::{Digest, Sha256};

use super::hold;
use super::index::{Index, SAME_HANDLE_REMEDY, same_handle};
use super::pod::{Place, PodView, Usage};
use super::{secrets, source};
use crate::model::{
    Attach, CsiWant, DriverName, Hold, Lifecycle, Plugin, PodInfo, VolumeKey, VolumeMode, WantedVolume,
};

/// What a PV or an inline source asks of its driver's CSIDriver.
struct Asked<'a> {
    driver: &'a DriverName,
    lifecycle: Lifecycle,
    fs_type: &'a str,
    access_modes: &'a [String],
    read_only: bool,
}

/// Returns the volume behind a PV.
///
/// # Errors
/// The hold, when it is not a file system of a CSI driver, or something that it needs is missing, broken or not supported.
pub(super) fn persistent(
    index: &Index<'_>,
    pod: &PodView<'_>,
    usage: &Usage,
    (name, volume): (&str, &PersistentVolume),
    read_only: bool,
) -> Result<Place, Hold> {
    let spec = volume
        .spec
        .as_ref()
        .ok_or_else(|| hold::invalid(format!("PersistentVolume {name} has no spec"), "write its spec"))?;
    volume_mode(name, spec, usage)?;
    let Some(csi) = &spec.csi else {
        let what = source::kind_of_persistent(spec).unwrap_or("without a source");
        return Err(hold::not_supported(
            format!("PersistentVolume {name}: {what}"),
            "use a PersistentVolume with a csi source",
        ));
    };
    let bad = |problem: String| {
        hold::invalid(format!("PersistentVolume {name}: {problem}"), "correct the PersistentVolume")
    };
    let driver = DriverName::new(&csi.driver).map_err(|e| bad(format!("spec.csi.driver: {e}")))?;
    if csi.volume_handle.is_empty() {
        return Err(bad("spec.csi.volumeHandle is empty".to_owned()));
    }
    if let Some(first) = index.owner_of_handle(&csi.driver, &csi.volume_handle).filter(|f| *f != name) {
        return Err(hold::invalid(
            same_handle(name, first, &csi.driver, &csi.volume_handle),
            SAME_HANDLE_REMEDY,
        ));
    }
    let access_modes = spec.access_modes.as_deref().unwrap_or_default();
    let fs_type = csi.fs_type.as_deref().unwrap_or_default();
    let lifecycle = Lifecycle::Persistent;
    let object = index.driver(&csi.driver)?;
    let asked = Asked { driver: &driver, lifecycle, fs_type, access_modes, read_only };
    supported(pod, usage, object, &asked)?;
    let attach = attach(index, object, &csi.driver, name)?;
    let stage = csi.node_stage_secret_ref.as_ref();
    let publish = csi.node_publish_secret_ref.as_ref();
    Ok(Place {
        key: VolumeKey::csi(&driver, &csi.volume_handle),
        id: pod.publication(Plugin::Csi, name)?,
        volume: WantedVolume::Csi(CsiWant {
            handle: csi.volume_handle.clone(),
            lifecycle,
            volume_mode: VolumeMode::Filesystem,
            fs_type: fs_type.to_owned(),
            mount_flags: spec.mount_options.clone().unwrap_or_default(),
            access_mode: access_modes.first().map_or("ReadWriteOnce", String::as_str).to_owned(),
            volume_context: csi.volume_attributes.clone().unwrap_or_default(),
            read_only,
            source_read_only: false,
            single_pod: false,
            fs_group: None,
            republish: false,
            tokens: None,
            size: None,
            pod_info: pod_info(pod, object),
            attach,
            stage_secrets: secrets::referenced(index, stage, name, "nodeStageSecretRef")?,
            publish_secrets: secrets::referenced(index, publish, name, "nodePublishSecretRef")?,
            expand_secrets: std::sync::Arc::default(),
            driver,
        }),
    })
}

/// Returns an inline volume: published only, never staged or attached (kubelet.md 5.4).
///
/// # Errors
/// The hold, when no CSIDriver allows it, or something that it needs is missing, broken or not supported.
pub(super) fn inline(
    index: &Index<'_>,
    pod: &PodView<'_>,
    name: &str,
    usage: &Usage,
    csi: &CSIVolumeSource,
) -> Result<Place, Hold> {
    let driver = DriverName::new(&csi.driver).map_err(|e| {
        hold::invalid(format!("{}: volume {name}: csi.driver: {e}", pod.identity), "correct the pod")
    })?;
    let object = index.driver(&csi.driver)?;
    let read_only = csi.read_only.unwrap_or_default();
    let fs_type = csi.fs_type.as_deref().unwrap_or_default();
    let lifecycle = Lifecycle::Ephemeral;
    let asked = Asked { driver: &driver, lifecycle, fs_type, access_modes: &[], read_only };
    supported(pod, usage, object, &asked)?;
    let publish_secrets = match &csi.node_publish_secret_ref {
        None => std::sync::Arc::default(),
        Some(secret) => {
            let by = format!("volume {name} of {}", pod.identity);
            secrets::read(index, (pod.identity.namespace.clone(), secret.name.clone()), &by)?
        }
    };
    let id = pod.publication(Plugin::Csi, name)?;
    Ok(Place {
        key: VolumeKey::of_pod(&id),
        volume: WantedVolume::Csi(CsiWant {
            handle: inline_handle(pod.identity.uid.as_str(), name),
            lifecycle,
            volume_mode: VolumeMode::Filesystem,
            fs_type: fs_type.to_owned(),
            mount_flags: Vec::new(),
            access_mode: "ReadWriteOnce".to_owned(),
            volume_context: csi.volume_attributes.clone().unwrap_or_default(),
            read_only,
            source_read_only: false,
            single_pod: false,
            fs_group: None,
            republish: false,
            tokens: None,
            size: None,
            pod_info: pod_info(pod, object),
            attach: Attach::NotRequired,
            stage_secrets: std::sync::Arc::default(),
            publish_secrets,
            expand_secrets: std::sync::Arc::default(),
            driver,
        }),
        id,
    })
}

/// Returns the kubelet's handle for an inline volume (kubelet.md 3).
fn inline_handle(pod_uid: &str, volume: &str) -> String {
    let mut handle = "csi-".to_owned();
    for byte in Sha256::digest(format!("{pod_uid}{volume}").as_bytes()) {
        // Writing to a String cannot fail.
        let _written = write!(handle, "{byte:02x}");
    }
    handle
}

/// Compares the PV's mode with how containers use it (kubelet.md 1.5).
fn volume_mode(name: &str, spec: &PersistentVolumeSpec, usage: &Usage) -> Result<(), Hold> {
    let mode = spec.volume_mode.as_deref().unwrap_or("Filesystem");
    let mismatch = |field: &str| {
        hold::invalid(
            format!("PersistentVolume {name} has volumeMode {mode}, but is specified in {field}"),
            "use volumeMounts for Filesystem and volumeDevices for Block",
        )
    };
    match mode {
        "Filesystem" if usage.device => Err(mismatch("volumeDevices")),
        "Filesystem" => Ok(()),
        "Block" if usage.mounted => Err(mismatch("volumeMounts")),
        "Block" => Err(hold::not_supported(
            format!("PersistentVolume {name}: volumeMode Block"),
            "use a PersistentVolume with volumeMode Filesystem",
        )),
        other => Err(hold::invalid(
            format!("PersistentVolume {name}: spec.volumeMode {other:?} is unknown"),
            "write Filesystem or Block",
        )),
    }
}

/// Holds what the driver does not offer or volumed does not do yet.
fn supported(
    pod: &PodView<'_>,
    usage: &Usage,
    object: Option<&CSIDriver>,
    asked: &Asked<'_>,
) -> Result<(), Hold> {
    let spec = object.map(|o| &o.spec);
    offers_lifecycle(spec, asked)?;
    if spec.is_some_and(|s| s.token_requests.as_ref().is_some_and(|t| !t.is_empty())) {
        return Err(hold::not_supported(
            format!("CSIDriver {}: tokenRequests", asked.driver),
            "remove tokenRequests from the CSIDriver if the driver can do without",
        ));
    }
    if pod.fs_group.is_some() && takes_fs_group(spec, asked) {
        return Err(pod.fs_group_not_supported());
    }
    if takes_context_mount(pod, usage, spec, asked) {
        return Err(hold::not_supported(
            format!("CSIDriver {}: seLinuxMount with the labels of {}", asked.driver, pod.identity),
            "remove seLinuxOptions from the pod or set seLinuxChangePolicy: Recursive",
        ));
    }
    Ok(())
}

/// Without a CSIDriver a PV works and an inline volume does not (kubelet.md 5.3).
fn offers_lifecycle(spec: Option<&CSIDriverSpec>, asked: &Asked<'_>) -> Result<(), Hold> {
    let mode = asked.lifecycle.name();
    let modes = spec.map(|s| s.volume_lifecycle_modes.as_deref().unwrap_or_default());
    let remedy =
        format!("add {mode} to volumeLifecycleModes of CSIDriver {} if the driver can do it", asked.driver);
    match (modes, asked.lifecycle) {
        (None | Some([]), Lifecycle::Persistent) => Ok(()),
        (None, Lifecycle::Ephemeral) => Err(hold::hold(
            crate::model::HoldCode::ObjectMissing,
            format!(
                "CSIDriver {}, which must list Ephemeral for an inline volume, is in no manifest",
                asked.driver
            ),
            format!("add a manifest of CSIDriver {} with volumeLifecycleModes [Ephemeral]", asked.driver),
        )),
        (Some(modes), _) if modes.iter().any(|m| m == mode) => Ok(()),
        (Some(_), _) => Err(hold::invalid(
            format!("CSIDriver {} does not list {mode} in volumeLifecycleModes", asked.driver),
            remedy,
        )),
    }
}

/// Returns whether a kubelet would change the volume's group (kubelet.md 5.3, 6.1).
fn takes_fs_group(spec: Option<&CSIDriverSpec>, asked: &Asked<'_>) -> bool {
    if asked.read_only {
        return false;
    }
    let once = match asked.lifecycle {
        Lifecycle::Ephemeral => true,
        Lifecycle::Persistent => {
            asked.access_modes.iter().any(|m| m == "ReadWriteOnce" || m == "ReadWriteOncePod")
        }
    };
    match spec.and_then(|s| s.fs_group_policy.as_deref()) {
        Some("None") => false,
        Some("File") => true,
        // ReadWriteOnceWithFSType, the default, also where there is no CSIDriver.
        _ => !asked.fs_type.is_empty() && once,
    }
}

/// Returns whether a kubelet 1.36 would mount with `context=` (kubelet.md 6.2: ReadWriteOncePod only).
fn takes_context_mount(
    pod: &PodView<'_>,
    usage: &Usage,
    spec: Option<&CSIDriverSpec>,
    asked: &Asked<'_>,
) -> bool {
    let once = !asked.access_modes.is_empty() && asked.access_modes.iter().all(|m| m == "ReadWriteOncePod");
    spec.is_some_and(|s| s.se_linux_mount == Some(true))
        && once
        && pod.changes_labels_by_mount
        && usage.labelled
}

/// Decides about attachment from what the manifests say; whether the driver is gated is known later.
fn attach(index: &Index<'_>, object: Option<&CSIDriver>, driver: &str, volume: &str) -> Result<Attach, Hold> {
    let required = object.and_then(|o| o.spec.attach_required);
    if required == Some(false) {
        return Ok(Attach::NotRequired);
    }
    if let Some(attachment) = index.attached(driver, volume)? {
        let metadata = attachment.status.as_ref().and_then(|s| s.attachment_metadata.clone());
        return Ok(Attach::Attached(metadata.unwrap_or_default()));
    }
    Ok(if required == Some(true) { Attach::Missing } else { Attach::MissingIfGated })
}

fn pod_info(pod: &PodView<'_>, object: Option<&CSIDriver>) -> Option<PodInfo> {
    let wanted = object.is_some_and(|o| o.spec.pod_info_on_mount == Some(true));
    wanted.then(|| PodInfo { service_account: pod.service_account.to_owned() })
}
