//! Identifiers. Each that becomes part of a path is checked once, here, and cannot be made otherwise. Their text is shared: the
//! same names stand in every map from wish to status.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{FcLun, IscsiLun, Lun, Portal};

/// A name that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {name:?} {problem}")]
pub struct InvalidName {
    /// What the name was to be: "pod UID", "volume name".
    pub what: &'static str,
    /// The name as given, shortened to 80 characters.
    pub name: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// The longest file name that Linux file systems take, in bytes.
const NAME_MAX: usize = 255;

fn path_component(what: &'static str, name: &str) -> Result<(), InvalidName> {
    let problem = if name.is_empty() {
        "is empty"
    } else if name == "." || name == ".." {
        "is not a file name"
    } else if name.contains('/') {
        "has a '/'"
    } else if name.contains('\0') {
        "has a NUL byte"
    } else if name.len() > NAME_MAX {
        "is longer than 255 bytes"
    } else {
        return Ok(());
    };
    Err(InvalidName { what, name: name.chars().take(80).collect(), problem })
}

macro_rules! path_name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Takes a name that is a single path component.
            ///
            /// # Errors
            /// When it is empty, `.` or `..`, has a `/` or NUL, or is longer than 255 bytes.
            pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
                let name = name.into();
                path_component($what, &name)?;
                Ok(Self(name.into()))
            }

            /// Returns the name.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(name: String) -> Result<Self, InvalidName> {
                Self::new(name)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.to_string()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

path_name!(
    /// A pod's UID: the name of its directory under `pods/` (kubelet.md 3).
    PodUid,
    "pod UID"
);

path_name!(
    /// A volume's directory name inside a pod: the PV's name for claims, the pod volume's name otherwise (kubelet.md 1.6).
    SpecName,
    "volume name"
);

/// A CSI driver's name: at most 63 characters, alphanumeric at both ends, `-`, `_`, `.` between (csi.md 2.1).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DriverName(Arc<str>);

impl DriverName {
    /// Takes a driver's name.
    ///
    /// # Errors
    /// When it breaks the rule above; such a name could also leave its directory under `plugins/`.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidName> {
        let name = name.into();
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let problem = if name.is_empty() {
            "is empty"
        } else if name.len() > 63 {
            "is longer than 63 characters"
        } else if !name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
            "has a character other than letters, digits, '-', '_' and '.'"
        } else if !edge(name.chars().next()) || !edge(name.chars().next_back()) {
            "does not begin and end with a letter or digit"
        } else {
            return Ok(Self(name.into()));
        };
        Err(InvalidName { what: "driver name", name: name.chars().take(80).collect(), problem })
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for DriverName {
    type Error = InvalidName;

    fn try_from(name: String) -> Result<Self, InvalidName> {
        Self::new(name)
    }
}

impl From<DriverName> for String {
    fn from(name: DriverName) -> Self {
        name.0.to_string()
    }
}

impl fmt::Display for DriverName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The kubelet's name for a kind of volume (kubelet.md 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Plugin {
    /// `kubernetes.io/csi`
    Csi,
    /// `kubernetes.io/empty-dir`
    EmptyDir,
    /// `kubernetes.io/host-path`
    HostPath,
    /// `kubernetes.io/local-volume`
    #[serde(rename = "local-volume")]
    Local,
    /// `kubernetes.io/nfs`
    Nfs,
    /// `kubernetes.io/iscsi`
    Iscsi,
    /// `kubernetes.io/fc`
    Fc,
}

impl Plugin {
    /// Every plugin there is.
    pub const ALL: [Self; 7] =
        [Self::Csi, Self::EmptyDir, Self::HostPath, Self::Local, Self::Nfs, Self::Iscsi, Self::Fc];

    /// Returns the plugin's name, `kubernetes.io/csi`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Csi => "kubernetes.io/csi",
            Self::EmptyDir => "kubernetes.io/empty-dir",
            Self::HostPath => "kubernetes.io/host-path",
            Self::Local => "kubernetes.io/local-volume",
            Self::Nfs => "kubernetes.io/nfs",
            Self::Iscsi => "kubernetes.io/iscsi",
            Self::Fc => "kubernetes.io/fc",
        }
    }

    /// Returns the plugin's name as a directory name, `kubernetes.io~csi`.
    pub fn directory(self) -> &'static str {
        match self {
            Self::Csi => "kubernetes.io~csi",
            Self::EmptyDir => "kubernetes.io~empty-dir",
            Self::HostPath => "kubernetes.io~host-path",
            Self::Local => "kubernetes.io~local-volume",
            Self::Nfs => "kubernetes.io~nfs",
            Self::Iscsi => "kubernetes.io~iscsi",
            Self::Fc => "kubernetes.io~fc",
        }
    }

    /// Returns the plugin with this directory name.
    pub fn from_directory(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|p| p.directory() == name)
    }
}

