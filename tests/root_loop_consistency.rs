//! Snapshots of volumes that somebody writes to: each is of one moment, with all that was synced before, and so are all of a group.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::path::{Path, PathBuf};

use looped::Loop;
use looped::calls::{As, From};
use looped::check;
use looped::writer::{Writer, records};

const MIB: u64 = 1 << 20;

/// Enough for every file system.
const SIZE: u64 = 320 * MIB;

const FILE_SYSTEMS: [&str; 3] = ["ext4", "xfs", "btrfs"];

/// How often a snapshot is taken of each.
const ROUNDS: usize = 3;

/// Makes a volume and publishes it; returns where.
fn published(driver: &Loop, name: &str, used: &As, from: From<'_>) -> PathBuf {
    let (staged, target) = (driver.staging(name), driver.target(name));
    driver.create(name, used, SIZE, from);
    driver.stage(name, &staged, used).unwrap();
    driver.publish(name, &staged, &target, used, false).unwrap();
    target
}

fn taken_down(driver: &Loop, name: &str) {
    driver.unpublish(name, &driver.target(name)).unwrap();
    driver.unstage(name, &driver.staging(name)).unwrap();
    driver.delete(name).unwrap();
}

/// Makes a volume from a snapshot, whose file system has to be sound before anybody mounts it; returns its records.
fn restored(driver: &Loop, fs_type: &'static str, snapshot: &str) -> u64 {
    let used = As::file_system(fs_type);
    check::frozen(fs_type, &driver.dir.join("snapshots").join(snapshot).join("image"));
    driver.create("restored", &used, SIZE, From::Snapshot(snapshot));
    check::clean(fs_type, &driver.dir.join("volumes/restored/image"));
    let found = records(&published(driver, "restored", &used, From::Snapshot(snapshot)));
    taken_down(driver, "restored");
    found
}

/// Takes snapshots of a volume with each file system while somebody writes to it.
fn snapshots_under_a_writer(driver: &Loop) {
    for fs_type in FILE_SYSTEMS {
        let target = published(driver, "v", &As::file_system(fs_type), From::Nothing);
        let writer = Writer::start(&[&target]);
        for round in 0..ROUNDS {
            writer.goes_on();
            let before = writer.synced();
            driver.snapshot("v", "s").unwrap();
            // One more may be written and not yet synced.
            let after = writer.synced() + 1;
            writer.goes_on();
            let found = restored(driver, fs_type, "s");
            assert!((before..=after).contains(&found), "{fs_type} {round}: {found}, not {before} to {after}");
            driver.delete_snapshot("s").unwrap();
        }
        let written = writer.end();
        assert_eq!(records(&target), written, "{fs_type}: the source lost something");
        driver.unpublish("v", &target).unwrap();
        driver.unstage("v", &driver.staging("v")).unwrap();
        check::clean(fs_type, &driver.dir.join("volumes/v/image"));
        driver.delete("v").unwrap();
    }
    driver.assert_nothing_left();
}

#[test]
fn a_snapshot_under_a_writer_is_of_one_moment_where_xfs_shares_blocks() {
    snapshots_under_a_writer(&Loop::on("xfs", "2G"));
}

#[test]
fn a_snapshot_under_a_writer_is_of_one_moment_where_btrfs_shares_blocks() {
    snapshots_under_a_writer(&Loop::on("btrfs", "3G"));
}

#[test]
fn a_snapshot_under_a_writer_is_of_one_moment_where_ext4_copies() {
    snapshots_under_a_writer(&Loop::on("ext4", "2G"));
}

#[test]
fn a_snapshot_under_a_writer_is_of_one_moment_where_a_tmpfs_copies() {
    snapshots_under_a_writer(&Loop::on("tmpfs", "2G"));
}

/// Takes snapshots of a group while somebody writes the same records to its volumes, to the first first: no volume is ever
/// ahead of the one before it, and the last is one record behind the first at most.
fn groups_under_a_writer(driver: &Loop) {
    let volumes = ["a", "b", "c"];
    let of = |id: &str| FILE_SYSTEMS[volumes.iter().position(|one| *one == id).expect("one of them")];
    let mut targets = Vec::new();
    for id in volumes {
        targets.push(published(driver, id, &As::file_system(of(id)), From::Nothing));
    }
    let targets: Vec<&Path> = targets.iter().map(PathBuf::as_path).collect();
    let writer = Writer::start(&targets);
    for round in 0..ROUNDS {
        writer.goes_on();
        let before = writer.synced();
        let group = driver.group_snapshot("g", &volumes).unwrap();
        let after = writer.synced() + 1;
        writer.goes_on();
        assert!(
            group.ready_to_use && group.snapshots.iter().all(|one| one.creation_time == group.creation_time)
        );
        let mut found = Vec::new();
        for id in volumes {
            let of_it = group.snapshots.iter().find(|one| one.source_volume_id == id).expect("its snapshot");
            found.push(restored(driver, of(id), &of_it.snapshot_id));
        }
        let (first, last) = (found[0], found[2]);
        assert!(found.is_sorted_by(|one, next| one >= next) && first - last <= 1, "{round}: {found:?}");
        assert!(last >= before && first <= after, "{round}: {found:?}, not {before} to {after}");
        driver.delete_group(&group).unwrap();
    }
    let written = writer.end();
    for (id, target) in volumes.iter().zip(targets) {
        assert_eq!(records(target), written, "{id} lost something");
        taken_down(driver, id);
    }
    driver.assert_nothing_left();
}

#[test]
fn a_group_under_a_writer_is_of_one_moment_where_blocks_are_shared() {
    groups_under_a_writer(&Loop::on("xfs", "4G"));
}

#[test]
fn a_group_under_a_writer_is_of_one_moment_where_they_are_copied() {
    groups_under_a_writer(&Loop::on("ext4", "4G"));
}
