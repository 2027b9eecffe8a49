//! CSI volumes: a PersistentVolume or an inline source, with what CSIDriver, VolumeAttachment and Secrets add (kubelet.md 5).

use std::fmt::Write as _;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, CSIVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::{CSIDriver, CSIDriverSpec};
use sha2::{Digest, Sha256};

use super::index::{Index, Name, SAME_HANDLE_REMEDY, same_handle};
use super::modes::{self, Access};
use super::pod::{Place, PodView, Usage};
use super::{group, hold, secrets, size, source, tokens};
use crate::model::{
    Attach, CsiWant, DriverName, Hold, Lifecycle, Plugin, PodInfo, VolumeKey, VolumeMode, WantedVolume,
};

/// A PV and the claim that is bound to it, as a pod uses them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound<'a> {
    /// The PV's name.
    pub(super) name: &'a str,
    pub(super) volume: &'a PersistentVolume,
    pub(super) claim: (Name<'a>, &'a PersistentVolumeClaim),
    /// The pod's.
    pub(super) read_only: bool,
}

/// Returns the volume behind a PV.
///
/// # Errors
/// The hold, when it is not a CSI driver's, or something that it needs is missing, broken or not supported.
pub(super) fn persistent(
    index: &Index<'_>,
    pod: &PodView<'_>,
    usage: &Usage,
    bound: &Bound<'_>,
) -> Result<Place, Hold> {
    let Bound { name, volume, claim, read_only } = *bound;
    let spec = spec_of(name, volume)?;
    let volume_mode = modes::volume_mode(name, spec, usage)?;
    let Some(csi) = &spec.csi else {
        let what = source::kind_of_persistent(spec).unwrap_or("without a source");
        return Err(hold::not_supported(
            format!("PersistentVolume {name}: {what}"),
            "use a PersistentVolume with a csi, local, nfs, iscsi or fc source",
        ));
    };
    let driver = driver_of(index, name, csi)?;
    let access = modes::access(name, spec)?;
    let source_read_only = csi.read_only == Some(true) || access.readers_only;
    let object = index.driver(&csi.driver)?;
    let offered = object.map(|o| &o.spec);
    offers_lifecycle(offered, &driver, Lifecycle::Persistent)?;
    let secret = |reference, field| secrets::referenced(index, reference, name, field);
    let mut want = CsiWant {
        handle: csi.volume_handle.clone(),
        lifecycle: Lifecycle::Persistent,
        volume_mode,
        // A block device has none of the three, whatever the PV says (kubelet.md 5.6).
        fs_type: String::new(),
        mount_flags: Vec::new(),
        fs_group: None,
        access_mode: access.first.to_owned(),
        volume_context: csi.volume_attributes.clone().unwrap_or_default(),
        read_only,
        source_read_only,
        single_pod: access.single_pod,
        republish: republish(offered),
        // Nor is it handed tokens.
        tokens: None,
        size: size::wanted((name, spec), claim, access.many_writers)?,
        pod_info: pod_info(pod, offered),
        attach: attach(index, object, &csi.driver, name)?,
        stage_secrets: secret(csi.node_stage_secret_ref.as_ref(), "nodeStageSecretRef")?,
        publish_secrets: secret(csi.node_publish_secret_ref.as_ref(), "nodePublishSecretRef")?,
        expand_secrets: secret(csi.node_expand_secret_ref.as_ref(), "nodeExpandSecretRef")?,
        driver,
    };
    if volume_mode == VolumeMode::Filesystem {
        let fs_type = csi.fs_type.as_deref().unwrap_or_default();
        let driver = &want.driver;
        let target = group::Target { driver, fs_type, access, read_only, source_read_only };
        want.fs_group = group::of_csi(pod, offered, &target)?;
        want.tokens = tokens::requested(&index.node.tokens, pod, offered, driver)?;
        no_context_mount(pod, usage, offered, driver, access)?;
        want.fs_type = fs_type.to_owned();
        // As written, order and duplicates too; the annotation of old does not count (kubelet.md 5.2).
        want.mount_flags = spec.mount_options.clone().unwrap_or_default();
    }
    Ok(Place {
        key: VolumeKey::csi(&want.driver, &csi.volume_handle),
        id: pod.publication(Plugin::Csi, name)?,
        volume: WantedVolume::Csi(Box::new(want)),
    })
}

/// Returns what a PV says of itself.
///
/// # Errors
/// The hold, when it says nothing.
pub(super) fn spec_of<'a>(
    name: &str,
    volume: &'a PersistentVolume,
) -> Result<&'a PersistentVolumeSpec, Hold> {
    let missing = || hold::invalid(format!("PersistentVolume {name} has no spec"), "write its spec");
    volume.spec.as_ref().ok_or_else(missing)
}

