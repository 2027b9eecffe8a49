//! Where everything lies below the root directory: the kubelet's layout, computed in one place (kubelet.md 3).

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{DiskSource, DriverName, Lun, Plugin, PublicationId, SpecName};

/// The file beside `mount/` and `globalmount/` that says whose volume it is.
pub const VOL_DATA: &str = "vol_data.json";

/// A path relative to the root directory, made of checked names only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootPath(PathBuf);

impl RootPath {
    /// Takes a path made of plain names; anything else (`..`, `/x`) becomes `None`.
    pub fn new(path: impl Into<PathBuf>) -> Option<Self> {
        let path = path.into();
        let plain = path.components().all(|c| matches!(c, std::path::Component::Normal(_)));
        (plain && !path.as_os_str().is_empty()).then_some(Self(path))
    }

    /// Returns the relative path.
    pub fn as_path(&self) -> &Path {
        &self.0
    }

    /// Returns the path of a known file or directory in it.
    #[must_use]
    pub fn join(&self, name: &'static str) -> Self {
        Self(self.0.join(name))
    }

    /// Returns the directory that holds it, unless that is the root directory itself.
    pub fn parent(&self) -> Option<Self> {
        self.0.parent().filter(|p| !p.as_os_str().is_empty()).map(|p| Self(p.to_owned()))
    }
}

