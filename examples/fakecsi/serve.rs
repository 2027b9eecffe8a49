//! The sockets, and the services that say who the driver is.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::json;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};
use volumed::proto::csi::identity_server::{Identity, IdentityServer};
use volumed::proto::csi::node_server::NodeServer;
use volumed::proto::csi::{self, plugin_capability};
use volumed::proto::registration::registration_server::{Registration, RegistrationServer};
use volumed::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

use crate::Options;
use crate::calls::Calls;
use crate::controller::{self, ControllerServer};
use crate::faults::Script;
use crate::mounts::Mounts;
use crate::rules::Rules;
use crate::spoil::Spoil;

/// What all services share.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    pub(crate) calls: Arc<Calls>,
    pub(crate) mounts: Arc<Mounts>,
    pub(crate) rules: Arc<Rules>,
    pub(crate) options: Arc<Options>,
    endpoint: String,
}

/// Serves until `stop`; removes the sockets at a clean end.
pub(crate) async fn serve(
    options: &Options,
    calls: &Arc<Calls>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let path = options.endpoint.trim_start_matches("unix://").to_owned();
    std::fs::create_dir_all(&options.state).context("make the state directory")?;
    let driver = Driver {
        calls: Arc::clone(calls),
        mounts: Arc::new(Mounts {
            state: options.state.clone(),
            none: options.no_mount,
            block_size: options.block_size,
            shown: options.block,
            file_system: options.file_system,
        }),
        rules: Arc::new(Rules::new(options).context("make the driver's memory")?),
        options: Arc::new(options.clone()),
        endpoint: path.clone(),
    };
    let mut server = Server::builder()
        .add_service(Spoil(IdentityServer::new(driver.clone())))
        .add_service(Spoil(NodeServer::new(driver.clone())));
    if controller::is_served(options) {
        server = server.add_service(Spoil(ControllerServer::new(driver.clone())));
    }
    let listener = listen(Path::new(&path))?;
    let serving = server.serve_with_incoming_shutdown(listener, stop.clone().cancelled_owned());

    let registration = options.registry.as_ref().map(|directory| {
        let name = format!("{}-reg.sock", options.name);
        directory.join(options.registration_socket.clone().unwrap_or_else(|| PathBuf::from(name)))
    });
    let registering = async {
        let Some(path) = &registration else { return Ok(()) };
        Server::builder()
            .add_service(Spoil(RegistrationServer::new(driver)))
            .serve_with_incoming_shutdown(listen(path)?, stop.clone().cancelled_owned())
            .await
            .context("serve the registration")
    };
    let serving = async { serving.await.context("serve the driver") };
    let removal = async {
        stop.cancelled().await;
        // At the signal, as the registrar does; not after the last call, which may hang.
        for path in registration.iter().map(PathBuf::as_path).chain([Path::new(&path)]) {
            std::fs::remove_file(path).ok();
        }
        Ok(())
    };
    tokio::try_join!(serving, registering, removal)?;
    Ok(())
}

/// Listens at a path in the place of a socket that an earlier process left.
fn listen(path: &Path) -> anyhow::Result<UnixListenerStream> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    }
    std::fs::remove_file(path).ok();
    let listener = UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
    Ok(UnixListenerStream::new(listener))
}

#[async_trait]
impl Registration for Driver {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        let info = PluginInfo {
            r#type: "CSIPlugin".to_owned(),
            name: self.options.name.clone(),
            endpoint: self.endpoint.clone(),
            supported_versions: vec!["1.0.0".to_owned()],
        };
        self.calls.run("GetInfo", "", json!({}), || Ok(info)).await
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        let log = json!({"plugin_registered": status.plugin_registered, "error": status.error});
        self.calls.run("NotifyRegistrationStatus", "", log, || Ok(RegistrationStatusResponse {})).await
    }
}

#[async_trait]
impl Identity for Driver {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        let info = csi::GetPluginInfoResponse {
            name: self.options.name.clone(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: BTreeMap::new(),
        };
        self.calls.run("GetPluginInfo", "", json!({}), || Ok(info)).await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        let mut capabilities = Vec::new();
        if controller::is_served(&self.options) {
            let r#type = i32::from(plugin_capability::service::Type::ControllerService);
            let service = plugin_capability::Type::Service(plugin_capability::Service { r#type });
            capabilities.push(csi::PluginCapability { r#type: Some(service) });
        }
        let answer = csi::GetPluginCapabilitiesResponse { capabilities };
        self.calls.run("GetPluginCapabilities", "", json!({}), || Ok(answer)).await
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        let answer = |script: &Script| {
            Ok(csi::ProbeResponse { ready: (!script.silent).then_some(script.ready.unwrap_or(true)) })
        };
        self.calls.run_scripted("Probe", "", json!({}), answer).await
    }
}
