//! Encrypted disks: a header, a key, and a disk inside that exists as long as it is open.

use std::path::{Path, PathBuf};

use volumed::BoxFuture;
use volumed::host::{DiskError, EncryptedDisks, HostError, LuksOpened};
use volumed::model::{Content, DiskIdentity, Formatted, FsGrowth, FsUuid, LuksIntent, MapperName, Secret};

use super::disks::{SimDisk, refused};
use super::host::SimHost;
use super::world::World;

/// What the header takes.
const HEADER: u64 = 16 << 20;

/// A header.
#[derive(Debug, Clone)]
pub struct SimLuks {
    pub uuid: FsUuid,
    /// None yet in one that was just begun.
    pub key: Option<Secret>,
    /// As it was when it was last closed.
    pub inside: Box<SimDisk>,
}

fn node(name: &MapperName) -> PathBuf {
    Path::new("/dev/mapper").join(name.as_str())
}

fn dm_uuid(uuid: &FsUuid, name: &MapperName) -> String {
    format!("CRYPT-LUKS2-{}-{name}", uuid.as_str().replace('-', ""))
}

fn noise() -> Content {
    Content::Unknown { at: 0, copies: Vec::new() }
}

fn header() -> Content {
    Content::Foreign { what: "something of the type crypto_LUKS".to_owned() }
}

impl World {
    async fn format_luks(
        &self,
        path: &Path,
        intent: &LuksIntent,
        key: &Secret,
    ) -> Result<Formatted, HostError> {
        self.pause().await;
        let disk = self.to_be_written(path, &intent.identity, intent.least_bytes)?;
        let not_blank = |found| Err(refused(DiskError::NotBlank { path: path.to_owned(), found }));
        let ours = disk.luks.as_ref().filter(|luks| intent.begun && luks.uuid == intent.uuid);
        let there = match (&disk.content, ours) {
            (_, Some(SimLuks { key: None, .. })) | (Content::Blank, None) => None,
            (_, Some(luks)) if luks.key.as_ref() != Some(key) => {
                return Err(refused(DiskError::WrongKey { path: path.to_owned() }));
            }
            (_, Some(luks)) => Some(luks.inside.content.clone()),
            (Content::Unknown { copies, .. }, None)
                if intent.begun && copies.is_empty() && intent.identity.is_one_disk_s() =>
            {
                None
            }
            (found, None) => return not_blank(found.clone()),
        };
        match there {
            Some(Content::Blank) => return Ok(Formatted::AlreadyThere),
            Some(found) if found != noise() => return not_blank(found),
            Some(_) => {}
            None => {
                self.tell(|| format!("luksFormat {} on {}", intent.uuid, path.display()));
                self.change(path, |disk| {
                    disk.formatted += 1;
                    (disk.content, disk.luks) = (noise(), None);
                });
                self.pause().await;
                let inside = SimDisk { content: noise(), ..SimDisk::blank("", disk.bytes - HEADER) };
                let luks = SimLuks { uuid: intent.uuid.clone(), key: None, inside: Box::new(inside) };
                self.change(path, |disk| (disk.content, disk.luks) = (header(), Some(luks)));
                self.pause().await;
                self.change(path, |disk| {
                    if let Some(luks) = &mut disk.luks {
                        luks.key = Some(key.clone());
                    }
                });
                self.pause().await;
            }
        }
        self.change(path, |disk| {
            if let Some(luks) = &mut disk.luks {
                luks.inside.content = Content::Blank;
            }
        });
        self.pause().await;
        Ok(Formatted::Made)
    }

