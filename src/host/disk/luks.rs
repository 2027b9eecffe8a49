//! Encryption at rest: LUKS2, by cryptsetup. What may be written over is decided as for a file system (design 6, rule 2).
//!
//! The key goes to cryptsetup through a file without a name, on its standard input: it is in nobody's arguments or environment,
//! and cryptsetup says nothing of it. The volume's key is in the kernel's keyring.
//!
//! A new device is all noise when it is decrypted, and no noise is blank. So the places where anything of note could lie are
//! zeroed through the encryption once, before the device counts as made: from then on the rules for formatting hold inside too.

use std::path::Path;

use super::device::{Device, Looked, To};
use super::dm::{self, Mapping};
use super::error::{DiskError, failed};
use super::work::Key;
use super::{LOOK, LuksOpened, cryptsetup, format, places};
use crate::host::exec::Tools;
use crate::model::{Content, DiskIdentity, Formatted, FsGrowth, FsUuid, LuksIntent, MapperName};

/// A header takes 16 MiB; less than as much again is no volume.
const LEAST: u64 = 32 << 20;

/// What it costs to try a key. A Secret of a volume ought to be random, and then any function does; but it may be a word that
/// somebody thought of, so this is more than what is asked for passwords at least (19 MiB, two passes). No more either:
/// cryptsetup would take 1 GiB and two seconds for each of the volumes that come up at once when the host starts, and memory
/// that the unit may not have (MemoryMax). Fixed, not measured: a host under load must not make a weaker key.
const FUNCTION: [&str; 8] = [
    "--pbkdf",
    "argon2id",
    "--pbkdf-memory",
    "32768",
    "--pbkdf-force-iterations",
    "4",
    "--pbkdf-parallel",
    "1",
];

/// What a device may have on it and be encrypted.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// luksFormat.
    Make,
    /// It has a header of ours: to be finished, if that can be opened.
    Finish,
    /// It may be what our luksFormat left, and another disk's data just as well.
    Unproven,
    /// Neither.
    Refuse,
}

/// Decides by what is on a device. A luksFormat that was begun explains a header with its UUID, and noise without a header
/// where the disk can be no other.
fn verdict(looked: &Looked, intent: &LuksIntent) -> Verdict {
    if looked.luks.is_some() {
        let ours = intent.begun && looked.luks.as_ref() == Some(&intent.uuid);
        return if ours { Verdict::Finish } else { Verdict::Refuse };
    }
    match &looked.content {
        Content::Blank => Verdict::Make,
        Content::Unknown { copies, .. } if intent.begun && copies.is_empty() => {
            if intent.identity.is_one_disk_s() { Verdict::Make } else { Verdict::Unproven }
        }
        Content::Unknown { .. }
        | Content::FileSystem(_)
        | Content::Unfinished(_)
        | Content::Foreign { .. }
        | Content::Unclear { .. } => Verdict::Refuse,
    }
}

/// Encrypts a device, so that it is blank inside. Before anything is written everything is looked at twice.
///
/// # Errors
/// Nothing was written, unless `DiskError::may_have_written`.
pub(super) async fn format(device: &Device, intent: &LuksIntent, key: &Key) -> Result<Formatted, DiskError> {
    key_is_there(&device.path, key)?;
    device.must_be(&intent.identity)?;
    let name = while_made(&intent.uuid)?;
    if intent.begun {
        forget(device, &name, &intent.uuid).await?;
    }
    let least = intent.least_bytes.max(LEAST);
    let first = format::may_be_written(device, &intent.identity, least).await?;
    let path = || device.path.clone();
    let whole = match verdict(&first, intent) {
        Verdict::Make => false,
        // The key is the last that luksFormat writes: without one nobody ever opened it.
        Verdict::Finish => has_key(device).await?,
        Verdict::Unproven => {
            let identity = intent.identity.clone();
            return Err(DiskError::Unproven { path: path(), found: first.content, identity });
        }
        Verdict::Refuse => return Err(DiskError::NotBlank { path: path(), found: first.content }),
    };
    format::is_still(device, &intent.identity, &first).await?;
    if whole {
        return fill(device, &intent.uuid, &name, key, true).await;
    }
    make(device, &intent.uuid, key).await?;
    let filled = fill(device, &intent.uuid, &name, key, false).await;
    filled.map_err(|error| not_encrypted(device, &error.to_string()))
}

