//! Copies of volumes at one moment, and the snapshots that are made of them.
//!
//! A group has all of its members or is not there. Its mounted file systems are frozen together, so they are of one moment; a
//! block volume that is published cannot be frozen: it is of one moment by itself, as a power cut would leave it, and not of the
//! same one as another. One that is not published has no writer and is as it is.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use tokio::time::Instant;
use tracing::{info, warn};

use super::copies::Copying;
use super::errors::Failure;
use super::store::{Content, FILES, Group, Id, Snapshot, State, VERSION, Volume};
use super::{Driver, now};
use crate::control::units::bytes;
use crate::error::Chain;
use crate::execute::fault;
use crate::host::images::{Allocation, Copied, Leave};
use crate::host::{HostError, Progress};
use crate::model::Millis;

/// What a copy became: shared or whole, and how many bytes were there of the volume.
type Copy = (Copied, u64);

impl Driver {
    /// Hears how far a copy for this volume or snapshot got.
    pub(super) fn progress(&self, id: Id) -> Progress {
        Progress::new(move |how_far| info!(%id, "{how_far}"))
    }

    /// Copies a volume's image as it is at one moment. The room for it was looked at.
    pub(super) async fn copy_of_one(
        &self,
        volume: &Id,
        to: &Path,
        copying: &Copying,
    ) -> Result<Copy, Failure> {
        let copies = vec![(volume.clone(), to.to_owned(), copying)];
        let (copies, _moment) = self.copy_at_once(copies, u64::MAX).await?;
        copies.into_iter().next().ok_or_else(|| Failure::Lost("nothing was copied".to_owned()))
    }

    /// Copies the images of volumes as they all are at one moment, which is returned too, and syncs them. Their locks are
    /// held. Copies that share no blocks may take so much room, in bytes.
    ///
    /// File systems that are mounted are frozen meanwhile. Directories, to which nobody writes, are copied after that, without
    /// its limit. Of block devices what was written through the page cache is written
    /// out before; those that are published are copied only where blocks can be shared, so that each is of one moment.
    ///
    /// # Errors
    /// `Precondition`: it cannot be of one moment as things are.
    async fn copy_at_once(
        &self,
        copies: Vec<(Id, PathBuf, &Copying)>,
        mut room: u64,
    ) -> Result<(Vec<Copy>, Millis), Failure> {
        let (mut mounted, mut images) = (Vec::new(), Vec::new());
        for (id, to, copying) in copies {
            let volume = self.volume(Some(&id), id.as_str())?;
            let (at, whole) = self.prepare_copy(&volume).await?;
            mounted.extend(at);
            images.push((volume, to, whole, copying));
        }
        let limit = self.config().freeze_limit;
        let frozen = match mounted.as_slice() {
            [] => None,
            mounted => Some(self.images().freeze(mounted, limit).await.map_err(not_at_once)?),
        };
        let until = frozen.as_ref().map(|_| Instant::now() + limit);
        let moment = now();
        fault::reached("snapshot:frozen");
        let mut done = BTreeMap::new();
        for (volume, to, whole, copying) in
            images.iter().filter(|(volume, ..)| !volume.content.is_directory())
        {
            let leave = Leave { room, until, whole: *whole };
            match self.copy_image(volume, to, leave, copying).await {
                Ok((copied, taken)) => {
                    done.insert(volume.id.clone(), copied);
                    room = room.saturating_sub(taken);
                }
                Err(failure) => {
                    if let Some(frozen) = frozen {
                        // What it was frozen for failed already: that is what is told.
                        let _thawed = frozen.thaw().await;
                    }
                    return Err(failure);
                }
            }
        }
        if let Some(frozen) = frozen {
            frozen.thaw().await.map_err(not_at_once)?;
        }
        for (volume, to, ..) in images.iter().filter(|(volume, ..)| volume.content.is_directory()) {
            let (copied, taken) = self.copy_at_rest(volume, to, room).await?;
            done.insert(volume.id.clone(), copied);
            room = room.saturating_sub(taken);
        }
        let mut copied = Vec::new();
        for (volume, to, ..) in &images {
            let missing = || Failure::Lost(format!("the volume {} was not copied", volume.id));
            let done = done.get(&volume.id).copied().ok_or_else(missing)?;
            let allocated = match volume.content {
                Content::Directory(_) => {
                    self.images().sync_directory(to).await?;
                    self.at_rest(volume).await?.1
                }
                Content::FileSystem(_) | Content::Block => {
                    self.images().sync(to).await?;
                    let image = self.store().volume_image(&volume.id);
                    self.images().allocated(vec![image]).await?.iter().sum()
                }
            };
            copied.push((done, allocated));
        }
        Ok((copied, moment))
    }

