//! The scripted driver itself: its block volumes, the caller's duties that it looks after, and what it can be told to do wrong.

#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "what a test needs and lacks ends it, and its helpers start processes"
)]

#[path = "support/mod.rs"]
mod support;
#[allow(dead_code, clippy::allow_attributes, reason = "the registration's tests use the rest")]
#[path = "registration/world.rs"]
mod world;

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;
use support::{DRIVER, Process, TestHost, loop_devices};
use volumed::csi::{CallError, Code, Driver};
use volumed::proto::csi;
use volumed::proto::csi::volume_capability::access_mode::Mode;
use volumed::proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use world::{World, is_ready};

/// A driver process and the client of it.
struct Scene {
    host: TestHost,
    _process: Process,
    _world: World,
    client: Arc<dyn Driver>,
}

impl Scene {
    async fn new(arguments: &[&str]) -> Self {
        let host = TestHost::new();
        let process = host.fakecsi(arguments);
        let socket = host.path("csi.sock").display().to_string();
        let mut world = World::new().configure(DRIVER, &socket).start();
        let client = world.driver(DRIVER, is_ready).await.client;
        fs::create_dir(host.path("staging")).unwrap();
        fs::create_dir(host.path("targets")).unwrap();
        Self { host, _process: process, _world: world, client }
    }

    fn staging(&self) -> String {
        self.host.path("staging").display().to_string()
    }

    fn target(&self, name: &str) -> PathBuf {
        self.host.path("targets").join(name)
    }

    async fn stage(&self, volume: &str, capability: &csi::VolumeCapability) -> Result<(), CallError> {
        self.stage_at(volume, &self.staging(), capability).await
    }

    async fn stage_at(
        &self,
        volume: &str,
        staging: &str,
        capability: &csi::VolumeCapability,
    ) -> Result<(), CallError> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: staging.into(),
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        self.client.stage(request).await
    }

    async fn unstage(&self, volume: &str) -> Result<(), CallError> {
        let request =
            csi::NodeUnstageVolumeRequest { volume_id: volume.into(), staging_target_path: self.staging() };
        self.client.unstage(request).await
    }

    async fn publish(
        &self,
        volume: &str,
        target: &str,
        capability: &csi::VolumeCapability,
    ) -> Result<(), CallError> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.into(),
            staging_target_path: self.staging(),
            target_path: self.target(target).display().to_string(),
            volume_capability: Some(capability.clone()),
            ..Default::default()
        };
        self.client.publish(request).await
    }

    async fn unpublish(&self, volume: &str, target: &str) -> Result<(), CallError> {
        let target_path = self.target(target).display().to_string();
        self.client.unpublish(csi::NodeUnpublishVolumeRequest { volume_id: volume.into(), target_path }).await
    }

    async fn expand(&self, volume: &str, path: &Path, required_bytes: i64) -> Result<(), CallError> {
        let request = csi::NodeExpandVolumeRequest {
            volume_id: volume.into(),
            volume_path: path.display().to_string(),
            capacity_range: Some(csi::CapacityRange { required_bytes, limit_bytes: 0 }),
            ..Default::default()
        };
        self.client.expand(request).await
    }

    async fn stats(&self, path: &Path) -> Result<csi::NodeGetVolumeStatsResponse, CallError> {
        let volume_path = path.display().to_string();
        let request =
            csi::NodeGetVolumeStatsRequest { volume_id: "v".into(), volume_path, ..Default::default() };
        self.client.volume_stats(request).await
    }

    async fn health(&self) -> Result<csi::NodeGetVolumeHealthResponse, CallError> {
        let request = csi::NodeGetVolumeHealthRequest { volume_id: "v".into(), ..Default::default() };
        self.client.volume_health(request).await
    }
}

fn capability(kind: AccessType, mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability { access_mode: Some(AccessMode { mode: i32::from(mode) }), access_type: Some(kind) }
}

fn mount() -> csi::VolumeCapability {
    capability(AccessType::Mount(MountVolume::default()), Mode::SingleNodeWriter)
}

fn block() -> csi::VolumeCapability {
    capability(AccessType::Block(BlockVolume {}), Mode::SingleNodeWriter)
}

