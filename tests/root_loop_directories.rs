//! What the bundled driver says of directories (`backing: directory`) where no file system limits them, and what it refuses of them
//! anywhere. What they do where one does: `vm_quota.rs`.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test: its helpers may fail loudly and look at paths"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::collections::BTreeMap;
use std::fs;

use looped::Loop;
use looped::calls::{As, From, refused};
use tonic::Code;
use volumed::proto::csi;
use volumed::proto::csi::controller_client::ControllerClient;

const MIB: u64 = 1 << 20;

/// The parameter for one.
const DIRECTORY: [(&str, &str); 1] = [("backing", "directory")];

/// How much room there is for volumes with these parameters.
fn room(driver: &Loop, parameters: &[(&str, &str)]) -> i64 {
    let parameters: BTreeMap<String, String> =
        parameters.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let request = csi::GetCapacityRequest { parameters, ..Default::default() };
    let answer = driver.call(async |channel| ControllerClient::new(channel).get_capacity(request).await);
    answer.expect("an answer").available_capacity
}

#[test]
fn without_project_quotas_there_is_no_room_for_directories_and_the_remedy_is_told() {
    for (host, remedy) in
        [("ext4", "tune2fs -O project,quota"), ("xfs", "-o prjquota"), ("tmpfs", "backing: image")]
    {
        let driver = Loop::on(host, "400M");
        assert_eq!(room(&driver, &DIRECTORY), 0, "{host}");
        assert!(room(&driver, &[("backing", "image")]) > 0, "{host}");
        let made = driver.create_as("v", &As::file_system(""), 8 * MIB, From::Nothing, &DIRECTORY);
        let why = refused(made, Code::FailedPrecondition);
        assert!(why.contains(remedy) && why.contains(looped::path(&driver.dir)), "{host}: {why}");
        // And one that a pod has for itself.
        let id = format!("csi-{}", "a".repeat(64));
        let inline = [("size", "8Mi"), ("backing", "directory")];
        let why = refused(
            driver.publish_inline(&id, &driver.target("t"), &inline, false),
            Code::FailedPrecondition,
        );
        assert!(why.contains(remedy), "{host}: {why}");
        driver.assert_nothing_left();
    }
}

#[test]
fn what_no_directory_can_be_is_refused_before_the_host_is_asked() {
    let driver = Loop::new();
    let mounted = As::file_system("");
    for (used, parameters, word) in [
        (&As::block(), &DIRECTORY[..], "block device"),
        (&mounted, &[("backing", "directory"), ("allocation", "thick")], "allocation: thick"),
        (&mounted, &[("backing", "Directory")], "neither image nor directory"),
        (&mounted, &[("backing", "")], "neither image nor directory"),
    ] {
        let made = driver.create_as("v", used, 8 * MIB, From::Nothing, parameters);
        let why = refused(made, Code::InvalidArgument);
        assert!(why.contains(word), "{parameters:?}: {why}");
    }
    let id = format!("csi-{}", "a".repeat(64));
    let inline = [("size", "8Mi"), ("backing", "tape")];
    refused(driver.publish_inline(&id, &driver.target("t"), &inline, false), Code::InvalidArgument);
    driver.assert_nothing_left();
}

#[test]
fn an_image_that_is_asked_for_by_name_is_the_one_without_a_name() {
    let driver = Loop::new();
    let used = As::file_system("ext4");
    let made = driver.create_as("v", &used, 8 * MIB, From::Nothing, &[("backing", "image")]).unwrap();
    assert!(made.volume_context.is_empty(), "{made:?}");
    assert!(driver.dir.join("volumes/v/image").is_file());
    driver.create("v", &used, 8 * MIB, From::Nothing);
    // A directory is another volume, whether or not it could be made.
    refused(driver.create_as("v", &used, 8 * MIB, From::Nothing, &DIRECTORY), Code::AlreadyExists);
    let copy = driver.create_as("w", &used, 8 * MIB, From::Volume("v"), &DIRECTORY);
    assert!(copy.is_err(), "a directory was made of an image");
    assert!(fs::read_dir(driver.dir.join("volumes")).unwrap().count() == 1, "something was left");
    driver.delete("v").unwrap();
    driver.assert_nothing_left();
}
