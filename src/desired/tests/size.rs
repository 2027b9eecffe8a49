//! The size that a volume is to have on this node.

use crate::model::{HoldCode, SizeWant};

use super::*;

const GI: u64 = 1 << 30;

/// A PV of this capacity and these modes, and a claim with this status.
fn world(capacity: &str, modes: Value, status: Value) -> World {
    let mut volume = pv("pv-1", json!({"spec": {"capacity": {"storage": capacity}}}));
    volume["spec"]["accessModes"] = modes;
    let mut bound = claim(json!({"volumeName": "pv-1"}));
    bound["status"] = status;
    World::with_claim().add(volume).add(bound)
}

fn once(capacity: &str, status: Value) -> Option<SizeWant> {
    world(capacity, json!(["ReadWriteOnce"]), status).csi().size
}

fn many(capacity: &str, status: Value) -> Option<SizeWant> {
    world(capacity, json!(["ReadOnlyMany", "ReadWriteMany"]), status).csi().size
}

fn size(capacity: u64, claimed: Option<u64>) -> Option<SizeWant> {
    Some(SizeWant { capacity, claimed, every_node: false })
}

/// A claim of 1Gi on its way to what was allocated.
fn expanding(allocated: &str, stage: &str) -> Value {
    json!({"capacity": {"storage": "1Gi"}, "allocatedResources": {"storage": allocated},
        "allocatedResourceStatuses": {"storage": stage}})
}

#[test]
fn without_an_allocation_the_pvs_capacity_is_wanted() {
    assert_eq!(once("2Gi", Value::Null), size(2 * GI, None));
    assert_eq!(once("2Gi", json!({"capacity": {"storage": "1Gi"}})), size(2 * GI, Some(GI)));
    assert_eq!(many("2Gi", json!({"capacity": {"storage": "2Gi"}})), size(2 * GI, Some(2 * GI)));
}

#[test]
fn what_has_no_capacity_has_no_size() {
    let mut volume = pv("pv-1", json!({}));
    volume["spec"].as_object_mut().unwrap().remove("capacity");
    assert_eq!(World::with_claim().add(volume).csi().size, None);
    let inline = World::with_source(json!({"csi": {"driver": "d.example"}})).add(inline_driver(json!({})));
    assert_eq!(inline.csi().size, None);
}

#[test]
fn an_allocation_is_what_is_expanded_to_once_it_is_the_nodes_turn() {
    for stage in ["NodeResizePending", "NodeResizeInProgress"] {
        assert_eq!(once("3Gi", expanding("2Gi", stage)), size(2 * GI, Some(GI)));
    }
}

#[test]
fn as_long_as_it_is_not_the_nodes_turn_the_size_stays() {
    for stage in
        ["ControllerResizeInProgress", "ControllerResizeInfeasible", "NodeResizeInfeasible", "Odd", ""]
    {
        assert_eq!(once("2Gi", expanding("2Gi", stage)), size(GI, Some(GI)), "{stage}");
        assert_eq!(many("2Gi", expanding("2Gi", stage)), size(GI, Some(GI)), "{stage}");
    }
    // The PV was not enlarged yet.
    assert_eq!(once("1Gi", expanding("2Gi", "NodeResizePending")), size(GI, Some(GI)));
    let no_amount = json!({"capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"storage": "NodeResizePending"}});
    assert_eq!(once("2Gi", no_amount), size(GI, Some(GI)));
    let no_claimed = json!({"allocatedResources": {"storage": "2Gi"}});
    assert_eq!(once("2Gi", no_claimed), None);
}

#[test]
fn the_status_of_another_resource_is_no_expansion() {
    let other =
        json!({"capacity": {"storage": "1Gi"}, "allocatedResourceStatuses": {"iops": "NodeResizePending"}});
    assert_eq!(once("2Gi", other), size(2 * GI, Some(GI)));
}

#[test]
fn a_finished_expansion_of_many_writers_concerns_every_node_unless_the_claim_says_otherwise() {
    let finished = || json!({"capacity": {"storage": "2Gi"}, "allocatedResources": {"storage": "2Gi"}});
    let every = Some(SizeWant { capacity: 2 * GI, claimed: Some(2 * GI), every_node: true });
    assert_eq!(many("2Gi", finished()), every);
    assert_eq!(once("2Gi", finished()), size(2 * GI, Some(2 * GI)));
    let larger = json!({"capacity": {"storage": "3Gi"}, "allocatedResources": {"storage": "2Gi"}});
    assert_eq!(once("3Gi", larger), size(3 * GI, Some(3 * GI)));
    let mut bound = claim(json!({"volumeName": "pv-1"}));
    bound["status"] = finished();
    bound["metadata"]["annotations"] = json!({"volume.kubernetes.io/node-expansion-not-required": ""});
    let world = world("2Gi", json!(["ReadWriteMany"]), Value::Null).add(bound);
    assert_eq!(world.csi().size, size(2 * GI, Some(2 * GI)));
    let under_way = Some(SizeWant { capacity: 2 * GI, claimed: Some(GI), every_node: true });
    assert_eq!(many("2Gi", expanding("2Gi", "NodeResizePending")), under_way);
}

#[test]
fn a_size_that_cannot_be_read_is_held_with_object_and_field() {
    let of = |capacity: &str, status: Value| world(capacity, json!(["ReadWriteOnce"]), status);
    of("1Qi", Value::Null)
        .is_held(HoldCode::ObjectInvalid, "PersistentVolume pv-1: spec.capacity.storage: quantity \"1Qi\"");
    of("-1", Value::Null).is_held(HoldCode::ObjectInvalid, "is negative");
    of("1Gi", json!({"capacity": {"storage": "x"}}))
        .is_held(HoldCode::ObjectInvalid, "PersistentVolumeClaim default/data: status.capacity.storage");
    let world = of("1Gi", json!({"allocatedResources": {"storage": "x"}}));
    world.is_held(HoldCode::ObjectInvalid, "status.allocatedResources.storage");
    assert!(world.hold().remedy.contains("10Gi in status.allocatedResources.storage"));
}
