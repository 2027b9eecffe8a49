//! Plugins and drivers in this process, over the generated servers.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, async_trait};
use volumed::proto::csi::controller_server::{Controller, ControllerServer};
use volumed::proto::csi::identity_server::{Identity, IdentityServer};
use volumed::proto::csi::node_server::{Node, NodeServer};
use volumed::proto::csi::{self, plugin_capability};
use volumed::proto::registration::registration_server::{Registration, RegistrationServer};
use volumed::proto::registration::{InfoRequest, PluginInfo, RegistrationStatus, RegistrationStatusResponse};

/// A served registration socket. Serving again at its path replaces it.
pub(crate) struct Plugin {
    pub(crate) path: PathBuf,
    shared: Arc<Mutex<PluginState>>,
    _tasks: JoinSet<()>,
}

struct PluginState {
    info: PluginInfo,
    asked: usize,
    hang: bool,
    told: Vec<(bool, String)>,
}

#[derive(Clone)]
struct PluginService(Arc<Mutex<PluginState>>);

impl Plugin {
    pub(crate) fn serve(path: PathBuf, driver: &Driver) -> Self {
        let info = PluginInfo {
            r#type: "CSIPlugin".into(),
            name: driver.shared.lock().unwrap().answers.plugin.name.clone(),
            endpoint: driver.path.to_str().unwrap().into(),
            supported_versions: vec!["1.0.0".into()],
        };
        let shared = Arc::new(Mutex::new(PluginState { info, asked: 0, hang: false, told: Vec::new() }));
        let service = RegistrationServer::new(PluginService(Arc::clone(&shared)));
        let mut tasks = JoinSet::new();
        let listener = listen(&path);
        tasks.spawn(async move {
            Server::builder().add_service(service).serve_with_incoming(listener).await.unwrap();
        });
        Self { path, shared, _tasks: tasks }
    }

    pub(crate) fn say(&self, change: impl FnOnce(&mut PluginInfo)) {
        change(&mut self.shared.lock().unwrap().info);
    }

    pub(crate) fn hang(&self, hang: bool) {
        self.shared.lock().unwrap().hang = hang;
    }

    pub(crate) fn asked(&self) -> usize {
        self.shared.lock().unwrap().asked
    }

    pub(crate) fn told(&self) -> Vec<(bool, String)> {
        self.shared.lock().unwrap().told.clone()
    }
}

#[async_trait]
impl Registration for PluginService {
    async fn get_info(&self, _: Request<InfoRequest>) -> Result<Response<PluginInfo>, Status> {
        let (info, hang) = {
            let mut shared = self.0.lock().unwrap();
            shared.asked += 1;
            (shared.info.clone(), shared.hang)
        };
        if hang {
            std::future::pending::<()>().await;
        }
        Ok(Response::new(info))
    }

    async fn notify_registration_status(
        &self,
        request: Request<RegistrationStatus>,
    ) -> Result<Response<RegistrationStatusResponse>, Status> {
        let status = request.into_inner();
        self.0.lock().unwrap().told.push((status.plugin_registered, status.error));
        Ok(Response::new(RegistrationStatusResponse {}))
    }
}

/// What a driver answers.
pub(crate) struct Answers {
    pub(crate) plugin: csi::GetPluginInfoResponse,
    pub(crate) node: csi::NodeGetInfoResponse,
    pub(crate) ready: Option<bool>,
    pub(crate) capabilities: Vec<i32>,
    /// `None`: no Controller.
    pub(crate) controller: Option<Vec<i32>>,
}

/// A served driver.
pub(crate) struct Driver {
    pub(crate) path: PathBuf,
    shared: Arc<Mutex<DriverState>>,
    runtime: Mutex<Option<tokio::runtime::Runtime>>,
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.crash();
    }
}

struct DriverState {
    answers: Answers,
    asked: BTreeMap<&'static str, usize>,
    fail: BTreeMap<&'static str, Status>,
    hang: BTreeSet<&'static str>,
}

#[derive(Clone)]
struct DriverService(Arc<Mutex<DriverState>>);

impl Driver {
    pub(crate) fn serve(path: PathBuf, name: &str) -> Self {
        Self::start(path, name, false, |_| {})
    }

    /// Serves with other answers from the first call on.
    pub(crate) fn serve_saying(path: PathBuf, name: &str, change: impl FnOnce(&mut Answers)) -> Self {
        Self::start(path, name, false, change)
    }

