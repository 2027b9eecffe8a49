//! An event as one line: info when something changed, warn when it is tried again, error when a human is needed.

use tracing::{error, info, warn};

use crate::model::{
    BlockedCause, DriverName, Event, EventKind, HoldCode, ObjectRef, PodIdentity, Problem, PublicationId,
    VolumeKey,
};

/// Stable ids, one per kind of event, for `journalctl MESSAGE_ID=` and a message catalog. Never reused or changed.
mod id {
    pub(super) const STEP_DONE: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c01";
    pub(super) const STEP_FAILED: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c02";
    pub(super) const HELD: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c03";
    pub(super) const VANISHED: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c04";
    pub(super) const DRIVER_READY: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c05";
    pub(super) const DRIVER_GONE: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c06";
    pub(super) const REGISTRATION_REFUSED: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c07";
    pub(super) const MANIFEST_PROBLEM: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c08";
    pub(super) const MANIFEST_PROBLEM_GONE: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c09";
    pub(super) const BRAKE_APPLIED: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c0a";
    pub(super) const FOREIGN_FOUND: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c0b";
    pub(super) const RECONSTRUCTED: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c0c";
    pub(super) const DIED: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c11";
    pub(super) const ADOPTED: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c12";
    pub(super) const NOTED: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c13";
    pub(super) const DRIVER_UNWELL: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c20";
    pub(super) const DRIVER_WELL: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c21";
    pub(super) const VOLUME_UNWELL: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c22";
    pub(super) const VOLUME_WELL: &str = "0f6c6ee0b1f04d0b9b5bb64e1f0a7c23";
}

/// Writes an event to the journal.
pub fn tell(event: &Event) {
    match &event.kind {
        EventKind::StepDone { key, step, publication, pod, claim, driver, took_ms, not_a_mount_point } => {
            let about = About::new(key, publication.as_ref(), pod.as_ref(), claim.as_ref(), driver.as_ref());
            info!(
                message_id = id::STEP_DONE,
                step = *step,
                volume = %key,
                volume_claim = about.claim.as_deref(),
                volume_pv = about.pv,
                volume_handle = about.handle,
                pod = about.pod.as_deref(),
                pod_uid = about.uid,
                csi_driver = about.driver,
                csi_rpc = about.rpc(step),
                took_ms = *took_ms,
                not_a_mount_point = not_a_mount_point.then_some(true),
                "{} {}{}",
                done(step),
                key,
                about.for_pod(),
            );
        }
        EventKind::StepFailed {
            key,
            step,
            publication,
            pod,
            claim,
            driver,
            cause,
            attempts,
            next_try_ms,
        } => {
            let about = About::new(key, publication.as_ref(), pod.as_ref(), claim.as_ref(), driver.as_ref());
            step_failed(&about, key, step, cause, *attempts, *next_try_ms);
        }
        EventKind::Held { pod, volume, hold } => {
            let (code, pod_uid) = (hold.code.as_str(), pod.uid.as_str());
            match hold.code {
                HoldCode::NotSupported | HoldCode::ObjectInvalid => error!(
                    message_id = id::HELD, %pod, pod_uid, volume_name = %volume, code, remedy = %hold.remedy,
                    "{volume} of {pod} is held: {}", hold.detail
                ),
                HoldCode::ObjectMissing
                | HoldCode::ClaimUnbound
                | HoldCode::ManifestMissing
                | HoldCode::ReadingIncomplete
                | HoldCode::Brake
                | HoldCode::EmptyDirKept
                | HoldCode::Adopted
                | HoldCode::PendingEdit => info!(
                    message_id = id::HELD, %pod, pod_uid, volume_name = %volume, code, remedy = %hold.remedy,
                    "{volume} of {pod} is held: {}", hold.detail
                ),
            }
        }
        EventKind::Noted { key, note } => info!(message_id = id::NOTED, volume = %key, "{key}: {note}"),
        EventKind::Vanished { key, path } => warn!(
            message_id = id::VANISHED, volume = %key, path = %path.display(),
            "the mount of {key} at {} vanished; it is made again", path.display()
        ),
        EventKind::Died { key, path, reason } => warn!(
            message_id = id::DIED, volume = %key, path = %path.display(),
            "the file system of {key} at {} does not answer any more ({reason}); it is mounted anew when its driver or its disk is there",
            path.display()
        ),
        EventKind::Adopted { key, path } => info!(
            message_id = id::ADOPTED, volume = %key, path = %path.display(),
            "{} is volumed's now: {key}", path.display()
        ),
        EventKind::DriverReady { driver, endpoint } => info!(
            message_id = id::DRIVER_READY, csi_driver = %driver, endpoint = %endpoint.display(),
            "driver {driver} is ready at {}", endpoint.display()
        ),
        EventKind::DriverGone { driver, reason } => warn!(
            message_id = id::DRIVER_GONE, csi_driver = %driver,
            "driver {driver} does not answer, its volumes stay: {reason}"
        ),
        EventKind::DriverUnwell { driver, reason } => warn!(
            message_id = id::DRIVER_UNWELL, csi_driver = %driver, "driver {driver} is not well: {reason}"
        ),
        EventKind::DriverWell { driver } => info!(
            message_id = id::DRIVER_WELL, csi_driver = %driver, "driver {driver} is well again"
        ),
        EventKind::VolumeUnwell { key, driver, reason } => error!(
            message_id = id::VOLUME_UNWELL, volume = %key, csi_driver = driver.as_ref().map(display),
            "the volume {key} is not well: {reason}"
        ),
        EventKind::VolumeWell { key, driver } => info!(
            message_id = id::VOLUME_WELL, volume = %key, csi_driver = driver.as_ref().map(display), "the volume {key} is well again"
        ),
        EventKind::RegistrationRefused { socket, reason } => error!(
            message_id = id::REGISTRATION_REFUSED, endpoint = %socket.display(),
            "the registration at {} is refused: {reason}", socket.display()
        ),
        EventKind::ManifestProblem(problem) => manifest_problem(problem),
        EventKind::ManifestProblemGone(problem) => info!(
            message_id = id::MANIFEST_PROBLEM_GONE, file = %problem.path.display(), "solved: {problem}"
        ),
        EventKind::BrakeApplied { held, reason } => error!(
            message_id = id::BRAKE_APPLIED,
            held = *held,
            "{held} volumes are held by the mass-delete brake: {reason}; if that is meant: volumectl approve"
        ),
        EventKind::ForeignFound { path } => info!(
            message_id = id::FOREIGN_FOUND, path = %path.display(),
            "{} is not volumed's: it is left untouched", path.display()
        ),
        EventKind::Reconstructed { records, rebooted } => info!(
            message_id = id::RECONSTRUCTED,
            records = *records,
            rebooted = *rebooted,
            "the state of {records} volumes was read{}",
            if *rebooted { "; the host was booted since" } else { "" }
        ),
    }
}