fn key_is_there(path: &Path, key: &Key) -> Result<(), DiskError> {
    if !key.reveal().is_empty() {
        return Ok(());
    }
    let why = "the key is empty".to_owned();
    Err(DiskError::Failed { doing: "use the key of".to_owned(), path: path.to_owned(), why })
}

fn not_encrypted(device: &Device, said: &str) -> DiskError {
    DiskError::NotEncrypted { path: device.path.clone(), said: said.to_owned() }
}

/// The name under which a device is open until it is made.
fn while_made(uuid: &FsUuid) -> Result<MapperName, DiskError> {
    let name = format!("volumed-new-{uuid}");
    MapperName::new(name.clone()).ok_or_else(|| DiskError::Failed {
        doing: "use the name".to_owned(),
        path: name.into(),
        why: "it is none".to_owned(),
    })
}

/// Closes what one that was killed left open.
async fn forget(device: &Device, name: &MapperName, uuid: &FsUuid) -> Result<(), DiskError> {
    match dm::find(&device.tools, name).await? {
        Some(left) if left.is_luks(uuid) && (!left.live || left.is_over(device.number)?) => {
            dm::remove(&device.tools, name, &left).await
        }
        Some(_) | None => Ok(()),
    }
}

async fn make(device: &Device, uuid: &FsUuid, key: &Key) -> Result<(), DiskError> {
    let node = device.in_tools().display().to_string();
    let ours = ["luksFormat", "--type", "luks2", "--uuid", uuid.as_str(), "--key-file=-"];
    let arguments: Vec<&str> = ours.into_iter().chain(FUNCTION).chain([node.as_str()]).collect();
    device.lasts(cryptsetup::LIMIT + LOOK);
    // Before it starts nothing was written.
    cryptsetup::tool(&device.tools)?;
    let ended = cryptsetup::run(&device.tools, "encrypt", &device.path, &arguments, Some(key)).await;
    let ended = ended.map_err(|error| not_encrypted(device, &error.to_string()))?;
    if ended.status.success() {
        return Ok(());
    }
    Err(not_encrypted(device, &format!("cryptsetup: {}: {}", ended.status, ended.said)))
}

/// Returns whether any key opens the header on a device; one that is not whole is opened by none.
async fn has_key(device: &Device) -> Result<bool, DiskError> {
    const DOING: &str = "read the LUKS header of";
    let node = device.in_tools().display().to_string();
    let arguments = ["luksDump", "--dump-json-metadata", &node];
    let ended = cryptsetup::run(&device.tools, DOING, &device.path, &arguments, None).await?;
    match ended.status.code() {
        Some(0) => {
            let header: Option<serde_json::Value> = serde_json::from_slice(&ended.stdout).ok();
            let keys = header.as_ref().and_then(|header| header.get("keyslots")?.as_object());
            keys.map(|keys| !keys.is_empty())
                .ok_or_else(|| cryptsetup::unexpected(DOING, &device.path, &ended))
        }
        Some(cryptsetup::WRONG) if ended.said.contains("is not a valid LUKS device") => Ok(false),
        _ => Err(cryptsetup::unexpected(DOING, &device.path, &ended)),
    }
}

/// Makes the inside of a device blank, and leaves it closed. `before`: it had its header, and somebody may have used it.
async fn fill(
    device: &Device,
    uuid: &FsUuid,
    name: &MapperName,
    key: &Key,
    before: bool,
) -> Result<Formatted, DiskError> {
    let mapping = show(device, uuid, name, key).await?;
    let filled = inside(device, name, before).await;
    let closed = dm::remove(&device.tools, name, &mapping).await;
    let how = filled?;
    closed.map_err(|error| not_encrypted(device, &error.to_string()))?;
    Ok(how)
}

async fn inside(device: &Device, name: &MapperName, before: bool) -> Result<Formatted, DiskError> {
    let path = dm::node(name);
    let inside = Device::open(&path, To::Write, device.tools.directories(), device.tell).await?;
    if before {
        match inside.content().await? {
            Content::Blank => return Ok(Formatted::AlreadyThere),
            // The noise of a new one.
            Content::Unknown { copies, .. } if copies.is_empty() => {}
            found => {
                let what = format!("LUKS with the UUID that was intended, and in it {found}");
                let found = Content::Foreign { what };
                return Err(DiskError::NotBlank { path: device.path.clone(), found });
            }
        }
    }
    device.lasts(cryptsetup::LIMIT + LOOK);
    let written = places::blank(&inside.fd, inside.bytes).and_then(|()| rustix::fs::fsync(&device.fd));
    written.map_err(|e| not_encrypted(device, &format!("cannot write zeros: {e}")))?;
    match inside.content().await.map_err(|error| not_encrypted(device, &error.to_string()))? {
        Content::Blank => Ok(Formatted::Made),
        found => Err(not_encrypted(device, &format!("inside it was blanked, and has {found}"))),
    }
}

