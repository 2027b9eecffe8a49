//! The Node service.

mod directory;
mod ephemeral;
mod expand;
pub(super) mod place;
mod publish;
mod stage;
mod stats;

use tonic::{Request, Response, Status, async_trait};

use super::errors::Failure;
use super::health::health;
use super::locks::Key;
use super::store::Id;
use super::{Driver, EPHEMERAL, ask};
use crate::proto::csi;
use crate::proto::csi::node_server::Node;
use crate::proto::csi::node_service_capability::{Rpc, Type, rpc};

#[async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = ask::id("volume_id", &request.volume_id)?;
        let path = ask::path("staging_target_path", &request.staging_target_path)?;
        let capability = ask::Capability::of(request.volume_capability.as_ref())?;
        let id = known(id, &request.volume_id)?;
        self.operate(vec![Key::Volume(id.clone())], |driver| async move {
            driver.stage(&id, &path, &capability).await?;
            Ok(csi::NodeStageVolumeResponse {})
        })
        .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = ask::id("volume_id", &request.volume_id)?;
        let path = ask::path("staging_target_path", &request.staging_target_path)?;
        let id = known(id, &request.volume_id)?;
        self.operate(vec![Key::Volume(id.clone())], |driver| async move {
            driver.unstage(&id, &path).await?;
            Ok(csi::NodeUnstageVolumeResponse {})
        })
        .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = ask::id("volume_id", &request.volume_id)?;
        let target = ask::path("target_path", &request.target_path)?;
        let capability = ask::Capability::of(request.volume_capability.as_ref())?;
        let id = known(id, &request.volume_id)?;
        let read_only = request.readonly;
        if request.volume_context.get(EPHEMERAL).is_some_and(|value| value == "true") {
            let wish = ephemeral::wish(&id, &capability, &request.volume_context)?;
            return self
                .operate(vec![Key::Volume(id)], |driver| async move {
                    driver.publish_ephemeral(wish, &target, &capability, read_only).await?;
                    Ok(csi::NodePublishVolumeResponse {})
                })
                .await;
        }
        if request.staging_target_path.is_empty() {
            return Err(Failure::Precondition("staging_target_path is missing".to_owned()).into());
        }
        let staging = ask::path("staging_target_path", &request.staging_target_path)?;
        self.operate(vec![Key::Volume(id.clone())], |driver| async move {
            driver.publish(&id, &staging, &target, &capability, read_only).await?;
            Ok(csi::NodePublishVolumeResponse {})
        })
        .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = ask::id("volume_id", &request.volume_id)?;
        let target = ask::path("target_path", &request.target_path)?;
        let id = known(id, &request.volume_id)?;
        self.operate(vec![Key::Volume(id.clone())], |driver| async move {
            driver.unpublish(&id, &target).await?;
            Ok(csi::NodeUnpublishVolumeResponse {})
        })
        .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let id = ask::id("volume_id", &request.volume_id)?;
        let path = ask::place("volume_path", &request.volume_path)?;
        let id = known(id, &request.volume_id)?;
        Ok(Response::new(self.stats(&id, path.as_deref()).await?))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        let request = request.into_inner();
        let id = ask::id("volume_id", &request.volume_id)?;
        let path = ask::place("volume_path", &request.volume_path)?;
        let id = known(id, &request.volume_id)?;
        self.operate(vec![Key::Volume(id.clone())], |driver| async move {
            let bytes = driver.expand(&id, path.as_deref(), request.capacity_range).await?;
            let capacity_bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            Ok(csi::NodeExpandVolumeResponse { capacity_bytes })
        })
        .await
    }

    async fn node_get_capabilities(
        &self,
        _request: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        let all = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::VolumeMountGroup,
            rpc::Type::GetVolumeHealth,
            rpc::Type::GetStorageHealth,
        ];
        let capability =
            |one| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: i32::from(one) })) };
        Ok(Response::new(csi::NodeGetCapabilitiesResponse { capabilities: all.map(capability).into() }))
    }

    async fn node_get_info(
        &self,
        _request: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.config().node_id.clone(),
            max_volumes_per_node: 0,
            accessible_topology: Some(self.here()),
        }))
    }

    async fn node_get_volume_health(
        &self,
        request: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        let text = request.into_inner().volume_id;
        let volume = self.volume(ask::id("volume_id", &text)?.as_ref(), &text)?;
        let troubles = self.troubles(&volume).await?;
        let volume_health = Some(health(&volume, troubles));
        Ok(Response::new(csi::NodeGetVolumeHealthResponse { volume_health }))
    }

    async fn node_get_storage_health(
        &self,
        _request: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        Ok(Response::new(csi::NodeGetStorageHealthResponse { backend_health: self.storage_health().await? }))
    }
}

/// An id that this driver cannot have given is that of no volume.
fn known(id: Option<Id>, text: &str) -> Result<Id, Failure> {
    id.ok_or_else(|| Failure::no_volume(text))
}
