//! PersistentVolumeClaim -> PersistentVolume: pre-bound from either side (issue 3; csi.md 4.4; kubelet.md 1.5).

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};

use super::hold;
use super::index::{Index, Name, claim_name, volume_name};
use crate::model::{Hold, HoldCode};

/// The finalizer that keeps a claim usable while it is being deleted.
const PROTECTION: &str = "kubernetes.io/pvc-protection";

/// Returns the PV that a claim is bound to. The phase in `status` is not asked for: there is no control plane to write it.
///
/// # Errors
/// The hold, when the claim is going away, is not bound, or claim and PV contradict each other.
pub(super) fn bound<'a>(
    index: &Index<'a>,
    name: Name<'_>,
    claim: &PersistentVolumeClaim,
) -> Result<(&'a str, &'a PersistentVolume), Hold> {
    let finalizers = claim.metadata.finalizers.as_deref().unwrap_or_default();
    if claim.metadata.deletion_timestamp.is_some() && !finalizers.iter().any(|f| f == PROTECTION) {
        return Err(hold::invalid(
            format!("{} is being deleted", shown(name)),
            "remove the pod, or the claim's metadata.deletionTimestamp",
        ));
    }
    let by = shown(name);
    let (volume_name, volume) = match volume_name(claim) {
        Some(volume) => index.volume(volume, &by)?,
        None => index.volume(reserved(index, name, claim)?, &by)?,
    };
    agree(index, name, claim, volume_name, volume)?;
    Ok((volume_name, volume))
}

/// Returns the one PV whose claimRef names a claim that names none.
fn reserved<'a>(index: &Index<'a>, name: Name<'_>, claim: &PersistentVolumeClaim) -> Result<&'a str, Hold> {
    match index.reserved_for(name).as_slice() {
        [] => Err(unbound(name, claim)),
        [volume] => Ok(volume),
        several => {
            // A claim that was made anew leaves the PV of its predecessor behind: the UID tells them apart (csi.md 10, 20).
            let mut mine = several.iter().filter(|v| index.reserver(v).is_some_and(|v| uid_agrees(claim, v)));
            match (mine.next(), mine.next()) {
                (Some(volume), None) => Ok(volume),
                _ => Err(hold::invalid(
                    format!(
                        "{} is named by the claimRef of PersistentVolumes {}",
                        shown(name),
                        several.join(", ")
                    ),
                    format!("name one of them in spec.volumeName of {}", shown(name)),
                )),
            }
        }
    }
}

fn unbound(name: Name<'_>, claim: &PersistentVolumeClaim) -> Hold {
    let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).filter(|c| !c.is_empty());
    let class = class.map_or_else(String::new, |c| format!(" of StorageClass {c}"));
    hold::hold(
        HoldCode::ClaimUnbound,
        format!(
            "{} names no PersistentVolume and none names it; matching and provisioning of volumes{class} is not \
             supported yet",
            shown(name)
        ),
        format!(
            "write the PersistentVolume's name in spec.volumeName of {}, or the claim in spec.claimRef (namespace, \
             name) of the PersistentVolume",
            shown(name)
        ),
    )
}

/// Holds a claim whose PV is another's, or is wanted by two.
fn agree(
    index: &Index<'_>,
    name: Name<'_>,
    claim: &PersistentVolumeClaim,
    volume_name: &str,
    volume: &PersistentVolume,
) -> Result<(), Hold> {
    let reference = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref());
    let Some(owner) = reference.and_then(claim_name) else {
        return match index.namers_of(volume_name).as_slice() {
            [] | [_] => Ok(()),
            // Neither is served: which of them was first is not known here, and data must not change hands.
            several => Err(hold::invalid(
                format!(
                    "PersistentVolume {volume_name} is named by {}",
                    several.iter().map(|n| shown(*n)).collect::<Vec<_>>().join(" and ")
                ),
                format!("say in spec.claimRef of PersistentVolume {volume_name} whose it is"),
            )),
        };
    };
    if owner != name {
        return Err(hold::invalid(
            format!("PersistentVolume {volume_name} is claimed by {}, not by {}", shown(owner), shown(name)),
            format!("correct spec.volumeName of {} or spec.claimRef of the PersistentVolume", shown(name)),
        ));
    }
    if !uid_agrees(claim, volume) {
        return Err(hold::invalid(
            format!(
                "PersistentVolume {volume_name} is claimed by an earlier {}: the UIDs differ",
                shown(name)
            ),
            format!(
                "remove spec.claimRef.uid of PersistentVolume {volume_name} if its data is meant for this claim"
            ),
        ));
    }
    Ok(())
}

/// Returns whether the claimRef's UID, if there is one, is the claim's, if it has one.
fn uid_agrees(claim: &PersistentVolumeClaim, volume: &PersistentVolume) -> bool {
    let wanted = volume.spec.as_ref().and_then(|s| s.claim_ref.as_ref()).and_then(|r| r.uid.as_deref());
    match (wanted.filter(|u| !u.is_empty()), claim.metadata.uid.as_deref()) {
        (Some(wanted), Some(uid)) => wanted == uid,
        _ => true,
    }
}

/// Names a claim in a text.
pub(super) fn shown((namespace, name): Name<'_>) -> String {
    format!("PersistentVolumeClaim {namespace}/{name}")
}
