//! What the bundled driver says of volumes that are damaged and of a host that is full, in every call that says how well they are.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::path::Path;

use looped::calls::{As, From};
use looped::{Loop, path, run};
use support::{loop_devices, until};
use volumed::proto::csi::{StorageHealthErrorType, VolumeHealthErrorType};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// Asserts that every call says the same of a volume: well, or this kind, reason and words.
#[track_caller]
fn assert_told(
    driver: &Loop,
    id: &str,
    staged: Option<&Path>,
    expected: Option<(VolumeHealthErrorType, &str, &str)>,
) {
    let listed = driver.all_health(0, "").unwrap().0.into_iter().find(|one| one.volume_id == id);
    for entries in [
        driver.controller_health(id).unwrap(),
        driver.node_health(id).unwrap(),
        listed.expect("it is listed").health_statuses,
    ] {
        let found = entries.first().map(|one| (one.status(), one.reason.as_str(), one.message.as_str()));
        match (found, expected) {
            (None, None) => {}
            (Some((kind, reason, message)), Some((expected, why, words))) => {
                assert_eq!((kind, reason, entries.len()), (expected, why, 1), "{message}");
                assert!(message.contains(words), "{message}");
            }
            (found, expected) => panic!("{found:?}, not {expected:?}"),
        }
    }
    // In the words of the versions before 1.13.
    let listed = driver.volumes(0, "").unwrap().0.into_iter().find(|(volume, _)| volume.volume_id == id);
    let stats = staged.map(|at| driver.stats(id, at).unwrap().volume_condition.expect("a condition"));
    let conditions =
        [driver.get_volume(id).unwrap().1.volume_condition, listed.expect("it is listed").1.volume_condition];
    for condition in conditions.into_iter().map(|one| one.expect("a condition")).chain(stats) {
        assert_eq!(condition.abnormal, expected.is_some(), "{condition:?}");
        assert!(condition.message.contains(expected.map_or("well", |(_, _, words)| words)), "{condition:?}");
    }
}

#[test]
fn a_volume_whose_image_is_gone_or_too_short_is_told_and_no_other() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    for id in ["damaged", "other"] {
        driver.create(id, &used, SIZE, From::Nothing);
        driver.stage(id, &driver.staging(id), &used).unwrap();
    }
    let (staged, image) = (driver.staging("damaged"), driver.dir.join("volumes/damaged/image"));
    let gone = (VolumeHealthErrorType::DataLoss, "ImageMissing", "gone");
    let short = (VolumeHealthErrorType::DataLoss, "ImageTooShort", "8Mi of 16Mi");
    let aside = driver.host.path("aside");
    assert_told(&driver, "damaged", Some(&staged), None);

    // While it is staged, and when it is not any more.
    // The device over it has it still.
    fs::hard_link(&image, &aside).unwrap();
    fs::remove_file(&image).unwrap();
    assert_told(&driver, "damaged", Some(&staged), Some(gone));
    fs::rename(&aside, &image).unwrap();
    assert_told(&driver, "damaged", Some(&staged), None);
    driver.unstage("damaged", &staged).unwrap();
    fs::rename(&image, &aside).unwrap();
    assert_told(&driver, "damaged", None, Some(gone));
    // It cannot be had, and the refusal says why.
    for refused in [driver.stage("damaged", &staged, &used), driver.snapshot("damaged", "s").map(drop)] {
        let why = refused.expect_err("there is no image");
        assert!(why.message().contains("image"), "{why:?}");
    }
    fs::rename(&aside, &image).unwrap();

    fs::copy(&image, &aside).unwrap();
    run("truncate", &["-s", "8M", path(&image)]);
    assert_told(&driver, "damaged", None, Some(short));
    fs::rename(&aside, &image).unwrap();
    assert_told(&driver, "damaged", None, None);
    driver.stage("damaged", &staged, &used).unwrap();

    assert_told(&driver, "other", Some(&driver.staging("other")), None);
    assert_eq!(driver.storage_health(), []);
}

