//! The bundled driver killed at every point of every step: started again, it finishes or undoes what was begun, the caller's repeated
//! call succeeds, and the opposite call leaves nothing. Writers are never left frozen, mounts stay, and what is deleted is not in use.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use looped::calls::{As, From, refused};
use looped::{Loop, path, run, write};
use support::{PATIENCE, Process, loop_devices, until};
use tonic::{Code, Status};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

/// Lets the driver die at a point of a call, starts it again and repeats the call.
fn dies_at(driver: &mut Loop, point: &str, call: impl Fn(&Loop) -> Result<(), Status>) {
    cut_off(driver, point, &call);
    driver.restart(&[]);
    call(driver).unwrap_or_else(|status| panic!("{point}: repeated: {status:?}\n{}", driver.log()));
}

/// Lets the driver die at a point of a call.
fn cut_off(driver: &mut Loop, point: &str, call: impl Fn(&Loop) -> Result<(), Status>) {
    driver.restart(&[("VOLUMED_TEST_FAULT", point)]);
    let answer = call(driver);
    assert!(answer.is_err(), "{point} was never reached");
    driver.ended();
}

#[test]
fn a_volume_is_made_once_whatever_dies() {
    let mut driver = Loop::new();
    let used = As::file_system("ext4");
    let create = |driver: &Loop| driver.create_as("v", &used, SIZE, From::Nothing, &[]).map(drop);
    for point in ["create:intent", "create:image", "create:format", "create:outcome"] {
        dies_at(&mut driver, point, create);
        driver.delete("v").unwrap();
        driver.assert_nothing_left();
        // And if nobody asks again, nothing of it stays but what was ready.
        cut_off(&mut driver, point, create);
        driver.restart(&[]);
        if point == "create:outcome" {
            driver.delete("v").unwrap();
        }
        driver.assert_nothing_left();
    }
}

#[test]
fn a_volume_is_deleted_once_whatever_dies() {
    let mut driver = Loop::new();
    let used = As::block();
    for point in ["delete:intent", "delete:outcome"] {
        driver.create("v", &used, SIZE, From::Nothing);
        dies_at(&mut driver, point, |driver| driver.delete("v"));
        driver.assert_nothing_left();
    }
}

