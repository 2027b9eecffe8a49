//! The pod's fsGroup: the group that its volumes are given to (kubelet.md 4.2, 5.3, 6.1).

use k8s_openapi::api::storage::v1::CSIDriverSpec;

use super::hold;
use super::modes::Access;
use super::pod::PodView;
use crate::model::{DriverName, FsGroup, Hold, Ownership};

/// A CSI volume with a file system, as far as fsGroup depends on it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) driver: &'a DriverName,
    pub(super) fs_type: &'a str,
    pub(super) access: Access<'a>,
    /// The pod's readOnly.
    pub(super) read_only: bool,
    /// The PV's: a kubelet does not look at it here, but a walk over what cannot be written only fails.
    pub(super) source_read_only: bool,
}

/// When fsGroupPolicy lets the group be changed.
enum Policy {
    Never,
    Always,
    OnceWithFsType,
}

/// Returns the group of a CSI volume with a file system.
///
/// # Errors
/// The hold, when the pod's fields or fsGroupPolicy have no meaning.
pub(super) fn of_csi(
    pod: &PodView<'_>,
    spec: Option<&CSIDriverSpec>,
    target: &Target<'_>,
) -> Result<Option<FsGroup>, Hold> {
    let policy = policy(spec, target.driver)?;
    let Some(group) = group(pod)? else { return Ok(None) };
    let on_root_mismatch = on_root_mismatch(pod)?;
    let asked = match policy {
        Policy::Never => false,
        Policy::Always => true,
        Policy::OnceWithFsType => !target.fs_type.is_empty() && target.access.once,
    };
    let change = asked && !target.read_only && !target.source_read_only;
    Ok(Some(FsGroup { ownership: Ownership { group, on_root_mismatch }, change }))
}

/// Returns the group of an emptyDir, for which fsGroupChangePolicy does not count (kubelet.md 4.2).
///
/// # Errors
/// The hold, when fsGroup is no group's number.
pub(super) fn of_empty_dir(pod: &PodView<'_>) -> Result<Option<Ownership>, Hold> {
    Ok(group(pod)?.map(|group| Ownership { group, on_root_mismatch: false }))
}

/// Returns the group of a local volume, to which no fsGroupPolicy applies (kubelet.md 4.6).
///
/// # Errors
/// As `of_csi`.
pub(super) fn of_local(pod: &PodView<'_>) -> Result<Option<Ownership>, Hold> {
    let Some(group) = group(pod)? else { return Ok(None) };
    Ok(Some(Ownership { group, on_root_mismatch: on_root_mismatch(pod)? }))
}

fn policy(spec: Option<&CSIDriverSpec>, driver: &DriverName) -> Result<Policy, Hold> {
    match spec.and_then(|s| s.fs_group_policy.as_deref()).unwrap_or_default() {
        "None" => Ok(Policy::Never),
        "File" => Ok(Policy::Always),
        // The default, also where there is no CSIDriver.
        "" | "ReadWriteOnceWithFSType" => Ok(Policy::OnceWithFsType),
        unknown => Err(hold::invalid(
            format!("CSIDriver {driver}: spec.fsGroupPolicy {unknown:?} is unknown"),
            "write ReadWriteOnceWithFSType, File or None",
        )),
    }
}

fn group(pod: &PodView<'_>) -> Result<Option<u32>, Hold> {
    let Some(number) = pod.fs_group else { return Ok(None) };
    // The last number means "leave the group as it is" to chown.
    match u32::try_from(number) {
        Ok(group) if group != u32::MAX => Ok(Some(group)),
        _ => Err(hold::invalid(
            format!("{}: spec.securityContext.fsGroup {number} is no group's number", pod.identity),
            format!("write a number from 0 to {}, or remove fsGroup", u32::MAX - 1),
        )),
    }
}

fn on_root_mismatch(pod: &PodView<'_>) -> Result<bool, Hold> {
    match pod.fs_group_change_policy.unwrap_or("Always") {
        "Always" => Ok(false),
        "OnRootMismatch" => Ok(true),
        unknown => Err(hold::invalid(
            format!("{}: spec.securityContext.fsGroupChangePolicy {unknown:?} is unknown", pod.identity),
            "write Always or OnRootMismatch, or remove it",
        )),
    }
}
