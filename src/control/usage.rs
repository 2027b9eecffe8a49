//! How full and how well a volume is, for programs and for people.

use super::units::{bytes, span};
use crate::model::{Ill, IllKind, Millis, Space, VolumeHealth};
use crate::proto::control as api;
use crate::proto::control::ChainLink;

/// Returns how full it is, as a message.
pub(super) fn message(known: &VolumeHealth) -> api::Usage {
    api::Usage {
        total_bytes: known.bytes.total,
        used_bytes: known.bytes.used,
        available_bytes: known.bytes.available,
        total_inodes: known.inodes.total,
        used_inodes: known.inodes.used,
        available_inodes: known.inodes.available,
        measured_at_ms: known.measured_at.unwrap_or_default(),
        error: known.error.clone().unwrap_or_default(),
    }
}

/// Returns what is wrong, as a message.
pub(super) fn ill(ill: &Ill) -> api::Ill {
    api::Ill {
        status: ill.kind.to_string(),
        reason: ill.reason.clone(),
        message: ill.message.clone(),
        counts: ill.kind.counts(),
    }
}

/// Says what to do about a volume that is not well.
pub(super) fn mend(ill: &Ill) -> &'static str {
    if ill.kind == IllKind::Silent {
        "start the server or mend the way to it: what its volumes' users wait for goes on by itself"
    } else if ill.since.is_some() {
        "look at the server and at what it exports"
    } else {
        "look at the driver's log and at its storage; volumed does nothing about it"
    }
}

/// Returns what is wrong, and since when if that is known.
pub(super) fn worded(ill: &Ill, now: Millis) -> String {
    match ill.since {
        Some(since) => format!("{ill} (since {} ago)", span(now - since)),
        None => ill.to_string(),
    }
}

/// Returns the last link of a chain.
pub(super) fn link(known: &VolumeHealth, now: Millis) -> ChainLink {
    let mut parts = Vec::new();
    parts.extend(filled(known.bytes, bytes).map(|filled| format!("{filled} used")));
    parts.extend(filled(known.inodes, |n| n.to_string()).map(|filled| format!("{filled} inodes used")));
    parts.extend(known.ills.iter().map(|ill| worded(ill, now)));
    parts.extend(known.measured_at.map(|at| format!("as of {} ago", span(now - at))));
    parts.extend(known.error.as_ref().map(|error| format!("not known now: {error}")));
    let detail = parts.join(", ");
    match (known.ill(), &known.error) {
        (Some(ill), _) => ChainLink { remedy: mend(ill).to_owned(), ..chain_link("failed", detail) },
        (None, Some(_)) => chain_link("waiting", detail),
        (None, None) => chain_link("good", detail),
    }
}

/// Returns `1.0 GiB of 4.0 GiB`, or what of it is known.
pub(super) fn filled(space: Space, number: impl Fn(u64) -> String) -> Option<String> {
    match (space.used, space.total) {
        (Some(used), Some(total)) => Some(format!("{} of {}", number(used), number(total))),
        (None, Some(total)) => Some(format!("? of {}", number(total))),
        (Some(used), None) => Some(number(used)),
        (None, None) => None,
    }
}

fn chain_link(state: &str, detail: String) -> ChainLink {
    ChainLink { step: "health".to_owned(), state: state.to_owned(), detail, ..ChainLink::default() }
}

/// Returns how much of a volume's bytes is used, `1.0Gi of 4.0Gi`; empty when that is not known.
pub(super) fn used(volume: &api::Volume) -> String {
    let space = volume.usage.as_ref().map(|usage| Space {
        total: usage.total_bytes,
        used: usage.used_bytes,
        available: usage.available_bytes,
    });
    space.and_then(|space| filled(space, bytes)).unwrap_or_default()
}

pub(super) fn measured(usage: &api::Usage, now: Millis) -> String {
    let at = match usage.measured_at_ms {
        0 => "never".to_owned(),
        at => format!("{} ago", span(now - at)),
    };
    if usage.error.is_empty() { at } else { format!("{at}; not now: {}", usage.error) }
}

/// Returns the first thing that is wrong; a dash while nothing is known to be.
pub(super) fn condition(volume: &api::Volume) -> String {
    match (volume.ills.iter().find(|ill| ill.counts), &volume.usage) {
        (Some(ill), _) => ill.status.clone(),
        (None, Some(usage)) if !usage.error.is_empty() => "unknown".to_owned(),
        (None, _) => "-".to_owned(),
    }
}

/// As `used`, of inodes.
pub(super) fn inodes(usage: &api::Usage) -> String {
    let space =
        Space { total: usage.total_inodes, used: usage.used_inodes, available: usage.available_inodes };
    filled(space, |n| n.to_string()).unwrap_or_default()
}
