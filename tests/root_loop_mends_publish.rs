//! What a publication asks for that the staging was not asked for: its group and its mount options.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use looped::calls::{As, From, refused};
use looped::{Loop, path, run, write};
use tonic::Code;

const SIZE: u64 = 16 << 20;

/// The group that can write to a directory.
fn group(at: &Path) -> Option<u32> {
    let found = fs::metadata(at).expect("it is there");
    (found.mode() & 0o2070 == 0o2070).then_some(found.gid())
}

fn options(at: &Path) -> Vec<String> {
    let said = run("findmnt", &["-n", "-o", "VFS-OPTIONS", path(at)]);
    said.trim().split(',').map(str::to_owned).collect()
}

#[test]
fn a_publication_has_the_group_that_it_asks_for_or_is_refused() {
    let mut driver = Loop::new();
    let plain = As::file_system("ext4");
    let (one, other) = (plain.clone().group(4711), plain.clone().group(4712));
    driver.create("v", &plain, SIZE, From::Nothing);
    let staged = driver.staging("v");
    let [first, second, third] = ["a", "b", "c"].map(|name| driver.target(name));
    driver.stage("v", &staged, &plain).unwrap();
    write(&staged.join("before"), b"x");
    driver.publish("v", &staged, &first, &one, false).unwrap();
    for _ in 0..2 {
        assert_eq!(group(&first), Some(4711));
        assert_eq!(fs::metadata(first.join("before")).unwrap().gid(), 4711);
        let why = refused(driver.publish("v", &staged, &second, &other, false), Code::FailedPrecondition);
        assert!(why.contains("4711") && why.contains("4712"), "{why}");
        assert!(!second.exists(), "something is left of the refused publication");
        // It goes on as it was staged, and published.
        driver.stage("v", &staged, &plain).unwrap();
        driver.publish("v", &staged, &first, &one, false).unwrap();
        driver.restart(&[]);
    }
    // Who asks for no group takes what there is, and keeps others from changing it.
    driver.publish("v", &staged, &second, &one, false).unwrap();
    driver.publish("v", &staged, &third, &plain, false).unwrap();
    driver.unpublish("v", &first).unwrap();
    driver.unpublish("v", &second).unwrap();
    let why = refused(driver.publish("v", &staged, &first, &other, false), Code::FailedPrecondition);
    assert!(why.contains("4712") && why.contains("without"), "{why}");
    driver.unpublish("v", &third).unwrap();
    driver.publish("v", &staged, &first, &other, false).unwrap();
    assert_eq!(group(&first), Some(4712));
    driver.unpublish("v", &first).unwrap();
    driver.unstage("v", &staged).unwrap();

    // Staged for a group it is that group's.
    driver.stage("v", &staged, &one).unwrap();
    let why = refused(driver.publish("v", &staged, &first, &other, false), Code::FailedPrecondition);
    assert!(why.contains("4711") && why.contains("4712"), "{why}");
    driver.publish("v", &staged, &first, &one, false).unwrap();
    assert_eq!(group(&first), Some(4711));
    driver.unpublish("v", &first).unwrap();
    driver.unstage("v", &staged).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_publication_has_the_mount_options_that_it_asks_for_or_is_refused() {
    let driver = Loop::new();
    let plain = As::file_system("ext4");
    driver.create("v", &plain, SIZE, From::Nothing);
    let (staged, target, other) = (driver.staging("v"), driver.target("t"), driver.target("other"));
    driver.stage("v", &staged, &plain.clone().flag("noatime,errors=remount-ro")).unwrap();
    let asked =
        plain.clone().flag("nosuid,nodev").flag("noexec").flag("strictatime,errors=remount-ro,discard");
    driver.publish("v", &staged, &target, &asked, false).unwrap();
    let has = options(&target);
    for option in ["rw", "nosuid", "nodev", "noexec"] {
        assert!(has.iter().any(|one| one == option), "{option}: {has:?}");
    }
    assert!(!has.iter().any(|one| one == "noatime" || one == "relatime"), "{has:?}");
    // The staging, and others, have their own.
    driver.publish("v", &staged, &other, &plain, false).unwrap();
    for at in [&staged, &other] {
        let has = options(at);
        assert!(!has.iter().any(|one| one.starts_with("nos") || one == "noexec"), "{has:?}");
        assert!(has.iter().any(|one| one == "noatime"), "{has:?}");
    }
    // A staging that is made again of publications has not theirs.
    driver.unpublish("v", &other).unwrap();
    run("umount", &[path(&staged)]);
    driver.stage("v", &staged, &plain.clone().flag("noatime,errors=remount-ro")).unwrap();
    assert_eq!(options(&staged), ["rw", "noatime"]);
    // Read-only, however it is said.
    driver.publish("v", &staged, &other, &plain.clone().flag("ro"), false).unwrap();
    fs::remove_file(driver.dir.join("volumes/v/use.json")).unwrap();
    driver.stage("v", &staged, &plain.clone().flag("noatime,errors=remount-ro")).unwrap();
    let denied = fs::write(other.join("file"), b"x").unwrap_err();
    assert_eq!(denied.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    driver.unpublish("v", &other).unwrap();
    // What all mounts of a file system have cannot be one publication's.
    let wrong = plain.flag("noatime").flag("errors=panic");
    let why = refused(driver.publish("v", &staged, &other, &wrong, false), Code::FailedPrecondition);
    assert!(why.contains("errors=panic") && why.contains("errors=remount-ro"), "{why}");
    assert!(!other.exists(), "something is left of the refused publication");
    driver.unpublish("v", &target).unwrap();
    driver.unstage("v", &staged).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}
