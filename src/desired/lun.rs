//! Disks of storage systems: what they have in common, whatever their transport.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeSpec;

use super::csi::Bound;
use super::index::Index;
use super::pod::{Place, PodView, Usage};
use super::{annotations, group, local, modes, size};
use crate::model::{
    DeviceWant, DiskSource, Hold, Lun, Plugin, SecretMap, SizeWant, VolumeKey, VolumeMode, WantedVolume,
};

/// What a source says that was checked.
pub(super) struct Source<'a> {
    /// "PersistentVolume x: spec.iscsi"
    pub(super) field: &'a str,
    pub(super) fs_type: Option<&'a str>,
    pub(super) read_only: bool,
    pub(super) disk: Lun,
    /// For the storage system.
    pub(super) secrets: Arc<SecretMap>,
    pub(super) plugin: Plugin,
}

/// Returns the volume of a PV.
///
/// # Errors
/// The hold, when its modes, size, options or annotations have no meaning.
pub(super) fn persistent(
    index: &Index<'_>,
    pod: &PodView<'_>,
    usage: &Usage,
    bound: &Bound<'_>,
    spec: &PersistentVolumeSpec,
    source: Source<'_>,
) -> Result<Place, Hold> {
    let name = bound.name;
    let volume_mode = modes::volume_mode(name, spec, usage)?;
    let access = modes::access(name, spec)?;
    let mount_flags = spec.mount_options.clone().unwrap_or_default();
    let ro = mount_flags.iter().flat_map(|o| o.split(',')).any(|o| o.trim() == "ro");
    let read_only = bound.read_only;
    let source_read_only = source.read_only || access.readers_only || ro;
    let ownership = group::of_local(pod)?.filter(|_| !read_only && !source_read_only);
    let (claim, object) = bound.claim;
    let key = annotations::key(index, name, bound.volume)?;
    let size = size::wanted((name, spec), (claim, object), access.many_writers)?;
    let want = DeviceWant {
        disk: DiskSource::Lun(source.disk.clone()),
        volume_mode,
        fs_type: local::file_system(&format!("{}.fsType", source.field), source.fs_type)?,
        mount_flags,
        access_mode: access.first.to_owned(),
        read_only,
        source_read_only,
        single_pod: access.single_pod,
        ownership: ownership.filter(|_| volume_mode == VolumeMode::Filesystem),
        size: size.map(|size| SizeWant { every_node: false, ..size }),
        auto_grow: annotations::auto_grow(name, bound.volume)?,
        key: key.as_ref().map(|(of, _)| of.clone()),
        secrets: both(source.secrets, key.map(|(_, secrets)| secrets)),
    };
    Ok(Place {
        key: VolumeKey::lun(&source.disk),
        id: pod.publication(source.plugin, name)?,
        volume: WantedVolume::Device(Box::new(want)),
    })
}

/// Returns the volume of a pod's own source.
///
/// # Errors
/// The hold, when the file system is not supported or the name is no directory's.
pub(super) fn inline(pod: &PodView<'_>, name: &str, source: Source<'_>) -> Result<Place, Hold> {
    let want = DeviceWant {
        disk: DiskSource::Lun(source.disk.clone()),
        volume_mode: VolumeMode::Filesystem,
        fs_type: local::file_system(&format!("{}.fsType", source.field), source.fs_type)?,
        mount_flags: Vec::new(),
        access_mode: modes::Access::INLINE.first.to_owned(),
        read_only: source.read_only,
        source_read_only: source.read_only,
        single_pod: false,
        ownership: group::of_local(pod)?.filter(|_| !source.read_only),
        size: None,
        auto_grow: false,
        key: None,
        secrets: source.secrets,
    };
    Ok(Place {
        key: VolumeKey::lun(&source.disk),
        id: pod.publication(source.plugin, name)?,
        volume: WantedVolume::Device(Box::new(want)),
    })
}

/// Joins the passwords for the storage system with the key of an encrypted disk: their names differ.
fn both(passwords: Arc<SecretMap>, key: Option<Arc<SecretMap>>) -> Arc<SecretMap> {
    let Some(key) = key else { return passwords };
    if passwords.reveal().is_empty() {
        return key;
    }
    let mut all: BTreeMap<String, String> = passwords.reveal().clone();
    all.extend(
        key.reveal()
            .iter()
            .filter(|(name, _)| *name == annotations::VALUE)
            .map(|(n, v)| (n.clone(), v.clone())),
    );
    Arc::new(SecretMap::new(all))
}