    /// Copies a volume's image; returns how, and how many bytes that took of the room that there was.
    async fn copy_image(
        &self,
        volume: &Volume,
        to: &Path,
        leave: Leave,
        copying: &Copying,
    ) -> Result<(Copied, u64), Failure> {
        let from = self.store().volume_image(&volume.id);
        let progress = self.progress(volume.id.clone());
        let copied = self.images().copy(&from, to, leave, &progress, &copying.how_far).await;
        let copied = copied.map_err(not_at_once)?;
        let taken = self.images().allocated(vec![to.to_owned()]).await?;
        Ok((copied, taken.iter().sum()))
    }

    /// Copies a volume's directory, to which nobody writes; returns as `copy_image`.
    async fn copy_at_rest(&self, volume: &Volume, to: &Path, room: u64) -> Result<(Copied, u64), Failure> {
        let (from, used) = self.at_rest(volume).await?;
        // What shares its blocks takes room only when it is written to.
        if used > room && !self.images().shares_blocks().await? {
            let problem = format!(
                "the file system of {} has no room for a copy of the {} in the volume {}; make room there",
                self.store().directory().display(),
                bytes(used),
                volume.id
            );
            return Err(Failure::Exhausted(problem));
        }
        let copied = self.copy_directory(&from, to).await?;
        Ok((copied, if copied == Copied::Shared { 0 } else { used }))
    }

    /// Returns where a volume has to be frozen for a copy, and whether the copy may take its time.
    async fn prepare_copy(&self, volume: &Volume) -> Result<(Option<PathBuf>, bool), Failure> {
        let id = &volume.id;
        let place = self.place_at_rest(id).await?;
        match volume.content {
            // Only one to which nobody writes: its file system is the host's, and that cannot be frozen.
            Content::Directory(_) => self.at_rest(volume).await.map(|_| (None, true)),
            Content::FileSystem(_) => {
                let writable = place.mounts.iter().find(|mount| !mount.read_only);
                let at = writable.or(place.mounts.first()).map(|mount| mount.point.clone());
                match place.devices.first() {
                    Some(device) if at.is_none() => Err(Failure::Precondition(format!(
                        "the volume {id} has the device {} and is mounted nowhere that this driver sees: it cannot be frozen; \
                         unmount it, or let the driver see the mount (mount propagation)",
                        device.node().display()
                    ))),
                    _ => Ok((at, true)),
                }
            }
            Content::Block => {
                for device in &place.devices {
                    self.images().flush(device).await?;
                }
                let mut published = !place.binds.is_empty();
                // That a target went could not be noted on a full host: only one where something is mounted counts.
                for target in self.store().usage(id).await.targets.keys() {
                    published |= self.images().mount_at(target).await?.is_some();
                }
                Ok((None, !published))
            }
        }
    }

    /// Returns whether a snapshot's group is not there. Nobody can delete it with the group.
    pub(super) fn is_orphan(&self, snapshot: &Snapshot) -> bool {
        snapshot.group.as_ref().is_some_and(|group| self.store().groups.get(group).is_none())
    }

