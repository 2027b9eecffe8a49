//! The services: arguments are checked as the contract says, then `Calls` runs what `Mounts` does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};
use volumed::proto::csi::identity_server::{Identity, IdentityServer};
use volumed::proto::csi::node_server::{Node, NodeServer};
use volumed::proto::csi::{self, plugin_capability, volume_capability};
use volumed::proto::registration::registration_server::{Registration, RegistrationServer};
use volumed::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

use crate::Options;
use crate::calls::Calls;
use crate::controller::{self, ControllerServer};
use crate::mounts::Mounts;
use crate::spoil::Spoil;

/// What all services share.
#[derive(Debug, Clone)]
pub(crate) struct Driver {
    pub(crate) calls: Arc<Calls>,
    pub(crate) mounts: Arc<Mounts>,
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
        mounts: Arc::new(Mounts { state: options.state.clone(), none: options.no_mount }),
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
        self.calls.run("Probe", "", json!({}), || Ok(csi::ProbeResponse { ready: Some(true) })).await
    }
}

#[async_trait]
impl Node for Driver {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Result<Response<csi::NodeStageVolumeResponse>, Status> {
        let request = request.into_inner();
        let log = json!({
            "volume_id": request.volume_id, "publish_context": request.publish_context,
            "staging_target_path": request.staging_target_path,
            "volume_capability": capability(request.volume_capability.as_ref()),
            "secrets": request.secrets, "volume_context": request.volume_context,
        });
        self.calls
            .run("NodeStageVolume", &request.volume_id, log, || {
                required("volume_id", &request.volume_id)?;
                let staging = required("staging_target_path", &request.staging_target_path)?;
                mount_capability(request.volume_capability.as_ref())?;
                self.mounts.stage(&request.volume_id, staging)?;
                Ok(csi::NodeStageVolumeResponse {})
            })
            .await
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Result<Response<csi::NodeUnstageVolumeResponse>, Status> {
        let request = request.into_inner();
        let log = json!({"volume_id": request.volume_id, "staging_target_path": request.staging_target_path});
        self.calls
            .run("NodeUnstageVolume", &request.volume_id, log, || {
                required("volume_id", &request.volume_id)?;
                self.mounts.unstage(required("staging_target_path", &request.staging_target_path)?)?;
                Ok(csi::NodeUnstageVolumeResponse {})
            })
            .await
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Result<Response<csi::NodePublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let log = json!({
            "volume_id": request.volume_id, "publish_context": request.publish_context,
            "staging_target_path": request.staging_target_path, "target_path": request.target_path,
            "volume_capability": capability(request.volume_capability.as_ref()),
            "readonly": request.readonly, "secrets": request.secrets, "volume_context": request.volume_context,
        });
        self.calls
            .run("NodePublishVolume", &request.volume_id, log, || {
                required("volume_id", &request.volume_id)?;
                let target = required("target_path", &request.target_path)?;
                mount_capability(request.volume_capability.as_ref())?;
                let inline =
                    request.volume_context.get("csi.storage.k8s.io/ephemeral").is_some_and(|is| is == "true");
                let staging = match request.staging_target_path.as_str() {
                    "" if self.options.no_stage || inline => None,
                    "" => return Err(Status::failed_precondition("staging_target_path is missing")),
                    path => Some(Path::new(path)),
                };
                self.mounts.publish(&request.volume_id, staging, target, request.readonly)?;
                Ok(csi::NodePublishVolumeResponse {})
            })
            .await
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Result<Response<csi::NodeUnpublishVolumeResponse>, Status> {
        let request = request.into_inner();
        let log = json!({"volume_id": request.volume_id, "target_path": request.target_path});
        self.calls
            .run("NodeUnpublishVolume", &request.volume_id, log, || {
                required("volume_id", &request.volume_id)?;
                self.mounts.unpublish(required("target_path", &request.target_path)?)?;
                Ok(csi::NodeUnpublishVolumeResponse {})
            })
            .await
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Result<Response<csi::NodeGetVolumeStatsResponse>, Status> {
        let request = request.into_inner();
        let log = json!({"volume_id": request.volume_id, "volume_path": request.volume_path});
        self.calls
            .run("NodeGetVolumeStats", &request.volume_id, log, || {
                required("volume_id", &request.volume_id)?;
                let path = required("volume_path", &request.volume_path)?;
                let stats =
                    nix::sys::statvfs::statvfs(path).map_err(|error| Status::not_found(error.to_string()))?;
                let usage = |unit, total: u64, free: u64| csi::VolumeUsage {
                    unit: i32::from(unit),
                    total: signed(total),
                    available: signed(free),
                    used: signed(total.saturating_sub(free)),
                };
                let block = stats.fragment_size();
                Ok(csi::NodeGetVolumeStatsResponse {
                    usage: vec![
                        usage(
                            csi::volume_usage::Unit::Bytes,
                            stats.blocks().saturating_mul(block),
                            stats.blocks_available().saturating_mul(block),
                        ),
                        usage(csi::volume_usage::Unit::Inodes, stats.files(), stats.files_available()),
                    ],
                    ..Default::default()
                })
            })
            .await
    }

    async fn node_expand_volume(
        &self,
        _: Request<csi::NodeExpandVolumeRequest>,
    ) -> Result<Response<csi::NodeExpandVolumeResponse>, Status> {
        Err(Status::unimplemented("no EXPAND_VOLUME"))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Result<Response<csi::NodeGetCapabilitiesResponse>, Status> {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let all = [
            (rpc::Type::StageUnstageVolume, !self.options.no_stage),
            (rpc::Type::GetVolumeStats, true),
            (rpc::Type::SingleNodeMultiWriter, self.options.multi_writer),
        ];
        let capability = |(capability, _)| csi::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: i32::from(capability) })),
        };
        let capabilities = all.into_iter().filter(|(_, has)| *has).map(capability).collect();
        let answer = csi::NodeGetCapabilitiesResponse { capabilities };
        self.calls.run("NodeGetCapabilities", "", json!({}), || Ok(answer)).await
    }

