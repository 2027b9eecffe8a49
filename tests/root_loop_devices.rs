//! The bundled driver's block volumes and their loop devices: written down, held by others, taken away by others.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use looped::calls::{As, From, refused};
use looped::{Loop, path, run};
use serde_json::Value;
use support::{TestHost, loop_devices, until};
use tonic::Code;
use volumed::host::images::{Allocation, Claim, Going};

const MIB: u64 = 1 << 20;

/// The number that is written down of a volume's device.
fn recorded(driver: &Loop, id: &str) -> Value {
    let text = fs::read_to_string(driver.dir.join("volumes").join(id).join("use.json")).expect("it is noted");
    let usage: Value = serde_json::from_str(&text).expect("it is JSON");
    usage["device"].clone()
}

/// The one loop device of a driver.
fn device_of(driver: &Loop) -> PathBuf {
    let devices = loop_devices(&driver.dir);
    assert_eq!(devices.len(), 1, "{devices:?}\n{}", driver.log());
    devices[0].clone()
}

fn number(device: &Path) -> Value {
    let number = path(device).strip_prefix("/dev/loop").expect("a loop device");
    Value::from(number.parse::<u32>().expect("its number"))
}

#[test]
fn the_device_of_a_block_volume_is_written_down_while_it_is_attached() {
    let mut driver = Loop::new();
    let used = As::block();
    driver.create("v", &used, MIB, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    assert_eq!(recorded(&driver, "v"), number(&device_of(&driver)));
    driver.unstage("v", &staged).unwrap();
    assert_eq!(recorded(&driver, "v"), Value::Null);
    // Between the attachment and its note.
    looped::crash::dies_at(&mut driver, "stage:attach", |driver| driver.stage("v", &staged, &used));
    assert_eq!(recorded(&driver, "v"), number(&device_of(&driver)));
    driver.unstage("v", &staged).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn what_shows_a_device_that_somebody_detached_can_go_and_keeps_the_volume_until_then() {
    let mut driver = Loop::new();
    let used = As::block();
    driver.create("v", &used, MIB, From::Nothing);
    let other = driver.host.path("other");
    fs::write(&other, vec![7; 1 << 20]).unwrap();
    for restarted in [false, true] {
        let (staged, target) = (driver.staging("v"), driver.target("t"));
        driver.stage("v", &staged, &used).unwrap();
        driver.publish("v", &staged, &target, &used, false).unwrap();
        let device = device_of(&driver);
        run("losetup", &["--detach", path(&device)]);
        until("it is detached", || loop_devices(&driver.dir).is_empty());
        // The pod sees another's bytes by now.
        run("losetup", &[path(&device), path(&other)]);
        if restarted {
            driver.restart(&[]);
        }
        let why = refused(driver.stage("v", &staged, &used), Code::FailedPrecondition);
        assert!(why.contains(path(&target)), "{why}");
        refused(driver.publish("v", &staged, &target, &used, false), Code::FailedPrecondition);
        let why = refused(driver.unstage("v", &staged), Code::FailedPrecondition);
        assert!(why.contains(path(&target)), "{why}");
        driver.unpublish("v", &target).unwrap();
        assert!(!target.exists(), "the target is left");
        driver.unstage("v", &staged).unwrap();
        assert_eq!(loop_devices(&other), std::slice::from_ref(&device), "another's device was taken away");
        run("losetup", &["--detach", path(&device)]);
    }
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn a_device_that_somebody_has_open_is_not_unstaged_however_often_it_is_asked() {
    let driver = Loop::new();
    let used = As::block();
    driver.create("v", &used, MIB, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    let device = device_of(&driver);
    let open = fs::File::open(&device).unwrap();
    for _ in 0..2 {
        let why = refused(driver.unstage("v", &staged), Code::FailedPrecondition);
        assert!(why.contains(path(&device)), "{why}");
    }
    drop(open);
    driver.unstage("v", &staged).unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[tokio::test]
async fn an_attachment_for_which_nobody_waits_any_more_does_not_stay() {
    let host = TestHost::new();
    let directory = host.path("images");
    fs::create_dir(&directory).unwrap();
    let images = Claim::new(&directory).await.unwrap().open().await.unwrap();
    let image = directory.join("image");
    images.make(&image, MIB, Allocation::Thin).await.unwrap();
    // A machine that is busy may let one through before it is given up: that is one that was attached in time.
    let mut stayed = 0;
    for _ in 0..20 {
        tokio::select! {
            biased;
            _attached = images.attach(&image, "v", Going::WhenTold) => {}
            () = std::future::ready(()) => {}
        }
        let id = images.look(&image).await.unwrap().unwrap().id;
        // Waits for the work that was given up: it holds the image open.
        until("nobody has the image but a device that stays", || {
            let devices = loop_devices(&directory);
            devices.iter().all(|device| fs::File::options().write(true).open(device).is_ok())
        });
        for device in images.attached(&image, id).await.unwrap() {
            if device.going() == Going::WhenTold {
                stayed += 1;
                images.detach(&device).await.unwrap();
            }
        }
    }
    assert!(stayed < 10, "{stayed} of 20 stayed");
    until("no loop device is left", || loop_devices(&directory).is_empty());
}

#[test]
fn a_number_whose_node_a_pod_still_shows_is_given_to_no_volume() {
    let driver = Loop::new();
    let used = As::block();
    for id in ["v", "w"] {
        driver.create(id, &used, MIB, From::Nothing);
    }
    let (staged, target) = (driver.staging("v"), driver.target("t"));
    driver.stage("v", &staged, &used).unwrap();
    driver.publish("v", &staged, &target, &used, false).unwrap();
    let device = device_of(&driver);
    run("losetup", &["--detach", path(&device)]);
    until("it is detached", || loop_devices(&driver.dir).is_empty());
    driver.stage("w", &driver.staging("w"), &used).unwrap();
    assert_ne!(device_of(&driver), device, "the pod of v has w's device");
    driver.unpublish("v", &target).unwrap();
    driver.unstage("v", &staged).unwrap();
    driver.unstage("w", &driver.staging("w")).unwrap();
    for id in ["v", "w"] {
        driver.delete(id).unwrap();
    }
    driver.assert_nothing_left();
}
