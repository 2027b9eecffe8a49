//! Who may have a volume, and who may know its secrets: 16, 24, 25, 32.

use serde_json::json;

use super::*;
use crate::support::{claim, pod_using};

#[test]
fn invariant_16_a_secret_goes_to_its_own_call_and_nowhere_else() {
    const SECRETS: [(&str, &str); 3] =
        [("stage", "swordfish-4711"), ("publish", "tuna-4712"), ("expand", "marlin-4713")];
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let _daemon = host.volumed(&[]);
    // The driver's errors repeat the whole request.
    let leak = |method: &str, nth: u64| json!({"method": method, "nth": nth, "action": {"leak": "no"}});
    host.faults(&json!([
        leak(STAGE, 1),
        leak(PUBLISH, 1),
        leak(EXPAND, 1),
        leak(UNPUBLISH, 1),
        leak(UNSTAGE, 1)
    ]));
    let mut text: String = SECRETS
        .iter()
        .map(|(name, value)| {
            format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: {name}}}\nstringData: {{password: {value}}}\n---\n")
        })
        .collect();
    let secret =
        |name: &str, secret: &str| format!("    {name}SecretRef: {{name: {secret}, namespace: default}}\n");
    let references =
        [secret("nodeStage", "stage"), secret("nodePublish", "publish"), secret("nodeExpand", "expand")]
            .concat();
    let pv = |size: &str| {
        claim("data")
            .replace("    volumeAttributes", &format!("{references}    volumeAttributes"))
            .replace("storage: 1Gi", &format!("storage: {size}"))
    };
    host.manifest("data.yaml", &pv("1Gi"));
    text.push_str(&pod_using("web", "uid-web", "data"));
    host.manifest("web.yaml", &text);
    host.wait(&["pod/web"]);
    host.manifest("data.yaml", &pv("2Gi"));
    until("it has grown", || of(&host, &[EXPAND]).iter().any(|call| call.code == "OK"));
    let mut places = Vec::new();
    let mut look = |host: &TestHost| {
        for command in [
            &["status"][..],
            &["status", "pod/web", "-o", "json"],
            &["explain", "pod/web"],
            &["list", "-o", "json"],
            &["drivers", "-o", "json"],
        ] {
            places.push(String::from_utf8_lossy(&host.volumectl(command).stdout).into_owned());
        }
        places.extend(records(host));
    };
    look(&host);
    host.remove_manifest("web.yaml");
    until("the undo failed", || of(&host, &[UNPUBLISH]).iter().any(|call| call.code == "INTERNAL"));
    look(&host);
    host.wait(&["--for=released", "pod/web"]);
    assert_released(&host);
    let journal = fs::read_to_string(host.path("volumed.log")).expect("a log");
    assert!(journal.contains("INTERNAL"), "the leak was provoked: {journal}");
    places.push(journal);
    for (_, value) in SECRETS {
        let told = places.iter().find(|place| place.contains(value));
        assert!(told.is_none(), "a secret got out: {told:?}");
    }
    for call in of(&host, &[STAGE, PUBLISH, UNPUBLISH, UNSTAGE, EXPAND]) {
        let own = match call.method.as_str() {
            STAGE => Some("stage"),
            PUBLISH => Some("publish"),
            EXPAND => Some("expand"),
            _ => None,
        };
        for (name, value) in SECRETS {
            let has = call.request.to_string().contains(value);
            assert_eq!(has, own == Some(name), "{name}'s secret in {call:?}");
        }
    }
}

/// Two pods that want one volume.
fn two_pods(host: &TestHost, claim: &str) {
    host.manifest("data.yaml", claim);
    for pod in ["a", "b"] {
        host.manifest(&format!("{pod}.yaml"), &pod_using(pod, &format!("uid-{pod}"), "data"));
    }
}

