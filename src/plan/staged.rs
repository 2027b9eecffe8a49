//! What is brought to the node before it is shown to a pod: a driver's volume, or a device of the host.

use super::{View, arguments, recorded, recorded_device};
use crate::model::{
    BlockedCause, CsiWant, DeviceWant, DriverInfo, Lifecycle, RecordedVolume, SecretMap, StageArguments,
    WantedVolume,
};
use std::sync::Arc;

/// The wish for a volume that is staged.
#[derive(Debug, Clone, Copy)]
pub(super) enum Staged<'a> {
    Csi(&'a CsiWant),
    Device(&'a DeviceWant),
}

impl<'a> Staged<'a> {
    /// Returns what a new record says that it is.
    pub(super) fn recorded(self) -> RecordedVolume {
        match self {
            Self::Csi(csi) => recorded(csi),
            Self::Device(device) => recorded_device(device),
        }
    }

    /// Returns what is sent with it.
    pub(super) fn secrets(self) -> Arc<SecretMap> {
        match self {
            Self::Csi(csi) => Arc::clone(&csi.stage_secrets),
            Self::Device(device) => Arc::clone(&device.secrets),
        }
    }

    /// Returns the size below which a device is not formatted.
    pub(super) fn least_bytes(self) -> u64 {
        match self {
            Self::Csi(_) => 0,
            Self::Device(device) => device.size.map_or(0, |size| size.capacity),
        }
    }
}

impl<'a> View<'a> {
    /// Returns the first wish for a volume that is staged; `None` for types that are not, and inline volumes.
    pub(super) fn wanted_staged(&self) -> Option<Staged<'a>> {
        self.wanted().find_map(|(_, wanted)| match &wanted.volume {
            WantedVolume::Csi(csi) => (csi.lifecycle == Lifecycle::Persistent).then_some(Staged::Csi(csi)),
            WantedVolume::Device(device) => Some(Staged::Device(device)),
            WantedVolume::Local(_)
            | WantedVolume::Nfs(_)
            | WantedVolume::EmptyDir { .. }
            | WantedVolume::HostPath { .. } => None,
        })
    }

    /// Returns the driver of a volume that is staged, where it has one, or why it cannot be called.
    pub(super) fn driver_to_stage(
        &self,
        staged: Staged<'_>,
    ) -> Result<Option<&'a DriverInfo>, (BlockedCause, String)> {
        match staged {
            Staged::Csi(csi) => self.driver(&csi.driver).map(Some),
            Staged::Device(_) => Ok(None),
        }
    }

    /// Returns what staging would send now, or why it cannot be said; `None` when no publication says where.
    pub(super) fn stage_arguments(
        &self,
        staged: Staged<'_>,
        info: Option<&DriverInfo>,
    ) -> Option<Result<StageArguments, arguments::Refused>> {
        let (id, _) = self.wanted().next()?;
        match (staged, info) {
            (Staged::Csi(csi), Some(info)) => Some(arguments::stage(self.world.layout, id, csi, info)),
            (Staged::Csi(_), None) => None,
            (Staged::Device(device), _) => Some(arguments::stage_device(self.world.layout, id, device)),
        }
    }
}
