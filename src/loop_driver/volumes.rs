//! Volumes: made, removed, and whether the host has room for them.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use tracing::{info, warn};

use super::ask;
use super::errors::Failure;
use super::store::{Content, FILES, Id, Snapshot, Source, State, VERSION, Volume, VolumeState};
use super::{Driver, now, uuid};
use crate::execute::fault;
use crate::host::images::{Allocation, Copied, FsType, Going};
use crate::proto::csi;

/// The least bytes of a volume without a file system.
const LEAST_BLOCK: u64 = 4096;

/// What a new volume is to be.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) id: Id,
    pub(super) name: String,
    pub(super) range: Option<csi::CapacityRange>,
    pub(super) content: Wanted,
    pub(super) allocation: Option<Allocation>,
    pub(super) source: Option<Source>,
    pub(super) ephemeral: bool,
}

/// What a new volume is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    /// A file system; `None`: that of its source, or the default.
    FileSystem(Option<FsType>),
    /// Nothing.
    Block,
}

/// What a volume is copied from.
struct Origin {
    bytes: u64,
    grown: u64,
    content: Content,
}

impl Wanted {
    /// Returns the least size of it.
    pub(super) fn least(self) -> u64 {
        match self {
            Self::FileSystem(fs_type) => fs_type.unwrap_or(FsType::Ext4).least(),
            Self::Block => LEAST_BLOCK,
        }
    }

    fn content(self, origin: Option<Content>) -> Result<Content, Failure> {
        match (self, origin) {
            (Self::Block, _) => Ok(Content::Block),
            (Self::FileSystem(wanted), None) => Ok(Content::FileSystem(wanted.unwrap_or(FsType::Ext4))),
            (Self::FileSystem(wanted), Some(Content::FileSystem(found))) => match wanted {
                Some(wanted) if wanted != found => Err(Failure::Invalid(format!(
                    "the source has the file system {}, not {}",
                    found.name(),
                    wanted.name()
                ))),
                _ => Ok(Content::FileSystem(found)),
            },
            (Self::FileSystem(_), Some(Content::Block)) => Err(Failure::Invalid(
                "the source is a block device: whether it has a file system is not known".to_owned(),
            )),
        }
    }

    /// Returns whether a volume with this content is what is wanted.
    pub(super) fn fits(self, content: Content) -> bool {
        match (self, content) {
            (Self::Block, Content::Block) | (Self::FileSystem(None), Content::FileSystem(_)) => true,
            (Self::FileSystem(Some(wanted)), Content::FileSystem(found)) => wanted == found,
            (Self::Block, Content::FileSystem(_)) | (Self::FileSystem(_), Content::Block) => false,
        }
    }
}

impl Driver {
    /// Returns a volume that is there for its users.
    pub(super) fn volume(&self, id: Option<&Id>, text: &str) -> Result<Volume, Failure> {
        let found = id.and_then(|id| self.store().volumes.get(id));
        let there = |volume: &Volume| match volume.state {
            VolumeState::Ready | VolumeState::Growing { .. } => true,
            VolumeState::Creating | VolumeState::Deleting => false,
        };
        found.filter(there).ok_or_else(|| Failure::no_volume(text))
    }

    /// Returns a snapshot that is there for its users.
    pub(super) fn snapshot(&self, id: Option<&Id>, text: &str) -> Result<Snapshot, Failure> {
        let found = id.and_then(|id| self.store().snapshots.get(id));
        found.filter(|snapshot| snapshot.state == State::Ready).ok_or_else(|| Failure::no_snapshot(text))
    }