    async fn node_get_info(
        &self,
        _: Request<csi::NodeGetInfoRequest>,
    ) -> Result<Response<csi::NodeGetInfoResponse>, Status> {
        let answer = csi::NodeGetInfoResponse {
            node_id: self.options.node_id.clone(),
            max_volumes_per_node: self.options.max_volumes,
            accessible_topology: None,
        };
        self.calls.run("NodeGetInfo", "", json!({}), || Ok(answer)).await
    }

    async fn node_get_volume_health(
        &self,
        _: Request<csi::NodeGetVolumeHealthRequest>,
    ) -> Result<Response<csi::NodeGetVolumeHealthResponse>, Status> {
        Err(Status::unimplemented("no GET_VOLUME_HEALTH"))
    }

    async fn node_get_storage_health(
        &self,
        _: Request<csi::NodeGetStorageHealthRequest>,
    ) -> Result<Response<csi::NodeGetStorageHealthResponse>, Status> {
        Err(Status::unimplemented("no GET_STORAGE_HEALTH"))
    }
}

/// Returns a required field as a path.
pub(crate) fn required<'a>(field: &str, value: &'a str) -> Result<&'a Path, Status> {
    if value.is_empty() {
        return Err(Status::invalid_argument(format!("{field} is missing")));
    }
    Ok(Path::new(value))
}

fn mount_capability(capability: Option<&csi::VolumeCapability>) -> Result<(), Status> {
    match capability.and_then(|capability| capability.access_type.as_ref()) {
        None => Err(Status::invalid_argument("volume_capability is missing")),
        Some(volume_capability::AccessType::Block(_)) => Err(Status::invalid_argument("no block volumes")),
        Some(volume_capability::AccessType::Mount(_)) => Ok(()),
    }
}

/// Returns a capability for the log.
pub(crate) fn capability(capability: Option<&csi::VolumeCapability>) -> Value {
    let Some(capability) = capability else { return Value::Null };
    let mode = capability.access_mode.as_ref().map(|mode| mode.mode);
    match &capability.access_type {
        Some(volume_capability::AccessType::Mount(mount)) => json!({
            "access_mode": mode,
            "mount": {
                "fs_type": mount.fs_type, "mount_flags": mount.mount_flags,
                "volume_mount_group": mount.volume_mount_group,
            },
        }),
        Some(volume_capability::AccessType::Block(_)) => json!({"access_mode": mode, "block": {}}),
        None => json!({"access_mode": mode}),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
