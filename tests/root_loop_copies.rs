//! The bundled driver tells how far a copy got where the host's file system cannot share blocks: `volume list` has it.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::time::Instant;

use looped::calls::{As, From};
use looped::{Loop, PROGRAM, path, run, write};
use serde_json::Value;
use support::PATIENCE;
use tonic::Status;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 512 * MIB;
const WRITTEN: usize = 256 << 20;

/// What an operator is told of a volume; `None`: it is not listed.
fn condition(driver: &Loop, id: &str) -> Option<String> {
    let socket = driver.host.path("csi.sock");
    let arguments = ["volume", "list", "-o", "json", "--driver-socket", path(&socket)];
    let all: Value = serde_json::from_str(&run(PROGRAM, &arguments)).expect("JSON");
    let found = all.as_array().expect("a list").iter().find(|volume| volume["handle"] == id)?;
    assert_eq!(found["abnormal"], false, "{found}");
    Some(found["condition"].as_str().expect("a text").to_owned())
}

fn percent(condition: &str) -> Option<u64> {
    condition.strip_prefix("copying, ")?.strip_suffix(" %")?.parse().ok()
}

/// Makes a copy until it is seen on its way in the list, with this volume: one may be faster than two looks.
fn is_seen_on_its_way(
    driver: &Loop,
    listed: &str,
    copy: impl Fn() -> Result<(), Status> + Sync,
    delete: impl Fn() -> Result<(), Status>,
) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen: Vec<u64> = std::thread::scope(|scope| {
            let copying = scope.spawn(&copy);
            let mut seen = Vec::new();
            while !copying.is_finished() {
                seen.extend(condition(driver, listed).and_then(|condition| percent(&condition)));
            }
            copying.join().expect("it does not panic").expect("it is copied");
            seen
        });
        assert!(seen.is_sorted() && seen.iter().all(|percent| *percent <= 100), "it ran backwards: {seen:?}");
        assert_eq!(condition(driver, listed).as_deref(), Some("well"), "it has no end");
        // It moved.
        if seen.iter().filter(|percent| (1..100).contains(*percent)).collect::<BTreeSet<_>>().len() > 1 {
            return;
        }
        assert!(Instant::now() < deadline, "never seen on its way: {seen:?}");
        delete().expect("it can be made again");
    }
}

fn tells(host_file_system: &str) {
    let driver = Loop::on(host_file_system, "1800M");
    let used = As::file_system("ext4");
    driver.create("v", &used, SIZE, From::Nothing);
    let staged = driver.staging("v");
    driver.stage("v", &staged, &used).unwrap();
    write(&staged.join("file"), &vec![7; WRITTEN]);
    driver.unstage("v", &staged).unwrap();

    is_seen_on_its_way(&driver, "v", || driver.snapshot("v", "s").map(drop), || driver.delete_snapshot("s"));
    for (name, from) in [("restored", From::Snapshot("s")), ("cloned", From::Volume("v"))] {
        let create = || driver.create_as(name, &used, SIZE, from, &[]).map(drop);
        is_seen_on_its_way(&driver, name, create, || driver.delete(name));
        let staged = driver.staging(name);
        driver.stage(name, &staged, &used).unwrap();
        assert_eq!(fs::metadata(staged.join("file")).unwrap().len(), u64::try_from(WRITTEN).unwrap());
        driver.unstage(name, &staged).unwrap();
        driver.delete(name).unwrap();
    }
    driver.delete_snapshot("s").unwrap();
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}

#[test]
fn how_far_a_copy_got_is_listed_on_ext4() {
    tells("ext4");
}

#[test]
fn how_far_a_copy_got_is_listed_on_tmpfs() {
    tells("tmpfs");
}