    /// Makes a volume, or finds it made. Its lock and that of its source are held.
    pub(super) async fn make_volume(&self, wish: Wish) -> Result<Volume, Failure> {
        if let Some(found) = self.store().volumes.get(&wish.id) {
            match found.state {
                VolumeState::Ready | VolumeState::Growing { .. } => return same(&wish, found),
                VolumeState::Creating | VolumeState::Deleting => self.discard_volume(&wish.id).await?,
            }
        }
        let origin = self.origin(wish.source.as_ref())?;
        let content = wish.content.content(origin.as_ref().map(|origin| origin.content))?;
        let least = match content {
            Content::FileSystem(fs_type) => fs_type.least(),
            Content::Block => LEAST_BLOCK,
        };
        let bytes = ask::size(wish.range, least.max(origin.as_ref().map_or(0, |origin| origin.bytes)))?;
        let mut volume = Volume {
            version: VERSION,
            id: wish.id.clone(),
            name: wish.name,
            state: VolumeState::Creating,
            bytes,
            grown: bytes,
            content,
            allocation: wish.allocation.unwrap_or(Allocation::Thin),
            source: wish.source,
            uuid: None,
            ephemeral: wish.ephemeral,
            shared: 0,
            created: now(),
        };
        // Before anything of it: of an image without this nobody would know whose it is.
        self.store().volumes.put(volume.clone()).await?;
        fault::reached("create:intent");
        if let Err(failure) = self.fill(&mut volume, origin).await {
            if let Err(also) = self.discard_volume(&wish.id).await {
                warn!(volume = %wish.id, "what was made of a volume that failed stays until it is tried again: {also}");
            }
            return Err(failure);
        }
        volume.state = VolumeState::Ready;
        self.store().volumes.put(volume.clone()).await?;
        fault::reached("create:outcome");
        info!(volume = %volume.id, bytes, content = ?volume.content, source = ?volume.source, "created");
        Ok(volume)
    }

    /// Makes the image and what is in it, and syncs it.
    async fn fill(&self, volume: &mut Volume, origin: Option<Origin>) -> Result<(), Failure> {
        let image = self.store().volume_image(&volume.id);
        // With this volume counted: of two that are made at once, both know of the other.
        self.check_room().await?;
        let Some(origin) = origin else {
            self.images().make(&image, volume.bytes, volume.allocation).await?;
            fault::reached("create:image");
            if let Content::FileSystem(fs_type) = volume.content {
                let uuid = uuid()?;
                self.images().make_file_system(&image, fs_type, &uuid, volume.bytes).await?;
                volume.uuid = Some(uuid);
                fault::reached("create:format");
            }
            return Ok(self.images().sync(&image).await?);
        };
        let (copied, allocated) = match &volume.source {
            Some(Source::Volume(id)) => self.copy_of_one(id, &image).await?,
            Some(Source::Snapshot(id)) => {
                let from = self.store().snapshot_image(id);
                let progress = self.progress(volume.id.clone());
                // The room for it was looked at with the volume's own.
                let copied = self.images().copy(&from, &image, u64::MAX, &progress).await?;
                (copied, self.images().allocated(vec![from]).await?.iter().sum())
            }
            None => return Err(Failure::Lost("a copy of nothing".to_owned())),
        };
        fault::reached("create:image");
        volume.shared = if copied == Copied::Shared { allocated } else { 0 };
        self.images().grow(&image, volume.bytes, volume.allocation).await?;
        volume.grown = origin.grown;
        if let Content::FileSystem(fs_type) = volume.content {
            let uuid = uuid()?;
            self.images().renew_uuid(&image, fs_type, &uuid).await?;
            volume.uuid = Some(uuid);
            // The others grow when they are mounted.
            if fs_type == FsType::Ext4 && volume.grown < volume.bytes {
                self.images().grow_unmounted_ext4(&image).await?;
                volume.grown = volume.bytes;
            }
        } else {
            volume.grown = volume.bytes;
        }
        fault::reached("create:format");
        Ok(self.images().sync(&image).await?)
    }

    fn origin(&self, source: Option<&Source>) -> Result<Option<Origin>, Failure> {
        Ok(match source {
            None => None,
            Some(Source::Volume(id)) => {
                let Volume { bytes, grown, content, .. } = self.volume(Some(id), id.as_str())?;
                Some(Origin { bytes, grown, content })
            }
            Some(Source::Snapshot(id)) => {
                let Snapshot { bytes, grown, content, .. } = self.snapshot(Some(id), id.as_str())?;
                Some(Origin { bytes, grown, content })
            }
        })
    }