/// Returns the driver of a PV that is the only one with its handle.
fn driver_of(index: &Index<'_>, name: &str, csi: &CSIPersistentVolumeSource) -> Result<DriverName, Hold> {
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
    Ok(driver)
}

/// Returns an inline volume: published only, never staged or attached (kubelet.md 5.4).
///
/// # Errors
/// The hold, when no CSIDriver allows it, or something that it needs is missing, broken or not supported.
pub(super) fn inline(
    index: &Index<'_>,
    pod: &PodView<'_>,
    name: &str,
    csi: &CSIVolumeSource,
) -> Result<Place, Hold> {
    let driver = DriverName::new(&csi.driver).map_err(|e| {
        hold::invalid(format!("{}: volume {name}: csi.driver: {e}", pod.identity), "correct the pod")
    })?;
    let object = index.driver(&csi.driver)?;
    let offered = object.map(|o| &o.spec);
    offers_lifecycle(offered, &driver, Lifecycle::Ephemeral)?;
    let read_only = csi.read_only.unwrap_or_default();
    let fs_type = csi.fs_type.as_deref().unwrap_or_default();
    let access = Access::INLINE;
    let target = group::Target { driver: &driver, fs_type, access, read_only, source_read_only: false };
    let fs_group = group::of_csi(pod, offered, &target)?;
    let tokens = tokens::requested(&index.node.tokens, pod, offered, &driver)?;
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
        volume: WantedVolume::Csi(Box::new(CsiWant {
            handle: inline_handle(pod.identity.uid.as_str(), name),
            lifecycle: Lifecycle::Ephemeral,
            volume_mode: VolumeMode::Filesystem,
            fs_type: fs_type.to_owned(),
            mount_flags: Vec::new(),
            access_mode: access.first.to_owned(),
            volume_context: csi.volume_attributes.clone().unwrap_or_default(),
            read_only,
            source_read_only: false,
            single_pod: access.single_pod,
            fs_group,
            republish: republish(offered),
            tokens,
            size: None,
            pod_info: pod_info(pod, offered),
            attach: Attach::NotRequired,
            stage_secrets: std::sync::Arc::default(),
            publish_secrets,
            expand_secrets: std::sync::Arc::default(),
            driver,
        })),
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

/// Without a CSIDriver a PV works and an inline volume does not (kubelet.md 5.3).
fn offers_lifecycle(
    spec: Option<&CSIDriverSpec>,
    driver: &DriverName,
    lifecycle: Lifecycle,
) -> Result<(), Hold> {
    let mode = lifecycle.name();
    let modes = spec.map(|s| s.volume_lifecycle_modes.as_deref().unwrap_or_default());
    let remedy = format!("add {mode} to volumeLifecycleModes of CSIDriver {driver} if the driver can do it");
    match (modes, lifecycle) {
        (None | Some([]), Lifecycle::Persistent) => Ok(()),
        (None, Lifecycle::Ephemeral) => Err(hold::hold(
            crate::model::HoldCode::ObjectMissing,
            format!("CSIDriver {driver}, which must list Ephemeral for an inline volume, is in no manifest"),
            format!("add a manifest of CSIDriver {driver} with volumeLifecycleModes [Ephemeral]"),
        )),
        (Some(modes), _) if modes.iter().any(|m| m == mode) => Ok(()),
        (Some(_), _) => Err(hold::invalid(
            format!("CSIDriver {driver} does not list {mode} in volumeLifecycleModes"),
            remedy,
        )),
    }
}

/// Holds what a kubelet 1.36 would mount with `context=` (kubelet.md 6.2: ReadWriteOncePod only).
fn no_context_mount(
    pod: &PodView<'_>,
    usage: &Usage,
    spec: Option<&CSIDriverSpec>,
    driver: &DriverName,
    access: Access<'_>,
) -> Result<(), Hold> {
    let takes = spec.is_some_and(|s| s.se_linux_mount == Some(true))
        && access.single_pod
        && pod.changes_labels_by_mount
        && usage.labelled;
    if takes {
        return Err(hold::not_supported(
            format!("CSIDriver {driver}: seLinuxMount with the labels of {}", pod.identity),
            "remove seLinuxOptions from the pod or set seLinuxChangePolicy: Recursive",
        ));
    }
    Ok(())
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

fn pod_info(pod: &PodView<'_>, spec: Option<&CSIDriverSpec>) -> Option<PodInfo> {
    let wanted = spec.is_some_and(|s| s.pod_info_on_mount == Some(true));
    wanted.then(|| PodInfo { service_account: pod.service_account.to_owned() })
}

fn republish(spec: Option<&CSIDriverSpec>) -> bool {
    spec.is_some_and(|s| s.requires_republish == Some(true))
}
