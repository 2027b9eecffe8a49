//! The daemon's side: what `Host` promises of disks, each operation made by a child process.

use std::path::PathBuf;

use super::super::{HostError, Linux};
use super::{Answer, Ask, DiskGrowth, DiskMounted, Work};
use crate::model::{DiskIdentity, DiskMount, Formatted, FsGrowth, Inspected, Intent, RootPath};

impl Linux {
    /// As `Host::inspect_disk`.
    ///
    /// # Errors
    /// As there.
    pub(in crate::host) async fn inspect(&self, device: PathBuf) -> Result<Inspected, HostError> {
        match self.on_disk(device, Work::Inspect).await? {
            Answer::Inspected(found) => Ok(found),
            other => Err(wrong(&other)),
        }
    }

    /// As `Host::format_disk`.
    ///
    /// # Errors
    /// As there.
    pub(in crate::host) async fn format(
        &self,
        device: PathBuf,
        intent: Intent,
    ) -> Result<Formatted, HostError> {
        match self.on_disk(device, Work::Format(intent)).await? {
            Answer::Formatted(how) => Ok(how),
            other => Err(wrong(&other)),
        }
    }

    /// As `Host::mount_disk`.
    ///
    /// # Errors
    /// As there.
    pub(in crate::host) async fn mount(
        &self,
        device: PathBuf,
        mount: DiskMount,
        at: RootPath,
    ) -> Result<DiskMounted, HostError> {
        let work = Work::Mount { mount, root: self.root().into(), at: at.as_path().into() };
        match self.on_disk(device, work).await? {
            Answer::Mounted(mounted) => Ok(mounted),
            other => Err(wrong(&other)),
        }
    }

    /// As `Host::show_disk`.
    ///
    /// # Errors
    /// As there.
    pub(in crate::host) async fn show(
        &self,
        device: PathBuf,
        identity: DiskIdentity,
        at: RootPath,
    ) -> Result<(), HostError> {
        let work = Work::Show { identity, root: self.root().into(), at: at.as_path().into() };
        match self.on_disk(device, work).await? {
            Answer::Shown => Ok(()),
            other => Err(wrong(&other)),
        }
    }

    /// As `Host::grow_disk`.
    ///
    /// # Errors
    /// As there.
    pub(in crate::host) async fn grow(&self, growth: DiskGrowth) -> Result<FsGrowth, HostError> {
        let DiskGrowth { device, identity, file_system, at } = growth;
        let work = Work::Grow { identity, file_system, root: self.root().into(), at: at.as_path().into() };
        match self.on_disk(device, work).await? {
            Answer::Grown(grown) => Ok(grown),
            other => Err(wrong(&other)),
        }
    }

    pub(super) async fn on_disk(&self, device: PathBuf, work: Work) -> Result<Answer, HostError> {
        let tools_in = self.tools_in().iter().map(Into::into).collect();
        self.programs().disk(Ask { tools_in, device: device.into(), work }).await
    }
}

pub(super) fn wrong(answer: &Answer) -> HostError {
    HostError::Io {
        doing: "understand",
        path: "the child process".into(),
        source: std::io::Error::other(format!("it gave an answer to something else: {answer:?}")),
    }
}