/// Opens a device under a name that nobody has.
async fn show(device: &Device, uuid: &FsUuid, name: &MapperName, key: &Key) -> Result<Mapping, DiskError> {
    const DOING: &str = "open the encryption of";
    let node = device.in_tools().display().to_string();
    let mut arguments = vec!["open", "--type", "luks2", "--key-file=-"];
    if device.sysfs.read_only().map_err(failed("look at", &device.path))? {
        arguments.push("--readonly");
    }
    arguments.extend([node.as_str(), name.as_str()]);
    device.lasts(cryptsetup::LIMIT + LOOK);
    let ended = cryptsetup::run(&device.tools, DOING, &device.path, &arguments, Some(key)).await?;
    match ended.status.code() {
        // Of two at once one comes too late.
        Some(0 | cryptsetup::EXISTS) => {}
        Some(cryptsetup::NO_PERMISSION) => return Err(DiskError::WrongKey { path: device.path.clone() }),
        _ => return Err(cryptsetup::unexpected(DOING, &device.path, &ended)),
    }
    match dm::find(&device.tools, name).await? {
        Some(mapping) if mapping.live && mapping.is_luks(uuid) && mapping.is_over(device.number)? => {
            mapping.has_node(name)?;
            Ok(mapping)
        }
        Some(mapping) => Err(other(name, format!("it has the device-mapper UUID {:?}", mapping.uuid))),
        None => Err(cryptsetup::unexpected(DOING, &device.path, &ended)),
    }
}

fn other(name: &MapperName, found: String) -> DiskError {
    DiskError::OtherMapping { path: dm::node(name), found }
}

/// Opens the recorded encryption of the recorded disk. Where it is open under this name already, the key is not looked at.
///
/// # Errors
/// Nothing is open that was not before.
pub(super) async fn open(
    device: &Device,
    identity: &DiskIdentity,
    uuid: &FsUuid,
    name: &MapperName,
    key: &Key,
) -> Result<LuksOpened, DiskError> {
    key_is_there(&device.path, key)?;
    device.must_be(identity)?;
    let opened = |already| LuksOpened { mapper: dm::node(name), already };
    match dm::find(&device.tools, name).await? {
        Some(there) if !there.is_luks(uuid) => {
            return Err(other(name, format!("it has the device-mapper UUID {:?}", there.uuid)));
        }
        // What a killed cryptsetup left.
        Some(there) if !there.live => dm::remove(&device.tools, name, &there).await?,
        Some(there) if there.is_over(device.number)? => {
            there.has_node(name)?;
            return Ok(opened(true));
        }
        Some(_) => return Err(other(name, "it lies on another device".to_owned())),
        None => {}
    }
    let looked = device.look().await?;
    if looked.luks.as_ref() != Some(uuid) {
        let found = match &looked.luks {
            Some(luks) => format!("LUKS with the UUID {luks}"),
            None => looked.content.to_string(),
        };
        let (path, recorded) = (device.path.clone(), uuid.clone());
        return Err(DiskError::OtherEncryption { path, recorded, found });
    }
    if let Some(holder) = device.sysfs.built_on().map_err(failed("look who has", &device.path))? {
        return Err(DiskError::InUse { path: device.path.clone(), holder });
    }
    show(device, uuid, name, key).await?;
    Ok(opened(false))
}

/// Closes the recorded encryption, if it is open: also where one that was killed had opened it to make it.
///
/// # Errors
/// `InUse`, `OtherMapping`: it is as it was.
pub(super) async fn close(tools: &Tools, name: &MapperName, uuid: &FsUuid) -> Result<(), DiskError> {
    for name in [&while_made(uuid)?, name] {
        match dm::find(tools, name).await? {
            None => {}
            Some(there) if there.is_luks(uuid) => dm::remove(tools, name, &there).await?,
            Some(there) => {
                return Err(other(name, format!("it has the device-mapper UUID {:?}", there.uuid)));
            }
        }
    }
    Ok(())
}

