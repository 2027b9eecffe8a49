//! Calls whose last write fails on a full host: they leave nothing half done, and nothing that later calls take for true.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::path::PathBuf;

use looped::Loop;
use looped::calls::{As, From, refused};
use looped::freeze::state_of;
use looped::full::{fill_host, filler};
use looped::{path, run};
use support::until;
use tonic::{Code, Status};
use volumed::proto::csi::volume_capability::access_mode::Mode;

const MIB: u64 = 1 << 20;

/// Fills the host while the driver stands at a point of a call; returns how the call ended.
fn filled_at<T: Send>(
    driver: &mut Loop,
    point: &str,
    call: impl Fn(&Loop) -> Result<T, Status> + Sync,
) -> Result<T, Status> {
    driver.restart(&[("VOLUMED_TEST_FAULT", &format!("stop:{point}"))]);
    let driver = &*driver;
    std::thread::scope(|scope| {
        let call = scope.spawn(|| call(driver));
        let process = driver.process.as_ref().expect("it runs");
        until("the driver stands still", || state_of(process) == 'T');
        fill_host(driver);
        process.signal("-CONT");
        call.join().expect("no panic")
    })
}

/// What is left of a kind.
fn left(driver: &Loop, kind: &str) -> Vec<PathBuf> {
    fs::read_dir(driver.dir.join(kind)).expect("it is there").flatten().map(|entry| entry.path()).collect()
}

