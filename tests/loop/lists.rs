//! The calls that only ask: what there is, and how well it is.

use tonic::Status;
use volumed::proto::csi::controller_client::ControllerClient;
use volumed::proto::csi::group_controller_client::GroupControllerClient;
use volumed::proto::csi::node_client::NodeClient;
use volumed::proto::csi::volume_health::VolumeHealthEntry;
use volumed::proto::csi::{self, controller_get_volume_response, list_volumes_response};

use super::Loop;

/// A page of a list, and the token of the next.
pub type Page<T> = Result<(Vec<T>, String), Status>;

/// Turns all pages, of at most so many entries; none but the last is empty.
#[track_caller]
pub fn all_pages<T>(most: i32, page: impl Fn(i32, &str) -> Page<T>) -> Vec<Vec<T>> {
    let mut pages = Vec::new();
    let mut token = String::new();
    loop {
        let (entries, next) = page(most, &token).expect("a page");
        assert!(!entries.is_empty() || token.is_empty(), "an empty page after {token}");
        pages.push(entries);
        if next.is_empty() {
            return pages;
        }
        token = next;
    }
}

impl Loop {
    pub fn get_snapshot(&self, id: &str) -> Result<csi::Snapshot, Status> {
        let request = csi::GetSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        let answer = self.call(async |channel| ControllerClient::new(channel).get_snapshot(request).await);
        answer.map(|answer| answer.snapshot.expect("a snapshot"))
    }

    /// A page of the snapshots of a volume and with an id, where these are not empty.
    pub fn snapshots(&self, volume: &str, id: &str, most: i32, token: &str) -> Page<csi::Snapshot> {
        let request = csi::ListSnapshotsRequest {
            max_entries: most,
            starting_token: token.to_owned(),
            source_volume_id: volume.to_owned(),
            snapshot_id: id.to_owned(),
            ..Default::default()
        };
        let answer =
            self.call(async |channel| ControllerClient::new(channel).list_snapshots(request).await)?;
        let entries = answer.entries.into_iter().map(|entry| entry.snapshot.expect("a snapshot")).collect();
        Ok((entries, answer.next_token))
    }

    pub fn get_group(&self, group: &csi::VolumeGroupSnapshot) -> Result<csi::VolumeGroupSnapshot, Status> {
        let request = csi::GetVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id.clone(),
            snapshot_ids: group.snapshots.iter().map(|one| one.snapshot_id.clone()).collect(),
            ..Default::default()
        };
        let answer = self.call(async |channel| {
            GroupControllerClient::new(channel).get_volume_group_snapshot(request).await
        });
        answer.map(|answer| answer.group_snapshot.expect("a group"))
    }

    pub fn get_volume(
        &self,
        id: &str,
    ) -> Result<(csi::Volume, controller_get_volume_response::VolumeStatus), Status> {
        let request = csi::ControllerGetVolumeRequest { volume_id: id.to_owned() };
        let answer =
            self.call(async |channel| ControllerClient::new(channel).controller_get_volume(request).await)?;
        Ok((answer.volume.expect("a volume"), answer.status.expect("its status")))
    }

    pub fn volumes(
        &self,
        most: i32,
        token: &str,
    ) -> Page<(csi::Volume, list_volumes_response::VolumeStatus)> {
        let request = csi::ListVolumesRequest { max_entries: most, starting_token: token.to_owned() };
        let answer = self.call(async |channel| ControllerClient::new(channel).list_volumes(request).await)?;
        let entry = |entry: list_volumes_response::Entry| {
            (entry.volume.expect("a volume"), entry.status.expect("its status"))
        };
        Ok((answer.entries.into_iter().map(entry).collect(), answer.next_token))
    }

    pub fn all_health(&self, most: i32, token: &str) -> Page<csi::VolumeHealth> {
        let request = csi::ControllerListVolumeHealthRequest {
            max_entries: most,
            starting_token: token.to_owned(),
            ..Default::default()
        };
        let answer = self.call(async |channel| {
            ControllerClient::new(channel).controller_list_volume_health(request).await
        })?;
        Ok((answer.entries, answer.next_token))
    }

    /// What the controller says is wrong with a volume.
    pub fn controller_health(&self, id: &str) -> Result<Vec<VolumeHealthEntry>, Status> {
        let request =
            csi::ControllerGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
        let answer = self.call(async |channel| {
            ControllerClient::new(channel).controller_get_volume_health(request).await
        })?;
        Ok(of(id, answer.volume_health))
    }

    /// What the node says is wrong with a volume.
    pub fn node_health(&self, id: &str) -> Result<Vec<VolumeHealthEntry>, Status> {
        let request = csi::NodeGetVolumeHealthRequest { volume_id: id.to_owned(), ..Default::default() };
        let answer =
            self.call(async |channel| NodeClient::new(channel).node_get_volume_health(request).await)?;
        Ok(of(id, answer.volume_health))
    }

    /// What the node says is wrong with the host's directory: status, reason and message.
    pub fn storage_health(&self) -> Vec<(i32, String, String)> {
        let request = csi::NodeGetStorageHealthRequest::default();
        let answer =
            self.call(async |channel| NodeClient::new(channel).node_get_storage_health(request).await);
        let found = answer.expect("it can be asked").backend_health;
        found.into_iter().map(|one| (one.status, one.reason, one.message)).collect()
    }
}

fn of(id: &str, health: Option<csi::VolumeHealth>) -> Vec<VolumeHealthEntry> {
    let health = health.expect("a volume's health");
    assert_eq!(health.volume_id, id);
    health.health_statuses
}
