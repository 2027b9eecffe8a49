//! The bundled driver's two lists of volumes: the same volumes in the same pages, each with what is wrong with it.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;

use looped::calls::{As, From, refused};
use looped::{Loop, path, run};
use tonic::Code;
use volumed::proto::csi;
use volumed::proto::csi::controller_client::ControllerClient;

/// A page of a list: each volume and whether it is well, and the token for the next page.
type Page = (Vec<(String, bool)>, String);

fn volumes(driver: &Loop, max_entries: i32, token: &str) -> Page {
    let request = csi::ListVolumesRequest { max_entries, starting_token: token.to_owned() };
    let answer = driver.call(async |channel| ControllerClient::new(channel).list_volumes(request).await);
    let answer = answer.expect("a list");
    let one = |entry: csi::list_volumes_response::Entry| {
        let condition = entry.status.and_then(|status| status.volume_condition).expect("a condition");
        (entry.volume.expect("a volume").volume_id, !condition.abnormal)
    };
    (answer.entries.into_iter().map(one).collect(), answer.next_token)
}

fn health(driver: &Loop, max_entries: i32, token: &str) -> Page {
    let request = csi::ControllerListVolumeHealthRequest {
        max_entries,
        starting_token: token.to_owned(),
        ..Default::default()
    };
    let answer = driver
        .call(async |channel| ControllerClient::new(channel).controller_list_volume_health(request).await);
    let answer = answer.expect("a list");
    let one = |entry: csi::VolumeHealth| (entry.volume_id, entry.health_statuses.is_empty());
    (answer.entries.into_iter().map(one).collect(), answer.next_token)
}

#[test]
fn both_lists_have_the_same_pages_and_tell_the_same_of_each_volume() {
    let driver = Loop::new();
    for name in ["a", "b", "c"] {
        driver.create(name, &As::block(), 1 << 20, From::Nothing);
    }
    fs::remove_file(driver.dir.join("volumes/b/image")).unwrap();
    let named = |names: &[(&str, bool)]| -> Vec<(String, bool)> {
        names.iter().map(|(name, well)| ((*name).to_owned(), *well)).collect()
    };
    for list in [volumes, health] {
        let (first, token) = list(&driver, 2, "");
        assert_eq!(first, named(&[("a", true), ("b", false)]));
        let (second, end) = list(&driver, 2, &token);
        assert_eq!((second, end.as_str()), (named(&[("c", true)]), ""));
        assert_eq!(list(&driver, 0, "").0.len(), 3);
    }
    assert_eq!(volumes(&driver, 1, ""), health(&driver, 1, ""));
}

#[test]
fn a_pod_s_own_volume_is_listed_as_such_and_can_be_deleted_once_nothing_shows_it() {
    let driver = Loop::new();
    let target = driver.target("t");
    driver.publish_inline("csi-1", &target, &[("size", "8Mi")], false).unwrap();
    let shown = || {
        let request = csi::ListVolumesRequest::default();
        let answer = driver.call(async |channel| ControllerClient::new(channel).list_volumes(request).await);
        let volumes = answer.expect("a list").entries.into_iter().filter_map(|entry| entry.volume);
        volumes.map(|volume| (volume.volume_id, volume.volume_context)).collect::<Vec<_>>()
    };
    let own = [("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned())].into();
    assert_eq!(shown(), [("csi-1".to_owned(), own)]);
    refused(driver.delete("csi-1"), Code::FailedPrecondition);
    // Its pod goes without a word.
    run("umount", &[path(&target)]);
    driver.delete("csi-1").unwrap();
    assert_eq!(shown(), []);
    fs::remove_dir(&target).unwrap();
    driver.assert_nothing_left();
}

#[test]
fn two_file_systems_for_one_inline_volume_are_refused() {
    let driver = Loop::new();
    let target = driver.target("t");
    let attributes = [("size", "8Mi"), ("fsType", "ext4")];
    let why = refused(
        driver.publish_inline_as("csi-1", &target, "btrfs", &attributes, false),
        Code::InvalidArgument,
    );
    assert!(why.contains("ext4") && why.contains("btrfs"), "{why}");
    driver.publish_inline_as("csi-1", &target, "ext4", &attributes, false).unwrap();
    driver.unpublish("csi-1", &target).unwrap();
    driver.assert_nothing_left();
}
