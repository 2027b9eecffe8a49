//! Whether the host has room: what volumes may still need, against what is free.

use std::collections::BTreeMap;

use super::Driver;
use super::errors::Failure;
use super::store::{Id, Source, Volume, VolumeState};
use crate::control::units::bytes;
use crate::error::Chain;
use crate::host::HostError;
use crate::host::images::Allocation;

impl Driver {
    /// Returns how large a new volume could be.
    pub(super) async fn room(&self, allocation: Allocation) -> Result<u64, Failure> {
        let promised = self.promised().await?;
        let thick = promised.left();
        Ok(match allocation {
            Allocation::Thick => thick,
            Allocation::Thin => promised.times(thick),
        })
    }

    /// Refuses to promise more than there is. What is wanted is to be written down before: of two calls that ask at once, both
    /// count the other's.
    pub(super) async fn check_room(&self) -> Result<(), Failure> {
        let promised = self.promised().await?;
        match promised.needed().checked_sub(promised.free) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(Failure::Exhausted(format!(
                "the file system of {} lacks {} for this: {} are free beyond its reserve, and {} are promised to volumes; make \
                 room there, or delete volumes",
                self.store().directory().display(),
                bytes(missing),
                bytes(promised.free),
                bytes(promised.needed())
            ))),
        }
    }

    /// Says of a tool's failure that the host is full, where it is: a tool says it in words of its own.
    pub(super) async fn or_no_room(&self, error: HostError) -> Failure {
        /// Less is of no use to any of them.
        const FULL: u64 = 1 << 20;
        let path = self.store().directory();
        match self.images().space(path).await {
            Ok(space) if space.available < FULL => Failure::Exhausted(format!(
                "the file system of {} is full, make room there: {}",
                path.display(),
                Chain(&error)
            )),
            Ok(_) | Err(_) => error.into(),
        }
    }

    /// Returns how many bytes each volume shared with something when it was copied last. However often it was copied, it has
    /// to be written anew once at most.
    fn shared(&self, volumes: &[Volume]) -> BTreeMap<Id, u64> {
        let mut shared: BTreeMap<Id, u64> = BTreeMap::new();
        let mut share = |id: &Id, bytes: u64| {
            let known = shared.entry(id.clone()).or_default();
            *known = bytes.max(*known);
        };
        for volume in volumes {
            share(&volume.id, volume.shared);
            if let Some(Source::Volume(source)) = &volume.source {
                share(source, volume.shared);
            }
        }
        for snapshot in self.store().snapshots.all() {
            share(&snapshot.volume, snapshot.shared);
        }
        shared
    }

    /// Returns how many bytes volumes have of the host's file system: their images, or what is in their directories.
    async fn allocated(&self, volumes: &[Volume]) -> Result<Vec<u64>, Failure> {
        let images = volumes.iter().filter(|volume| volume.project.is_none());
        let images = images.map(|volume| self.store().volume_image(&volume.id)).collect();
        let mut images = self.images().allocated(images).await?.into_iter();
        let projects: Vec<u32> = volumes.iter().filter_map(|volume| volume.project).collect();
        let mut used =
            if projects.is_empty() { Vec::new() } else { self.images().used_by(projects).await? }.into_iter();
        let each = |volume: &Volume| if volume.project.is_some() { used.next() } else { images.next() };
        Ok(volumes.iter().map(each).map(Option::unwrap_or_default).collect())
    }

    /// Counts what volumes may still need.
    pub(super) async fn promised(&self) -> Result<Promised, Failure> {
        let space = self.images().space(self.store().directory()).await?;
        let volumes = self.store().volumes.all();
        let allocated = self.allocated(&volumes).await?;
        let reserve = self.config().reserve.unwrap_or((space.total / 20).min(1 << 30));
        let mut promised = Promised {
            available: space.available,
            free: space.available.saturating_sub(reserve),
            reserve,
            thin: 0,
            thick: 0,
            to_come: BTreeMap::new(),
            overcommit: self.config().overcommit,
        };
        let shared = self.shared(&volumes);
        for (volume, allocated) in volumes.iter().zip(allocated) {
            let shared = shared.get(&volume.id).map_or(0, |shared| allocated.min(*shared));
            let bytes = match volume.state {
                VolumeState::Growing { to } => volume.bytes.max(to),
                VolumeState::Creating | VolumeState::Ready | VolumeState::Deleting => volume.bytes,
            };
            let to_come = bytes.saturating_sub(allocated).saturating_add(shared);
            promised.to_come.insert(volume.id.clone(), to_come);
            match volume.allocation {
                Allocation::Thin => promised.thin = promised.thin.saturating_add(to_come),
                Allocation::Thick => promised.thick = promised.thick.saturating_add(to_come),
            }
        }
        Ok(promised)
    }
}

/// What volumes were promised beyond what they have, and what there is for it, in bytes.
#[derive(Debug, Clone)]
pub(super) struct Promised {
    /// Free on the host's file system.
    pub(super) available: u64,
    /// The same without the reserve.
    pub(super) free: u64,
    /// What is not given away.
    pub(super) reserve: u64,
    /// To thin volumes, and to what shares blocks with a snapshot.
    pub(super) thin: u64,
    /// To thick volumes.
    pub(super) thick: u64,
    /// To each.
    to_come: BTreeMap<Id, u64>,
    overcommit: f64,
}

impl Promised {
    /// Returns what has to be free for it.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a factor of a size: the last bytes do not matter, and `as` saturates"
    )]
    pub(super) fn needed(&self) -> u64 {
        self.thick.saturating_add((self.thin as f64 / self.overcommit) as u64)
    }

    /// Returns what one volume may still need: what it has no blocks for, and what it shares with snapshots and clones.
    pub(super) fn to_come(&self, volume: &Id) -> u64 {
        self.to_come.get(volume).copied().unwrap_or_default()
    }

    /// Returns whether volumes may meet a full host: what they were promised is not there, or the reserve is begun.
    pub(super) fn is_short(&self) -> bool {
        let needed = self.needed();
        needed > 0 && (self.available < needed || self.available < self.reserve)
    }

    fn left(&self) -> u64 {
        self.free.saturating_sub(self.needed())
    }

    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "as above"
    )]
    fn times(&self, bytes: u64) -> u64 {
        (bytes as f64 * self.overcommit) as u64
    }
}
