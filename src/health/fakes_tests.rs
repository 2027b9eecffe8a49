//! A driver and a host that answer what a test wants.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use crate::BoxFuture;
use crate::csi::{CallError, Code, Driver};
use crate::host::{
    Bind, BlockMap, DiskGrowth, DiskMounted, EncryptedDisks, FoundVolume, Holder, Host, HostError,
    LuksOpened, LunAttached, Luns, NfsMount, NoUsage, Progress, Removal, Seen, Tree, Unmount, Usage, Usages,
};
use crate::model::{
    BootId, DiskIdentity, DiskMount, Formatted, FsGrowth, FsUuid, Inspected, Intent, LuksIntent, Lun,
    MapperName, Millis, MountIdentity, MountTable, Ownership, RootPath, Secret, SecretMap,
};
use crate::proto::csi as api;

/// A driver that notes who asks it what, and when.
#[derive(Debug, Default)]
pub(super) struct FakeDriver(pub(super) Mutex<Said>);

#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) calls: Vec<(&'static str, String, Instant)>,
    pub(super) stats: Vec<api::NodeGetVolumeStatsRequest>,
    pub(super) health: Vec<api::NodeGetVolumeHealthRequest>,
    /// How long each call takes.
    pub(super) takes: Duration,
    pub(super) under_way: Vec<String>,
    pub(super) most_at_once: usize,
    pub(super) overlapped: bool,
    pub(super) fail: Option<Code>,
    pub(super) abnormal: Option<String>,
    pub(super) ills: Vec<i32>,
}

impl FakeDriver {
    pub(super) fn change(&self, change: impl FnOnce(&mut Said)) {
        change(&mut self.0.lock().unwrap());
    }

    pub(super) fn calls(&self) -> Vec<(&'static str, String, Instant)> {
        self.0.lock().unwrap().calls.clone()
    }

    async fn call<T>(
        &self,
        method: &'static str,
        volume: &str,
        answer: impl FnOnce(&Said) -> T,
    ) -> Result<T, CallError> {
        let takes = {
            let mut said = self.0.lock().unwrap();
            said.calls.push((method, volume.to_owned(), Instant::now()));
            said.overlapped |= said.under_way.iter().any(|other| other == volume);
            said.under_way.push(volume.to_owned());
            said.most_at_once = said.most_at_once.max(said.under_way.len());
            said.takes
        };
        tokio::time::sleep(takes).await;
        let mut said = self.0.lock().unwrap();
        let at = said.under_way.iter().position(|other| other == volume).unwrap();
        said.under_way.remove(at);
        match said.fail {
            Some(code) => Err(CallError { method, code, message: "no".to_owned(), sent: true }),
            None => Ok(answer(&said)),
        }
    }
}

impl Driver for FakeDriver {
    fn deadline(&self) -> Duration {
        Duration::from_secs(120)
    }

    fn stage(&self, _: api::NodeStageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        unreachable!()
    }

    fn unstage(&self, _: api::NodeUnstageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        unreachable!()
    }

    fn publish(&self, _: api::NodePublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        unreachable!()
    }

    fn unpublish(&self, _: api::NodeUnpublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        unreachable!()
    }

    fn volume_stats(
        &self,
        request: api::NodeGetVolumeStatsRequest,
    ) -> BoxFuture<'_, Result<api::NodeGetVolumeStatsResponse, CallError>> {
        self.change(|said| said.stats.push(request.clone()));
        Box::pin(async move {
            let answer = |said: &Said| api::NodeGetVolumeStatsResponse {
                usage: vec![api::VolumeUsage { unit: 1, total: 100, used: 40, available: 60 }],
                volume_condition: Some(api::VolumeCondition {
                    abnormal: said.abnormal.is_some(),
                    message: said.abnormal.clone().unwrap_or_default(),
                }),
            };
            self.call("stats", &request.volume_id, answer).await
        })
    }

    fn volume_health(
        &self,
        request: api::NodeGetVolumeHealthRequest,
    ) -> BoxFuture<'_, Result<api::NodeGetVolumeHealthResponse, CallError>> {
        self.change(|said| said.health.push(request.clone()));
        Box::pin(async move {
            let answer = |said: &Said| {
                let entry = |status: &i32| api::volume_health::VolumeHealthEntry {
                    status: *status,
                    ..Default::default()
                };
                let health_statuses = said.ills.iter().map(entry).collect();
                let health = api::VolumeHealth { volume_id: String::new(), health_statuses };
                api::NodeGetVolumeHealthResponse { volume_health: Some(health) }
            };
            self.call("health", &request.volume_id, answer).await
        })
    }
}

/// A host of which only file systems are asked; those that hang do so until the second says that they answer.
#[derive(Debug, Default)]
pub(super) struct FakeHost(pub(super) Mutex<VecDeque<Vec<PathBuf>>>, pub(super) AtomicBool);

