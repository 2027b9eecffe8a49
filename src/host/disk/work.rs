//! What the child process does with a device, and how it is asked and answers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::exec::Tools;
use super::super::options::read_only;
use super::device::{Device, Opinions, To};
use super::error::{DiskError, failed};
use super::mount::At;
use super::{DiskMounted, LuksOpened, cryptsetup, format, luks, mount, show};
use crate::model::{
    DiskIdentity, DiskMount, FileSystem, Formatted, FsGrowth, FsUuid, Inspected, Intent, LuksIntent,
    MapperName, RootPath, Secret,
};

/// What is asked of the child.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::host) struct Ask {
    /// Where its tools are looked for.
    pub(in crate::host) tools_in: Vec<OsString>,
    /// The device.
    pub(in crate::host) device: OsString,
    pub(in crate::host) work: Work,
}

/// What is to be done.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::host) enum Work {
    /// `Host::inspect_disk`
    Inspect,
    /// `Host::format_disk`
    Format(Intent),
    /// `Host::mount_disk`
    Mount {
        /// What.
        mount: DiskMount,
        /// The root directory: absolute, without symlinks.
        root: OsString,
        /// Where, below it.
        at: OsString,
    },
    /// `Host::show_disk`
    Show {
        /// Which disk was recorded.
        identity: DiskIdentity,
        /// As for `Mount`.
        root: OsString,
        /// As for `Mount`.
        at: OsString,
    },
    /// `EncryptedDisks::format_luks`
    FormatLuks {
        /// What.
        intent: LuksIntent,
        /// With which key.
        key: Key,
    },
    /// `EncryptedDisks::open_luks`
    OpenLuks {
        /// Which disk was recorded.
        identity: DiskIdentity,
        /// Which header was recorded.
        uuid: FsUuid,
        /// Under which name.
        name: MapperName,
        /// With which key.
        key: Key,
    },
    /// `EncryptedDisks::close_luks`
    CloseLuks {
        /// What.
        name: MapperName,
        /// Which header was recorded.
        uuid: FsUuid,
    },
    /// `EncryptedDisks::grow_luks`
    GrowLuks {
        /// What.
        name: MapperName,
        /// Which header was recorded.
        uuid: FsUuid,
        /// With which key.
        key: Key,
    },
    /// `Host::grow_disk`
    Grow {
        /// Which disk was recorded.
        identity: DiskIdentity,
        /// Which file system was recorded.
        file_system: FileSystem,
        /// As for `Mount`.
        root: OsString,
        /// As for `Mount`.
        at: OsString,
    },
}

impl Work {
    /// Returns whether it comes with a key.
    pub(in crate::host) fn has_key(&self) -> bool {
        match self {
            Self::FormatLuks { .. } | Self::OpenLuks { .. } | Self::GrowLuks { .. } => true,
            Self::Inspect
            | Self::Format(_)
            | Self::Mount { .. }
            | Self::Show { .. }
            | Self::CloseLuks { .. }
            | Self::Grow { .. } => false,
        }
    }
}

/// A key on its way to the child, through the pipe between the two: nothing else ever writes it as text.
#[derive(Serialize, Deserialize)]
pub(in crate::host) struct Key(Vec<u8>);

impl Key {
    /// Takes a secret.
    pub(super) fn of(secret: &Secret) -> Self {
        Self(secret.reveal().to_vec())
    }

    /// Returns it: for cryptsetup.
    pub(super) fn reveal(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("***")
    }
}

/// What was done.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::host) enum Answer {
    /// Of `Work::Inspect`.
    Inspected(Inspected),
    /// Of `Work::Format` and `Work::FormatLuks`.
    Formatted(Formatted),
    /// Of `Work::Mount`.
    Mounted(DiskMounted),
    /// Of `Work::Show`.
    Shown,
    /// Of `Work::Grow` and `Work::GrowLuks`.
    Grown(FsGrowth),
    /// Of `Work::OpenLuks`.
    Opened(LuksOpened),
    /// Of `Work::CloseLuks`.
    Closed,
}

/// Does what is asked. `tell` hears how long what comes next may last. `before` is what the last one that was asked of this process
/// found, if it only looked.
///
/// # Errors
/// As the operation.
pub(in crate::host) fn answer(
    ask: Ask,
    before: &mut Option<Opinions>,
    tell: fn(Duration),
) -> Result<Answer, DiskError> {
    let path = PathBuf::from(&ask.device);
    // One thread: the tools die with the thread that starts them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("begin to work on", &path))?;
    runtime.block_on(work(&path, ask, before, tell))
}

async fn work(
    path: &Path,
    ask: Ask,
    memory: &mut Option<Opinions>,
    tell: fn(Duration),
) -> Result<Answer, DiskError> {
    let before = memory.take();
    let directories: Arc<[PathBuf]> = ask.tools_in.into_iter().map(PathBuf::from).collect();
    let device = |to| Device::open(path, to, Arc::clone(&directories), tell);
    // What is open already is known by its name: no device is opened, and so none is locked.
    let tools = || {
        tell(cryptsetup::LIMIT);
        Tools::holding(Vec::new(), Arc::clone(&directories))
    };
    match ask.work {
        Work::Inspect => {
            let (found, opinions) = device(To::Read).await?.inspect().await?;
            *memory = opinions;
            Ok(Answer::Inspected(found))
        }
        Work::Format(intent) => {
            format::format(&device(To::Write).await?, &intent).await.map(Answer::Formatted)
        }
        Work::FormatLuks { intent, key } => {
            luks::format(&device(To::Write).await?, &intent, &key).await.map(Answer::Formatted)
        }
        Work::OpenLuks { identity, uuid, name, key } => {
            let device = device(To::Read).await?;
            luks::open(&device, &identity, &uuid, &name, &key).await.map(Answer::Opened)
        }
        Work::CloseLuks { name, uuid } => luks::close(&tools(), &name, &uuid).await.map(|()| Answer::Closed),
        Work::GrowLuks { name, uuid, key } => {
            luks::grow(&tools(), &name, &uuid, &key).await.map(Answer::Grown)
        }
        Work::Mount { mount, root, at } => {
            let reads = mount.read_only || read_only(&mount.options);
            let device = device(if reads { To::Read } else { To::Write }).await?;
            mount::mount(&device, &mount, &place(root, at)?, before).await.map(Answer::Mounted)
        }
        Work::Show { identity, root, at } => {
            show::show(&device(To::Read).await?, &identity, &place(root, at)?).map(|()| Answer::Shown)
        }
        Work::Grow { identity, file_system, root, at } => {
            let device = device(To::Read).await?;
            device.must_be(&identity)?;
            mount::grow(&device, &file_system, &place(root, at)?).await.map(Answer::Grown)
        }
    }
}

fn place(root: OsString, at: OsString) -> Result<At, DiskError> {
    let path = RootPath::new(&at).ok_or_else(|| DiskError::Failed {
        doing: "use".to_owned(),
        path: at.into(),
        why: "it does not lie below the root directory".to_owned(),
    })?;
    Ok(At { root: root.into(), path })
}
