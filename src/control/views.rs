//! Status -> the messages of the control API. Pure: the one place that decides what an operator is told.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::names::{Kind, ObjectName};
pub use super::row::Row;
use super::row::is_pause;
use super::{chain, foreign, paused, usage};
use crate::model::{
    Blocked, Connection, DriverOrigin, HealthMap, Millis, PodStatus, PodVolumeStatus, Presence, Problem,
    Status, VolumeHealth, VolumeStatus,
};
use crate::proto::control as api;

/// What a view is made for.
#[derive(Debug, Clone, Copy)]
pub struct Scene<'a> {
    /// This node's name.
    pub node: &'a str,
    /// Now, ms since the epoch.
    pub now: Millis,
    /// How full and how well volumes are.
    pub health: &'a HealthMap,
}

/// Returns everything.
pub fn status(status: &Status, scene: Scene<'_>) -> api::GetStatusResponse {
    let volumes: Vec<_> = rows(status).map(|row| volume(status, row, scene)).collect();
    api::GetStatusResponse {
        problems: status.problems.iter().map(problem).collect(),
        incomplete: status.reading.incomplete.iter().map(problem).collect(),
        foreign: foreign::all(status),
        brake: status.brake.as_ref().map(|brake| api::Brake {
            held: count(brake.held),
            reason: brake.reason.clone(),
            since_ms: brake.since,
        }),
        directories: (status.reading.directories.iter())
            .map(|(path, state)| api::ManifestDirectory {
                path: path.display().to_string(),
                listed: state.identity.is_some(),
                files: count(state.files),
            })
            .collect(),
        ..head(status, scene, volumes)
    }
}

/// Returns the volumes of the objects named, and the names that nothing has.
pub fn status_of(status: &Status, scene: Scene<'_>, objects: &[ObjectName]) -> api::GetStatusResponse {
    let mut volumes = Vec::new();
    let mut unknown = Vec::new();
    for object in objects {
        if is_known(status, object) {
            volumes.extend(rows_of(status, object).map(|row| volume(status, row, scene)));
        } else {
            unknown.push(object.to_string());
        }
    }
    api::GetStatusResponse { unknown, ..head(status, scene, volumes) }
}

fn head(status: &Status, scene: Scene<'_>, volumes: Vec<api::Volume>) -> api::GetStatusResponse {
    api::GetStatusResponse {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        node: scene.node.to_owned(),
        now_ms: scene.now,
        ready: is_ready(status),
        complete: status.reading.is_complete(),
        generation: status.reading.generation,
        counts: Some(counts(&volumes)),
        volumes,
        paused: paused::words(status),
        ..api::GetStatusResponse::default()
    }
}

/// Returns whether the state was reconstructed and every directory tried once: before that nothing can be said of a name.
pub fn is_ready(status: &Status) -> bool {
    status.pass >= 1 && status.reading.generation >= 1
}

/// Returns whether a pod or claim of this name is in the manifests, or still has a volume.
pub fn is_known(status: &Status, object: &ObjectName) -> bool {
    match object.kind {
        Kind::Pod => status.pods.values().any(|pod| is_pod(pod, object)),
        Kind::Claim => rows_of(status, object).next().is_some(),
    }
}

/// Returns the volumes that a pod uses, or the uses of a claim by all pods.
pub fn rows_of<'a>(status: &'a Status, object: &'a ObjectName) -> impl Iterator<Item = Row<'a>> {
    rows_among(status, status.pods.values().map(Arc::as_ref), object)
}

/// As `rows_of`, where it is known that only some pods come into question.
pub fn rows_among<'a>(
    status: &'a Status,
    pods: impl Iterator<Item = &'a PodStatus>,
    object: &'a ObjectName,
) -> impl Iterator<Item = Row<'a>> {
    pods.flat_map(move |pod| {
        let of_pod = object.kind == Kind::Pod && is_pod(pod, object);
        (pod.volumes.iter())
            .filter(move |(_, volume)| of_pod || (object.kind == Kind::Claim && uses(volume, object)))
            .map(move |(name, volume)| row(status, pod, name, volume))
    })
}

fn is_pod(pod: &PodStatus, object: &ObjectName) -> bool {
    pod.identity.name == object.name && pod.identity.namespace == object.namespace
}

fn uses(volume: &PodVolumeStatus, object: &ObjectName) -> bool {
    volume.claim.as_ref().is_some_and(|c| c.name == object.name && c.namespace == object.namespace)
}

