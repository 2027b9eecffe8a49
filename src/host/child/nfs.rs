//! The daemon's side of a mount of an NFS export.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::calls::misunderstood;
use super::wire::{Reply, Request};
use super::{Children, Place, failed};
use crate::host::HostError;
use crate::host::nfs::{LIMIT, NfsMount};

/// How many exports of one server are mounted at a time: those of a server that hangs take no place of another's.
const MOUNTS_AT_A_TIME: usize = 16;

/// What the child needs besides the helper's time.
const BESIDES: Duration = Duration::from_secs(15);

const DOING: &str = "mount the export at";

impl Children {
    /// Lets a child mount an export (`Host::mount_nfs`).
    ///
    /// # Errors
    /// `Nfs`, also when too many other exports of this server are being mounted: nothing is there; `Busy`: an earlier child hangs
    /// there; `WrongMount`, `NotEmpty`: nothing was done; `Io`: not known.
    pub(in crate::host) async fn nfs(
        &self,
        root: &Path,
        tools_in: &[PathBuf],
        mount: &NfsMount,
    ) -> Result<(), HostError> {
        let path = root.join(mount.target.as_path());
        let place = Place { path: path.clone(), mount: None, fs_type: None };
        let until = Instant::now() + LIMIT + BESIDES;
        let late = |_elapsed| mount.silent(LIMIT);
        let slots = self.slots_of(&mount.server);
        // Never closed; and if it were, only the limit would be gone.
        let _slot = tokio::time::timeout_at(until, slots.acquire()).await.map_err(late)?.ok();
        self.wait_for_earlier(&place).await?;
        let mut child = self.start(BTreeMap::from([(0, place)]))?;
        let ask = Request::Nfs(mount.ask(root, tools_in));
        let answered = tokio::time::timeout(LIMIT + BESIDES, async {
            child.tell(&ask).await?;
            child.next().await
        });
        match answered.await.map_err(late)?.map_err(failed(DOING, &path))? {
            Reply::Nfs(done) => {
                child.finish().await;
                done.map_err(|refusal| mount.refused(root, refusal))
            }
            other => Err(misunderstood(&path, &other)),
        }
    }

    /// Returns a server's slots, and forgets those of servers that nobody waits for.
    fn slots_of(&self, server: &str) -> Arc<Semaphore> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers.retain(|_, slots| Arc::strong_count(slots) > 1);
        let slots = servers.entry(server.to_owned());
        Arc::clone(slots.or_insert_with(|| Arc::new(Semaphore::new(MOUNTS_AT_A_TIME))))
    }
}
