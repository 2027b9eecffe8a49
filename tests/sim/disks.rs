//! Disks: what is on each outlives every crash, and one can come in the middle of mkfs.

use std::path::{Path, PathBuf};

use volumed::host::{DiskError, DiskGrowth, DiskMounted, HostError};
use volumed::model::{
    Checked, Content, DiskIdentity, DiskMount, FileSystem, Formatted, FsGrowth, Inspected, Intent,
    KnownContent, KnownDisk, Mark, MountsAt, RootPath,
};

use super::luks::SimLuks;
use super::world::{ROOT, World};

/// One disk.
#[derive(Debug, Clone)]
pub struct SimDisk {
    pub serial: String,
    pub content: Content,
    pub bytes: u64,
    /// How much of it its file system uses.
    pub used: u64,
    pub read_only: bool,
    /// How often mkfs was begun on it.
    pub formatted: u32,
    /// What encrypts it.
    pub luks: Option<SimLuks>,
    /// It is what is inside the encryption of the disk with this serial.
    pub under: Option<String>,
}

impl SimDisk {
    pub fn blank(serial: &str, bytes: u64) -> Self {
        let serial = serial.to_owned();
        let (luks, under) = (None, None);
        Self { serial, content: Content::Blank, bytes, used: 0, read_only: false, formatted: 0, luks, under }
    }

    fn identity(&self) -> DiskIdentity {
        let mark = if self.under.is_some() { Mark::DmUuid } else { Mark::Serial };
        DiskIdentity { marks: [(mark, self.serial.clone())].into() }
    }
}

pub(super) fn refused(error: DiskError) -> HostError {
    HostError::Disk(Box::new(error))
}

impl World {
    /// Returns the disk that has a path now.
    pub(super) fn disk(&self, path: &Path) -> Result<SimDisk, HostError> {
        let found = self.lock().disks.get(path).cloned();
        let missing = || DiskError::NoDevice { path: path.to_owned(), found: "missing".to_owned() };
        found.ok_or_else(|| refused(missing()))
    }

    pub(super) fn the_disk(&self, path: &Path, recorded: &DiskIdentity) -> Result<SimDisk, HostError> {
        let disk = self.disk(path)?;
        let found = disk.identity();
        if found.is_the_recorded(recorded) {
            return Ok(disk);
        }
        Err(refused(DiskError::OtherDisk { path: path.to_owned(), recorded: recorded.clone(), found }))
    }

    pub(super) fn change(&self, path: &Path, change: impl FnOnce(&mut SimDisk)) {
        if let Some(disk) = self.lock().disks.get_mut(path) {
            change(disk);
        }
    }

    /// `Host::inspect_disk`
    pub async fn inspect(&self, path: &Path) -> Result<Inspected, HostError> {
        self.pause().await;
        let disk = self.disk(path)?;
        let identity = disk.identity();
        Ok(Inspected { identity, content: disk.content, bytes: disk.bytes, read_only: disk.read_only })
    }

    /// Refuses what may not be written to, whatever is on it.
    pub(super) fn to_be_written(
        &self,
        path: &Path,
        identity: &DiskIdentity,
        least: u64,
    ) -> Result<SimDisk, HostError> {
        let disk = self.the_disk(path, identity)?;
        let path_of = || path.to_owned();
        if disk.read_only {
            return Err(refused(DiskError::ReadOnly { path: path_of() }));
        }
        if disk.bytes < least {
            return Err(refused(DiskError::TooSmall { path: path_of(), bytes: disk.bytes, least }));
        }
        if self.lock().mounts.iter().any(|mount| Path::new(&mount.source) == path) {
            return Err(refused(DiskError::InUse { path: path_of(), holder: "a mount".to_owned() }));
        }
        if self.is_below(&disk) {
            let holder = "a device that is built on it".to_owned();
            return Err(refused(DiskError::InUse { path: path_of(), holder }));
        }
        Ok(disk)
    }

