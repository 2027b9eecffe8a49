//! With the mock-driver: when which call is made, and what is there by then: 1, 4, 11.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::foreign::{assert_released, claim_of, methods};
use crate::mock::{DOWN, Mock, NAME, UP};
use crate::support::{pod_using, until};

/// Writes a claim, and the manifests of pods that share it.
fn share(mock: &Mock, size: &str, pods: &[&str]) {
    let claim = claim_of(NAME, "data", "1").replace("storage: 1Gi", &format!("storage: {size}"));
    mock.host.manifest("claim.yaml", &claim);
    for pod in pods {
        mock.host.manifest(&format!("{pod}.yaml"), &pod_using(pod, &format!("uid-{pod}"), "data"));
    }
}

#[test]
fn invariant_01_a_volume_has_one_call_at_a_time() {
    let test = "invariant_01_a_volume_has_one_call_at_a_time";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    // Each call takes its time, and finds out when another one began meanwhile (which may also kill the driver: its scripts do
    // not expect it).
    let alone = "n.in = (n.in || 0) + 1; for (var t = Date.now(); Date.now() - t < 150;) {}; \
                 n.in -= 1; n.in == 0 ? OK : DATALOSS";
    let calls = ["Stage", "Publish", "Expand", "Unpublish", "Unstage"];
    mock.hooks(&calls.map(|call| (format!("node{call}VolumeStart"), alone.to_owned())));
    let _driver = mock.driver(&["-disable-attach", "-node-expand-required"]);
    let _daemon = host.volumed(&[]);
    share(&mock, "1Gi", &["a", "b"]);
    // Everything that can be wanted of a volume, in the middle of what is under way.
    for size in ["2Gi", "3Gi"] {
        let before = mock.calls().len();
        until("it is called", || mock.calls().len() > before);
        host.remove_manifest("b.yaml");
        host.volumectl(&["retry"]);
        share(&mock, size, &["b", "c"]);
        host.volumectl(&["retry"]);
    }
    host.wait(&["pod/a", "pod/b", "pod/c"]);
    until("it has grown", || mock.of("NodeExpandVolume").len() >= 2);
    for pod in ["a", "b", "c"] {
        host.remove_manifest(&format!("{pod}.yaml"));
    }
    host.wait(&["--for=released", "pod/a", "pod/b", "pod/c"]);
    assert_released(host);
    let calls = mock.calls();
    assert!(calls.iter().all(|call| call.error.is_empty()), "{calls:#?}");
    assert!(calls.len() >= 10, "{:?}", methods(&calls));
}

#[test]
fn invariant_04_nothing_is_unstaged_before_every_pod_s_unpublish_was_ok() {
    let test = "invariant_04_nothing_is_unstaged_before_every_pod_s_unpublish_was_ok";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    // The first undo fails with its effect, and then two without.
    mock.hooks(&[
        ("nodeUnpublishVolumeEnd".to_owned(), "fail('end', 1, INTERNAL)".to_owned()),
        (
            "nodeUnpublishVolumeStart".to_owned(),
            "n.up = (n.up || 0) + 1; n.up > 1 && n.up < 4 ? UNAVAILABLE : OK".to_owned(),
        ),
    ]);
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    share(&mock, "1Gi", &["a", "b"]);
    host.wait(&["pod/a", "pod/b"]);
    host.remove_manifest("a.yaml");
    host.remove_manifest("b.yaml");
    host.wait(&["--for=released", "pod/a", "pod/b"]);
    assert_released(host);
    let calls = mock.calls();
    let unstage = calls.iter().position(|call| call.method == DOWN[1]).expect("it is unstaged");
    assert_eq!(unstage + 1, calls.len(), "{:?}", methods(&calls));
    for pod in ["a", "b"] {
        let target = host.target(&format!("uid-{pod}"), "data").display().to_string();
        let of_pod = |method: &str| {
            calls
                .iter()
                .filter(|call| call.method == method && call.request["target_path"] == *target)
                .collect::<Vec<_>>()
        };
        assert_eq!(of_pod(UP[1]).len(), 1, "{calls:#?}");
        assert!(of_pod(DOWN[0]).last().is_some_and(|call| call.error.is_empty()), "{pod}: {calls:#?}");
    }
    let failed = calls.iter().filter(|call| call.method == DOWN[0] && !call.error.is_empty());
    assert_eq!(failed.count(), 3, "{calls:#?}");
}

#[test]
fn invariant_11_staging_and_the_target_s_parent_are_made_for_the_driver_and_the_target_is_not() {
    let test = "invariant_11_staging_and_the_target_s_parent_are_made_for_the_driver_and_the_target_is_not";
    let Some(mock) = Mock::new(test) else { return };
    let host = &mock.host;
    let _driver = mock.driver(&["-disable-attach"]);
    let _daemon = host.volumed(&[]);
    mock.wish("1");
    host.wait(&["pod/web"]);
    let calls = mock.calls();
    assert_eq!(methods(&calls), UP);
    assert!(calls.iter().all(|call| call.error.is_empty()), "{calls:#?}");
    let staging = calls[0].request["staging_target_path"].as_str().expect("a path");
    assert!(Path::new(staging).is_dir(), "{staging}");
    // This driver makes the target itself, in a parent that it does not make, with a mode that nobody else here uses.
    let target = fs::metadata(host.target("uid-web", "data")).expect("it is there");
    assert!(target.is_dir());
    assert_eq!(target.permissions().mode() & 0o7777, 0o755, "somebody else made the target");
    mock.release();
}
