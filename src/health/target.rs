//! What is asked about: the published volumes of a status.

use std::path::PathBuf;

use crate::host::Usage;
use crate::model::{DriverName, Layout, Plugin, Presence, PublicationId, Space, VolumeKey, VolumeStatus};

/// A published volume, as far as it is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) key: VolumeKey,
    pub(super) of: Of,
    /// What the driver is told.
    pub(super) path: PathBuf,
    pub(super) staging: Option<PathBuf>,
    /// Whether there is a file system of the volume's own at `path`.
    pub(super) mounted: bool,
}

/// Who answers for a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Of {
    /// Its driver, which knows it by this handle, and where that does not tell the usage its file system.
    Driver(DriverName, String),
    /// This server, when its file system is asked.
    Server(String),
    /// A file system of this host, on a disk or in a directory (kubelet.md 4.6).
    Disk,
}

impl Target {
    pub(super) fn driver(&self) -> Option<&DriverName> {
        match &self.of {
            Of::Driver(driver, _) => Some(driver),
            Of::Server(_) | Of::Disk => None,
        }
    }
}

/// Returns what is published of a volume and can be asked about.
pub(super) fn published<'a>(
    layout: &'a Layout,
    key: &'a VolumeKey,
    volume: &'a VolumeStatus,
) -> impl Iterator<Item = (PublicationId, Target)> + 'a {
    let staged = volume.staging.as_ref().filter(|(_, presence)| *presence == Presence::Yes);
    let csi = volume.csi.as_ref().map(|(driver, handle)| Of::Driver(driver.clone(), handle.clone()));
    let nfs = volume.nfs.as_ref().map(|(server, _)| Of::Server(server.clone()));
    let disk = (volume.staging.is_some() || volume.plugin == Plugin::Local.name()).then_some(Of::Disk);
    csi.or(nfs).or(disk).into_iter().flat_map(move |of| {
        let there = volume.publications.iter().filter(|(_, publication)| {
            publication.presence == Presence::Yes && publication.desired != "released"
        });
        there.map(move |(id, publication)| {
            let block = publication.path == layout.absolute(&layout.block_link(id));
            let path = if block { layout.absolute(&layout.block_map(id)) } else { publication.path.clone() };
            let target = Target {
                key: key.clone(),
                of: of.clone(),
                path,
                staging: staged.map(|(path, _)| path.clone()),
                mounted: !block && !publication.not_a_mount_point,
            };
            (id.clone(), target)
        })
    })
}

pub(super) fn spaces(usage: Usage) -> (Space, Space) {
    let Usage { total_bytes, available_bytes, used_bytes, total_inodes, free_inodes } = usage;
    let space = |total: u64, used, available| Space {
        total: (total > 0).then_some(total),
        used: (total > 0).then_some(used),
        available: (total > 0).then_some(available),
    };
    (
        space(total_bytes, used_bytes, available_bytes),
        space(total_inodes, total_inodes.saturating_sub(free_inodes), free_inodes),
    )
}
