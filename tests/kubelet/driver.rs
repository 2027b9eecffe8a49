//! The drivers of the recordings, as far as a host can tell: real bind mounts, and every request written down.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use sha2::{Digest, Sha256};
use volumed::BoxFuture;
use volumed::csi::{CallError, Driver};
use volumed::model::DriverInfo;
use volumed::proto::csi;

use super::recording::{Call, relative};
use super::wire;

const NONE: Option<&str> = None;

/// How a driver of the recordings behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// csi-driver-host-path: staging mounts nothing, publishing binds the volume's directory.
    HostPath,
    /// The test driver: staging and publishing bind the volume's directory.
    Staging,
    /// The test driver without STAGE_UNSTAGE_VOLUME.
    WithoutStaging,
    /// The no-op driver, also without it: makes the target, mounts nothing, and removes nothing either.
    NoOp,
}

/// What all drivers of a node saw.
#[derive(Debug, Default)]
pub struct Log {
    pub calls: Vec<Call>,
    /// What a driver found on a call and should not have found, and steps that failed.
    pub wrong: Vec<String>,
}

/// One driver.
#[derive(Debug, Clone)]
pub struct RecordedDriver {
    pub name: &'static str,
    pub kind: Kind,
    /// `SINGLE_NODE_MULTI_WRITER`, `VOLUME_MOUNT_GROUP`: as the recorded driver answered NodeGetCapabilities.
    pub capabilities: &'static [&'static str],
    root: PathBuf,
    store: PathBuf,
    log: Arc<Mutex<Log>>,
}

impl RecordedDriver {
    /// Takes the host's root directory, the driver's own directory and where to write the requests.
    pub fn new(
        (name, kind, capabilities): (&'static str, Kind, &'static [&'static str]),
        root: &Path,
        store: &Path,
        log: Arc<Mutex<Log>>,
    ) -> Self {
        Self { name, kind, capabilities, root: root.to_owned(), store: store.to_owned(), log }
    }

    /// What it says of itself.
    pub fn info(&self) -> DriverInfo {
        let stage_unstage = matches!(self.kind, Kind::HostPath | Kind::Staging);
        let mut capabilities: Vec<String> = self.capabilities.iter().map(|c| format!("node/{c}")).collect();
        if stage_unstage {
            capabilities.push("node/STAGE_UNSTAGE_VOLUME".to_owned());
        }
        capabilities.sort();
        DriverInfo {
            node_id: "capture-node".to_owned(),
            stage_unstage,
            single_node_multi_writer: self.capabilities.contains(&"SINGLE_NODE_MULTI_WRITER"),
            capabilities,
            ..DriverInfo::default()
        }
    }

    fn note(&self, method: &str, request: &Value) {
        let request = relative(request, self.root.to_str().expect("UTF-8"));
        let call = Call { driver: self.name.to_owned(), method: method.to_owned(), request };
        self.log.lock().unwrap_or_else(PoisonError::into_inner).calls.push(call);
    }

    /// Writes down what should be otherwise: the tests assert that nothing is.
    fn expect(&self, is_so: bool, what: impl FnOnce() -> String) {
        if !is_so {
            self.log.lock().unwrap_or_else(PoisonError::into_inner).wrong.push(what());
        }
    }

    fn expect_vol_data(&self, method: &str, beside: &str) {
        let file = Path::new(beside).with_file_name("vol_data.json");
        self.expect(file.is_file(), || format!("{method}: there is no {}", file.display()));
    }

    /// The volume's own directory.
    fn volume(&self, handle: &str) -> PathBuf {
        let hex: String = Sha256::digest(handle).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        let path = self.store.join(hex);
        std::fs::create_dir_all(&path).expect("the driver's own directory can be written");
        path
    }

    fn on_stage(&self, request: &csi::NodeStageVolumeRequest) {
        const METHOD: &str = "NodeStageVolume";
        self.note(METHOD, &wire::stage(request));
        let path = &request.staging_target_path;
        let mode = std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o7777);
        let made = mode.as_ref().is_ok_and(|mode| *mode == 0o750);
        self.expect(made, || format!("{METHOD}: {path} is not a directory of mode 0750: {mode:?}"));
        self.expect_vol_data(METHOD, path);
        match self.kind {
            Kind::Staging => bind(&self.volume(&request.volume_id), path, false),
            Kind::HostPath => {}
            Kind::WithoutStaging | Kind::NoOp => {
                self.expect(false, || format!("{METHOD} without the capability"));
            }
        }
    }

    fn on_publish(&self, request: &csi::NodePublishVolumeRequest) {
        const METHOD: &str = "NodePublishVolume";
        self.note(METHOD, &wire::publish(request));
        let target = &request.target_path;
        // The driver makes the target, its parent is there (csi.md 2.7).
        let made = std::fs::DirBuilder::new().mode(0o750).create(target);
        self.expect(made.is_ok(), || format!("{METHOD}: {target} cannot be made: {made:?}"));
        self.expect_vol_data(METHOD, target);
        match self.kind {
            Kind::HostPath | Kind::Staging | Kind::WithoutStaging => {
                bind(&self.volume(&request.volume_id), target, request.readonly);
            }
            Kind::NoOp => {}
        }
    }

    fn on_unpublish(&self, request: &csi::NodeUnpublishVolumeRequest) {
        const METHOD: &str = "NodeUnpublishVolume";
        self.note(METHOD, &wire::unpublish(request));
        self.expect_vol_data(METHOD, &request.target_path);
        match self.kind {
            Kind::HostPath | Kind::Staging | Kind::WithoutStaging => {
                let gone = umount2(request.target_path.as_str(), MntFlags::empty());
                self.expect(gone.is_ok(), || format!("{METHOD}: {gone:?}"));
                let removed = std::fs::remove_dir(&request.target_path);
                self.expect(removed.is_ok(), || format!("{METHOD}: {removed:?}"));
            }
            Kind::NoOp => {}
        }
    }

    fn on_unstage(&self, request: &csi::NodeUnstageVolumeRequest) {
        const METHOD: &str = "NodeUnstageVolume";
        self.note(METHOD, &wire::unstage(request));
        self.expect_vol_data(METHOD, &request.staging_target_path);
        match self.kind {
            Kind::Staging => {
                let gone = umount2(request.staging_target_path.as_str(), MntFlags::empty());
                self.expect(gone.is_ok(), || format!("{METHOD}: {gone:?}"));
            }
            Kind::HostPath => {}
            Kind::WithoutStaging | Kind::NoOp => {
                self.expect(false, || format!("{METHOD} without the capability"));
            }
        }
    }
}

fn bind(from: &Path, to: &str, read_only: bool) {
    mount(Some(from), to, NONE, MsFlags::MS_BIND, NONE).expect("a bind mount");
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(NONE, to, NONE, flags, NONE).expect("a read-only bind mount");
    }
}

impl Driver for RecordedDriver {
    fn deadline(&self) -> Duration {
        Duration::from_secs(20)
    }

    fn stage(&self, request: csi::NodeStageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            self.on_stage(&request);
            Ok(())
        })
    }

    fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            self.on_unstage(&request);
            Ok(())
        })
    }

    fn publish(&self, request: csi::NodePublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            self.on_publish(&request);
            Ok(())
        })
    }

    fn unpublish(&self, request: csi::NodeUnpublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            self.on_unpublish(&request);
            Ok(())
        })
    }
}