    async fn open_luks(
        &self,
        path: &Path,
        identity: &DiskIdentity,
        uuid: &FsUuid,
        name: &MapperName,
        key: &Secret,
    ) -> Result<LuksOpened, HostError> {
        self.pause().await;
        let disk = self.the_disk(path, identity)?;
        let mapper = node(name);
        let other =
            |found: &str| refused(DiskError::OtherMapping { path: node(name), found: found.to_owned() });
        if let Ok(there) = self.disk(&mapper) {
            let same = there.serial == dm_uuid(uuid, name) && there.under.as_ref() == Some(&disk.serial);
            return if same { Ok(LuksOpened { mapper, already: true }) } else { Err(other("another")) };
        }
        if self.is_below(&disk) {
            let holder = "a device that is built on it".to_owned();
            return Err(refused(DiskError::InUse { path: path.to_owned(), holder }));
        }
        let Some(luks) = disk.luks.filter(|luks| luks.uuid == *uuid) else {
            let (recorded, found) = (uuid.clone(), disk.content.to_string());
            return Err(refused(DiskError::OtherEncryption { path: path.to_owned(), recorded, found }));
        };
        if luks.key.as_ref() != Some(key) {
            return Err(refused(DiskError::WrongKey { path: path.to_owned() }));
        }
        let inside = SimDisk { serial: dm_uuid(uuid, name), under: Some(disk.serial), ..*luks.inside };
        self.lock().disks.insert(mapper.clone(), inside);
        self.pause().await;
        Ok(LuksOpened { mapper, already: false })
    }

    async fn close_luks(&self, name: &MapperName, uuid: &FsUuid) -> Result<(), HostError> {
        self.pause().await;
        let path = node(name);
        let Ok(there) = self.disk(&path) else { return Ok(()) };
        if there.serial != dm_uuid(uuid, name) {
            return Err(refused(DiskError::OtherMapping { path, found: "another".to_owned() }));
        }
        if self.lock().mounts.iter().any(|mount| Path::new(&mount.source) == path) {
            return Err(refused(DiskError::InUse { path, holder: "a mount".to_owned() }));
        }
        self.let_go(&path);
        self.pause().await;
        Ok(())
    }

    async fn grow_luks(&self, name: &MapperName, uuid: &FsUuid, key: &Secret) -> Result<FsGrowth, HostError> {
        self.pause().await;
        let path = node(name);
        let there = self.disk(&path)?;
        if there.serial != dm_uuid(uuid, name) {
            return Err(refused(DiskError::OtherMapping { path, found: "another".to_owned() }));
        }
        let below =
            self.lock().disks.values().find(|disk| there.under.as_ref() == Some(&disk.serial)).cloned();
        let Some((luks, bytes)) = below.and_then(|disk| Some((disk.luks?, disk.bytes - HEADER))) else {
            return Err(refused(DiskError::NoDevice { path, found: "there without its disk".to_owned() }));
        };
        if there.bytes == bytes {
            return Ok(FsGrowth::Enough { bytes });
        }
        if luks.key.as_ref() != Some(key) {
            return Err(refused(DiskError::WrongKey { path }));
        }
        self.change(&path, |disk| disk.bytes = bytes);
        self.pause().await;
        Ok(FsGrowth::Grown { from: there.bytes, bytes })
    }

    /// What is open goes, and what was in it stays on the disk below.
    fn let_go(&self, path: &Path) {
        let mut state = self.lock();
        let Some(inside) = state.disks.remove(path) else { return };
        let below = state.disks.values_mut().find(|disk| inside.under.as_ref() == Some(&disk.serial));
        if let Some(luks) = below.and_then(|disk| disk.luks.as_mut()) {
            *luks.inside = SimDisk { under: None, ..inside };
        }
    }

    /// Closes everything: nothing is open after a boot.
    pub fn close_all(&self) {
        let open: Vec<PathBuf> = {
            let state = self.lock();
            let open = state.disks.iter().filter(|(_, disk)| disk.under.is_some());
            open.map(|(path, _)| path.clone()).collect()
        };
        open.iter().for_each(|path| self.let_go(path));
    }
}

impl EncryptedDisks for SimHost {
    fn format_luks(
        &self,
        device: PathBuf,
        intent: LuksIntent,
        key: Secret,
    ) -> BoxFuture<'_, Result<Formatted, HostError>> {
        Box::pin(async move { self.world.format_luks(&device, &intent, &key).await })
    }

    fn open_luks(
        &self,
        device: PathBuf,
        identity: DiskIdentity,
        uuid: FsUuid,
        name: MapperName,
        key: Secret,
    ) -> BoxFuture<'_, Result<LuksOpened, HostError>> {
        Box::pin(async move { self.world.open_luks(&device, &identity, &uuid, &name, &key).await })
    }

    fn close_luks(&self, name: MapperName, uuid: FsUuid) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move { self.world.close_luks(&name, &uuid).await })
    }

    fn grow_luks(
        &self,
        name: MapperName,
        uuid: FsUuid,
        key: Secret,
    ) -> BoxFuture<'_, Result<FsGrowth, HostError>> {
        Box::pin(async move { self.world.grow_luks(&name, &uuid, &key).await })
    }
}

