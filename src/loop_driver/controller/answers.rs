//! Volumes and snapshots as messages, and lists in pages.

use std::collections::BTreeMap;

use prost_types::Timestamp;

use crate::loop_driver::errors::Failure;
use crate::loop_driver::health::Trouble;
use crate::loop_driver::store::{Content, Id, Snapshot, Source, State, Volume, VolumeState};
use crate::loop_driver::{BACKING, Driver, EPHEMERAL, ask};
use crate::model::Millis;
use crate::proto::csi;
use crate::proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};

/// What tokens begin with: what follows is the last id of the page before.
const TOKEN: &str = "after:";

/// Cuts a page out of an ordered list; returns it with the token for the next.
///
/// A token says after which id to go on, so what comes or goes meanwhile moves nothing.
pub(super) fn page<T>(
    mut all: Vec<T>,
    id: impl Fn(&T) -> &Id,
    most: i32,
    token: &str,
) -> Result<(Vec<T>, String), Failure> {
    let most = ask::entries(most)?;
    if !token.is_empty() {
        let last = token.strip_prefix(TOKEN).and_then(|id| Id::new(id).ok()).ok_or(Failure::Token)?;
        all.retain(|one| *id(one) > last);
    }
    let more = all.len() > most;
    all.truncate(most);
    let next = all.last().filter(|_| more).map(|last| format!("{TOKEN}{}", id(last)));
    Ok((all, next.unwrap_or_default()))
}

impl Driver {
    /// Returns a page of the volumes, each with what is wrong with it, and the token for the next page.
    pub(super) async fn page_of_volumes(
        &self,
        most: i32,
        token: &str,
    ) -> Result<(Vec<(Volume, Vec<Trouble>)>, String), Failure> {
        let (volumes, next_token) = page(self.listed(), |volume| &volume.id, most, token)?;
        let promised = self.promised().await?;
        let mut found = Vec::new();
        for volume in volumes {
            // Of one that is being copied there is nothing yet that could be wrong.
            let troubles = match volume.state {
                VolumeState::Ready | VolumeState::Growing { .. } => {
                    self.troubles_with(&volume, &promised).await?
                }
                VolumeState::Creating | VolumeState::Deleting => Vec::new(),
            };
            found.push((volume, troubles));
        }
        Ok((found, next_token))
    }

    /// Returns the volumes that a list shows: pods' own among them, since one whose pod went without a word is found by nothing
    /// else; and those that are being copied, so that it can be seen how far they got.
    fn listed(&self) -> Vec<Volume> {
        let mut all = self.store().volumes.all();
        all.retain(|volume| match volume.state {
            VolumeState::Ready | VolumeState::Growing { .. } => true,
            VolumeState::Creating => self.copied(&volume.id).is_some(),
            VolumeState::Deleting => false,
        });
        all
    }

    /// Returns the one place that everything is in.
    pub(in crate::loop_driver) fn here(&self) -> csi::Topology {
        csi::Topology { segments: BTreeMap::from([self.config().topology()]) }
    }

    /// Returns whether this node is in a place: one that says nothing is everywhere.
    pub(super) fn is_here(&self, topology: &csi::Topology) -> bool {
        let (key, value) = self.config().topology();
        topology.segments.is_empty() || topology.segments.get(&key) == Some(&value)
    }

    /// Refuses what is to be somewhere else.
    pub(super) fn check_topology(&self, wanted: Option<&csi::TopologyRequirement>) -> Result<(), Failure> {
        let requisite = wanted.map(|wanted| wanted.requisite.as_slice()).unwrap_or_default();
        if requisite.is_empty() || requisite.iter().any(|topology| self.is_here(topology)) {
            return Ok(());
        }
        Err(Failure::Exhausted(format!("this driver has storage on the node {} only", self.config().node_id)))
    }

    /// Returns a volume as CSI shows it.
    pub(in crate::loop_driver) fn volume_message(&self, volume: &Volume) -> csi::Volume {
        let source = volume.source.as_ref().map(|source| match source {
            Source::Volume(id) => Type::Volume(VolumeSource { volume_id: id.to_string() }),
            Source::Snapshot(id) => Type::Snapshot(SnapshotSource { snapshot_id: id.to_string() }),
        });
        let own = volume.ephemeral.then(|| (EPHEMERAL.to_owned(), "true".to_owned()));
        let backing = match volume.content {
            Content::Directory(_) => Some((BACKING.to_owned(), "directory".to_owned())),
            Content::FileSystem(_) | Content::Block => None,
        };
        let volume_context = own.into_iter().chain(backing).collect();
        csi::Volume {
            capacity_bytes: i64::try_from(volume.bytes).unwrap_or(i64::MAX),
            volume_id: volume.id.to_string(),
            volume_context,
            content_source: source.map(|source| csi::VolumeContentSource { r#type: Some(source) }),
            accessible_topology: vec![self.here()],
        }
    }

    /// Returns a snapshot as CSI shows it.
    pub(in crate::loop_driver) fn snapshot_message(&self, snapshot: &Snapshot) -> csi::Snapshot {
        csi::Snapshot {
            size_bytes: i64::try_from(snapshot.bytes).unwrap_or(i64::MAX),
            snapshot_id: snapshot.id.to_string(),
            source_volume_id: snapshot.volume.to_string(),
            creation_time: Some(timestamp(snapshot.created)),
            ready_to_use: snapshot.state == State::Ready,
            group_snapshot_id: snapshot.group.as_ref().map(Id::to_string).unwrap_or_default(),
            // Only with SNAPSHOT_ACCESSIBILITY_CONSTRAINTS (csi.md 1.1a).
            accessible_topology: Vec::new(),
        }
    }
}

/// Returns a time of day as protobuf has it.
pub(in crate::loop_driver) fn timestamp(at: Millis) -> Timestamp {
    let nanos = i32::try_from(at.rem_euclid(1000)).unwrap_or(0) * 1_000_000;
    Timestamp { seconds: at.div_euclid(1000), nanos }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<Id> {
        text.split(' ').map(|id| Id::new(id).unwrap()).collect()
    }

    #[test]
    fn pages_go_on_where_the_last_one_ended_whatever_came_and_went() {
        let (first, token) = page(ids("a b c d"), |id| id, 2, "").unwrap();
        assert_eq!(first, ids("a b"));
        let (second, token) = page(ids("a a1 c c1 d"), |id| id, 2, &token).unwrap();
        assert_eq!(second, ids("c c1"));
        let (third, token) = page(ids("d"), |id| id, 2, &token).unwrap();
        assert_eq!((third, token.as_str()), (ids("d"), ""));
    }

    #[test]
    fn a_token_of_somebody_else_is_refused() {
        for token in ["invalid-token", "after:", "after:../x"] {
            assert!(matches!(page(ids("a"), |id| id, 0, token), Err(Failure::Token)), "{token}");
        }
        assert!(matches!(page(ids("a"), |id| id, -1, ""), Err(Failure::Invalid(_))));
    }

    #[test]
    fn a_time_before_the_epoch_is_no_negative_fraction() {
        assert_eq!(timestamp(-1), Timestamp { seconds: -1, nanos: 999_000_000 });
        assert_eq!(timestamp(1500), Timestamp { seconds: 1, nanos: 500_000_000 });
    }
}
