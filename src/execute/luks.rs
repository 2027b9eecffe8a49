//! Encryption at rest of a device volume's disk: made once, opened before what is inside is staged, closed after it was unstaged.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::Work;
use super::disk::{is_read_only, may_be_written, must_be_known, refused, was_not_raw};
use crate::error::Chain;
use crate::host::{DiskError, HostError};
use crate::model::{
    Content, Effect, Failure, FsGrowth, KeySource, KnownContent, KnownDisk, KnownLuks, Layout, LuksIntent,
    MapperName, Secret, SecretMap, StageStep, VolumeKey,
};
use crate::volumes;

/// The value of a Secret that is the key.
const VALUE: &str = "key";

impl Work<'_> {
    /// Opens the volume's encrypted disk; a blank one is encrypted first. Returns what is remembered of it, and the node of what
    /// is inside.
    pub(super) async fn unlock(
        &mut self,
        device: &Path,
        known: Option<KnownDisk>,
        step: &StageStep,
    ) -> Result<(KnownDisk, PathBuf), Failure> {
        let key = self.key(&step.secrets).await?;
        let known = match known {
            Some(known @ KnownDisk { luks: Some(KnownLuks { made: true, .. }), .. }) => known,
            known => self.encrypt(device, known, step, &key).await?,
        };
        let Some(luks) = &known.luks else { return Err(not_encrypted(device)) };
        let (host, name) = (&self.executor.host, self.mapper()?);
        let (identity, uuid) = (known.identity.clone(), luks.uuid.clone());
        let opened =
            host.open_luks(device.to_owned(), identity, uuid.clone(), name.clone(), key.clone()).await;
        let opened = opened.map_err(|error| volumes::disk_failure(&error, Effect::NotDone))?;
        super::fault::reached("luks:opened");
        if !is_read_only(step) {
            match host.grow_luks(name, uuid, key).await {
                Ok(FsGrowth::Enough { .. }) => {}
                Ok(FsGrowth::Grown { from, bytes }) => {
                    self.notes.push(format!("the encryption grew from {from} to {bytes} bytes"));
                }
                Err(error) => {
                    self.notes.push(format!("the encryption does not fill its device: {}", Chain(&error)));
                }
            }
        }
        Ok((known, opened.mapper))
    }

    /// Encrypts a blank disk, or finishes that.
    async fn encrypt(
        &mut self,
        device: &Path,
        known: Option<KnownDisk>,
        step: &StageStep,
        key: &Secret,
    ) -> Result<KnownDisk, Failure> {
        let (begun, mut disk) = match &known {
            Some(known @ KnownDisk { luks: Some(_), .. }) => (true, known.clone()),
            Some(_) | None => (false, self.to_be_encrypted(device, known.as_ref(), step).await?),
        };
        let Some(luks) = &mut disk.luks else { return Err(not_encrypted(device)) };
        let (uuid, least_bytes) = (luks.uuid.clone(), luks.least_bytes);
        luks.made = true;
        let made = disk;
        if !begun {
            let luks = Some(KnownLuks { uuid: uuid.clone(), least_bytes, made: false });
            self.remember_disk(Some(KnownDisk { luks, ..made.clone() })).await?;
        }
        super::fault::reached("luks:intent");
        self.progress.tell(format!("encrypting {}", device.display()));
        let intent = LuksIntent { uuid, identity: made.identity.clone(), least_bytes, begun };
        let done = self.executor.host.format_luks(device.to_owned(), intent, key.clone()).await;
        if let Err(error) = done {
            if !error.may_have_written() && !begun {
                // If this cannot be written, it counts as begun, which encrypts no more than what that leaves.
                let _unwritten = self.remember_disk(known).await;
            }
            return Err(volumes::disk_failure(&error, Effect::NotDone));
        }
        super::fault::reached("luks:call");
        self.remember_disk(Some(made.clone())).await?;
        let source = self.record.volume.key().map_or_else(String::new, KeySource::to_string);
        self.notes.push(format!(
            "encrypted {} ({}) with the key of {source}",
            device.display(),
            made.identity
        ));
        Ok(made)
    }

    /// Looks at a disk that is used for the first time.
    async fn to_be_encrypted(
        &self,
        device: &Path,
        known: Option<&KnownDisk>,
        step: &StageStep,
    ) -> Result<KnownDisk, Failure> {
        let found = self.inspect(device).await?;
        must_be_known(device, known, &found)?;
        if found.content != Content::Blank {
            let (path, found) = (device.to_owned(), found.content);
            return Err(refused(DiskError::NotBlank { path, found }));
        }
        was_not_raw(device, known)?;
        let least_bytes = step.least_bytes;
        may_be_written(device, &found, least_bytes, step)?;
        let luks = Some(KnownLuks { uuid: self.executor.new_uuid(), least_bytes, made: false });
        Ok(KnownDisk { identity: found.identity, content: KnownContent::Accepted, luks })
    }

    /// Lets the encryption of a staged disk take all of its device, before the file system in it does.
    pub(super) async fn grow_encryption(&self, secrets: &SecretMap) -> Result<(), Failure> {
        let Some(luks) = self.luks().await? else { return Ok(()) };
        let grown = self.executor.host.grow_luks(self.mapper()?, luks.uuid, self.key(secrets).await?).await;
        grown.map(drop).map_err(|error| volumes::disk_failure(&error, Effect::NotDone))
    }

    /// Closes the disk, now that nothing in it is mounted or shown any more.
    pub(super) async fn lock_disk(&self) -> Result<(), Failure> {
        let Some(luks) = self.luks().await? else { return Ok(()) };
        let closed = self.executor.host.close_luks(self.mapper()?, luks.uuid).await;
        closed.map_err(|error| volumes::disk_failure(&error, Effect::MayBeDone))
    }

    /// Returns the encryption of the volume's disk, if it has one.
    async fn luks(&self) -> Result<Option<KnownLuks>, Failure> {
        match self.record.volume.key() {
            Some(_) => Ok(self.known_disk().await?.and_then(|known| known.luks)),
            None => Ok(None),
        }
    }

    /// Reads the key: from the Secret that came with the step, or where systemd put it.
    async fn key(&self, secrets: &SecretMap) -> Result<Secret, Failure> {
        let missing = |what: String| {
            Failure::not_done("key-missing", what, "give the key back; the disk is opened by nothing else")
        };
        match self.record.volume.key() {
            Some(KeySource::Credential(name)) => {
                let unusable = |why: String| {
                    Failure::not_done(
                        "key-missing",
                        format!("the credential {name} cannot be used: {why}"),
                        format!(
                            "let LoadCredential={name}:PATH in a drop-in of volumed.service name a file with the key, and restart volumed"
                        ),
                    )
                };
                let Some(directory) = &self.executor.credentials else {
                    return Err(unusable("volumed was started without any".to_owned()));
                };
                let read = self.executor.host.read_token(directory.join(name)).await;
                let (text, _) = read.map_err(|error| {
                    // It was not meant for a token here.
                    if let HostError::Io { path, source, .. } = error {
                        return unusable(format!("{}: {source}", path.display()));
                    }
                    unusable(Chain(&error).to_string())
                })?;
                Ok(Secret::new(text))
            }
            source => match secrets.reveal().get(VALUE) {
                Some(key) => Ok(Secret::new(key.clone())),
                None => {
                    let source = source.map_or_else(String::new, KeySource::to_string);
                    Err(missing(format!("{source} has no value {VALUE:?}")))
                }
            },
        }
    }

    /// Returns the name under which the disk is open.
    fn mapper(&self) -> Result<MapperName, Failure> {
        mapper_name(&self.executor.layout, self.key).ok_or_else(|| {
            Failure::not_done(
                "no-name",
                format!("{} makes no name of a device-mapper device", self.key),
                "give the PersistentVolume another name",
            )
        })
    }

    /// Returns the node of what is inside the open disk.
    pub(super) fn mapper_node(&self) -> Result<PathBuf, Failure> {
        Ok(Path::new("/dev/mapper").join(self.mapper()?.as_str()))
    }
}

/// Returns the name under which a volume's disk is open: told by the volume's, and no other root's.
pub(super) fn mapper_name(layout: &Layout, key: &VolumeKey) -> Option<MapperName> {
    let mut hash = Sha256::new();
    hash.update(layout.root().as_os_str().as_encoded_bytes());
    hash.update([0]);
    hash.update(key.as_str());
    let mut name = "volumed-".to_owned();
    let last = key.as_str().rsplit('/').next().unwrap_or_default();
    // The name of a target has colons.
    let fits = |c: char| c.is_ascii_alphanumeric() || "_.+-".contains(c);
    name.extend(last.chars().map(|c| if fits(c) { c } else { '_' }).take(60));
    name.push('-');
    for byte in hash.finalize().iter().take(6) {
        // Writing to a String cannot fail.
        let _written = write!(name, "{byte:02x}");
    }
    MapperName::new(name)
}

fn not_encrypted(device: &Path) -> Failure {
    Failure::not_done(
        "encryption-mismatch",
        format!("nothing is known of an encryption of {}", device.display()),
        "report this as a fault of volumed",
    )
}