fn step_failed(
    about: &About<'_>,
    key: &VolumeKey,
    step: &str,
    cause: &BlockedCause,
    attempts: u32,
    next_try_ms: Option<u64>,
) {
    // The level is part of a callsite, so the line is written twice.
    macro_rules! line {
        ($level:ident, $then:expr) => {
            $level!(
                message_id = id::STEP_FAILED,
                step,
                volume = %key,
                volume_claim = about.claim.as_deref(),
                volume_pv = about.pv,
                volume_handle = about.handle,
                pod = about.pod.as_deref(),
                pod_uid = about.uid,
                csi_driver = about.driver,
                csi_rpc = about.rpc(step),
                grpc_code = grpc_code(&cause.code),
                code = cause.code,
                attempt = attempts,
                next_try_ms,
                "cannot {step} {key}{}: {}: {}; {}",
                about.for_pod(),
                cause.code,
                cause.detail,
                $then
            )
        };
    }
    match next_try_ms {
        Some(ms) => line!(warn, format_args!("tried again in {ms} ms")),
        // Nothing was tried: it waits for its turn, such as a driver to come.
        None if attempts == 0 => line!(warn, "tried again when that changes"),
        None => line!(error, "not tried again before something changes"),
    }
}

fn manifest_problem(problem: &Problem) {
    let object = problem.object.as_ref().map(ToString::to_string);
    let (line, column) = problem.position.unzip();
    let file = problem.path.display();
    let field = problem.field.as_deref();
    if problem.warning {
        warn!(message_id = id::MANIFEST_PROBLEM, %file, line, column, object, field, "{problem}");
    } else {
        error!(message_id = id::MANIFEST_PROBLEM, %file, line, column, object, field, "{problem}");
    }
}

/// What a line about a step is about, as far as the event says.
struct About<'a> {
    claim: Option<String>,
    pv: Option<&'a str>,
    handle: Option<&'a str>,
    pod: Option<String>,
    uid: Option<&'a str>,
    driver: Option<&'a str>,
}

impl<'a> About<'a> {
    fn new(
        key: &'a VolumeKey,
        publication: Option<&'a PublicationId>,
        pod: Option<&'a PodIdentity>,
        claim: Option<&'a ObjectRef>,
        driver: Option<&'a DriverName>,
    ) -> Self {
        Self {
            claim: claim.map(|claim| format!("{}/{}", claim.namespace, claim.name)),
            // A CSI publication's directory is named after the PV (kubelet.md 1.6); an inline volume's after itself.
            pv: publication.filter(|_| driver.is_some()).map(|id| id.spec.as_str()),
            handle: driver.and_then(|_| key.as_str().split_once('^')).map(|(_, handle)| handle),
            pod: pod.map(|pod| format!("{}/{}", pod.namespace, pod.name)),
            uid: pod.map(|pod| pod.uid.as_str()),
            driver: driver.map(DriverName::as_str),
        }
    }

    fn rpc(&self, step: &str) -> Option<&'static str> {
        self.driver?;
        match step {
            "stage" => Some("NodeStageVolume"),
            "publish" => Some("NodePublishVolume"),
            "unpublish" => Some("NodeUnpublishVolume"),
            "unstage" => Some("NodeUnstageVolume"),
            _ => None,
        }
    }

    fn for_pod(&self) -> String {
        self.pod.as_ref().map(|pod| format!(" for pod/{pod}")).unwrap_or_default()
    }
}

fn done(step: &str) -> &str {
    match step {
        "stage" => "staged",
        "publish" => "published",
        "unpublish" => "unpublished",
        "unstage" => "unstaged",
        other => other,
    }
}

/// Codes of gRPC are in capitals, our own words are not.
fn grpc_code(code: &str) -> Option<&str> {
    code.chars().all(|c| c.is_ascii_uppercase() || c == '_').then_some(code)
}

#[cfg(test)]
#[path = "tell_tests.rs"]
mod tests;
