//! Volumes: made and removed.

use std::path::Path;

use tracing::{info, warn};

use super::ask;
use super::controller::volume::thick_directory;
use super::copies::Copying;
use super::directories::Chosen;
use super::errors::Failure;
use super::store::{Content, Id, Snapshot, Source, State, VERSION, Volume, VolumeState};
use super::{Driver, now, uuid};
use crate::error::Chain;
use crate::execute::fault;
use crate::host::images::{Allocation, Copied, FsType, Going, Leave};
use crate::proto::csi;

/// The least bytes of a volume without a file system.
const LEAST_BLOCK: u64 = 4096;

/// The least bytes of a directory: some of the blocks of any file system, of which it needs one itself.
const LEAST_DIRECTORY: u64 = 1 << 20;

/// What a new volume is to be.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub(super) id: Id,
    pub(super) name: String,
    pub(super) range: Option<csi::CapacityRange>,
    pub(super) content: WantedContent,
    pub(super) allocation: Option<Allocation>,
    pub(super) source: Option<Source>,
    pub(super) ephemeral: bool,
}

/// What a new volume is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WantedContent {
    /// A file system.
    FileSystem {
        /// `None`: that of its source, or the default; of a directory the host's.
        fs_type: Option<FsType>,
        /// `None`: that of its source, or an image.
        backing: Option<Backing>,
    },
    /// Nothing.
    Block,
}

/// What a volume with a file system is kept in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backing {
    /// An image, with a file system of its own.
    Image,
    /// A directory of the host's file system, which limits it.
    Directory,
}

/// What a volume is copied from.
struct Origin {
    bytes: u64,
    grown: u64,
    content: Content,
}

impl WantedContent {
    /// Returns the least size of it.
    pub(super) fn least(self) -> u64 {
        match self {
            Self::FileSystem { backing: Some(Backing::Directory), .. } => LEAST_DIRECTORY,
            Self::FileSystem { fs_type, .. } => least(Content::FileSystem(fs_type.unwrap_or(FsType::Ext4))),
            Self::Block => least(Content::Block),
        }
    }

    /// Decides the content of a volume made from this. `host`: the file system that limits directories, where one is wanted.
    pub(super) fn content(self, origin: Option<Content>, host: Option<FsType>) -> Result<Content, Failure> {
        let (wanted, backing) = match self {
            Self::Block => return self.block(origin),
            Self::FileSystem { fs_type, backing } => (fs_type, backing),
        };
        let invalid = |problem: String| Err(Failure::Invalid(problem));
        match (origin, backing) {
            (None, None | Some(Backing::Image)) => Ok(Content::FileSystem(wanted.unwrap_or(FsType::Ext4))),
            (None, Some(Backing::Directory)) => match (host, wanted) {
                (None, _) => invalid("there is no file system that could limit a directory".to_owned()),
                (Some(host), Some(wanted)) if wanted != host => invalid(format!(
                    "a volume with backing: directory has the file system of the host's directory, {}, not {}; leave fsType away",
                    host.name(),
                    wanted.name()
                )),
                (Some(host), _) => Ok(Content::Directory(host)),
            },
            (Some(Content::Block), _) => {
                invalid("the source is a block device: whether it has a file system is not known".to_owned())
            }
            (Some(Content::FileSystem(_)), Some(Backing::Directory)) => {
                invalid("the source is an image, and no directory can be made of it".to_owned())
            }
            (Some(Content::Directory(_)), Some(Backing::Image)) => {
                invalid("the source is a directory, and no image can be made of it".to_owned())
            }
            (Some(Content::FileSystem(found) | Content::Directory(found)), _)
                if wanted.is_some_and(|wanted| wanted != found) =>
            {
                let wanted = wanted.map(FsType::name).unwrap_or_default();
                invalid(format!("the source has the file system {}, not {wanted}", found.name()))
            }
            (Some(content @ (Content::FileSystem(_) | Content::Directory(_))), _) => Ok(content),
        }
    }

    fn block(self, origin: Option<Content>) -> Result<Content, Failure> {
        match origin {
            Some(Content::Directory(_)) => {
                Err(Failure::Invalid("the source is a directory, and no block device".to_owned()))
            }
            Some(Content::FileSystem(_) | Content::Block) | None => Ok(Content::Block),
        }
    }