#[test]
fn a_block_volume_that_became_too_short_while_it_is_staged_is_told() {
    let driver = Loop::new();
    driver.create("raw", &As::block(), SIZE, From::Nothing);
    let staged = driver.staging("raw");
    driver.stage("raw", &staged, &As::block()).unwrap();
    assert_told(&driver, "raw", Some(&staged), None);
    let image = driver.dir.join("volumes/raw/image");
    run("truncate", &["-s", "8M", path(&image)]);
    let short = (VolumeHealthErrorType::DataLoss, "ImageTooShort", "8Mi of 16Mi");
    assert_told(&driver, "raw", Some(&staged), Some(short));
}

#[test]
fn an_ext4_that_found_errors_in_itself_is_told() {
    let driver = Loop::new();
    let used = As::file_system("ext4").flag("errors=continue");
    driver.create("v", &used, SIZE, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    assert_told(&driver, "v", Some(&staged), None);
    let [device] = loop_devices(&driver.dir).try_into().expect("one device");
    let name = device.file_name().expect("a name").to_str().expect("text");
    let kernel = Path::new("/sys/fs/ext4").join(name);
    fs::write(kernel.join("trigger_fs_error"), "of this test").unwrap();
    until("it is counted", || fs::read_to_string(kernel.join("errors_count")).unwrap().trim() == "1");
    let errors = (VolumeHealthErrorType::Degraded, "FileSystemErrors", "found 1 errors in itself");
    assert_told(&driver, "v", Some(&staged), Some(errors));
}

#[test]
fn on_a_nearly_full_host_who_may_still_need_room_is_told() {
    let driver = Loop::on("ext4", "256M");
    let used = As::file_system("ext4");
    driver.create("thin", &used, 128 * MIB, From::Nothing);
    driver.create_as("thick", &As::block(), SIZE, From::Nothing, &[("allocation", "thick")]).unwrap();
    let staged = driver.staging("thin");
    driver.stage("thin", &staged, &used).unwrap();
    assert_told(&driver, "thin", Some(&staged), None);
    assert_eq!(driver.storage_health(), []);
    // Somebody else fills the file system that the directory is on.
    let others = driver.dir.parent().expect("a parent").join("others");
    let space = run("stat", &["--file-system", "--format=%a %S", path(&driver.dir)]);
    let free: u64 = space.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product();
    run("fallocate", &["-l", &(free - 8 * MIB).to_string(), path(&others)]);
    let full = (VolumeHealthErrorType::Degraded, "HostDirectoryFull", "may still need");
    assert_told(&driver, "thin", Some(&staged), Some(full));
    // All that it can need it has.
    assert_told(&driver, "thick", None, None);
    let told = driver.storage_health();
    let [(status, reason, message)] = &told[..] else { panic!("{told:?}") };
    assert_eq!(*status, i32::from(StorageHealthErrorType::StorageDegraded));
    assert_eq!(reason, "HostDirectoryFull");
    assert!(message.contains(path(&driver.dir)) && message.contains("may still need"), "{message}");
    // It is over when there is room again.
    fs::remove_file(&others).unwrap();
    assert_told(&driver, "thin", Some(&staged), None);
    assert_eq!(driver.storage_health(), []);
}

#[test]
fn a_volume_that_has_all_its_blocks_and_shares_them_with_a_snapshot_is_told_too() {
    let driver = Loop::on("xfs", "512M");
    let thick = [("allocation", "thick")];
    for id in ["shares", "alone"] {
        driver.create_as(id, &As::block(), 64 * MIB, From::Nothing, &thick).unwrap();
    }
    driver.snapshot("shares", "s").unwrap();
    assert_told(&driver, "shares", None, None);
    let others = driver.dir.parent().expect("a parent").join("others");
    let space = run("stat", &["--file-system", "--format=%a %S", path(&driver.dir)]);
    let free: u64 = space.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product();
    run("fallocate", &["-l", &(free - 8 * MIB).to_string(), path(&others)]);
    let full = (VolumeHealthErrorType::Degraded, "HostDirectoryFull", "may still need 64Mi");
    assert_told(&driver, "shares", None, Some(full));
    assert_told(&driver, "alone", None, None);
    driver.delete_snapshot("s").unwrap();
    assert_told(&driver, "shares", None, None);
}
