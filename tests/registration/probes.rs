//! What a driver's Probe changes: whether it is called, and what is shown of it.

use std::time::Duration;

use tonic::Status;
use volumed::model::{Connection, DriverState, EventKind};
use volumed::proto::csi;

use super::NAME;
use super::plugin::{Driver, Plugin};
use super::world::{World, is_ready, is_starting, name};

const OFTEN: Duration = Duration::from_millis(10);

fn is_unwell(text: &'static str) -> impl Fn(&DriverState) -> bool {
    move |state| is_ready(state) && state.unwell.as_ref().is_some_and(|reason| reason.contains(text))
}

fn is_well(state: &DriverState) -> bool {
    is_ready(state) && state.unwell.is_none()
}

#[tokio::test]
async fn a_driver_that_is_not_ready_is_registered_and_called_when_it_is() {
    let world = World::new();
    let driver = Driver::serve_saying(world.path("csi.sock"), NAME, |answers| answers.ready = Some(false));
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    let entry = world.driver(NAME, is_starting).await;
    assert_eq!(plugin.told(), [(true, String::new())], "a kubelet would not have asked");
    assert_eq!(entry.state.info.node_id, "node-1");
    world.until(|| driver.asked("Probe") >= 3).await;
    driver.say(|answers| answers.ready = None);
    let ready = world.driver(NAME, is_well).await;
    assert!(std::ptr::addr_eq(&raw const *entry.client, &raw const *ready.client), "one process, one client");
    assert_eq!(plugin.told().len(), 1, "it was not registered again");
    let reason = "it says that it is not ready yet".to_owned();
    assert_eq!(world.event().await, EventKind::DriverUnwell { driver: name(NAME), reason });
    assert!(matches!(world.event().await, EventKind::DriverReady { .. }));
}

#[tokio::test]
async fn a_driver_that_cannot_say_its_node_yet_is_asked_until_it_can() {
    let world = World::new();
    let driver = Driver::serve_saying(world.path("csi.sock"), NAME, |answers| answers.ready = Some(false));
    driver.fail("NodeGetInfo", Status::unavailable("starting"));
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    world.until(|| driver.asked("NodeGetInfo") > 2).await;
    // A registrar that is refused ends.
    assert!(plugin.told().is_empty() && !world.has(NAME));
    driver.heal();
    world.driver(NAME, is_starting).await;
    assert_eq!(plugin.told(), [(true, String::new())]);
}

#[tokio::test]
async fn a_failing_probe_is_shown_once_and_calls_are_made_all_the_same() {
    let world = World::new().probe_every(OFTEN);
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    world.driver(NAME, is_well).await;
    driver.fail("Probe", Status::failed_precondition("no iscsid"));
    let entry = world.driver(NAME, is_unwell("depends on: no iscsid")).await;
    entry.client.unpublish(csi::NodeUnpublishVolumeRequest::default()).await.unwrap();
    driver.fail("Probe", Status::internal("boom"));
    world.driver(NAME, is_unwell("Probe: INTERNAL: boom")).await;
    driver.heal();
    world.driver(NAME, is_well).await;
    assert!(matches!(world.event().await, EventKind::DriverReady { .. }));
    let EventKind::DriverUnwell { reason, .. } = world.event().await else { unreachable!() };
    assert!(reason.contains("no iscsid"), "{reason}");
    assert_eq!(world.event().await, EventKind::DriverWell { driver: name(NAME) });
}

#[tokio::test]
async fn a_driver_that_is_ready_no_more_is_waited_for_again() {
    let world = World::new().probe_every(OFTEN);
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    world.driver(NAME, is_well).await;
    driver.say(|answers| answers.ready = Some(false));
    world.driver(NAME, is_starting).await;
    driver.say(|answers| answers.ready = Some(true));
    world.driver(NAME, is_well).await;
}

#[tokio::test]
async fn a_probe_without_an_answer_is_starting_first_and_unwell_at_its_deadline() {
    let world = World::new().probe_every(OFTEN).deadline(Duration::from_millis(600));
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    driver.hang("Probe");
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    let silent = |state: &DriverState| matches!(&state.connection, Connection::Starting { reason } if reason.contains("first Probe"));
    world.driver(NAME, silent).await;
    world.driver(NAME, is_unwell("no answer within 600ms")).await;
    driver.heal();
    world.driver(NAME, is_well).await;
}

#[tokio::test]
async fn a_process_without_probe_is_asked_once() {
    let world = World::new().probe_every(OFTEN);
    let without = Driver::serve(world.path("csi.sock"), NAME);
    without.fail("Probe", Status::unimplemented("no such call"));
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &without);
    let other = Driver::serve(world.path("other.sock"), "other.example.org");
    let _other = Plugin::serve(world.registration("o-reg.sock"), &other);
    let mut world = world.start();
    world.driver(NAME, is_well).await;
    let before = other.asked("Probe");
    world.until(|| other.asked("Probe") >= before + 10).await;
    assert_eq!(without.asked("Probe"), 1);
    without.crash();
    let next = Driver::serve(world.path("csi.sock"), NAME);
    world.until(|| next.asked("Probe") >= 2).await;
}

#[tokio::test]
async fn a_crash_is_told_as_a_crash_and_not_as_illness() {
    let world = World::new().probe_every(Duration::from_millis(1));
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    world.driver(NAME, is_well).await;
    world.until(|| driver.asked("Probe") >= 5).await;
    driver.hang("Probe");
    let before = driver.asked("Probe");
    world.until(|| driver.asked("Probe") > before).await;
    driver.crash();
    world.driver(NAME, |state| matches!(state.connection, Connection::Disconnected { .. })).await;
    assert!(matches!(world.event().await, EventKind::DriverReady { .. }));
    let event = world.event().await;
    assert!(matches!(event, EventKind::DriverGone { .. }), "{event:?}");
}

#[tokio::test]
async fn an_instance_that_is_starting_takes_over_when_it_is_ready() {
    let world = World::new().probe_every(OFTEN);
    let old = Driver::serve(world.path("old.sock"), NAME);
    let _old_plugin = Plugin::serve(world.registration("old-reg.sock"), &old);
    let mut world = world.start();
    world.driver(NAME, is_well).await;
    let new = Driver::serve_saying(world.path("new.sock"), NAME, |answers| answers.ready = Some(false));
    let _new_plugin = Plugin::serve(world.registration("new-reg.sock"), &new);
    world.until(|| new.asked("Probe") >= 3).await;
    assert_eq!(world.driver(NAME, is_ready).await.state.endpoint, old.path);
    new.say(|answers| answers.ready = Some(true));
    world.driver(NAME, |state| is_ready(state) && state.endpoint == new.path).await;
}

#[tokio::test]
async fn the_kernel_tells_a_driver_s_process() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    assert_eq!(world.driver(NAME, is_ready).await.client.pid(), Some(std::process::id()));
}