/// A refusal for breaking a rule.
#[track_caller]
fn assert_broken(rule: u32, result: Result<(), CallError>) {
    let error = result.expect_err("it was let pass");
    assert!(error.message.contains(&format!("contract violation (csi.md 10, {rule})")), "{error}");
}

#[tokio::test]
async fn a_block_volume_is_shown_grows_and_leaves_no_device() {
    for way in ["bind", "symlink", "mknod"] {
        let scene = Scene::new(&["--expand", "--block", way]).await;
        scene.stage("v", &block()).await.unwrap();
        assert_eq!(fs::read_dir(scene.staging()).unwrap().count(), 0, "the staging stays a directory");
        for _again in 0..2 {
            scene.publish("v", "t", &block()).await.unwrap();
        }
        let target = scene.target("t");
        assert!(fs::metadata(&target).unwrap().file_type().is_block_device(), "{way}");
        fs::write(&target, b"written").unwrap();
        let image = scene.host.path("driver").join("v.img");
        nix::unistd::sync();
        assert!(fs::read(&image).unwrap().starts_with(b"written"), "{way}: another device");
        let devices = loop_devices(&scene.host.path(""));
        assert_eq!(devices.len(), 1, "{way}: {devices:?}");

        scene.expand("v", &target, 32 << 20).await.unwrap();
        let size = Path::new("/sys/block").join(devices[0].file_name().unwrap()).join("size");
        assert_eq!(fs::read_to_string(size).unwrap().trim(), "65536", "{way}: in sectors");
        assert_eq!(scene.stats(&target).await.unwrap().usage[0].total, 32 << 20);

        assert_broken(4, scene.unstage("v").await);
        for _again in 0..2 {
            scene.unpublish("v", "t").await.unwrap();
        }
        assert!(fs::symlink_metadata(&target).is_err(), "{way}");
        scene.unstage("v").await.unwrap();
        assert_eq!(loop_devices(&scene.host.path("")), Vec::<PathBuf>::new());
    }
}

#[tokio::test]
async fn who_breaks_a_duty_is_refused_by_the_rule_s_number() {
    let scene = Scene::new(&["--max-volumes", "2"]).await;
    let file = scene.host.path("file");
    fs::write(&file, "").unwrap();
    assert_broken(12, scene.stage_at("v", file.to_str().unwrap(), &mount()).await);
    assert_broken(12, scene.stage_at("v", "/nowhere", &mount()).await);
    scene.stage("v", &mount()).await.unwrap();
    assert_broken(12, scene.publish("v", "t", &block()).await);
    fs::create_dir(scene.host.path("other")).unwrap();
    let other = scene.host.path("other").display().to_string();
    assert_broken(2, scene.stage_at("v", &other, &mount()).await);

    fs::create_dir(scene.target("there")).unwrap();
    assert_broken(11, scene.publish("v", "there", &mount()).await);
    assert_broken(11, scene.publish("v", "no/parent", &mount()).await);
    scene.publish("v", "t", &mount()).await.unwrap();
    assert_broken(4, scene.unstage("v").await);

    let group = MountVolume { volume_mount_group: "2000".into(), ..Default::default() };
    let group = capability(AccessType::Mount(group), Mode::SingleNodeWriter);
    assert_broken(13, scene.publish("v", "group", &group).await);
    let single = capability(AccessType::Mount(MountVolume::default()), Mode::SingleNodeSingleWriter);
    assert_broken(13, scene.publish("v", "single", &single).await);
    assert_broken(13, scene.expand("v", &scene.target("t"), 1).await);
    assert_broken(13, scene.health().await.map(drop));

    scene.stage_at("w", &other, &mount()).await.unwrap();
    let more = scene.stage_at("x", &other, &mount()).await;
    assert_eq!(more.as_ref().unwrap_err().code, Code(8));
    assert_broken(25, more);
    let lenient = Scene::new(&["--lenient"]).await;
    lenient.stage("v", &mount()).await.unwrap();
    fs::create_dir(lenient.target("there")).unwrap();
    lenient.publish("v", "there", &mount()).await.unwrap();
}

