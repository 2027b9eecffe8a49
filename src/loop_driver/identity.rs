//! Who the driver is and what it can do.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status, async_trait};

use super::Driver;
use crate::proto::csi::identity_server::Identity;
use crate::proto::csi::plugin_capability::service::Type as Service;
use crate::proto::csi::plugin_capability::volume_expansion::Type as Expansion;
use crate::proto::csi::{self, plugin_capability};

#[async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _request: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: self.config().name.to_string(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: BTreeMap::new(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _request: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let services = [
            Service::ControllerService,
            Service::VolumeAccessibilityConstraints,
            Service::GroupControllerService,
        ];
        let service =
            |one| plugin_capability::Type::Service(plugin_capability::Service { r#type: i32::from(one) });
        let online = plugin_capability::VolumeExpansion { r#type: i32::from(Expansion::Online) };
        let all = services.map(service).into_iter().chain([plugin_capability::Type::VolumeExpansion(online)]);
        let capabilities = all.map(|one| csi::PluginCapability { r#type: Some(one) }).collect();
        Ok(Response::new(csi::GetPluginCapabilitiesResponse { capabilities }))
    }

    async fn probe(
        &self,
        _request: Request<csi::ProbeRequest>,
    ) -> Result<Response<csi::ProbeResponse>, Status> {
        // It serves only after what an earlier process left was gone through (`Driver::repair`).
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}