    /// Returns whether what encrypts a disk is open.
    pub(super) fn is_below(&self, disk: &SimDisk) -> bool {
        self.lock().disks.values().any(|above| above.under.as_ref() == Some(&disk.serial))
    }

    /// `Host::format_disk`
    pub async fn format(&self, path: &Path, intent: &Intent) -> Result<Formatted, HostError> {
        self.pause().await;
        let disk = self.to_be_written(path, &intent.identity, intent.least_bytes)?;
        let path_of = || path.to_owned();
        let asked = &intent.file_system;
        match &disk.content {
            Content::FileSystem(found) if intent.begun && found == asked => {
                return Ok(Formatted::AlreadyThere);
            }
            Content::Blank => {}
            Content::Unfinished(found) if intent.begun && found == asked => {}
            // As the real host: what no signature is in may be what our mkfs left, if this can be no other disk.
            Content::Unknown { copies, .. }
                if intent.begun
                    && copies.iter().all(|copy| copy == asked)
                    && (!copies.is_empty() || intent.identity.is_one_disk_s()) => {}
            found => {
                return Err(refused(DiskError::NotBlank { path: path_of(), found: found.clone() }));
            }
        }
        self.tell(|| format!("mkfs {asked} on {}", path.display()));
        let is_intended = |known: &KnownDisk| matches!(&known.content, KnownContent::Formatting { file_system, .. } if file_system == asked);
        let intended = self.lock().known_disks.values().any(is_intended);
        if !intended {
            self.violation(format!("{} is formatted without a synced intent", path.display()));
        }
        // A crash leaves what was written so far: first bytes that nobody knows, then a superblock that is not done.
        self.change(path, |disk| {
            disk.formatted += 1;
            disk.content = Content::Unknown { at: 4096, copies: Vec::new() };
        });
        self.pause().await;
        self.change(path, |disk| disk.content = Content::Unfinished(asked.clone()));
        self.pause().await;
        self.change(path, |disk| {
            disk.content = Content::FileSystem(asked.clone());
            disk.used = disk.bytes;
        });
        self.pause().await;
        Ok(Formatted::Made)
    }

    /// `Host::mount_disk`
    pub async fn mount_disk(
        &self,
        path: &Path,
        asked: &DiskMount,
        at: &RootPath,
    ) -> Result<DiskMounted, HostError> {
        self.pause().await;
        let disk = self.the_disk(path, &asked.identity)?;
        if disk.content != Content::FileSystem(asked.file_system.clone()) {
            let (recorded, found) = (asked.file_system.clone(), disk.content);
            return Err(refused(DiskError::OtherContent { path: path.to_owned(), recorded, found }));
        }
        let point = Path::new(ROOT).join(at.as_path());
        let already = self.is_at(path, &point)?;
        if !already {
            self.mount(&point, path.to_str().unwrap_or_default());
        }
        let table = self.table();
        let MountsAt::One(mount) = table.at(&point) else {
            return Err(other_mount(path, point, "several"));
        };
        let fills = disk.used == disk.bytes;
        Ok(DiskMounted { checked: Checked::Clean, mount: mount.identity(), already, fills })
    }

    /// `Host::show_disk`
    pub async fn show_disk(
        &self,
        path: &Path,
        identity: &DiskIdentity,
        at: &RootPath,
    ) -> Result<(), HostError> {
        self.pause().await;
        self.the_disk(path, identity)?;
        let point = Path::new(ROOT).join(at.as_path());
        if !self.is_at(path, &point)? {
            self.mount(&point, path.to_str().unwrap_or_default());
        }
        self.pause().await;
        Ok(())
    }

    /// `Host::grow_disk`
    pub async fn grow_disk(&self, growth: &DiskGrowth) -> Result<FsGrowth, HostError> {
        self.pause().await;
        let disk = self.the_disk(&growth.device, &growth.identity)?;
        let point = Path::new(ROOT).join(growth.at.as_path());
        if !self.is_at(&growth.device, &point)? {
            return Err(other_mount(&growth.device, point, "nothing"));
        }
        if disk.used == disk.bytes {
            return Ok(FsGrowth::Enough { bytes: disk.used });
        }
        self.change(&growth.device, |disk| disk.used = disk.bytes);
        self.pause().await;
        Ok(FsGrowth::Grown { from: disk.used, bytes: disk.bytes })
    }

