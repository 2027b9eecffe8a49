//! What the bundled driver says of its volumes and snapshots, against what was really made.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, SystemTime};

use looped::Loop;
use looped::calls::{As, From, refused};
use looped::lists::all_pages;
use tonic::Code;
use volumed::proto::csi;
use volumed::proto::csi::node_client::NodeClient;
use volumed::proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 16 * MIB;

fn bytes(size: u64) -> i64 {
    i64::try_from(size).expect("a size")
}

/// When something was made, by its own account.
fn time_of(snapshot: &csi::Snapshot) -> SystemTime {
    SystemTime::try_from(snapshot.creation_time.expect("a time")).expect("a time after 1970")
}

/// Now, in the milliseconds that the driver counts.
fn now() -> SystemTime {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("a time after 1970");
    let whole = u64::try_from(since.as_millis()).expect("a time before the year 584 million");
    SystemTime::UNIX_EPOCH + Duration::from_millis(whole)
}

#[test]
fn a_snapshot_is_told_as_it_was_made() {
    let mut driver = Loop::new();
    let used = As::file_system("ext4");
    let volume = driver.create("v", &used, SIZE, From::Nothing);
    driver.stage(&volume, &driver.staging("v"), &used).unwrap();
    let before = now();
    let snapshot = driver.snapshot(&volume, "s").unwrap();
    assert!((before..=now()).contains(&time_of(&snapshot)), "{snapshot:?} not since {before:?}");
    let expected = csi::Snapshot {
        size_bytes: bytes(SIZE),
        snapshot_id: "s".to_owned(),
        source_volume_id: volume.clone(),
        creation_time: snapshot.creation_time,
        ready_to_use: true,
        group_snapshot_id: String::new(),
        accessible_topology: Vec::new(),
    };
    assert_eq!(snapshot, expected);
    let image = fs::metadata(driver.dir.join("snapshots/s/image")).unwrap();
    assert_eq!(bytes(image.len()), snapshot.size_bytes);
    // What becomes of its volume changes nothing, nor does another start.
    driver.unstage(&volume, &driver.staging("v")).unwrap();
    driver.controller_expand(&volume, SIZE * 2).unwrap();
    driver.restart(&[]);
    driver.delete(&volume).unwrap();
    assert_eq!(driver.get_snapshot("s").unwrap(), expected);
    assert_eq!(driver.snapshots("", "", 0, "").unwrap(), (vec![expected.clone()], String::new()));
    assert_eq!(driver.snapshots(&volume, "s", 1, "").unwrap(), (vec![expected], String::new()));
    driver.delete_snapshot("s").unwrap();
    refused(driver.get_snapshot("s"), Code::NotFound);
    // An id that it cannot have given is that of no snapshot.
    refused(driver.get_snapshot("../v"), Code::NotFound);
    assert_eq!(driver.snapshots("", "s", 0, "").unwrap().0, []);
    driver.assert_nothing_left();
}

#[test]
fn a_group_is_told_as_it_was_made() {
    let driver = Loop::new();
    for (id, size) in [("a", SIZE), ("b", SIZE * 2)] {
        driver.create(id, &As::block(), size, From::Nothing);
    }
    let before = now();
    let group = driver.group_snapshot("g", &["b", "a"]).unwrap();
    assert_eq!(group.group_snapshot_id, "g");
    assert!(group.ready_to_use);
    for (id, size) in [("a", SIZE), ("b", SIZE * 2)] {
        let found: Vec<_> = group.snapshots.iter().filter(|one| one.source_volume_id == id).collect();
        let [member] = found[..] else { panic!("{found:?}") };
        assert_eq!((member.size_bytes, member.group_snapshot_id.as_str()), (bytes(size), "g"));
        assert!(member.ready_to_use && (before..=now()).contains(&time_of(member)), "{member:?}");
        assert_eq!(member.creation_time, group.creation_time, "not of one moment");
        assert_eq!(driver.get_snapshot(&member.snapshot_id).unwrap(), *member);
        assert_eq!(driver.snapshots(id, "", 0, "").unwrap().0, std::slice::from_ref(member));
    }
    assert_eq!(driver.get_group(&group).unwrap(), group);
    let mut wrong = group.clone();
    wrong.snapshots.pop();
    refused(driver.get_group(&wrong), Code::InvalidArgument);
    driver.delete_group(&group).unwrap();
    refused(driver.get_group(&group), Code::NotFound);
    assert_eq!(driver.snapshots("", "", 0, "").unwrap().0, []);
}

