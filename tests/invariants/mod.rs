//! One file for each kind of invariant, and what they look at: the driver's log, the records, the mount table.

mod calls;
mod codes;
mod failures;
mod life;
mod rights;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::objects::{self, block, csi_driver, device_user};
use crate::support::seen::{self, explanation as explain, mount_ids, records};
use crate::support::{DRIVER, TestHost, until};

/// The calls that have an effect on this node, in the order of a volume's life.
const NODE: [&str; 4] = [STAGE, PUBLISH, UNPUBLISH, UNSTAGE];
const STAGE: &str = "NodeStageVolume";
const PUBLISH: &str = "NodePublishVolume";
const UNPUBLISH: &str = "NodeUnpublishVolume";
const UNSTAGE: &str = "NodeUnstageVolume";
const EXPAND: &str = "NodeExpandVolume";

/// A call as the driver saw it.
#[derive(Debug, Clone)]
struct Call {
    method: String,
    volume: String,
    request: Value,
    /// When it began and ended, by the number of the line in the log; `None`: it has not ended.
    lines: (usize, Option<usize>),
    /// ms since the epoch.
    at: u64,
    /// `OK`, ...; empty while it runs.
    code: String,
    message: String,
}

/// Reads the driver's log, all its processes', without the questions that concern no volume.
fn log(host: &TestHost) -> Vec<Call> {
    let text = fs::read_to_string(host.path("calls")).unwrap_or_default();
    let mut calls: Vec<Call> = Vec::new();
    let mut open = BTreeMap::new();
    for (number, line) in text.lines().enumerate() {
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let text = |key: &str| event[key].as_str().unwrap_or_default().to_owned();
        let id = event["id"].as_u64().expect("each line has an id");
        if event["event"] == "begin" {
            // A process that was killed took its open calls with it.
            open.insert(id, calls.len());
            calls.push(Call {
                method: text("method"),
                volume: text("volume"),
                request: event["request"].clone(),
                lines: (number, None),
                at: event["at"].as_u64().expect("each line has a time"),
                code: String::new(),
                message: String::new(),
            });
        } else if let Some(call) = open.remove(&id).map(|at| &mut calls[at]) {
            call.lines.1 = Some(number);
            call.code = text("code");
            call.message = text("message");
        }
    }
    calls.retain(|call| !call.volume.is_empty());
    calls
}

/// The calls of some methods, in the order in which they began.
fn of(host: &TestHost, methods: &[&str]) -> Vec<Call> {
    log(host).into_iter().filter(|call| methods.contains(&call.method.as_str())).collect()
}

fn names(calls: &[Call]) -> Vec<&str> {
    calls.iter().map(|call| call.method.as_str()).collect()
}

/// The driver refused nothing as a breach of contract, and no volume had two calls at a time (csi.md 10, 1).
fn assert_lawful(host: &TestHost) {
    let calls = log(host);
    for (i, call) in calls.iter().enumerate() {
        assert!(!call.message.contains("contract violation"), "{call:?}\n{}", host.logs());
        let end = call.lines.1.unwrap_or(usize::MAX);
        let overlaps = |other: &&Call| other.volume == call.volume && other.lines.0 < end;
        let other = calls.iter().skip(i + 1).find(overlaps).filter(|_| call.lines.1.is_some());
        assert!(other.is_none(), "two calls at a time: {call:?} and {other:?}");
    }
}

/// A retry is what was sent before (csi.md 10, 5): of each method, volume and path there is one request.
fn assert_same_arguments(calls: &[Call], context: &str) {
    let mut first: BTreeMap<(String, String, String), String> = BTreeMap::new();
    for call in calls {
        let target = call.request["target_path"].as_str().unwrap_or_default().to_owned();
        let key = (call.method.clone(), call.volume.clone(), target);
        let request = call.request.to_string();
        let known = first.entry(key).or_insert_with(|| request.clone());
        assert_eq!(*known, request, "{context}: {} was sent with other arguments", call.method);
    }
}

/// How many mounts lie on a path.
fn depth(host: &TestHost, path: &Path) -> usize {
    mount_ids(host).iter().filter(|(point, _)| point == path).count()
}

/// Waits until nothing is recorded, and checks that nothing else is left.
fn assert_released(host: &TestHost) {
    seen::assert_released(host);
    assert_lawful(host);
}

/// Takes pods away and waits until they are gone.
fn release(host: &TestHost, pods: &[&str]) {
    for pod in pods {
        host.remove_manifest(&format!("{pod}.yaml"));
    }
    let pods: Vec<String> = pods.iter().map(|pod| format!("pod/{pod}")).collect();
    let mut wait = vec!["--for=released"];
    wait.extend(pods.iter().map(String::as_str));
    host.wait(&wait);
}

/// A fault for the first so many calls of a method.
fn fails(method: &str, times: u64, when: &str, code: &str) -> Value {
    json!({"method": method, "to": times, "when": when, "action": {"code": code}})
}

/// A CSIDriver object for the example driver.
fn driver_object(spec: &str) -> String {
    csi_driver(DRIVER, spec)
}

/// What an attacher writes when it has attached a PV to this node.
fn attachment(volume: &str, metadata: &str) -> String {
    objects::attachment(DRIVER, volume, metadata)
}
