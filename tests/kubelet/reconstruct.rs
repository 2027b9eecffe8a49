//! A kubelet's reader of its own root directory after a restart, written from kubelet.md 2: what it cannot read here it cannot
//! take down.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::loops;
use super::recording::hex;

/// Where the kubelet's directories of CSI volumes are, below the root.
const CSI: &str = "plugins/kubernetes.io/csi";

/// A volume of a pod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Volume {
    /// The pod's UID: the name of its directory.
    pub pod: String,
    /// `kubernetes.io/csi`
    pub plugin: String,
    /// The inner name: of the PersistentVolume, or of an inline volume in the pod.
    pub spec: String,
    /// What is known of a CSI volume; all other types are read as a name only.
    pub csi: Option<Csi>,
}

/// What `NodeUnpublishVolume` and `NodeUnstageVolume` need.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Csi {
    pub driver: String,
    pub handle: String,
    /// `Persistent` or `Ephemeral`
    pub lifecycle: String,
    /// Relative to the root; inline volumes have none.
    pub staging: Option<PathBuf>,
    /// There is something to unstage: of a driver without staging a kubelet writes no file for it.
    pub staged: bool,
    /// For volumeMode Block.
    pub block: Option<Block>,
}

/// A block volume's paths, relative to the root.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Block {
    /// Where the driver published it.
    pub published: PathBuf,
    /// The file on which the device is bound for the pod.
    pub map: PathBuf,
    /// How many loop devices hold it: a kubelet lets go the one it finds.
    pub locks: usize,
}

/// Everything that lies below `pods/`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reading {
    pub volumes: BTreeSet<Volume>,
    /// By path relative to the root: why it cannot be reconstructed.
    pub failed: BTreeMap<PathBuf, String>,
}

/// Reads a root directory: names of directories, `vol_data.json` and `/sys/block`, and nothing in a volume.
pub fn reconstruct(root: &Path) -> Reading {
    let mut reading = Reading::default();
    for pod in names(&root.join("pods")) {
        for kind in ["volumes", "volumeDevices"] {
            let of_kind = Path::new("pods").join(&pod).join(kind);
            for plugin in names(&root.join(&of_kind)) {
                for name in names(&root.join(&of_kind).join(&plugin)) {
                    match volume(root, &pod, kind, &plugin, &name) {
                        Ok(volume) => drop(reading.volumes.insert(volume)),
                        Err(why) => drop(reading.failed.insert(of_kind.join(&plugin).join(&name), why)),
                    }
                }
            }
        }
    }
    reading
}

fn volume(root: &Path, pod: &str, kind: &str, directory: &str, name: &str) -> Result<Volume, String> {
    let plugin = directory.replace('~', "/");
    let csi = match (plugin.as_str(), kind) {
        ("kubernetes.io/csi", "volumes") => Some(file_system(root, pod, directory, name)?),
        ("kubernetes.io/csi", _) => Some(block(root, pod, name)?),
        (_, _) => None,
    };
    Ok(Volume { pod: pod.to_owned(), plugin, spec: name.to_owned(), csi })
}

fn file_system(root: &Path, pod: &str, directory: &str, name: &str) -> Result<Csi, String> {
    let of_pod = root.join("pods").join(pod).join("volumes").join(directory).join(name);
    let data = vol_data(&of_pod)?;
    check_name(&data, name)?;
    let (driver, handle) = (value(&data, "driverName")?, value(&data, "volumeHandle")?);
    let lifecycle = value(&data, "volumeLifecycleMode")?;
    let (staging, staged) = match lifecycle.as_str() {
        "Ephemeral" => (None, false),
        "Persistent" => {
            let own = Path::new(CSI).join(&driver).join(sha256(&handle));
            // The unmounter of a device reads who it belongs to beside its path.
            let staged = root.join(&own).join("vol_data.json").exists();
            if staged {
                let beside = vol_data(&root.join(&own))?;
                if value(&beside, "driverName")? != driver || value(&beside, "volumeHandle")? != handle {
                    return Err(format!("{} is of another volume", own.display()));
                }
            }
            (Some(own.join("globalmount")), staged)
        }
        other => return Err(format!("a lifecycle mode {other}")),
    };
    Ok(Csi { driver, handle, lifecycle, staging, staged, block: None })
}

fn block(root: &Path, pod: &str, name: &str) -> Result<Csi, String> {
    let all = Path::new(CSI).join("volumeDevices");
    let data = vol_data(&root.join(&all).join(name).join("data"))?;
    check_name(&data, name)?;
    let staging = all.join("staging").join(name);
    let map = all.join(name).join("dev").join(pod);
    Ok(Csi {
        driver: value(&data, "driverName")?,
        handle: value(&data, "volumeHandle")?,
        lifecycle: "Persistent".to_owned(),
        staged: root.join(&staging).is_dir(),
        staging: Some(staging),
        block: Some(Block {
            published: all.join("publish").join(name).join(pod),
            locks: loops::on(&root.join(&map)).len(),
            map,
        }),
    })
}

fn vol_data(directory: &Path) -> Result<BTreeMap<String, String>, String> {
    let bytes = std::fs::read(directory.join("vol_data.json")).map_err(|error| error.to_string())?;
    serde_json::from_slice(&bytes).map_err(|error| error.to_string())
}

fn value(data: &BTreeMap<String, String>, key: &str) -> Result<String, String> {
    data.get(key).cloned().ok_or_else(|| format!("no {key} in vol_data.json"))
}

fn check_name(data: &BTreeMap<String, String>, name: &str) -> Result<(), String> {
    let spec = value(data, "specVolID")?;
    if spec == name { Ok(()) } else { Err(format!("it is called {spec} in vol_data.json")) }
}

/// Lists a directory; none when there is none.
fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect()
}

fn sha256(text: &str) -> String {
    use sha2::{Digest, Sha256};
    hex(&Sha256::digest(text))
}
