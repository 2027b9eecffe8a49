//! The records as files: `<state>/volumes/<sha256 of the key>.json`, one per volume, and the notes as `<state>/<name>.json`.
//!
//! A file is written under a temporary name, synced where that is asked for, and renamed: it is whole or it is the old one.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;

use super::{Durability, Loaded, Store, StoreError};
use crate::BoxFuture;
use crate::model::{Problem, VolumeKey, VolumeRecord};

/// How many files are written at a time (design 5; dependencies.md 8: 1,000 synced records in a fifth of the time).
const AT_A_TIME: usize = 16;

/// How long one file may take: a disk that writes back a lot can need seconds for an fsync.
const LIMIT: Duration = Duration::from_secs(60);

/// What files in the making end in; a crash leaves them behind.
const TEMPORARY: &str = ".tmp";

/// The state directory.
#[derive(Debug)]
pub struct Directory {
    state: PathBuf,
    volumes: PathBuf,
    slots: Arc<Semaphore>,
}

impl Directory {
    /// Makes the state directory (0700) and `volumes/` where they are missing.
    ///
    /// # Errors
    /// Names the directory. One that is already there with another mode is set to 0700: records hold contexts of volumes.
    pub fn open(state_dir: &Path) -> Result<Self, StoreError> {
        let volumes = state_dir.join("volumes");
        if let Some(parent) = state_dir.parent().filter(|p| !p.as_os_str().is_empty()) {
            let made = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(parent);
            made.map_err(failed("make", parent))?;
        }
        for path in [state_dir, &volumes] {
            match std::fs::DirBuilder::new().mode(0o700).create(path) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                made => made.map_err(failed("make", path))?,
            }
            let mode = std::fs::Permissions::from_mode(0o700);
            std::fs::set_permissions(path, mode).map_err(failed("set the mode of", path))?;
            // A synced record in a directory that a power cut takes back would be none.
            if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
                sync(parent)?;
            }
        }
        Ok(Self { state: state_dir.to_owned(), volumes, slots: Arc::new(Semaphore::new(AT_A_TIME)) })
    }

    /// Runs blocking work, a bounded number at a time, with a deadline.
    async fn run<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: PathBuf,
        work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let slots = Arc::clone(&self.slots);
        let whole = async move {
            // The semaphore is never closed; if it were, the work would only lose its bound.
            let slot = slots.acquire_owned().await.ok();
            tokio::task::spawn_blocking(move || {
                let done = work();
                drop(slot);
                done
            })
            .await
        };
        match tokio::time::timeout(LIMIT, whole).await {
            Ok(Ok(done)) => done,
            Ok(Err(join)) => match join.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(stopped) => Err(failed(doing, &path)(io::Error::other(stopped))),
            },
            Err(_elapsed) => {
                let text = format!("no answer within {} s", LIMIT.as_secs());
                Err(failed(doing, &path)(io::Error::new(io::ErrorKind::TimedOut, text)))
            }
        }
    }

    fn note_path(&self, name: &str) -> PathBuf {
        self.state.join(format!("{name}.json"))
    }
}

impl Store for Directory {
    fn load(&self) -> BoxFuture<'_, Result<Loaded, StoreError>> {
        let volumes = self.volumes.clone();
        Box::pin(self.run("read", self.volumes.clone(), move || load(&volumes)))
    }

    fn write(&self, record: VolumeRecord, durability: Durability) -> BoxFuture<'_, Result<(), StoreError>> {
        let path = self.volumes.join(file_name(&record.key));
        Box::pin(self.run("write", path.clone(), move || write(&path, &record, durability)))
    }

    fn remove(&self, key: VolumeKey) -> BoxFuture<'_, Result<(), StoreError>> {
        let path = self.volumes.join(file_name(&key));
        Box::pin(self.run("remove", path.clone(), move || match std::fs::remove_file(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed.map_err(failed("remove", &path)),
        }))
    }

    fn note(&self, name: &'static str) -> BoxFuture<'_, Result<Option<serde_json::Value>, StoreError>> {
        let path = self.note_path(name);
        Box::pin(self.run("read", path.clone(), move || match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|e| failed("read", &path)(e.into())),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path)(e)),
        }))
    }

    fn set_note(
        &self,
        name: &'static str,
        value: serde_json::Value,
    ) -> BoxFuture<'_, Result<(), StoreError>> {
        let path = self.note_path(name);
        Box::pin(self.run("write", path.clone(), move || write(&path, &value, Durability::Synced)))
    }
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError { doing, path, source }
}

