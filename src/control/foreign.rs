//! Foreign volumes: what lies on disk that volumed did not make, for programs and for people.

use super::render::{Style, dash, table};
use crate::model::{Foreign, Plugin, RecordedVolume, Status, VolumeMode};
use crate::proto::control as api;

/// Returns them as messages.
pub(super) fn all(status: &Status) -> Vec<api::ForeignVolume> {
    status.foreign.iter().map(|foreign| view(status, foreign)).collect()
}

fn view(status: &Status, foreign: &Foreign) -> api::ForeignVolume {
    let csi = foreign.volume.as_ref().and_then(|volume| match volume {
        RecordedVolume::Csi { driver, handle, .. } => Some((driver.to_string(), handle.clone())),
        RecordedVolume::EmptyDir
        | RecordedVolume::Local { .. }
        | RecordedVolume::Device { .. }
        | RecordedVolume::Nfs { .. } => None,
    });
    let (driver, mut handle) = csi.unwrap_or_default();
    let place = foreign
        .publication
        .as_ref()
        .map(|(pod, plugin, spec)| (pod.to_string(), plugin.clone(), spec.to_string()));
    let (pod_uid, plugin, name) = place.unwrap_or_default();
    if plugin == Plugin::Nfs.directory() {
        // Server and path; nothing else on disk says whose it is.
        handle = foreign.mount.as_ref().map(|mount| mount.source.clone()).unwrap_or_default();
    }
    let volume_mode = match foreign.volume_mode {
        VolumeMode::Filesystem => "Filesystem",
        VolumeMode::Block => "Block",
    };
    api::ForeignVolume {
        path: foreign.path.display().to_string(),
        key: foreign.key.as_ref().map(ToString::to_string).unwrap_or_default(),
        pod_uid,
        mounted: foreign.mounted,
        driver,
        handle,
        plugin,
        name,
        target: foreign.target.display().to_string(),
        volume_mode: volume_mode.to_owned(),
        leaked: is_leaked(status, foreign),
    }
}

/// Whether it is mounted, and nothing is known that it would be mounted for.
fn is_leaked(status: &Status, foreign: &Foreign) -> bool {
    let Some(key) = foreign.key.as_ref().filter(|_| foreign.publication.is_none()) else { return false };
    let others = status.foreign.iter();
    foreign.mounted
        && !status.volumes.contains_key(key)
        && !others.into_iter().any(|other| other.publication.is_some() && other.key.as_ref() == Some(key))
}

/// Returns `volumectl foreign`.
pub fn list(foreign: &[api::ForeignVolume], style: Style) -> String {
    let mut head = vec!["PATH", "DRIVER", "HANDLE", "POD UID", "MOUNTED"];
    if style.wide {
        head.extend(["NAME", "MODE", "TARGET"]);
    }
    head.push("NOTE");
    let rows = foreign.iter().map(|one| {
        let mut cells = vec![
            one.path.clone(),
            dash(driver_of(one)),
            dash(&one.handle),
            dash(&one.pod_uid),
            if one.mounted { "yes" } else { "no" }.to_owned(),
        ];
        if style.wide {
            cells.extend([dash(&one.name), one.volume_mode.clone(), one.target.clone()]);
        }
        cells.push(dash(note(one)));
        ("waiting", cells)
    });
    table(&head, rows, style)
}

fn driver_of(one: &api::ForeignVolume) -> &str {
    if one.driver.is_empty() {
        one.plugin.strip_prefix("kubernetes.io~").unwrap_or_default()
    } else {
        &one.driver
    }
}

fn note(one: &api::ForeignVolume) -> &'static str {
    match (one.leaked, one.key.is_empty()) {
        (true, _) => "staged for no pod",
        (false, true) => "no vol_data.json says whose it is",
        (false, false) => "",
    }
}

/// Returns how many there are, and how many of them are mounted or leaked; empty without any.
pub(super) fn summary(foreign: &[api::ForeignVolume]) -> String {
    let mounted = foreign.iter().filter(|one| one.mounted).count();
    let leaked = foreign.iter().filter(|one| one.leaked).count();
    let leaked = if leaked > 0 { format!(", {leaked} staged for no pod") } else { String::new() };
    match foreign.len() {
        0 => String::new(),
        n => format!("{n} ({mounted} mounted{leaked}), left untouched: volumectl foreign"),
    }
}

#[cfg(test)]
#[path = "foreign_tests.rs"]
mod tests;