#[cfg(test)]
mod tests {
    use volumed::host::Host as _;
    use volumed::model::{FileSystem, FsKind, Intent};

    use super::*;

    fn is(error: &HostError, wanted: fn(&DiskError) -> bool) -> bool {
        matches!(error, HostError::Disk(error) if wanted(error))
    }

    /// Wherever a crash or a power cut comes, the same intent finishes; what is made in it is there after the next boot.
    #[tokio::test(start_paused = true)]
    async fn an_encryption_is_finished_after_a_crash_at_every_point() {
        for dies_in in 0..10 {
            let world = World::new(dies_in, false);
            let device = PathBuf::from("/dev/sda");
            world.lock().disks.insert(device.clone(), SimDisk::blank("s", 1 << 30));
            let host = SimHost::new(world.clone());
            let identity = host.inspect_disk(device.clone()).await.unwrap().identity;
            let uuid = |digit: u8| FsUuid::from_bytes([digit; 16]);
            let (key, wrong) = (Secret::new("key"), Secret::new("wrong"));
            let intent =
                LuksIntent { uuid: uuid(1), identity: identity.clone(), least_bytes: 0, begun: false };
            world.lock().dies_in = (dies_in > 0).then_some(dies_in);
            tokio::select! {
                biased;
                () = world.crashed.notified() => {}
                done = host.format_luks(device.clone(), intent.clone(), key.clone()) => assert!(done.is_ok(), "{done:?}"),
            }
            world.lock().dies_in = None;
            let begun = LuksIntent { begun: true, ..intent.clone() };
            host.format_luks(device.clone(), begun.clone(), key.clone()).await.unwrap();
            let refused = host.format_luks(device.clone(), intent, key.clone()).await.unwrap_err();
            assert!(is(&refused, |error| matches!(error, DiskError::NotBlank { .. })), "{refused}");

            let name = MapperName::new("pv").unwrap();
            let open = |key: &Secret| {
                host.open_luks(device.clone(), identity.clone(), uuid(1), name.clone(), key.clone())
            };
            let refused = open(&wrong).await.unwrap_err();
            assert!(is(&refused, |error| matches!(error, DiskError::WrongKey { .. })), "{refused}");
            let mapper = open(&key).await.unwrap().mapper;
            assert!(open(&key).await.unwrap().already);
            let inside = host.inspect_disk(mapper.clone()).await.unwrap();
            assert_eq!(inside.content, Content::Blank);
            let refused = host.format_luks(device.clone(), begun.clone(), key.clone()).await.unwrap_err();
            assert!(is(&refused, |error| matches!(error, DiskError::InUse { .. })), "{refused}");
            let file_system = FileSystem { kind: FsKind::Ext4, uuid: uuid(2) };
            let intent = Intent {
                file_system: file_system.clone(),
                identity: inside.identity,
                least_bytes: 0,
                begun: false,
            };
            host.format_disk(mapper.clone(), intent).await.unwrap();
            world.lock().disks.get_mut(&device).unwrap().bytes *= 2;
            let grown = host.grow_luks(name.clone(), uuid(1), key.clone()).await.unwrap();
            assert_eq!(grown, FsGrowth::Grown { from: (1 << 30) - HEADER, bytes: (2 << 30) - HEADER });
            if dies_in % 2 == 0 {
                host.close_luks(name.clone(), uuid(1)).await.unwrap();
            } else {
                world.reboot();
            }
            assert!(host.inspect_disk(mapper.clone()).await.is_err(), "it is open");
            let refused = host.format_luks(device.clone(), begun, key.clone()).await.unwrap_err();
            assert!(is(&refused, |error| matches!(error, DiskError::NotBlank { .. })), "{refused}");
            open(&key).await.unwrap();
            let inside = host.inspect_disk(mapper).await.unwrap();
            assert_eq!(inside.content, Content::FileSystem(file_system));
        }
    }
}
