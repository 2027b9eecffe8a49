//! The driver registry against plugins and drivers in this process: what it accepts, refuses, waits for and picks up again.
//!
//! Nothing sleeps to see what happens: each test waits for a state of the published set, an event or a call, with a deadline.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "what a test needs and lacks ends it"
)]

#[path = "registration/plugin.rs"]
mod plugin;
#[path = "registration/probes.rs"]
mod probes;
#[path = "registration/refused.rs"]
mod refused;
#[path = "registration/starting.rs"]
mod starting;
#[path = "registration/world.rs"]
mod world;

use std::time::Duration;

use plugin::{Driver, Plugin};
use volumed::csi::Code;
use volumed::model::{Connection, DriverOrigin, DriverState, EventKind};
use volumed::proto::csi;
use world::{World, is_ready, is_starting, name};

const NAME: &str = "a.example.org";

#[tokio::test]
async fn a_plugin_that_is_there_at_the_start_is_registered_and_told_so_once() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();

    let entry = world.driver(NAME, is_ready).await;
    assert_eq!(entry.state.endpoint, driver.path);
    assert_eq!(entry.state.origin, DriverOrigin::Registered { socket: plugin.path.clone() });
    assert_eq!(entry.state.info.node_id, "node-1");
    assert_eq!(entry.state.info.version, "1.2.3");
    assert!(entry.state.info.stage_unstage && !entry.state.info.single_node_multi_writer);
    assert!(!entry.state.info.publish_unpublish);
    assert_eq!(plugin.told(), [(true, String::new())]);
    assert_eq!(driver.asked("ControllerGetCapabilities"), 0, "there is no CONTROLLER_SERVICE");
    assert_eq!(
        world.event().await,
        EventKind::DriverReady { driver: name(NAME), endpoint: driver.path.clone() }
    );
}

#[tokio::test]
async fn a_plugin_in_a_new_sub_directory_is_found() {
    let mut world = World::new().start();
    world.scanned().await;
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    std::fs::create_dir_all(world.registration("one/two")).unwrap();
    let _plugin = Plugin::serve(world.registration("one/two/a-reg.sock"), &driver);
    world.driver(NAME, is_ready).await;
}

#[tokio::test]
async fn hidden_sockets_and_what_is_no_socket_are_ignored() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let hidden = Plugin::serve(world.registration(".a-reg.sock"), &driver);
    std::fs::write(world.registration("file"), "x").unwrap();
    nix::unistd::mkfifo(&world.registration("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let other = Driver::serve(world.path("other.sock"), "other.example.org");
    let _visible = Plugin::serve(world.registration("other-reg.sock"), &other);
    let mut world = world.start();

    world.driver("other.example.org", is_ready).await;
    assert!(!world.has(NAME));
    assert_eq!(hidden.asked(), 0);
}

#[tokio::test]
async fn an_empty_endpoint_means_the_registration_socket() {
    let world = World::new();
    let driver = Driver::serve_with_registration(world.registration("a-reg.sock"), NAME);
    let mut world = world.start();
    let entry = world.driver(NAME, is_ready).await;
    assert_eq!(entry.state.endpoint, driver.path);
}

#[tokio::test]
async fn a_silent_plugin_delays_no_other() {
    let world = World::new();
    // Accepts by the kernel's queue, and never answers.
    let _silent = std::os::unix::net::UnixListener::bind(world.registration("0-reg.sock")).unwrap();
    let hung = Driver::serve(world.path("hung.sock"), "hung.example.org");
    hung.hang("NodeGetInfo");
    let hung_plugin = Plugin::serve(world.registration("1-reg.sock"), &hung);
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();

    world.driver(NAME, is_ready).await;
    // Its driver has ten seconds to answer, and they are not over.
    assert_eq!(hung_plugin.told(), []);
    let EventKind::RegistrationRefused { socket, reason } = world.refusal().await else { unreachable!() };
    assert_eq!(socket, world.registration("0-reg.sock"));
    assert!(reason.contains("GetInfo") && reason.contains("DEADLINE_EXCEEDED"), "{reason}");
}

#[tokio::test]
async fn a_plugin_that_answers_late_is_picked_up() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    plugin.hang(true);
    let mut world = world.start();
    world.refusal().await;
    plugin.hang(false);
    world.driver(NAME, is_ready).await;
    assert_eq!(plugin.told().last(), Some(&(true, String::new())));
}

#[tokio::test]
async fn a_driver_that_answers_late_is_picked_up() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    driver.fail("NodeGetInfo", tonic::Status::internal("starting"));
    let mut world = world.start();
    let EventKind::RegistrationRefused { reason, .. } = world.refusal().await else { unreachable!() };
    assert!(reason.contains("NodeGetInfo: INTERNAL: starting"), "{reason}");
    assert_eq!(plugin.told(), [(false, reason)]);
    driver.heal();
    world.driver(NAME, is_ready).await;
}