#[test]
fn a_target_that_went_on_a_full_host_keeps_nobody_from_a_snapshot() {
    let driver = Loop::on("ext4", "64M");
    let used = As::block();
    driver.create_as("v", &used, 8 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    let (staged, target) = (driver.staging("v"), driver.target("t"));
    driver.stage("v", &staged, &used).unwrap();
    driver.publish("v", &staged, &target, &used, false).unwrap();
    fill_host(&driver);
    driver.unpublish("v", &target).unwrap();
    fs::remove_file(filler(&driver)).unwrap();
    let noted = driver.dir.join("volumes/v/use.json");
    assert!(!noted.exists(), "the host was not full: what it says is not so any more");
    // While it is staged, and after that.
    driver.snapshot("v", "staged").unwrap();
    driver.unstage("v", &staged).unwrap();
    let text = fs::read_to_string(&noted).unwrap();
    assert!(!text.contains(path(&target)), "{text}");
    driver.snapshot("v", "unstaged").unwrap();
    for snapshot in ["staged", "unstaged"] {
        driver.delete_snapshot(snapshot).unwrap();
    }
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_volume_whose_last_write_fails_is_not_left() {
    let mut driver = Loop::on("ext4", "64M");
    let thick = [("allocation", "thick")];
    let failed = filled_at(&mut driver, "create:image", |driver| {
        driver.create_as("v", &As::block(), 8 * MIB, From::Nothing, &thick)
    });
    refused(failed, Code::ResourceExhausted);
    assert_eq!(left(&driver, "volumes"), Vec::<PathBuf>::new(), "{}", driver.log());
    fs::remove_file(filler(&driver)).unwrap();
    driver.create_as("v", &As::block(), 8 * MIB, From::Nothing, &thick).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_group_whose_last_write_fails_is_not_left_nor_its_members() {
    let mut driver = Loop::on("ext4", "64M");
    for id in ["a", "b"] {
        driver.create(id, &As::block(), MIB, From::Nothing);
        fs::write(driver.dir.join("volumes").join(id).join("image"), vec![1; 1 << 20]).unwrap();
    }
    let failed = filled_at(&mut driver, "snapshot:outcome", |driver| driver.group_snapshot("g", &["a", "b"]));
    refused(failed, Code::ResourceExhausted);
    assert_eq!(driver.snapshots("", "", 0, "").unwrap(), (Vec::new(), String::new()));
    for kind in ["snapshots", "groups"] {
        assert_eq!(left(&driver, kind), Vec::<PathBuf>::new(), "{}", driver.log());
    }
    fs::remove_file(filler(&driver)).unwrap();
    let group = driver.group_snapshot("g", &["a", "b"]).unwrap();
    driver.delete_group(&group).unwrap();
    for id in ["a", "b"] {
        driver.delete(id).unwrap();
    }
    driver.assert_nothing_left();
}

#[test]
fn volumes_come_and_go_on_a_full_host() {
    let driver = Loop::on("ext4", "64M");
    for (id, used) in [("f", As::file_system("ext4")), ("b", As::block())] {
        driver.create_as(id, &used, 8 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
        let (staged, target) = (driver.staging(id), driver.target(id));
        fill_host(&driver);
        driver.stage(id, &staged, &used).unwrap();
        driver.publish(id, &staged, &target, &used, false).unwrap();
        // What was asked for is remembered all the same.
        let one = As { mode: Mode::SingleNodeSingleWriter, ..used.clone() };
        refused(driver.publish(id, &staged, &target, &one, false), Code::AlreadyExists);
        driver.unpublish(id, &target).unwrap();
        driver.unstage(id, &staged).unwrap();
        driver.delete(id).unwrap();
        fs::remove_file(filler(&driver)).unwrap();
    }
    driver.assert_nothing_left();
}

#[test]
fn a_full_host_is_told_as_such_whoever_meets_it() {
    let mut driver = Loop::on("ext4", "64M");
    fill_host(&driver);
    let why = refused(driver.create_as("v", &As::block(), MIB, From::Nothing, &[]), Code::ResourceExhausted);
    assert!(!why.contains(".tmp"), "{why}");
    fs::remove_file(filler(&driver)).unwrap();
    let why = filled_at(&mut driver, "create:image", |driver| {
        driver.create_as("v", &As::file_system("ext4"), 16 * MIB, From::Nothing, &[])
    });
    let why = refused(why, Code::ResourceExhausted);
    assert!(why.contains("is full, make room there"), "{why}");
    fs::remove_file(filler(&driver)).unwrap();
    driver.assert_nothing_left();
}

#[test]
fn an_image_that_has_to_go_stays_while_a_loop_device_has_it() {
    let mut driver = Loop::on("ext4", "64M");
    driver.create_as("v", &As::block(), 8 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    driver.restart(&[("VOLUMED_TEST_FAULT", "delete:intent")]);
    fill_host(&driver);
    driver.delete("v").unwrap_err();
    driver.ended();
    let condemned = driver.dir.join("volumes/v/image.deleting");
    let device = run("losetup", &["--find", "--show", path(&condemned)]).trim().to_owned();
    driver.restart(&[]);
    assert!(condemned.exists(), "it was unlinked at the start\n{}", driver.log());
    let why = refused(driver.delete("v"), Code::FailedPrecondition);
    assert!(why.contains(&device), "{why}");
    assert!(condemned.exists(), "it was unlinked");
    run("losetup", &["--detach", &device]);
    driver.delete("v").unwrap();
    fs::remove_file(filler(&driver)).unwrap();
    driver.assert_nothing_left();
}

#[test]
fn what_was_staged_on_a_full_host_is_staged_after_a_restart_and_nothing_older_is() {
    let mut driver = Loop::on("ext4", "64M");
    let used = As::block();
    driver.create_as("v", &used, 8 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    let (old, new, target) = (driver.staging("old"), driver.staging("new"), driver.target("t"));
    driver.stage("v", &old, &used).unwrap();
    fill_host(&driver);
    driver.unstage("v", &old).unwrap();
    driver.stage("v", &new, &used).unwrap();
    driver.restart(&[]);
    driver.publish("v", &new, &target, &used, false).unwrap();
    driver.unpublish("v", &target).unwrap();
    driver.unstage("v", &new).unwrap();
    driver.delete("v").unwrap();
    fs::remove_file(filler(&driver)).unwrap();
    driver.assert_nothing_left();
}
