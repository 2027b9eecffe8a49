//! A device volume's disk, where it is one of a storage system: connected before it is prepared, disconnected after the volume
//! was unstaged. The record with its intent is on disk before; sessions are counted by the host, which sees what each one has.

use std::path::PathBuf;
use std::sync::Arc;

use super::Work;
use crate::model::{DiskSource, Effect, Failure, SecretMap};
use crate::volumes;

impl Work<'_> {
    /// Returns the device behind the volume, if there is one. A disk of a storage system has to be connected.
    pub(super) async fn device(&self) -> Result<Option<PathBuf>, Failure> {
        self.find_device(false).await
    }

    /// As `device`; how large a disk of a storage system is is asked again.
    pub(super) async fn device_as_large_as_it_is(&self) -> Result<Option<PathBuf>, Failure> {
        self.find_device(true).await
    }

    async fn find_device(&self, rescan: bool) -> Result<Option<PathBuf>, Failure> {
        match self.record.volume.disk() {
            None => Ok(None),
            Some(DiskSource::Path(path)) => Ok(Some(path.clone())),
            Some(DiskSource::Lun(lun)) => {
                let found = self.executor.host.find_lun(lun.clone(), rescan).await;
                found.map(Some).map_err(|error| volumes::disk_failure(&error, Effect::NotDone))
            }
        }
    }

    /// Returns the device behind the volume, if there is one; connects with the storage system first.
    pub(super) async fn connect(&mut self, secrets: &Arc<SecretMap>) -> Result<Option<PathBuf>, Failure> {
        let lun = match self.record.volume.disk() {
            None => return Ok(None),
            Some(DiskSource::Path(path)) => return Ok(Some(path.clone())),
            Some(DiskSource::Lun(lun)) => lun.clone(),
        };
        self.progress.tell(format!("connecting with {lun}"));
        let attached = self.executor.host.attach_lun(lun, Arc::clone(secrets)).await;
        let attached = attached.map_err(|error| volumes::disk_failure(&error, Effect::NotDone))?;
        super::fault::reached("lun:attached");
        self.notes.extend(attached.notes);
        Ok(Some(attached.node))
    }

    /// Disconnects the volume's disk, now that nothing of it is mounted, shown or open any more.
    pub(super) async fn disconnect(&self) -> Result<(), Failure> {
        let Some(lun) = self.record.volume.disk().and_then(DiskSource::lun) else { return Ok(()) };
        let detached = self.executor.host.detach_lun(lun.clone()).await;
        super::fault::reached("lun:detached");
        detached.map_err(|error| volumes::disk_failure(&error, Effect::MayBeDone))
    }
}
