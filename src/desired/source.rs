//! The sources of a pod's volumes: which there is, and the ones that need no other object.

use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{EmptyDirVolumeSource, HostPathVolumeSource, PersistentVolumeSpec, Volume};

use super::pod::{Place, PodView};
use super::{group, hold};
use crate::model::{Hold, Plugin, VolumeKey, WantedVolume};

/// Names the fields that are set.
macro_rules! set_fields {
    ($of:expr, $($field:ident: $name:literal),+ $(,)?) => {
        [$(($of.$field.is_some(), $name)),+].into_iter().filter(|(set, _)| *set).map(|(_, name)| name)
    };
}

/// Returns the kinds of sources that a volume names; a valid one names one.
pub(super) fn kinds(volume: &Volume) -> Vec<&'static str> {
    set_fields!(
        volume,
        aws_elastic_block_store: "awsElasticBlockStore",
        azure_disk: "azureDisk",
        azure_file: "azureFile",
        cephfs: "cephfs",
        cinder: "cinder",
        config_map: "configMap",
        csi: "csi",
        downward_api: "downwardAPI",
        empty_dir: "emptyDir",
        ephemeral: "ephemeral",
        fc: "fc",
        flex_volume: "flexVolume",
        flocker: "flocker",
        gce_persistent_disk: "gcePersistentDisk",
        git_repo: "gitRepo",
        glusterfs: "glusterfs",
        host_path: "hostPath",
        image: "image",
        iscsi: "iscsi",
        nfs: "nfs",
        persistent_volume_claim: "persistentVolumeClaim",
        photon_persistent_disk: "photonPersistentDisk",
        portworx_volume: "portworxVolume",
        projected: "projected",
        quobyte: "quobyte",
        rbd: "rbd",
        scale_io: "scaleIO",
        secret: "secret",
        storageos: "storageos",
        vsphere_volume: "vsphereVolume",
    )
    .collect()
}

/// Returns the kind of source of a PV that is not CSI.
pub(super) fn kind_of_persistent(spec: &PersistentVolumeSpec) -> Option<&'static str> {
    set_fields!(
        spec,
        aws_elastic_block_store: "an awsElasticBlockStore source",
        azure_disk: "an azureDisk source",
        azure_file: "an azureFile source",
        cephfs: "a cephfs source",
        cinder: "a cinder source",
        fc: "an fc source",
        flex_volume: "a flexVolume source",
        flocker: "a flocker source",
        gce_persistent_disk: "a gcePersistentDisk source",
        glusterfs: "a glusterfs source",
        host_path: "a hostPath source",
        iscsi: "an iscsi source",
        local: "a local source",
        nfs: "an nfs source",
        photon_persistent_disk: "a photonPersistentDisk source",
        portworx_volume: "a portworxVolume source",
        quobyte: "a quobyte source",
        rbd: "an rbd source",
        scale_io: "a scaleIO source",
        storageos: "a storageos source",
        vsphere_volume: "a vsphereVolume source",
    )
    .next()
}

/// Returns an emptyDir on disk.
///
/// # Errors
/// The hold, for what is not supported yet, and for a group that is none.
pub(super) fn empty_dir(pod: &PodView<'_>, name: &str, source: &EmptyDirVolumeSource) -> Result<Place, Hold> {
    if let Some(medium) = source.medium.as_deref().filter(|m| !m.is_empty()) {
        return Err(hold::not_supported(
            format!("{}: volume {name}: emptyDir.medium {medium}", pod.identity),
            "use an emptyDir without a medium",
        ));
    }
    let ownership = group::of_empty_dir(pod)?;
    let id = pod.publication(Plugin::EmptyDir, name)?;
    Ok(Place { key: VolumeKey::of_pod(&id), id, volume: WantedVolume::EmptyDir { ownership } })
}

/// Returns a hostPath: used as it is, whoever owns it, so fsGroup does not concern it (kubelet.md 4.1, 4.3).
///
/// # Errors
/// The hold, when the path could lead elsewhere than it says, or a type is to be checked.
pub(super) fn host_path(pod: &PodView<'_>, name: &str, source: &HostPathVolumeSource) -> Result<Place, Hold> {
    if let Some(kind) = source.type_.as_deref().filter(|t| !t.is_empty()) {
        return Err(hold::not_supported(
            format!("{}: volume {name}: hostPath.type {kind}", pod.identity),
            "use a hostPath without a type and make sure that it exists",
        ));
    }
    let path = Path::new(&source.path);
    let backwards = path.components().any(|c| c == Component::ParentDir);
    if !path.is_absolute() || backwards || source.path.contains('\0') {
        return Err(hold::invalid(
            format!(
                "{}: volume {name}: hostPath.path {:?} is not an absolute path without ..",
                pod.identity, source.path
            ),
            "write an absolute path without ..",
        ));
    }
    let id = pod.publication(Plugin::HostPath, name)?;
    let volume = WantedVolume::HostPath { path: path.to_owned() };
    Ok(Place { key: VolumeKey::of_pod(&id), id, volume })
}
