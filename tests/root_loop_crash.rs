//! The bundled driver killed at every point of every step: started again, it finishes or undoes what was begun, the caller's repeated
//! call succeeds, and the opposite call leaves nothing. Mounts stay, and writers go on.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;

use looped::calls::{As, From};
use looped::crash::{cut_off, dies_at};
use looped::freeze::writes;
use looped::{Loop, path, run, write};
use support::{loop_devices, until};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

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
    driver.snapshot("v", "s").unwrap();
    dies_at(&mut driver, "delete-snapshot:intent", |driver| driver.delete_snapshot("s"));
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

/// Without CAP_SYS_RESOURCE, as on this machine, ext4 grows before it is mounted.
#[test]
fn an_ext4_that_grew_before_it_was_mounted_is_whole_whatever_dies() {
    let mut driver = Loop::new();
    let used = As::file_system("ext4");
    driver.create("v", &used, SIZE, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    write(&staged.join("file"), b"content");
    driver.unstage("v", &staged).unwrap();
    driver.controller_expand("v", 4 * SIZE).unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let held = status.lines().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let grows_mounted = u64::from_str_radix(held, 16).unwrap() & (1 << 24) != 0;
    let point = if grows_mounted { "stage:mount" } else { "stage:grown" };
    dies_at(&mut driver, point, |driver| driver.stage("v", &staged, &used));
    assert_eq!(fs::read(staged.join("file")).unwrap(), b"content");
    driver.unstage("v", &staged).unwrap();
    looped::check::clean("ext4", &driver.dir.join("volumes/v/image"));
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
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
    let noted = driver.dir.join("volumes/b/use.json");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let text = fs::read_to_string(&noted).unwrap();
    assert!(text.contains(boot.trim()), "{text}");
    fs::write(&noted, text.replace(boot.trim(), "another")).unwrap();
    driver.restart(&[]);
    assert_eq!(loop_devices(&driver.dir).len(), 1, "only the mounted one stays");
    driver.stage("b", &driver.staging("b"), &block).unwrap();
}
