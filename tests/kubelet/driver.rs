//! The drivers of the recordings, as far as a host can tell: real bind mounts, and every request written down.

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use volumed::BoxFuture;
use volumed::csi::{CallError, Code, Driver};
use volumed::model::DriverInfo;
use volumed::proto::csi;

use super::again::own_name;
use super::recording::{Call, relative};
use super::{loops, wire};

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
    /// The same with it.
    NoOpStaging,
    /// The test driver, asked to fail every call of a method (`NodeStageVolume`, ...).
    Refusing(&'static str, Code),
}

impl Kind {
    /// Whether it has STAGE_UNSTAGE_VOLUME.
    pub fn stages(self) -> bool {
        match self {
            Self::HostPath | Self::Staging | Self::NoOpStaging | Self::Refusing(..) => true,
            Self::WithoutStaging | Self::NoOp => false,
        }
    }
}

/// What all drivers of a node saw.
#[derive(Debug, Default)]
pub struct Log {
    pub calls: Vec<Call>,
    /// What a driver found on a call and should not have found.
    pub wrong: Vec<String>,
    /// Steps that failed, and what vanished.
    pub failures: Vec<String>,
}

/// One driver.
#[derive(Debug, Clone)]
pub struct RecordedDriver {
    pub name: &'static str,
    pub kind: Kind,
    /// `SINGLE_NODE_MULTI_WRITER`, `VOLUME_MOUNT_GROUP`: as the recorded driver answered NodeGetCapabilities.
    pub capabilities: &'static [&'static str],
    site: Site,
}

/// Where drivers are.
#[derive(Debug, Clone)]
pub struct Site {
    /// The host's root directory.
    pub root: PathBuf,
    /// The drivers' own directory, with a directory or image for each volume.
    pub store: PathBuf,
    /// Where the requests are written down.
    pub log: Arc<Mutex<Log>>,
    /// A kubelet called the drivers before: what is there already is answered with OK, as csi.md 2.6 asks, and not done again.
    pub called_before: bool,
}

