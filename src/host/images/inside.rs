//! What is asked of a mounted volume's content: in a child process, since a file system may not answer.

use std::path::Path;

use rustix::fs::OFlags;

use super::super::child::Place;
use super::super::path::Root;
use super::super::{HostError, NoUsage, Progress, Usage};
use super::file::open;
use super::{Images, Seen, failed};
use crate::model::{Ownership, RootPath};

impl Images {
    /// Looks how what is mounted at a path is mounted.
    ///
    /// # Errors
    /// `Io`.
    pub async fn seen(&self, at: &Path) -> Result<Seen, HostError> {
        let path = at.to_owned();
        self.local("look at the mount at", at, move || {
            let fail = failed("look at the mount at", &path);
            let root = open(&path, OFlags::PATH | OFlags::DIRECTORY).map_err(&fail)?;
            Seen::of(&root).map_err(fail)
        })
        .await
    }

    /// Returns how full the file system at a path is.
    ///
    /// # Errors
    /// `Io` with its reason, or that it does not answer.
    pub async fn usage(&self, path: &Path) -> Result<Usage, HostError> {
        let place = Place::of(&*self.mounts().await?, path.to_owned());
        let mut answers = self.inner.children.usage(vec![place]).await?;
        let answer =
            answers.remove(path).unwrap_or_else(|| Err(NoUsage::Refused("it was not asked".to_owned())));
        answer.map_err(|reason| HostError::Io {
            doing: "ask the file system at",
            path: path.to_owned(),
            source: std::io::Error::other(reason),
        })
    }

    /// Gives everything in a mounted volume to a group, unless its root directory says that this was done (kubelet.md 6.1).
    ///
    /// # Errors
    /// The root directory is as it was, so that it is done again.
    pub async fn give_to_group(
        &self,
        mounted: &Path,
        group: u32,
        progress: &Progress,
    ) -> Result<(), HostError> {
        let fail = failed("enter the volume", mounted);
        let parent = mounted.parent().unwrap_or(Path::new("/"));
        let name = mounted.file_name().and_then(RootPath::new);
        let name = name.ok_or_else(|| fail(rustix::io::Errno::INVAL))?;
        let root = Root::existing(parent).map_err(&fail)?;
        let place = Place::of(&*self.mounts().await?, mounted.to_owned());
        let ownership = Ownership { group, on_root_mismatch: true };
        self.inner.children.set_ownership(&root, &name, place, ownership, progress).await?.map_err(fail)
    }
}
