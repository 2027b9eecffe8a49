//! The files of examples/ are what they say: manifests that volumed reads without a word, and a configuration that it takes.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    reason = "a test: it may fail loudly and runs a program"
)]

#[path = "reading/world.rs"]
#[expect(dead_code, reason = "a part of it is used")]
mod world;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use world::{World, pods};

const DRIVER: &str = "loop.csi.volumed.io";

fn examples(extension: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let all = fs::read_dir(directory).expect("it can be listed").map(|entry| entry.expect("an entry").path());
    let mut found: Vec<PathBuf> =
        all.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    found.sort();
    assert!(!found.is_empty(), "there is no example .{extension}");
    found
}

#[tokio::test]
async fn every_manifest_is_read_and_nothing_is_wrong_with_it() {
    let world = &mut World::new();
    for path in examples("yaml") {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        world.put(&format!("a/{name}"), &fs::read_to_string(&path).expect("text"));
    }
    let now = world.reread().await;
    // volumed takes no snapshots yet, and says so.
    let (notices, wrong): (Vec<_>, Vec<_>) =
        now.problems.iter().partition(|p| p.warning && p.path.ends_with("volumesnapshotclass.yaml"));
    assert!(now.reading.is_complete() && wrong.is_empty() && notices.len() == 1, "{now:#?}");
    assert_eq!(pods(&now), ["accountant", "archivist", "builder", "postgres", "scratch", "web"]);
    let objects = &now.objects;
    assert!(objects.drivers.contains_key(DRIVER), "{:?}", objects.drivers);
    let volume = objects.volumes.get("data").expect("a PersistentVolume");
    let driver =
        volume.object.spec.as_ref().and_then(|spec| spec.csi.as_ref()).map(|csi| csi.driver.as_str());
    assert_eq!(driver, Some(DRIVER));
    let claim = objects.claims.get(&("default".to_owned(), "data".to_owned())).expect("a claim");
    assert_eq!(claim.object.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()), Some("data"));
    assert_eq!(objects.classes.get("loop").map(|class| class.object.provisioner.as_str()), Some(DRIVER));
}

#[test]
fn every_configuration_is_taken() {
    for file in examples("toml") {
        let checked = Command::new(env!("CARGO_BIN_EXE_volumed"))
            .arg("--check-config")
            .arg("--config")
            .arg(&file)
            .output();
        let checked = checked.expect("it runs");
        assert!(checked.status.success() && checked.stderr.is_empty(), "{}: {checked:?}", file.display());
    }
}