/// Joins what Status says of a pod's volume.
pub fn row<'a>(status: &'a Status, pod: &'a PodStatus, name: &'a str, of: &'a PodVolumeStatus) -> Row<'a> {
    let key_and_id = of.resolved.as_ref();
    let volume = key_and_id.and_then(|(key, _)| status.volumes.get_key_value(key));
    let publication =
        volume.zip(key_and_id).and_then(|((_, volume), (_, id))| volume.publications.get_key_value(id));
    let publication = publication.map(|(id, publication)| (id, &**publication));
    Row { pod: Some((pod, name, of)), volume, publication }
}

/// Returns a row for each volume of each pod, then one for each publication and each staging that no pod accounts for.
pub fn rows(status: &Status) -> impl Iterator<Item = Row<'_>> {
    let mut accounted = BTreeSet::new();
    for volume in status.pods.values().flat_map(|pod| pod.volumes.values()) {
        accounted.extend(volume.resolved.iter().map(|(key, id)| (key, id)));
    }
    let keys: BTreeSet<_> = accounted.iter().map(|(key, _)| *key).collect();
    let leftover = status.volumes.iter().flat_map(move |(key, volume)| {
        let publications: Vec<_> = (volume.publications.iter())
            .filter(|(id, _)| !accounted.contains(&(key, *id)))
            .map(|(id, publication)| (id, &**publication))
            .map(|publication| Row { pod: None, volume: Some((key, volume)), publication: Some(publication) })
            .collect();
        let alone = publications.is_empty() && !keys.contains(key);
        let itself = alone.then_some(Row { pod: None, volume: Some((key, volume)), publication: None });
        publications.into_iter().chain(itself)
    });
    let of_pods = status
        .pods
        .values()
        .flat_map(move |pod| pod.volumes.iter().map(move |(name, volume)| row(status, pod, name, volume)));
    of_pods.chain(leftover)
}

/// Returns everything about one volume.
pub fn volume(status: &Status, row: Row<'_>, scene: Scene<'_>) -> api::Volume {
    let known = row.health(scene.health);
    let (mut reason, mut remedy) = row.reason();
    let paused_by = paused::of_row(status, row).map(paused::word).unwrap_or_default();
    if row.hold().is_none() && row.blocked().next().is_some_and(is_pause) {
        remedy = paused::resume(&paused_by);
    }
    if let Some(ill) = known.and_then(VolumeHealth::ill).filter(|_| reason.is_empty()) {
        (reason, remedy) =
            (format!("not well: {}", usage::worded(ill, scene.now)), usage::mend(ill).to_owned());
    }
    let mut view = api::Volume {
        desired: row.desired().to_owned(),
        actual: row.actual().to_owned(),
        state: row.state().to_owned(),
        reason,
        remedy,
        running: row.running().map(|running| api::Running {
            step: running.step.to_owned(),
            since_ms: running.since,
            detail: running.detail.clone().unwrap_or_default(),
        }),
        blocked: row.blocked().map(|blocked| view_of_blocked(row, blocked)).collect(),
        paused_by,
        chain: chain::links(status, row, known, scene.now),
        usage: known.map(usage::message),
        ills: known.iter().flat_map(|known| &known.ills).map(usage::ill).collect(),
        ..api::Volume::default()
    };
    if let Some((pod, name, volume)) = row.pod {
        identify(&mut view, &pod.identity);
        view.name = name.to_owned();
        view.leaving = pod.leaving;
        view.manifest = pod.source.as_ref().map(ToString::to_string).unwrap_or_default();
        view.capacity_bytes = volume.capacity;
        view.access_mode = volume.access_mode.clone().unwrap_or_default();
        if let Some(claim) = &volume.claim {
            view.claim = format!("{}/{}", claim.namespace, claim.name);
            view.object = format!("pvc/{}", view.claim);
        }
        if let Some((key, id)) = &volume.resolved {
            view.key = key.to_string();
            view.plugin = id.plugin.name().to_owned();
            view.spec_name = id.spec.to_string();
        }
    }
    if let Some((key, volume)) = row.volume {
        view.key = key.to_string();
        view.plugin = volume.plugin.to_owned();
        view.since_ms = volume.since;
        if let Some((driver, handle)) = &volume.csi {
            (view.driver, view.handle) = (driver.to_string(), handle.clone());
        }
        if let Some((server, path)) = &volume.nfs {
            // As mount.nfs takes it.
            let server = if server.contains(':') { format!("[{server}]") } else { server.clone() };
            view.handle = format!("{server}:{path}");
        }
        if let Some((path, presence)) = &volume.staging {
            view.staging_path = path.display().to_string();
            view.staging = presence_word(*presence).to_owned();
        }
        view.staging_not_a_mount_point = volume.staging_not_a_mount_point;
        view.pending_change = volume.pending_change.clone().unwrap_or_default();
        view.events = volume.events.iter().map(chain::past).collect();
    }
    if let Some((id, publication)) = row.publication {
        identify(&mut view, &publication.pod);
        view.spec_name = id.spec.to_string();
        if view.name.is_empty() {
            view.name = publication.names.join(",");
        }
        view.path = publication.path.display().to_string();
        view.not_a_mount_point = publication.not_a_mount_point;
    }
    view
}

