//! File systems in images, by the tools that belong to them. All of them work on the image file itself, except growth of what
//! is mounted.

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::exec::{Ended, Tools};
use super::super::grow::Grown;
use super::super::{HostError, grow};
use super::attach::FILE_SYSTEM_SECTOR;
use super::{Going, Images};
use crate::model::FsKind;

/// How long making or growing a file system may take.
const LIMIT: Duration = Duration::from_secs(300);

/// How long a check may take, which reads every inode.
const CHECK: Duration = Duration::from_secs(3600);

const GROW: &str = "grow the file system in";

const CHECKING: &str = "check the file system in";

/// A file system that a volume can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FsType {
    /// The default.
    Ext4,
    /// Grows online without CAP_SYS_RESOURCE.
    Xfs,
    /// As `Xfs`.
    Btrfs,
}

impl FsType {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Ext4, Self::Xfs, Self::Btrfs];

    /// Returns its name, as mount(2) has it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
        }
    }

    /// Finds one by its name.
    pub fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fs_type| fs_type.name() == name)
    }

    /// Returns the smallest image that its mkfs takes, in bytes: of ext4 what leaves room for files, of xfs what mkfs.xfs
    /// insists on since xfsprogs 5.19, of btrfs what holds one with mixed block groups.
    pub fn least(self) -> u64 {
        match self {
            Self::Ext4 => 4 << 20,
            Self::Xfs => 300 << 20,
            Self::Btrfs => 16 << 20,
        }
    }

    fn package(self) -> &'static str {
        grow::package(self.kind())
    }

    fn kind(self) -> FsKind {
        match self {
            Self::Ext4 => FsKind::Ext4,
            Self::Xfs => FsKind::Xfs,
            Self::Btrfs => FsKind::Btrfs,
        }
    }
}

impl Images {
    /// Makes a file system in an image of zeros. Blocks that are zero already are not written, and none is given back.
    ///
    /// # Errors
    /// With what mkfs said; what the image holds then is not known.
    pub async fn make_file_system(
        &self,
        image: &Path,
        fs_type: FsType,
        uuid: &str,
        bytes: u64,
    ) -> Result<(), HostError> {
        /// Below this a btrfs keeps data and metadata together: separate ones leave hardly any room.
        const MIXED: u64 = 256 << 20;
        let given = match fs_type {
            FsType::Ext4 => vec![
                "-F",
                "-q",
                "-b",
                "4096",
                "-m",
                "0",
                "-O",
                "metadata_csum_seed",
                "-E",
                // The zeros are known to be there: the kernel need not write them in the background after the first mount.
                "nodiscard,assume_storage_prezeroed=1",
                "-U",
                uuid,
            ],
            FsType::Xfs => vec!["-q", "-K"],
            FsType::Btrfs if bytes < MIXED => vec!["-q", "-K", "--mixed", "-U", uuid],
            FsType::Btrfs => vec!["-q", "-K", "-U", uuid],
        };
        let mut arguments: Vec<OsString> = given.into_iter().map(OsString::from).collect();
        if fs_type == FsType::Xfs {
            let sector = format!("size={FILE_SYSTEM_SECTOR}");
            arguments.extend(["-m".into(), format!("uuid={uuid}").into(), "-s".into(), sector.into()]);
        }
        arguments.push(image.into());
        let tool = Tools::find(&format!("mkfs.{}", fs_type.name()), fs_type.package())?;
        let made = self.inner.tools.must("make a file system in", image, &tool, arguments, LIMIT);
        made.await.map(drop)
    }

