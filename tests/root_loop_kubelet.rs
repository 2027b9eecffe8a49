//! The bundled driver under a kubelet: registration, paths, modes and arguments as kubelet.md 7 and 5 have them, with no help from
//! volumed.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/kubelet.rs"]
mod kubelet;
#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use kubelet::{Kubelet, NAME, hex, is_final, mode};
use looped::calls::As;
use looped::{capacity, path, run};
use support::{loop_devices, until};
use tonic::Status;
use volumed::proto::csi;
use volumed::proto::csi::controller_client::ControllerClient;
use volumed::proto::csi::node_client::NodeClient;
use volumed::proto::csi::node_service_capability::rpc::Type as Can;
use volumed::proto::csi::volume_usage::Unit;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 320 * MIB;

/// A RWO volume as a kubelet asks for it: SINGLE_NODE_MULTI_WRITER where the driver has it.
fn rwo(kubelet: &Kubelet, used: As) -> As {
    assert!(kubelet.can(Can::SingleNodeMultiWriter));
    used
}

/// The provisioner's and the resizer's part.
impl Kubelet {
    fn provision(&self, name: &str, used: &As, bytes: u64) -> csi::Volume {
        let request = csi::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: range(bytes),
            volume_capabilities: used.capability().into_iter().collect(),
            ..Default::default()
        };
        let made = self.call(async |channel| ControllerClient::new(channel).create_volume(request).await);
        made.expect("it can be made").volume.expect("a volume")
    }

    fn expand_volume(&self, volume: &csi::Volume, bytes: u64) {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: volume.volume_id.clone(),
            capacity_range: range(bytes),
            ..Default::default()
        };
        let grown =
            self.call(async |channel| ControllerClient::new(channel).controller_expand_volume(request).await);
        assert_eq!(grown.expect("it grows").capacity_bytes, i64::try_from(bytes).expect("a size"));
    }

    fn delete(&self, volume: &csi::Volume) {
        let request = csi::DeleteVolumeRequest { volume_id: volume.volume_id.clone(), ..Default::default() };
        let deleted = self.call(async |channel| ControllerClient::new(channel).delete_volume(request).await);
        deleted.expect("it can be deleted");
    }
}

fn range(bytes: u64) -> Option<csi::CapacityRange> {
    Some(csi::CapacityRange { required_bytes: i64::try_from(bytes).expect("a size"), limit_bytes: 0 })
}

/// The node's calls.
impl Kubelet {
    fn stage(&self, volume: &csi::Volume, at: &Path, used: &As) -> Result<(), Status> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: path(at).to_owned(),
            volume_capability: used.capability(),
            volume_context: volume.volume_context.clone(),
            ..Default::default()
        };
        self.call(async |channel| NodeClient::new(channel).node_stage_volume(request).await).map(drop)
    }

    /// Publishes with `podInfoOnMount`; without a staging path the volume is the pod's own.
    fn publish(
        &self,
        (id, context): (&str, &BTreeMap<String, String>),
        staged: Option<&Path>,
        at: &Path,
        used: &As,
    ) -> Result<(), Status> {
        let mut volume_context = context.clone();
        let ephemeral = if staged.is_none() { "true" } else { "false" };
        for (key, value) in [
            ("pod.name", "web"),
            ("pod.namespace", "default"),
            ("pod.uid", "u1"),
            ("serviceAccount.name", "default"),
            ("ephemeral", ephemeral),
        ] {
            volume_context.insert(format!("csi.storage.k8s.io/{key}"), value.to_owned());
        }
        let request = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: staged.map(path).unwrap_or_default().to_owned(),
            target_path: path(at).to_owned(),
            volume_capability: used.capability(),
            volume_context,
            ..Default::default()
        };
        self.call(async |channel| NodeClient::new(channel).node_publish_volume(request).await).map(drop)
    }

    fn unpublish(&self, id: &str, at: &Path) {
        let request =
            csi::NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: path(at).to_owned() };
        let done = self.call(async |channel| NodeClient::new(channel).node_unpublish_volume(request).await);
        done.expect("it can be unpublished");
    }

    fn unstage(&self, id: &str, at: &Path) {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: path(at).to_owned(),
        };
        let done = self.call(async |channel| NodeClient::new(channel).node_unstage_volume(request).await);
        done.expect("it can be unstaged");
    }

    /// The bytes of a volume by its stats: a kubelet gives the pod's path and no staging path.
    fn stats(&self, id: &str, at: &Path) -> BTreeMap<Unit, i64> {
        assert!(self.can(Can::GetVolumeStats));
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: path(at).to_owned(),
            ..Default::default()
        };
        let answer = self.call(async |channel| NodeClient::new(channel).node_get_volume_stats(request).await);
        answer.expect("an answer").usage.iter().map(|usage| (usage.unit(), usage.total)).collect()
    }

    fn expand(&self, volume: &csi::Volume, [at, staged]: [&Path; 2], used: &As, bytes: u64) {
        assert!(self.can(Can::ExpandVolume));
        let request = csi::NodeExpandVolumeRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: path(at).to_owned(),
            capacity_range: range(bytes),
            staging_target_path: path(staged).to_owned(),
            volume_capability: used.capability(),
            ..Default::default()
        };
        let done = self.call(async |channel| NodeClient::new(channel).node_expand_volume(request).await);
        done.expect("it grows");
    }
}

