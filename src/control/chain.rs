//! The causal chain of one volume: every link from the manifest to the mount, or from the mount to nothing, the first one that
//! fails marked, and what happened lately. Built from Status alone.

use super::row::{Row, is_pause};
use super::{paused, usage};
use crate::model::{
    Blocked, Connection, Event, EventKind, HoldCode, LinkState, Millis, Presence, PublicationStatus, Status,
    VolumeHealth, VolumeStatus,
};
use crate::proto::control::{ChainLink, PastEvent};

/// Returns the chain: up for what is wanted or held, down for what is to go.
pub(super) fn links(
    status: &Status,
    row: Row<'_>,
    known: Option<&VolumeHealth>,
    now: Millis,
) -> Vec<ChainLink> {
    let mut links = if row.desired() == "released" { down(row) } else { up(status, row) };
    // While the way up holds: before that, how well it is is not the question.
    if row.desired() != "released" && links.iter().all(|link| link.state == "good") {
        links.extend(known.map(|known| usage::link(known, now)));
    }
    if let Some(scope) = paused::of_row(status, row) {
        let word = paused::word(scope);
        let place = links.iter().position(|link| link.state != "good").unwrap_or(links.len());
        let remedy = paused::resume(&word);
        links.insert(
            place,
            ChainLink { remedy, ..link("paused", "waiting", format!("by the operator: {word}")) },
        );
    }
    // What comes after a link that does not hold has not had its turn.
    let mut waits_on: Option<String> = None;
    for link in &mut links {
        match &waits_on {
            None if link.state != "good" => waits_on = Some(link.step.clone()),
            None => {}
            Some(_) if link.state != "waiting" || !link.detail.is_empty() => {}
            Some(step) => link.detail = format!("waiting on {step}"),
        }
    }
    links
}

fn up(status: &Status, row: Row<'_>) -> Vec<ChainLink> {
    let mut links = Vec::new();
    let of_pod = row.pod.map(|(_, _, volume)| volume.links.as_slice()).unwrap_or_default();
    links.extend(of_pod.iter().map(|known| link(&known.step, state_word(known.state), known.detail.clone())));

    if let Some(hold) = row.hold() {
        let told = links.iter().any(|link| link.state == "failed");
        if told {
            for link in links.iter_mut().filter(|link| link.state == "failed") {
                link.remedy = row.named(&hold.remedy);
            }
        } else {
            let remedy = row.named(&hold.remedy);
            links.push(ChainLink { remedy, ..link(held_at(hold.code), "failed", hold.detail.clone()) });
        }
    }
    // Reconcile lists a hold as a step that is blocked, too.
    let unresolved = row.blocked().find(|blocked| blocked.step == "resolve");
    links.extend(unresolved.filter(|_| row.hold().is_none()).map(|blocked| failed(row, "resolve", blocked)));
    links.extend(driver(status, row));
    if let Some(blocked) = row.blocked().find(|blocked| blocked.step == "attach") {
        links.push(failed(row, "attach", blocked));
    }
    // What is in doubt is undone before it is done anew.
    for undo in ["unpublish", "unstage"] {
        if is_told_of(row, undo) {
            links.push(step(row, undo, false, String::new()));
        }
    }
    let staging = row.volume.and_then(|(_, volume)| volume.staging.as_ref());
    if let Some((path, presence)) = staging {
        let note = row.volume.is_some_and(|(_, volume)| volume.staging_not_a_mount_point);
        links.push(step(row, "stage", *presence == Presence::Yes, at(path, note)));
    } else if is_told_of(row, "stage") {
        links.push(step(row, "stage", false, String::new()));
    }
    let publication = row.publication.map(|(_, publication)| publication);
    let place = publication.map(|p| at(&p.path, p.not_a_mount_point)).unwrap_or_default();
    links.push(step(row, "publish", row.is_published(), place));
    links.extend(later(row));
    links
}

