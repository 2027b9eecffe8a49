//! A driver that nobody has spoken to.

use std::time::Duration;

use super::{CallError, Code, Driver};
use crate::BoxFuture;
use crate::proto::csi;

/// The client of a configured driver that never answered: nothing it is asked is ever sent.
#[derive(Debug)]
pub(super) struct NeverReached {
    pub(super) deadline: Duration,
}

impl NeverReached {
    fn refuse(method: &'static str) -> BoxFuture<'static, Result<(), CallError>> {
        let message = "the driver was never reached".to_owned();
        Box::pin(std::future::ready(Err(CallError { method, code: Code::UNAVAILABLE, message, sent: false })))
    }
}

impl Driver for NeverReached {
    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn stage(&self, _: csi::NodeStageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Self::refuse("NodeStageVolume")
    }

    fn unstage(&self, _: csi::NodeUnstageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Self::refuse("NodeUnstageVolume")
    }

    fn publish(&self, _: csi::NodePublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Self::refuse("NodePublishVolume")
    }

    fn unpublish(&self, _: csi::NodeUnpublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        Self::refuse("NodeUnpublishVolume")
    }
}
