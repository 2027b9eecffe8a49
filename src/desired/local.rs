//! Local volumes: a directory or a block device of this host that a PersistentVolume names (kubelet.md 4.6).

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{LocalVolumeSource, PersistentVolumeSpec};

use super::csi::Bound;
use super::index::Index;
use super::pod::{Place, PodView, Usage};
use super::{affinity, annotations, group, hold, modes, size};
use crate::model::{
    DeviceWant, DiskSource, FsKind, Hold, LocalWant, Plugin, SizeWant, VolumeKey, VolumeMode, WantedVolume,
};

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
            "write the absolute path of a directory or device, without ..",
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
    let mode = modes::volume_mode(name, spec, usage)?;
    let path: PathBuf = path.components().collect();
    let access = modes::access(name, spec)?;
    let read_only = bound.read_only || access.readers_only;
    let options = spec.mount_options.clone().unwrap_or_default();
    let ro = options.iter().flat_map(|o| o.split(',')).any(|o| o.trim() == "ro");
    let ownership = group::of_local(pod)?.filter(|_| !read_only && !ro);
    let id = pod.publication(Plugin::Local, name)?;
    let fs_type = source.fs_type.as_deref().filter(|fs_type| !fs_type.is_empty());
    let volume = if is_device(&path, mode, fs_type) {
        let (claim, object) = bound.claim;
        let key = annotations::key(index, name, bound.volume)?;
        let size = size::wanted((name, spec), (claim, object), access.many_writers)?;
        WantedVolume::Device(Box::new(DeviceWant {
            disk: DiskSource::Path(path),
            volume_mode: mode,
            fs_type: file_system(&format!("PersistentVolume {name}: spec.local.fsType"), fs_type)?,
            mount_flags: options,
            access_mode: access.first.to_owned(),
            read_only,
            source_read_only: access.readers_only || ro,
            single_pod: access.single_pod,
            ownership: ownership.filter(|_| mode == VolumeMode::Filesystem),
            // Every node that shares the device through a network has its own file system to look after.
            size: size.map(|size| SizeWant { every_node: false, ..size }),
            auto_grow: annotations::auto_grow(name, bound.volume)?,
            key: key.as_ref().map(|(source, _)| source.clone()),
            secrets: key.map(|(_, secrets)| secrets).unwrap_or_default(),
        }))
    } else {
        annotations::no_key(name, bound.volume)?;
        WantedVolume::Local(Box::new(LocalWant {
            path,
            mount_flags: options,
            access_mode: access.first.to_owned(),
            read_only,
            single_pod: access.single_pod,
            ownership,
        }))
    };
    Ok(Place { key: VolumeKey::local(&id.spec), id, volume })
}

/// Whether a path names a device rather than a directory. A kubelet looks what is there; but what is there is not known before its
/// disk is, and a directory must not be taken for the device that is to be mounted on it. So the manifest says it.
fn is_device(path: &Path, mode: VolumeMode, fs_type: Option<&str>) -> bool {
    mode == VolumeMode::Block || fs_type.is_some() || path.starts_with("/dev")
}

/// Returns the file system that a field names; none where it is empty.
///
/// # Errors
/// The hold, when it is not supported.
pub(super) fn file_system(field: &str, fs_type: Option<&str>) -> Result<Option<FsKind>, Hold> {
    let Some(name) = fs_type.filter(|name| !name.is_empty()) else { return Ok(None) };
    FsKind::of(name).map(Some).ok_or_else(|| {
        hold::not_supported(
            format!("{field} {name:?}"),
            format!("write one of {}", FsKind::ALL.map(FsKind::name).join(", ")),
        )
    })
}