fn identify(view: &mut api::Volume, pod: &crate::model::PodIdentity) {
    view.namespace.clone_from(&pod.namespace);
    view.pod.clone_from(&pod.name);
    view.pod_uid = pod.uid.to_string();
    if view.object.is_empty() {
        view.object = pod.to_string();
    }
}

fn presence_word(presence: Presence) -> &'static str {
    match presence {
        Presence::No => "no",
        Presence::Yes => "yes",
        Presence::Uncertain => "uncertain",
    }
}

fn view_of_blocked(row: Row<'_>, blocked: &Blocked) -> api::BlockedStep {
    api::BlockedStep {
        step: blocked.step.clone(),
        code: blocked.cause.code.clone(),
        detail: blocked.cause.detail.clone(),
        since_ms: blocked.since,
        attempts: blocked.attempts,
        next_try_ms: blocked.next_try,
        remedy: row.named(&blocked.remedy),
    }
}

fn problem(problem: &Problem) -> api::ManifestProblem {
    let (line, column) = problem.position.unwrap_or_default();
    api::ManifestProblem {
        path: problem.path.display().to_string(),
        line,
        column,
        object: problem.object.as_ref().map(ToString::to_string).unwrap_or_default(),
        field: problem.field.clone().unwrap_or_default(),
        detail: problem.detail.clone(),
        remedy: problem.remedy.clone(),
        warning: problem.warning,
    }
}

/// Counts volumes by their state.
fn counts(volumes: &[api::Volume]) -> api::Counts {
    let of = |state: &str| count(volumes.iter().filter(|v| v.state == state).count());
    let published = count(volumes.iter().filter(|v| v.state == "good" && v.actual == "published").count());
    api::Counts { published, working: of("working"), waiting: of("waiting"), failed: of("failed") }
}

/// Returns the drivers.
pub fn drivers(status: &Status, now: Millis) -> api::ListDriversResponse {
    let drivers = status.drivers.iter().map(|(name, driver)| {
        let of = || status.volumes.values().filter(|v| v.csi.as_ref().is_some_and(|(d, _)| d == name));
        let (state, reason) = match &driver.connection {
            Connection::Ready => ("ready", String::new()),
            Connection::Starting { reason } => ("starting", reason.clone()),
            Connection::Disconnected { reason } => ("disconnected", reason.clone()),
        };
        let (origin, socket) = match &driver.origin {
            DriverOrigin::Configured => ("configured", String::new()),
            DriverOrigin::Registered { socket } => ("registered", socket.display().to_string()),
        };
        api::Driver {
            name: name.to_string(),
            state: state.to_owned(),
            reason,
            since_ms: driver.since,
            endpoint: driver.endpoint.display().to_string(),
            origin: origin.to_owned(),
            registration_socket: socket,
            version: driver.info.version.clone(),
            node_id: driver.info.node_id.clone(),
            max_volumes: driver.info.max_volumes,
            volumes: count(of().filter(|v| is_here(v)).count()),
            in_flight: count(of().filter(|v| v.in_progress.is_some()).count()),
            capabilities: driver.info.capabilities.clone(),
            unwell: driver.unwell.clone().unwrap_or_default(),
            standby: driver.standby.iter().map(|path| path.display().to_string()).collect(),
        }
    });
    api::ListDriversResponse { now_ms: now, drivers: drivers.collect() }
}

fn is_here(volume: &VolumeStatus) -> bool {
    let staged = volume.staging.as_ref().is_some_and(|(_, presence)| *presence != Presence::No);
    staged || volume.publications.values().any(|p| p.presence != Presence::No)
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "views_tests.rs"]
mod tests;