/// What tells volumes apart: plugin and the plugin's own name for the volume (kubelet.md 1.6).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct VolumeKey(Arc<str>);

impl VolumeKey {
    /// Returns the key of a CSI volume that pods can share: `kubernetes.io/csi/<driver>^<handle>`.
    pub fn csi(driver: &DriverName, handle: &str) -> Self {
        // A driver's name has no '^', so no two pairs make one key.
        Self(format!("{}/{driver}^{handle}", Plugin::Csi.name()).into())
    }

    /// Returns the key of a local volume: `kubernetes.io/local-volume/<PersistentVolume>`.
    pub fn local(volume: &SpecName) -> Self {
        Self(format!("{}/{volume}", Plugin::Local.name()).into())
    }

    /// Returns the key of an NFS volume that a PersistentVolume names: `kubernetes.io/nfs/<PersistentVolume>`. A kubelet has
    /// one for each pod (kubelet.md 1.6); with one for all of them, only one pod at a time can have a ReadWriteOncePod volume.
    pub fn nfs(volume: &SpecName) -> Self {
        Self(format!("{}/{volume}", Plugin::Nfs.name()).into())
    }

    /// Returns the key of a disk of a storage system, whoever names it (kubelet.md 1.6): `kubernetes.io/iscsi/<portal>:<iqn>:<lun>`,
    /// `kubernetes.io/fc/<wwn>,<wwn>:<lun>`, `kubernetes.io/fc/<wwid>,<wwid>`. Portals have their port here, written or not.
    pub fn lun(lun: &Lun) -> Self {
        let name = match lun {
            Lun::Iscsi(IscsiLun { portals, iqn, lun, .. }) => {
                let portal = portals.first().map(Portal::to_string).unwrap_or_default();
                format!("{}/{portal}:{iqn}:{lun}", Plugin::Iscsi.name())
            }
            Lun::Fc(FcLun::Port { targets, lun }) => {
                format!("{}/{}:{lun}", Plugin::Fc.name(), targets.join(","))
            }
            Lun::Fc(FcLun::Wwids(wwids)) => format!("{}/{}", Plugin::Fc.name(), wwids.join(",")),
        };
        Self(name.into())
    }

    /// Returns the key of a volume that belongs to one pod: `<plugin>/<podUID>-<spec name>`.
    pub fn of_pod(id: &PublicationId) -> Self {
        Self(format!("{}/{}-{}", id.plugin.name(), id.pod, id.spec).into())
    }

    /// Returns the key as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for VolumeKey {
    fn from(key: String) -> Self {
        Self(key.into())
    }
}

impl From<VolumeKey> for String {
    fn from(key: VolumeKey) -> Self {
        key.0.to_string()
    }
}

impl fmt::Display for VolumeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One volume shown to one pod; at the same time its place on disk, `pods/<uid>/volumes/<plugin>/<spec name>`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicationId {
    /// The pod.
    pub pod: PodUid,
    /// The kind of volume.
    pub plugin: Plugin,
    /// The volume's directory name.
    pub spec: SpecName,
}

impl fmt::Display for PublicationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.pod, self.plugin.directory(), self.spec)
    }
}

impl From<PublicationId> for String {
    fn from(id: PublicationId) -> Self {
        id.to_string()
    }
}

impl TryFrom<String> for PublicationId {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        let bad =
            |problem| InvalidName { what: "publication", name: text.chars().take(80).collect(), problem };
        let mut parts = text.splitn(3, '/');
        let (Some(pod), Some(plugin), Some(spec)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad("is not pod/plugin/name"));
        };
        Ok(Self {
            pod: PodUid::new(pod)?,
            plugin: Plugin::from_directory(plugin).ok_or_else(|| bad("names no plugin known here"))?,
            spec: SpecName::new(spec)?,
        })
    }
}

/// A manifest object by kind and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ObjectRef {
    /// `Pod`, `PersistentVolumeClaim`, ...
    pub kind: String,
    /// Empty for objects without a namespace.
    pub namespace: String,
    /// `metadata.name`.
    pub name: String,
}

impl ObjectRef {
    /// Names an object.
    pub fn new(kind: impl Into<String>, namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { kind: kind.into(), namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}