impl RecordedDriver {
    /// Makes a driver at a place.
    pub fn new(
        (name, kind, capabilities): (&'static str, Kind, &'static [&'static str]),
        site: Site,
    ) -> Self {
        Self { name, kind, capabilities, site }
    }

    /// What it says of itself.
    pub fn info(&self) -> DriverInfo {
        let stage_unstage = self.kind.stages();
        let mut capabilities: Vec<String> = self.capabilities.iter().map(|c| format!("node/{c}")).collect();
        if stage_unstage {
            capabilities.push("node/STAGE_UNSTAGE_VOLUME".to_owned());
        }
        capabilities.sort();
        DriverInfo {
            node_id: "capture-node".to_owned(),
            stage_unstage,
            single_node_multi_writer: self.capabilities.contains(&"SINGLE_NODE_MULTI_WRITER"),
            expand_volume: self.capabilities.contains(&"EXPAND_VOLUME"),
            volume_mount_group: self.capabilities.contains(&"VOLUME_MOUNT_GROUP"),
            capabilities,
            ..DriverInfo::default()
        }
    }

    fn note(&self, method: &str, request: &Value) {
        let request = relative(request, self.site.root.to_str().expect("UTF-8"));
        let call = Call { driver: self.name.to_owned(), method: method.to_owned(), request };
        self.site.log.lock().unwrap_or_else(PoisonError::into_inner).calls.push(call);
    }

    /// Fails a call that is to fail, before it has done anything.
    fn refuse(&self, method: &'static str) -> Result<(), CallError> {
        if let Kind::Refusing(refused, code) = self.kind
            && refused == method
        {
            return Err(CallError { method, code, message: "asked to fail".to_owned(), sent: true });
        }
        Ok(())
    }

    /// Writes down what should be otherwise: the tests assert that nothing is.
    fn expect(&self, is_so: bool, what: impl FnOnce() -> String) {
        if !is_so {
            self.site.log.lock().unwrap_or_else(PoisonError::into_inner).wrong.push(what());
        }
    }

    fn expect_vol_data(&self, method: &str, path: &str) {
        let file = vol_data(Path::new(path));
        self.expect(file.is_file(), || format!("{method}: there is no {}", file.display()));
    }

    /// What is shown of a volume: its own directory, or a loop device on its own image.
    fn shown(&self, handle: &str, capability: Option<&csi::VolumeCapability>) -> PathBuf {
        let own = self.site.store.join(own_name(handle));
        if is_block(capability) {
            return loops::of_image(&own.with_extension("img"));
        }
        std::fs::create_dir_all(&own).expect("the driver's own directory can be written");
        own
    }

    /// Returns whether an earlier call mounted the volume here; anything else that is mounted is written down.
    fn is_there(&self, method: &str, shown: &Path, path: &str) -> bool {
        if !is_mounted(Path::new(path)) {
            return false;
        }
        let same = same_file(shown, Path::new(path));
        self.expect(same && self.site.called_before, || format!("{method}: something is mounted at {path}"));
        true
    }

    fn on_stage(&self, request: &csi::NodeStageVolumeRequest) -> Result<(), CallError> {
        const METHOD: &str = "NodeStageVolume";
        self.note(METHOD, &wire::stage(request));
        let path = &request.staging_target_path;
        let capability = request.volume_capability.as_ref();
        let shown = self.shown(&request.volume_id, capability);
        self.expect_vol_data(METHOD, path);
        self.refuse(METHOD)?;
        if self.is_there(METHOD, &shown, path) {
            return Ok(());
        }
        let mode = std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o7777);
        let made = mode.as_ref().is_ok_and(|mode| *mode == 0o750);
        self.expect(made, || format!("{METHOD}: {path} is not a directory of mode 0750: {mode:?}"));
        match self.kind {
            Kind::Staging | Kind::Refusing(..) if is_block(capability) => {}
            Kind::Staging | Kind::Refusing(..) => bind(&shown, path, false),
            Kind::HostPath | Kind::NoOpStaging => {}
            Kind::WithoutStaging | Kind::NoOp => {
                self.expect(false, || format!("{METHOD} without the capability"));
            }
        }
        Ok(())
    }

    fn on_publish(&self, request: &csi::NodePublishVolumeRequest) -> Result<(), CallError> {
        const METHOD: &str = "NodePublishVolume";
        self.note(METHOD, &wire::publish(request));
        let target = &request.target_path;
        let capability = request.volume_capability.as_ref();
        let shown = self.shown(&request.volume_id, capability);
        self.expect_vol_data(METHOD, target);
        self.refuse(METHOD)?;
        if self.is_there(METHOD, &shown, target) {
            return Ok(());
        }
        // The driver makes the target, its parent is there (csi.md 2.7).
        let made = match is_block(capability) {
            true => {
                OpenOptions::new().write(true).create_new(true).mode(self.file_mode()).open(target).map(drop)
            }
            false => std::fs::DirBuilder::new().mode(0o750).create(target),
        };
        let there =
            self.site.called_before && made.as_ref().is_err_and(|e| e.kind() == ErrorKind::AlreadyExists);
        self.expect(there || made.is_ok(), || format!("{METHOD}: {target} cannot be made: {made:?}"));
        match self.kind {
            Kind::NoOp | Kind::NoOpStaging => {}
            Kind::HostPath | Kind::Staging | Kind::WithoutStaging | Kind::Refusing(..) => {
                bind(&shown, target, request.readonly);
            }
        }
        Ok(())
    }

    /// What a driver makes a block volume's target file with.
    fn file_mode(&self) -> u32 {
        match self.kind {
            Kind::HostPath => 0o644,
            Kind::Staging | Kind::WithoutStaging | Kind::NoOp | Kind::NoOpStaging | Kind::Refusing(..) => {
                0o640
            }
        }
    }

    fn on_unpublish(&self, request: &csi::NodeUnpublishVolumeRequest) {
        const METHOD: &str = "NodeUnpublishVolume";
        self.note(METHOD, &wire::unpublish(request));
        let target = &request.target_path;
        self.expect_vol_data(METHOD, target);
        match self.kind {
            Kind::NoOp | Kind::NoOpStaging => {}
            // Undone after it was refused.
            Kind::Refusing("NodePublishVolume", _) => {
                self.expect(!is_mounted(Path::new(target)), || format!("{METHOD}: {target} is mounted"));
            }
            Kind::HostPath | Kind::Staging | Kind::WithoutStaging | Kind::Refusing(..) => {
                let gone = umount2(target.as_str(), MntFlags::empty());
                self.expect(gone.is_ok(), || format!("{METHOD}: {gone:?}"));
                let is_directory = std::fs::symlink_metadata(target).is_ok_and(|meta| meta.is_dir());
                let removed =
                    if is_directory { std::fs::remove_dir(target) } else { std::fs::remove_file(target) };
                self.expect(removed.is_ok(), || format!("{METHOD}: {removed:?}"));
            }
        }
    }

    fn on_unstage(&self, request: &csi::NodeUnstageVolumeRequest) {
        const METHOD: &str = "NodeUnstageVolume";
        self.note(METHOD, &wire::unstage(request));
        let path = &request.staging_target_path;
        self.expect_vol_data(METHOD, path);
        match self.kind {
            Kind::Staging | Kind::Refusing(..) if path.contains(BLOCK) => {}
            Kind::Refusing("NodeStageVolume", _) => {
                self.expect(!is_mounted(Path::new(path)), || format!("{METHOD}: {path} is mounted"));
            }
            Kind::Staging | Kind::Refusing(..) => {
                let gone = umount2(path.as_str(), MntFlags::empty());
                self.expect(gone.is_ok(), || format!("{METHOD}: {gone:?}"));
            }
            Kind::HostPath | Kind::NoOpStaging => {}
            Kind::WithoutStaging | Kind::NoOp => {
                self.expect(false, || format!("{METHOD} without the capability"));
            }
        }
    }
}

/// Part of every path of a block volume below `plugins/`.
const BLOCK: &str = "/volumeDevices/";

/// Returns where the `vol_data.json` of a staging or target path lies (kubelet.md 3): beside it, for block volumes in `data`.
fn vol_data(path: &Path) -> PathBuf {
    let text = path.to_str().expect("UTF-8");
    match text.split_once(BLOCK) {
        Some((csi, rest)) => {
            // `staging/<spec>` or `publish/<spec>/<uid>`
            let spec = rest.split('/').nth(1).expect("a spec name");
            Path::new(csi).join("volumeDevices").join(spec).join("data/vol_data.json")
        }
        None => path.with_file_name("vol_data.json"),
    }
}

fn is_block(capability: Option<&csi::VolumeCapability>) -> bool {
    use csi::volume_capability::AccessType;
    capability.is_some_and(|capability| matches!(capability.access_type, Some(AccessType::Block(_))))
}

fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/thread-self/mountinfo").expect("the mount table");
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|point| Path::new(point) == path))
}

fn same_file(one: &Path, other: &Path) -> bool {
    let identity = |path: &Path| std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()));
    identity(one).is_ok_and(|one| identity(other).is_ok_and(|other| one == other))
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
        Box::pin(async move { self.on_stage(&request) })
    }

    fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            self.on_unstage(&request);
            Ok(())
        })
    }

    fn publish(&self, request: csi::NodePublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move { self.on_publish(&request) })
    }

    fn unpublish(&self, request: csi::NodeUnpublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            self.on_unpublish(&request);
            Ok(())
        })
    }

    fn expand(&self, request: csi::NodeExpandVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Box::pin(async move {
            self.note("NodeExpandVolume", &wire::expand(&request));
            Ok(())
        })
    }
}
