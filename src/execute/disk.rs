//! The disk behind a device volume, before it is staged: which one it is, and that it has a file system (design 6, rule 2).
//!
//! What is intended with it is synced before it is done, and what was made before it is used. It is remembered for longer than
//! the volume's record, so that no disk is ever formatted twice and no other one is taken for it.

use std::path::{Path, PathBuf};

use super::{Work, store_failure};
use crate::host::{DiskError, HostError};
use crate::model::{
    Content, DiskIdentity, Effect, Failure, FileSystem, FsKind, FsUuid, Inspected, Intent, KnownContent,
    KnownDisk, StageStep, VolumeMode,
};
use crate::record::StoreError;
use crate::volumes::{self, Disk};

impl Work<'_> {
    /// Returns what is remembered of the volume's disk.
    pub(super) async fn known_disk(&self) -> Result<Option<KnownDisk>, Failure> {
        self.executor.store.disk(self.key.clone()).await.map_err(|error| not_remembered(&error))
    }

    /// Returns the disk of a volume that is staged, if it has one.
    pub(super) async fn staged_disk(&self) -> Result<Option<Disk>, Failure> {
        let device = self.device().await?;
        self.staged_on(device).await
    }

    /// As `staged_disk`; the device is as large as its storage system says now.
    pub(super) async fn staged_disk_to_grow(&self) -> Result<Option<Disk>, Failure> {
        let device = self.device_as_large_as_it_is().await?;
        self.staged_on(device).await
    }

    async fn staged_on(&self, device: Option<PathBuf>) -> Result<Option<Disk>, Failure> {
        let Some(device) = device else { return Ok(None) };
        let Some(KnownDisk { identity, content, luks }) = self.known_disk().await? else { return Ok(None) };
        if luks.is_none() {
            return Ok(Some(Disk { node: device.clone(), device, identity, content }));
        }
        let node = self.mapper_node()?;
        let identity = self.inspect(&node).await?.identity;
        Ok(Some(Disk { node, device, identity, content }))
    }

    /// Makes sure that the device is the disk that it was, with the file system that is to be mounted; a blank one is formatted.
    pub(super) async fn prepare_disk(&mut self, device: &Path, step: &StageStep) -> Result<Disk, Failure> {
        let known = self.known_disk().await?;
        let encrypts = self.record.volume.key().is_some();
        if let Some(known) = &known
            && known.luks.is_some() != encrypts
            && (known.luks.is_some() || known.content != KnownContent::Accepted)
        {
            return Err(not_converted(device, encrypts));
        }
        if !encrypts {
            return self.prepare_content(device, known, Inside::No, step).await;
        }
        let (known, inside) = self.unlock(device, known, step).await?;
        let disk = self.prepare_content(&inside, Some(known), Inside::Yes, step).await?;
        Ok(Disk { device: device.to_owned(), ..disk })
    }

    /// Makes sure of what is on a disk, or inside an encrypted one that is open.
    async fn prepare_content(
        &mut self,
        node: &Path,
        known: Option<KnownDisk>,
        inside: Inside,
        step: &StageStep,
    ) -> Result<Disk, Failure> {
        let is_raw = step.arguments.capability.volume_mode == VolumeMode::Block;
        let recorded = known.as_ref().map(|known| (&known.identity, &known.content)).filter(|_| !is_raw);
        match (recorded, inside) {
            // Whether it has them still is looked at by the mount itself, with one descriptor.
            (Some((identity, content @ KnownContent::FileSystem(found))), Inside::No) => {
                fits(node, found.kind, step)?;
                return Ok(disk(node, identity.clone(), content.clone()));
            }
            (Some((identity, KnownContent::Formatting { file_system, least_bytes })), Inside::No) => {
                may_go_on(node, file_system.kind, step)?;
                let (file_system, identity) = (file_system.clone(), identity.clone());
                let intent = Intent { file_system, identity, least_bytes: *least_bytes, begun: true };
                return self.format(node, intent, known).await;
            }
            (Some((_, KnownContent::Raw | KnownContent::Accepted)) | None, Inside::No) | (_, Inside::Yes) => {
            }
        }
        let found = self.inspect(node).await?;
        let identity = found.identity.clone();
        match recorded {
            // Which disk it lies on was looked at when it was opened.
            Some((_, content @ KnownContent::FileSystem(there))) if inside == Inside::Yes => {
                fits(node, there.kind, step)?;
                return Ok(disk(node, identity, content.clone()));
            }
            Some((_, KnownContent::Formatting { file_system, least_bytes })) if inside == Inside::Yes => {
                may_go_on(node, file_system.kind, step)?;
                let file_system = file_system.clone();
                let intent = Intent { file_system, identity, least_bytes: *least_bytes, begun: true };
                return self.format(node, intent, known).await;
            }
            _ => {}
        }
        if inside == Inside::No {
            must_be_known(node, known.as_ref(), &found)?;
        }
        let content = match (is_raw, &found.content) {
            // From now on what is on it is the pod's, and an mkfs that was begun is none of ours any more.
            (true, _) => match known.as_ref().map(|known| &known.content) {
                Some(content @ KnownContent::FileSystem(_)) => content.clone(),
                Some(KnownContent::Formatting { .. } | KnownContent::Raw | KnownContent::Accepted) | None => {
                    KnownContent::Raw
                }
            },
            (false, Content::FileSystem(there)) => {
                fits(node, there.kind, step)?;
                KnownContent::FileSystem(there.clone())
            }
            (false, Content::Blank) => {
                // What the header takes away is no fault of the disk's.
                let least_bytes = if inside == Inside::Yes { 0 } else { step.least_bytes };
                was_not_raw(node, known.as_ref())?;
                may_be_written(node, &found, least_bytes, step)?;
                let kind = FsKind::of(&step.arguments.capability.fs_type).unwrap_or(FsKind::Ext4);
                let file_system = FileSystem { kind, uuid: self.executor.new_uuid() };
                let intent = Intent { file_system, identity, least_bytes, begun: false };
                return self.format(node, intent, known).await;
            }
            (
                false,
                Content::Unfinished(_)
                | Content::Unknown { .. }
                | Content::Foreign { .. }
                | Content::Unclear { .. },
            ) => {
                let (path, found) = (node.to_owned(), found.content);
                return Err(refused(DiskError::NotBlank { path, found }));
            }
        };
        let remembered = with_content(known.as_ref(), &identity, content.clone());
        if known.as_ref() != Some(&remembered) {
            self.remember_disk(Some(remembered)).await?;
        }
        Ok(disk(node, identity, content))
    }

    pub(super) async fn inspect(&self, device: &Path) -> Result<Inspected, Failure> {
        let found = self.executor.host.inspect_disk(device.to_owned()).await;
        found.map_err(|error| volumes::disk_failure(&error, Effect::NotDone))
    }

    /// Formats, and remembers before and after. What was not even begun is forgotten again: then the next try looks anew.
    async fn format(
        &mut self,
        node: &Path,
        intent: Intent,
        before: Option<KnownDisk>,
    ) -> Result<Disk, Failure> {
        let Intent { file_system, identity, least_bytes, begun } = intent.clone();
        let of = |content| with_content(before.as_ref(), &identity, content);
        if !begun {
            let file_system = file_system.clone();
            let formatting = of(KnownContent::Formatting { file_system, least_bytes });
            self.remember_disk(Some(formatting)).await?;
        }
        super::fault::reached("format:intent");
        self.progress.tell(format!("formatting {} with {file_system}", node.display()));
        if let Err(error) = self.executor.host.format_disk(node.to_owned(), intent).await {
            if !error.may_have_written() && !begun {
                // If this cannot be written, the disk counts as begun, which formats no more than what mkfs leaves.
                let _unwritten = self.remember_disk(before).await;
            }
            return Err(volumes::disk_failure(&error, Effect::NotDone));
        }
        super::fault::reached("format:call");
        let content = KnownContent::FileSystem(file_system.clone());
        self.remember_disk(Some(of(content.clone()))).await?;
        self.notes.push(format!("formatted {} ({identity}) with {file_system}", node.display()));
        Ok(disk(node, identity, content))
    }

    pub(super) async fn remember_disk(&self, disk: Option<KnownDisk>) -> Result<(), Failure> {
        let written = self.executor.store.set_disk(self.key.clone(), disk).await;
        written.map_err(|error| Failure { effect: Effect::NotDone, ..store_failure(&error) })
    }
}

