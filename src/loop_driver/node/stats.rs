//! How full a volume is, and how well the storage behind all of them.

use std::path::{Path, PathBuf};

use super::place::Place;
use crate::control::units::bytes;
use crate::loop_driver::Driver;
use crate::loop_driver::errors::Failure;
use crate::loop_driver::store::{Content, Id};
use crate::proto::csi;
use crate::proto::csi::node_get_storage_health_response::StorageBackendHealth;
use crate::proto::csi::volume_usage::Unit;

impl Driver {
    /// Answers NodeGetVolumeStats.
    pub(super) async fn stats(
        &self,
        id: &Id,
        path: Option<&Path>,
    ) -> Result<csi::NodeGetVolumeStatsResponse, Failure> {
        let volume = self.volume(Some(id), id.as_str())?;
        let place = self.place_as_before(id).await?;
        let path = self.shown_at(id, &place, path).await?;
        let usage = match volume.content {
            Content::Block => vec![usage(Unit::Bytes, volume.bytes, None)],
            // A directory tells its limit as the size of its file system.
            Content::FileSystem(_) | Content::Directory(_) => {
                let full = self.images().usage(&path).await?;
                let bytes =
                    usage(Unit::Bytes, full.total_bytes, Some((full.used_bytes, full.available_bytes)));
                let used = full.total_inodes.saturating_sub(full.free_inodes);
                let inodes = usage(Unit::Inodes, full.total_inodes, Some((used, full.free_inodes)));
                // btrfs does not count them.
                if full.total_inodes == 0 { vec![bytes] } else { vec![bytes, inodes] }
            }
        };
        let volume_condition = Some(self.condition(&volume).await);
        Ok(csi::NodeGetVolumeStatsResponse { usage, volume_condition })
    }

    /// Finds the real path of a place where a volume is staged or published.
    ///
    /// # Errors
    /// `NotFound`: it is not there.
    pub(super) async fn shown_at(
        &self,
        id: &Id,
        place: &Place,
        given: Option<&Path>,
    ) -> Result<PathBuf, Failure> {
        let missing = || {
            let at = given.unwrap_or(Path::new("that path")).display();
            Failure::NotFound { what: "volume", id: format!("{id} at {at}") }
        };
        let given = given.ok_or_else(missing)?;
        let path = match self.target(given).await {
            Ok(path) => path,
            Err(Failure::Precondition(_)) => return Err(missing()),
            Err(failure) => return Err(failure),
        };
        if place.at(&path).is_some() {
            return Ok(path);
        }
        // The path may end in a symlink; and a block volume is staged where nothing is mounted.
        let real = self.images().real_directory(given).await.ok().flatten();
        let real = real.filter(|real| place.at(real).is_some());
        if let Some(real) = real {
            return Ok(real);
        }
        let staged = self.store().usage(id).await.staging.map(|(at, _)| at);
        staged.filter(|at| *at == path && !place.ours().is_empty()).ok_or_else(missing)
    }

    /// Answers NodeGetStorageHealth: whether the host has what thin volumes were promised.
    pub(super) async fn storage_health(&self) -> Result<Vec<StorageBackendHealth>, Failure> {
        let promised = self.promised().await?;
        if !promised.is_short() {
            return Ok(Vec::new());
        }
        let message = format!(
            "the file system of {} has {} left, and volumes may still need {}; make room there",
            self.store().directory().display(),
            bytes(promised.available),
            bytes(promised.needed())
        );
        Ok(vec![StorageBackendHealth {
            status: i32::from(csi::StorageHealthErrorType::StorageDegraded),
            reason: "HostDirectoryFull".to_owned(),
            message,
            volume_capability: None,
        }])
    }
}

fn usage(unit: Unit, total: u64, parts: Option<(u64, u64)>) -> csi::VolumeUsage {
    let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let (used, available) = parts.unwrap_or((0, 0));
    csi::VolumeUsage {
        available: number(available),
        total: number(total),
        used: number(used),
        unit: i32::from(unit),
    }
}
