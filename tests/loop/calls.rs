//! The calls, with what a test does not care about filled in.

use std::collections::BTreeMap;
use std::path::Path;

use tonic::{Code, Status};
use volumed::proto::csi::controller_client::ControllerClient;
use volumed::proto::csi::group_controller_client::GroupControllerClient;
use volumed::proto::csi::node_client::NodeClient;
use volumed::proto::csi::volume_capability::access_mode::Mode;
use volumed::proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
use volumed::proto::csi::{self, volume_capability};

use super::{Loop, path};

/// What a volume is used as.
#[derive(Debug, Clone)]
pub struct As {
    pub fs_type: Option<&'static str>,
    pub mode: Mode,
    pub group: Option<u32>,
    pub flags: Vec<String>,
}

impl As {
    pub fn file_system(fs_type: &'static str) -> Self {
        Self { fs_type: Some(fs_type), ..Self::block() }
    }

    pub fn block() -> Self {
        Self { fs_type: None, mode: Mode::SingleNodeMultiWriter, group: None, flags: Vec::new() }
    }

    pub fn mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    pub fn group(self, group: u32) -> Self {
        Self { group: Some(group), ..self }
    }

    pub fn flag(mut self, flag: &str) -> Self {
        self.flags.push(flag.to_owned());
        self
    }

    pub fn capability(&self) -> Option<csi::VolumeCapability> {
        use volume_capability::AccessType;
        let access = match self.fs_type {
            None => AccessType::Block(volume_capability::BlockVolume {}),
            Some(fs_type) => AccessType::Mount(volume_capability::MountVolume {
                fs_type: fs_type.to_owned(),
                mount_flags: self.flags.clone(),
                volume_mount_group: self.group.map(|group| group.to_string()).unwrap_or_default(),
            }),
        };
        Some(csi::VolumeCapability {
            access_type: Some(access),
            access_mode: Some(volume_capability::AccessMode { mode: i32::from(self.mode) }),
        })
    }
}