    /// Returns whether a directory is asked for.
    pub(super) fn is_directory(self) -> bool {
        matches!(self, Self::FileSystem { backing: Some(Backing::Directory), .. })
    }

    /// Takes an image where nothing is said: without a source.
    #[must_use]
    pub(super) fn or_image(self) -> Self {
        match self {
            Self::FileSystem { fs_type, backing } => {
                Self::FileSystem { fs_type, backing: backing.or(Some(Backing::Image)) }
            }
            Self::Block => Self::Block,
        }
    }

    /// Returns whether a volume with this content is what is wanted.
    pub(super) fn fits(self, content: Content) -> bool {
        match (self, content) {
            (Self::Block, Content::Block) => true,
            (Self::FileSystem { fs_type, backing }, Content::FileSystem(found)) => {
                fs_type.is_none_or(|wanted| wanted == found) && backing != Some(Backing::Directory)
            }
            (Self::FileSystem { fs_type, backing }, Content::Directory(found)) => {
                fs_type.is_none_or(|wanted| wanted == found) && backing != Some(Backing::Image)
            }
            (Self::Block, Content::FileSystem(_) | Content::Directory(_))
            | (Self::FileSystem { .. }, Content::Block) => false,
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
        if wish.ephemeral && !wish.id.is_inline() {
            let problem = format!("the id {} of an inline volume does not begin with csi-", wish.id);
            return Err(Failure::Invalid(problem));
        }
        let origin = self.origin(wish.source.as_ref())?;
        let host = if wish.content.is_directory() { Some(self.limiting().await?) } else { None };
        let content = wish.content.content(origin.as_ref().map(|origin| origin.content), host)?;
        let chosen = match content {
            Content::Directory(_) if wish.allocation == Some(Allocation::Thick) => {
                return Err(thick_directory());
            }
            Content::Directory(_) => Some(self.choose_project().await?),
            Content::FileSystem(_) | Content::Block => None,
        };
        let bytes =
            ask::size(wish.range, least(content).max(origin.as_ref().map_or(0, |origin| origin.bytes)))?;
        let mut volume = Volume {
            version: VERSION,
            id: wish.id.clone(),
            name: wish.name,
            state: VolumeState::Creating,
            bytes,
            grown: bytes,
            content,
            allocation: wish.allocation.unwrap_or(Allocation::Thin),
            project: chosen.as_ref().map(Chosen::id),
            source: wish.source,
            ephemeral: wish.ephemeral,
            shared: 0,
            created: now(),
        };
        // Before anything of it: of an image without this nobody would know whose it is.
        self.store().volumes.put(volume.clone()).await?;
        fault::reached("create:intent");
        if let Err(failure) = self.finish(&mut volume, origin).await {
            if let Err(also) = self.discard_volume(&wish.id).await {
                warn!(volume = %wish.id, "what was made of a volume that failed stays until it is tried again: {}", Chain(&also));
            }
            return Err(failure);
        }
        fault::reached("create:outcome");
        info!(volume = %volume.id, bytes, content = ?volume.content, source = ?volume.source, "created");
        Ok(volume)
    }

    /// Makes a volume that is written down ready.
    async fn finish(&self, volume: &mut Volume, origin: Option<Origin>) -> Result<(), Failure> {
        let copying = self.inner.copies.begin(volume.id.clone());
        match volume.content {
            Content::Directory(_) => self.fill_directory(volume, &copying).await?,
            Content::FileSystem(_) | Content::Block => self.fill(volume, origin, &copying).await?,
        }
        volume.state = VolumeState::Ready;
        Ok(self.store().volumes.put(volume.clone()).await?)
    }

    /// Makes the image and what is in it, and syncs it.
    async fn fill(
        &self,
        volume: &mut Volume,
        origin: Option<Origin>,
        copying: &Copying,
    ) -> Result<(), Failure> {
        let image = self.store().volume_image(&volume.id);
        self.check_room().await?;
        let Some(origin) = origin else {
            self.images().make(&image, volume.bytes, volume.allocation).await?;
            fault::reached("create:image");
            if let Content::FileSystem(fs_type) = volume.content {
                let uuid = uuid()?;
                if let Err(error) = self.images().make_file_system(&image, fs_type, &uuid, volume.bytes).await
                {
                    return Err(self.or_no_room(error).await);
                }
                fault::reached("create:format");
            }
            return Ok(self.images().sync(&image).await?);
        };
        let (copied, allocated) = match &volume.source {
            Some(Source::Volume(id)) => self.copy_of_one(id, &image, copying).await?,
            Some(Source::Snapshot(id)) => {
                let from = self.store().snapshot_image(id);
                let progress = self.progress(volume.id.clone());
                // The room for it was looked at with the volume's own.
                let leave = Leave { room: u64::MAX, until: None, whole: true };
                let copied = self.images().copy(&from, &image, leave, &progress, &copying.how_far).await?;
                (copied, self.images().allocated(vec![from]).await?.iter().sum())
            }
            None => return Err(Failure::Lost("a copy of nothing".to_owned())),
        };
        fault::reached("create:image");
        if copied == Copied::Shared {
            // Counted from now on, the source's part of it too.
            volume.shared = allocated;
            self.store().volumes.put(volume.clone()).await?;
            self.check_room().await?;
        }
        self.images().grow(&image, volume.bytes, volume.allocation).await?;
        volume.grown = origin.grown;
        if let Content::FileSystem(fs_type) = volume.content {
            let uuid = uuid()?;
            self.images().renew_uuid(&image, fs_type, &uuid).await?;
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
        let Some(volume) = self.store().volumes.get(id) else { return Ok(()) };
        self.refuse_use(id).await?;
        let project = volume.project;
        // Of one that nobody heard of it is clear already that it has to go.
        if !volume.state.is_leftover() {
            if volume.content.is_directory() {
                // Before it is condemned: who has it in a namespace of his own is in no table of ours.
                self.images().check_unused(&self.store().volume_place(id, volume.content)).await?;
            }
            self.store().volumes.condemn(volume).await?;
            fault::reached("delete:intent");
        }
        if let Some(project) = project {
            self.remove_data(&self.store().volumes.directory(id)).await?;
            fault::reached("delete:data");
            self.free_project(&self.store().volumes.directory(id), project).await?;
        }
        self.store().remove_volume(id).await?;
        fault::reached("delete:outcome");
        info!(volume = %id, "deleted");
        Ok(())
    }

    /// Refuses when a loop device has a volume's image, under either of its names.
    async fn refuse_use(&self, id: &Id) -> Result<(), Failure> {
        let condemned = self.store().condemned_image(id);
        if let Some(file) = self.images().look(&condemned).await?
            && let Some(device) = self.images().attached(&condemned, file.id).await?.first()
        {
            let node = device.node();
            let problem = format!("the volume {id}, which has to go, is in use by {}", node.display());
            return Err(Failure::Precondition(problem));
        }
        let place = self.place_at_rest(id).await?;
        if let Some(mount) = place.mounts.first().filter(|_| place.devices.is_empty()) {
            let problem = format!("the volume {id} is in use, shown at {}", mount.point.display());
            return Err(Failure::Precondition(problem));
        }
        let Some(device) = place.devices.first() else { return Ok(()) };
        let node = device.node();
        let at = place.elsewhere(Path::new(""));
        if at.is_none() && device.going() != Going::WhenTold {
            let problem = format!("somebody has the loop device {} of the volume {id} open", node.display());
            return Err(Failure::Precondition(problem));
        }
        let at = at.map(|at| format!(", shown at {}", at.display())).unwrap_or_default();
        Err(Failure::Precondition(format!("the volume {id} is in use by {}{at}", node.display())))
    }
}

/// Returns the least size of a volume that holds this, in bytes.
fn least(content: Content) -> u64 {
    match content {
        Content::FileSystem(fs_type) => fs_type.least(),
        Content::Block => LEAST_BLOCK,
        Content::Directory(_) => LEAST_DIRECTORY,
    }
}

/// Decides whether a volume is what a repeated call asks for.
fn same(wish: &Wish, found: Volume) -> Result<Volume, Failure> {
    let differs =
        |what: &str| Err(Failure::Exists(format!("the volume {} is there with another {what}", found.id)));
    if found.name != wish.name {
        return differs("name");
    }
    if found.ephemeral != wish.ephemeral {
        return differs("owner: it is, or it is not, a pod's own");
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
