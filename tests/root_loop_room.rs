//! The room that the bundled driver has and promises: capacity, reserve and overcommitment, what is thin or thick, shared or copied,
//! and a host or a volume that is full.

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

use looped::calls::{As, From, refused};
use looped::{Loop, path, run, write};
use tonic::Code;
use volumed::proto::csi;
use volumed::proto::csi::controller_client::ControllerClient;

const MIB: u64 = 1 << 20;

#[test]
fn who_writes_past_a_volume_s_size_is_told_and_nobody_else() {
    let driver = Loop::new();
    // As small as each file system can be.
    for (fs_type, size) in [("ext4", 8 * MIB), ("xfs", 304 * MIB), ("btrfs", 128 * MIB)] {
        let used = As::file_system(fs_type);
        let small = driver.create(&format!("small-{fs_type}"), &used, size, From::Nothing);
        let other = driver.create(&format!("other-{fs_type}"), &used, size, From::Nothing);
        for id in [&small, &other] {
            driver.stage(id, &driver.staging(id), &used).unwrap();
        }
        let full =
            fs::write(driver.staging(&small).join("file"), vec![1; usize::try_from(2 * size).unwrap()]);
        assert_eq!(full.unwrap_err().kind(), std::io::ErrorKind::StorageFull, "{fs_type}");
        write(&driver.staging(&other).join("file"), &[1; 1 << 20]);
        let usage = driver.stats(&small, &driver.staging(&small)).unwrap().usage;
        assert!(usage[0].total <= i64::try_from(size).unwrap(), "{fs_type}: {usage:?}");
        for id in [&small, &other] {
            driver.unstage(id, &driver.staging(id)).unwrap();
            driver.delete(id).unwrap();
        }
    }
}

#[test]
fn who_writes_past_the_end_of_a_block_volume_is_told() {
    let driver = Loop::new();
    let used = As::block();
    let volume = driver.create("v", &used, 8 * MIB, From::Nothing);
    let (staged, target) = (driver.staging("v"), driver.target("v"));
    driver.stage(&volume, &staged, &used).unwrap();
    driver.publish(&volume, &staged, &target, &used, false).unwrap();
    let device = fs::OpenOptions::new().write(true).open(&target).unwrap();
    let at = |offset: u64| std::os::unix::fs::FileExt::write_all_at(&device, &[1; 4096], offset);
    at(8 * MIB - 4096).unwrap();
    assert_eq!(at(8 * MIB).unwrap_err().kind(), std::io::ErrorKind::StorageFull);
    let image = fs::metadata(driver.dir.join("volumes/v/image")).unwrap();
    assert_eq!(image.len(), 8 * MIB, "the image has not grown");
}

