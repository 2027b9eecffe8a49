//! Local volumes: a directory of this host that a PersistentVolume names (kubelet.md 4.6).

use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{LocalVolumeSource, PersistentVolumeSpec};

use super::csi::Bound;
use super::index::Index;
use super::pod::{Place, PodView, Usage};
use super::{affinity, group, hold, modes};
use crate::model::{Hold, LocalWant, Plugin, VolumeKey, VolumeMode, WantedVolume};

/// Returns the volume behind a PV with a local source.
///
/// # Errors
/// The hold, when it is not this node's, its path could lead elsewhere than it says, or it is not supported.
pub(super) fn persistent(
    index: &Index<'_>,
    pod: &PodView<'_>,
    usage: &Usage,
    bound: &Bound<'_>,
    spec: &PersistentVolumeSpec,
    source: &LocalVolumeSource,
) -> Result<Place, Hold> {
    let name = bound.name;
    let invalid = |problem: &str| {
        hold::invalid(
            format!("PersistentVolume {name}: spec.local.path {:?} {problem}", source.path),
            "write the absolute path of a directory, without ..",
        )
    };
    let path = Path::new(&source.path);
    if !path.is_absolute() || source.path.contains('\0') {
        return Err(invalid("is not an absolute path"));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(invalid("has a .."));
    }
    affinity::check(name, spec, index.node)?;
    if modes::volume_mode(name, spec, usage)? == VolumeMode::Block {
        return Err(hold::not_supported(
            format!("PersistentVolume {name}: a local volume of volumeMode Block"),
            "use volumeMode Filesystem with a directory, or a CSI driver",
        ));
    }
    if let Some(fs_type) = source.fs_type.as_deref().filter(|fs_type| !fs_type.is_empty()) {
        return Err(hold::not_supported(
            format!("PersistentVolume {name}: spec.local.fsType {fs_type}: a device that is to be mounted"),
            "mount the device (systemd.mount, /etc/fstab) and name its directory, without fsType",
        ));
    }
    let access = modes::access(name, spec)?;
    let read_only = bound.read_only || access.readers_only;
    let options = spec.mount_options.clone().unwrap_or_default();
    let nobody_writes = read_only || options.iter().flat_map(|o| o.split(',')).any(|o| o.trim() == "ro");
    let want = LocalWant {
        path: path.components().collect(),
        mount_flags: options,
        access_mode: access.first.to_owned(),
        read_only,
        single_pod: access.single_pod,
        ownership: group::of_local(pod)?.filter(|_| !nobody_writes),
    };
    let id = pod.publication(Plugin::Local, name)?;
    Ok(Place { key: VolumeKey::local(&id.spec), id, volume: WantedVolume::Local(Box::new(want)) })
}
