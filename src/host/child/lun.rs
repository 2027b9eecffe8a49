//! The daemon's side of what a child does about the connection with a storage system.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::calls::misunderstood;
use super::wire::{Reply, Request};
use super::{Children, Place, failed};
use crate::host::lun::{Answer, Ask};
use crate::host::{HostError, LunCause, LunError};

const DOING: &str = "work on the connection of";

impl Children {
    /// Lets a child connect or disconnect a disk. Dropped, it is killed, and the tools that it runs with it.
    ///
    /// # Errors
    /// `Lun`; `Busy`: an earlier child hangs there; `Io`.
    pub(in crate::host) async fn lun(&self, ask: Ask, limit: Duration) -> Result<Answer, HostError> {
        let lun = ask.lun().clone();
        let path = PathBuf::from(lun.to_string());
        let place = Place { path: path.clone(), mount: None, fs_type: None };
        self.wait_for_earlier(&place).await?;
        let mut child = self.start(BTreeMap::from([(0, place)]))?;
        let answered = tokio::time::timeout(limit, async {
            child.tell(&Request::Lun(ask)).await?;
            child.next().await
        });
        let late = |_elapsed| {
            let said = format!("no answer within {} s", limit.as_secs());
            HostError::Lun(Box::new(LunError { lun: lun.clone(), cause: LunCause::Late, said }))
        };
        match answered.await.map_err(late)?.map_err(failed(DOING, &path))? {
            Reply::Lun(done) => {
                child.finish().await;
                done.map_err(|refusal| HostError::Lun(Box::new(refusal.of(lun))))
            }
            other => Err(misunderstood(&path, &other)),
        }
    }
}
