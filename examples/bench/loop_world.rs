//! The bundled driver as a process, its calls over its socket, and a host file system of the bench's own for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tonic::transport::{Channel, Endpoint, Uri};
use volumed::proto::csi;
use volumed::proto::csi::controller_client::ControllerClient;
use volumed::proto::csi::node_client::NodeClient;
use volumed::proto::csi::volume_capability::{AccessMode, AccessType, MountVolume, access_mode::Mode};

use crate::loop_bare::command;
use crate::world::{PATIENCE, Process, start};

/// A driver and its directories. Dropped, it leaves no mount and no process; its volumes are to be taken down before.
#[derive(Debug)]
pub(crate) struct Driver {
    pub(crate) calls: Calls,
    process: Option<Process>,
    /// Where the host's file system of its own is mounted.
    host: Option<PathBuf>,
    directory: TempDir,
}

/// The driver's calls over one connection. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Calls {
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

/// A volume, and where it is shown.
#[derive(Debug, Clone)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) id: String,
    fs_type: &'static str,
    pub(crate) staging: PathBuf,
    pub(crate) target: PathBuf,
}

/// How long each call for a volume took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Took {
    pub(crate) create: Duration,
    pub(crate) stage: Duration,
    pub(crate) publish: Duration,
}

impl Took {
    pub(crate) fn whole(self) -> Duration {
        self.create + self.stage + self.publish
    }
}

impl Driver {
    /// Starts a driver with its images in TMPDIR.
    pub(crate) async fn new() -> anyhow::Result<Self> {
        let directory = directory()?;
        let images = directory.path().join("images");
        Self::start(directory, &images, None).await
    }

    /// Starts a driver with its images on a file system in a loop device, made for it.
    pub(crate) async fn on(fs_type: &str, size: &str) -> anyhow::Result<Self> {
        let directory = directory()?;
        let (image, host) = (directory.path().join("host.img"), directory.path().join("host"));
        fs::create_dir(&host)?;
        command("truncate", &[&"--size", &size, &image])?;
        command(&format!("mkfs.{fs_type}"), &[&"-q", &image])?;
        command("mount", &[&"--options", &"loop", &image, &host])?;
        Self::start(directory, &host.join("images"), Some(host.clone())).await
    }

    async fn start(directory: TempDir, images: &Path, host: Option<PathBuf>) -> anyhow::Result<Self> {
        let itself = std::env::current_exe()?;
        let programs =
            itself.parent().and_then(Path::parent).context("the bench lies in target/*/examples")?;
        let at = |name: &str| directory.path().join(name);
        // No configuration of the machine may leak in, and how full its disk is decides nothing.
        fs::write(at("csi-loop.toml"), "reserve = '0'\novercommit = 100.0\n")?;
        let mut driver = Command::new(programs.join("volumed-csi-loop"));
        driver.arg("--config").arg(at("csi-loop.toml")).arg("--dir").arg(images);
        driver.arg("--endpoint").arg(at("csi.sock")).args(["--node-id", "bench-node"]);
        let process = start(&mut driver, &at("driver.log"))?;
        // From here on it is unmounted whatever happens.
        let endpoint = Endpoint::from_shared(format!("unix:{}", at("csi.sock").display()))?
            .origin(Uri::from_static("http://localhost"));
        let channel = endpoint.connect_lazy();
        let calls =
            Calls { controller: ControllerClient::new(channel.clone()), node: NodeClient::new(channel) };
        let driver = Self { calls, process: Some(process), host, directory };
        let begun = Instant::now();
        while !driver.path("csi.sock").try_exists()? {
            ensure!(begun.elapsed() < PATIENCE, "the driver is not ready within {PATIENCE:?}");
            sleep(Duration::from_millis(5)).await;
        }
        Ok(driver)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Returns a directory on the file system that the images are on.
    pub(crate) fn beside_images(&self) -> PathBuf {
        self.host.clone().unwrap_or_else(|| self.directory.path().to_owned())
    }

    /// Names a volume that is to be made, with the directories that a container orchestrator makes for it.
    pub(crate) fn volume(&self, name: String, fs_type: &'static str) -> anyhow::Result<Volume> {
        let (staging, pod) = (self.path("staging").join(&name), self.path("pods").join(&name));
        fs::create_dir_all(&staging)?;
        fs::create_dir_all(&pod)?;
        Ok(Volume { name, id: String::new(), fs_type, staging, target: pod.join("mount") })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.process.take();
        if let Some(host) = &self.host {
            let _unmounted = umount2(host, MntFlags::empty());
        }
    }
}

fn directory() -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("bench-").tempdir()?)
}

impl Calls {
    /// Creates, stages and publishes a volume.
    pub(crate) async fn up(&mut self, volume: &mut Volume, bytes: i64) -> anyhow::Result<Took> {
        let begun = Instant::now();
        let request = csi::CreateVolumeRequest {
            name: volume.name.clone(),
            capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: 0 }),
            volume_capabilities: vec![volume.capability()],
            ..Default::default()
        };
        let made = self.controller.create_volume(request).await?.into_inner();
        volume.id = made.volume.context("a volume was made")?.volume_id;
        let create = begun.elapsed();
        let begun = Instant::now();
        let request = csi::NodeStageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: volume.staging.display().to_string(),
            volume_capability: Some(volume.capability()),
            ..Default::default()
        };
        self.node.node_stage_volume(request).await?;
        let stage = begun.elapsed();
        let begun = Instant::now();
        let request = csi::NodePublishVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: volume.staging.display().to_string(),
            target_path: volume.target.display().to_string(),
            volume_capability: Some(volume.capability()),
            ..Default::default()
        };
        self.node.node_publish_volume(request).await?;
        Ok(Took { create, stage, publish: begun.elapsed() })
    }

    /// Unpublishes, unstages and deletes a volume.
    pub(crate) async fn down(&mut self, volume: &Volume) -> anyhow::Result<()> {
        let request = csi::NodeUnpublishVolumeRequest {
            volume_id: volume.id.clone(),
            target_path: volume.target.display().to_string(),
        };
        self.node.node_unpublish_volume(request).await?;
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: volume.id.clone(),
            staging_target_path: volume.staging.display().to_string(),
        };
        self.node.node_unstage_volume(request).await?;
        let request = csi::DeleteVolumeRequest { volume_id: volume.id.clone(), ..Default::default() };
        self.controller.delete_volume(request).await?;
        Ok(())
    }

    /// Takes a snapshot of a volume; returns how long it took and its id.
    pub(crate) async fn snapshot(
        &mut self,
        volume: &Volume,
        name: String,
    ) -> anyhow::Result<(Duration, String)> {
        let request =
            csi::CreateSnapshotRequest { source_volume_id: volume.id.clone(), name, ..Default::default() };
        let begun = Instant::now();
        let taken = self.controller.create_snapshot(request).await?.into_inner();
        Ok((begun.elapsed(), taken.snapshot.context("a snapshot was taken")?.snapshot_id))
    }

    pub(crate) async fn delete_snapshot(&mut self, id: String) -> anyhow::Result<()> {
        let request = csi::DeleteSnapshotRequest { snapshot_id: id, ..Default::default() };
        self.controller.delete_snapshot(request).await?;
        Ok(())
    }
}

impl Volume {
    fn capability(&self) -> csi::VolumeCapability {
        let mount = MountVolume { fs_type: self.fs_type.to_owned(), ..Default::default() };
        csi::VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            access_mode: Some(AccessMode { mode: i32::from(Mode::SingleNodeMultiWriter) }),
        }
    }
}
