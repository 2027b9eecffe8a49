//! An NFS server that says nothing at times: then mounts and unmounts of its export last as long as they may.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::sleep;
use volumed::host::{HostError, NfsCause, NfsError, NfsMount, NoUsage, Unmount, Usage, Usages};
use volumed::model::{Mount, MountIdentity, MountsAt};

use super::wish::EXPORT;
use super::world::World;

impl World {
    /// As `Host::mount_nfs`.
    pub async fn mount_nfs(&self, mount: NfsMount, target: PathBuf) -> Result<(), HostError> {
        let refused = |cause, said: &str| {
            Err(HostError::Nfs(Box::new(NfsError { mount: mount.clone(), cause, said: said.to_owned() })))
        };
        self.pause().await;
        if self.lock().server_is_silent {
            sleep(Duration::from_secs(60)).await;
            return refused(NfsCause::Late, "nothing");
        }
        if self.fault(5) {
            return refused(NfsCause::Denied, "no");
        }
        if !matches!(self.table().at(&target), MountsAt::None) {
            return Err(HostError::WrongMount { path: target, found: "another mount".to_owned() });
        }
        if !self.lock().is_to_be_shown(&target) {
            self.violation(format!("5: {} is mounted without an intent", target.display()));
        }
        let id = self.mount(&target, &format!("{}:{}", mount.server, mount.path));
        let made = |made: &&mut Mount| made.id == id;
        if let Some(made) = self.lock().mounts.iter_mut().find(made) {
            made.read_only = mount.read_only;
        }
        self.pause().await;
        if self.fault(3) { refused(NfsCause::Other, "its child died") } else { Ok(()) }
    }

    /// What is left to wait for when a mount has gone from the table.
    pub async fn nfs_unmounted(
        &self,
        path: PathBuf,
        gone: &MountIdentity,
        how: Unmount,
    ) -> Result<(), HostError> {
        let is_export = gone.source == format!("{}:{}", EXPORT.0, EXPORT.1);
        if how == Unmount::Forced || !is_export || !self.lock().server_is_silent {
            return Ok(());
        }
        sleep(Duration::from_secs(120)).await;
        Err(HostError::Deadline { doing: "unmount", path, seconds: 120 })
    }

    /// As `Host::usage`.
    pub async fn usage(&self, paths: Vec<PathBuf>) -> Result<Usages, HostError> {
        self.pause().await;
        let silent = self.lock().server_is_silent;
        if silent {
            sleep(Duration::from_secs(5)).await;
        }
        let usage =
            Usage { total_bytes: 2, available_bytes: 1, used_bytes: 1, total_inodes: 0, free_inodes: 0 };
        let said = |_: &PathBuf| if silent { Err(NoUsage::Silent("nothing".to_owned())) } else { Ok(usage) };
        Ok(paths
            .into_iter()
            .map(|path| {
                let said = said(&path);
                (path, said)
            })
            .collect())
    }
}