    /// Serves the registration on the driver's own socket, and says no endpoint.
    pub(crate) fn serve_with_registration(path: PathBuf, name: &str) -> Self {
        Self::start(path, name, true, |_| {})
    }

    fn start(path: PathBuf, name: &str, registration: bool, change: impl FnOnce(&mut Answers)) -> Self {
        let plugin = csi::GetPluginInfoResponse {
            name: name.into(),
            vendor_version: "1.2.3".into(),
            manifest: BTreeMap::new(),
        };
        let node = csi::NodeGetInfoResponse { node_id: "node-1".into(), ..Default::default() };
        let mut answers =
            Answers { plugin, node, ready: Some(true), capabilities: vec![1], controller: None };
        change(&mut answers);
        let shared = Arc::new(Mutex::new(DriverState {
            answers,
            asked: BTreeMap::new(),
            fail: BTreeMap::new(),
            hang: BTreeSet::new(),
        }));
        let service = DriverService(Arc::clone(&shared));
        let info = PluginInfo {
            r#type: "CSIPlugin".into(),
            name: name.into(),
            endpoint: String::new(),
            supported_versions: vec!["1.0.0".into()],
        };
        let plugin = PluginState { info, asked: 0, hang: false, told: Vec::new() };
        let mut server = Server::builder()
            .add_service(IdentityServer::new(service.clone()))
            .add_service(NodeServer::new(service.clone()))
            .add_service(ControllerServer::new(service));
        if registration {
            server = server.add_service(RegistrationServer::new(PluginService(Arc::new(Mutex::new(plugin)))));
        }
        // A runtime of its own, so that a crash ends the connections too.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            listen(&path)
        };
        runtime.spawn(async move { server.serve_with_incoming(listener).await });
        Self { path, shared, runtime: Mutex::new(Some(runtime)) }
    }

    /// Ends all at once: the listener and every connection. The socket file stays.
    pub(crate) fn crash(&self) {
        if let Some(runtime) = self.runtime.lock().unwrap().take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn say(&self, change: impl FnOnce(&mut Answers)) {
        change(&mut self.shared.lock().unwrap().answers);
    }

    pub(crate) fn fail(&self, method: &'static str, status: Status) {
        self.shared.lock().unwrap().fail.insert(method, status);
    }

    pub(crate) fn hang(&self, method: &'static str) {
        self.shared.lock().unwrap().hang.insert(method);
    }

    pub(crate) fn heal(&self) {
        let mut shared = self.shared.lock().unwrap();
        shared.fail.clear();
        shared.hang.clear();
    }

    pub(crate) fn asked(&self, method: &'static str) -> usize {
        self.shared.lock().unwrap().asked.get(method).copied().unwrap_or_default()
    }
}

/// Listens at a path in the place of what was there.
fn listen(path: &PathBuf) -> UnixListenerStream {
    std::fs::remove_file(path).ok();
    UnixListenerStream::new(UnixListener::bind(path).unwrap())
}

impl DriverService {
    /// Counts a call and does what it was told to do wrong.
    async fn called(&self, method: &'static str) -> Result<(), Status> {
        let (fail, hang) = {
            let mut shared = self.0.lock().unwrap();
            *shared.asked.entry(method).or_default() += 1;
            (shared.fail.get(method).cloned(), shared.hang.contains(method))
        };
        if hang {
            std::future::pending::<()>().await;
        }
        fail.map_or(Ok(()), Err)
    }

    fn answer<A>(&self, of: impl FnOnce(&Answers) -> A) -> Result<Response<A>, Status> {
        Ok(Response::new(of(&self.0.lock().unwrap().answers)))
    }
}

#[async_trait]
impl Identity for DriverService {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        self.called("GetPluginInfo").await?;
        self.answer(|answers| answers.plugin.clone())
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        self.called("GetPluginCapabilities").await?;
        self.answer(|answers| {
            let service = plugin_capability::Service { r#type: 1 };
            let controller =
                csi::PluginCapability { r#type: Some(plugin_capability::Type::Service(service)) };
            let capabilities = answers.controller.iter().map(|_| controller).collect();
            csi::GetPluginCapabilitiesResponse { capabilities }
        })
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        self.called("Probe").await?;
        self.answer(|answers| csi::ProbeResponse { ready: answers.ready })
    }
}

macro_rules! service {
    ($service:ident: $($method:ident $name:literal $request:ident $response:ident $answer:expr),* $(,)?) => {
        #[async_trait]
        impl $service for DriverService {
            $(async fn $method(
                &self,
                _: Request<csi::$request>,
            ) -> Result<Response<csi::$response>, Status> {
                self.called($name).await?;
                self.answer($answer)
            })*
        }
    };
}

fn node_capabilities(answers: &Answers) -> csi::NodeGetCapabilitiesResponse {
    use csi::node_service_capability::{Rpc, Type};
    let capability =
        |number: &i32| csi::NodeServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: *number })) };
    csi::NodeGetCapabilitiesResponse { capabilities: answers.capabilities.iter().map(capability).collect() }
}

