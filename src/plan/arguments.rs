//! What will be sent: the calls' arguments from the wish and what the driver can do, as a kubelet sends them (csi.md 2.10).

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::model::{
    AccessMode, Attach, BlockedCause, Capability, CsiWant, DeviceWant, DriverInfo, ExpandArguments, Layout,
    Lifecycle, LocalWant, NfsWant, PublicationId, PublicationPlan, PublishArguments, StageArguments,
    StagingKind, VolumeMode, Wanted, WantedVolume,
};

pub(super) type Refused = (BlockedCause, String);

/// Returns the arguments of NodeStageVolume. `id`: any publication of the volume; it says the PV's name.
pub(super) fn stage(
    layout: &Layout,
    id: &PublicationId,
    csi: &CsiWant,
    info: &DriverInfo,
) -> Result<StageArguments, Refused> {
    Ok(StageArguments {
        kind: if info.stage_unstage { StagingKind::Call } else { StagingKind::DirectoryOnly },
        staging_path: staging_path(layout, id, csi),
        publish_context: publish_context(csi, info)?,
        capability: capability(csi, info)?,
        volume_context: csi.volume_context.clone(),
    })
}

/// Returns a publication's intent. CSI volumes need `info`, and how the volume is staged where it is: a driver that gained or
/// lost STAGE_UNSTAGE_VOLUME meanwhile changes nothing for a volume that is up.
pub(super) fn publication(
    layout: &Layout,
    id: &PublicationId,
    wanted: &Wanted,
    info: Option<&DriverInfo>,
    staged: Option<StagingKind>,
) -> Result<PublicationPlan, Refused> {
    let arguments = match (&wanted.volume, info) {
        (WantedVolume::Csi(csi), Some(info)) => Some(publish(layout, id, wanted, csi, info, staged)?),
        (WantedVolume::Local(local), _) => Some(show(layout, id, local)?),
        (WantedVolume::Device(device), _) => Some(publish_device(layout, id, device)?),
        (WantedVolume::Nfs(nfs), _) => Some(show_nfs(layout, id, nfs)?),
        (WantedVolume::Csi(_) | WantedVolume::EmptyDir { .. } | WantedVolume::HostPath { .. }, _) => None,
    };
    Ok(PublicationPlan {
        pod: wanted.pod.clone(),
        names: wanted.names.clone(),
        claim: wanted.claim.clone(),
        manifest: wanted.manifest.clone(),
        arguments,
    })
}

/// Returns how a device is brought to the node; nobody is called.
pub(super) fn stage_device(
    layout: &Layout,
    id: &PublicationId,
    device: &DeviceWant,
) -> Result<StageArguments, Refused> {
    let read_only = device.source_read_only.then(|| "ro".to_owned());
    let mut capability = device_capability(device)?;
    capability.mount_flags.splice(..0, read_only);
    Ok(StageArguments {
        // Of a raw device nothing is mounted.
        kind: match device.volume_mode {
            VolumeMode::Filesystem => StagingKind::Call,
            VolumeMode::Block => StagingKind::DirectoryOnly,
        },
        staging_path: device_staging(layout, id, device),
        publish_context: BTreeMap::new(),
        capability,
        volume_context: BTreeMap::new(),
    })
}

fn publish_device(
    layout: &Layout,
    id: &PublicationId,
    device: &DeviceWant,
) -> Result<PublishArguments, Refused> {
    let target = match device.volume_mode {
        VolumeMode::Filesystem => layout.target(id),
        VolumeMode::Block => layout.block_target(id),
    };
    Ok(PublishArguments {
        target_path: layout.absolute(&target),
        staging_path: Some(device_staging(layout, id, device)),
        publish_context: BTreeMap::new(),
        capability: device_capability(device)?,
        read_only: device.read_only || device.source_read_only,
        volume_context: BTreeMap::new(),
    })
}

fn device_staging(layout: &Layout, id: &PublicationId, device: &DeviceWant) -> PathBuf {
    layout.absolute(&match device.volume_mode {
        VolumeMode::Filesystem => layout.device_staging(&device.disk, &id.spec),
        VolumeMode::Block => layout.raw_staging(&device.disk, &id.spec),
    })
}

fn device_capability(device: &DeviceWant) -> Result<Capability, Refused> {
    let of_file_system = device.volume_mode == VolumeMode::Filesystem;
    let fs_type = device.fs_type.filter(|_| of_file_system).map(|kind| kind.name().to_owned());
    let mount_flags = Some(device.mount_flags.clone()).filter(|_| of_file_system);
    Ok(Capability {
        volume_mode: device.volume_mode,
        mount_group: String::new(),
        fs_type: fs_type.unwrap_or_default(),
        mount_flags: mount_flags.unwrap_or_default(),
        access_mode: access_mode(&device.access_mode, true)?,
    })
}

/// Returns what a device that is published as `shown` says is to grow to; 0 bytes: as large as it is.
pub(super) fn expand_device(shown: &PublishArguments, required_bytes: u64) -> ExpandArguments {
    ExpandArguments {
        volume_path: shown.target_path.clone(),
        staging_path: shown.staging_path.clone(),
        required_bytes,
        capability: shown.capability.clone(),
    }
}

/// Returns how a local volume is shown; nobody is called.
fn show(layout: &Layout, id: &PublicationId, local: &LocalWant) -> Result<PublishArguments, Refused> {
    shown(layout, id, &local.mount_flags, &local.access_mode, local.read_only)
}

/// Returns how an NFS volume is shown; its server and path are in the record.
fn show_nfs(layout: &Layout, id: &PublicationId, nfs: &NfsWant) -> Result<PublishArguments, Refused> {
    shown(layout, id, &nfs.mount_flags, &nfs.access_mode, nfs.read_only)
}

