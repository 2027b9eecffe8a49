//! Calls to the bundled driver at the same moment: for one volume they wait for each other or are told to come again, for
//! different ones they do not.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::sync::Barrier;

use looped::calls::{As, From};
use looped::{Loop, write};
use support::until;
use tonic::{Code, Status};
use volumed::proto::csi;
use volumed::proto::csi::controller_client::ControllerClient;

const MIB: u64 = 1 << 20;

/// Calls so often at the same moment, each with its number.
fn at_once<T: Send>(times: usize, call: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let begin = Barrier::new(times);
    std::thread::scope(|scope| {
        let (begin, call) = (&begin, &call);
        let one = |number| {
            scope.spawn(move || {
                begin.wait();
                call(number)
            })
        };
        let all: Vec<_> = (0..times).map(one).collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    })
}

/// Calls again as long as another call for the same thing is under way.
fn repeated<T>(call: impl Fn() -> Result<T, Status>) -> Result<T, Status> {
    let mut answer = call();
    until("the other call has ended", || {
        if answer.as_ref().is_err_and(|status| status.code() == Code::Aborted) {
            answer = call();
        }
        !answer.as_ref().is_err_and(|status| status.code() == Code::Aborted)
    });
    answer
}

#[test]
fn calls_for_one_volume_at_a_time() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let call = || driver.create_as("same", &used, 16 * MIB, From::Nothing, &[]);
        let all: Vec<_> = (0..8).map(|_| scope.spawn(call)).collect();
        all.into_iter().map(|one| one.join().expect("no panic")).collect()
    });
    for answer in answers {
        assert!(answer.as_ref().is_ok_and(|volume| volume.volume_id == "same"), "{answer:?}");
    }
}

/// Many calls at the same moment: none is refused, and none waits longer than a call may.
#[test]
fn two_hundred_volumes_at_once() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let one = |number: usize| {
        let id = driver.create(&format!("v{number}"), &used, 16 * MIB, From::Nothing);
        let (staged, target) = (driver.staging(&id), driver.target(&id));
        driver.stage(&id, &staged, &used).unwrap();
        driver.publish(&id, &staged, &target, &used, false).unwrap();
    };
    std::thread::scope(|scope| {
        for worker in 0..20 {
            scope.spawn(move || (0..10).for_each(|number| one(worker * 10 + number)));
        }
    });
    std::thread::scope(|scope| {
        for worker in 0..20 {
            let driver = &driver;
            scope.spawn(move || {
                for number in 0..10 {
                    let id = format!("v{}", worker * 10 + number);
                    driver.unpublish(&id, &driver.target(&id)).unwrap();
                    driver.unstage(&id, &driver.staging(&id)).unwrap();
                    driver.delete(&id).unwrap();
                }
            });
        }
    });
    driver.assert_nothing_left();
}

#[test]
fn calls_for_twenty_volumes_wait_for_none_of_the_others() {
    const VOLUMES: usize = 20;
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let id = |number| format!("v{number}");
    // Not repeated: there is no other call for any of them.
    at_once(VOLUMES, |number| driver.create(&id(number), &used, 16 * MIB, From::Nothing));
    at_once(VOLUMES, |number| driver.stage(&id(number), &driver.staging(&id(number)), &used).unwrap());
    at_once(VOLUMES, |number| {
        write(&driver.staging(&id(number)).join("file"), id(number).as_bytes());
        driver.snapshot(&id(number), &format!("s{number}")).unwrap();
    });
    at_once(VOLUMES, |number| {
        let (copy, snapshot) = (format!("copy{number}"), format!("s{number}"));
        driver.create(&copy, &used, 16 * MIB, From::Snapshot(&snapshot));
        driver.stage(&copy, &driver.staging(&copy), &used).unwrap();
        assert_eq!(fs::read(driver.staging(&copy).join("file")).unwrap(), id(number).as_bytes());
        driver.unstage(&copy, &driver.staging(&copy)).unwrap();
        driver.delete(&copy).unwrap();
        driver.delete_snapshot(&snapshot).unwrap();
    });
    at_once(VOLUMES, |number| {
        driver.unstage(&id(number), &driver.staging(&id(number))).unwrap();
        driver.delete(&id(number)).unwrap();
    });
    driver.assert_nothing_left();
}

