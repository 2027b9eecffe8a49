//! What the host does with encrypted disks: a part of `Host` with a name of its own.

use std::fmt::Debug;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::linux::wrong;
use super::work::Key;
use super::{Answer, Work, dm};
use crate::BoxFuture;
use crate::host::{HostError, Linux};
use crate::model::{DiskIdentity, Formatted, FsGrowth, FsUuid, LuksIntent, MapperName, Secret};

/// Disks that are encrypted at rest: LUKS2, whose key comes from a Secret or a credential. What is open under a name is a disk like any other,
/// which `Host::inspect_disk`, `format_disk`, `mount_disk` and `grow_disk` take by its node.
pub trait EncryptedDisks: Send + Sync + Debug {
    /// Encrypts a device that nobody has, as the intent in the record, synced, says, if it is blank or has only what an
    /// encryption with this intent left (design 6, rule 2). Afterwards it is closed, and blank inside. Dropped, cryptsetup is
    /// killed. May be called again with the same intent, then `begun`; `Formatted::AlreadyThere`: it was whole, opened with
    /// this key, and had nothing in it yet.
    ///
    /// Errors: as of `Host::format_disk`: `HostError::may_have_written`. `DiskError::WrongKey`: what was begun was begun with
    /// another key.
    fn format_luks(
        &self,
        device: PathBuf,
        intent: LuksIntent,
        key: Secret,
    ) -> BoxFuture<'_, Result<Formatted, HostError>>;

    /// Opens the recorded encryption of the recorded disk under a name. Where it is open under this name, on this device, that
    /// is left, and the key not looked at. Of a device that is read-only what is open is too.
    ///
    /// Errors: `Disk`; nothing is open that was not before. `DiskError::WrongKey` has no key in its words. After any other error
    /// it is not known: `close_luks` undoes it.
    fn open_luks(
        &self,
        device: PathBuf,
        identity: DiskIdentity,
        uuid: FsUuid,
        name: MapperName,
        key: Secret,
    ) -> BoxFuture<'_, Result<LuksOpened, HostError>>;

    /// Closes the recorded encryption that is open under a name; where nothing is, that is fine.
    ///
    /// Errors: `Disk`: `InUse`, or `OtherMapping`: the name is another's. It is as it was.
    fn close_luks(&self, name: MapperName, uuid: FsUuid) -> BoxFuture<'_, Result<(), HostError>>;

    /// Lets what is open under a name take all of its device, where it does not; its size is read back. The file system in it
    /// comes after that. The key is not looked at where there is nothing to grow.
    ///
    /// Errors: `Disk`. It can be done again.
    fn grow_luks(
        &self,
        name: MapperName,
        uuid: FsUuid,
        key: Secret,
    ) -> BoxFuture<'_, Result<FsGrowth, HostError>>;
}

/// An encryption that is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LuksOpened {
    /// The node of what is inside.
    pub mapper: PathBuf,
    /// It was open there already.
    pub already: bool,
}

impl EncryptedDisks for Linux {
    fn format_luks(
        &self,
        device: PathBuf,
        intent: LuksIntent,
        key: Secret,
    ) -> BoxFuture<'_, Result<Formatted, HostError>> {
        Box::pin(async move {
            match self.on_disk(device, Work::FormatLuks { intent, key: Key::of(&key) }).await? {
                Answer::Formatted(how) => Ok(how),
                other => Err(wrong(&other)),
            }
        })
    }

    fn open_luks(
        &self,
        device: PathBuf,
        identity: DiskIdentity,
        uuid: FsUuid,
        name: MapperName,
        key: Secret,
    ) -> BoxFuture<'_, Result<LuksOpened, HostError>> {
        Box::pin(async move {
            let work = Work::OpenLuks { identity, uuid, name, key: Key::of(&key) };
            match self.on_disk(device, work).await? {
                Answer::Opened(opened) => Ok(opened),
                other => Err(wrong(&other)),
            }
        })
    }

    fn close_luks(&self, name: MapperName, uuid: FsUuid) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            match self.on_disk(dm::node(&name), Work::CloseLuks { name, uuid }).await? {
                Answer::Closed => Ok(()),
                other => Err(wrong(&other)),
            }
        })
    }

    fn grow_luks(
        &self,
        name: MapperName,
        uuid: FsUuid,
        key: Secret,
    ) -> BoxFuture<'_, Result<FsGrowth, HostError>> {
        Box::pin(async move {
            let work = Work::GrowLuks { uuid, key: Key::of(&key), name: name.clone() };
            match self.on_disk(dm::node(&name), work).await? {
                Answer::Grown(grown) => Ok(grown),
                other => Err(wrong(&other)),
            }
        })
    }
}