#[tokio::test]
async fn a_repeat_is_known_also_by_the_next_process_and_one_writer_is_one() {
    let scene = Scene::new(&["--multi-writer", "--mount-group"]).await;
    let group = MountVolume { volume_mount_group: "2000".into(), ..Default::default() };
    let single = capability(AccessType::Mount(group), Mode::SingleNodeSingleWriter);
    scene
        .host
        .faults(&json!([{"method": "NodePublishVolume", "nth": 1, "when": "after", "action": "crash"}]));
    scene.stage("v", &single).await.unwrap();
    scene.publish("v", "t", &single).await.unwrap_err();
    // Nothing but a directory, as a driver leaves it that died before its mount.
    assert!(nix::mount::umount(&scene.target("t")).is_ok());

    scene.host.faults(&json!([]));
    let _next = scene.host.fakecsi(&["--multi-writer", "--mount-group"]);
    let socket = scene.host.path("csi.sock").display().to_string();
    let mut world = World::new().configure(DRIVER, &socket).start();
    let client = world.driver(DRIVER, is_ready).await.client;
    let scene = Scene { client, _world: world, ..scene };
    scene.publish("v", "t", &single).await.unwrap();
    let group = std::os::unix::fs::MetadataExt::gid(&fs::metadata(scene.target("t")).unwrap());
    assert_eq!(group, 2000);
    let second = scene.publish("v", "u", &single).await.unwrap_err();
    assert!(second.message.contains("SINGLE_NODE_SINGLE_WRITER"), "{second}");
}

#[tokio::test]
async fn each_call_fails_as_it_was_told() {
    let scene = Scene::new(&["--expand", "--condition", "--health"]).await;
    scene.host.faults(&json!([
        {"method": "NodeExpandVolume", "nth": 1, "action": {"code": "OUT_OF_RANGE"}},
        {"method": "NodeExpandVolume", "nth": 2, "when": "after", "action": {"code": "UNAVAILABLE"}},
        {"method": "NodeExpandVolume", "nth": 3, "action": "lost"},
        {"method": "NodeGetVolumeStats", "nth": 1, "action": {"abnormal": "a disk is gone"}},
        {"method": "NodeGetVolumeStats", "nth": 2, "action": {"usage": [{"unit": "BYTES", "total": -1}]}},
        {"method": "NodeGetVolumeHealth", "nth": 1,
         "action": {"health": [{"status": "DEGRADED", "reason": "Rebuilding", "message": "9 %"}, {"status": "77"}]}},
    ]));
    scene.stage("v", &block()).await.unwrap();
    scene.publish("v", "t", &block()).await.unwrap();
    let target = scene.target("t");
    let size = || fs::metadata(scene.host.path("driver").join("v.img")).unwrap().len() >> 20;
    let error = scene.expand("v", &target, 20 << 20).await.unwrap_err();
    assert_eq!((error.code, size()), (Code::OUT_OF_RANGE, 16));
    let error = scene.expand("v", &target, 24 << 20).await.unwrap_err();
    assert_eq!((error.code, size()), (Code::UNAVAILABLE, 24));
    let error = scene.expand("v", &target, 28 << 20).await.unwrap_err();
    assert!(!error.code.is_final() && error.sent, "what was done must not count as refused: {error}");
    assert_eq!(size(), 28);
    scene.expand("v", &target, 28 << 20).await.unwrap();

    let condition = scene.stats(&target).await.unwrap().volume_condition.unwrap();
    assert_eq!((condition.abnormal, condition.message.as_str()), (true, "a disk is gone"));
    let lie = scene.stats(&target).await.unwrap();
    assert_eq!((lie.usage[0].total, lie.volume_condition.unwrap().abnormal), (-1, false));
    let health = scene.health().await.unwrap().volume_health.unwrap().health_statuses;
    let told: Vec<_> = health.iter().map(|entry| (entry.status, entry.reason.as_str())).collect();
    assert_eq!(told, [(1, "Rebuilding"), (77, "")]);
    assert_eq!(scene.health().await.unwrap().volume_health.unwrap().health_statuses, []);
    scene.unpublish("v", "t").await.unwrap();
    scene.unstage("v").await.unwrap();
}
