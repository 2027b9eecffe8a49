//! Decides from both opinions what is on a device. Nothing is blank that either of them doubts.

use super::blkid::{Said, Signature};
use super::places::Look;
use super::superblock::Mkfs;
use crate::model::{Content, FsKind, FsUuid};

/// Decides what is on a device.
pub(super) fn content(said: &Said, look: &Look) -> Content {
    match said {
        Said::Unclear(why) => Content::Unclear { why: why.clone() },
        Said::Found(signature) => known(signature, look),
        Said::Nothing => unknown(look),
    }
}

/// Returns the UUID of the LUKS header on a device, and on that alone. Its content is `Foreign` all the same: whose it is, only
/// a record can tell.
pub(super) fn luks(said: &Said) -> Option<FsUuid> {
    match said {
        Said::Found(Signature { kind: Some(kind), table: None, uuid }) if kind == "crypto_LUKS" => {
            uuid.clone()
        }
        Said::Found(_) | Said::Nothing | Said::Unclear(_) => None,
    }
}

/// blkid found something.
fn known(signature: &Signature, look: &Look) -> Content {
    // A table beside a file system is a kubelet's "unknown data, probably partitions" (kubelet.md 4.11).
    if let Some(table) = &signature.table {
        return Content::Foreign { what: format!("a partition table ({table})") };
    }
    let Some(name) = &signature.kind else {
        return Content::Unclear { why: "blkid names no type".to_owned() };
    };
    let Some(kind) = FsKind::of(name) else {
        return Content::Foreign { what: format!("something of the type {name}") };
    };
    let read = look.superblock(kind).filter(|one| Some(&one.file_system.uuid) == signature.uuid.as_ref());
    let Some(read) = read else {
        return Content::Unclear {
            why: format!(
                "blkid finds {name}, and its superblock is not where it belongs or has another UUID"
            ),
        };
    };
    // What blkid calls an ext3 or ext4 is that: it knows more of their features.
    let found = crate::model::FileSystem { kind, ..read.file_system };
    match read.mkfs {
        Mkfs::AtWork => Content::Unfinished(found),
        Mkfs::Done | Mkfs::WroteThisAndNobodyMounted => Content::FileSystem(found),
    }
}

/// blkid found nothing, or could not look.
fn unknown(look: &Look) -> Content {
    let Some(at) = look.not_zero() else { return Content::Blank };
    let superblocks = look.superblocks();
    match superblocks.as_slice() {
        [] => {}
        [one] if one.mkfs == Mkfs::AtWork => return Content::Unfinished(one.file_system.clone()),
        [one, ..] => {
            return Content::Unclear {
                why: format!("blkid finds nothing, and there is a superblock of {}", one.file_system),
            };
        }
    }
    match look.foreign() {
        Some(what) => Content::Foreign { what: what.to_owned() },
        None => Content::Unknown { at, copies: look.copies() },
    }
}
