use std::io;
use std::sync::{Arc, Mutex};

use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::model::{Plugin, PodUid, SpecName};

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells the event to a JSON log and returns its level, message and fields.
fn told(kind: EventKind) -> serde_json::Value {
    let lines = Lines::default();
    let writer = lines.clone();
    let layer = tracing_subscriber::fmt::layer().json().with_writer(move || writer.clone());
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
        tell(&Event { at: 0, kind });
    });
    let bytes = lines.0.lock().unwrap().clone();
    serde_json::from_slice(&bytes).unwrap()
}

fn failed(code: &str, attempts: u32, next_try_ms: Option<u64>) -> EventKind {
    let driver = DriverName::new("nfs.csi.k8s.io").unwrap();
    let pod = PodIdentity { uid: PodUid::new("u1").unwrap(), namespace: "db".into(), name: "web".into() };
    let spec = SpecName::new("pv-7").unwrap();
    EventKind::StepFailed {
        claim: None,
        key: VolumeKey::csi(&driver, "vol-7"),
        step: "publish",
        publication: Some(PublicationId { pod: pod.uid.clone(), plugin: Plugin::Csi, spec }),
        pod: Some(pod),
        driver: Some(driver),
        cause: BlockedCause::new(code, "server down"),
        attempts,
        next_try_ms,
    }
}

#[test]
fn a_failed_call_has_the_fields_that_operators_search_for() {
    let line = told(failed("UNAVAILABLE", 3, Some(4000)));
    assert_eq!(line["level"], "WARN");
    let fields = &line["fields"];
    for (field, value) in [
        ("message_id", id::STEP_FAILED),
        ("volume_pv", "pv-7"),
        ("volume_handle", "vol-7"),
        ("csi_driver", "nfs.csi.k8s.io"),
        ("csi_rpc", "NodePublishVolume"),
        ("grpc_code", "UNAVAILABLE"),
        ("pod", "db/web"),
    ] {
        assert_eq!(fields[field], value, "{field} of {line}");
    }
    assert_eq!(fields["attempt"], 3);
    let message = "cannot publish kubernetes.io/csi/nfs.csi.k8s.io^vol-7 for pod/db/web: \
                   UNAVAILABLE: server down; tried again in 4000 ms";
    assert_eq!(fields["message"], message);
}

#[test]
fn a_human_is_called_only_when_nothing_else_helps() {
    let level = |kind| told(kind)["level"].as_str().unwrap().to_owned();
    assert_eq!(level(failed("mount-covered", 1, None)), "ERROR");
    assert_eq!(level(failed("driver-not-registered", 0, None)), "WARN");
    assert_eq!(level(EventKind::Reconstructed { records: 0, rebooted: false }), "INFO");
    assert_eq!(level(EventKind::BrakeApplied { held: 12, reason: "x".into() }), "ERROR");
}

#[test]
fn a_word_of_ours_is_no_grpc_code() {
    assert_eq!(grpc_code("DEADLINE_EXCEEDED"), Some("DEADLINE_EXCEEDED"));
    assert_eq!(grpc_code("driver-not-registered"), None);
}
