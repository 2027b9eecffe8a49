//! `Absences`, rule by rule (design 3, "Fail-safe").

use super::bench::*;
use super::*;
use crate::model::{CallState, HoldCode, Plugin, RecordedMount, Want};

#[test]
fn a_removed_manifest_is_absent_after_two_complete_readings_a_grace_apart() {
    let mut bench = running(2, "/m");
    bench.remove("web-000");
    bench.read(10, true);
    let (code, text) = bench.held("web-000");
    assert_eq!(code, HoldCode::ManifestMissing);
    assert!(text.contains("pod/default/web-000") && text.contains("/m/web-000.yaml"), "{text}");
    let first = bench.now_ms;
    assert_eq!(bench.settle().0.confirm_after_ms, Some(first + 1_000));
    // The same reading, however late it is looked at, counts once.
    bench.now_ms += 10_000;
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    bench.resolved.reading.generation += 1;
    bench.resolved.reading.began_ms = first + 999;
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    bench.resolved.reading.generation += 1;
    bench.resolved.reading.began_ms = first + 1_000;
    assert_eq!(bench.want("web-000"), Want::Absent);
    assert!(matches!(bench.want("web-001"), Want::Wanted(_)));
    assert_eq!(bench.settle().0.confirm_after_ms, None);
}

#[test]
fn one_reading_is_never_two_even_without_a_grace() {
    let mut bench = running(1, "/m");
    bench.absences = Absences::new(0, None);
    bench.remove("web-000");
    bench.read(10, true);
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    bench.read(0, true);
    assert_eq!(bench.want("web-000"), Want::Absent);
}

#[test]
fn a_manifest_that_returns_begins_anew() {
    let mut bench = running(1, "/m");
    bench.remove("web-000");
    bench.read(10, true);
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
    bench.add("web-000", "/m");
    bench.read(10, true);
    assert!(matches!(bench.want("web-000"), Want::Wanted(_)));
    bench.remove("web-000");
    bench.read(5_000, true);
    assert_eq!(bench.held("web-000").0, HoldCode::ManifestMissing);
}

#[test]
fn while_a_reading_is_incomplete_nothing_is_absent() {
    let mut bench = running(1, "/m");
    bench.remove("web-000");
    for _ in 0..5 {
        bench.read(5_000, false);
        let (code, text) = bench.held("web-000");
        assert_eq!(code, HoldCode::ReadingIncomplete);
        assert!(text.contains("/m/unreadable.yaml") && text.contains("volumectl approve"), "{text}");
    }
    read_twice(&mut bench);
    assert_eq!(bench.want("web-000"), Want::Absent);
    bench.read(5_000, false);
    assert_eq!(bench.held("web-000").0, HoldCode::ReadingIncomplete);
}

#[test]
fn before_the_first_reading_everything_recorded_is_held() {
    let mut bench = running(1, "/m");
    bench.remove("web-000");
    bench.resolved.reading = ReadingState::default();
    bench.absences = Absences::default();
    for record in bench.records.values_mut() {
        record.approved = true;
    }
    assert_eq!(bench.held("web-000").0, HoldCode::ReadingIncomplete);
}

#[test]
fn a_leaving_pod_is_absent_at_once_even_in_an_incomplete_reading() {
    let mut bench = running(1, "/m");
    bench.pod("web-000").leaving = true;
    bench.read(1, false);
    assert_eq!(bench.want("web-000"), Want::Absent);
    // And nothing new of it comes up.
    bench.records.clear();
    assert!(bench.settle().1.is_empty());
}

#[test]
fn a_held_pod_holds_what_is_recorded_of_it() {
    let mut bench = running(1, "/m");
    let pod = bench.pod("web-000");
    pod.held = Some(hold());
    pod.volumes.clear();
    read_twice(&mut bench);
    assert_eq!(bench.held("web-000"), (HoldCode::ObjectInvalid, "it is broken | mend it".to_owned()));
}

#[test]
fn a_held_volume_is_not_absent_by_name_or_by_claim() {
    for name in ["data", "renamed"] {
        let mut bench = running(1, "/m");
        let pod = bench.pod("web-000");
        let mut volume = pod.volumes.remove("data").unwrap();
        volume.want = ResolvedWant::Held(hold());
        pod.volumes.insert(name.to_owned(), volume);
        read_twice(&mut bench);
        assert_eq!(bench.held("web-000").0, HoldCode::ObjectInvalid, "{name}");
    }
}

