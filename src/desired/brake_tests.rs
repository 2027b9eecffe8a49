//! The mass-delete brake, rule by rule (design 3, "Fail-safe").

use std::path::PathBuf;

use super::bench::*;
use super::*;
use crate::model::{HoldCode, Plugin, Want};

#[test]
fn more_than_ten_and_more_than_half_are_braked_until_approved() {
    let mut bench = running(20, "/m");
    remove(&mut bench, "web", 0..11);
    read_twice(&mut bench);
    let settled = bench.settle().0;
    let brake = settled.brake.unwrap();
    assert_eq!(brake.held, 11);
    assert!(brake.reason.contains("11 of 20"), "{}", brake.reason);
    assert_eq!(brake.since, 1_000_000 + i64::try_from(bench.now_ms).unwrap());
    assert_eq!(settled.again_at_ms, None);
    assert_eq!(bench.absences.braked().len(), 11);
    let (code, text) = bench.held("web-000");
    assert_eq!(code, HoldCode::Brake);
    assert!(text.contains("volumectl approve"), "{text}");
    // What was braked stays braked although the minute passes.
    for _ in 0..3 {
        bench.read(100_000, true);
        assert_eq!(bench.absent(), 0);
    }
    assert_eq!(bench.settle().0.brake.unwrap().since, brake.since);
    bench.approve();
    assert_eq!(bench.absent(), 11);
    assert_eq!(bench.settle().0.brake, None);
    assert!(bench.absences.braked().is_empty());
    bench.read(10, false);
    assert_eq!(bench.absent(), 11);
}

#[test]
fn ten_volumes_or_half_of_all_may_go() {
    let mut bench = running(11, "/m");
    remove(&mut bench, "web", 0..10);
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 10);
    let mut bench = running(40, "/m");
    remove(&mut bench, "web", 0..20);
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 20);
}

#[test]
fn absences_of_one_minute_count_together() {
    let mut bench = running(20, "/m");
    remove(&mut bench, "web", 0..8);
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 8);
    bench.take_down();
    remove(&mut bench, "web", 8..11);
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 0);
    assert!(bench.settle().0.brake.unwrap().reason.contains("11 of 20"));
    // Those let go stay so; a minute later they do not count any more.
    let mut bench = running(20, "/m");
    remove(&mut bench, "web", 0..8);
    read_twice(&mut bench);
    bench.take_down();
    remove(&mut bench, "web", 8..11);
    bench.read(60_000, true);
    bench.settle();
    bench.read(1_000, true);
    assert_eq!(bench.absent(), 3);
}

#[test]
fn deletion_timestamps_and_approved_ones_do_not_count() {
    let mut bench = running(20, "/m");
    for n in 0..9 {
        bench.pod(&format!("web-{n:03}")).leaving = true;
    }
    remove(&mut bench, "web", 9..19);
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 19);
    let mut bench = running(20, "/m");
    remove(&mut bench, "web", 0..19);
    for record in bench.records.values_mut().take(9) {
        record.approved = true;
    }
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 19);
}

#[test]
fn a_volume_of_many_pods_counts_once() {
    let mut bench = Bench::new(Absences::default());
    for n in 0..20 {
        let pod = format!("web-{n:03}");
        bench.add(&pod, "/m");
        bench.list(&pod, "data", "shared");
    }
    bench.add("other", "/m");
    bench.read(10, true);
    bench.bring_up();
    remove(&mut bench, "web", 0..20);
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 20);
}