    /// Removes a volume; one that is not there is fine. Its lock is held.
    ///
    /// # Errors
    /// `Precondition`: a loop device has its image.
    pub(super) async fn discard_volume(&self, id: &Id) -> Result<(), Failure> {
        let Some(mut volume) = self.store().volumes.get(id) else { return Ok(()) };
        self.refuse_use(id).await?;
        // Of one that nobody heard of it is clear already that it has to go.
        if volume.state != VolumeState::Creating && volume.state != VolumeState::Deleting {
            volume.state = VolumeState::Deleting;
            self.store().volumes.put(volume).await?;
            fault::reached("delete:intent");
        }
        self.store().volumes.remove(id, FILES).await?;
        fault::reached("delete:outcome");
        info!(volume = %id, "deleted");
        Ok(())
    }

    /// Refuses when a loop device has a volume's image. One that goes with a mount that is gone is waited for a moment:
    /// somebody, udev for one, looks at it.
    async fn refuse_use(&self, id: &Id) -> Result<(), Failure> {
        const TRIES: u32 = 100;
        for _ in 0..TRIES {
            let place = self.place(id).await?;
            let Some(device) = place.devices.first() else { return Ok(()) };
            let at = place.elsewhere(Path::new(""));
            if at.is_some() || device.going() == Going::WhenTold {
                let at = at.map(|at| format!(", shown at {}", at.display())).unwrap_or_default();
                let node = device.node();
                let problem = format!("the volume {id} is in use by {}{at}", node.display());
                return Err(Failure::Precondition(problem));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Err(Failure::Precondition(format!("somebody has the loop device of the volume {id} open")))
    }

    /// Returns how large a new volume could be.
    pub(super) async fn room(&self, allocation: Allocation) -> Result<u64, Failure> {
        let promised = self.promised().await?;
        let thick = promised.left();
        Ok(match allocation {
            Allocation::Thick => thick,
            Allocation::Thin => promised.times(thick),
        })
    }

    /// Refuses to promise more than there is.
    async fn check_room(&self) -> Result<(), Failure> {
        let promised = self.promised().await?;
        match promised.needed().checked_sub(promised.free) {
            None | Some(0) => Ok(()),
            Some(missing) => Err(Failure::NoRoom(format!(
                "the host's directory lacks {missing} bytes for this: {} are free beyond its reserve, and {} are promised",
                promised.free,
                promised.needed()
            ))),
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

    /// Counts what volumes may still need.
    pub(super) async fn promised(&self) -> Result<Promised, Failure> {
        let space = self.images().space(self.store().directory()).await?;
        let volumes = self.store().volumes.all();
        let images = volumes.iter().map(|volume| self.store().volume_image(&volume.id)).collect();
        let allocated = self.images().allocated(images).await?;
        let reserve = self.config().reserve.unwrap_or((space.total / 20).min(1 << 30));
        let mut promised = Promised {
            available: space.available,
            free: space.available.saturating_sub(reserve),
            reserve,
            thin: 0,
            thick: 0,
            overcommit: self.config().overcommit,
        };
        let shared = self.shared(&volumes);
        for (volume, allocated) in volumes.iter().zip(allocated) {
            let shared = shared.get(&volume.id).map_or(0, |shared| allocated.min(*shared));
            let to_come = volume.bytes.saturating_sub(allocated).saturating_add(shared);
            match volume.allocation {
                Allocation::Thin => promised.thin = promised.thin.saturating_add(to_come),
                Allocation::Thick => promised.thick = promised.thick.saturating_add(to_come),
            }
        }
        Ok(promised)
    }
}

/// What volumes were promised beyond what they have, and what there is for it, in bytes.
#[derive(Debug, Clone, Copy)]
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

/// Decides whether a volume is what a repeated call asks for.
fn same(wish: &Wish, found: Volume) -> Result<Volume, Failure> {
    let differs =
        |what: &str| Err(Failure::Exists(format!("the volume {} is there with another {what}", found.id)));
    if found.name != wish.name {
        return differs("name");
    }
    if found.source != wish.source {
        return differs("source");
    }
    if !wish.content.fits(found.content) {
        return differs("content");
    }
    if wish.allocation.is_some_and(|allocation| allocation != found.allocation) {
        return differs("allocation");
    }
    let (required, limit) = ask::bounds(wish.range)?;
    if required.is_some_and(|required| found.bytes < required)
        || limit.is_some_and(|limit| found.bytes > limit)
    {
        return differs("size");
    }
    Ok(found)
}
