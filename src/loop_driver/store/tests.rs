//! The store alone: whose directory it is, and what a crash leaves of an entry.

use super::*;
use crate::host::images::{Allocation, FsType};

fn volume(id: &str) -> Volume {
    Volume {
        version: VERSION,
        id: Id::new(id).unwrap(),
        name: id.to_owned(),
        state: VolumeState::Ready,
        bytes: 1 << 20,
        grown: 1 << 20,
        content: Content::FileSystem(FsType::Xfs),
        allocation: Allocation::Thin,
        project: None,
        source: Some(Source::Snapshot(Id::new("s").unwrap())),
        ephemeral: false,
        shared: 0,
        created: 7,
    }
}

fn open(directory: &Path) -> Result<Store, StoreError> {
    Store::prepare(directory, "a.example.com")?;
    Store::load(directory, "boot".to_owned())
}

#[test]
fn a_directory_with_something_else_in_it_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("precious"), "").unwrap();
    assert!(matches!(open(directory.path()), Err(StoreError::Foreign { .. })));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1, "something was made in it");
    // It does not become ours later either.
    std::fs::remove_file(directory.path().join("precious")).unwrap();
    open(directory.path()).unwrap();
    std::fs::write(directory.path().join("precious"), "").unwrap();
    assert!(matches!(open(directory.path()), Err(StoreError::Foreign { .. })));
}

#[test]
fn another_driver_s_directory_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    open(directory.path()).unwrap();
    let other = Store::prepare(directory.path(), "b.example.com");
    assert!(matches!(other, Err(StoreError::OfAnother { owner, .. }) if owner == "a.example.com"));
}

#[tokio::test]
async fn what_was_put_is_read_again_and_what_was_removed_is_gone() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    store.volumes.put(volume("v1")).await.unwrap();
    store.volumes.put(volume("v2")).await.unwrap();
    std::fs::write(store.volume_image(&volume("v2").id), "x").unwrap();
    store.volumes.remove(&volume("v2").id, FILES).await.unwrap();
    let again = open(directory.path()).unwrap();
    assert_eq!(again.volumes.all(), [volume("v1")]);
    assert_eq!(store.volumes.all(), [volume("v1")]);
}

#[tokio::test]
async fn a_crash_before_the_meta_data_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    for files in [&[][..], &["meta.json.tmp"]] {
        let of = store.volumes.directory(&volume("v").id);
        std::fs::create_dir(&of).unwrap();
        for file in files {
            std::fs::write(of.join(file), "{").unwrap();
        }
        assert!(open(directory.path()).unwrap().volumes.all().is_empty());
        assert!(!of.try_exists().unwrap(), "{files:?}");
    }
}

#[tokio::test]
async fn an_image_that_nobody_wrote_down_is_not_touched() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    let of = store.volumes.directory(&volume("v").id);
    std::fs::create_dir(&of).unwrap();
    std::fs::write(of.join(IMAGE), "data").unwrap();
    assert!(open(directory.path()).is_err());
    assert_eq!(std::fs::read(of.join(IMAGE)).unwrap(), b"data");
}

#[tokio::test]
async fn a_damaged_or_newer_file_is_an_error_that_names_it() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    store.volumes.put(volume("v")).await.unwrap();
    let meta = store.volumes.directory(&volume("v").id).join(META);
    for text in ["{", "{\"version\": 2}", &serde_json::to_string(&volume("w")).unwrap()] {
        std::fs::write(&meta, text).unwrap();
        let refused = open(directory.path());
        assert!(
            matches!(&refused, Err(StoreError::Damaged { path, .. }) if *path == meta),
            "{text}: {refused:?}"
        );
    }
}

#[tokio::test]
async fn what_another_boot_used_is_over() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    store.volumes.put(volume("v")).await.unwrap();
    let id = volume("v").id;
    let asked = Asked { mode: 1, block: true, read_only: false, flags: Vec::new(), group: None };
    let staging = Some(("/s".into(), asked));
    let used = Use { boot: "boot".to_owned(), staging, ..Use::default() };
    store.set_usage(&id, &used).await.unwrap();
    assert_eq!(store.usage(&id).await, used);
    let later = Store::load(directory.path(), "later".to_owned()).unwrap();
    assert_eq!(later.usage(&id).await.staging, None);
}

#[tokio::test]
async fn what_was_condemned_on_a_full_disk_goes_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    store.volumes.put(volume("v")).await.unwrap();
    let of = store.volumes.directory(&volume("v").id);
    std::fs::write(of.join(CONDEMNED), "data").unwrap();
    let again = open(directory.path()).unwrap();
    assert_eq!(again.volumes.all().pop().unwrap().state, VolumeState::Deleting);
    // A crash in the middle of it.
    std::fs::remove_file(of.join(META)).unwrap();
    assert!(open(directory.path()).unwrap().volumes.all().is_empty());
    assert!(!of.try_exists().unwrap());
}

#[tokio::test]
async fn what_the_driver_never_makes_is_not_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let store = open(directory.path()).unwrap();
    store.volumes.put(volume("v")).await.unwrap();
    std::fs::write(store.volumes.directory(&volume("v").id).join("image.tmp"), "data").unwrap();
    assert!(matches!(open(directory.path()), Err(StoreError::Foreign { .. })));
}