#[test]
fn snapshots_are_listed_in_pages_of_a_volume_or_with_an_id() {
    let driver = Loop::new();
    for id in ["v", "w"] {
        driver.create(id, &As::block(), MIB, From::Nothing);
    }
    let ids = |snapshots: &[csi::Snapshot]| -> Vec<String> {
        snapshots.iter().map(|one| one.snapshot_id.clone()).collect()
    };
    for number in 0..7 {
        driver.snapshot(if number % 3 == 0 { "w" } else { "v" }, &format!("s{number}")).unwrap();
    }
    let pages = all_pages(3, |most, token| driver.snapshots("", "", most, token));
    let found: Vec<_> = pages.iter().map(|page| ids(page)).collect();
    assert_eq!(found, [vec!["s0", "s1", "s2"], vec!["s3", "s4", "s5"], vec!["s6"]]);
    // Pages that end with the list have no other after them.
    let pages = all_pages(2, |most, token| driver.snapshots("v", "", most, token));
    assert_eq!(pages.iter().map(|page| ids(page)).collect::<Vec<_>>(), [["s1", "s2"], ["s4", "s5"]]);
    assert_eq!(ids(&driver.snapshots("", "s4", 0, "").unwrap().0), ["s4"]);
    assert_eq!(driver.snapshots("w", "s4", 0, "").unwrap().0, []);
    assert_eq!(driver.snapshots("none", "", 0, "").unwrap().0, []);
    // What a page ended with may go: the next begins where it would have.
    let (_, token) = driver.snapshots("", "", 3, "").unwrap();
    driver.delete_snapshot("s2").unwrap();
    driver.delete_snapshot("s3").unwrap();
    let (next, _) = driver.snapshots("", "", 3, &token).unwrap();
    assert_eq!(ids(&next), ["s4", "s5", "s6"]);
    refused(driver.snapshots("", "", 0, "nonsense"), Code::Aborted);
    refused(driver.snapshots("", "", -1, ""), Code::InvalidArgument);
}

#[test]
fn volumes_are_told_as_they_were_made() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    driver.create("plain", &used, SIZE, From::Nothing);
    driver.create("raw", &As::block(), SIZE + 1, From::Nothing);
    driver.snapshot("plain", "s").unwrap();
    driver.create("restored", &used, SIZE * 2, From::Snapshot("s"));
    driver.create("cloned", &used, SIZE, From::Volume("plain"));
    driver.create("grown", &As::block(), SIZE, From::Nothing);
    driver.controller_expand("grown", SIZE * 3).unwrap();
    let inline = format!("csi-{}", "c".repeat(64));
    driver.publish_inline(&inline, &driver.target("inline"), &[("size", "16Mi")], false).unwrap();
    let info = driver
        .call(async |channel| NodeClient::new(channel).node_get_info(csi::NodeGetInfoRequest {}).await)
        .unwrap();
    let here = info.accessible_topology.expect("a topology");

    let from = |source| Some(csi::VolumeContentSource { r#type: Some(source) });
    let expected = [
        ("cloned", SIZE, from(Type::Volume(VolumeSource { volume_id: "plain".to_owned() }))),
        (inline.as_str(), SIZE, None),
        ("grown", SIZE * 3, None),
        ("plain", SIZE, None),
        ("raw", SIZE + 4096, None),
        ("restored", SIZE * 2, from(Type::Snapshot(SnapshotSource { snapshot_id: "s".to_owned() }))),
    ];
    let pages = all_pages(2, |most, token| driver.volumes(most, token));
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 2]);
    for ((id, size, source), (found, status)) in expected.into_iter().zip(pages.into_iter().flatten()) {
        assert_eq!((found.volume_id.as_str(), found.capacity_bytes), (id, bytes(size)));
        assert_eq!(found.content_source, source, "{id}");
        assert_eq!(found.accessible_topology, std::slice::from_ref(&here), "{id}");
        assert_eq!(status.published_node_ids, Vec::<String>::new(), "it is attached nowhere");
        assert!(!status.volume_condition.expect("a condition").abnormal, "{id}");
        let image = fs::metadata(driver.dir.join("volumes").join(id).join("image")).unwrap();
        assert_eq!(image.len(), size, "{id}");
        assert_eq!(driver.get_volume(id).unwrap().0, found);
    }
    refused(driver.get_volume("none"), Code::NotFound);
    refused(driver.volumes(0, "nonsense"), Code::Aborted);
    refused(driver.volumes(-1, ""), Code::InvalidArgument);
    let health = all_pages(3, |most, token| driver.all_health(most, token));
    assert_eq!(health.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
    let ids: BTreeSet<String> = health.into_iter().flatten().map(|one| one.volume_id).collect();
    let expected = ["cloned", inline.as_str(), "grown", "plain", "raw", "restored"];
    assert!(ids.iter().eq(expected.iter()), "they are listed otherwise: {ids:?}");
}
