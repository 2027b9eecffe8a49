//! A disk of an iSCSI target: there while it is connected, with what is on it whether it is or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use volumed::BoxFuture;
use volumed::host::{HostError, LunAttached, LunCause, LunError, Luns};
use volumed::model::{Content, FileSystem, FsKind, FsUuid, Lun, SecretMap};

use super::disks::SimDisk;
use super::host::SimHost;
use super::wish;
use super::world::{State, World};

/// The target.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// Its disk, as long as it is not connected.
    pub disk: Option<SimDisk>,
}

/// Returns the target's disk. It has a file system: who comes first may be a reader, and formats nothing.
pub fn disk() -> SimDisk {
    let there = FileSystem { kind: FsKind::Ext4, uuid: FsUuid::from_bytes([9; 16]) };
    let blank = SimDisk::blank("l", 1 << 30);
    SimDisk { content: Content::FileSystem(there), used: blank.bytes, ..blank }
}

impl State {
    /// Whether there is a session with the target.
    pub fn is_connected(&self) -> bool {
        self.disks.contains_key(Path::new(wish::LUN_DISK))
    }

    fn disconnect(&mut self) {
        if let Some(disk) = self.disks.remove(Path::new(wish::LUN_DISK)) {
            self.target.disk = Some(disk);
        }
    }
}

fn refused(lun: Lun, cause: LunCause) -> HostError {
    HostError::Lun(Box::new(LunError { lun, cause, said: "the target says no".to_owned() }))
}

impl World {
    /// The sessions end with the power.
    pub fn log_out_all(&self) {
        self.lock().disconnect();
    }

    async fn attach(&self, lun: Lun) -> Result<LunAttached, HostError> {
        self.pause().await;
        if self.fault(8) {
            return Err(refused(lun, LunCause::Unreachable));
        }
        let is_intended = self.lock().is_lun_intended(&lun);
        if !is_intended {
            self.violation("the host logs in without an intent");
        }
        let before = self.lock().target.disk.take();
        if let Some(disk) = before {
            self.tell(|| "logged in".to_owned());
            self.lock().disks.insert(wish::LUN_DISK.into(), disk);
            self.disk_bell.notify_one();
        }
        self.pause().await;
        if self.fault(4) {
            // The session is there, and its disk does not come; or the answer is lost.
            tokio::time::sleep(Duration::from_secs(150)).await;
            return Err(refused(lun, LunCause::Late));
        }
        Ok(LunAttached { node: wish::LUN_DISK.into(), notes: Vec::new() })
    }

    async fn detach(&self, lun: Lun) -> Result<(), HostError> {
        self.pause().await;
        if self.fault(5) {
            return Err(refused(lun, LunCause::Late));
        }
        let holder = {
            let state = self.lock();
            let mounted = state.mounts.iter().find(|mount| mount.source == wish::LUN_DISK);
            mounted.map(|mount| mount.point.clone())
        };
        if let Some(point) = holder {
            self.violation(format!("the host logs out while the disk is mounted at {}", point.display()));
        }
        if self.lock().is_connected() {
            self.tell(|| "logged out".to_owned());
            self.lock().disconnect();
            self.disk_bell.notify_one();
        }
        self.pause().await;
        if self.fault(3) {
            return Err(refused(lun, LunCause::Late));
        }
        Ok(())
    }
}

impl State {
    /// Whether a record on disk says that the disk may be staged.
    fn is_lun_intended(&self, lun: &Lun) -> bool {
        let mut records = self.records.values().filter_map(|disk| disk.written.as_ref());
        records.any(|record| {
            record.staging.is_some() && record.volume.disk().and_then(|disk| disk.lun()) == Some(lun)
        })
    }
}

impl Luns for SimHost {
    fn attach_lun(&self, lun: Lun, _: Arc<SecretMap>) -> BoxFuture<'_, Result<LunAttached, HostError>> {
        Box::pin(self.world.attach(lun))
    }

    fn find_lun(&self, lun: Lun, _: bool) -> BoxFuture<'_, Result<PathBuf, HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            if self.world.lock().is_connected() {
                return Ok(wish::LUN_DISK.into());
            }
            Err(refused(lun, LunCause::NotConnected))
        })
    }

    fn detach_lun(&self, lun: Lun) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(self.world.detach(lun))
    }
}
