//! What the registry refuses, and why it says so: plugins and drivers that may not be believed.

use volumed::model::EventKind;
use volumed::proto::csi;

use crate::NAME;
use crate::plugin::{Answers, Driver, Plugin};
use crate::world::{World, is_ready};

#[tokio::test]
async fn what_cannot_be_accepted_is_refused_with_the_reason_and_not_asked_again() {
    type Change = fn(&mut volumed::proto::registration::PluginInfo);
    let cases: [(&str, Change); 6] = [
        ("CSIPlugin only", |info| info.r#type = "DRAPlugin".into()),
        ("driver name", |info| info.name = "../../etc".into()),
        ("driver name", |info| info.name = "x".repeat(64)),
        ("versions", |info| info.supported_versions = vec!["0.3.0".into()]),
        ("absolute path", |info| info.endpoint = "run/csi.sock".into()),
        ("104 bytes", |info| info.endpoint = format!("/{}", "x".repeat(104))),
    ];
    for (expected, change) in cases {
        let world = World::new();
        let driver = Driver::serve(world.path("csi.sock"), NAME);
        let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
        plugin.say(change);
        let mut world = world.start();
        let EventKind::RegistrationRefused { reason, .. } = world.refusal().await else { unreachable!() };
        assert!(reason.contains(expected), "{expected}: {reason}");
        assert_eq!(plugin.told(), [(false, reason)]);
        assert!(!world.has(NAME));
        assert_eq!(driver.asked("NodeGetInfo"), 0);
    }
}

#[tokio::test]
async fn absurd_answers_are_refused_with_what_is_wrong() {
    type Change = fn(&mut Answers);
    let cases: [(&str, Change); 9] = [
        ("node_id is empty", |a| a.node.node_id.clear()),
        ("node_id has 257 bytes", |a| a.node.node_id = "n".repeat(257)),
        ("control characters", |a| a.node.node_id = "a\nb".into()),
        ("max_volumes_per_node is -1", |a| a.node.max_volumes_per_node = -1),
        ("accessible_topology has 5002 bytes", |a| {
            let segments = [("k1".to_owned(), "v".repeat(5000))].into();
            a.node.accessible_topology = Some(csi::Topology { segments });
        }),
        ("calls itself \"other\"", |a| a.plugin.name = "other".into()),
        ("vendor_version has 129 bytes", |a| a.plugin.vendor_version = "v".repeat(129)),
        ("manifest has 4097 bytes", |a| a.plugin.manifest = [("k".to_owned(), "v".repeat(4096))].into()),
        // More than a client takes in: an error, and not memory.
        ("too large", |a| a.plugin.vendor_version = "v".repeat(5 << 20)),
    ];
    for (expected, change) in cases {
        let world = World::new();
        let driver = Driver::serve(world.path("csi.sock"), NAME);
        let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
        driver.say(change);
        let mut world = world.start();
        let EventKind::RegistrationRefused { reason, .. } = world.refusal().await else { unreachable!() };
        assert!(reason.contains(expected), "{expected}: {reason}");
        assert!(reason.len() <= 1024);
    }
}

#[tokio::test]
async fn capabilities_that_nobody_knows_are_named_by_their_number() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    driver.say(|answers| {
        answers.capabilities = vec![0, 1, 5, 99];
        answers.controller = Some(vec![2, 77]);
    });
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    let info = world.driver(NAME, is_ready).await.state.info;
    assert!(info.stage_unstage && info.single_node_multi_writer && info.publish_unpublish);
    let expected = [
        "controller/77",
        "controller/PUBLISH_UNPUBLISH_VOLUME",
        "node/99",
        "node/SINGLE_NODE_MULTI_WRITER",
        "node/STAGE_UNSTAGE_VOLUME",
        "node/UNKNOWN",
        "plugin/CONTROLLER_SERVICE",
    ];
    assert_eq!(info.capabilities, expected);
}

#[tokio::test]
async fn a_registration_too_large_to_take_in_is_an_error() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    plugin.say(|info| info.supported_versions.push("9".repeat(5 << 20)));
    let mut world = world.start();
    // On a busy machine the first attempts may be late instead.
    loop {
        let EventKind::RegistrationRefused { reason, .. } = world.refusal().await else { unreachable!() };
        if reason.contains("too large") {
            break;
        }
        assert!(reason.contains("DEADLINE_EXCEEDED"), "{reason}");
    }
    assert!(!world.has(NAME));
}

#[tokio::test]
async fn a_socket_of_another_user_is_refused_until_it_is_root_s() {
    if !nix::unistd::geteuid().is_root() {
        println!(
            "NOT-RUN: a_socket_of_another_user_is_refused_until_it_is_root_s: only root can give files away"
        );
        return;
    }
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    std::os::unix::fs::chown(&plugin.path, Some(65534), None).unwrap();
    let mut world = world.start();
    let EventKind::RegistrationRefused { reason, .. } = world.refusal().await else { unreachable!() };
    assert!(reason.contains("belongs to user 65534"), "{reason}");
    assert_eq!(plugin.asked(), 0);
    std::os::unix::fs::chown(&plugin.path, Some(0), None).unwrap();
    world.driver(NAME, is_ready).await;
}

#[tokio::test]
async fn a_driver_socket_of_another_user_is_refused() {
    if !nix::unistd::geteuid().is_root() {
        println!("NOT-RUN: a_driver_socket_of_another_user_is_refused: only root can give files away");
        return;
    }
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    std::os::unix::fs::chown(&driver.path, Some(65534), None).unwrap();
    let plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    world.refusal().await;
    assert!(
        plugin.told().iter().all(|(registered, reason)| !registered && reason.contains("belongs to user"))
    );
    assert_eq!(driver.asked("NodeGetInfo"), 0);
}

#[tokio::test]
async fn a_socket_where_others_may_write_is_refused() {
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new();
    std::fs::create_dir(world.registration("open")).unwrap();
    std::fs::set_permissions(world.registration("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let plugin = Plugin::serve(world.registration("open/a-reg.sock"), &driver);
    let mut world = world.start();
    let EventKind::RegistrationRefused { reason, .. } = world.refusal().await else { unreachable!() };
    assert!(reason.contains("other users can write"), "{reason}");
    assert_eq!(plugin.asked(), 0);
}

#[tokio::test]
async fn no_secret_comes_back_in_an_error() {
    let world = World::new();
    let driver = Driver::serve(world.path("csi.sock"), NAME);
    let _plugin = Plugin::serve(world.registration("a-reg.sock"), &driver);
    let mut world = world.start();
    let entry = world.driver(NAME, is_ready).await;
    driver.fail("NodeStageVolume", tonic::Status::permission_denied("\x1blogin user:hunter2 failed"));
    let request = csi::NodeStageVolumeRequest {
        secrets: [("password".to_owned(), "hunter2".to_owned())].into(),
        ..Default::default()
    };
    let error = entry.client.stage(request).await.unwrap_err();
    assert_eq!(error.to_string(), "NodeStageVolume: PERMISSION_DENIED:  login user:*** failed");
    assert!(error.sent);
}