    /// Gives the file system of a copied image, which nobody has mounted, a UUID of its own, so that it can be mounted beside
    /// the one that it was copied from. What its log holds is replayed first.
    ///
    /// # Errors
    /// With what the tool said; it can be done again.
    pub async fn renew_uuid(&self, image: &Path, fs_type: FsType, uuid: &str) -> Result<(), HostError> {
        const DOING: &str = "give a UUID to the file system in";
        let tools = &self.inner.tools;
        let path = || image.as_os_str().to_owned();
        match fs_type {
            FsType::Ext4 => {
                self.check(image).await?;
                let tool = Tools::find("tune2fs", fs_type.package())?;
                tools.must(DOING, image, &tool, ["-U".into(), uuid.into(), path()], LIMIT).await?;
            }
            FsType::Xfs => {
                // Frozen or not, the log of a copy has to be replayed, with the UUID of a file system that may be mounted.
                self.replay_image(image, fs_type, &["nouuid".to_owned()]).await?;
                let tool = Tools::find("xfs_admin", fs_type.package())?;
                tools
                    .must(DOING, image, &tool, ["-f".into(), "-U".into(), uuid.into(), path()], LIMIT)
                    .await?;
            }
            FsType::Btrfs => {
                let tool = Tools::find("btrfstune", fs_type.package())?;
                let arguments = ["-f".into(), "-M".into(), uuid.into(), path()];
                let ended = tools.run(DOING, image, &tool, &arguments, LIMIT).await?;
                if !ended.status.success() {
                    // It refuses one with a log tree, which a freeze does not leave but a crash of the host does.
                    self.replay_image(image, fs_type, &[]).await?;
                    tools.must(DOING, image, &tool, &arguments, LIMIT).await?;
                }
            }
        }
        Ok(())
    }

    /// Grows an ext4 that is mounted nowhere to the size of its image. (The others grow only while they are mounted.) Only for a
    /// copy that is thrown away if this does not get to its end.
    ///
    /// # Errors
    /// With what the tool said; the file system may be damaged.
    pub async fn grow_unmounted_ext4(&self, image: &Path) -> Result<(), HostError> {
        self.check(image).await?;
        let tool = Tools::find("resize2fs", FsType::Ext4.package())?;
        self.inner.tools.must(GROW, image, &tool, [image], LIMIT).await.map(drop)
    }

    /// As `grow_unmounted_ext4`, of a file system whose data somebody needs. resize2fs moves metadata without a journal, so
    /// nothing stops it halfway: neither a deadline nor our death.
    ///
    /// # Errors
    /// With what the tool said.
    pub async fn grow_unmounted_ext4_with_data(&self, image: &Path) -> Result<(), HostError> {
        let tools = &self.inner.tools;
        let package = FsType::Ext4.package();
        let (check, grow) = (Tools::find("e2fsck", package)?, Tools::find("resize2fs", package)?);
        let arguments = ["-f".as_ref(), "-p".as_ref(), image.as_os_str()];
        checked(&tools.finish(image, &check, arguments).await?, image, &check)?;
        let ended = tools.finish(image, &grow, [image]).await?;
        if ended.status.success() { Ok(()) } else { Err(ended.failure(GROW, image, &grow)) }
    }

    /// Returns whether `grow_mounted` can grow an ext4.
    pub fn grows_mounted_ext4(&self) -> bool {
        /// linux/capability.h
        const CAP_SYS_RESOURCE: u32 = 24;
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        let held = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let held = held.and_then(|held| u64::from_str_radix(held.trim(), 16).ok());
        held.is_some_and(|held| held & (1 << CAP_SYS_RESOURCE) != 0)
    }

    /// Grows a mounted file system to the size of its device, which has so many bytes.
    ///
    /// # Errors
    /// With what the tool said; it can be done again.
    pub async fn grow_mounted(
        &self,
        fs_type: FsType,
        node: &Path,
        mounted: &Path,
        bytes: u64,
    ) -> Result<Grown, HostError> {
        grow::mounted(&self.inner.tools, fs_type.kind(), (node, mounted), bytes, LIMIT).await
    }

    /// Replays the journal of an ext4 and mends what needs no decision.
    async fn check(&self, image: &Path) -> Result<(), HostError> {
        let tool = Tools::find("e2fsck", FsType::Ext4.package())?;
        let arguments = ["-f".into(), "-p".into(), image.as_os_str().to_owned()];
        checked(&self.inner.tools.run(CHECKING, image, &tool, arguments, CHECK).await?, image, &tool)
    }

    async fn replay_image(&self, image: &Path, fs_type: FsType, options: &[String]) -> Result<(), HostError> {
        // Named for its volume, so that whoever meets it before it has gone knows that it will.
        let volume = image.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy();
        let device = self.attach(image, &volume, Going::WithItsMount).await?;
        self.replay(&device, fs_type, options).await
    }
}

/// Judges how e2fsck ended.
fn checked(ended: &Ended, image: &Path, tool: &Path) -> Result<(), HostError> {
    /// e2fsck(8): errors were corrected.
    const MENDED: i32 = 1;
    match ended.status.code() {
        Some(0 | MENDED) => Ok(()),
        _ => Err(ended.failure(CHECKING, image, tool)),
    }
}