impl super::Executor {
    /// Returns a UUID that no other file system has (version 4).
    pub(super) fn new_uuid(&self) -> FsUuid {
        let random = (u128::from(self.ambient.random()) << 64) | u128::from(self.ambient.random());
        let version_4 = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
        FsUuid::from_bytes(version_4.to_be_bytes())
    }
}

/// Whether what is looked at is inside an encrypted disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    Yes,
    No,
}

fn disk(node: &Path, identity: DiskIdentity, content: KnownContent) -> Disk {
    Disk { node: node.to_owned(), device: node.to_owned(), identity, content }
}

/// Returns what is to be remembered of a disk whose content is known.
fn with_content(known: Option<&KnownDisk>, identity: &DiskIdentity, content: KnownContent) -> KnownDisk {
    match known {
        // Of an encrypted disk what is inside has an identity of its own.
        Some(known @ KnownDisk { luks: Some(_), .. }) => KnownDisk { content, ..known.clone() },
        Some(_) | None => KnownDisk { identity: identity.clone(), content, luks: None },
    }
}

/// Refuses to finish an mkfs for who wants something else by now.
fn may_go_on(node: &Path, kind: FsKind, step: &StageStep) -> Result<(), Failure> {
    fits(node, kind, step)?;
    if is_read_only(step) { Err(refused(DiskError::ReadOnly { path: node.to_owned() })) } else { Ok(()) }
}