fn shown(
    layout: &Layout,
    id: &PublicationId,
    mount_flags: &[String],
    mode: &str,
    read_only: bool,
) -> Result<PublishArguments, Refused> {
    Ok(PublishArguments {
        target_path: layout.absolute(&layout.target(id)),
        staging_path: None,
        publish_context: BTreeMap::new(),
        capability: Capability {
            volume_mode: VolumeMode::Filesystem,
            mount_group: String::new(),
            fs_type: String::new(),
            mount_flags: mount_flags.to_vec(),
            access_mode: access_mode(mode, true)?,
        },
        read_only,
        volume_context: BTreeMap::new(),
    })
}

fn publish(
    layout: &Layout,
    id: &PublicationId,
    wanted: &Wanted,
    csi: &CsiWant,
    info: &DriverInfo,
    staged: Option<StagingKind>,
) -> Result<PublishArguments, Refused> {
    let mut volume_context = csi.volume_context.clone();
    if let Some(pod_info) = &csi.pod_info {
        let ephemeral = csi.lifecycle == Lifecycle::Ephemeral;
        volume_context.extend([
            ("csi.storage.k8s.io/pod.name".to_owned(), wanted.pod.name.clone()),
            ("csi.storage.k8s.io/pod.namespace".to_owned(), wanted.pod.namespace.clone()),
            ("csi.storage.k8s.io/pod.uid".to_owned(), wanted.pod.uid.to_string()),
            ("csi.storage.k8s.io/serviceAccount.name".to_owned(), pod_info.service_account.clone()),
            ("csi.storage.k8s.io/ephemeral".to_owned(), ephemeral.to_string()),
        ]);
    }
    let by_call = staged.map_or(info.stage_unstage, |kind| kind == StagingKind::Call);
    // A kubelet names the staging path of a block volume even to drivers without staging (csi.md 2.10).
    let named = by_call || csi.volume_mode == VolumeMode::Block;
    let target = match csi.volume_mode {
        VolumeMode::Filesystem => layout.csi_target(id),
        VolumeMode::Block => layout.block_target(id),
    };
    Ok(PublishArguments {
        target_path: layout.absolute(&target),
        staging_path: (named && csi.lifecycle == Lifecycle::Persistent)
            .then(|| staging_path(layout, id, csi)),
        publish_context: publish_context(csi, info)?,
        capability: capability(csi, info)?,
        read_only: csi.read_only,
        volume_context,
    })
}

/// Returns the arguments of NodeExpandVolume for a volume that is published as `shown` says. The group is no part of it.
pub(super) fn expand(
    layout: &Layout,
    id: &PublicationId,
    csi: &CsiWant,
    shown: &PublishArguments,
    required_bytes: u64,
) -> ExpandArguments {
    let staging_path = match csi.volume_mode {
        // Known, so named, whether the driver stages or not (csi.md 6.4).
        VolumeMode::Filesystem => Some(staging_path(layout, id, csi)),
        VolumeMode::Block => shown.staging_path.clone(),
    };
    let capability = Capability { mount_group: String::new(), ..shown.capability.clone() };
    ExpandArguments { volume_path: shown.target_path.clone(), staging_path, required_bytes, capability }
}

fn staging_path(layout: &Layout, id: &PublicationId, csi: &CsiWant) -> PathBuf {
    layout.absolute(&match csi.volume_mode {
        VolumeMode::Filesystem => layout.csi_staging(&csi.driver, &csi.handle),
        VolumeMode::Block => layout.block_staging(&id.spec),
    })
}

fn access_mode(name: &str, multi_writer_capable: bool) -> Result<AccessMode, Refused> {
    AccessMode::from_kubernetes(name, multi_writer_capable).ok_or_else(|| {
        (
            BlockedCause::new("access-mode-unknown", format!("access mode {name:?} is not known")),
            "use ReadWriteOnce, ReadWriteOncePod, ReadOnlyMany or ReadWriteMany".to_owned(),
        )
    })
}

fn capability(csi: &CsiWant, info: &DriverInfo) -> Result<Capability, Refused> {
    let access_mode = access_mode(&csi.access_mode, info.single_node_multi_writer)?;
    let mount_group = match csi.fs_group.filter(|_| info.volume_mount_group) {
        Some(group) => group.ownership.group.to_string(),
        None => String::new(),
    };
    Ok(match csi.volume_mode {
        VolumeMode::Filesystem => Capability {
            volume_mode: VolumeMode::Filesystem,
            mount_group,
            fs_type: csi.fs_type.clone(),
            mount_flags: csi.mount_flags.clone(),
            access_mode,
        },
        VolumeMode::Block => Capability {
            volume_mode: VolumeMode::Block,
            mount_group: String::new(),
            fs_type: String::new(),
            mount_flags: Vec::new(),
            access_mode,
        },
    })
}

/// Returns the publish_context, or why there is none yet (csi.md 5.1; the rule for a missing CSIDriver).
fn publish_context(csi: &CsiWant, info: &DriverInfo) -> Result<BTreeMap<String, String>, Refused> {
    match &csi.attach {
        Attach::NotRequired => Ok(BTreeMap::new()),
        Attach::Attached(context) => Ok(context.clone()),
        Attach::MissingIfGated if !info.publish_unpublish => Ok(BTreeMap::new()),
        Attach::Missing | Attach::MissingIfGated => Err((
            BlockedCause::new(
                "not-attached",
                format!(
                    "driver {} needs volume {} attached, and no VolumeAttachment says that it is",
                    csi.driver, csi.handle
                ),
            ),
            "add a VolumeAttachment manifest with status.attached: true, or a CSIDriver with spec.attachRequired: false"
                .to_owned(),
        )),
    }
}
