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

use looped::Loop;
use looped::calls::{As, From};

const MIB: u64 = 1 << 20;

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