#[test]
fn what_was_promised_is_not_promised_again() {
    let driver = Loop::on("ext4", "512M");
    let used = As::file_system("ext4");
    driver.create("a", &used, 300 * MIB, From::Nothing);
    let why = refused(driver.create_as("b", &used, 300 * MIB, From::Nothing, &[]), Code::ResourceExhausted);
    assert!(why.contains("promised"), "{why}");
    // Nor to two that grow at the same moment.
    let small = ["e", "f"].map(|name| driver.create(name, &As::block(), MIB, From::Nothing));
    let grown: Vec<bool> = std::thread::scope(|scope| {
        let driver = &driver;
        let all: Vec<_> = small
            .iter()
            .map(|id| scope.spawn(move || driver.controller_expand(id, 120 * MIB).is_ok()))
            .collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    assert!(grown != [true, true], "more was promised than there is");
    for id in &small {
        driver.delete(id).unwrap();
    }
    driver.create_as("c", &used, 64 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    let image = fs::metadata(driver.dir.join("volumes/c/image")).unwrap();
    assert!(image.blocks() * 512 >= 64 * MIB, "a thick volume is not all there");
    // What its user gives back nobody else gets, and it has it again when it is staged again.
    let staged = driver.staging("c");
    driver.stage("c", &staged, &used).unwrap();
    run("fstrim", &[path(&staged)]);
    driver.unstage("c", &staged).unwrap();
    let image = || fs::metadata(driver.dir.join("volumes/c/image")).unwrap().blocks() * 512;
    assert!(image() < 64 * MIB, "nothing was trimmed");
    refused(driver.create_as("d", &used, 100 * MIB, From::Nothing, &[]), Code::ResourceExhausted);
    driver.stage("c", &staged, &used).unwrap();
    assert!(image() >= 64 * MIB, "a thick volume lost blocks");
}

#[test]
fn a_full_host_directory_is_told_before_a_thin_volume_meets_it() {
    let driver = Loop::on("ext4", "256M");
    let used = As::file_system("ext4");
    let volume = driver.create("v", &used, 128 * MIB, From::Nothing);
    let staged = driver.staging("v");
    driver.stage(&volume, &staged, &used).unwrap();
    let condition = || driver.stats(&volume, &staged).unwrap().volume_condition.expect("a condition");
    assert!(!condition().abnormal, "{:?}", condition());
    // Somebody else fills the file system that the directory is on.
    let others = driver.dir.parent().expect("a parent").join("others");
    let space = run("stat", &["--file-system", "--format=%a %S", path(&driver.dir)]);
    let free: u64 = space.split_whitespace().map(|number| number.parse::<u64>().unwrap()).product();
    run("fallocate", &["-l", &(free - 8 * MIB).to_string(), path(&others)]);
    let condition = condition();
    assert!(condition.abnormal && condition.message.contains("may still need"), "{condition:?}");
    // The volume still works: it was told before.
    write(&staged.join("file"), b"x");
}

#[test]
fn on_a_full_host_a_volume_can_be_deleted() {
    let driver = Loop::on("ext4", "64M");
    driver.create("v", &As::block(), 16 * MIB, From::Nothing);
    driver.create_as("w", &As::block(), 8 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    let filler = driver.dir.parent().expect("a parent").join("filler");
    for size in ["1M", "4k", "1k"] {
        let mut fill = std::process::Command::new("dd");
        fill.args(["if=/dev/zero", "conv=notrunc", "oflag=append"]).arg(format!("bs={size}"));
        fill.arg(format!("of={}", path(&filler))).stderr(std::process::Stdio::null());
        assert!(!fill.status().unwrap().success(), "the disk is not full");
    }
    refused(driver.create_as("x", &As::block(), MIB, From::Nothing, &[]), Code::ResourceExhausted);
    driver.delete("w").unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_snapshot_takes_no_room_that_volumes_were_promised() {
    let driver = Loop::on("ext4", "512M");
    let used = As::block();
    driver.create_as("v", &used, 200 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    driver.create("w", &used, 200 * MIB, From::Nothing);
    refused(driver.snapshot("v", "s"), Code::ResourceExhausted);
    driver.snapshot("w", "s").unwrap();
    driver.delete_snapshot("s").unwrap();
    driver.delete("v").unwrap();
    driver.delete("w").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_shared_snapshot_for_whose_writes_there_is_no_room_is_not_taken() {
    let driver = Loop::on("xfs", "512M");
    let used = As::block();
    driver.create_as("v", &used, 300 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    let why = refused(driver.snapshot("v", "s"), Code::ResourceExhausted);
    assert!(why.contains("promised"), "{why}");
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_clone_needs_its_own_room_and_no_more() {
    let driver = Loop::on("ext4", "512M");
    let used = As::block();
    driver.create_as("v", &used, 200 * MIB, From::Nothing, &[("allocation", "thick")]).unwrap();
    driver.create("w", &used, 200 * MIB, From::Volume("v"));
}

/// What the driver says it can make with these parameters, in bytes.
fn room(driver: &Loop, parameters: &[(&str, &str)]) -> u64 {
    let parameters = parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let request = csi::GetCapacityRequest { parameters, ..Default::default() };
    let answer = driver.call(async |channel| ControllerClient::new(channel).get_capacity(request).await);
    u64::try_from(answer.expect("it can be asked").available_capacity).expect("a size")
}

/// The bytes of the file system below the driver's directory, and those of them that can be had.
fn space(driver: &Loop) -> (u64, u64) {
    let said = run("stat", &["--file-system", "--format=%b %a %S", path(&driver.dir)]);
    let numbers: Vec<u64> = said.split_whitespace().map(|number| number.parse().expect("a number")).collect();
    let [all, free, block] = numbers.try_into().expect("three numbers");
    (all * block, free * block)
}

fn about(left: u64, right: u64) -> bool {
    left.abs_diff(right) < 2 * MIB
}

#[test]
fn overcommitted_thin_volumes_have_their_factor_of_what_is_free_and_no_more() {
    let mut driver = Loop::on("ext4", "256M");
    let thick = [("allocation", "thick")];
    fs::write(driver.host.path("csi-loop.toml"), "reserve = '0'\novercommit = 3.0\n").unwrap();
    driver.restart(&[]);
    let (_, free) = space(&driver);
    assert!(about(room(&driver, &[]), 3 * free) && about(room(&driver, &thick), free));
    // More than there is, and less than three times that: a third of it is set aside.
    let used = As::block();
    driver.create("v", &used, 2 * free / MIB * MIB, From::Nothing);
    let (left, thick_left) = (room(&driver, &[]), room(&driver, &thick));
    assert!(about(left, free) && about(thick_left, free / 3), "{left} {thick_left} of {free}");
    // What it says can be had, and what is beyond cannot.
    let refused = driver.create_as("w", &used, left + 4 * MIB, From::Nothing, &[]);
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    driver.create("w", &used, (left - MIB) / MIB * MIB, From::Nothing);
    assert!(room(&driver, &[]) < 4 * MIB && room(&driver, &thick) < 4 * MIB);
    driver.delete("v").unwrap();
    driver.delete("w").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_twentieth_of_the_host_is_not_given_away_unless_told() {
    let mut driver = Loop::on("ext4", "256M");
    fs::write(driver.host.path("csi-loop.toml"), "").unwrap();
    driver.restart(&[]);
    let (all, free) = space(&driver);
    let had = room(&driver, &[]);
    assert!(about(had, free - all / 20), "{had} of {free}, {all} in all");
    assert!(had < free - 4 * MIB, "it gives the reserve away");
    let refused = driver.create_as("v", &As::block(), free, From::Nothing, &[]);
    assert_eq!(refused.unwrap_err().code(), Code::ResourceExhausted);
    driver.assert_nothing_left();
}
