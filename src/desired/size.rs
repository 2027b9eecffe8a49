//! How large a volume is to be on this node: the PV's capacity and what the claim's status says of an expansion under way
//! (kubelet.md 8; csi.md 6.4).

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::claim::shown;
use super::index::Name;
use super::{hold, quantity};
use crate::model::{Hold, SizeWant};

/// The claim's annotation that expansion on one node is enough.
const ONE_NODE_IS_ENOUGH: &str = "volume.kubernetes.io/node-expansion-not-required";
const STORAGE: &str = "storage";

/// An expansion that can be given up: the claim's status says how far it is, so that the PV's capacity alone does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Recoverable {
    /// `status.allocatedResources.storage`, bytes: what is expanded to.
    target: Option<u64>,
    stage: Stage,
}

/// How far it is, from `status.allocatedResourceStatuses.storage`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// No status: what was begun is finished.
    None,
    /// NodeResizePending or NodeResizeInProgress.
    Node,
    /// Anything else: the controller's turn, or infeasible. Nodes wait.
    Elsewhere,
}

/// Returns the size that a PV is to have here; `None` when the manifests name none.
///
/// # Errors
/// The hold, when a quantity cannot be read.
pub(super) fn wanted(
    (volume, spec): (&str, &PersistentVolumeSpec),
    (name, claim): (Name<'_>, &PersistentVolumeClaim),
    many_writers: bool,
) -> Result<Option<SizeWant>, Hold> {
    let of_volume = |field: &str, map| bytes(&format!("PersistentVolume {volume}"), field, map);
    let of_claim = |field: &str, map| bytes(&shown(name), field, map);
    let Some(capacity) = of_volume("spec.capacity.storage", spec.capacity.as_ref())? else { return Ok(None) };
    let status = claim.status.as_ref();
    let claimed = of_claim("status.capacity.storage", status.and_then(|s| s.capacity.as_ref()))?;
    let stage = status.and_then(|s| s.allocated_resource_statuses.as_ref()?.get(STORAGE));
    let allocated = status.and_then(|s| s.allocated_resources.as_ref());
    let target = of_claim("status.allocatedResources.storage", allocated)?;
    let expansion = (stage.is_some() || allocated.is_some()).then(|| Recoverable {
        target,
        stage: match stage.map_or("", String::as_str) {
            "" => Stage::None,
            "NodeResizePending" | "NodeResizeInProgress" => Stage::Node,
            _ => Stage::Elsewhere,
        },
    });
    let annotations = claim.metadata.annotations.as_ref();
    let every_node = many_writers && !annotations.is_some_and(|a| a.contains_key(ONE_NODE_IS_ENOUGH));
    Ok(decide(capacity, claimed, expansion, every_node))
}

/// `every_node`: the volume has many writers, and all their nodes must be told.
fn decide(
    capacity: u64,
    claimed: Option<u64>,
    expansion: Option<Recoverable>,
    every_node: bool,
) -> Option<SizeWant> {
    let Some(Recoverable { target, stage }) = expansion else {
        return Some(SizeWant { capacity, claimed, every_node: false });
    };
    // As large as it is said to be, so that nothing is done.
    let as_it_is = claimed.map(|capacity| SizeWant { capacity, claimed, every_node: false });
    let Some(target) = target else { return as_it_is };
    let grown = SizeWant { capacity: target, claimed, every_node };
    let has = claimed.unwrap_or(0);
    match stage {
        Stage::None if every_node && has >= target => Some(grown),
        // A node looks at the status only once the PV is larger than the claim.
        Stage::Node if capacity > has => Some(grown),
        Stage::None | Stage::Node | Stage::Elsewhere => as_it_is,
    }
}

fn bytes(
    object: &str,
    field: &str,
    quantities: Option<&BTreeMap<String, Quantity>>,
) -> Result<Option<u64>, Hold> {
    let Some(quantity) = quantities.and_then(|q| q.get(STORAGE)) else { return Ok(None) };
    quantity::bytes(&quantity.0).map(Some).map_err(|e| {
        hold::invalid(format!("{object}: {field}: {e}"), format!("write a quantity such as 10Gi in {field}"))
    })
}

#[cfg(test)]
mod tests {
    use proptest::option;
    use proptest::prelude::*;

    use super::*;

    fn stages() -> impl Strategy<Value = Stage> {
        prop_oneof![Just(Stage::None), Just(Stage::Node), Just(Stage::Elsewhere)]
    }

    proptest! {
        #[test]
        fn without_an_allocation_the_pv_alone_counts(pv: u64, claimed in option::of(0_u64..8), many: bool) {
            let expected = SizeWant { capacity: pv, claimed, every_node: false };
            prop_assert_eq!(decide(pv, claimed, None, many), Some(expected));
        }

        #[test]
        fn an_expansion_grows_to_what_is_allocated_or_not_at_all(
            pv in 0_u64..8, claimed in option::of(0_u64..8), target in option::of(0_u64..8),
            stage in stages(), many: bool,
        ) {
            let Some(size) = decide(pv, claimed, Some(Recoverable { target, stage }), many) else {
                prop_assert_eq!(claimed, None);
                return Ok(());
            };
            prop_assert_eq!(size.claimed, claimed);
            prop_assert!(Some(size.capacity) == target || Some(size.capacity) == claimed);
            if size.capacity > claimed.unwrap_or(0) {
                prop_assert_eq!(stage, Stage::Node);
                prop_assert!(pv > claimed.unwrap_or(0));
            }
            prop_assert!(!size.every_node || (many && stage != Stage::Elsewhere));
        }
    }
}