#[test]
fn invariant_24_a_read_write_once_pod_volume_has_one_pod() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--multi-writer"]);
    let _daemon = host.volumed(&[]);
    let claim = claim("data").replace("ReadWriteOnce", "ReadWriteOncePod");
    host.manifest("data.yaml", &claim);
    host.manifest("b.yaml", &pod_using("b", "uid-b", "data"));
    host.wait(&["pod/b"]);
    host.manifest("a.yaml", &pod_using("a", "uid-a", "data"));
    until("the second is told whom it waits for", || {
        let why = explain(&host, "a");
        why.contains("ReadWriteOncePod") && why.contains("default/b")
    });
    assert_eq!(names(&of(&host, &NODE)), [STAGE, PUBLISH]);
    host.remove_manifest("b.yaml");
    host.wait(&["pod/a"]);
    let calls = of(&host, &[PUBLISH, UNPUBLISH]);
    let for_pod = |call: &Call| call.request["target_path"].as_str().expect("a path").contains("uid-b");
    let order: Vec<_> = calls.iter().map(|call| (call.method.as_str(), for_pod(call))).collect();
    assert_eq!(order, [(PUBLISH, true), (UNPUBLISH, true), (PUBLISH, false)], "{calls:?}");
    release(&host, &["a"]);
    assert_released(&host);
    // A ReadWriteOnce volume has one node and as many of its pods as want it.
    two_pods(&host, &claim.replace("ReadWriteOncePod", "ReadWriteOnce"));
    host.wait(&["pod/a", "pod/b"]);
    assert_lawful(&host);
}

#[test]
fn invariant_25_a_node_has_no_more_volumes_than_its_driver_takes() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--max-volumes", "1"]);
    let _daemon = host.volumed(&[]);
    // Two pods, and one volume.
    two_pods(&host, &claim("data"));
    host.wait(&["pod/a", "pod/b"]);
    host.manifest("more.yaml", &claim("more"));
    host.manifest("c.yaml", &pod_using("c", "uid-c", "more"));
    until("the limit is named", || explain(&host, "c").contains("takes 1 volumes on this node"));
    release(&host, &["a"]);
    assert!(of(&host, &NODE).iter().all(|call| call.volume == "handle-data"), "{:?}", of(&host, &NODE));
    release(&host, &["b"]);
    host.wait(&["pod/c"]);
    let calls = of(&host, &NODE);
    assert!(calls.iter().all(|call| call.code == "OK"), "the driver was never asked for more: {calls:?}");
    release(&host, &["c"]);
    assert_released(&host);
}

#[test]
fn invariant_32_two_volumes_with_one_handle_are_one_and_the_second_is_refused() {
    let host = TestHost::new();
    let _driver = host.fakecsi(&[]);
    let _daemon = host.volumed(&[]);
    host.manifest("one.yaml", &claim("one"));
    host.manifest("two.yaml", &claim("two").replace("handle-two", "handle-one").replace("blue", "red"));
    host.manifest("a.yaml", &pod_using("a", "uid-a", "one"));
    host.manifest("b.yaml", &pod_using("b", "uid-b", "two"));
    host.wait(&["pod/a"]);
    until("the second is refused", || {
        let why = explain(&host, "b");
        why.contains("PersistentVolume two") && why.contains("PersistentVolume one")
    });
    let calls = of(&host, &NODE);
    assert_eq!(names(&calls), [STAGE, PUBLISH], "{calls:?}");
    assert_eq!(calls[0].request["volume_context"]["colour"], "blue");
    // When the first is gone for good, the handle is the second's.
    release(&host, &["a"]);
    until("it is unstaged", || records(&host).is_empty());
    host.remove_manifest("one.yaml");
    // Until two readings lack the first, the second is held, which is no reason to wait for `volumectl wait`.
    until("it is the second's", || host.volumectl(&["wait", "--timeout", "5s", "pod/b"]).status.success());
    let stages = of(&host, &[STAGE]);
    assert_eq!(stages.len(), 2, "{stages:?}");
    assert_eq!(stages[0].request["staging_target_path"], stages[1].request["staging_target_path"]);
    assert_eq!(stages[1].request["volume_context"]["colour"], "red");
    release(&host, &["b"]);
    assert_released(&host);
}