#[test]
fn a_volume_that_its_pod_no_longer_uses_goes() {
    let mut bench = running(1, "/m");
    bench.pod("web-000").volumes.clear();
    bench.read(10, true);
    let (code, text) = bench.held("web-000");
    assert_eq!(code, HoldCode::ManifestMissing);
    assert!(text.contains("does not use volume data any more"), "{text}");
    bench.read(1_000, true);
    assert_eq!(bench.want("web-000"), Want::Absent);
}

#[test]
fn a_place_that_is_wanted_for_another_volume_gives_up_the_first() {
    let mut bench = running(1, "/m");
    bench.list("web-000", "data", "other");
    bench.read(10, true);
    let (code, text) = bench.held("web-000");
    assert_eq!(code, HoldCode::ManifestMissing);
    assert!(text.contains("d.example^other now"), "{text}");
    bench.read(1_000, true);
    assert_eq!(bench.want("web-000"), Want::Absent);
    let all = bench.settle().1;
    assert!(matches!(all[&(key("other"), id("web-000", Plugin::Csi, "data"))], Want::Wanted(_)));
}

#[test]
fn an_edit_to_another_volume_waits_as_long_as_the_first_is_up() {
    let mut bench = running(1, "/m");
    let old = (key("web-000"), id("web-000", Plugin::Csi, "data"));
    bench.records.get_mut(&old).unwrap().state = CallState::Done { mount: RecordedMount::NotAMountPoint };
    bench.list("web-000", "data", "other");
    read_twice(&mut bench);
    let all = bench.settle().1;
    for spot in [old.clone(), (key("other"), old.1.clone())] {
        assert!(matches!(&all[&spot], Want::Held(hold) if hold.code == HoldCode::PendingEdit), "{spot:?}");
    }
    bench.remove("web-000");
    read_twice(&mut bench);
    assert_eq!(bench.settle().1[&old], Want::Absent);
}

#[test]
fn an_empty_dir_goes_only_with_its_pod() {
    let mut bench = running(1, "/m");
    let place = id("web-000", Plugin::EmptyDir, "scratch");
    let spot = (VolumeKey::of_pod(&place), place.clone());
    bench.put("web-000", "scratch", spot.0.clone(), place);
    bench.read(10, true);
    bench.bring_up();
    bench.pod("web-000").volumes.remove("scratch");
    bench.records.get_mut(&spot).unwrap().approved = true;
    read_twice(&mut bench);
    assert!(matches!(&bench.settle().1[&spot], Want::Held(h) if h.code == HoldCode::EmptyDirKept));
    bench.records.get_mut(&spot).unwrap().approved = false;
    bench.remove("web-000");
    read_twice(&mut bench);
    assert_eq!(bench.settle().1[&spot], Want::Absent);
}

#[test]
fn a_released_empty_dir_goes_while_its_pod_stays() {
    let mut bench = running(1, "/m");
    let place = id("web-000", Plugin::EmptyDir, "scratch");
    let spot = (VolumeKey::of_pod(&place), place.clone());
    bench.put("web-000", "scratch", spot.0.clone(), place);
    bench.read(10, true);
    bench.bring_up();
    bench.pod("web-000").volumes.remove("scratch");
    bench.records.get_mut(&spot).unwrap().released = true;
    bench.read(20, true);
    assert_eq!(bench.settle().1[&spot], Want::Absent);
}

#[test]
fn an_adopted_volume_is_kept_until_it_is_released() {
    let mut bench = running(1, "/m");
    let spot = bench.records.keys().next().unwrap().clone();
    bench.records.get_mut(&spot).unwrap().adopted = true;
    bench.remove("web-000");
    read_twice(&mut bench);
    assert!(matches!(&bench.settle().1[&spot], Want::Held(h) if h.code == HoldCode::Adopted));
    bench.records.get_mut(&spot).unwrap().released = true;
    assert_eq!(bench.settle().1[&spot], Want::Absent);
}
