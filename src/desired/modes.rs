//! How a PersistentVolume may be used: volumeMode and accessModes (kubelet.md 1.5, 1.10; csi.md 2.8).

use k8s_openapi::api::core::v1::PersistentVolumeSpec;

use super::hold;
use super::pod::Usage;
use crate::model::{Hold, VolumeMode};

const READ_WRITE_ONCE: &str = "ReadWriteOnce";
const READ_WRITE_ONCE_POD: &str = "ReadWriteOncePod";
const READ_ONLY_MANY: &str = "ReadOnlyMany";
const READ_WRITE_MANY: &str = "ReadWriteMany";

/// What the access modes of a volume come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Access<'a> {
    /// What the driver is told on a node: the first, ReadWriteOnce when there is none.
    pub(super) first: &'a str,
    /// ReadWriteOncePod alone: at most one pod of this node has it.
    pub(super) single_pod: bool,
    /// ReadOnlyMany alone.
    pub(super) readers_only: bool,
    /// ReadWriteOnce or ReadWriteOncePod is among them: the default fsGroupPolicy asks for it.
    pub(super) once: bool,
    /// ReadWriteMany is among them: expansion concerns every node.
    pub(super) many_writers: bool,
}

impl Access<'_> {
    /// Inline volumes have one pod, and ReadWriteOnce (kubelet.md 5.4).
    pub(super) const INLINE: Access<'static> = Access {
        first: READ_WRITE_ONCE,
        single_pod: false,
        readers_only: false,
        once: true,
        many_writers: false,
    };
}

/// Returns what a PV's access modes come to.
///
/// # Errors
/// The hold, when one is unknown, or ReadWriteOncePod is not the only one.
pub(super) fn access<'a>(name: &str, spec: &'a PersistentVolumeSpec) -> Result<Access<'a>, Hold> {
    let modes = spec.access_modes.as_deref().unwrap_or_default();
    let known = [READ_WRITE_ONCE, READ_WRITE_ONCE_POD, READ_ONLY_MANY, READ_WRITE_MANY];
    if let Some((i, unknown)) = modes.iter().enumerate().find(|(_, m)| !known.contains(&m.as_str())) {
        return Err(hold::invalid(
            format!("PersistentVolume {name}: spec.accessModes[{i}] {unknown:?} is unknown"),
            format!("write one of {}", known.join(", ")),
        ));
    }
    let has = |mode: &str| modes.iter().any(|m| m == mode);
    let only = |mode: &str| has(mode) && modes.iter().all(|m| m == mode);
    if has(READ_WRITE_ONCE_POD) && !only(READ_WRITE_ONCE_POD) {
        return Err(hold::invalid(
            format!(
                "PersistentVolume {name}: spec.accessModes lists ReadWriteOncePod together with others: {}",
                modes.join(", ")
            ),
            "leave ReadWriteOncePod alone in spec.accessModes, or remove it",
        ));
    }
    Ok(Access {
        first: modes.first().map_or(READ_WRITE_ONCE, String::as_str),
        single_pod: only(READ_WRITE_ONCE_POD),
        readers_only: only(READ_ONLY_MANY),
        once: has(READ_WRITE_ONCE) || has(READ_WRITE_ONCE_POD),
        many_writers: has(READ_WRITE_MANY),
    })
}

/// Returns a PV's mode, which must be how containers use it (kubelet.md 1.5).
///
/// # Errors
/// The hold, when it is unknown or not how containers use it, or when the kubelet's layout has no place for it.
pub(super) fn volume_mode(
    name: &str,
    spec: &PersistentVolumeSpec,
    usage: &Usage,
) -> Result<VolumeMode, Hold> {
    let mode = spec.volume_mode.as_deref().unwrap_or("Filesystem");
    let mismatch = |field: &str| {
        hold::invalid(
            format!("PersistentVolume {name} has volumeMode {mode}, but is specified in {field}"),
            "use volumeMounts for Filesystem and volumeDevices for Block",
        )
    };
    match mode {
        "Filesystem" if usage.device => Err(mismatch("volumeDevices")),
        "Filesystem" => Ok(VolumeMode::Filesystem),
        "Block" if usage.mounted => Err(mismatch("volumeMounts")),
        // Its own directory would be the one that holds those of all the others (kubelet.md 3).
        "Block" if matches!(name, "staging" | "publish") => Err(hold::invalid(
            format!(
                "PersistentVolume {name}: with volumeMode Block its directory would be \
                 plugins/kubernetes.io/csi/volumeDevices/{name}, which belongs to all block volumes"
            ),
            "give the PersistentVolume a metadata.name other than staging and publish",
        )),
        "Block" => Ok(VolumeMode::Block),
        other => Err(hold::invalid(
            format!("PersistentVolume {name}: spec.volumeMode {other:?} is unknown"),
            "write Filesystem or Block",
        )),
    }
}
