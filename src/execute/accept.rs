//! Another disk in the place of the recorded one, by the operator's word (`volumectl accept-identity`).

use std::path::PathBuf;

use super::Executor;
use super::luks::mapper_name;
use crate::error::Chain;
use crate::model::{Content, DiskSource, Inspected, KnownContent, KnownDisk, KnownLuks, MountsAt, VolumeKey};

impl Executor {
    /// Lets the disk that has a volume's device path now be its disk; returns in words which one that was and is. Nothing is
    /// written to it. A blank one is formatted when the volume is staged next, as if it were used for the first time. `places`: where it
    /// is mounted or shown when it is up.
    ///
    /// # Errors
    /// In words, when it cannot be looked at, or there is nothing to accept.
    pub async fn accept_disk(
        &self,
        key: &VolumeKey,
        disk: DiskSource,
        places: &[PathBuf],
    ) -> Result<String, String> {
        // No step of the volume is under way meanwhile; one that was may have brought it up.
        let _turn = self.turns.take(key).await;
        let words = |error: &(dyn std::error::Error + 'static)| format!("{key}: {}", Chain(error));
        let mounts = self.host.mounts().await.map_err(|error| words(&error))?;
        let is_up = |place: &PathBuf| {
            !matches!(mounts.at(place), MountsAt::None) || mounts.below(place).next().is_some()
        };
        if let Some(place) = places.iter().find(|place| is_up(place)) {
            return Err(format!("{key} is up with the recorded disk, at {}", place.display()));
        }
        let known = self.store.disk(key.clone()).await.map_err(|error| words(&error))?;
        let Some(known) = known else {
            return Err(format!("{key}: no disk is recorded yet: any is accepted"));
        };
        let device = match disk {
            DiskSource::Path(path) => path,
            DiskSource::Lun(lun) => self.host.find_lun(lun, false).await.map_err(|error| words(&error))?,
        };
        // What a try left open is the recorded disk's.
        if let (Some(luks), Some(name)) = (&known.luks, mapper_name(&self.layout, key)) {
            self.host.close_luks(name, luks.uuid.clone()).await.map_err(|error| words(&error))?;
        }
        let found = self.host.inspect_disk(device.clone()).await.map_err(|error| words(&error))?;
        let accepted =
            accepted(&known, &found).map_err(|why| format!("{key}: {}: {why}", device.display()))?;
        self.store.set_disk(key.clone(), Some(accepted)).await.map_err(|error| words(&error))?;
        let encrypted = if known.luks.is_some() { "encrypted, " } else { "" };
        let before = match &known.content {
            KnownContent::Raw => "shown raw".to_owned(),
            KnownContent::Accepted => "with nothing known in it".to_owned(),
            KnownContent::Formatting { file_system, .. } => format!("being formatted with {file_system}"),
            KnownContent::FileSystem(there) => format!("with the file system {there}"),
        };
        Ok(format!(
            "{key}: recorded was the disk with {}, {encrypted}{before}; accepted is {} with {}, on it is {}",
            known.identity,
            device.display(),
            found.identity,
            found.content
        ))
    }
}

/// Says what is remembered from now on, or why nothing is to be accepted. An encryption stays what it is unless the disk is blank: its
/// header is known by its UUID, so that no other one is opened.
fn accepted(known: &KnownDisk, found: &Inspected) -> Result<KnownDisk, String> {
    let is_recorded = || format!("it is the recorded disk ({})", known.identity);
    let identity = found.identity.clone();
    let content = match (&known.luks, &found.content) {
        (_, Content::Unclear { why }) => {
            return Err(format!("what is on it is not clear: {why}; look at it by hand (dmesg)"));
        }
        (
            Some(luks @ KnownLuks { made: true, .. }),
            Content::FileSystem(_)
            | Content::Unfinished(_)
            | Content::Unknown { .. }
            | Content::Foreign { .. },
        ) => {
            let content = match &known.content {
                content @ (KnownContent::FileSystem(_) | KnownContent::Raw) if identity != known.identity => {
                    content.clone()
                }
                // It was refused for what is inside, which may be anything from now on.
                KnownContent::FileSystem(_) | KnownContent::Raw | KnownContent::Formatting { .. } => {
                    KnownContent::Accepted
                }
                KnownContent::Accepted if identity == known.identity => return Err(is_recorded()),
                KnownContent::Accepted => KnownContent::Accepted,
            };
            return Ok(KnownDisk { identity, content, luks: Some(luks.clone()) });
        }
        (_, Content::FileSystem(there)) => KnownContent::FileSystem(there.clone()),
        (_, Content::Blank | Content::Unfinished(_) | Content::Unknown { .. } | Content::Foreign { .. }) => {
            KnownContent::Accepted
        }
    };
    let accepted = KnownDisk { identity, content, luks: None };
    if accepted == *known { Err(is_recorded()) } else { Ok(accepted) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{DiskIdentity, FileSystem, FsKind, FsUuid, Mark};

    fn disk(serial: &str) -> DiskIdentity {
        DiskIdentity { marks: [(Mark::Serial, serial.to_owned())].into() }
    }

    fn found(serial: &str, content: Content) -> Inspected {
        Inspected { identity: disk(serial), content, bytes: 1 << 30, read_only: false }
    }

    #[test]
    fn an_encryption_is_kept_unless_the_disk_is_blank() {
        let uuid = FsUuid::from_bytes([1; 16]);
        let there = FileSystem { kind: FsKind::Ext4, uuid: uuid.clone() };
        let luks = Some(KnownLuks { uuid, least_bytes: 0, made: true });
        let inside = KnownContent::FileSystem(there);
        let known = KnownDisk { identity: disk("a"), content: inside.clone(), luks: luks.clone() };
        let header = || Content::Foreign { what: "something of the type crypto_LUKS".to_owned() };
        // A copy of the disk, or another cable: the same header has to be on it.
        let copy = accepted(&known, &found("b", header())).unwrap();
        assert_eq!(copy, KnownDisk { identity: disk("b"), content: inside, luks: luks.clone() });
        // The same disk, refused for what is inside.
        let again = accepted(&known, &found("a", header())).unwrap();
        assert_eq!((again.content.clone(), again.luks.clone()), (KnownContent::Accepted, luks));
        assert!(accepted(&again, &found("a", header())).is_err(), "nothing is left to accept");
        let blank = accepted(&known, &found("b", Content::Blank)).unwrap();
        assert_eq!((blank.content, blank.luks), (KnownContent::Accepted, None));
        let unclear = Content::Unclear { why: "an error".to_owned() };
        assert!(accepted(&known, &found("b", unclear)).is_err());
    }

    #[test]
    fn another_disk_is_taken_as_it_is() {
        let there = FileSystem { kind: FsKind::Xfs, uuid: FsUuid::from_bytes([2; 16]) };
        let known = KnownDisk { identity: disk("a"), content: KnownContent::Raw, luks: None };
        let with_files = accepted(&known, &found("b", Content::FileSystem(there.clone()))).unwrap();
        assert_eq!(with_files.content, KnownContent::FileSystem(there.clone()));
        let same = accepted(&with_files, &found("b", Content::FileSystem(there)));
        assert!(same.unwrap_err().contains("it is the recorded disk"));
        let raw_and_blank = accepted(&known, &found("a", Content::Blank)).unwrap();
        assert_eq!(raw_and_blank.content, KnownContent::Accepted);
    }
}