#[tokio::test]
async fn a_replaced_socket_is_registered_anew_at_once() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let old = Plugin::serve(world.registration("a-reg.sock"), &driver);
    old.say(|info| info.r#type = "DevicePlugin".into());
    let mut world = world.start();
    world.refusal().await;
    // Bound at the same path by removing and making it, as registrars do; the inode number may be the same.
    let new = Plugin::serve(world.registration("a-reg.sock"), &driver);
    world.driver(NAME, is_ready).await;
    assert_eq!((old.told().len(), new.told().len()), (1, 1));
}

#[tokio::test]
async fn no_node_id_is_needed_where_nothing_is_attached() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    driver.fail("NodeGetInfo", tonic::Status::unimplemented("no such thing"));
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    assert_eq!(world.driver(NAME, is_ready).await.state.info.node_id, "");
}

#[tokio::test]
async fn a_crashed_driver_is_disconnected_at_once_and_ready_when_it_is_back() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    let first = world.driver(NAME, is_ready).await;

    // The socket file stays, as after a kill -9.
    driver.crash();
    let gone = world.driver(NAME, |state| !is_ready(state)).await;
    assert!(matches!(gone.state.connection, Connection::Disconnected { .. }));
    assert_eq!(gone.state.info, first.state.info, "what is known of it stays");
    let error = first.client.unpublish(csi::NodeUnpublishVolumeRequest::default()).await.unwrap_err();
    assert_eq!((error.code, error.sent), (Code::UNAVAILABLE, false), "{error}");

    let say = |answers: &mut plugin::Answers| answers.node.node_id = "node-2".into();
    let _driver = Driver::serve_saying(world.path("csi.sock"), NAME, say);
    let back = world.driver(NAME, |state| is_ready(state) && state.info.node_id == "node-2").await;
    assert!(
        !std::ptr::addr_eq(&raw const *first.client, &raw const *back.client),
        "a new process, a new client"
    );
    back.client.unpublish(csi::NodeUnpublishVolumeRequest::default()).await.unwrap();
    let error = first.client.unpublish(csi::NodeUnpublishVolumeRequest::default()).await.unwrap_err();
    assert!(!error.sent, "the old client called the new process");
    assert_eq!(plugin.told().len(), 1, "the registration was not touched");
}