/// Returns a record's file name. A key can be longer than a file name and has slashes.
fn file_name(key: &VolumeKey) -> String {
    let mut name = String::with_capacity(64 + ".json".len());
    for byte in Sha256::digest(key.as_str().as_bytes()) {
        // Writing to a String cannot fail.
        let _written = write!(name, "{byte:02x}");
    }
    name.push_str(".json");
    name
}

/// Replaces a file. Each of the steps can be repeated; a failure leaves the old file, and at most a temporary one.
fn write(path: &Path, content: &impl Serialize, durability: Durability) -> Result<(), StoreError> {
    let mut text = serde_json::to_vec_pretty(content).map_err(|e| failed("write", path)(e.into()))?;
    text.push(b'\n');
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(TEMPORARY);
    let temporary = PathBuf::from(temporary);
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options.open(&temporary).map_err(failed("make", &temporary))?;
    file.write_all(&text).map_err(failed("write", &temporary))?;
    match durability {
        Durability::Synced => file.sync_all().map_err(failed("sync", &temporary))?,
        Durability::Written => {}
    }
    std::fs::rename(&temporary, path).map_err(failed("rename a new file to", path))?;
    match (durability, path.parent()) {
        (Durability::Synced, Some(parent)) => sync(parent),
        (Durability::Synced, None) | (Durability::Written, _) => Ok(()),
    }
}

/// Syncs a directory: the names in it.
fn sync(directory: &Path) -> Result<(), StoreError> {
    std::fs::File::open(directory).and_then(|d| d.sync_all()).map_err(failed("sync", directory))
}

/// Reads all records. Only the directory itself can make it fail.
fn load(volumes: &Path) -> Result<Loaded, StoreError> {
    let mut loaded = Loaded::default();
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(volumes).map_err(failed("list", volumes))? {
        paths.push(entry.map_err(failed("list", volumes))?.path());
    }
    paths.sort();
    for path in paths {
        if path.as_os_str().as_encoded_bytes().ends_with(TEMPORARY.as_bytes()) {
            // Never renamed, so never in force.
            match std::fs::remove_file(&path) {
                Ok(()) => {}
                Err(e) => {
                    loaded.damaged.push(damaged(&path, format!("a leftover that cannot be removed: {e}")));
                }
            }
            continue;
        }
        match read(&path) {
            Ok(record) => loaded.records.push(record),
            Err(detail) => loaded.damaged.push(damaged(&path, detail)),
        }
    }
    Ok(loaded)
}

/// Reads one record, or says what is wrong with its file.
fn read(path: &Path) -> Result<VolumeRecord, String> {
    /// The version alone, so that a newer file is called newer and not damaged.
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let kind = std::fs::symlink_metadata(path).map_err(|e| format!("cannot be read: {e}"))?.file_type();
    if !kind.is_file() {
        return Err("is not a regular file".to_owned());
    }
    let text = std::fs::read(path).map_err(|e| format!("cannot be read: {e}"))?;
    let Version { version } = serde_json::from_slice(&text).map_err(|e| format!("is not a record: {e}"))?;
    if version != VolumeRecord::VERSION {
        return Err(format!(
            "has the format version {version}; this volumed knows {}",
            VolumeRecord::VERSION
        ));
    }
    let record: VolumeRecord = serde_json::from_slice(&text).map_err(|e| format!("is not a record: {e}"))?;
    let expected = file_name(&record.key);
    if path.file_name() != Some(std::ffi::OsStr::new(&expected)) {
        return Err(format!("is the record of {}, which belongs in {expected}", record.key));
    }
    Ok(record)
}