/// The links of what is done to a volume that is up, when there is something to tell.
fn later(row: Row<'_>) -> Vec<ChainLink> {
    let mut links = Vec::new();
    let grown = row.volume.and_then(|(_, volume)| {
        let done = |event: &&Event| matches!(event.kind, EventKind::StepDone { step: "expand", .. });
        volume.events.iter().rfind(done)
    });
    if is_told_of(row, "expand") {
        links.push(step(row, "expand", false, String::new()));
    } else if let Some(event) = grown {
        links.push(ChainLink { since_ms: event.at, ..link("expand", "good", "grown while in use".into()) });
    }
    if is_told_of(row, "republish") {
        links.push(step(row, "republish", false, String::new()));
    }
    links
}

/// The link of a hold that no link of the manifests tells.
fn held_at(code: HoldCode) -> &'static str {
    match code {
        HoldCode::ClaimUnbound => "claim",
        HoldCode::ObjectMissing
        | HoldCode::ObjectInvalid
        | HoldCode::NotSupported
        | HoldCode::ManifestMissing
        | HoldCode::ReadingIncomplete
        | HoldCode::Brake
        | HoldCode::EmptyDirKept
        | HoldCode::Adopted
        | HoldCode::PendingEdit => "held",
    }
}

fn down(row: Row<'_>) -> Vec<ChainLink> {
    let mut links = Vec::new();
    match row.pod {
        Some((pod, ..)) if pod.source.is_some() => {
            links.push(link(
                "manifest",
                "good",
                "the pod is being deleted, or does not use it any more".into(),
            ));
        }
        Some(_) | None => links.push(link("manifest", "good", "in no manifest any more".into())),
    }
    if let Some(PublicationStatus { path, presence, .. }) = row.publication.map(|(_, p)| p) {
        links.push(step(row, "unpublish", *presence == Presence::No, path.display().to_string()));
    }
    if let Some((_, VolumeStatus { staging: Some((path, presence)), .. })) = row.volume {
        links.push(step(row, "unstage", *presence == Presence::No, path.display().to_string()));
    }
    links
}

/// The link of a CSI volume's driver.
fn driver(status: &Status, row: Row<'_>) -> Option<ChainLink> {
    let (name, _) = row.volume?.1.csi.as_ref()?;
    let Some(driver) = status.drivers.get(name) else {
        let remedy = format!("start the driver, or name its socket in [drivers.\"{name}\"] of volumed.toml");
        let missing = link("driver", "failed", format!("{name} is not registered"));
        return Some(ChainLink { remedy, ..missing });
    };
    let here = link("driver", "good", format!("{name} at {}", driver.endpoint.display()));
    Some(match &driver.connection {
        Connection::Ready => match &driver.unwell {
            None => ChainLink { since_ms: driver.since, ..here },
            Some(reason) => ChainLink {
                detail: format!("{}, not well: {reason}", here.detail),
                since_ms: driver.since,
                ..here
            },
        },
        Connection::Starting { reason } => ChainLink {
            state: "waiting".to_owned(),
            detail: format!("{name} is starting up: {reason}"),
            remedy: "wait; look at the driver's log if it takes long".to_owned(),
            since_ms: driver.since,
            ..here
        },
        Connection::Disconnected { reason } => ChainLink {
            state: "failed".to_owned(),
            detail: format!("{name} does not answer: {reason}"),
            remedy: "start the driver again; its volumes stay".to_owned(),
            since_ms: driver.since,
            ..here
        },
    })
}

/// Whether a step is blocked or under way.
fn is_told_of(row: Row<'_>, name: &str) -> bool {
    row.blocked().any(|blocked| blocked.step == name) || row.running().is_some_and(|r| r.step == name)
}

