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
use std::path::Path;
use std::time::{Duration, Instant};

use looped::calls::{As, From, refused};
use looped::freeze::{ended, is_frozen, keeper_of, state_of, writes};
use looped::writer::{Writer, records};
use looped::{Loop, check, path, run};
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
fn nothing_that_keeps_the_next_start_back_keeps_a_file_system_frozen() {
    let mut driver = staged_ext4();
    let staged = driver.staging("v");
    let begin = |driver: &mut Loop| {
        run("fsfreeze", &["--freeze", path(&staged)]);
        let mut command = std::process::Command::new(looped::PROGRAM);
        command.args(["--dir", path(&driver.dir), "--endpoint", path(&driver.host.path("csi.sock"))]);
        command.args(["--node-id", "test-node"]);
        driver.process = Some(driver.host.spawn(command, "refused.log"));
    };
    // Something that is not the driver's lies in its directory: it does not start.
    let stray = driver.dir.join("stray");
    fs::write(&stray, "x").unwrap();
    driver.process.take().expect("it runs").kill();
    begin(&mut driver);
    driver.ended();
    let frozen = is_frozen(&staged);
    writes_if_thawed(&staged, frozen, "a stray file");
    let log = fs::read_to_string(driver.host.path("refused.log")).unwrap();
    assert!(log.contains("stray") && log.contains("still frozen"), "{log}");
    fs::remove_file(&stray).unwrap();
    // A tool of the one before has not ended: it is waited for.
    let lock = fs::File::open(driver.dir.join("lock")).unwrap();
    lock.lock().unwrap();
    begin(&mut driver);
    driver.ended();
    let frozen = is_frozen(&staged);
    writes_if_thawed(&staged, frozen, "a tool's lock");
    let log = fs::read_to_string(driver.host.path("refused.log")).unwrap();
    assert!(log.contains("in use by another driver"), "{log}");
    drop(lock);
    driver.restart(&[]);
}

/// As `writes`; what is frozen still is thawed first, and the test fails.
fn writes_if_thawed(mounted: &Path, frozen: bool, context: &str) {
    if frozen {
        run("fsfreeze", &["--unfreeze", path(mounted)]);
    }
    assert!(!frozen, "{context}: it is still frozen");
    writes(mounted, context);
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
    let why = frozen(&mut driver, snapshot, |_driver, keeper| {
        run("kill", &["-KILL", &keeper.to_string()]);
    });
    assert!(why.expect_err("it was not frozen").message().contains("killed"));
    writes(&driver.staging("v"), "thawed by the driver");
    driver.snapshot("v", "s").unwrap();
}

/// Lets the time that writers may be frozen end before a copy does, on volumes `v` and `w`.
fn takes_too_long(mut driver: Loop, call: impl Fn(&Loop) -> Result<(), Status> + Sync) {
    let used = As::file_system("ext4");
    for id in ["v", "w"] {
        driver.create(id, &used, SIZE, From::Nothing);
        driver.stage(id, &driver.staging(id), &used).expect("it is staged");
    }
    fs::write(driver.host.path("csi-loop.toml"), "reserve = '0'\nfreeze-limit-seconds = 1\n")
        .expect("a configuration");
    let mounted = ["v", "w"].map(|id| driver.staging(id));
    let writer = Writer::start(&[&mounted[0], &mounted[1]]);
    let failed = frozen(&mut driver, &call, |_driver, keeper| {
        // The driver still stands where it is.
        writer.goes_on();
        ended(keeper);
    });
    let why = refused(failed, Code::FailedPrecondition);
    assert!(why.contains("freeze-limit-seconds"), "{why}");
    nothing_taken(&driver);
    // With more time it succeeds.
    fs::write(driver.host.path("csi-loop.toml"), "reserve = '0'\n").expect("a configuration");
    driver.restart(&[]);
    call(&driver).expect("it can be done again");
    writer.goes_on();
    writer.end();
}

/// There is no snapshot, nor a part of one.
fn nothing_taken(driver: &Loop) {
    assert_eq!(driver.snapshots("", "", 0, "").expect("a list"), (Vec::new(), String::new()));
    for kind in ["snapshots", "groups"] {
        let left: Vec<_> = fs::read_dir(driver.dir.join(kind)).expect("it is there").flatten().collect();
        assert!(left.is_empty(), "{kind} are left: {left:?}\n{}", driver.log());
    }
}

