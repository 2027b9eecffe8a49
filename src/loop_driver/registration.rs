//! How a kubelet, or volumed, learns of the driver: the socket in its `plugins_registry` (kubelet.md 7, csi.md 8.1).

use tonic::{Request, Response, Status, async_trait};
use tracing::{info, warn};

use super::Driver;
use crate::proto::registration::registration_server::Registration;
use crate::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// What every registrar says, whatever version of CSI its driver speaks.
const VERSION: &str = "1.0.0";

#[async_trait]
impl Registration for Driver {
    async fn get_info(&self, _request: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        Ok(Response::new(PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.config().name.to_string(),
            endpoint: self.config().endpoint.display().to_string(),
            supported_versions: vec![VERSION.to_owned()],
        }))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let RegistrationStatus { plugin_registered, error } = request.into_inner();
        if plugin_registered {
            info!("registered");
        } else {
            // The kubelet tries again by itself as long as the socket is there.
            warn!("the registration was refused: {error}");
        }
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}