/// Refuses to make anything on a disk that a pod had raw: a look at some places does not tell that it wrote nowhere.
pub(super) fn was_not_raw(device: &Path, known: Option<&KnownDisk>) -> Result<(), Failure> {
    if known.is_none_or(|known| known.content != KnownContent::Raw) {
        return Ok(());
    }
    Err(Failure::not_done(
        "was-raw",
        format!(
            "{} was shown to pods as a raw device (volumeMode: Block): what they wrote may be on it",
            device.display()
        ),
        "if nobody needs that, say so: volumectl accept-identity with the claim's or the pod's name",
    ))
}

/// Refuses any disk but the one that is remembered.
pub(super) fn must_be_known(
    device: &Path,
    known: Option<&KnownDisk>,
    found: &Inspected,
) -> Result<(), Failure> {
    match known.map(|known| &known.identity) {
        Some(recorded) if !found.identity.is_the_recorded(recorded) => {
            let (recorded, found) = (recorded.clone(), found.identity.clone());
            Err(refused(DiskError::OtherDisk { path: device.to_owned(), recorded, found }))
        }
        Some(_) | None => Ok(()),
    }
}

/// Refuses to make anything on a device that nobody may write to, or that is not the one that was meant.
pub(super) fn may_be_written(
    device: &Path,
    found: &Inspected,
    least: u64,
    step: &StageStep,
) -> Result<(), Failure> {
    let path = || device.to_owned();
    if found.read_only || is_read_only(step) {
        return Err(refused(DiskError::ReadOnly { path: path() }));
    }
    if found.bytes < least {
        return Err(refused(DiskError::TooSmall { path: path(), bytes: found.bytes, least }));
    }
    Ok(())
}

fn not_converted(device: &Path, encrypts: bool) -> Failure {
    let (is, asked) =
        if encrypts { ("not encrypted", "says that it is") } else { ("encrypted", "does not say so") };
    Failure::not_done(
        "encryption-mismatch",
        format!("{} is {is}, and the PersistentVolume {asked}", device.display()),
        "write volumed.io/encryption as it was: nothing is converted; to change it, copy the files to another disk",
    )
}

/// Refuses a file system of another type than the PersistentVolume asks for (kubelet.md 4.11).
fn fits(device: &Path, found: FsKind, step: &StageStep) -> Result<(), Failure> {
    let asked = FsKind::of(&step.arguments.capability.fs_type);
    let is_ext = |kind| matches!(kind, FsKind::Ext3 | FsKind::Ext4);
    match asked {
        Some(asked) if asked != found && !(is_ext(asked) && is_ext(found)) => Err(Failure::not_done(
            "file-system-mismatch",
            format!(
                "{} has the file system {found}, and the PersistentVolume asks for {asked}",
                device.display()
            ),
            "write the fsType that it has into the PersistentVolume, or use another device: nothing is formatted over data",
        )),
        Some(_) | None => Ok(()),
    }
}

/// Whether nothing may be written to the device.
pub(super) fn is_read_only(step: &StageStep) -> bool {
    step.arguments.capability.mount_flags.iter().any(|flag| flag.split(',').any(|one| one.trim() == "ro"))
}

pub(super) fn refused(error: DiskError) -> Failure {
    volumes::disk_failure(&HostError::Disk(Box::new(error)), Effect::NotDone)
}

fn not_remembered(error: &StoreError) -> Failure {
    Failure {
        effect: Effect::NotDone,
        remedy: "restore the file; or, if the volume's disk is the right one, remove the file: it is used for the first time \
                 then, and formatted only if it is blank"
            .to_owned(),
        ..store_failure(error)
    }
}
