//! What the child process does with a device, and how it is asked and answers.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::options::read_only;
use super::device::{Device, To};
use super::error::{DiskError, failed};
use super::mount::At;
use super::{DiskMounted, format, mount, show};
use crate::model::{DiskIdentity, DiskMount, FileSystem, Formatted, FsGrowth, Inspected, Intent, RootPath};

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

/// What was done.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::host) enum Answer {
    /// Of `Work::Inspect`.
    Inspected(Inspected),
    /// Of `Work::Format`.
    Formatted(Formatted),
    /// Of `Work::Mount`.
    Mounted(DiskMounted),
    /// Of `Work::Show`.
    Shown,
    /// Of `Work::Grow`.
    Grown(FsGrowth),
}

/// Does what is asked. `tell` hears how long what comes next may last.
///
/// # Errors
/// As the operation.
pub(in crate::host) fn answer(ask: Ask, tell: fn(Duration)) -> Result<Answer, DiskError> {
    let path = PathBuf::from(&ask.device);
    // One thread: the tools die with the thread that starts them.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed("begin to work on", &path))?;
    runtime.block_on(work(&path, ask, tell))
}

async fn work(path: &Path, ask: Ask, tell: fn(Duration)) -> Result<Answer, DiskError> {
    let to = match &ask.work {
        Work::Inspect | Work::Show { .. } | Work::Grow { .. } => To::Read,
        Work::Mount { mount, .. } if mount.read_only || read_only(&mount.options) => To::Read,
        Work::Format(_) | Work::Mount { .. } => To::Write,
    };
    let tools_in = ask.tools_in.into_iter().map(PathBuf::from).collect();
    let device = Device::open(path, to, tools_in, tell).await?;
    match ask.work {
        Work::Inspect => device.inspect().await.map(Answer::Inspected),
        Work::Format(intent) => format::format(&device, &intent).await.map(Answer::Formatted),
        Work::Mount { mount, root, at } => {
            mount::mount(&device, &mount, &place(root, at)?).await.map(Answer::Mounted)
        }
        Work::Show { identity, root, at } => {
            show::show(&device, &identity, &place(root, at)?).map(|()| Answer::Shown)
        }
        Work::Grow { identity, file_system, root, at } => {
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
