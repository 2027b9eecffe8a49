//! The calls of a driver that have an effect, as the auditor compares them.

use std::path::Path;

use volumed::proto::csi as wire;

/// A request as it goes over the wire, but for secrets.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Stage(Box<wire::NodeStageVolumeRequest>),
    Publish(Box<wire::NodePublishVolumeRequest>),
    Expand(Box<wire::NodeExpandVolumeRequest>),
    Unstage(wire::NodeUnstageVolumeRequest),
    Unpublish(wire::NodeUnpublishVolumeRequest),
}

impl Request {
    pub fn method(&self) -> &'static str {
        match self {
            Self::Stage(_) => "NodeStageVolume",
            Self::Publish(_) => "NodePublishVolume",
            Self::Expand(_) => "NodeExpandVolume",
            Self::Unstage(_) => "NodeUnstageVolume",
            Self::Unpublish(_) => "NodeUnpublishVolume",
        }
    }

    pub fn handle(&self) -> &str {
        match self {
            Self::Stage(request) => &request.volume_id,
            Self::Publish(request) => &request.volume_id,
            Self::Expand(request) => &request.volume_id,
            Self::Unstage(request) => &request.volume_id,
            Self::Unpublish(request) => &request.volume_id,
        }
    }

    pub fn path(&self) -> &Path {
        Path::new(match self {
            Self::Stage(request) => &request.staging_target_path,
            Self::Publish(request) => &request.target_path,
            Self::Expand(request) => &request.volume_path,
            Self::Unstage(request) => &request.staging_target_path,
            Self::Unpublish(request) => &request.target_path,
        })
    }

    pub fn is_expand(&self) -> bool {
        matches!(self, Self::Expand(_))
    }

    pub fn is_undo(&self) -> bool {
        matches!(self, Self::Unstage(_) | Self::Unpublish(_))
    }
}