    fn refuse_taken(&self, wanted: &[Snapshot]) -> Result<(), Failure> {
        match wanted.iter().find(|one| self.store().snapshots.get(&one.id).is_some()) {
            None => Ok(()),
            Some(taken) => Err(Failure::Exists(format!("the snapshot {} is there", taken.id))),
        }
    }

    /// Takes snapshots of volumes at one moment. All locks are held.
    ///
    /// # Errors
    /// None of them was taken. `Exists`: one of the ids is taken, by a snapshot that stays as it is.
    pub(super) async fn take_snapshots(&self, wanted: Vec<Snapshot>) -> Result<Vec<Snapshot>, Failure> {
        self.refuse_taken(&wanted)?;
        let taken = self.make_snapshots(&wanted).await;
        if taken.is_err() {
            for snapshot in &wanted {
                if let Err(also) = self.discard_snapshot(&snapshot.id).await {
                    warn!(snapshot = %snapshot.id, "what was made of a snapshot that failed stays until it is tried again: {}", Chain(&also));
                }
            }
        }
        taken
    }

    /// Writes snapshots down and makes them; what there is of them stays where that fails.
    async fn make_snapshots(&self, wanted: &[Snapshot]) -> Result<Vec<Snapshot>, Failure> {
        for snapshot in wanted {
            self.store().snapshots.put(snapshot.clone()).await?;
        }
        fault::reached("snapshot:intent");
        for one in wanted.iter().filter(|one| one.content.is_directory()) {
            self.images().make_directory(&self.store().snapshot_place(&one.id, one.content)).await?;
        }
        let copying: Vec<_> = wanted.iter().map(|one| self.inner.copies.begin(one.volume.clone())).collect();
        let copies = wanted.iter().zip(&copying).map(|(one, copying)| {
            (one.volume.clone(), self.store().snapshot_place(&one.id, one.content), copying)
        });
        let room = self.room(Allocation::Thick).await?;
        let (copies, moment) = self.copy_at_once(copies.collect(), room).await?;
        fault::reached("snapshot:image");
        self.keep(wanted, &copies, moment).await
    }

    async fn keep(
        &self,
        wanted: &[Snapshot],
        copies: &[Copy],
        moment: Millis,
    ) -> Result<Vec<Snapshot>, Failure> {
        let mut taken = Vec::new();
        for (snapshot, (copied, allocated)) in wanted.iter().zip(copies) {
            let mut snapshot = snapshot.clone();
            snapshot.created = moment;
            if *copied == Copied::Shared {
                // Counted from now on: what is written to the volume needs room that it did not need before.
                snapshot.shared = *allocated;
                self.store().snapshots.put(snapshot.clone()).await?;
                self.check_room().await?;
            }
            snapshot.state = State::Ready;
            self.store().snapshots.put(snapshot.clone()).await?;
            info!(snapshot = %snapshot.id, volume = %snapshot.volume, ?copied, "snapshot taken");
            taken.push(snapshot);
        }
        fault::reached("snapshot:outcome");
        Ok(taken)
    }

    /// Removes a snapshot; one that is not there is fine. Its lock is held.
    pub(super) async fn discard_snapshot(&self, id: &Id) -> Result<(), Failure> {
        let Some(snapshot) = self.store().snapshots.get(id) else { return Ok(()) };
        let content = snapshot.content;
        let image = self.store().snapshot_image(id);
        if let Some(file) = self.images().look(&image).await?
            && let Some(device) = self.images().attached(&image, file.id).await?.first()
        {
            let node = device.node();
            return Err(Failure::Precondition(format!("the snapshot {id} is in use by {}", node.display())));
        }
        if snapshot.state == State::Ready {
            if content.is_directory() {
                // As of a volume.
                self.images().check_unused(&self.store().snapshot_place(id, content)).await?;
            }
            self.store().snapshots.condemn(snapshot).await?;
            fault::reached("delete-snapshot:intent");
        }
        if content.is_directory() {
            self.remove_data(&self.store().snapshots.directory(id)).await?;
        }
        self.store().snapshots.remove(id, FILES).await?;
        info!(snapshot = %id, "snapshot deleted");
        Ok(())
    }

