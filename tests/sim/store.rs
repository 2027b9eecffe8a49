//! `record::Store` over the simulated world: a page cache and a platter.

use volumed::BoxFuture;
use volumed::model::{KnownDisk, VolumeKey, VolumeRecord};
use volumed::record::{Durability, Loaded, Store, StoreError};

use super::world::{Disk, World};

/// The disk.
#[derive(Debug)]
pub struct SimStore {
    world: World,
}

impl SimStore {
    pub fn new(world: World) -> Self {
        Self { world }
    }

    fn full(&self, doing: &'static str) -> Result<(), StoreError> {
        if !self.world.lock().disk_full && !self.world.fault(1) {
            return Ok(());
        }
        self.world.tell(|| "the disk is full".to_owned());
        Err(StoreError { doing, path: "record".into(), source: std::io::ErrorKind::StorageFull.into() })
    }
}

impl Store for SimStore {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        Box::pin(async move {
            self.world.pause().await;
            let mut state = self.world.lock();
            // What is whole and was renamed is made to last: it counts as an intent from now on.
            for disk in state.records.values_mut().filter(|disk| disk.whole) {
                disk.synced = disk.written.clone();
            }
            let records = state.records.values().filter_map(|disk| disk.written.clone()).collect();
            Ok(Loaded { records, damaged: Vec::new() })
        })
    }

    fn write(&self, record: VolumeRecord, durability: Durability) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.world.pause().await;
            self.full("write")?;
            let key = record.key.clone();
            let wrong = self.world.lock().record_changes(&key, Some(&record));
            self.world.violations(wrong);
            {
                let mut state = self.world.lock();
                let disk = state.records.entry(key.clone()).or_default();
                disk.written = Some(record.clone());
                disk.whole = durability == Durability::Synced;
            }
            self.world.pause().await;
            if durability == Durability::Synced {
                self.world.lock().records.entry(key).or_default().synced = Some(record);
            }
            Ok(())
        })
    }

    fn remove(&self, key: VolumeKey) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.world.pause().await;
            self.full("unlink")?;
            let wrong = self.world.lock().record_changes(&key, None);
            self.world.violations(wrong);
            let mut state = self.world.lock();
            if let Some(Disk { written, whole, .. }) = state.records.get_mut(&key) {
                (*written, *whole) = (None, false);
            }
            state.records.retain(|_, disk| disk.written.is_some() || disk.synced.is_some());
            Ok(())
        })
    }

    fn size(&self, key: VolumeKey) -> BoxFuture<'_, Result<Option<u64>, StoreError>> {
        Box::pin(async move {
            self.world.pause().await;
            Ok(self.world.lock().sizes.get(&key).copied())
        })
    }

    fn set_size(&self, key: VolumeKey, bytes: u64) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.world.pause().await;
            self.full("write")?;
            self.world.lock().sizes.insert(key, bytes);
            Ok(())
        })
    }

    fn disk(&self, key: VolumeKey) -> BoxFuture<'_, Result<Option<KnownDisk>, StoreError>> {
        Box::pin(async move {
            self.world.pause().await;
            Ok(self.world.lock().known_disks.get(&key).cloned())
        })
    }

    fn set_disk(&self, key: VolumeKey, disk: Option<KnownDisk>) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.world.pause().await;
            self.full("write")?;
            {
                let known = &mut self.world.lock().known_disks;
                match disk {
                    Some(disk) => known.insert(key, disk),
                    None => known.remove(&key),
                };
            }
            self.world.pause().await;
            Ok(())
        })
    }

    fn note(&self, name: &'static str) -> BoxFuture<'_, Result<Option<serde_json::Value>, StoreError>> {
        Box::pin(async move { Ok(self.world.lock().notes.get(name).cloned()) })
    }

    fn set_note(
        &self,
        name: &'static str,
        value: serde_json::Value,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        Box::pin(async move {
            self.world.pause().await;
            self.full("write")?;
            self.world.lock().notes.insert(name, value);
            self.world.pause().await;
            Ok(())
        })
    }
}
