//! The records on disk: format, damage, leftovers, modes.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::model::{
    AccessMode, BootId, CallState, Capability, DriverName, Lifecycle, MountIdentity, ObjectRef, Plugin,
    PodIdentity, PodUid, PublicationId, PublicationRecord, PublishArguments, RecordedMount, RecordedVolume,
    SpecName, StageArguments, StagingKind, StagingRecord,
};

/// A record with every field set, and every state but `Undoing`.
fn full() -> VolumeRecord {
    let driver = DriverName::new("hostpath.csi.k8s.io").unwrap();
    let boot = BootId("0b9cbd3e-8b1c-4b0e-9d0e-2d3a6a6d7c11".to_owned());
    let capability = Capability {
        volume_mode: crate::model::VolumeMode::Filesystem,
        mount_group: String::new(),
        fs_type: "ext4".to_owned(),
        mount_flags: vec!["noatime".to_owned()],
        access_mode: AccessMode::SingleNodeWriter,
    };
    let pairs = |k: &str, v: &str| BTreeMap::from([(k.to_owned(), v.to_owned())]);
    let pod = PodUid::new("098892c6-5535-4b61-8d33-7a59204b1b15").unwrap();
    let publication = |name: &str, state| {
        let id = PublicationId { pod: pod.clone(), plugin: Plugin::Csi, spec: SpecName::new(name).unwrap() };
        let record = PublicationRecord {
            boot: boot.clone(),
            state,
            pod: PodIdentity { uid: pod.clone(), namespace: "default".to_owned(), name: "web".to_owned() },
            names: BTreeSet::from(["data".to_owned()]),
            claim: Some(ObjectRef::new("PersistentVolumeClaim", "default", "data")),
            manifest: Some("/etc/volumed/manifests/web.yaml".into()),
            arguments: Some(PublishArguments {
                target_path: format!("/var/lib/kubelet/pods/{pod}/volumes/kubernetes.io~csi/{name}/mount")
                    .into(),
                staging_path: Some("/var/lib/kubelet/plugins/kubernetes.io/csi/d/h/globalmount".into()),
                publish_context: pairs("device", "/dev/sdb"),
                capability: capability.clone(),
                read_only: true,
                volume_context: pairs("size", "1Gi"),
            }),
            approved: true,
            adopted: false,
            released: false,
        };
        (id, Box::new(record))
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
        (right.as_str(), String::new(), "is empty"),
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

/// Returns a record that differs from `small` in its size only.
fn sized(handle: &str, size: u64) -> VolumeRecord {
    VolumeRecord { size: Some(size), ..small(handle) }
}

#[tokio::test]
async fn an_outcome_is_added_and_the_last_whole_document_counts() {
    let (_top, store) = open();
    let path = store.volumes.join(file_name(&small("v").key));
    store.write(small("v"), Durability::Synced).await.unwrap();
    let synced = std::fs::read(&path).unwrap();
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap());
    store.write(sized("v", 1), Durability::Written).await.unwrap();
    store.write(sized("v", 2), Durability::Written).await.unwrap();
    assert_eq!(
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).unwrap()),
        inode,
        "not replaced"
    );
    assert_eq!(store.load().await.unwrap().records, [sized("v", 2)]);
    let whole = std::fs::read(&path).unwrap();
    // A power cut may take any part of what was added, or leave zeroes in its place; never what was synced.
    for end in synced.len()..whole.len() {
        for tail in [&b""[..], &[0; 64]] {
            std::fs::write(&path, [&whole[..end], tail].concat()).unwrap();
            let loaded = store.load().await.unwrap();
            assert_eq!(loaded.damaged, [], "cut at {end}");
            assert!([small("v"), sized("v", 1), sized("v", 2)].contains(&loaded.records[0]), "cut at {end}");
        }
    }
}

#[tokio::test]
async fn nothing_is_added_to_what_another_process_wrote() {
    let (_top, store) = open();
    let path = store.volumes.join(file_name(&small("v").key));
    store.write(small("v"), Durability::Synced).await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    std::fs::write(&path, [&whole[..], b"{\"version\": 1, \"ke"].concat()).unwrap();
    let next = Directory::open(&store.state).unwrap();
    assert_eq!(next.load().await.unwrap().records, [small("v")]);
    next.write(sized("v", 3), Durability::Written).await.unwrap();
    assert_eq!(next.load().await.unwrap().records, [sized("v", 3)]);
}

#[tokio::test]
async fn a_record_does_not_grow_for_ever() {
    let (_top, store) = open();
    for size in 0..600 {
        store.write(sized("v", size), Durability::Written).await.unwrap();
    }
    let length = std::fs::metadata(store.volumes.join(file_name(&small("v").key))).unwrap().len();
    assert!(length < 2 * LONGEST, "{length}");
    assert_eq!(store.load().await.unwrap().records, [sized("v", 599)]);
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