#[test]
fn a_whole_copy_ends_with_the_time_that_writers_may_be_frozen() {
    takes_too_long(Loop::on("ext4", "512M"), snapshot);
}

#[test]
fn a_shared_copy_that_was_not_frozen_to_its_end_is_not_kept() {
    takes_too_long(Loop::on("xfs", "512M"), snapshot);
}

#[test]
fn a_group_that_was_not_frozen_to_its_end_is_not_kept() {
    for host in ["ext4", "xfs"] {
        takes_too_long(Loop::on(host, "512M"), |driver| driver.group_snapshot("g", &["v", "w"]).map(drop));
    }
}

#[test]
fn a_freeze_of_somebody_else_s_after_the_limit_stays() {
    let mut driver = Loop::on("ext4", "512M");
    let used = As::file_system("ext4");
    driver.create("v", &used, SIZE, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    fs::write(driver.host.path("csi-loop.toml"), "reserve = '0'\nfreeze-limit-seconds = 1\n").unwrap();
    let failed = frozen(&mut driver, snapshot, |_driver, keeper| {
        ended(keeper);
        // The driver's own is over by now: this is the test's.
        run("fsfreeze", &["--freeze", path(&staged)]);
    });
    let still = is_frozen(&staged);
    if still {
        run("fsfreeze", &["--unfreeze", path(&staged)]);
    }
    refused(failed, Code::FailedPrecondition);
    assert!(still, "somebody else's freeze is gone\n{}", driver.log());
    driver.snapshot("v", "s").unwrap();
}

#[test]
fn a_writer_goes_on_soon_when_the_driver_is_killed_while_it_waits() {
    /// Far below the time that it may be frozen.
    const SOON: Duration = Duration::from_secs(10);
    let mut driver = Loop::new();
    for fs_type in ["ext4", "xfs", "btrfs"] {
        let used = As::file_system(fs_type);
        driver.create("v", &used, 320 * MIB, From::Nothing);
        let staged = driver.staging("v");
        driver.stage("v", &staged, &used).unwrap();
        let writer = Writer::start(&[&staged]);
        writer.goes_on();
        let cut_off = frozen(&mut driver, snapshot, |driver, keeper| {
            assert!(is_frozen(&staged), "{fs_type}");
            let killed = Instant::now();
            driver.process.as_ref().expect("it runs").signal("-KILL");
            // Nobody started the driver again yet.
            writer.goes_on();
            assert!(killed.elapsed() < SOON, "{fs_type}: {:?}", killed.elapsed());
            ended(keeper);
        });
        assert!(cut_off.is_err(), "{fs_type}");
        driver.restart(&[]);
        nothing_taken(&driver);
        snapshot(&driver).unwrap();
        writer.goes_on();
        let written = writer.end();
        assert_eq!(records(&staged), written, "{fs_type}: something was lost");
        driver.delete_snapshot("s").unwrap();
        driver.unstage("v", &staged).unwrap();
        check::clean(fs_type, &driver.dir.join("volumes/v/image"));
        driver.delete("v").unwrap();
    }
    driver.assert_nothing_left();
}

fn staged_ext4() -> Loop {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    driver.create("v", &used, SIZE, From::Nothing);
    driver.stage("v", &driver.staging("v"), &used).expect("it is staged");
    driver
}

fn snapshot(driver: &Loop) -> Result<(), Status> {
    driver.snapshot("v", "s").map(drop)
}

/// Does something while volumes are frozen for a call and the driver stands still; returns how the call ended.
fn frozen(
    driver: &mut Loop,
    call: impl Fn(&Loop) -> Result<(), Status> + Sync,
    meanwhile: impl FnOnce(&Loop, u32),
) -> Result<(), Status> {
    driver.restart(&[("VOLUMED_TEST_FAULT", "stop:snapshot:frozen")]);
    let driver = &*driver;
    std::thread::scope(|scope| {
        let call = scope.spawn(|| call(driver));
        let process = driver.process.as_ref().expect("it runs");
        until("the driver stands still", || state_of(process) == 'T');
        meanwhile(driver, keeper_of(process));
        process.signal("-CONT");
        call.join().expect("no panic")
    })
}
