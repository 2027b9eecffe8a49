//! Formatting, by design 6 rule 2: on any doubt nothing is written.

use std::ffi::OsString;

use super::super::grow::package;
use super::check;
use super::device::{Device, Looked};
use super::error::{DiskError, failed};
use super::superblock::Mkfs;
use super::{LOOK, limit, places};
use crate::model::{Content, DiskIdentity, FileSystem, Formatted, FsKind, Intent};

/// What a device may have on it and be formatted.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// mkfs.
    Make,
    /// It seems to have been made with this intent: to be checked, then left as it is.
    Made,
    /// It may be what our mkfs left, and another disk's data just as well.
    Unproven,
    /// Neither.
    Refuse,
}

/// Makes the file system of an intent. Before mkfs everything is looked at twice; afterwards what was made is read back.
///
/// # Errors
/// Nothing was written, unless `DiskError::may_have_written`.
pub(super) async fn format(device: &Device, intent: &Intent) -> Result<Formatted, DiskError> {
    let path = || device.path.clone();
    let looked = may_be_written(device, &intent.identity, intent.least_bytes).await?;
    let first = looked.content.clone();
    let make = match verdict(&first, intent) {
        Verdict::Make => true,
        Verdict::Refuse => false,
        Verdict::Unproven => {
            let identity = intent.identity.clone();
            return Err(DiskError::Unproven { path: path(), found: first, identity });
        }
        Verdict::Made if check::is_whole(device, intent.file_system.kind).await? => {
            // Of an mkfs that was killed at its end nothing may be on the disk yet, and it counts as formatted from here on.
            write_out(device)?;
            return Ok(Formatted::AlreadyThere);
        }
        // A power cut can leave the superblock, which is written last, and not what was written before it.
        Verdict::Made => nobody_mounted(device, intent.file_system.kind)?,
    };
    if !make {
        return Err(DiskError::NotBlank { path: path(), found: first });
    }
    is_still(device, &intent.identity, &looked).await?;
    make_it(device, &intent.file_system, intent.begun).await?;
    let found = device.content().await.map_err(|e| not_made(device, e.to_string()))?;
    if found != Content::FileSystem(intent.file_system.clone()) {
        return Err(DiskError::MadeWrong { path: path(), asked: intent.file_system.clone(), found });
    }
    write_out(device)?;
    Ok(Formatted::Made)
}

/// The first look: refuses what is not the device that was meant, or is somebody's. Returns what is on it.
///
/// # Errors
/// Nothing was written.
pub(super) async fn may_be_written(
    device: &Device,
    identity: &DiskIdentity,
    least: u64,
) -> Result<Looked, DiskError> {
    let path = || device.path.clone();
    device.must_be(identity)?;
    if device.bytes < least {
        return Err(DiskError::TooSmall { path: path(), bytes: device.bytes, least });
    }
    if device.sysfs.read_only().map_err(failed("look at", &device.path))? {
        return Err(DiskError::ReadOnly { path: path() });
    }
    device.must_be_free().await?;
    device.look().await
}

/// The second look, last of all before something is written.
///
/// # Errors
/// Nothing was written.
pub(super) async fn is_still(
    device: &Device,
    identity: &DiskIdentity,
    first: &Looked,
) -> Result<(), DiskError> {
    device.must_be_free().await?;
    device.must_be(identity)?;
    // Whoever had it open meanwhile has gone: only then it is written to.
    let then = device.look().await?;
    if then == *first {
        return Ok(());
    }
    let first = first.content.clone();
    Err(DiskError::Changed { path: device.path.clone(), first, then: then.content })
}

fn write_out(device: &Device) -> Result<(), DiskError> {
    rustix::fs::fsync(&device.fd).map_err(|e| not_made(device, format!("cannot write it out: {e}")))
}

/// Decides by what is on a device. An mkfs that was begun explains what it may have left: nothing, an unfinished file system of
/// its UUID, or bytes without a signature that belong to nobody else. Whether they do is known only by a copy of our own
/// superblock, or where the disk cannot be another: under a name of today, or in a file that was replaced, they may be
/// somebody's data.
fn verdict(content: &Content, intent: &Intent) -> Verdict {
    let ours = |found: &FileSystem| *found == intent.file_system;
    match content {
        Content::Blank => Verdict::Make,
        Content::Unfinished(found) if intent.begun && ours(found) => Verdict::Make,
        Content::Unknown { copies, .. }
            if intent.begun && copies.iter().all(|copy| is_copy(copy, intent)) =>
        {
            let proven = !copies.is_empty() || intent.identity.is_one_disk_s();
            if proven { Verdict::Make } else { Verdict::Unproven }
        }
        Content::FileSystem(found) if intent.begun && ours(found) => Verdict::Made,
        Content::FileSystem(_)
        | Content::Unfinished(_)
        | Content::Unknown { .. }
        | Content::Foreign { .. }
        | Content::Unclear { .. } => Verdict::Refuse,
    }
}

/// ext3 and ext4 are told apart by features that a copy may not have yet.
fn is_copy(copy: &FileSystem, intent: &Intent) -> bool {
    let is_ext = |kind| matches!(kind, FsKind::Ext3 | FsKind::Ext4);
    let asked = &intent.file_system;
    copy.uuid == asked.uuid && (copy.kind == asked.kind || is_ext(copy.kind) && is_ext(asked.kind))
}