fn damaged(path: &Path, detail: String) -> Problem {
    Problem {
        path: path.to_owned(),
        position: None,
        object: None,
        field: None,
        detail,
        remedy:
            "volumed leaves this file and its volume alone; restore the file, or unmount the volume by hand, \
                 remove the file and restart volumed"
                .to_owned(),
        warning: false,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::model::{
        AccessMode, BootId, CallState, Capability, DriverName, Lifecycle, MountIdentity, ObjectRef, Plugin,
        PodIdentity, PodUid, PublicationId, PublicationRecord, PublishArguments, RecordedMount,
        RecordedVolume, SpecName, StageArguments, StagingKind, StagingRecord,
    };

    /// A record with every field set, and every state but `Undoing`.
    fn full() -> VolumeRecord {
        let driver = DriverName::new("hostpath.csi.k8s.io").unwrap();
        let boot = BootId("0b9cbd3e-8b1c-4b0e-9d0e-2d3a6a6d7c11".to_owned());
        let capability = Capability {
            fs_type: "ext4".to_owned(),
            mount_flags: vec!["noatime".to_owned()],
            access_mode: AccessMode::SingleNodeWriter,
        };
        let pairs = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
        let pod = PodUid::new("098892c6-5535-4b61-8d33-7a59204b1b15").unwrap();
        let publication = |name: &str, state| {
            let id =
                PublicationId { pod: pod.clone(), plugin: Plugin::Csi, spec: SpecName::new(name).unwrap() };
            let record = PublicationRecord {
                boot: boot.clone(),
                state,
                pod: PodIdentity {
                    uid: pod.clone(),
                    namespace: "default".to_owned(),
                    name: "web".to_owned(),
                },
                names: BTreeSet::from(["data".to_owned()]),
                claim: Some(ObjectRef::new("PersistentVolumeClaim", "default", "data")),
                manifest: Some("/etc/volumed/manifests/web.yaml".into()),
                arguments: Some(PublishArguments {
                    target_path: format!(
                        "/var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~csi/{name}/mount"
                    )
                    .into(),
                    staging_path: Some("/var/lib/kubelet/plugins/kubernetes.io/csi/d/h/globalmount".into()),
                    publish_context: pairs("device", "/dev/sdb"),
                    capability: capability.clone(),
                    read_only: true,
                    volume_context: pairs("size", "1Gi"),
                }),
                approved: true,
            };
            (id, record)
        };
        let mount = MountIdentity {
            fs_type: "ext4".to_owned(),
            source: "/dev/sdb".to_owned(),
            root: "/".to_owned(),
            device: (8, 16),
        };
        let volume = RecordedVolume::Csi {
            driver: driver.clone(),
            handle: "vol-1".to_owned(),
            lifecycle: Lifecycle::Persistent,
        };
        VolumeRecord {
            staging: Some(StagingRecord {
                boot: boot.clone(),
                state: CallState::Done { mount: RecordedMount::Mount(mount) },
                arguments: StageArguments {
                    kind: StagingKind::Call,
                    staging_path: "/var/lib/kubelet/plugins/kubernetes.io/csi/d/h/globalmount".into(),
                    publish_context: pairs("device", "/dev/sdb"),
                    capability: capability.clone(),
                    volume_context: pairs("size", "1Gi"),
                },
            }),
            publications: BTreeMap::from([
                publication("pv1", CallState::Intended { settled: false }),
                publication("pv2", CallState::Planned),
                publication("pv3", CallState::Done { mount: RecordedMount::NotAMountPoint }),
            ]),
            ..VolumeRecord::new(VolumeKey::csi(&driver, "vol-1"), volume)
        }
    }

    fn small(handle: &str) -> VolumeRecord {
        let driver = DriverName::new("d").unwrap();
        let key = VolumeKey::csi(&driver, handle);
        let handle = handle.to_owned();
        VolumeRecord::new(key, RecordedVolume::Csi { driver, handle, lifecycle: Lifecycle::Persistent })
    }

    fn open() -> (tempfile::TempDir, Directory) {
        let top = tempfile::tempdir().unwrap();
        let store = Directory::open(&top.path().join("state")).unwrap();
        (top, store)
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    /// The file that operators and older versions read. A change here is a change of the format: raise the version.
    #[tokio::test]
    async fn the_format_is_the_one_on_file() {
        let (_top, store) = open();
        store.write(full(), Durability::Synced).await.unwrap();
        let text = std::fs::read_to_string(store.volumes.join(file_name(&full().key))).unwrap();
        assert!(text.starts_with("{\n  \"version\": 1,"), "{text}");
        let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/src/record/format.json");
        if std::env::var_os("VOLUMED_WRITE_GOLDEN").is_some() {
            std::fs::write(golden, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(golden).unwrap());
    }

    #[tokio::test]
    async fn what_was_written_is_loaded_again() {
        let (_top, store) = open();
        let mut all = vec![full(), small("a"), small(&"x".repeat(2000)), small("../../etc/passwd")];
        for record in &all {
            store.write(record.clone(), Durability::Written).await.unwrap();
            store.write(record.clone(), Durability::Synced).await.unwrap();
        }
        store.remove(small("a").key).await.unwrap();
        store.remove(small("a").key).await.unwrap();
        all.remove(1);
        let mut loaded = store.load().await.unwrap();
        loaded.records.sort_by(|a, b| a.key.cmp(&b.key));
        all.sort_by(|a, b| a.key.cmp(&b.key));
        assert_eq!((loaded.records, loaded.damaged), (all, vec![]));
    }

    #[tokio::test]
    async fn nobody_else_reads_the_records() {
        let (_top, store) = open();
        store.write(full(), Durability::Synced).await.unwrap();
        store.set_note("boot", serde_json::json!("x")).await.unwrap();
        for (path, expected) in [
            (store.state.clone(), 0o700),
            (store.volumes.clone(), 0o700),
            (store.volumes.join(file_name(&full().key)), 0o600),
            (store.state.join("boot.json"), 0o600),
        ] {
            assert_eq!(mode(&path), expected, "{}", path.display());
        }
        std::fs::set_permissions(&store.state, std::fs::Permissions::from_mode(0o755)).unwrap();
        let again = Directory::open(&store.state).unwrap();
        assert_eq!(mode(&again.state), 0o700);
    }

    #[tokio::test]
    async fn a_damaged_record_harms_no_other_and_stays() {
        let (_top, store) = open();
        store.write(small("good"), Durability::Synced).await.unwrap();
        let text = serde_json::to_string(&small("bad")).unwrap();
        let right = file_name(&small("bad").key);
        let cases = [
            (right.as_str(), text[..text.len() / 2].to_owned(), "is not a record"),
            (right.as_str(), String::new(), "is not a record"),
            (right.as_str(), text.replace("\"version\":1", "\"version\":2"), "format version 2"),
            (right.as_str(), text.replace("{\"version\"", "{\"surprise\":1,\"version\""), "surprise"),
            ("copy of it.json", text.clone(), "belongs in"),
            (file_name(&small("other").key).as_str(), text.clone(), "belongs in"),
        ]
        .map(|(name, content, expected)| (name.to_owned(), content, expected));
        for (name, content, expected) in cases {
            let path = store.volumes.join(name);
            std::fs::write(&path, &content).unwrap();
            let loaded = store.load().await.unwrap();
            assert_eq!(loaded.records, [small("good")]);
            let [problem] = loaded.damaged.as_slice() else { panic!("{:?}", loaded.damaged) };
            assert!(problem.detail.contains(expected) && problem.path == path, "{problem}");
            assert!(!problem.remedy.is_empty() && !problem.warning);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), content, "left untouched");
            std::fs::remove_file(&path).unwrap();
        }
        std::fs::create_dir(store.volumes.join("directory.json")).unwrap();
        assert_eq!(store.load().await.unwrap().damaged.len(), 1);
    }

    #[tokio::test]
    async fn what_a_crash_left_half_written_is_not_in_force() {
        let (_top, store) = open();
        store.write(small("v"), Durability::Synced).await.unwrap();
        let leftover = store.volumes.join(format!("{}{TEMPORARY}", file_name(&small("v").key)));
        std::fs::write(&leftover, "{\"version\":1,").unwrap();
        let loaded = store.load().await.unwrap();
        assert_eq!((loaded.records, loaded.damaged), (vec![small("v")], vec![]));
        assert!(!leftover.try_exists().unwrap());
        std::fs::write(&leftover, "longer than what is written next".repeat(100)).unwrap();
        store.write(small("v"), Durability::Written).await.unwrap();
        assert_eq!(store.load().await.unwrap().records, [small("v")]);
    }

    #[tokio::test]
    async fn a_failed_write_names_the_file_and_leaves_the_old_record() {
        let (_top, store) = open();
        store.write(small("v"), Durability::Synced).await.unwrap();
        let leftover = store.volumes.join(format!("{}{TEMPORARY}", file_name(&small("v").key)));
        std::fs::create_dir(&leftover).unwrap();
        let failed = store.write(small("v"), Durability::Synced).await.unwrap_err();
        assert_eq!(failed.path, leftover);
        std::fs::remove_dir(&leftover).unwrap();
        assert_eq!(store.load().await.unwrap().records, [small("v")]);
    }

    #[tokio::test]
    async fn notes_are_kept_by_name() {
        let (_top, store) = open();
        assert_eq!(store.note("boot").await.unwrap(), None);
        for value in [serde_json::json!("one"), serde_json::json!({"two": [2]})] {
            store.set_note("boot", value.clone()).await.unwrap();
            assert_eq!(store.note("boot").await.unwrap(), Some(value));
        }
        assert_eq!(store.note("directories").await.unwrap(), None);
        assert_eq!(store.load().await.unwrap().damaged, vec![], "notes are no records");
        std::fs::write(store.state.join("boot.json"), "{").unwrap();
        assert!(store.note("boot").await.is_err());
    }
}
