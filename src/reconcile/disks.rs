//! Disks that come and grow, and those that the operator accepts in another's place.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::pass::Loop;
use crate::host::DiskNews;
use crate::model::{DiskSource, ObjectRef, Presence, SpecName, StagingKind, VolumeKey, Want, WantedVolume};

impl Loop {
    /// A disk came, went, or has another size: it may be any device volume's.
    pub(super) fn disks_changed(&mut self, news: DiskNews) {
        let keys = self.records.keys().chain(self.desired.volumes.keys());
        let keys: Vec<VolumeKey> = keys.filter(|key| self.disk_of(key).is_some()).cloned().collect();
        for key in keys {
            // What volumed itself does with device mapper must not be a reason to try again at once.
            if news == DiskNews::Changed {
                self.forget_failures(&key);
            }
            self.resized.insert(key.clone());
            self.touched.insert(key);
        }
        self.round_soon();
    }

    /// Returns the disk of a volume that has one: as it is wished, else as it is recorded.
    fn disk_of(&self, key: &VolumeKey) -> Option<DiskSource> {
        let wants = self.desired.volumes.get(key).into_iter().flat_map(|want| want.publications.values());
        let mut wanted = wants.filter_map(|want| match want {
            Want::Wanted(wanted) => match &wanted.volume {
                WantedVolume::Device(device) => Some(device.disk.clone()),
                WantedVolume::Csi(_)
                | WantedVolume::Local(_)
                | WantedVolume::Nfs(_)
                | WantedVolume::EmptyDir { .. }
                | WantedVolume::HostPath { .. } => None,
            },
            Want::Held(_) | Want::Absent => None,
        });
        let recorded = || self.records.get(key)?.volume.disk().cloned();
        wanted.next().or_else(recorded)
    }

    /// Lets other disks be those of a pod's or claim's volumes, in a task of its own: looking at a disk takes time.
    pub(super) fn accept_identity(
        &mut self,
        object: &ObjectRef,
        reply: oneshot::Sender<Result<Vec<String>, String>>,
    ) {
        let named = self.volumes_named(Some(object)).into_iter();
        let disks: Vec<(VolumeKey, DiskSource)> =
            named.filter_map(|key| self.disk_of(&key).map(|disk| (key, disk))).collect();
        let is_up = |key: &VolumeKey| {
            let Some(have) = self.actual.volumes.get(key) else { return false };
            let shown = have.publications.values().any(|one| one.presence == Presence::Yes);
            // Of a raw disk nothing is mounted for the node.
            let staged = have.staging.as_ref().is_some_and(|staging| {
                staging.presence == Presence::Yes && staging.arguments.kind == StagingKind::Call
            });
            shown || staged
        };
        let refused = match disks.iter().find(|(key, _)| is_up(key)) {
            Some((key, _)) => Some(format!("{key} is up with the disk that is recorded; nothing was done")),
            None if disks.is_empty() => Some(format!("{object} has no volume on a device; nothing was done")),
            None => None,
        };
        if let Some(refused) = refused {
            // Who asked may have gone.
            return drop(reply.send(Err(refused)));
        }
        let layout = &self.parts.layout;
        let places = |key: &VolumeKey, disk: &DiskSource| {
            // Of a path of the host the key says the PersistentVolume, of any other disk its place does not.
            let spec = key.as_str().rsplit('/').next().and_then(|name| SpecName::new(name).ok());
            let paths =
                spec.map(|spec| [layout.device_staging(disk, &spec), layout.raw_staging(disk, &spec)]);
            paths.into_iter().flatten().map(|path| layout.absolute(&path)).collect::<Vec<_>>()
        };
        let disks: Vec<(VolumeKey, DiskSource, Vec<PathBuf>)> = disks
            .into_iter()
            .map(|(key, disk)| {
                let places = places(&key, &disk);
                (key, disk, places)
            })
            .collect();
        let executor = Arc::clone(&self.executor);
        self.accepting.spawn(async move {
            let mut done = Vec::new();
            let keys = disks.iter().map(|(key, ..)| key.clone()).collect();
            for (key, disk, places) in disks {
                match executor.accept_disk(&key, disk, &places).await {
                    Ok(accepted) => done.push(accepted),
                    Err(error) => {
                        done.push(error);
                        let _gone = reply.send(Err(done.join("; ")));
                        return keys;
                    }
                }
            }
            let _gone = reply.send(Ok(done));
            keys
        });
    }

    /// What waited for that is tried again.
    pub(super) fn take_accepted(&mut self, keys: Vec<VolumeKey>) {
        for key in keys {
            self.forget_failures(&key);
            self.touched.insert(key);
        }
    }
}
