//! Answers as text for people.

use super::manifest::quantity;
use super::{Deleted, Resized, Snapshot, Source, Volume};
use crate::control::render::{Style, printable, table};

/// Returns a table of volumes.
pub fn volumes(all: &[Volume]) -> String {
    let rows = all.iter().map(|volume| {
        let from = match &volume.source {
            None if volume.ephemeral => "inline".to_owned(),
            None => "-".to_owned(),
            Some(Source::Volume(handle)) => format!("volume {handle}"),
            Some(Source::Snapshot(handle)) => format!("snapshot {handle}"),
        };
        let state = if volume.abnormal { "failed" } else { "good" };
        let (size, backing) = (quantity(volume.capacity_bytes), volume.backing.clone());
        (state, vec![volume.handle.clone(), size, backing, from, volume.condition.clone()])
    });
    table(&["VOLUME", "SIZE", "BACKING", "SOURCE", "CONDITION"], rows, Style::default())
}

/// Returns a table of snapshots.
pub fn snapshots(all: &[Snapshot]) -> String {
    let rows = all.iter().map(|snapshot| {
        let size = quantity(snapshot.capacity_bytes);
        ("good", vec![snapshot.handle.clone(), snapshot.volume.clone(), size, snapshot.created.clone()])
    });
    table(&["SNAPSHOT", "VOLUME", "SIZE", "TAKEN"], rows, Style::default())
}

/// Says what is left to do once a volume is larger.
pub fn resized(volume: &Resized) -> String {
    let size = quantity(volume.capacity_bytes);
    let rest = if volume.node_expansion_required {
        "volumed then grows its file system on the node, mounted or when it is mounted next"
    } else {
        "nothing has to grow on the node"
    };
    format!(
        "the volume {} has {size} now\nwrite this in its PersistentVolume (spec.capacity); {rest}:\n  storage: {size}\n",
        printable(&volume.handle)
    )
}

/// Says what can be done with a new snapshot.
pub fn snapshot(taken: &Snapshot) -> String {
    format!(
        "the snapshot {0} of the volume {1} is taken\nto get it back: volumed-csi-loop volume create NAME --from-snapshot {0}\n",
        printable(&taken.handle),
        printable(&taken.volume)
    )
}

/// Says what was deleted; `kind` is "volume" or "snapshot".
pub fn deleted(kind: &str, gone: &Deleted) -> String {
    let rest = if kind == "volume" { "; remove its PersistentVolume's manifest too" } else { "" };
    format!("the {kind} {} is deleted{rest}\n", printable(&gone.handle))
}