type Done<'a, T> = BoxFuture<'a, Result<T, HostError>>;

impl Host for FakeHost {
    fn usage(&self, paths: Vec<PathBuf>) -> Done<'_, Usages> {
        self.0.lock().unwrap().push_back(paths.clone());
        let usage =
            Usage { total_bytes: 10, available_bytes: 6, used_bytes: 4, total_inodes: 0, free_inodes: 0 };
        let told = paths.into_iter().map(|path| {
            let hangs = path.to_string_lossy().contains("hangs") && !self.1.load(Ordering::Relaxed);
            (path, if hangs { Err(NoUsage::Silent("does not answer".to_owned())) } else { Ok(usage) })
        });
        Box::pin(std::future::ready(Ok(told.collect())))
    }

    fn boot(&self) -> BootId {
        unreachable!()
    }
    fn mounts(&self) -> Done<'_, Arc<MountTable>> {
        unreachable!()
    }
    fn disks_changed(&self) -> BoxFuture<'_, crate::host::DiskNews> {
        unreachable!()
    }
    fn mounts_changed(&self) -> BoxFuture<'_, ()> {
        unreachable!()
    }
    fn create(&self, _: Tree) -> Done<'_, ()> {
        unreachable!()
    }
    fn look(&self, _: RootPath) -> Done<'_, Seen> {
        unreachable!()
    }
    fn remove(&self, _: Removal) -> Done<'_, ()> {
        unreachable!()
    }
    fn unmount(&self, _: RootPath, _: MountIdentity, _: Unmount) -> Done<'_, ()> {
        unreachable!()
    }
    fn mount_nfs(&self, _: NfsMount) -> Done<'_, ()> {
        unreachable!()
    }
    fn bind(&self, _: Bind) -> Done<'_, ()> {
        unreachable!()
    }
    fn remove_empty_dir(&self, _: RootPath) -> Done<'_, ()> {
        unreachable!()
    }
    fn map_block(&self, _: BlockMap) -> Done<'_, ()> {
        unreachable!()
    }
    fn collect_locks(&self, _: std::collections::BTreeSet<RootPath>) -> Done<'_, Vec<String>> {
        unreachable!()
    }

    fn unmap_block(&self, _: BlockMap, _: crate::host::DeviceUsers) -> Done<'_, ()> {
        unreachable!()
    }
    fn set_ownership(&self, _: RootPath, _: Ownership, _: Progress) -> Done<'_, ()> {
        unreachable!()
    }
    fn holders(&self, _: RootPath, _: Option<u32>) -> Done<'_, Vec<Holder>> {
        unreachable!()
    }
    fn dead_mounts(&self, _: Vec<PathBuf>) -> Done<'_, BTreeMap<PathBuf, String>> {
        unreachable!()
    }
    fn read_token(&self, _: PathBuf) -> Done<'_, (String, Millis)> {
        unreachable!()
    }
    fn inspect_disk(&self, _: PathBuf) -> Done<'_, Inspected> {
        unreachable!()
    }
    fn format_disk(&self, _: PathBuf, _: Intent) -> Done<'_, Formatted> {
        unreachable!()
    }
    fn mount_disk(&self, _: PathBuf, _: DiskMount, _: RootPath) -> Done<'_, DiskMounted> {
        unreachable!()
    }
    fn show_disk(&self, _: PathBuf, _: DiskIdentity, _: RootPath) -> Done<'_, ()> {
        unreachable!()
    }
    fn grow_disk(&self, _: DiskGrowth) -> Done<'_, FsGrowth> {
        unreachable!()
    }
    fn volumes_on_disk(&self) -> Done<'_, Vec<FoundVolume>> {
        unreachable!()
    }
}

impl Luns for FakeHost {
    fn attach_lun(&self, _: Lun, _: Arc<SecretMap>) -> Done<'_, LunAttached> {
        unreachable!()
    }
    fn find_lun(&self, _: Lun, _: bool) -> Done<'_, PathBuf> {
        unreachable!()
    }
    fn detach_lun(&self, _: Lun) -> Done<'_, ()> {
        unreachable!()
    }
}

impl EncryptedDisks for FakeHost {
    fn format_luks(&self, _: PathBuf, _: LuksIntent, _: Secret) -> Done<'_, Formatted> {
        unreachable!()
    }
    fn open_luks(
        &self,
        _: PathBuf,
        _: DiskIdentity,
        _: FsUuid,
        _: MapperName,
        _: Secret,
    ) -> Done<'_, LuksOpened> {
        unreachable!()
    }
    fn close_luks(&self, _: MapperName, _: FsUuid) -> Done<'_, ()> {
        unreachable!()
    }
    fn grow_luks(&self, _: MapperName, _: FsUuid, _: Secret) -> Done<'_, FsGrowth> {
        unreachable!()
    }
}