/// Lets an open device take all of what it lies on, where it does not.
///
/// # Errors
/// It can be done again.
pub(super) async fn grow(
    tools: &Tools,
    name: &MapperName,
    uuid: &FsUuid,
    key: &Key,
) -> Result<FsGrowth, DiskError> {
    const DOING: &str = "grow the encryption at";
    /// The largest unit in which it grows: a sector of its own.
    const SECTOR: u64 = 4096;
    let path = dm::node(name);
    key_is_there(&path, key)?;
    let mapping = match dm::find(tools, name).await? {
        Some(there) if there.live && there.is_luks(uuid) => there,
        Some(there) => return Err(other(name, format!("it has the device-mapper UUID {:?}", there.uuid))),
        None => return Err(other(name, "it is not open".to_owned())),
    };
    let offset = dm::offset(tools, name).await?;
    let (from, below) = mapping.bytes()?;
    let whole = |bytes: u64, below: u64| bytes.saturating_add(offset).saturating_add(SECTOR) > below;
    if whole(from, below) {
        return Ok(FsGrowth::Enough { bytes: from });
    }
    let arguments = ["resize", "--key-file=-", name.as_str()];
    let ended = cryptsetup::run(tools, DOING, &path, &arguments, Some(key)).await?;
    match ended.status.code() {
        Some(0) => {}
        Some(cryptsetup::NO_PERMISSION) => return Err(DiskError::WrongKey { path }),
        _ => return Err(cryptsetup::unexpected(DOING, &path, &ended)),
    }
    let (bytes, below) = mapping.bytes()?;
    if whole(bytes, below) {
        return Ok(FsGrowth::Grown { from, bytes });
    }
    Err(DiskError::NotWhole { path, bytes, device: below })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FileSystem, FsKind, Mark};

    #[test]
    fn only_a_blank_device_or_what_our_own_luks_format_left_is_encrypted() {
        let uuid = |digit| FsUuid::from_bytes([digit; 16]);
        let intent = |begun, mark: Mark| LuksIntent {
            uuid: uuid(1),
            identity: DiskIdentity { marks: [(mark, "x".to_owned())].into() },
            least_bytes: 0,
            begun,
        };
        let looked = |content| Looked { content, luks: None };
        let luks = |digit| {
            let content = Content::Foreign { what: "something of the type crypto_LUKS".to_owned() };
            Looked { content, luks: Some(uuid(digit)) }
        };
        let file_system = FileSystem { kind: FsKind::Ext4, uuid: uuid(1) };
        let unknown = |copies: &[FileSystem]| looked(Content::Unknown { at: 1, copies: copies.to_vec() });
        for (looked, fresh, begun, begun_nameless) in [
            (looked(Content::Blank), Verdict::Make, Verdict::Make, Verdict::Make),
            (luks(1), Verdict::Refuse, Verdict::Finish, Verdict::Finish),
            (luks(2), Verdict::Refuse, Verdict::Refuse, Verdict::Refuse),
            (unknown(&[]), Verdict::Refuse, Verdict::Make, Verdict::Unproven),
            (unknown(std::slice::from_ref(&file_system)), Verdict::Refuse, Verdict::Refuse, Verdict::Refuse),
            (
                looked(Content::FileSystem(file_system.clone())),
                Verdict::Refuse,
                Verdict::Refuse,
                Verdict::Refuse,
            ),
            (looked(Content::Unfinished(file_system)), Verdict::Refuse, Verdict::Refuse, Verdict::Refuse),
            (
                looked(Content::Foreign { what: "x".to_owned() }),
                Verdict::Refuse,
                Verdict::Refuse,
                Verdict::Refuse,
            ),
            (
                looked(Content::Unclear { why: "x".to_owned() }),
                Verdict::Refuse,
                Verdict::Refuse,
                Verdict::Refuse,
            ),
        ] {
            assert_eq!(verdict(&looked, &intent(false, Mark::Serial)), fresh, "{looked:?}");
            assert_eq!(verdict(&looked, &intent(true, Mark::Serial)), begun, "{looked:?}, begun");
            assert_eq!(verdict(&looked, &intent(true, Mark::Name)), begun_nameless, "{looked:?}, nameless");
        }
    }
}