    fn is_at(&self, device: &Path, point: &Path) -> Result<bool, HostError> {
        match self.table().at(point) {
            MountsAt::None => Ok(false),
            MountsAt::One(mount) if Path::new(&mount.source) == device => Ok(true),
            MountsAt::One(_) | MountsAt::Stacked(_) => {
                Err(other_mount(device, point.to_owned(), "another mount"))
            }
        }
    }
}

fn other_mount(device: &Path, at: PathBuf, found: &str) -> HostError {
    refused(DiskError::OtherMount { path: device.to_owned(), at, found: found.to_owned() })
}

#[cfg(test)]
mod tests {
    use volumed::host::Host as _;
    use volumed::model::{FsKind, FsUuid};

    use super::super::host::SimHost;
    use super::*;

    /// Wherever a crash comes, the same intent finishes, another does not, and what is mounted is what was intended.
    #[tokio::test(start_paused = true)]
    async fn an_mkfs_is_finished_after_a_crash_at_every_point() {
        for dies_in in 0..8 {
            let world = World::new(dies_in, false);
            let device = PathBuf::from("/dev/sda");
            world.lock().disks.insert(device.clone(), SimDisk::blank("s", 1 << 30));
            let host = SimHost::new(world.clone());
            let identity = host.inspect_disk(device.clone()).await.unwrap().identity;
            let uuid = |digit: u8| FsUuid::from_bytes([digit; 16]);
            let file_system = FileSystem { kind: FsKind::Ext4, uuid: uuid(1) };
            let intent = Intent { file_system, identity, least_bytes: 0, begun: false };
            world.lock().dies_in = (dies_in > 0).then_some(dies_in);
            tokio::select! {
                biased;
                () = world.crashed.notified() => {}
                done = host.format_disk(device.clone(), intent.clone()) => assert!(done.is_ok(), "{done:?}"),
            }
            world.lock().dies_in = None;
            let left = host.inspect_disk(device.clone()).await.unwrap().content;
            let mut other = Intent { begun: true, ..intent.clone() };
            if !matches!(left, Content::Blank | Content::Unknown { .. }) {
                other.file_system.uuid = uuid(2);
                let refused = host.format_disk(device.clone(), other).await;
                assert!(matches!(refused, Err(HostError::Disk(_))), "{left}: {refused:?}");
            }
            let again = Intent { begun: true, ..intent.clone() };
            host.format_disk(device.clone(), again).await.unwrap();
            let at = RootPath::new("plugins/kubernetes.io/local-volume/mounts/pv").unwrap();
            let mount = DiskMount {
                identity: intent.identity.clone(),
                file_system: intent.file_system.clone(),
                options: Vec::new(),
                read_only: false,
            };
            let mounted = host.mount_disk(device.clone(), mount.clone(), at.clone()).await.unwrap();
            assert_eq!(mounted.mount.source, "/dev/sda");
            let refused = host.format_disk(device.clone(), Intent { begun: true, ..intent.clone() }).await;
            assert!(refused.is_err(), "it is mounted");
            world.lock().disks.get_mut(&device).unwrap().bytes *= 2;
            let file_system = intent.file_system.clone();
            let growth = DiskGrowth { device: device.clone(), identity: intent.identity, file_system, at };
            let grown = host.grow_disk(growth).await.unwrap();
            assert_eq!(grown, FsGrowth::Grown { from: 1 << 30, bytes: 2 << 30 });
            // Another disk takes the path.
            world.lock().disks.insert(device.clone(), SimDisk::blank("t", 1 << 30));
            let refused = host.mount_disk(device, mount, RootPath::new("plugins/x").unwrap()).await;
            assert!(
                matches!(&refused, Err(HostError::Disk(e)) if matches!(**e, DiskError::OtherDisk { .. }))
            );
        }
    }
}
