//! What a driver cannot do, and the codes with which it says no: 13, 30.

use std::time::{Duration, Instant};

use serde_json::json;

use super::*;
use crate::support::{claim, pod_using};

const STATS: &str = "NodeGetVolumeStats";
const HEALTH: &str = "NodeGetVolumeHealth";

/// One capability of a driver: the flag of the example driver that turns it on or off, and what only a driver with it is asked.
struct Capability {
    name: &'static str,
    flag: &'static str,
    /// The flag takes it away.
    taken: bool,
    calls: &'static [&'static str],
    /// What NodePublishVolume's capability says only with it.
    said: Option<Said>,
}

/// In words, and how it is seen in a capability.
type Said = (&'static str, fn(&Value) -> bool);

fn has_group(capability: &Value) -> bool {
    capability.to_string().contains("1234")
}

fn is_multi_writer(capability: &Value) -> bool {
    capability["access_mode"] == 7
}

const fn asks(
    name: &'static str,
    flag: &'static str,
    taken: bool,
    calls: &'static [&'static str],
) -> Capability {
    Capability { name, flag, taken, calls, said: None }
}

/// All that a node can have but VOLUME_CONDITION, which changes no request.
const CAPABILITIES: [Capability; 6] = [
    asks("STAGE_UNSTAGE_VOLUME", "--no-stage", true, &[STAGE, UNSTAGE]),
    asks("GET_VOLUME_STATS", "--no-stats", true, &[STATS]),
    asks("EXPAND_VOLUME", "--expand", false, &[EXPAND]),
    asks("GET_VOLUME_HEALTH", "--health", false, &[HEALTH]),
    Capability {
        name: "SINGLE_NODE_MULTI_WRITER",
        flag: "--multi-writer",
        taken: false,
        calls: &[],
        said: Some(("access mode 7", is_multi_writer)),
    },
    Capability {
        name: "VOLUME_MOUNT_GROUP",
        flag: "--mount-group",
        taken: false,
        calls: &[],
        said: Some(("a volume_mount_group", has_group)),
    },
];

/// Brings a volume with an fsGroup up, looks after it, grows it and takes it down, with every capability but one.
fn without(off: Option<&Capability>) {
    let host = TestHost::new();
    let is_off = |capability: &Capability| off.is_some_and(|off| off.name == capability.name);
    let flags = CAPABILITIES.iter().filter(|capability| capability.taken == is_off(capability));
    let _driver = host.fakecsi(&flags.map(|capability| capability.flag).collect::<Vec<_>>());
    let _daemon = host.volumed(&[]);
    let group = "spec:\n  securityContext: {fsGroup: 1234}\n  containers";
    host.manifest("data.yaml", &claim("data"));
    host.manifest("web.yaml", &pod_using("web", "uid-web", "data").replace("spec:\n  containers", group));
    host.wait(&["pod/web"]);
    let shown = || seen::volumes(&host).into_iter().next().unwrap_or_default();
    // By a driver that cannot tell it, or by the file system itself.
    until("somebody has asked how full it is", || shown()["usage"]["total_bytes"].is_u64());
    host.manifest("data.yaml", &claim("data").replace("storage: 1Gi", "storage: 2Gi"));
    until("the edit is read", || shown()["capacity_bytes"] == json!(2_u64 << 30));
    let on = |method: &str| !off.is_some_and(|off| off.calls.contains(&method));
    for method in [EXPAND, HEALTH].into_iter().filter(|method| on(method)) {
        until(method, || !of(&host, &[method]).is_empty());
    }
    release(&host, &["web"]);
    assert_released(&host);
    let calls = log(&host);
    let published = &of(&host, &[PUBLISH])[0].request["volume_capability"];
    for capability in &CAPABILITIES {
        for method in capability.calls {
            let called = names(&calls).contains(method);
            assert_eq!(called, !is_off(capability), "{method} without {:?}", off.map(|off| off.name));
        }
        if let Some((what, said)) = capability.said {
            assert_eq!(said(published), !is_off(capability), "{what}: {published}");
        }
    }
    assert!(calls.iter().all(|call| call.code == "OK"), "{calls:?}");
}

#[test]
fn invariant_13_nothing_is_called_without_its_capability() {
    // Most of its time is waiting for somebody to ask how full a volume is.
    std::thread::scope(|scope| {
        for off in CAPABILITIES.iter().map(Some).chain([None]) {
            scope.spawn(move || without(off));
        }
    });
}