    /// Removes a group and its snapshots; one that is not there is fine. Its lock and theirs are held.
    pub(super) async fn discard_group(&self, id: &Id) -> Result<(), Failure> {
        let Some(group) = self.store().groups.get(id) else { return Ok(()) };
        if group.state == State::Ready {
            match self.store().groups.condemn(group.clone()).await {
                // On a full disk its members go first, and make room.
                Err(error) if error.is_no_room() => {
                    for snapshot in group.members.values() {
                        self.discard_snapshot(snapshot).await?;
                    }
                    self.store().groups.condemn(group.clone()).await?;
                }
                done => done?,
            }
            fault::reached("delete-group:intent");
        }
        for snapshot in group.members.values() {
            self.discard_snapshot(snapshot).await?;
        }
        self.store().groups.remove(id, FILES).await?;
        info!(group = %id, "group snapshot deleted");
        Ok(())
    }

    /// Takes a group of snapshots. All locks are held, and no such group is there.
    pub(super) async fn take_group(
        &self,
        id: Id,
        name: String,
        volumes: &[Volume],
    ) -> Result<Group, Failure> {
        let mut wanted = Vec::new();
        let mut members = BTreeMap::new();
        for volume in volumes {
            let member = Id::of_member(&id, &volume.id);
            let snapshot = new_snapshot(member.clone(), member.to_string(), volume, Some(id.clone()));
            members.insert(volume.id.clone(), snapshot.id.clone());
            wanted.push(snapshot);
        }
        // Before anything is written: what a failure discards has to be of this group alone.
        self.refuse_taken(&wanted)?;
        let mut group =
            Group { version: VERSION, id: id.clone(), name, state: State::Creating, members, created: now() };
        // Before its members: a member without its group could not be removed by anybody.
        self.store().groups.put(group.clone()).await?;
        fault::reached("group:intent");
        if let Err(failure) = self.finish_group(&mut group, wanted).await {
            if let Err(also) = self.discard_group(&id).await {
                warn!(group = %id, "what was made of a group that failed stays until it is tried again: {}", Chain(&also));
            }
            return Err(failure);
        }
        fault::reached("group:outcome");
        Ok(group)
    }

    /// Takes the snapshots of a group that is written down, and makes it ready.
    async fn finish_group(&self, group: &mut Group, wanted: Vec<Snapshot>) -> Result<(), Failure> {
        let taken = self.take_snapshots(wanted).await?;
        group.created = taken.first().map_or(group.created, |one| one.created);
        group.state = State::Ready;
        Ok(self.store().groups.put(group.clone()).await?)
    }
}

/// Says what can be done where a copy was not of one moment.
fn not_at_once(error: HostError) -> Failure {
    let kind = match &error {
        HostError::Io { source, .. } => source.kind(),
        _ => io::ErrorKind::Other,
    };
    match kind {
        io::ErrorKind::Unsupported => Failure::Precondition(
            "a block volume that is published can be copied only where the host's file system shares blocks (XFS, btrfs): \
             unpublish it first"
                .to_owned(),
        ),
        io::ErrorKind::TimedOut => Failure::Precondition(
            "the copy took longer than the volumes may be frozen (freeze-limit-seconds): unstage them first, or keep the \
             images on a file system that shares blocks (XFS, btrfs)"
                .to_owned(),
        ),
        _ => error.into(),
    }
}

/// Begins a snapshot of a volume.
pub(super) fn new_snapshot(id: Id, name: String, volume: &Volume, group: Option<Id>) -> Snapshot {
    Snapshot {
        version: VERSION,
        id,
        name,
        state: State::Creating,
        volume: volume.id.clone(),
        bytes: volume.bytes,
        grown: volume.grown,
        content: volume.content,
        group,
        shared: 0,
        created: now(),
    }
}