#[test]
fn a_directory_that_lost_all_its_manifests_is_braked_from_the_fourth_volume() {
    for (lost, braked) in [(3, 0), (4, 4)] {
        let mut bench = running(50, "/m");
        more(&mut bench, lost, "db", "/n");
        remove(&mut bench, "db", 0..lost);
        remove(&mut bench, "web", 0..1);
        read_twice(&mut bench);
        assert_eq!(bench.absent(), lost - braked + 1);
        assert_eq!(bench.absences.braked().len(), braked);
    }
    let mut bench = running(50, "/m");
    more(&mut bench, 5, "db", "/n");
    remove(&mut bench, "db", 0..4);
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 4, "one manifest is left");
    bench.take_down();
    remove(&mut bench, "db", 4..5);
    read_twice(&mut bench);
    assert!(bench.settle().0.brake.unwrap().reason.contains("/n has no manifests any more, and 5 volumes"));
}

#[test]
fn a_directory_out_of_the_configuration_is_braked_as_well() {
    let mut bench = running(50, "/m");
    more(&mut bench, 4, "db", "/n");
    remove(&mut bench, "db", 0..4);
    bench.resolved.reading.directories.remove(&PathBuf::from("/n"));
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 0);
    assert_eq!(bench.absences.braked().len(), 4);
}

#[test]
fn what_returns_is_wanted_and_no_longer_braked() {
    let mut bench = running(20, "/m");
    remove(&mut bench, "web", 0..11);
    read_twice(&mut bench);
    assert_eq!(bench.settle().0.brake.unwrap().held, 11);
    bench.add("web-000", "/m");
    bench.read(10, true);
    assert_eq!(bench.settle().0.brake.unwrap().held, 10);
    assert!(matches!(bench.want("web-000"), Want::Wanted(_)));
    // Approved or not: wanted is wanted.
    bench.records.values_mut().for_each(|r| r.approved = true);
    assert!(matches!(bench.want("web-000"), Want::Wanted(_)));
}

#[test]
fn the_brake_lets_go_after_the_configured_time() {
    let mut bench = running(20, "/m");
    bench.absences = Absences::new(1_000, Some(300_000));
    remove(&mut bench, "web", 0..11);
    read_twice(&mut bench);
    let due = bench.now_ms + 300_000;
    assert_eq!(bench.settle().0.again_at_ms, Some(due));
    bench.now_ms = due - 1;
    assert_eq!(bench.absent(), 0);
    // While a reading is incomplete nothing is absent, and no time is waited for.
    bench.read(1, false);
    assert_eq!((bench.absent(), bench.settle().0.again_at_ms), (0, None));
    bench.read(0, true);
    assert_eq!(bench.absent(), 11);
    assert_eq!(bench.settle().0.again_at_ms, None);
    // The released ones do not brake others.
    remove(&mut bench, "web", 11..12);
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 12);
}

#[test]
fn approve_accepts_what_an_incomplete_reading_lacks() {
    let mut bench = running(2, "/m");
    bench.remove("web-000");
    bench.read(10, false);
    bench.settle();
    assert_eq!(bench.absences.approvable(), [id("web-000", Plugin::Csi, "data")]);
    assert!(bench.absences.braked().is_empty());
    bench.approve();
    assert_eq!(bench.want("web-000"), Want::Absent);
    assert!(matches!(bench.want("web-001"), Want::Wanted(_)));
}

#[test]
fn what_is_braked_stays_so_over_a_restart() {
    // 10 of 19 may go; 5 more within the minute are braked, and would be few for a daemon that forgets.
    let mut bench = running(19, "/m");
    remove(&mut bench, "web", 0..10);
    read_twice(&mut bench);
    bench.settle();
    bench.take_down();
    remove(&mut bench, "web", 10..15);
    read_twice(&mut bench);
    bench.settle();
    let spots = bench.absences.braked_spots();
    let held = spots.len();
    assert!(held > 0 && held == bench.absences.braked().len(), "{spots:?}");
    bench.absences = Absences::default();
    bench.absences.remember_braked(spots.clone());
    assert_eq!(bench.absences.braked_spots(), spots, "another restart before the first reading");
    read_twice(&mut bench);
    assert_eq!(bench.absent(), 0);
    assert_eq!(bench.absences.braked().len(), held);
    bench.approve();
    assert_eq!(bench.absent(), held);
}
