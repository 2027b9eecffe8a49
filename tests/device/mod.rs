//! What the tests of device volumes share: disks of a test's own (loop devices over files), and manifests that name them.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "every test binary uses a part of it; a test may fail loudly and run tools"
)]

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::drift::{run, text};
use crate::support::seen::volumes;
use crate::support::{TestHost, pod_using, until};

pub const MIB: u64 = 1 << 20;

/// Runs a test in namespaces of its own: only of processes that can be looked at is it known what they have open, and of this
/// machine's own not all can.
pub fn isolated(name: &str, test: fn()) {
    crate::alone::run(name, async { test() }, |_top| {});
}

/// A loop device over a file of its own. To be made before its host, which unmounts what is mounted of it.
#[derive(Debug)]
pub struct Disk {
    pub node: PathBuf,
    file: PathBuf,
    directory: tempfile::TempDir,
}

impl Disk {
    pub fn blank(mib: u64) -> Self {
        let directory = tempfile::Builder::new().prefix("disk").tempdir().expect("a directory");
        let file = directory.path().join("image");
        let image = fs::File::create_new(&file).expect("an image");
        image.set_len(mib * MIB).expect("a size");
        let node = run("losetup", &["--find", "--show", text(&file)]).trim().into();
        Self { node, file, directory }
    }

    /// A disk on which somebody has made a file system.
    pub fn with(mib: u64, mkfs: &[&str]) -> Self {
        let disk = Self::blank(mib);
        let (program, arguments) = mkfs.split_first().expect("a program");
        let arguments: Vec<&str> = arguments.iter().copied().chain([text(&disk.node)]).collect();
        run(program, &arguments);
        disk
    }

    pub fn grow(&self, mib: u64) {
        let image = fs::OpenOptions::new().write(true).open(&self.file).expect("the image");
        image.set_len(mib * MIB).expect("a size");
        run("losetup", &["--set-capacity", text(&self.node)]);
    }

    /// Writes bytes into it behind everybody's back.
    pub fn write(&self, bytes: &[u8], at: u64) {
        let device = fs::OpenOptions::new().write(true).open(&self.node).expect("the device");
        device.write_all_at(bytes, at).expect("bytes on it");
        device.sync_all().expect("bytes on it");
    }

    pub fn content(&self) -> Vec<u8> {
        fs::read(&self.node).expect("the device can be read")
    }

    /// Returns what blkid finds of it: `TYPE`, `UUID`.
    pub fn has(&self, tag: &str) -> String {
        let output = std::process::Command::new("blkid")
            .args(["-p", "-o", "value", "-s", tag])
            .arg(&self.node)
            .output()
            .expect("blkid runs");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ended = std::process::Command::new("losetup").arg("-d").arg(&self.node).status();
    }
}

/// A claim `data` and the PersistentVolume behind it, which is a device of the host. `more`: lines of its spec.
pub fn device(path: &Path, capacity: &str, more: &str) -> String {
    annotated(path, capacity, more, "{}")
}

/// The same with annotations.
pub fn annotated(path: &Path, capacity: &str, more: &str, annotations: &str) -> String {
    format!(
        r#"apiVersion: v1
kind: PersistentVolume
metadata: {{name: data, annotations: {annotations}}}
spec:
  capacity: {{storage: {capacity}}}
  accessModes: [ReadWriteOnce]
  local: {{path: "{}"}}
{more}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: data, namespace: default}}
spec:
  accessModes: [ReadWriteOnce]
  volumeName: data
  volumeMode: {}
  resources: {{requests: {{storage: 1Mi}}}}
"#,
        path.display(),
        if more.contains("volumeMode: Block") { "Block" } else { "Filesystem" },
    )
}

pub fn target(host: &TestHost, uid: &str) -> PathBuf {
    host.root.join("pods").join(uid).join("volumes/kubernetes.io~local-volume/data")
}

pub fn staging(host: &TestHost) -> PathBuf {
    host.root.join("plugins/kubernetes.io/local-volume/mounts/data")
}

/// Returns why the volume of a pod is blocked, and what to do: `code`, `detail`, `remedy`.
pub fn blocked(host: &TestHost) -> [String; 3] {
    let all = volumes(host);
    let steps = all.iter().flat_map(|volume| volume["blocked"].as_array().cloned().unwrap_or_default());
    let first = steps.into_iter().next().unwrap_or(Value::Null);
    ["code", "detail", "remedy"].map(|field| first[field].as_str().unwrap_or_default().to_owned())
}

/// Nothing is left below the root but the root's own directories.
pub fn assert_released(host: &TestHost) {
    assert_eq!(host.mounts(), Vec::<PathBuf>::new());
    assert_eq!(host.tree("pods"), Vec::<String>::new());
    assert!(!staging(host).exists(), "its directory stays");
}

pub fn up(host: &TestHost, pods: &[&str]) {
    for pod in pods {
        host.manifest(&format!("{pod}.yaml"), &pod_using(pod, &format!("uid-{pod}"), "data"));
    }
    let names: Vec<String> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
    host.wait(&names.iter().map(String::as_str).collect::<Vec<_>>());
}

pub fn down(host: &TestHost, pods: &[&str]) {
    for pod in pods {
        host.remove_manifest(&format!("{pod}.yaml"));
    }
    let mut wait = vec!["--for=released".to_owned()];
    wait.extend(pods.iter().map(|pod| format!("pod/{pod}")));
    host.wait(&wait.iter().map(String::as_str).collect::<Vec<_>>());
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("it can be read")
}

pub fn stays_blocked(host: &TestHost, code: &str, words: &str) {
    until(&format!("{code} is told with {words:?}"), || {
        let [said, detail, remedy] = blocked(host);
        said == code && detail.contains(words) && !remedy.is_empty()
    });
}