#[test]
fn a_kubelet_registers_it_again_whenever_it_has_to() {
    let mut kubelet = Kubelet::new();
    let socket = kubelet.registration();
    let name = format!("{NAME}-reg.sock");
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().expect("the registry")), 0o750, "the kubelet's directory was changed");
    // A refusal is no reason to go: the kubelet comes again by itself.
    kubelet.notify(&socket, "driver name is taken");
    until("it was told", || {
        let log = fs::read_to_string(kubelet.host.path("driver.log")).expect("a log");
        log.contains("driver name is taken")
    });
    assert_eq!(kubelet.seen(), Vec::<String>::new(), "the socket was touched");
    kubelet.notify(&socket, "");
    // Killed, it leaves its socket. To be seen, the next one has to create its own.
    kubelet.driver.take().expect("it runs").kill();
    assert!(socket.exists() && kubelet.seen().is_empty());
    kubelet.start_driver();
    assert!(
        kubelet.call(async |c| NodeClient::new(c).node_get_info(csi::NodeGetInfoRequest {}).await).is_ok()
    );
    // Told to end, it takes its registration away.
    let driver = kubelet.driver.take().expect("it runs");
    driver.signal("-TERM");
    assert!(driver.ended().success());
    assert_eq!(kubelet.seen(), [format!("-{name}")]);
    assert!(!kubelet.endpoint.exists(), "the driver's socket is left");
}

#[test]
fn a_file_system_volume_lives_at_the_kubelet_s_paths() {
    let kubelet = Kubelet::new();
    assert!(kubelet.can(Can::StageUnstageVolume) && kubelet.can(Can::VolumeMountGroup));
    // xfs grows online wherever the test runs. The group goes to the driver, and the kubelet changes no owner.
    let used = rwo(&kubelet, As::file_system("xfs").group(4711));
    let volume = kubelet.provision("pvc-1", &used, SIZE);
    let id = volume.volume_id.as_str();
    let global = kubelet.global(id);
    for _ in 0..2 {
        kubelet.stage(&volume, &global, &used).unwrap();
    }
    let targets = ["u1", "u2"].map(|pod| kubelet.target(pod, "pvc-1"));
    for target in &targets {
        // Again and again, as `requiresRepublish` and a restarted kubelet do.
        for _ in 0..2 {
            kubelet.publish((id, &volume.volume_context), Some(&global), target, &used).unwrap();
        }
        let root = fs::metadata(target).unwrap();
        assert_eq!((root.gid(), root.mode() & 0o2070), (4711, 0o2070), "the group cannot write");
    }
    fs::write(targets[0].join("file"), "x").unwrap();
    let file = fs::metadata(targets[1].join("file")).unwrap();
    assert_eq!(file.gid(), 4711);
    let full = capacity(&targets[0]);
    let stats = kubelet.stats(id, &targets[0]);
    assert!(stats[&Unit::Bytes] > 0 && stats[&Unit::Inodes] > 0, "{stats:?}");
    kubelet.expand_volume(&volume, SIZE * 2);
    kubelet.expand(&volume, [&targets[0], &global], &used, SIZE * 2);
    assert!(capacity(&targets[1]) > full + SIZE / 2, "it did not grow");

    for target in &targets {
        assert!(global.parent().unwrap().join("vol_data.json").exists(), "the kubelet's record is gone");
        kubelet.unpublish(id, target);
        assert!(!target.exists(), "a driver deletes the target that it made");
        kubelet.unpublish(id, target);
        kubelet.remove_mount_dir(target);
    }
    // `HasMountRefs`: only then it is unstaged.
    assert_eq!(kubelet.host.mounts(), std::slice::from_ref(&global));
    kubelet.unstage(id, &global);
    assert_eq!(mode(&global), 0o750, "the directory is the kubelet's");
    kubelet.unstage(id, &global);
    kubelet.remove_mount_dir(&global);
    // A kubelet that died in between asks once more.
    kubelet.unpublish(id, &targets[0]);
    kubelet.unstage(id, &global);
    kubelet.delete(&volume);
    kubelet.assert_nothing_left();
}

