//! A small Controller: volumes that are made and removed, and an attachment that is only a context.

use std::collections::BTreeMap;

use serde_json::json;
use tonic::{Request, Response, Status, async_trait};
use volumed::proto::csi;
use volumed::proto::csi::controller_server::Controller;
pub(crate) use volumed::proto::csi::controller_server::ControllerServer;
use volumed::proto::csi::controller_service_capability::{Rpc, Type, rpc};

use crate::Options;
use crate::node::{capability, required};
use crate::serve::Driver;

/// Returns whether the driver has a Controller at all.
pub(crate) fn is_served(options: &Options) -> bool {
    options.attach || options.create
}

/// The RPCs whose capabilities the driver never has.
macro_rules! unimplemented {
    ($($method:ident $request:ident $response:ident),* $(,)?) => {
        #[async_trait]
        impl Controller for Driver {
            async fn create_volume(
                &self,
                request: Request<csi::CreateVolumeRequest>,
            ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
                self.create(request.into_inner()).await
            }

            async fn delete_volume(
                &self,
                request: Request<csi::DeleteVolumeRequest>,
            ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
                self.delete(request.into_inner()).await
            }

            async fn controller_publish_volume(
                &self,
                request: Request<csi::ControllerPublishVolumeRequest>,
            ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
                self.attach(request.into_inner()).await
            }

            async fn controller_unpublish_volume(
                &self,
                request: Request<csi::ControllerUnpublishVolumeRequest>,
            ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
                self.detach(request.into_inner()).await
            }

            async fn validate_volume_capabilities(
                &self,
                request: Request<csi::ValidateVolumeCapabilitiesRequest>,
            ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
                self.validate(request.into_inner()).await
            }

            async fn controller_get_capabilities(
                &self,
                _: Request<csi::ControllerGetCapabilitiesRequest>,
            ) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
                self.capabilities().await
            }

            $(async fn $method(
                &self,
                _: Request<csi::$request>,
            ) -> Result<Response<csi::$response>, Status> {
                Err(Status::unimplemented("no such capability"))
            })*
        }
    };
}

unimplemented! {
    list_volumes ListVolumesRequest ListVolumesResponse,
    get_capacity GetCapacityRequest GetCapacityResponse,
    create_snapshot CreateSnapshotRequest CreateSnapshotResponse,
    delete_snapshot DeleteSnapshotRequest DeleteSnapshotResponse,
    list_snapshots ListSnapshotsRequest ListSnapshotsResponse,
    get_snapshot GetSnapshotRequest GetSnapshotResponse,
    controller_expand_volume ControllerExpandVolumeRequest ControllerExpandVolumeResponse,
    controller_get_volume ControllerGetVolumeRequest ControllerGetVolumeResponse,
    controller_modify_volume ControllerModifyVolumeRequest ControllerModifyVolumeResponse,
    controller_list_volume_health ControllerListVolumeHealthRequest ControllerListVolumeHealthResponse,
    controller_get_volume_health ControllerGetVolumeHealthRequest ControllerGetVolumeHealthResponse,
}

