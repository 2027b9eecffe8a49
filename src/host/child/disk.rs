//! The daemon's side of what a child does with a disk.

use std::collections::BTreeMap;
use std::path::PathBuf;

use tokio::time::Instant;

use super::calls::misunderstood;
use super::wire::{Reply, Request};
use super::{Children, Place, failed};
use crate::host::HostError;
use crate::host::disk::{Answer, Ask, LOOK};

const DOING: &str = "work on the disk";

impl Children {
    /// Lets a child work on a disk. Dropped, it is killed, and the tools that it runs with it. One that has learnt no key is kept
    /// for the next disk, or for what comes next with this one.
    ///
    /// # Errors
    /// `Disk`; `Busy`: an earlier child hangs there; `Deadline`: this one does.
    pub(in crate::host) async fn disk(&self, ask: Ask) -> Result<Answer, HostError> {
        let path = PathBuf::from(&ask.device);
        let place = Place { path: path.clone(), mount: None, fs_type: None };
        // Never closed; and if it were, only the limit would be gone.
        let _slot = self.disks.acquire().await.ok();
        self.wait_for_earlier(&place).await?;
        let is_kept = !ask.work.has_key();
        let mut child =
            if is_kept { self.take_or_start(place) } else { self.start(BTreeMap::from([(0, place)])) }?;
        let mut limit = LOOK;
        let mut until = Instant::now() + limit;
        let late = |limit: std::time::Duration| HostError::Deadline {
            doing: DOING,
            path: path.clone(),
            seconds: limit.as_secs(),
        };
        let request = Request::Disk(ask);
        let told = tokio::time::timeout_at(until, async {
            if is_kept { child.tell_first(&request).await } else { child.tell(&request).await }
        });
        let told = told.await;
        // A key is no longer needed as text.
        drop(request);
        told.map_err(|_elapsed| late(limit))?.map_err(failed(DOING, &path))?;
        loop {
            let reply = tokio::time::timeout_at(until, child.next()).await.map_err(|_elapsed| late(limit))?;
            match reply.map_err(failed(DOING, &path))? {
                Reply::Lasts(seconds) => {
                    limit = std::time::Duration::from_secs(seconds) + LOOK;
                    until = Instant::now() + limit;
                }
                Reply::Disk(answer) => {
                    if is_kept {
                        self.keep(child, path);
                    } else {
                        child.finish().await;
                    }
                    return answer.map_err(|error| HostError::Disk(Box::new(error)));
                }
                other @ (Reply::SoFar(_)
                | Reply::Owned
                | Reply::Failed { .. }
                | Reply::Usage(..)
                | Reply::Alive(..)
                | Reply::Bound(_)
                | Reply::Nfs(_)
                | Reply::Lun(_)) => return Err(misunderstood(&path, &other)),
            }
        }
    }
}
