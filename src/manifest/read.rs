//! One file -> its text, whole or not at all. Whatever is named `x.yaml` is looked at before it is opened.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crate::host::lease::{self, Lease};

/// The largest manifest that is read, in bytes.
const LIMIT: u64 = 1 << 20;

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Stamp {
    pub(super) fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            mode: metadata.mode(),
            uid: metadata.uid(),
            gid: metadata.gid(),
        }
    }

    /// Returns whether another write may have left the same stamp: kernels before 6.13 stamp files once per timer tick.
    /// `now_ms`: when the reading began; what was written since then was written just now.
    pub(super) fn is_fresh(&self, now_ms: i64) -> bool {
        let changed = self.changed.0.saturating_mul(1000).saturating_add(self.changed.1 / 1_000_000);
        now_ms.saturating_sub(changed) < 20
    }
}

/// Why a file could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unread {
    /// Somebody is writing it: it is tried again soon.
    pub(super) writing: bool,
    pub(super) detail: String,
    pub(super) remedy: String,
}

impl Unread {
    fn new(detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { writing: false, detail: detail.into(), remedy: remedy.into() }
    }

    fn io(doing: &str, error: &io::Error) -> Self {
        if error.kind() == io::ErrorKind::NotFound {
            return Self::new(
                "is a symlink that leads nowhere",
                "make its target, or remove the link, or run `volumectl approve`",
            );
        }
        Self::new(
            format!("cannot be {doing}: {error}"),
            "make it readable, or remove it, or run `volumectl approve`",
        )
    }

    fn writing() -> Self {
        Self {
            writing: true,
            detail: "is being written".to_owned(),
            remedy: "nothing to do; if it stays so, find the writer with `fuser -v`".to_owned(),
        }
    }
}

/// Looks at what a path leads to, symlinks followed, without opening it.
pub(super) fn look(path: &Path) -> Result<(File, Stamp), Unread> {
    let file = lease::open_untouched(path).map_err(|e| Unread::io("opened", &e))?;
    let metadata = file.metadata().map_err(|e| Unread::io("looked at", &e))?;
    Ok((file, Stamp::of(&metadata)))
}

/// Reads a file that was looked at. `owner` is accepted besides root.
pub(super) fn read(untouched: &File, before: &Stamp, owner: u32) -> Result<Vec<u8>, Unread> {
    regular(untouched)?;
    trusted(before, owner)?;
    if before.size > LIMIT {
        return Err(Unread::new(
            format!("has {} bytes; a manifest may have 1048576", before.size),
            "split it into smaller files",
        ));
    }
    let mut file = match lease::open_for_reading(untouched) {
        // A write lease of somebody: he is asked to give it back, which takes a moment.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(Unread::writing()),
        opened => opened.map_err(|e| Unread::io("opened", &e))?,
    };
    free_of_writers(&file)?;
    let mut bytes = Vec::with_capacity(usize::try_from(before.size).unwrap_or(0));
    (&mut file).take(LIMIT + 1).read_to_end(&mut bytes).map_err(|e| Unread::io("read", &e))?;
    // A writer may have come after the first probe: he still has it, or it has another stamp.
    free_of_writers(&file)?;
    let after = Stamp::of(&file.metadata().map_err(|e| Unread::io("looked at", &e))?);
    if after != *before || u64::try_from(bytes.len()) != Ok(before.size) {
        return Err(Unread::writing());
    }
    Ok(bytes)
}

fn free_of_writers(file: &File) -> Result<(), Unread> {
    match lease::probe(file).map_err(|e| Unread::io("probed for writers", &e))? {
        Lease::Granted | Lease::Unsupported => Ok(()),
        Lease::Refused => Err(Unread::writing()),
    }
}

fn regular(file: &File) -> Result<(), Unread> {
    let kind = file.metadata().map_err(|e| Unread::io("looked at", &e))?.file_type();
    let what = if kind.is_file() {
        return Ok(());
    } else if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a FIFO"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(Unread::new(
        format!("is {what}, not a regular file"),
        "remove it or give it another name, or run `volumectl approve`",
    ))
}

/// Design rule 9: a manifest that others than root can write is not root's word.
fn trusted(stamp: &Stamp, owner: u32) -> Result<(), Unread> {
    if let Some(why) = untrusted(stamp.uid, stamp.gid, stamp.mode, owner) {
        return Err(Unread::new(
            why,
            "make it root's and writable by root alone: `chown root:root`, `chmod 0644`",
        ));
    }
    Ok(())
}

/// Says why something with this owner and mode is not to be trusted.
pub(super) fn untrusted(uid: u32, gid: u32, mode: u32, owner: u32) -> Option<String> {
    if uid != 0 && uid != owner {
        return Some(format!("belongs to uid {uid}, who is not root"));
    }
    if mode & 0o002 != 0 {
        return Some(format!("can be written by everyone (mode {:04o})", mode & 0o7777));
    }
    if mode & 0o020 != 0 && gid != 0 {
        return Some(format!("can be written by group {gid} (mode {:04o})", mode & 0o7777));
    }
    None
}