/// Every gRPC code but OK: nobody knows whether it is done; the request is wrong; something else.
const TRANSIENT: [&str; 5] =
    ["CANCELLED", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "UNAVAILABLE"];
const WRONG: [&str; 3] = ["INVALID_ARGUMENT", "OUT_OF_RANGE", "UNIMPLEMENTED"];
const OTHER: [&str; 8] = [
    "UNKNOWN",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "FAILED_PRECONDITION",
    "INTERNAL",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Has a driver answer a method with every code, each for a volume of its own; `slow` are the codes that are not tried again
/// for two minutes.
fn paced(method: &str, slow: &[&str]) {
    let host = TestHost::new();
    let _driver = host.fakecsi(&["--expand"]);
    let codes = [&TRANSIENT[..], &WRONG, &OTHER].concat();
    let name = |code: &str| format!("v{}", code.to_lowercase().replace('_', "-"));
    let pod = |code: &str| pod_using(&name(code), &format!("uid-{}", name(code)), &name(code));
    let faults: Vec<Value> = codes
        .iter()
        .map(|code| json!({"method": method, "volume": format!("handle-{}", name(code)), "action": {"code": code}}))
        .collect();
    host.faults(&json!(faults));
    for code in &codes {
        host.manifest(&format!("claim-{}.yaml", name(code)), &claim(&name(code)));
        host.manifest(&format!("{}.yaml", name(code)), &pod(code));
    }
    let _daemon = host.volumed(&[]);
    if ![STAGE, PUBLISH].contains(&method) {
        let pods: Vec<String> = codes.iter().map(|code| format!("pod/{}", name(code))).collect();
        host.wait(&pods.iter().map(String::as_str).collect::<Vec<_>>());
        for code in &codes {
            if method == EXPAND {
                let larger = claim(&name(code)).replace("storage: 1Gi", "storage: 2Gi");
                host.manifest(&format!("claim-{}.yaml", name(code)), &larger);
            } else {
                // So many manifests that went at once would be held as a mistake.
                let deleted = ", deletionTimestamp: 2026-11-21T00:00:00Z}\nspec:";
                host.manifest(&format!("{}.yaml", name(code)), &pod(code).replacen("}\nspec:", deleted, 1));
            }
        }
    }
    let began = Instant::now();
    let tries = |code: &str| {
        let mut calls = of(&host, &[method]);
        calls.retain(|call| call.volume == format!("handle-{}", name(code)));
        calls
    };
    // Five tries take 0.5 + 1 + 2 + 4 s.
    until("each transient failure was tried five times", || {
        TRANSIENT.iter().all(|code| tries(code).len() >= 5)
    });
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(7400), "{method}: {took:?}");
    let shown = String::from_utf8_lossy(&host.volumectl(&["list", "-o", "json"]).stdout).into_owned();
    for code in &codes {
        let calls = tries(code);
        let is_slow = slow.contains(code);
        let as_often = if is_slow { calls.len() == 1 } else { (4..=6).contains(&calls.len()) };
        assert!(as_often, "{method} {code}: {} calls", calls.len());
        let pauses = calls.windows(2).map(|pair| pair[1].at - pair[0].at);
        for (pause, least) in pauses.zip([500, 1000, 2000, 4000, 8000]) {
            // Less by what the clock's steps and the log's order may hide.
            assert!(pause + 20 >= least, "{method} {code}: again after {pause} ms, not {least}");
        }
        assert!(shown.contains(code), "{method}: {code} is not shown");
    }
    assert_lawful(&host);
}

#[test]
fn invariant_30_no_code_of_a_stage_is_tried_again_without_a_growing_pause() {
    paced(STAGE, &WRONG);
}

#[test]
fn invariant_30_no_code_of_a_publish_is_tried_again_without_a_growing_pause() {
    paced(PUBLISH, &WRONG);
}

#[test]
fn invariant_30_no_code_of_an_unpublish_is_tried_again_without_a_growing_pause() {
    paced(UNPUBLISH, &WRONG);
}

#[test]
fn invariant_30_no_code_of_an_unstage_is_tried_again_without_a_growing_pause() {
    paced(UNSTAGE, &WRONG);
}

#[test]
fn invariant_30_no_code_of_an_expansion_is_tried_again_without_a_growing_pause() {
    // The volume is in use, and the driver knows no such volume to make larger (kubelet.md 8).
    paced(EXPAND, &[&WRONG[..], &["FAILED_PRECONDITION", "NOT_FOUND"]].concat());
}