fn nobody_mounted(device: &Device, kind: FsKind) -> Result<bool, DiskError> {
    let superblock = places::superblock(&device.fd, kind).map_err(failed("read", &device.path))?;
    Ok(superblock.is_some_and(|found| found.mkfs == Mkfs::WroteThisAndNobodyMounted))
}

/// Runs mkfs with a kubelet's flags and our UUID (kubelet.md 4.11).
async fn make_it(device: &Device, file_system: &FileSystem, again: bool) -> Result<(), DiskError> {
    let uuid = file_system.uuid.as_str();
    let mut arguments: Vec<OsString> = match file_system.kind {
        FsKind::Ext3 | FsKind::Ext4 => ["-F", "-m0", "-U", uuid].map(OsString::from).into(),
        FsKind::Xfs => vec!["-f".into(), "-m".into(), format!("uuid={uuid}").into()],
        FsKind::Btrfs => ["-U", uuid].map(OsString::from).into(),
    };
    if again && file_system.kind == FsKind::Btrfs {
        arguments.push("-f".into());
    }
    arguments.push(device.in_tools().into());
    let name = format!("mkfs.{}", file_system.kind);
    let tool = device.tools.tool(&name, package(file_system.kind))?;
    let limit = limit(device.bytes);
    device.lasts(limit + LOOK);
    let ended = device.tools.run("make a file system on", &device.path, &tool, arguments, limit).await;
    let ended = ended.map_err(|e| not_made(device, DiskError::from(e).to_string()))?;
    if ended.status.success() {
        return Ok(());
    }
    Err(not_made(device, format!("{name}: {}: {}", ended.status, ended.said)))
}

fn not_made(device: &Device, said: String) -> DiskError {
    DiskError::NotMade { path: device.path.clone(), said }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FsUuid, Mark};

    #[test]
    fn only_a_blank_device_or_what_our_own_mkfs_left_is_formatted() {
        let uuid = |digit: &str| FsUuid::new(&format!("0000000{digit}-0000-4000-8000-000000000000")).unwrap();
        let of = |kind, digit| FileSystem { kind, uuid: uuid(digit) };
        let ours = of(FsKind::Ext4, "1");
        let intent = |begun, mark: Mark| Intent {
            file_system: ours.clone(),
            identity: DiskIdentity { marks: [(mark, "x".to_owned())].into() },
            least_bytes: 0,
            begun,
        };
        let unknown = |copies: &[FileSystem]| Content::Unknown { at: 7, copies: copies.to_vec() };
        let foreign = Content::Foreign { what: "x".to_owned() };
        let unclear = Content::Unclear { why: "x".to_owned() };
        let other = of(FsKind::Ext4, "2");
        for (content, fresh, begun) in [
            (Content::Blank, Verdict::Make, Verdict::Make),
            (Content::FileSystem(ours.clone()), Verdict::Refuse, Verdict::Made),
            (Content::FileSystem(other.clone()), Verdict::Refuse, Verdict::Refuse),
            (Content::FileSystem(of(FsKind::Xfs, "1")), Verdict::Refuse, Verdict::Refuse),
            (Content::Unfinished(ours.clone()), Verdict::Refuse, Verdict::Make),
            (Content::Unfinished(other.clone()), Verdict::Refuse, Verdict::Refuse),
            (unknown(&[of(FsKind::Ext3, "1")]), Verdict::Refuse, Verdict::Make),
            (unknown(&[ours.clone(), other]), Verdict::Refuse, Verdict::Refuse),
            (unknown(&[of(FsKind::Btrfs, "1")]), Verdict::Refuse, Verdict::Refuse),
            (foreign, Verdict::Refuse, Verdict::Refuse),
            (unclear, Verdict::Refuse, Verdict::Refuse),
        ] {
            for mark in [Mark::Serial, Mark::Name] {
                assert_eq!(verdict(&content, &intent(false, mark)), fresh, "{content} {mark:?}");
                assert_eq!(verdict(&content, &intent(true, mark)), begun, "{content} {mark:?}, begun");
            }
        }
    }

    #[test]
    fn bytes_that_nobody_knows_are_ours_only_on_a_disk_that_can_be_no_other() {
        let file_system = FileSystem { kind: FsKind::Ext4, uuid: FsUuid::from_bytes([1; 16]) };
        let content = Content::Unknown { at: 4096, copies: Vec::new() };
        for (marks, expected) in [
            (&[Mark::Wwid][..], Verdict::Make),
            (&[Mark::Serial], Verdict::Make),
            (&[Mark::Serial, Mark::Partition], Verdict::Make),
            (&[Mark::DmUuid], Verdict::Make),
            (&[Mark::MdUuid], Verdict::Make),
            (&[Mark::Backend], Verdict::Make),
            (&[Mark::BackingFile], Verdict::Unproven),
            (&[Mark::BackingFile, Mark::Partition], Verdict::Unproven),
            (&[Mark::Partition, Mark::Name], Verdict::Unproven),
            (&[Mark::Name], Verdict::Unproven),
            (&[], Verdict::Unproven),
        ] {
            let marks = marks.iter().map(|mark| (*mark, "x".to_owned())).collect();
            let identity = DiskIdentity { marks };
            let intent = Intent { file_system: file_system.clone(), identity, least_bytes: 0, begun: true };
            assert_eq!(verdict(&content, &intent), expected, "{}", intent.identity);
        }
    }
}