#[tokio::test]
async fn a_driver_whose_socket_goes_with_its_directory_is_found_when_it_is_made_again() {
    let world = World::new();
    std::fs::create_dir(world.path("run")).unwrap();
    let driver = Driver::serve(world.path("run/csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    world.driver(NAME, is_ready).await;
    driver.crash();
    std::fs::remove_file(world.path("run/csi.sock")).unwrap();
    std::fs::remove_dir(world.path("run")).unwrap();
    let absent = |state: &DriverState| matches!(&state.connection, Connection::Disconnected { reason } if reason.contains("cannot look at"));
    world.driver(NAME, absent).await;
    std::fs::create_dir(world.path("run")).unwrap();
    let _driver = Driver::serve(world.path("run/csi.sock"), NAME);
    world.driver(NAME, is_ready).await;
}

#[tokio::test]
async fn a_driver_that_is_replaced_while_the_old_process_lives_is_called_anew() {
    let world = World::new();
    let old = Driver::serve(world.path("csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &old);
    let mut world = world.start();
    world.driver(NAME, is_ready).await;
    let say = |answers: &mut plugin::Answers| answers.node.node_id = "node-2".into();
    let _new = Driver::serve_saying(world.path("csi.sock"), NAME, say);
    world.driver(NAME, |state| is_ready(state) && state.info.node_id == "node-2").await;
    assert!(old.asked("NodeGetInfo") == 1, "the old process was asked again");
}

#[tokio::test]
async fn a_removed_registration_leaves_the_driver_known_and_disconnected() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    world.driver(NAME, is_ready).await;
    std::fs::remove_file(&plugin.path).unwrap();
    let gone = world.driver(NAME, |state| !is_ready(state)).await;
    assert!(
        matches!(&gone.state.connection, Connection::Disconnected { reason } if reason.contains("was removed"))
    );
    let _plugin = Plugin::serve(world.registration("b-reg.sock"), &driver);
    world.driver(NAME, is_ready).await;
}

#[tokio::test]
async fn the_newer_instance_takes_over_and_the_older_returns_when_it_goes() {
    let world = World::new();
    let old = Driver::serve(world.path("old.sock"), NAME);
    let old_plugin = Plugin::serve(world.registration("a-old-reg.sock"), &old);
    let mut world = world.start();
    world.driver(NAME, is_ready).await;

    let new = Driver::serve(world.path("new.sock"), NAME);
    let new_plugin = Plugin::serve(world.registration("z-new-reg.sock"), &new);
    let entry = world.driver(NAME, |state| state.endpoint == new.path).await;
    assert_eq!(entry.state.standby, std::slice::from_ref(&old_plugin.path));
    assert_eq!(new_plugin.told(), [(true, String::new())]);

    std::fs::remove_file(&new_plugin.path).unwrap();
    let entry = world.driver(NAME, |state| state.endpoint == old.path).await;
    assert!(is_ready(&entry.state) && entry.state.standby.is_empty());
    assert_eq!(old_plugin.told().len(), 1, "it was not registered again");
}

#[tokio::test]
async fn a_configured_driver_goes_before_a_registration_and_waits_for_its_probe() {
    let world = World::new().configure(NAME, "own.sock");
    let other = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &other);
    let mut world = world.start();
    let EventKind::RegistrationRefused { reason, .. } = world.refusal().await else { unreachable!() };
    assert!(reason.contains("configuration"), "{reason}");
    assert_eq!(plugin.told(), [(false, reason)]);
    let entry = world.driver(NAME, |state| !is_ready(state)).await;
    let error = entry.client.unpublish(csi::NodeUnpublishVolumeRequest::default()).await.unwrap_err();
    assert!(!error.sent && error.code == Code::UNAVAILABLE);

    let own = Driver::serve_saying(world.path("own.sock"), NAME, |answers| answers.ready = Some(false));
    world.driver(NAME, is_starting).await;
    assert_eq!(own.asked("GetPluginInfo"), 0, "it was asked before it was ready");
    own.say(|answers| answers.ready = None);
    let entry = world.driver(NAME, is_ready).await;
    assert_eq!(entry.state.origin, DriverOrigin::Configured);
    assert_eq!(entry.state.endpoint, own.path);
    assert_eq!(other.asked("NodeGetInfo"), 0);
}

#[tokio::test]
async fn an_instance_that_crashes_gives_way_to_an_older_one_that_answers() {
    let world = World::new();
    let old = Driver::serve(world.path("old.sock"), NAME);
    let old_plugin = Plugin::serve(world.registration("old-reg.sock"), &old);
    let mut world = world.start();
    world.driver(NAME, is_ready).await;
    let new = Driver::serve(world.path("new.sock"), NAME);
    let _new_plugin = Plugin::serve(world.registration("new-reg.sock"), &new);
    world.driver(NAME, |state| state.endpoint == new.path).await;
    new.crash();
    let entry = world.driver(NAME, |state| state.endpoint == old.path).await;
    assert!(is_ready(&entry.state));
    let _new = Driver::serve(new.path.clone(), NAME);
    let entry = world.driver(NAME, |state| state.endpoint == new.path).await;
    assert_eq!(entry.state.standby, [old_plugin.path]);
}

#[tokio::test]
async fn a_configured_socket_where_another_driver_answers_is_not_used() {
    let mut world = World::new().configure(NAME, "own.sock").start();
    let _other = Driver::serve(world.path("own.sock"), "other.example.org");
    let refused = |state: &DriverState| matches!(&state.connection, Connection::Disconnected { reason } if reason.contains("other.example.org"));
    world.driver(NAME, refused).await;
}

#[tokio::test]
async fn a_call_that_hangs_ends_at_its_deadline_and_one_that_is_cut_off_is_in_doubt() {
    let world = World::new().deadline(Duration::from_millis(300));
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    let entry = world.driver(NAME, is_ready).await;
    assert_eq!(entry.client.deadline(), Duration::from_millis(300));
    driver.hang("NodeStageVolume");
    let error = entry.client.stage(csi::NodeStageVolumeRequest::default()).await.unwrap_err();
    assert_eq!((error.code, error.sent), (Code::DEADLINE_EXCEEDED, true));

    let call = entry.client.stage(csi::NodeStageVolumeRequest::default());
    let crash = async {
        world.until(|| driver.asked("NodeStageVolume") > 1).await;
        driver.crash();
    };
    let (result, ()) = tokio::join!(call, crash);
    let error = result.unwrap_err();
    assert_eq!((error.code, error.sent), (Code::UNAVAILABLE, true), "{error}");
}

#[tokio::test]
async fn the_registry_directory_may_be_removed_and_come_back() {
    let mut world = World::new().start();
    world.scanned().await;
    std::fs::remove_dir(world.registration("")).unwrap();
    world.until(|| world.registration("").is_dir()).await;
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    world.driver(NAME, is_ready).await;
}

#[tokio::test]
async fn shutdown_ends_all_tasks_and_calls_nobody() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    world.driver(NAME, is_ready).await;
    world.stop().await;
    assert_eq!(plugin.told().len(), 1);
    assert_eq!(driver.asked("NodeUnpublishVolume") + driver.asked("NodeUnstageVolume"), 0);
}
