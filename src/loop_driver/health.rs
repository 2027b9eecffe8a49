//! How well volumes are: in the words of CSI 1.13 (volume health) and of the versions before (volume condition).

use tracing::debug;

use super::Driver;
use super::capacity::Promised;
use super::errors::Failure;
use super::store::{Content, Volume};
use crate::control::units::bytes;
use crate::error::Chain;
use crate::host::images::FsType;
use crate::proto::csi;
use crate::proto::csi::volume_health::VolumeHealthEntry;

/// Nothing is left of a volume, and nothing else is looked for.
const GONE: &str = "ImageMissing";
const GONE_DIRECTORY: &str = "DirectoryMissing";

/// Something that is wrong with a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Trouble {
    kind: csi::VolumeHealthErrorType,
    reason: &'static str,
    message: String,
}

impl Driver {
    /// Finds out what is wrong with a volume.
    pub(super) async fn troubles(&self, volume: &Volume) -> Result<Vec<Trouble>, Failure> {
        let promised = self.promised().await?;
        self.troubles_with(volume, &promised).await
    }

    /// As `troubles`, for many volumes: what the host has was asked once.
    pub(super) async fn troubles_with(
        &self,
        volume: &Volume,
        promised: &Promised,
    ) -> Result<Vec<Trouble>, Failure> {
        let mut found = match volume.content {
            Content::Directory(_) => self.directory_troubles(volume).await?,
            Content::FileSystem(_) | Content::Block => self.image_troubles(volume).await?,
        };
        if found.iter().any(|trouble| [GONE, GONE_DIRECTORY].contains(&trouble.reason)) {
            return Ok(found);
        }
        let needs = promised.to_come(&volume.id);
        if needs > 0 && promised.is_short() {
            found.push(Trouble {
                kind: csi::VolumeHealthErrorType::Degraded,
                reason: "HostDirectoryFull",
                message: format!(
                    "the file system of {} has {} left, and this volume may still need {}: writes to it may fail; make room \
                     there",
                    self.store().directory().display(),
                    bytes(promised.available),
                    bytes(needs)
                ),
            });
        }
        if let Content::FileSystem(FsType::Ext4) = volume.content {
            found.extend(self.ext4_errors(volume).await?);
        }
        Ok(found)
    }

    /// What is wrong with the image itself.
    async fn image_troubles(&self, volume: &Volume) -> Result<Vec<Trouble>, Failure> {
        let lost =
            |reason, message| vec![Trouble { kind: csi::VolumeHealthErrorType::DataLoss, reason, message }];
        Ok(match self.images().look(&self.store().volume_image(&volume.id)).await? {
            None => lost(GONE, "its image is gone".to_owned()),
            Some(image) if image.length < volume.bytes => {
                let (length, whole) = (bytes(image.length), bytes(volume.bytes));
                lost("ImageTooShort", format!("its image has only {length} of {whole}"))
            }
            Some(_) => Vec::new(),
        })
    }

    /// What is wrong with a directory, and with what limits it.
    async fn directory_troubles(&self, volume: &Volume) -> Result<Vec<Trouble>, Failure> {
        let data = self.store().volume_place(&volume.id, volume.content);
        if self.images().look_at_directory(&data).await?.is_none() {
            let (kind, message) = (csi::VolumeHealthErrorType::DataLoss, "its directory is gone".to_owned());
            return Ok(vec![Trouble { kind, reason: GONE_DIRECTORY, message }]);
        }
        let kind = csi::VolumeHealthErrorType::Degraded;
        let unlimited = self.not_limited(volume).await;
        Ok(unlimited.map(|message| Trouble { kind, reason: "NotLimited", message }).into_iter().collect())
    }

    /// ext4 counts the errors that it found in itself.
    async fn ext4_errors(&self, volume: &Volume) -> Result<Option<Trouble>, Failure> {
        // One that had no device since the start has none: a list asks this of every volume.
        if !self.had_device(&volume.id) {
            return Ok(None);
        }
        let place = self.place_as_before(&volume.id).await?;
        let Some(device) = place.devices.first().filter(|_| !place.mounts.is_empty()) else {
            return Ok(None);
        };
        let path = format!("/sys/fs/ext4/loop{}/errors_count", device.number());
        // Without the file nothing is known, and nothing is wrong.
        let count = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        Ok(count.filter(|count| *count > 0).map(|count| Trouble {
            kind: csi::VolumeHealthErrorType::Degraded,
            reason: "FileSystemErrors",
            message: format!("its file system found {count} errors in itself; unmount and check it"),
        }))
    }

    /// The same in the words of the versions before 1.13.
    pub(super) async fn condition(&self, volume: &Volume) -> csi::VolumeCondition {
        match self.troubles(volume).await {
            Ok(troubles) => condition(&troubles),
            Err(failure) => {
                debug!(volume = %volume.id, "its health cannot be found out: {}", Chain(&failure));
                let message = format!("its health cannot be found out: {}", Chain(&failure));
                csi::VolumeCondition { abnormal: true, message }
            }
        }
    }
}

/// Says it in the words of the versions before 1.13.
pub(super) fn condition(troubles: &[Trouble]) -> csi::VolumeCondition {
    let message: Vec<&str> = troubles.iter().map(|trouble| trouble.message.as_str()).collect();
    let message = if message.is_empty() { "well".to_owned() } else { message.join("; ") };
    csi::VolumeCondition { abnormal: !troubles.is_empty(), message }
}

/// Says it in the words of 1.13.
pub(super) fn health(volume: &Volume, troubles: Vec<Trouble>) -> csi::VolumeHealth {
    let entry = |trouble: Trouble| VolumeHealthEntry {
        status: i32::from(trouble.kind),
        reason: trouble.reason.to_owned(),
        message: trouble.message,
    };
    csi::VolumeHealth {
        volume_id: volume.id.to_string(),
        health_statuses: troubles.into_iter().map(entry).collect(),
    }
}
