//! The disk behind a device volume, before it is staged: which one it is, and that it has a file system (design 6, rule 2).
//!
//! What is intended with it is synced before it is done, and what was made before it is used. It is remembered for longer than
//! the volume's record, so that no disk is ever formatted twice and no other one is taken for it.

use std::path::{Path, PathBuf};

use super::{Work, store_failure};
use crate::error::Chain;
use crate::host::{DiskError, HostError};
use crate::model::{
    Content, Effect, Failure, FileSystem, FsKind, FsUuid, Inspected, Intent, KnownContent, KnownDisk,
    StageStep, VolumeKey, VolumeMode,
};
use crate::record::StoreError;
use crate::volumes;

impl Work<'_> {
    /// Returns the device behind the volume, if there is one.
    pub(super) fn device(&self) -> Option<PathBuf> {
        self.record.volume.device().map(Path::to_owned)
    }

    /// Returns what is remembered of the volume's disk.
    pub(super) async fn known_disk(&self) -> Result<Option<KnownDisk>, Failure> {
        self.executor.store.disk(self.key.clone()).await.map_err(|error| not_remembered(&error))
    }

    /// The same, of a volume that has one.
    pub(super) async fn known_disk_of_device(&self) -> Result<Option<KnownDisk>, Failure> {
        if self.device().is_some() { self.known_disk().await } else { Ok(None) }
    }

    /// Makes sure that the device is the disk that it was, with the file system that is to be mounted; a blank one is formatted.
    pub(super) async fn prepare_disk(
        &mut self,
        device: &Path,
        step: &StageStep,
    ) -> Result<KnownDisk, Failure> {
        let known = self.known_disk().await?;
        match &known {
            // Whether it has them still is looked at by the mount itself, with one descriptor.
            Some(known @ KnownDisk { content: KnownContent::FileSystem(found), .. }) => {
                fits(device, found.kind, step)?;
                return Ok(known.clone());
            }
            Some(KnownDisk { identity, content: KnownContent::Formatting { file_system, least_bytes } }) => {
                let (file_system, identity) = (file_system.clone(), identity.clone());
                let intent = Intent { file_system, identity, least_bytes: *least_bytes, begun: true };
                return self.format(device, intent, &known).await;
            }
            Some(KnownDisk { content: KnownContent::Raw, .. }) | None => {}
        }
        let found = self.inspect(device).await?;
        if let Some(recorded) = known.as_ref().map(|known| &known.identity)
            && !found.identity.is_the_recorded(recorded)
        {
            return Err(refused(DiskError::OtherDisk {
                path: device.to_owned(),
                recorded: recorded.clone(),
                found: found.identity,
            }));
        }
        let content = match step.arguments.capability.volume_mode {
            VolumeMode::Block => KnownContent::Raw,
            VolumeMode::Filesystem => match &found.content {
                Content::FileSystem(there) => {
                    fits(device, there.kind, step)?;
                    KnownContent::FileSystem(there.clone())
                }
                Content::Blank => {
                    let intent = self.intent(device, &found, step)?;
                    return self.format(device, intent, &known).await;
                }
                Content::Unfinished(_)
                | Content::Unknown { .. }
                | Content::Foreign { .. }
                | Content::Unclear { .. } => {
                    let (path, found) = (device.to_owned(), found.content.clone());
                    return Err(refused(DiskError::NotBlank { path, found }));
                }
            },
        };
        let disk = KnownDisk { identity: found.identity, content };
        if known.as_ref() != Some(&disk) {
            self.remember_disk(Some(disk.clone())).await?;
        }
        Ok(disk)
    }

    async fn inspect(&self, device: &Path) -> Result<Inspected, Failure> {
        let found = self.executor.host.inspect_disk(device.to_owned()).await;
        found.map_err(|error| volumes::disk_failure(&error, Effect::NotDone))
    }

    /// Says what a blank device is to be formatted with.
    fn intent(&self, device: &Path, found: &Inspected, step: &StageStep) -> Result<Intent, Failure> {
        let path = || device.to_owned();
        if found.read_only || is_read_only(step) {
            return Err(refused(DiskError::ReadOnly { path: path() }));
        }
        if found.bytes < step.least_bytes {
            let (bytes, least) = (found.bytes, step.least_bytes);
            return Err(refused(DiskError::TooSmall { path: path(), bytes, least }));
        }
        let kind = FsKind::of(&step.arguments.capability.fs_type).unwrap_or(FsKind::Ext4);
        Ok(Intent {
            file_system: FileSystem { kind, uuid: self.executor.new_uuid() },
            identity: found.identity.clone(),
            least_bytes: step.least_bytes,
            begun: false,
        })
    }

    /// Formats, and remembers before and after. What was not even begun is forgotten again: then the next try looks anew.
    async fn format(
        &mut self,
        device: &Path,
        intent: Intent,
        before: &Option<KnownDisk>,
    ) -> Result<KnownDisk, Failure> {
        let Intent { file_system, identity, least_bytes, begun } = intent.clone();
        let disk = |content| KnownDisk { identity: identity.clone(), content };
        if !begun {
            let file_system = file_system.clone();
            let formatting = disk(KnownContent::Formatting { file_system, least_bytes });
            self.remember_disk(Some(formatting)).await?;
        }
        super::fault::reached("format:intent");
        self.progress.tell(format!("formatting {} with {file_system}", device.display()));
        if let Err(error) = self.executor.host.format_disk(device.to_owned(), intent).await {
            if !error.may_have_written() && !begun {
                // If this cannot be written, the disk counts as begun, which formats no more than what mkfs leaves.
                let _unwritten = self.remember_disk(before.clone()).await;
            }
            return Err(volumes::disk_failure(&error, Effect::NotDone));
        }
        super::fault::reached("format:call");
        let made = disk(KnownContent::FileSystem(file_system.clone()));
        self.remember_disk(Some(made.clone())).await?;
        self.notes.push(format!("formatted {} ({identity}) with {file_system}", device.display()));
        Ok(made)
    }

    async fn remember_disk(&self, disk: Option<KnownDisk>) -> Result<(), Failure> {
        let written = self.executor.store.set_disk(self.key.clone(), disk).await;
        written.map_err(|error| Failure { effect: Effect::NotDone, ..store_failure(&error) })
    }
}