fn controller_capabilities(answers: &Answers) -> csi::ControllerGetCapabilitiesResponse {
    use csi::controller_service_capability::{Rpc, Type};
    let capability =
        |number: &i32| csi::ControllerServiceCapability { r#type: Some(Type::Rpc(Rpc { r#type: *number })) };
    let capabilities = answers.controller.iter().flatten().map(capability).collect();
    csi::ControllerGetCapabilitiesResponse { capabilities }
}

fn nothing<A: Default>(_: &Answers) -> A {
    A::default()
}

service! { Node:
    node_stage_volume "NodeStageVolume" NodeStageVolumeRequest NodeStageVolumeResponse nothing,
    node_unstage_volume "NodeUnstageVolume" NodeUnstageVolumeRequest NodeUnstageVolumeResponse nothing,
    node_publish_volume "NodePublishVolume" NodePublishVolumeRequest NodePublishVolumeResponse nothing,
    node_unpublish_volume "NodeUnpublishVolume" NodeUnpublishVolumeRequest NodeUnpublishVolumeResponse nothing,
    node_get_volume_stats "NodeGetVolumeStats" NodeGetVolumeStatsRequest NodeGetVolumeStatsResponse nothing,
    node_expand_volume "NodeExpandVolume" NodeExpandVolumeRequest NodeExpandVolumeResponse nothing,
    node_get_capabilities "NodeGetCapabilities" NodeGetCapabilitiesRequest NodeGetCapabilitiesResponse node_capabilities,
    node_get_info "NodeGetInfo" NodeGetInfoRequest NodeGetInfoResponse |answers| answers.node.clone(),
    node_get_volume_health "NodeGetVolumeHealth" NodeGetVolumeHealthRequest NodeGetVolumeHealthResponse nothing,
    node_get_storage_health "NodeGetStorageHealth" NodeGetStorageHealthRequest NodeGetStorageHealthResponse nothing,
}

service! { Controller:
    create_volume "CreateVolume" CreateVolumeRequest CreateVolumeResponse nothing,
    delete_volume "DeleteVolume" DeleteVolumeRequest DeleteVolumeResponse nothing,
    controller_publish_volume "ControllerPublishVolume" ControllerPublishVolumeRequest ControllerPublishVolumeResponse nothing,
    controller_unpublish_volume "ControllerUnpublishVolume" ControllerUnpublishVolumeRequest ControllerUnpublishVolumeResponse nothing,
    validate_volume_capabilities "ValidateVolumeCapabilities" ValidateVolumeCapabilitiesRequest ValidateVolumeCapabilitiesResponse nothing,
    list_volumes "ListVolumes" ListVolumesRequest ListVolumesResponse nothing,
    get_capacity "GetCapacity" GetCapacityRequest GetCapacityResponse nothing,
    controller_get_capabilities "ControllerGetCapabilities" ControllerGetCapabilitiesRequest ControllerGetCapabilitiesResponse controller_capabilities,
    create_snapshot "CreateSnapshot" CreateSnapshotRequest CreateSnapshotResponse nothing,
    delete_snapshot "DeleteSnapshot" DeleteSnapshotRequest DeleteSnapshotResponse nothing,
    list_snapshots "ListSnapshots" ListSnapshotsRequest ListSnapshotsResponse nothing,
    get_snapshot "GetSnapshot" GetSnapshotRequest GetSnapshotResponse nothing,
    controller_expand_volume "ControllerExpandVolume" ControllerExpandVolumeRequest ControllerExpandVolumeResponse nothing,
    controller_get_volume "ControllerGetVolume" ControllerGetVolumeRequest ControllerGetVolumeResponse nothing,
    controller_modify_volume "ControllerModifyVolume" ControllerModifyVolumeRequest ControllerModifyVolumeResponse nothing,
    controller_list_volume_health "ControllerListVolumeHealth" ControllerListVolumeHealthRequest ControllerListVolumeHealthResponse nothing,
    controller_get_volume_health "ControllerGetVolumeHealth" ControllerGetVolumeHealthRequest ControllerGetVolumeHealthResponse nothing,
}