/// What a volume is made from.
#[derive(Debug, Clone, Copy)]
pub enum From<'a> {
    Nothing,
    Snapshot(&'a str),
    Volume(&'a str),
}

fn required(bytes: u64) -> Option<csi::CapacityRange> {
    Some(csi::CapacityRange { required_bytes: i64::try_from(bytes).expect("a size"), limit_bytes: 0 })
}

impl Loop {
    pub fn create_as(
        &self,
        name: &str,
        used: &As,
        bytes: u64,
        from: From<'_>,
        parameters: &[(&str, &str)],
    ) -> Result<csi::Volume, Status> {
        let source = match from {
            From::Nothing => None,
            From::Snapshot(id) => Some(Type::Snapshot(SnapshotSource { snapshot_id: id.to_owned() })),
            From::Volume(id) => Some(Type::Volume(VolumeSource { volume_id: id.to_owned() })),
        };
        let request = csi::CreateVolumeRequest {
            name: name.to_owned(),
            capacity_range: required(bytes),
            volume_capabilities: used.capability().into_iter().collect(),
            parameters: parameters.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            volume_content_source: source.map(|source| csi::VolumeContentSource { r#type: Some(source) }),
            ..Default::default()
        };
        let answer = self.call(async |channel| ControllerClient::new(channel).create_volume(request).await);
        answer.map(|answer| answer.volume.expect("a volume"))
    }

    pub fn create(&self, name: &str, used: &As, bytes: u64, from: From<'_>) -> String {
        self.create_as(name, used, bytes, from, &[]).expect("it can be made").volume_id
    }

    pub fn delete(&self, id: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest { volume_id: id.to_owned(), ..Default::default() };
        self.call(async |channel| ControllerClient::new(channel).delete_volume(request).await).map(drop)
    }

    pub fn snapshot(&self, volume: &str, name: &str) -> Result<csi::Snapshot, Status> {
        let request = csi::CreateSnapshotRequest {
            source_volume_id: volume.to_owned(),
            name: name.to_owned(),
            ..Default::default()
        };
        let answer = self.call(async |channel| ControllerClient::new(channel).create_snapshot(request).await);
        answer.map(|answer| answer.snapshot.expect("a snapshot"))
    }

    pub fn delete_snapshot(&self, id: &str) -> Result<(), Status> {
        let request = csi::DeleteSnapshotRequest { snapshot_id: id.to_owned(), ..Default::default() };
        self.call(async |channel| ControllerClient::new(channel).delete_snapshot(request).await).map(drop)
    }

    pub fn group_snapshot(&self, name: &str, volumes: &[&str]) -> Result<csi::VolumeGroupSnapshot, Status> {
        let request = csi::CreateVolumeGroupSnapshotRequest {
            name: name.to_owned(),
            source_volume_ids: volumes.iter().map(|&id| id.to_owned()).collect(),
            ..Default::default()
        };
        let answer = self.call(async |channel| {
            GroupControllerClient::new(channel).create_volume_group_snapshot(request).await
        });
        answer.map(|answer| answer.group_snapshot.expect("a group"))
    }

    pub fn delete_group(&self, group: &csi::VolumeGroupSnapshot) -> Result<(), Status> {
        let request = csi::DeleteVolumeGroupSnapshotRequest {
            group_snapshot_id: group.group_snapshot_id.clone(),
            snapshot_ids: group.snapshots.iter().map(|one| one.snapshot_id.clone()).collect(),
            ..Default::default()
        };
        self.call(async |channel| {
            GroupControllerClient::new(channel).delete_volume_group_snapshot(request).await
        })
        .map(drop)
    }

    /// Grows the image; returns whether the node has to go on.
    pub fn controller_expand(&self, id: &str, bytes: u64) -> Result<bool, Status> {
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: id.to_owned(),
            capacity_range: required(bytes),
            ..Default::default()
        };
        let answer =
            self.call(async |channel| ControllerClient::new(channel).controller_expand_volume(request).await);
        answer.map(|answer| answer.node_expansion_required)
    }

    pub fn node_expand(&self, id: &str, at: &Path, bytes: u64) -> Result<(), Status> {
        let request = csi::NodeExpandVolumeRequest {
            volume_id: id.to_owned(),
            volume_path: path(at).to_owned(),
            capacity_range: required(bytes),
            ..Default::default()
        };
        self.call(async |channel| NodeClient::new(channel).node_expand_volume(request).await).map(drop)
    }

    pub fn stage(&self, id: &str, at: &Path, used: &As) -> Result<(), Status> {
        let request = csi::NodeStageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: path(at).to_owned(),
            volume_capability: used.capability(),
            ..Default::default()
        };
        self.call(async |channel| NodeClient::new(channel).node_stage_volume(request).await).map(drop)
    }

    pub fn unstage(&self, id: &str, at: &Path) -> Result<(), Status> {
        let request = csi::NodeUnstageVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: path(at).to_owned(),
        };
        self.call(async |channel| NodeClient::new(channel).node_unstage_volume(request).await).map(drop)
    }

    pub fn publish(
        &self,
        id: &str,
        staged: &Path,
        at: &Path,
        used: &As,
        readonly: bool,
    ) -> Result<(), Status> {
        let request = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            staging_target_path: path(staged).to_owned(),
            target_path: path(at).to_owned(),
            volume_capability: used.capability(),
            readonly,
            ..Default::default()
        };
        self.call(async |channel| NodeClient::new(channel).node_publish_volume(request).await).map(drop)
    }

    pub fn publish_inline(
        &self,
        id: &str,
        at: &Path,
        attributes: &[(&str, &str)],
        readonly: bool,
    ) -> Result<(), Status> {
        self.publish_inline_as(id, at, "", attributes, readonly)
    }

    pub fn publish_inline_as(
        &self,
        id: &str,
        at: &Path,
        fs_type: &'static str,
        attributes: &[(&str, &str)],
        readonly: bool,
    ) -> Result<(), Status> {
        let mut volume_context: BTreeMap<String, String> =
            attributes.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        volume_context.insert("csi.storage.k8s.io/ephemeral".to_owned(), "true".to_owned());
        let request = csi::NodePublishVolumeRequest {
            volume_id: id.to_owned(),
            target_path: path(at).to_owned(),
            volume_capability: As::file_system(fs_type).capability(),
            volume_context,
            readonly,
            ..Default::default()
        };
        self.call(async |channel| NodeClient::new(channel).node_publish_volume(request).await).map(drop)
    }

    pub fn unpublish(&self, id: &str, at: &Path) -> Result<(), Status> {
        let request =
            csi::NodeUnpublishVolumeRequest { volume_id: id.to_owned(), target_path: path(at).to_owned() };
        self.call(async |channel| NodeClient::new(channel).node_unpublish_volume(request).await).map(drop)
    }

    pub fn stats(&self, id: &str, at: &Path) -> Result<csi::NodeGetVolumeStatsResponse, Status> {
        let request = csi::NodeGetVolumeStatsRequest {
            volume_id: id.to_owned(),
            volume_path: path(at).to_owned(),
            ..Default::default()
        };
        self.call(async |channel| NodeClient::new(channel).node_get_volume_stats(request).await)
    }
}

/// Asserts that a call was refused with a code.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) -> String {
    let status = answer.expect_err("it is refused");
    assert_eq!(status.code(), code, "{status:?}");
    status.message().to_owned()
}