#[test]
fn a_failure_that_is_final_leaves_nothing_in_the_kubelet_s_way() {
    let kubelet = Kubelet::new();
    let good = rwo(&kubelet, As::file_system("ext4"));
    let volume = kubelet.provision("pvc-1", &good, SIZE);
    let id = volume.volume_id.as_str();
    let (global, target) = (kubelet.global(id), kubelet.target("u1", "pvc-1"));
    let refused = kubelet.publish((id, &volume.volume_context), Some(&global), &target, &good);
    assert!(is_final(&refused.unwrap_err()), "a kubelet would wait for it");
    kubelet.remove_mount_dir(&target);
    let refused = kubelet.stage(&volume, &global, &good.clone().flag("nonsense"));
    assert!(is_final(&refused.unwrap_err()), "a kubelet would wait for it");
    kubelet.remove_mount_dir(&global);
    // What was wrong is mended, and it goes on from the beginning.
    let (global, target) = (kubelet.global(id), kubelet.target("u1", "pvc-1"));
    kubelet.stage(&volume, &global, &good).unwrap();
    kubelet.publish((id, &volume.volume_context), Some(&global), &target, &good).unwrap();
    kubelet.unpublish(id, &target);
    kubelet.remove_mount_dir(&target);
    kubelet.unstage(id, &global);
    kubelet.remove_mount_dir(&global);
    kubelet.delete(&volume);
    kubelet.assert_nothing_left();
}

#[test]
fn a_block_volume_lives_at_the_kubelet_s_paths() {
    let kubelet = Kubelet::new();
    let used = rwo(&kubelet, As::block());
    let volume = kubelet.provision("pvc-raw", &used, 8 * MIB);
    let id = volume.volume_id.as_str();
    let [staging, publish, map] = kubelet.block_paths("pvc-raw", "u1");
    for _ in 0..2 {
        kubelet.stage(&volume, &staging, &used).unwrap();
        kubelet.publish((id, &volume.volume_context), Some(&staging), &publish, &used).unwrap();
    }
    assert!(fs::metadata(&publish).unwrap().file_type().is_block_device(), "it can be mapped");
    // The kubelet's own: a bind of the device, a link for the pod, and a loop device over the bind for a lock.
    fs::write(&map, "").unwrap();
    run("mount", &["--bind", path(&publish), path(&map)]);
    let link = kubelet.host.root.join("pods/u1/volumeDevices/kubernetes.io~csi/pvc-raw");
    kubelet::make(link.parent().unwrap());
    std::os::unix::fs::symlink(&publish, &link).unwrap();
    let lock = run("losetup", &["--find", "--show", path(&map)]);
    fs::write(&link, "written by the pod").unwrap();
    assert_eq!(kubelet.stats(id, &map)[&Unit::Bytes], i64::try_from(8 * MIB).unwrap());
    kubelet.expand_volume(&volume, 16 * MIB);
    kubelet.expand(&volume, [&publish, &staging], &used, 16 * MIB);
    assert_eq!(kubelet.stats(id, &map)[&Unit::Bytes], i64::try_from(16 * MIB).unwrap());
    let size = run("blockdev", &["--getsize64", path(&fs::canonicalize(&link).unwrap())]);
    assert_eq!(size.trim(), (16 * MIB).to_string());

    // The kubelet takes its own away first, then the driver's.
    run("losetup", &["--detach", lock.trim()]);
    fs::remove_file(&link).unwrap();
    run("umount", &[path(&map)]);
    fs::remove_file(&map).unwrap();
    for _ in 0..2 {
        kubelet.unpublish(id, &publish);
        assert!(!publish.exists(), "a driver deletes the file that it made");
    }
    for _ in 0..2 {
        kubelet.unstage(id, &staging);
    }
    for directory in [staging.as_path(), publish.parent().unwrap()] {
        assert_eq!(mode(directory), 0o750, "the kubelet's directory was changed");
        fs::remove_dir(directory).expect("nothing is left in it");
    }
    kubelet.unstage(id, &staging);
    assert!(loop_devices(&kubelet.host.path("images")).is_empty());
    // The data stays.
    kubelet::make(&staging);
    kubelet::make(publish.parent().unwrap());
    kubelet.stage(&volume, &staging, &used).unwrap();
    kubelet.publish((id, &volume.volume_context), Some(&staging), &publish, &used).unwrap();
    let start = run("head", &["--bytes=18", path(&publish)]);
    assert_eq!(start, "written by the pod");
    kubelet.unpublish(id, &publish);
    kubelet.unstage(id, &staging);
    kubelet.delete(&volume);
    kubelet.assert_nothing_left();
}

#[test]
fn a_pod_s_own_volume_is_published_and_nothing_else() {
    let kubelet = Kubelet::new();
    let used = rwo(&kubelet, As::file_system("ext4").group(4711));
    let id = format!("csi-{}", hex(b"u1scratch"));
    let attributes = BTreeMap::from([("size".to_owned(), "32Mi".to_owned())]);
    let target = kubelet.target("u1", "scratch");
    for _ in 0..2 {
        kubelet.publish((&id, &attributes), None, &target, &used).unwrap();
    }
    assert_eq!(kubelet.host.mounts(), std::slice::from_ref(&target), "a kubelet would not know of another");
    fs::write(target.join("file"), "x").unwrap();
    assert_eq!(fs::metadata(target.join("file")).unwrap().gid(), 4711);
    assert!(kubelet.stats(&id, &target)[&Unit::Bytes] > 0);
    for _ in 0..2 {
        kubelet.unpublish(&id, &target);
        assert!(!target.exists(), "a driver deletes the target that it made");
    }
    kubelet.remove_mount_dir(&target);
    kubelet.assert_nothing_left();
}