fn step(row: Row<'_>, name: &str, done: bool, place: String) -> ChainLink {
    if let Some(blocked) = row.blocked().find(|blocked| blocked.step == name) {
        if is_pause(blocked) {
            return link(name, "waiting", String::new());
        }
        return failed(row, name, blocked);
    }
    if let Some(running) = row.running().filter(|running| running.step == name) {
        let far = running.detail.iter().map(|detail| format!(": {detail}"));
        let under_way = std::iter::once("under way".to_owned()).chain(far).collect();
        let Some(last) = row.tried_again() else {
            return ChainLink { since_ms: running.since, ..link(name, "waiting", under_way) };
        };
        let detail = format!("{under_way}, after {}: {}", last.cause.code, last.cause.detail);
        return ChainLink {
            since_ms: running.since,
            attempts: last.attempts.saturating_add(1),
            remedy: row.named(&last.remedy),
            ..link(name, "waiting", detail)
        };
    }
    if done { link(name, "good", place) } else { link(name, "waiting", String::new()) }
}

fn failed(row: Row<'_>, name: &str, blocked: &Blocked) -> ChainLink {
    ChainLink {
        since_ms: blocked.since,
        attempts: blocked.attempts,
        next_try_ms: blocked.next_try,
        remedy: row.named(&blocked.remedy),
        ..link(name, "failed", format!("{}: {}", blocked.cause.code, blocked.cause.detail))
    }
}

fn at(path: &std::path::Path, not_a_mount_point: bool) -> String {
    let note = if not_a_mount_point { " (not a mount point)" } else { "" };
    format!("{}{note}", path.display())
}

fn state_word(state: LinkState) -> &'static str {
    match state {
        LinkState::Good => "good",
        LinkState::Failed => "failed",
        LinkState::Waiting => "waiting",
    }
}

fn link(step: &str, state: &str, detail: String) -> ChainLink {
    ChainLink { step: step.to_owned(), state: state.to_owned(), detail, ..ChainLink::default() }
}

/// Returns an event as a line of a volume's history.
pub(super) fn past(event: &Event) -> PastEvent {
    let text = match &event.kind {
        EventKind::StepDone { step, pod, took_ms, not_a_mount_point, .. } => {
            let note = if *not_a_mount_point { ", not a mount point" } else { "" };
            format!("{step}{} done in {took_ms} ms{note}", for_pod(pod.as_ref()))
        }
        EventKind::StepFailed { step, pod, cause, attempts, .. } => {
            let code = &cause.code;
            format!("{step}{} failed (try {attempts}): {code}: {}", for_pod(pod.as_ref()), cause.detail)
        }
        EventKind::Held { pod, volume, hold } => format!("{volume} of {pod} held: {}", hold.detail),
        EventKind::Noted { note, .. } => note.clone(),
        EventKind::Vanished { path, .. } => {
            format!("the mount at {} vanished and is made again", path.display())
        }
        EventKind::Died { path, reason, .. } => {
            format!("the file system at {} does not answer any more: {reason}", path.display())
        }
        EventKind::Adopted { path, .. } => format!("{} adopted", path.display()),
        EventKind::DriverReady { driver, endpoint } => {
            format!("driver {driver} ready at {}", endpoint.display())
        }
        EventKind::DriverGone { driver, reason } => format!("driver {driver} gone: {reason}"),
        EventKind::DriverUnwell { driver, reason } => format!("driver {driver} not well: {reason}"),
        EventKind::DriverWell { driver } => format!("driver {driver} well again"),
        EventKind::VolumeUnwell { reason, .. } => format!("not well: {reason}"),
        EventKind::VolumeWell { .. } => "well again".to_owned(),
        EventKind::RegistrationRefused { socket, reason } => {
            format!("registration {} refused: {reason}", socket.display())
        }
        EventKind::ManifestProblem(problem) => problem.to_string(),
        EventKind::ManifestProblemGone(problem) => format!("solved: {problem}"),
        EventKind::BrakeApplied { held, reason } => format!("{held} held: {reason}"),
        EventKind::ForeignFound { path } => format!("foreign volume at {}", path.display()),
        EventKind::Reconstructed { records, .. } => format!("state reconstructed from {records} records"),
    };
    PastEvent { at_ms: event.at, text }
}

fn for_pod(pod: Option<&crate::model::PodIdentity>) -> String {
    pod.map(|pod| format!(" for {pod}")).unwrap_or_default()
}

#[cfg(test)]
#[path = "chain_tests.rs"]
mod tests;
