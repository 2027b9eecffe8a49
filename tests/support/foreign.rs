//! Drivers that nobody here wrote, as processes of a test's host, and what their own logs say of the calls they got.

#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use volumed::proto::csi;
use volumed::proto::csi::controller_client::ControllerClient;
use volumed::proto::csi::node_client::NodeClient;

pub use crate::support::objects::{attachment, block, claim_of, device_user};
pub use crate::support::seen::{assert_released, explanation};

use crate::support::PATIENCE;
use crate::support::seen::CALLS;

/// A call that a driver wrote into its log when it had answered it.
#[derive(Debug, Clone)]
pub struct Witnessed {
    pub method: String,
    pub request: Value,
    /// Empty: it was answered OK.
    pub error: String,
    /// When, since midnight.
    pub at: Duration,
}

/// Returns the program that a variable names, or says that the test does not run.
pub fn program(test: &str, variable: &str) -> Option<PathBuf> {
    let path = std::env::var_os(variable).map(PathBuf::from);
    if path.is_none() {
        println!("NOT-RUN: {test}: {variable} is not set");
    }
    path
}

/// Reads the calls with an effect on the node from a log; of a call in the middle of being written nothing is known yet.
pub fn node_calls(log: &Path) -> Vec<Witnessed> {
    let text = fs::read_to_string(log).unwrap_or_default();
    let calls = text.lines().filter_map(|line| {
        let (head, json) = line.split_once("gRPCCall: ")?;
        let call: Value = serde_json::from_str(json).ok()?;
        let method = call["Method"].as_str()?.rsplit('/').next()?.to_owned();
        Some(Witnessed {
            method,
            request: call["Request"].clone(),
            error: call["Error"].as_str().unwrap_or_default().to_owned(),
            at: since_midnight(head.split_whitespace().nth(1)?)?,
        })
    });
    calls.filter(|call| CALLS.contains(&call.method.as_str())).collect()
}

/// Reads `16:34:57.123456`.
fn since_midnight(clock: &str) -> Option<Duration> {
    let mut parts = clock.split(':');
    let mut next = || parts.next()?.parse::<f64>().ok();
    let (hours, minutes, seconds) = (next()?, next()?, next()?);
    Some(Duration::from_secs_f64(hours.mul_add(3600.0, minutes.mul_add(60.0, seconds))))
}

/// Returns the methods of some calls, in order.
pub fn methods(calls: &[Witnessed]) -> Vec<&str> {
    calls.iter().map(|call| call.method.as_str()).collect()
}

/// A retry sends what was sent before (csi.md 10, 5): one request per method and path.
pub fn assert_same_arguments(calls: &[Witnessed], context: &str) {
    for call in calls {
        let path = |call: &Witnessed| match call.method.as_str() {
            "NodePublishVolume" | "NodeUnpublishVolume" => call.request["target_path"].clone(),
            _ => Value::Null,
        };
        let first = calls.iter().find(|other| {
            other.method == call.method
                && other.request["volume_id"] == call.request["volume_id"]
                && path(other) == path(call)
        });
        let first = first.map(|first| &first.request);
        assert_eq!(first, Some(&call.request), "{context}: {} was sent with other arguments", call.method);
    }
}

/// A call to a driver that volumed does not make, and that succeeds.
fn call<T>(socket: &Path, call: impl AsyncFn(Channel) -> Result<T, tonic::Status>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("an address");
        let deadline = Instant::now() + PATIENCE;
        let channel = loop {
            match endpoint.connect().await {
                Ok(channel) => break channel,
                Err(error) => assert!(Instant::now() < deadline, "{}: {error}", socket.display()),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        call(channel).await.expect("the driver does what it is asked")
    })
}

fn capability() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_mode: Some(csi::volume_capability::AccessMode { mode: 1 }),
        access_type: Some(csi::volume_capability::AccessType::Mount(
            csi::volume_capability::MountVolume::default(),
        )),
    }
}

/// Has the driver make a volume; returns its handle.
pub fn create_volume(socket: &Path, name: &str) -> String {
    create(socket, name, capability())
}

/// Has the driver make a block volume; returns its handle.
pub fn create_block_volume(socket: &Path, name: &str) -> String {
    let block = csi::volume_capability::AccessType::Block(csi::volume_capability::BlockVolume::default());
    create(socket, name, csi::VolumeCapability { access_type: Some(block), ..capability() })
}

fn create(socket: &Path, name: &str, capability: csi::VolumeCapability) -> String {
    let request = csi::CreateVolumeRequest {
        name: name.to_owned(),
        capacity_range: Some(csi::CapacityRange { required_bytes: 1 << 20, limit_bytes: 0 }),
        volume_capabilities: vec![capability],
        ..Default::default()
    };
    let answer =
        call(socket, async |channel| ControllerClient::new(channel).create_volume(request.clone()).await);
    answer.into_inner().volume.expect("a volume").volume_id
}

/// Does the attacher's part.
pub fn attach_volume(socket: &Path, handle: &str, node: &str) {
    let request = csi::ControllerPublishVolumeRequest {
        volume_id: handle.to_owned(),
        node_id: node.to_owned(),
        volume_capability: Some(capability()),
        ..Default::default()
    };
    call(socket, async |channel| {
        ControllerClient::new(channel).controller_publish_volume(request.clone()).await
    });
}

/// Does what an operator may do to help a driver.
pub fn unpublish_volume(socket: &Path, handle: &str, target: &Path) {
    let request = csi::NodeUnpublishVolumeRequest {
        volume_id: handle.to_owned(),
        target_path: target.display().to_string(),
    };
    call(socket, async |channel| NodeClient::new(channel).node_unpublish_volume(request.clone()).await);
}

/// Says which case it was.
struct Case<'a, T: std::fmt::Debug>(&'a T);

impl<T: std::fmt::Debug> Drop for Case<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("failed: {:?}", self.0);
        }
    }
}

/// Runs a test for each of some cases, a few at a time: most of their time is waiting.
pub fn for_each<T: Sync + std::fmt::Debug>(cases: &[T], test: impl Fn(&T) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..6.min(cases.len()) {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let _named = Case(case);
                    test(case);
                }
            });
        }
    });
}