#[test]
fn the_same_call_at_once_makes_one_thing_and_all_are_told_of_it() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    for id in ["v", "w"] {
        driver.create(id, &used, 16 * MIB, From::Nothing);
        driver.stage(id, &driver.staging(id), &used).unwrap();
    }
    let snapshots = at_once(2, |_| repeated(|| driver.snapshot("v", "s")).unwrap());
    assert_eq!(snapshots[0], snapshots[1]);
    let groups = at_once(2, |_| repeated(|| driver.group_snapshot("g", &["v", "w"])).unwrap());
    assert_eq!(groups[0], groups[1]);
    assert_eq!(driver.snapshots("", "", 0, "").unwrap().0.len(), 3);
    let copies = at_once(2, |_| {
        repeated(|| driver.create_as("copy", &used, 16 * MIB, From::Snapshot("s"), &[])).unwrap()
    });
    assert_eq!(copies[0], copies[1]);
    let target = driver.target("inline");
    let inline = format!("csi-{}", "d".repeat(64));
    at_once(2, |_| repeated(|| driver.publish_inline(&inline, &target, &[("size", "16Mi")], false)).unwrap());
    assert_eq!(driver.host.mounts().iter().filter(|at| **at == target).count(), 1);
    at_once(2, |_| repeated(|| driver.unpublish(&inline, &target)).unwrap());
    at_once(2, |_| repeated(|| driver.delete("copy")).unwrap());
    at_once(2, |_| repeated(|| driver.delete_group(&groups[0])).unwrap());
    at_once(2, |_| repeated(|| driver.delete_snapshot("s")).unwrap());
    for id in ["v", "w"] {
        driver.unstage(id, &driver.staging(id)).unwrap();
        driver.delete(id).unwrap();
    }
    driver.assert_nothing_left();
}

#[test]
fn of_two_who_ask_at_once_for_different_things_with_one_name_one_has_it() {
    /// One answer is that it was made, the other that it is there already.
    #[track_caller]
    fn one_has_it<T: std::fmt::Debug>(answers: Vec<Result<T, Status>>) {
        let (made, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(Result::is_ok);
        assert_eq!((made.len(), refused.len()), (1, 1), "{made:?} {refused:?}");
        let code = refused[0].as_ref().map_err(Status::code).expect_err("it is refused");
        assert_eq!(code, Code::AlreadyExists);
    }
    let driver = Loop::new();
    let used = As::block();
    for round in 0..5 {
        let sizes = [8 * MIB, 16 * MIB];
        // With a limit, so that the smaller one does not fit who asked for more, nor the larger who asked for less.
        one_has_it(at_once(2, |number| repeated(|| exactly(&driver, "v", &used, sizes[number]))));
        driver.create("w", &used, MIB, From::Nothing);
        one_has_it(at_once(2, |number| repeated(|| driver.snapshot(["v", "w"][number], "s"))));
        one_has_it(at_once(2, |number| repeated(|| driver.group_snapshot("g", &["v", "w"][number..]))));
        let found = driver.snapshots("", "", 0, "").unwrap().0;
        let group = found.iter().filter(|one| !one.group_snapshot_id.is_empty()).count();
        assert!(found.len() - group == 1 && (1..=2).contains(&group), "{round}: {found:?}");
        let members = found.iter().filter(|one| !one.group_snapshot_id.is_empty()).cloned().collect();
        let group = csi::VolumeGroupSnapshot {
            group_snapshot_id: "g".to_owned(),
            snapshots: members,
            ..Default::default()
        };
        driver.delete_group(&group).unwrap();
        driver.delete_snapshot("s").unwrap();
        for id in ["v", "w"] {
            driver.delete(id).unwrap();
        }
    }
    driver.assert_nothing_left();
}

/// Asks for a volume of this size, no more and no less.
fn exactly(driver: &Loop, name: &str, used: &As, bytes: u64) -> Result<csi::Volume, Status> {
    let bytes = i64::try_from(bytes).expect("a size");
    let request = csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: bytes, limit_bytes: bytes }),
        volume_capabilities: used.capability().into_iter().collect(),
        ..Default::default()
    };
    let answer = driver.call(async |channel| ControllerClient::new(channel).create_volume(request).await);
    answer.map(|answer| answer.volume.expect("a volume"))
}
