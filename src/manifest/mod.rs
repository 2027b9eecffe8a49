//! Manifest directories -> objects: watch, read, validate, keep the last good version.
//!
//! `reader` runs as one task. An event, a request or a due time makes it look at all directories (`gather`: watch, list;
//! `file`: `read` what changed, `yaml` or `json`, `objects`, `validate`); `set` joins the files, keeps what cannot be read now, and says
//! when something is really gone. Each reading is published as one value, `Manifests`.

mod decode;
mod file;
#[doc(hidden)]
pub mod fuzz;
mod gather;
mod join;
mod json;
mod last;
mod objects;
mod places;
mod read;
mod reader;
mod set;
mod touched;
mod validate;
mod versions;
mod watches;
mod yaml;

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment};

pub use reader::{Handle, Reader, Settings, WatchError, reader};

use crate::model::{ManifestSource, ObjectRef, PodUid, Problem, ReadingState};

/// Everything that the manifest directories say, as one value: replaced as a whole by each reading.
#[derive(Debug, Clone, Default)]
pub struct Manifests {
    /// The valid objects, and the last good version of those whose file broke since.
    pub objects: Arc<Objects>,
    /// What is wrong or doubtful, sorted.
    pub problems: Vec<Problem>,
    /// How the reading went; when incomplete, nothing may be taken for absent.
    pub reading: ReadingState,
}

/// An object and where it was read.
#[derive(Debug, Clone)]
pub struct Sourced<T> {
    /// The object.
    pub object: Arc<T>,
    /// Its file and line.
    pub source: ManifestSource,
    /// The object is invalid now (or its file is): this is its last good version, and its volumes are held as they are.
    /// Also true of an object that the last reading lacked and that is not yet known to stay away.
    pub stale: Option<Stale>,
}

/// Why an object is only known as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stale {
    /// It, or its file, is invalid now. The text says where and why.
    Broken(String),
    /// The last readings lacked it, and it is not yet known to stay away. The text says since when.
    Gone(String),
}

impl std::fmt::Display for Stale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Broken(why) | Self::Gone(why) => f.write_str(why),
        }
    }
}

/// Objects by kind and name; `(namespace, name)` for those in namespaces.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    /// By UID: `metadata.uid`, or volumed's own (design 3).
    pub pods: BTreeMap<PodUid, Sourced<Pod>>,
    /// Pods known by name whose manifest is invalid and that have no good version: they exist, their volumes are held.
    pub broken_pods: BTreeMap<PodUid, (ObjectRef, Problem)>,
    /// PersistentVolumeClaims.
    pub claims: BTreeMap<(String, String), Sourced<PersistentVolumeClaim>>,
    /// PersistentVolumes.
    pub volumes: BTreeMap<String, Sourced<PersistentVolume>>,
    /// StorageClasses.
    pub classes: BTreeMap<String, Sourced<StorageClass>>,
    /// Secrets. Their values must not be printed.
    pub secrets: BTreeMap<(String, String), Sourced<Secret>>,
    /// CSIDrivers.
    pub drivers: BTreeMap<String, Sourced<CSIDriver>>,
    /// VolumeAttachments.
    pub attachments: BTreeMap<String, Sourced<VolumeAttachment>>,
}

#[cfg(test)]
mod set_properties;
#[cfg(test)]
mod set_tests;
#[cfg(test)]
mod tests;