#[test]
fn a_copy_is_made_once_and_writers_go_on_whatever_dies() {
    let mut driver = Loop::new();
    let used = As::file_system("xfs");
    driver.create("v", &used, 300 * MIB, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    write(&staged.join("file"), b"content");
    for point in ["snapshot:intent", "snapshot:frozen", "snapshot:image", "snapshot:outcome"] {
        cut_off(&mut driver, point, |driver| driver.snapshot("v", "s").map(drop));
        // Nobody started the driver again yet.
        writes(&staged, point);
        driver.restart(&[]);
        driver.snapshot("v", "s").unwrap();
        driver.delete_snapshot("s").unwrap();
    }
    driver.snapshot("v", "s").unwrap();
    for point in ["create:intent", "create:image", "create:format", "create:outcome"] {
        let create =
            |driver: &Loop| driver.create_as("copy", &used, 300 * MIB, From::Snapshot("s"), &[]).map(drop);
        dies_at(&mut driver, point, create);
        driver.stage("copy", &driver.staging("copy"), &used).unwrap();
        assert_eq!(fs::read(driver.staging("copy").join("file")).unwrap(), b"content");
        driver.unstage("copy", &driver.staging("copy")).unwrap();
        driver.delete("copy").unwrap();
    }
    for point in ["delete-snapshot:intent", "delete:outcome"] {
        driver.snapshot("v", "s").unwrap();
        if point == "delete-snapshot:intent" {
            dies_at(&mut driver, point, |driver| driver.delete_snapshot("s"));
        }
    }
    driver.delete_snapshot("s").unwrap();
    for point in ["group:intent", "snapshot:frozen", "snapshot:outcome", "group:outcome"] {
        cut_off(&mut driver, point, |driver| driver.group_snapshot("g", &["v"]).map(drop));
        writes(&staged, point);
        driver.restart(&[]);
        let group = driver.group_snapshot("g", &["v"]).unwrap();
        if point == "group:outcome" {
            dies_at(&mut driver, "delete-group:intent", |driver| driver.delete_group(&group));
        } else {
            driver.delete_group(&group).unwrap();
        }
    }
    driver.unstage("v", &staged).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

/// Somebody can write, soon: a write to a frozen file system waits for good.
fn writes(mounted: &Path, context: &str) {
    let file = mounted.join("writer");
    let mut writer = std::process::Command::new("dd");
    writer.args(["if=/dev/zero", "bs=4k", "count=1", "conv=fsync"]).arg(format!("of={}", path(&file)));
    let mut writer = writer.stderr(std::process::Stdio::null()).spawn().expect("dd can be run");
    let deadline = Instant::now() + PATIENCE;
    while writer.try_wait().expect("it can be waited for").is_none() {
        if Instant::now() > deadline {
            // A failed test leaves nobody frozen.
            run("fsfreeze", &["--unfreeze", path(mounted)]);
            panic!("{context}: nobody can write");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

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

fn state_of(process: &Process) -> char {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.pid())).unwrap_or_default();
    stat.rsplit(") ").next().and_then(|rest| rest.chars().next()).unwrap_or(' ')
}

fn keeper_of(process: &Process) -> u32 {
    let children = format!("/proc/{0}/task", process.pid());
    let tasks = fs::read_dir(children).expect("it runs").flatten();
    let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children")).unwrap_or_default();
    let children: String = tasks.map(of).collect();
    let name = |pid: &u32| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    let mut pids = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.find(|pid| name(pid).trim() == "volumed-freeze").expect("it has a keeper")
}

#[test]
fn a_volume_grows_once_whatever_dies() {
    let mut driver = Loop::new();
    let used = As::block();
    driver.create("v", &used, SIZE, From::Nothing);
    driver.stage("v", &driver.staging("v"), &used).unwrap();
    let image = driver.dir.join("volumes/v/image");
    for (step, point) in (2..).zip(["grow:intent", "grow:image", "grow:outcome"]) {
        dies_at(&mut driver, point, |driver| driver.controller_expand("v", SIZE * step).map(drop));
        assert_eq!(fs::metadata(&image).unwrap().len(), SIZE * step, "{point}");
        let device = loop_devices(&driver.dir).pop().expect("it is attached");
        let size = run("blockdev", &["--getsize64", path(&device)]);
        assert_eq!(size.trim(), (SIZE * step).to_string(), "{point}");
    }
    // If nobody asks again, it has the one size or the other, and says which.
    cut_off(&mut driver, "grow:intent", |driver| driver.controller_expand("v", SIZE * 9).map(drop));
    driver.restart(&[]);
    let total = driver.stats("v", &driver.staging("v")).unwrap().usage[0].total;
    assert_eq!(u64::try_from(total).unwrap(), fs::metadata(&image).unwrap().len());
    driver.unstage("v", &driver.staging("v")).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_volume_is_staged_and_published_once_whatever_dies() {
    let mut driver = Loop::new();
    for used in [As::file_system("ext4"), As::file_system("btrfs"), As::block()] {
        let id = format!("v-{}", used.fs_type.unwrap_or("block"));
        driver.create(&id, &used, 32 * MIB, From::Nothing);
        let (staged, target) = (driver.staging(&id), driver.target(&id));
        let stage = |driver: &Loop| driver.stage(&id, &staged, &used);
        let publish = |driver: &Loop| driver.publish(&id, &staged, &target, &used, false);
        let unpublish = |driver: &Loop| driver.unpublish(&id, &target);
        let unstage = |driver: &Loop| driver.unstage(&id, &staged);
        let mounted = used.fs_type.is_some();
        let only_mounted = |points: &[&'static str]| if mounted { points.to_vec() } else { Vec::new() };
        for point in
            [vec!["stage:intent", "stage:outcome"], only_mounted(&["stage:attach", "stage:mount"])].concat()
        {
            dies_at(&mut driver, point, stage);
            unstage(&driver).unwrap();
            // The opposite call, without the call again.
            cut_off(&mut driver, point, stage);
            driver.restart(&[]);
            unstage(&driver).unwrap();
            until(point, || loop_devices(&driver.dir).is_empty());
        }
        stage(&driver).unwrap();
        for point in [vec!["publish:intent", "publish:outcome"], only_mounted(&["publish:target"])].concat() {
            dies_at(&mut driver, point, publish);
            unpublish(&driver).unwrap();
            cut_off(&mut driver, point, publish);
            driver.restart(&[]);
            unpublish(&driver).unwrap();
            assert!(!target.exists(), "{point}");
        }
        for point in ["unpublish:unmount", "unpublish:target"] {
            publish(&driver).unwrap();
            dies_at(&mut driver, point, unpublish);
        }
        for point in only_mounted(&["unstage:unmount"]) {
            dies_at(&mut driver, point, unstage);
            stage(&driver).unwrap();
        }
        unstage(&driver).unwrap();
        driver.delete(&id).unwrap();
    }
    driver.assert_nothing_left();
}

#[test]
fn what_a_mounted_volume_still_needs_is_done_by_the_repeated_call() {
    use std::os::unix::fs::MetadataExt as _;
    let mut driver = Loop::new();
    let used = As::file_system("btrfs");
    driver.create("v", &used, 128 * MIB, From::Nothing);
    driver.snapshot("v", "s").unwrap();
    // A copy of btrfs is grown when it is mounted.
    driver.create("larger", &used, 512 * MIB, From::Snapshot("s"));
    let staged = driver.staging("larger");
    let mine = used.clone().group(4711);
    dies_at(&mut driver, "stage:mount", |driver| driver.stage("larger", &staged, &mine));
    assert!(looped::capacity(&staged) > 384 * MIB, "it stays as small as its source");
    assert_eq!(fs::metadata(&staged).unwrap().gid(), 4711, "it is not its group's");
    driver.unstage("larger", &staged).unwrap();
    for id in ["v", "larger"] {
        driver.delete(id).unwrap();
    }
    driver.delete_snapshot("s").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_pod_s_own_volume_is_made_once_whatever_dies() {
    let mut driver = Loop::new();
    let target = driver.target("inline");
    let id = format!("csi-{}", "b".repeat(64));
    let publish = |driver: &Loop| driver.publish_inline(&id, &target, &[("size", "16Mi")], false);
    for point in [
        "create:format",
        "create:outcome",
        "ephemeral:intent",
        "stage:attach",
        "stage:mount",
        "ephemeral:outcome",
    ] {
        dies_at(&mut driver, point, publish);
        write(&target.join("file"), b"x");
        driver.unpublish(&id, &target).unwrap();
        cut_off(&mut driver, point, publish);
        driver.restart(&[]);
        driver.unpublish(&id, &target).unwrap();
        driver.assert_nothing_left();
    }
    for point in ["unpublish:unmount", "unpublish:target", "delete:intent"] {
        publish(&driver).unwrap();
        dies_at(&mut driver, point, |driver| driver.unpublish(&id, &target));
        driver.assert_nothing_left();
    }
}

#[test]
fn a_file_system_grows_once_whatever_dies() {
    let mut driver = Loop::new();
    let used = As::file_system("xfs");
    driver.create("v", &used, 300 * MIB, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    driver.controller_expand("v", 400 * MIB).unwrap();
    dies_at(&mut driver, "expand:grown", |driver| driver.node_expand("v", &staged, 400 * MIB));
    assert!(!driver.controller_expand("v", 400 * MIB).unwrap(), "nothing is left to do");
}

#[test]
fn a_restart_unmounts_nothing_and_a_block_volume_of_nobody_lets_its_device_go() {
    let mut driver = Loop::new();
    let (mounted, block) = (As::file_system("ext4"), As::block());
    driver.create("m", &mounted, SIZE, From::Nothing);
    driver.create("b", &block, SIZE, From::Nothing);
    driver.stage("m", &driver.staging("m"), &mounted).unwrap();
    driver.stage("b", &driver.staging("b"), &block).unwrap();
    let before = (driver.host.mounts(), loop_devices(&driver.dir));
    driver.restart(&[]);
    let process = driver.process.take().expect("it runs");
    process.signal("-TERM");
    assert!(process.ended().success());
    assert!(!driver.host.path("csi.sock").exists(), "the socket stays");
    driver.restart(&[]);
    assert_eq!((driver.host.mounts(), loop_devices(&driver.dir)), before);
    // What it was used for was in another boot.
    fs::remove_file(driver.dir.join("volumes/b/use.json")).unwrap();
    driver.restart(&[]);
    assert_eq!(loop_devices(&driver.dir).len(), 1, "only the mounted one stays");
    driver.stage("b", &driver.staging("b"), &block).unwrap();
}

#[test]
fn an_image_that_somebody_has_attached_is_not_deleted() {
    let driver = Loop::new();
    driver.create("v", &As::block(), SIZE, From::Nothing);
    let image = driver.dir.join("volumes/v/image");
    // By another name: known by device and inode.
    let elsewhere = driver.host.path("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    run("mount", &["--bind", path(&driver.dir.join("volumes")), path(&elsewhere)]);
    let device = run("losetup", &["--find", "--show", path(&elsewhere.join("v/image"))]);
    let why = refused(driver.delete("v"), Code::FailedPrecondition);
    assert!(why.contains(device.trim()), "{why}");
    refused(driver.stage("v", &driver.staging("v"), &As::file_system("ext4")), Code::InvalidArgument);
    assert!(image.exists());
    run("losetup", &["--detach", device.trim()]);
    run("umount", &[path(&elsewhere)]);
    until("the image is free", || driver.delete("v").is_ok());
    driver.assert_nothing_left();
}

#[test]
fn a_loop_device_of_somebody_else_is_neither_used_nor_let_go() {
    let driver = Loop::new();
    let used = As::block();
    driver.create("v", &used, SIZE, From::Nothing);
    let (staged, target) = (driver.staging("v"), driver.target("v"));
    let image = driver.dir.join("volumes/v/image");
    let device = run("losetup", &["--find", "--show", path(&image)]);
    let why = refused(driver.stage("v", &staged, &used), Code::FailedPrecondition);
    assert!(why.contains(device.trim()), "{why}");
    driver.unstage("v", &staged).unwrap();
    assert_eq!(loop_devices(&driver.dir).len(), 1, "a stranger's device was let go");
    run("losetup", &["--detach", device.trim()]);
    until("it is staged", || driver.stage("v", &staged, &used).is_ok());
    // Beside ours, it is neither published nor taken away with it.
    let device = run("losetup", &["--find", "--show", path(&image)]);
    driver.publish("v", &staged, &target, &used, false).unwrap();
    driver.unpublish("v", &target).unwrap();
    driver.unstage("v", &staged).unwrap();
    let left: Vec<_> = loop_devices(&driver.dir);
    assert!(left.len() == 1 && left.iter().all(|one| path(one) == device.trim()), "{left:?}");
    run("losetup", &["--detach", device.trim()]);
    until("the image is free", || driver.delete("v").is_ok());
    driver.assert_nothing_left();
}

#[test]
fn a_volume_whose_image_is_gone_can_be_taken_down_and_is_not_deleted_before() {
    let driver = Loop::new();
    for used in [As::file_system("ext4"), As::block()] {
        driver.create("v", &used, SIZE, From::Nothing);
        let (staged, target) = (driver.staging("v"), driver.target("v"));
        driver.stage("v", &staged, &used).unwrap();
        driver.publish("v", &staged, &target, &used, false).unwrap();
        fs::remove_file(driver.dir.join("volumes/v/image")).unwrap();
        refused(driver.delete("v"), Code::FailedPrecondition);
        driver.unpublish("v", &target).unwrap();
        driver.unstage("v", &staged).unwrap();
        driver.delete("v").unwrap();
        driver.assert_nothing_left();
    }
}

#[test]
fn two_drivers_share_no_directory_and_one_waits_for_the_other_s_tools() {
    let driver = Loop::new();
    let other = |arguments: &[&str]| {
        let mut command = std::process::Command::new(looped::PROGRAM);
        command.args(["--dir", path(&driver.dir), "--endpoint", path(&driver.host.path("other.sock"))]);
        command.args(["--node-id", "n"]).args(arguments);
        let output = command.output().expect("it can be run");
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(other(&["--name", "other.example.com"]).contains("belongs to the driver"));
    assert!(other(&[]).contains("in use by another driver"), "the lock");
    fs::remove_file(driver.dir.join("lock")).unwrap();
    assert!(other(&[]).contains("in use by another driver"), "the lock of the directory");
}