impl super::Executor {
    /// Lets the disk that has a volume's device path now be its disk; returns in words which one that was and is. Nothing is
    /// written to it. A blank one is formatted when the volume is staged next, as if it were used for the first time.
    ///
    /// # Errors
    /// In words, when it cannot be looked at, or there is nothing to accept.
    pub async fn accept_disk(&self, key: &VolumeKey, device: PathBuf) -> Result<String, String> {
        // No step of the volume is under way meanwhile.
        let _turn = self.turns.take(key).await;
        let words = |error: &(dyn std::error::Error + 'static)| format!("{key}: {}", Chain(error));
        let known = self.store.disk(key.clone()).await.map_err(|error| words(&error))?;
        let found = self.host.inspect_disk(device.clone()).await.map_err(|error| words(&error))?;
        let content = match &found.content {
            Content::FileSystem(there) => KnownContent::FileSystem(there.clone()),
            Content::Blank
            | Content::Unfinished(_)
            | Content::Unknown { .. }
            | Content::Foreign { .. }
            | Content::Unclear { .. } => KnownContent::Raw,
        };
        let Some(known) = known else {
            return Err(format!("{key}: no disk is recorded yet: any is accepted"));
        };
        let accepted = KnownDisk { identity: found.identity.clone(), content };
        if accepted == known {
            return Err(format!("{key}: {} is the recorded disk ({})", device.display(), known.identity));
        }
        self.store.set_disk(key.clone(), Some(accepted)).await.map_err(|error| words(&error))?;
        let before = match &known.content {
            KnownContent::Raw => "raw".to_owned(),
            KnownContent::Formatting { file_system, .. } => format!("being formatted with {file_system}"),
            KnownContent::FileSystem(there) => format!("with the file system {there}"),
        };
        Ok(format!(
            "{key}: recorded was the disk with {}, {before}; accepted is {} with {}, on it is {}",
            known.identity,
            device.display(),
            found.identity,
            found.content
        ))
    }

    /// Returns a UUID that no other file system has (version 4).
    fn new_uuid(&self) -> FsUuid {
        let random = (u128::from(self.ambient.random()) << 64) | u128::from(self.ambient.random());
        let version_4 = random & !(0xf << 76) & !(0x3 << 62) | (0x4 << 76) | (0x2 << 62);
        FsUuid::from_bytes(version_4.to_be_bytes())
    }
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

fn refused(error: DiskError) -> Failure {
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
