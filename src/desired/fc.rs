//! Volumes on Fibre Channel: a disk of a target, named by a PersistentVolume or by the pod itself (kubelet.md 4.9).

use std::sync::Arc;

use k8s_openapi::api::core::v1::{FCVolumeSource, PersistentVolumeSpec};

use super::csi::Bound;
use super::index::Index;
use super::pod::{Place, PodView, Usage};
use super::{affinity, hold, lun};
use crate::model::{FcLun, Hold, Lun, Plugin};

/// Returns the volume behind a PV with an fc source.
///
/// # Errors
/// The hold, when it is not this node's, or its disk cannot be what is meant.
pub(super) fn persistent(
    index: &Index<'_>,
    pod: &PodView<'_>,
    usage: &Usage,
    bound: &Bound<'_>,
    spec: &PersistentVolumeSpec,
    source: &FCVolumeSource,
) -> Result<Place, Hold> {
    let field = format!("PersistentVolume {}: spec.fc", bound.name);
    let disk = disk(&field, source)?;
    affinity::check(bound.name, spec, index.node)?;
    lun::persistent(index, pod, usage, bound, spec, of(&field, source, disk))
}

/// Returns the volume that a pod itself names.
///
/// # Errors
/// The hold, when its disk cannot be what is meant.
pub(super) fn inline(pod: &PodView<'_>, name: &str, source: &FCVolumeSource) -> Result<Place, Hold> {
    let field = format!("{}: volume {name}: fc", pod.identity);
    let disk = disk(&field, source)?;
    lun::inline(pod, name, of(&field, source, disk))
}

fn of<'a>(field: &'a str, source: &'a FCVolumeSource, disk: FcLun) -> lun::Source<'a> {
    lun::Source {
        field,
        fs_type: source.fs_type.as_deref(),
        read_only: source.read_only == Some(true),
        disk: Lun::Fc(disk),
        secrets: Arc::default(),
        plugin: Plugin::Fc,
    }
}

fn disk(field: &str, source: &FCVolumeSource) -> Result<FcLun, Hold> {
    let targets = source.target_wwns.as_deref().unwrap_or_default();
    let wwids = source.wwids.as_deref().unwrap_or_default();
    let disk = match (targets, source.lun, wwids) {
        ([], None, [_, ..]) => {
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '+');
            let odd = wwids
                .iter()
                .enumerate()
                .find(|(_, wwid)| wwid.is_empty() || wwid.starts_with(['.', '+']) || !wwid.chars().all(fits));
            if let Some((i, wwid)) = odd {
                return Err(hold::invalid(
                    format!("{field}.wwids[{i}] {wwid:?} is no name of a disk below /dev/disk/by-id"),
                    "write what follows scsi- in the disk's name below /dev/disk/by-id",
                ));
            }
            FcLun::Wwids(wwids.to_vec())
        }
        ([_, ..], Some(lun), []) => {
            let lun = u32::try_from(lun).ok().filter(|lun| *lun <= 255).ok_or_else(|| {
                hold::invalid(format!("{field}.lun {lun} is not between 0 and 255"), "write the LUN's number")
            })?;
            let mut ports = Vec::new();
            for (i, wwn) in targets.iter().enumerate() {
                if wwn.len() != 16 || !wwn.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(hold::invalid(
                        format!("{field}.targetWWNs[{i}] {wwn:?} has not 16 hexadecimal digits"),
                        "write the target port's world-wide name without 0x and without colons",
                    ));
                }
                ports.push(wwn.to_ascii_lowercase());
            }
            FcLun::Port { targets: ports, lun }
        }
        ([], ..) | ([_, ..], None, _) | ([_, ..], Some(_), [_, ..]) => {
            return Err(hold::invalid(
                format!("{field} has neither targetWWNs and lun nor wwids alone"),
                "write targetWWNs and lun, or wwids",
            ));
        }
    };
    if disk.directory().len() > 255 {
        let detail = format!("{field}: its names make a directory's name longer than 255 bytes");
        return Err(hold::invalid(detail, "write fewer of them"));
    }
    Ok(disk)
}