impl Driver {
    async fn capabilities(&self) -> Result<Response<csi::ControllerGetCapabilitiesResponse>, Status> {
        let all = [
            (rpc::Type::CreateDeleteVolume, self.options.create),
            (rpc::Type::PublishUnpublishVolume, self.options.attach),
        ];
        let capability = |(capability, _)| csi::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: i32::from(capability) })),
        };
        let capabilities = all.into_iter().filter(|(_, has)| *has).map(capability).collect();
        let answer = csi::ControllerGetCapabilitiesResponse { capabilities };
        self.calls.run("ControllerGetCapabilities", "", json!({}), || Ok(answer)).await
    }

    async fn create(
        &self,
        request: csi::CreateVolumeRequest,
    ) -> Result<Response<csi::CreateVolumeResponse>, Status> {
        let log = json!({"name": request.name, "parameters": request.parameters, "secrets": request.secrets});
        self.calls
            .run("CreateVolume", &request.name, log, || {
                if !self.options.create {
                    return Err(Status::unimplemented("no CREATE_DELETE_VOLUME"));
                }
                required("name", &request.name)?;
                if request.volume_capabilities.is_empty() {
                    return Err(Status::invalid_argument("volume_capabilities are missing"));
                }
                self.mounts.make(&request.name)?;
                let volume = csi::Volume {
                    volume_id: request.name.clone(),
                    capacity_bytes: request.capacity_range.as_ref().map_or(0, |range| range.required_bytes),
                    ..Default::default()
                };
                Ok(csi::CreateVolumeResponse { volume: Some(volume) })
            })
            .await
    }

    async fn delete(
        &self,
        request: csi::DeleteVolumeRequest,
    ) -> Result<Response<csi::DeleteVolumeResponse>, Status> {
        let log = json!({"volume_id": request.volume_id, "secrets": request.secrets});
        self.calls
            .run("DeleteVolume", &request.volume_id, log, || {
                required("volume_id", &request.volume_id)?;
                // A volume with content stays: a test may look at it.
                std::fs::remove_dir(self.mounts.directory(&request.volume_id)).ok();
                std::fs::remove_file(self.mounts.image(&request.volume_id)).ok();
                self.rules.forget(&request.volume_id);
                Ok(csi::DeleteVolumeResponse {})
            })
            .await
    }

    async fn attach(
        &self,
        request: csi::ControllerPublishVolumeRequest,
    ) -> Result<Response<csi::ControllerPublishVolumeResponse>, Status> {
        let log = json!({
            "volume_id": request.volume_id, "node_id": request.node_id, "readonly": request.readonly,
            "volume_capability": capability(request.volume_capability.as_ref()),
            "secrets": request.secrets, "volume_context": request.volume_context,
        });
        self.calls
            .run("ControllerPublishVolume", &request.volume_id, log, || {
                required("volume_id", &request.volume_id)?;
                required("node_id", &request.node_id)?;
                let device = format!("/dev/fake/{}", request.volume_id);
                let publish_context = BTreeMap::from([("device".to_owned(), device)]);
                Ok(csi::ControllerPublishVolumeResponse { publish_context })
            })
            .await
    }

    async fn detach(
        &self,
        request: csi::ControllerUnpublishVolumeRequest,
    ) -> Result<Response<csi::ControllerUnpublishVolumeResponse>, Status> {
        let log = json!({
            "volume_id": request.volume_id, "node_id": request.node_id, "secrets": request.secrets,
        });
        self.calls
            .run("ControllerUnpublishVolume", &request.volume_id, log, || {
                required("volume_id", &request.volume_id)?;
                Ok(csi::ControllerUnpublishVolumeResponse {})
            })
            .await
    }

    async fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<Response<csi::ValidateVolumeCapabilitiesResponse>, Status> {
        let log = json!({"volume_id": request.volume_id, "secrets": request.secrets});
        self.calls
            .run("ValidateVolumeCapabilities", &request.volume_id, log, || {
                required("volume_id", &request.volume_id)?;
                if request.volume_capabilities.is_empty() {
                    return Err(Status::invalid_argument("volume_capabilities are missing"));
                }
                if !self.mounts.directory(&request.volume_id).is_dir() {
                    return Err(Status::not_found("no such volume"));
                }
                let confirmed = csi::validate_volume_capabilities_response::Confirmed {
                    volume_context: request.volume_context.clone(),
                    volume_capabilities: request.volume_capabilities.clone(),
                    parameters: request.parameters.clone(),
                    mutable_parameters: request.mutable_parameters.clone(),
                };
                Ok(csi::ValidateVolumeCapabilitiesResponse {
                    confirmed: Some(confirmed),
                    message: String::new(),
                })
            })
            .await
    }
}
