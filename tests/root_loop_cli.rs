//! volumed-csi-loop's commands against a driver that runs: what an operator types, and what comes of it.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a test: its helpers may fail loudly, look at paths and run tools"
)]

#[path = "loop/mod.rs"]
mod looped;
mod support;

use std::fs;
use std::process::{Command, Output};

use looped::calls::As;
use looped::{Loop, PROGRAM, write};
use serde_json::Value;

/// Types a command; returns its exit code and what it printed.
fn asked(driver: &Loop, line: &str) -> (Option<i32>, String, String) {
    let mut command = Command::new(PROGRAM);
    command.args(line.split_whitespace()).arg("--driver-socket").arg(driver.host.path("csi.sock"));
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// Types a command that succeeds and has nothing to complain about.
#[track_caller]
fn done(driver: &Loop, line: &str) -> String {
    let (code, stdout, stderr) = asked(driver, line);
    assert_eq!((code, stderr.as_str()), (Some(0), ""), "{line}: {stdout}");
    stdout
}

#[track_caller]
fn refused(driver: &Loop, line: &str, code: i32, told: &[&str]) {
    let (found, stdout, stderr) = asked(driver, line);
    assert_eq!((found, stdout.as_str()), (Some(code), ""), "{line}: {stderr}");
    for words in told {
        assert!(stderr.contains(words), "{line}: {words:?} is not in {stderr}");
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn create_prints_the_volume_s_persistent_volume_and_nothing_else() {
    let driver = Loop::new();
    let manifest = done(&driver, "volume create data --size 64Mi");
    let expected = "\
apiVersion: v1
kind: PersistentVolume
metadata:
  name: data
spec:
  accessModes:
  - ReadWriteOnce
  capacity:
    storage: \"64Mi\"
  csi:
    driver: loop.csi.volumed.io
    fsType: ext4
    volumeHandle: data
  nodeAffinity:
    required:
      nodeSelectorTerms:
      - matchExpressions:
        - key: loop.csi.volumed.io/node
          operator: In
          values:
          - test-node
  persistentVolumeReclaimPolicy: Retain
  storageClassName: \"\"
  volumeMode: Filesystem
";
    assert_eq!(manifest, expected);
    // Given again it is the same volume; as another one it is refused.
    assert_eq!(done(&driver, "volume create data --size 64Mi"), expected);
    refused(
        &driver,
        "volume create data --size 64Mi --fs btrfs",
        1,
        &["the volume data", "another content", "choose another name"],
    );
    let block = json(&done(&driver, "volume create raw --size 1Mi --block --allocation thick -o json"));
    assert_eq!(block["spec"]["volumeMode"], "Block");
    assert_eq!(block["spec"]["csi"].get("fsType"), None);
    assert_eq!(done(&driver, "volume create named --size 64Mi -o name"), "named\n");
    // What the size had to become is said, and not where the manifest goes.
    let (code, manifest, note) = asked(&driver, "volume create odd --size 67108865 -o json");
    assert_eq!(code, Some(0));
    assert_eq!(json(&manifest)["spec"]["capacity"]["storage"], "65540Ki");
    assert!(note.contains("the volume odd has 65540Ki, not 67108865"), "{note}");
    for volume in ["data", "raw", "named", "odd"] {
        done(&driver, &format!("volume delete {volume}"));
    }
    driver.assert_nothing_left();
}

#[test]
fn a_volume_is_listed_grown_copied_and_deleted() {
    let driver = Loop::new();
    done(&driver, "volume create data --size 128Mi --fs btrfs -o name");
    assert_eq!(done(&driver, "volume list -o name"), "data\n");
    let grown = done(&driver, "volume resize data --size 192Mi");
    assert!(grown.contains("  storage: 192Mi\n") && grown.contains("volumed then grows"), "{grown}");
    refused(&driver, "volume resize data --size 64Mi", 1, &["volume data", "192Mi", "do not shrink"]);
    let taken = done(&driver, "volume snapshot data monday");
    assert!(taken.contains("--from-snapshot monday"), "{taken}");
    assert_eq!(done(&driver, "snapshot list -o name"), "monday\n");
    let snapshot = json(&done(&driver, "snapshot list -o json"));
    assert_eq!(snapshot[0]["volume"], "data");
    // The copies' manifests name the file system that nobody named.
    for line in [
        "volume create restored --from-snapshot monday",
        "volume create copy --from-volume data --size 256Mi",
    ] {
        let copy = json(&done(&driver, &format!("{line} -o json")));
        assert_eq!(copy["spec"]["csi"]["fsType"], "btrfs", "{copy}");
    }
    let list = done(&driver, "volume list");
    let rows: Vec<Vec<&str>> = list.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
    assert_eq!(
        rows,
        [
            vec!["●", "copy", "256Mi", "image", "volume", "data", "well"],
            vec!["●", "data", "192Mi", "image", "-", "well"],
            vec!["●", "restored", "192Mi", "image", "snapshot", "monday", "well"],
        ],
        "{list}"
    );
    let volumes = json(&done(&driver, "volume list -o json"));
    assert_eq!(volumes[0]["capacity_bytes"], 256 << 20);
    assert!(done(&driver, "volume list -o yaml").starts_with("- "));
    for volume in ["data", "restored", "copy"] {
        let gone = done(&driver, &format!("volume delete {volume}"));
        assert!(gone.contains(&format!("the volume {volume} is deleted")), "{gone}");
    }
    assert_eq!(json(&done(&driver, "volume list -o json")), Value::Array(Vec::new()));
    done(&driver, "snapshot delete monday");
    driver.assert_nothing_left();
}

#[test]
fn what_is_not_there_is_another_exit_code_than_what_is_refused() {
    let driver = Loop::new();
    let there_is_none = &["there is no volume data", "volume list"];
    refused(&driver, "volume resize data --size 64Mi", 3, there_is_none);
    refused(&driver, "volume delete data", 3, there_is_none);
    refused(&driver, "volume delete No/Handle", 3, &["there is no volume No/Handle"]);
    refused(&driver, "volume snapshot data monday", 3, there_is_none);
    refused(&driver, "volume create copy --from-volume data", 3, there_is_none);
    refused(&driver, "volume create copy --from-snapshot monday", 3, &["there is no snapshot monday"]);
    refused(&driver, "snapshot delete monday", 3, &["there is no snapshot monday"]);
    refused(
        &driver,
        "volume create data --size 4Ei --allocation thick",
        1,
        &["create the volume data", "make room"],
    );
    driver.assert_nothing_left();
}

#[test]
fn a_volume_in_use_is_not_deleted_and_keeps_its_data() {
    let driver = Loop::new();
    done(&driver, "volume create data --size 64Mi");
    let (staged, used) = (driver.staging("data"), As::file_system("ext4"));
    driver.stage("data", &staged, &used).unwrap();
    write(&staged.join("file"), b"kept");
    refused(&driver, "volume delete data", 1, &["volume data", "in use", "/dev/loop", "volumectl wait"]);
    assert_eq!(fs::read(staged.join("file")).unwrap(), b"kept");
    driver.unstage("data", &staged).unwrap();
    done(&driver, "volume delete data");
    driver.assert_nothing_left();
}

#[test]
fn a_list_of_many_volumes_is_whole() {
    let driver = Loop::new();
    for n in 0..101 {
        driver.create(&format!("v{n}"), &As::block(), 4096, looped::calls::From::Nothing);
    }
    assert_eq!(done(&driver, "volume list -o name").lines().count(), 101);
    for n in 0..101 {
        driver.delete(&format!("v{n}")).unwrap();
    }
    driver.assert_nothing_left();
}
