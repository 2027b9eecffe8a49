//! The daemon's side of a bind mount whose source may hang.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use super::calls::misunderstood;
use super::wire::{Reply, Request};
use super::{Children, Place, failed};
use crate::host::HostError;
use crate::host::bind::Bind;

/// How long the way to a directory may take.
const LIMIT: Duration = Duration::from_secs(30);

const DOING: &str = "show";

impl Children {
    /// Lets a child show a directory (`Host::bind`).
    ///
    /// # Errors
    /// `Busy`: an earlier child hangs on the way there; `Deadline`: this one does.
    pub(in crate::host) async fn bind(&self, root: &Path, bind: &Bind) -> Result<(), HostError> {
        let path = bind.source.clone();
        let place = Place { path: path.clone(), mount: None, fs_type: None };
        // Never closed; and if it were, only the limit would be gone.
        let _slot = self.binds.acquire().await.ok();
        self.wait_for_earlier(&place).await?;
        let mut child = self.start(BTreeMap::from([(0, place)]))?;
        let ask = Request::Bind(bind.ask(root));
        let answered = tokio::time::timeout(LIMIT, async {
            child.tell(&ask).await?;
            child.next().await
        });
        let late =
            |_elapsed| HostError::Deadline { doing: DOING, path: path.clone(), seconds: LIMIT.as_secs() };
        match answered.await.map_err(late)?.map_err(failed(DOING, &path))? {
            Reply::Bound(done) => {
                child.finish().await;
                done.map_err(|refusal| bind.refused(root, refusal))
            }
            other => Err(misunderstood(&path, &other)),
        }
    }
}