/// The kubelet's directories below one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Takes the root directory: absolute and without symlinks, as the mount table shows it.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Returns the root directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the absolute form of a path below the root.
    pub fn absolute(&self, path: &RootPath) -> PathBuf {
        self.root.join(&path.0)
    }

    /// Returns the path relative to the root, if it lies below it.
    pub fn relative(&self, path: &Path) -> Option<RootPath> {
        RootPath::new(path.strip_prefix(&self.root).ok()?)
    }

    /// Returns the directory of a volume in a pod: `pods/<uid>/volumes/<plugin>/<spec name>`.
    pub fn publication(&self, id: &PublicationId) -> RootPath {
        RootPath(
            Path::new("pods")
                .join(id.pod.as_str())
                .join("volumes")
                .join(id.plugin.directory())
                .join(id.spec.as_str()),
        )
    }

    /// Returns where a CSI file-system volume is mounted for a pod: its directory and `mount`, which the driver makes.
    pub fn csi_target(&self, id: &PublicationId) -> RootPath {
        self.publication(id).join("mount")
    }

    /// Returns the path at which a pod finds a publication.
    pub fn target(&self, id: &PublicationId) -> RootPath {
        match id.plugin {
            Plugin::Csi => self.csi_target(id),
            Plugin::EmptyDir
            | Plugin::HostPath
            | Plugin::Local
            | Plugin::Nfs
            | Plugin::Iscsi
            | Plugin::Fc => self.publication(id),
        }
    }

    /// Returns the directory of a staged CSI volume: `plugins/kubernetes.io/csi/<driver>/<sha256 of the handle>`.
    pub fn csi_volume(&self, driver: &DriverName, handle: &str) -> RootPath {
        let mut hex = String::with_capacity(64);
        for byte in Sha256::digest(handle.as_bytes()) {
            // Writing to a String cannot fail.
            let _written = write!(hex, "{byte:02x}");
        }
        RootPath(Path::new("plugins/kubernetes.io/csi").join(driver.as_str()).join(hex))
    }

    /// Returns the staging path of a CSI volume: its directory and `globalmount`.
    pub fn csi_staging(&self, driver: &DriverName, handle: &str) -> RootPath {
        self.csi_volume(driver, handle).join("globalmount")
    }

    /// Returns where the file system of a device is mounted for the node (kubelet.md 3): for a path of the host
    /// `plugins/kubernetes.io/local-volume/mounts/<PersistentVolume>`, for an iSCSI disk
    /// `plugins/kubernetes.io/iscsi/iface-default/<portal>-<iqn>-lun-<n>`, for one on Fibre Channel
    /// `plugins/kubernetes.io/fc/<wwns>-lun-<n>` or `plugins/kubernetes.io/fc/<wwids>`.
    pub fn device_staging(&self, disk: &DiskSource, volume: &SpecName) -> RootPath {
        RootPath(match disk {
            DiskSource::Path(_) => {
                Path::new("plugins/kubernetes.io/local-volume/mounts").join(volume.as_str())
            }
            DiskSource::Lun(Lun::Iscsi(lun)) => {
                Path::new("plugins").join(Plugin::Iscsi.name()).join("iface-default").join(lun.directory())
            }
            DiskSource::Lun(Lun::Fc(lun)) => {
                Path::new("plugins").join(Plugin::Fc.name()).join(lun.directory())
            }
        })
    }

    /// Returns where a device is staged that is shown raw; nothing is mounted there: for a path of the host its own directory, for a
    /// disk of a storage system what a kubelet makes of its name (kubelet.md 3).
    pub fn raw_staging(&self, disk: &DiskSource, volume: &SpecName) -> RootPath {
        let of = |plugin| Self::block_volumes_of(plugin).0;
        RootPath(match disk {
            DiskSource::Path(_) => of(Plugin::Local).join(volume.as_str()),
            DiskSource::Lun(Lun::Iscsi(lun)) => of(Plugin::Iscsi).join("iface-default").join(lun.directory()),
            DiskSource::Lun(Lun::Fc(lun)) => of(Plugin::Fc).join(lun.directory()),
        })
    }

    /// Returns the directory of all CSI block volumes: `plugins/kubernetes.io/csi/volumeDevices`.
    pub fn block_volumes() -> RootPath {
        Self::block_volumes_of(Plugin::Csi)
    }

    /// Returns the directory of all block volumes of a plugin; a kubelet escapes the name of the local plugin alone.
    fn block_volumes_of(plugin: Plugin) -> RootPath {
        let name = match plugin {
            Plugin::Csi | Plugin::Iscsi | Plugin::Fc => plugin.name(),
            Plugin::EmptyDir | Plugin::HostPath | Plugin::Local | Plugin::Nfs => plugin.directory(),
        };
        RootPath(Path::new("plugins").join(name).join("volumeDevices"))
    }

    /// Returns the staging path of a block volume: `.../volumeDevices/staging/<spec name>`.
    pub fn block_staging(&self, spec: &SpecName) -> RootPath {
        RootPath(Self::block_volumes().0.join("staging").join(spec.as_str()))
    }

    /// Returns the path at which a block volume is published for a pod: `.../volumeDevices/publish/<spec name>/<uid>`.
    pub fn block_target(&self, id: &PublicationId) -> RootPath {
        let volumes = Self::block_volumes_of(id.plugin);
        RootPath(volumes.0.join("publish").join(id.spec.as_str()).join(id.pod.as_str()))
    }

    /// Returns a CSI block volume's own directory, with `dev` and `data` in it: `.../volumeDevices/<spec name>`.
    pub fn block_volume(&self, spec: &SpecName) -> RootPath {
        RootPath(Self::block_volumes().0.join(spec.as_str()))
    }

    /// Returns a device's own directory, with a file for each pod in it: `.../volumeDevices/<PersistentVolume>`.
    pub fn raw_device(&self, id: &PublicationId) -> RootPath {
        RootPath(Self::block_volumes_of(id.plugin).0.join(id.spec.as_str()))
    }

    /// Returns the file on which a pod's block device is bound: `.../volumeDevices/<spec name>/dev/<uid>`, of a local device
    /// without `dev`.
    pub fn block_map(&self, id: &PublicationId) -> RootPath {
        let volume = Self::block_volumes_of(id.plugin).0.join(id.spec.as_str());
        RootPath(match id.plugin {
            Plugin::Csi => volume.join("dev").join(id.pod.as_str()),
            Plugin::EmptyDir
            | Plugin::HostPath
            | Plugin::Local
            | Plugin::Nfs
            | Plugin::Iscsi
            | Plugin::Fc => volume.join(id.pod.as_str()),
        })
    }

    /// Returns the link at which a pod finds a block device: `pods/<uid>/volumeDevices/<plugin>/<spec name>`.
    pub fn block_link(&self, id: &PublicationId) -> RootPath {
        RootPath(
            Path::new("pods")
                .join(id.pod.as_str())
                .join("volumeDevices")
                .join(id.plugin.directory())
                .join(id.spec.as_str()),
        )
    }

    /// Returns the directory of an emptyDir's `ready` marker: `pods/<uid>/plugins/kubernetes.io~empty-dir/<name>`.
    pub fn empty_dir_marker(&self, pod: &super::PodUid, name: &SpecName) -> RootPath {
        RootPath(
            Path::new("pods")
                .join(pod.as_str())
                .join("plugins")
                .join(Plugin::EmptyDir.directory())
                .join(name.as_str()),
        )
    }
}
