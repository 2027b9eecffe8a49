//! File systems that the bundled driver froze for a copy: whatever is killed, and however long it takes, they thaw.

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
use looped::freeze::{keeper_of, state_of, writes};
use looped::{Loop, path, run};
use support::until;
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

#[test]
fn a_keeper_that_is_killed_too_leaves_nothing_frozen_after_the_next_start() {
    let mut driver = Loop::new();
    let used = As::file_system("ext4");
    driver.create("v", &used, SIZE, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    // A freeze that nobody holds: what is left when both are killed.
    run("fsfreeze", &["--freeze", path(&staged)]);
    driver.restart(&[]);
    writes(&staged, "thawed at the start");
    assert!(driver.log().contains("still frozen"), "{}", driver.log());
}

#[test]
fn a_signal_for_all_does_not_end_the_keeper() {
    let mut driver = Loop::new();
    let used = As::file_system("ext4");
    driver.create("v", &used, SIZE, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    driver.restart(&[("VOLUMED_TEST_FAULT", "stop:snapshot:frozen")]);
    std::thread::scope(|scope| {
        let call = scope.spawn(|| driver.snapshot("v", "s"));
        let process = driver.process.as_ref().expect("it runs");
        until("the driver stands still", || state_of(process) == 'T');
        let keeper = keeper_of(process);
        run("kill", &["-TERM", &keeper.to_string()]);
        process.signal("-CONT");
        call.join().expect("no panic").unwrap();
    });
    writes(&staged, "thawed");
}

#[test]
fn a_keeper_that_is_killed_while_the_driver_lives_leaves_nothing_frozen() {
    let mut driver = staged_ext4();
    let why = frozen(&mut driver, |_driver, keeper| {
        run("kill", &["-KILL", &keeper.to_string()]);
    });
    assert!(why.expect_err("it was not frozen").message().contains("killed"));
    writes(&driver.staging("v"), "thawed by the driver");
    driver.snapshot("v", "s").unwrap();
}

#[test]
fn a_whole_copy_ends_with_the_time_that_writers_may_be_frozen() {
    let mut driver = staged_ext4();
    fs::write(driver.host.path("csi-loop.toml"), "reserve = '0'\nfreeze-limit-seconds = 1\n").unwrap();
    let why = frozen(&mut driver, |driver, keeper| {
        writes(&driver.staging("v"), "its time is over");
        until("the keeper has ended", || {
            let stat = fs::read_to_string(format!("/proc/{keeper}/stat")).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        });
    });
    let why = refused(why, Code::FailedPrecondition);
    assert!(why.contains("freeze-limit-seconds"), "{why}");
}

fn staged_ext4() -> Loop {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    driver.create("v", &used, SIZE, From::Nothing);
    driver.stage("v", &driver.staging("v"), &used).expect("it is staged");
    driver
}

/// Does something while the volume is frozen for a snapshot and the driver stands still; returns how the snapshot ended.
fn frozen(driver: &mut Loop, meanwhile: impl FnOnce(&Loop, u32)) -> Result<(), Status> {
    driver.restart(&[("VOLUMED_TEST_FAULT", "stop:snapshot:frozen")]);
    let driver = &*driver;
    std::thread::scope(|scope| {
        let call = scope.spawn(|| driver.snapshot("v", "s").map(drop));
        let process = driver.process.as_ref().expect("it runs");
        until("the driver stands still", || state_of(process) == 'T');
        meanwhile(driver, keeper_of(process));
        process.signal("-CONT");
        call.join().expect("no panic")
    })
}
