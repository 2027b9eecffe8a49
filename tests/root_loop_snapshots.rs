//! The bundled driver's snapshots and groups of them: where they can be taken, whose they are, and how they go.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;

use looped::calls::{As, From, refused};
use looped::device::{get, put};
use looped::{Loop, write};
use tonic::Code;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

#[test]
fn a_published_block_volume_is_copied_where_blocks_can_be_shared() {
    let driver = Loop::on("xfs", "512M");
    let used = As::block();
    driver.create("v", &used, 8 * MIB, From::Nothing);
    driver.stage("v", &driver.staging("v"), &used).unwrap();
    driver.publish("v", &driver.staging("v"), &driver.target("v"), &used, false).unwrap();
    put(&driver.target("v"), MIB, b"here");
    driver.snapshot("v", "s").unwrap();
    let image = driver.dir.join("snapshots/s/image");
    assert_eq!(get(&image, MIB), *b"here");
}

#[test]
fn a_group_of_snapshots_comes_and_goes_as_one() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let ids = ["a", "b"].map(|name| driver.create(name, &used, 16 * MIB, From::Nothing));
    for id in &ids {
        driver.stage(id, &driver.staging(id), &used).unwrap();
        write(&driver.staging(id).join("file"), id.as_bytes());
    }
    // A name that reads like a member's place is somebody's own snapshot.
    let own = driver.snapshot("a", "g:a").unwrap();
    let group = driver.group_snapshot("g", &["a", "b"]).unwrap();
    assert_eq!(driver.snapshot("a", "g:a").unwrap(), own);
    assert_eq!(driver.group_snapshot("g", &["b", "a"]).unwrap(), group);
    assert_eq!(group.snapshots.len(), 2);
    refused(driver.group_snapshot("g", &["a"]), Code::AlreadyExists);
    refused(driver.group_snapshot("h", &["a", "none"]), Code::NotFound);
    refused(driver.delete_snapshot(&group.snapshots[0].snapshot_id), Code::InvalidArgument);
    let mut wrong = group.clone();
    wrong.snapshots.pop();
    refused(driver.delete_group(&wrong), Code::InvalidArgument);
    driver.delete_group(&group).unwrap();
    driver.delete_group(&group).unwrap();
    assert_eq!(driver.snapshot("a", "g:a").unwrap(), own);
    driver.delete_snapshot(&own.snapshot_id).unwrap();
    for id in &ids {
        driver.unstage(id, &driver.staging(id)).unwrap();
        driver.delete(id).unwrap();
    }
    driver.assert_nothing_left();
}

#[test]
fn a_snapshot_whose_group_is_gone_stays_until_it_is_deleted() {
    let mut driver = Loop::new();
    driver.create("v", &As::block(), SIZE, From::Nothing);
    let group = driver.group_snapshot("g", &["v"]).unwrap();
    fs::remove_file(driver.dir.join("groups/g/meta.json")).unwrap();
    driver.restart(&[]);
    let member = &group.snapshots[0].snapshot_id;
    assert!(driver.dir.join("snapshots").join(member).join("image").exists());
    assert!(driver.log().contains("its group is gone"), "{}", driver.log());
    refused(driver.group_snapshot("g", &["v"]), Code::AlreadyExists);
    driver.delete_snapshot(member).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}
