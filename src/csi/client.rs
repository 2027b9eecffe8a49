//! The calls of one driver process, over the one connection to it.

use std::error::Error as _;
use std::time::Duration;

use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::connection::Ended;
use super::text::{Secrets, clean};
use super::{CallError, Code, Driver};
use crate::BoxFuture;
use crate::proto::csi;
use crate::proto::csi::controller_client::ControllerClient;
use crate::proto::csi::identity_client::IdentityClient;
use crate::proto::csi::node_client::NodeClient;

/// A driver process and the one connection to it. When that ends, every further call is UNAVAILABLE and not sent; the
/// registry offers a new client for the next process.
#[derive(Debug, Clone)]
pub struct Client {
    channel: Channel,
    deadline: Duration,
    pid: Option<u32>,
}

impl Client {
    /// Takes a connection, how long each call may take, and the process at its other end.
    pub(super) fn new(channel: Channel, deadline: Duration, pid: Option<u32>) -> Self {
        Self { channel, deadline, pid }
    }

    /// `GetPluginInfo`
    pub(super) async fn plugin_info(&self) -> Result<csi::GetPluginInfoResponse, CallError> {
        let ask =
            |channel, request| async move { IdentityClient::new(channel).get_plugin_info(request).await };
        self.call("GetPluginInfo", csi::GetPluginInfoRequest {}, Secrets::default(), ask).await
    }

    /// `GetPluginCapabilities`
    pub(super) async fn plugin_capabilities(&self) -> Result<csi::GetPluginCapabilitiesResponse, CallError> {
        let ask = |channel, request| async move {
            IdentityClient::new(channel).get_plugin_capabilities(request).await
        };
        self.call("GetPluginCapabilities", csi::GetPluginCapabilitiesRequest {}, Secrets::default(), ask)
            .await
    }

    /// `Probe`, which has a deadline of its own.
    pub(super) async fn probe(&self, deadline: Duration) -> Result<csi::ProbeResponse, CallError> {
        let mut identity = IdentityClient::new(self.channel.clone());
        let ask = |request| async move { identity.probe(request).await };
        call("Probe", deadline, &Secrets::default(), csi::ProbeRequest {}, ask).await
    }

    /// `NodeGetInfo`
    pub(super) async fn node_info(&self) -> Result<csi::NodeGetInfoResponse, CallError> {
        let ask = |channel, request| async move { NodeClient::new(channel).node_get_info(request).await };
        self.call("NodeGetInfo", csi::NodeGetInfoRequest {}, Secrets::default(), ask).await
    }

    /// `NodeGetCapabilities`
    pub(super) async fn node_capabilities(&self) -> Result<csi::NodeGetCapabilitiesResponse, CallError> {
        let ask =
            |channel, request| async move { NodeClient::new(channel).node_get_capabilities(request).await };
        self.call("NodeGetCapabilities", csi::NodeGetCapabilitiesRequest {}, Secrets::default(), ask).await
    }

    /// `ControllerGetCapabilities`: only of a driver with CONTROLLER_SERVICE (csi.md 2.4).
    pub(super) async fn controller_capabilities(
        &self,
    ) -> Result<csi::ControllerGetCapabilitiesResponse, CallError> {
        let ask = |channel, request| async move {
            ControllerClient::new(channel).controller_get_capabilities(request).await
        };
        self.call(
            "ControllerGetCapabilities",
            csi::ControllerGetCapabilitiesRequest {},
            Secrets::default(),
            ask,
        )
        .await
    }

    /// Sends a request and waits for its answer until the deadline.
    async fn call<R, A, F>(
        &self,
        method: &'static str,
        message: R,
        secrets: Secrets,
        send: impl FnOnce(Channel, Request<R>) -> F,
    ) -> Result<A, CallError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        call(method, self.deadline, &secrets, message, |request| send(self.channel.clone(), request)).await
    }
}

impl Driver for Client {
    fn deadline(&self) -> Duration {
        self.deadline
    }

    fn stage(&self, request: csi::NodeStageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        let secrets = Secrets::of(&request.secrets).with_mount_flags(request.volume_capability.as_ref());
        let send =
            |channel, request| async move { NodeClient::new(channel).node_stage_volume(request).await };
        Box::pin(async move { self.call("NodeStageVolume", request, secrets, send).await.map(drop) })
    }

    fn unstage(&self, request: csi::NodeUnstageVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        let send =
            |channel, request| async move { NodeClient::new(channel).node_unstage_volume(request).await };
        Box::pin(
            async move { self.call("NodeUnstageVolume", request, Secrets::default(), send).await.map(drop) },
        )
    }

    fn publish(&self, request: csi::NodePublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        let secrets = Secrets::of(&request.secrets)
            .with_mount_flags(request.volume_capability.as_ref())
            .with_tokens(&request.volume_context);
        let send =
            |channel, request| async move { NodeClient::new(channel).node_publish_volume(request).await };
        Box::pin(async move { self.call("NodePublishVolume", request, secrets, send).await.map(drop) })
    }

    fn unpublish(&self, request: csi::NodeUnpublishVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        let send =
            |channel, request| async move { NodeClient::new(channel).node_unpublish_volume(request).await };
        Box::pin(async move {
            self.call("NodeUnpublishVolume", request, Secrets::default(), send).await.map(drop)
        })
    }

    fn expand(&self, request: csi::NodeExpandVolumeRequest) -> BoxFuture<'_, Result<(), CallError>> {
        let secrets = Secrets::of(&request.secrets).with_mount_flags(request.volume_capability.as_ref());
        let send =
            |channel, request| async move { NodeClient::new(channel).node_expand_volume(request).await };
        Box::pin(async move { self.call("NodeExpandVolume", request, secrets, send).await.map(drop) })
    }

    fn volume_stats(
        &self,
        request: csi::NodeGetVolumeStatsRequest,
    ) -> BoxFuture<'_, Result<csi::NodeGetVolumeStatsResponse, CallError>> {
        let send =
            |channel, request| async move { NodeClient::new(channel).node_get_volume_stats(request).await };
        Box::pin(async move { self.call("NodeGetVolumeStats", request, Secrets::default(), send).await })
    }

    fn volume_health(
        &self,
        request: csi::NodeGetVolumeHealthRequest,
    ) -> BoxFuture<'_, Result<csi::NodeGetVolumeHealthResponse, CallError>> {
        let send =
            |channel, request| async move { NodeClient::new(channel).node_get_volume_health(request).await };
        Box::pin(async move { self.call("NodeGetVolumeHealth", request, Secrets::default(), send).await })
    }

    fn pid(&self) -> Option<u32> {
        self.pid
    }
}

/// Sends a message with a deadline, which travels with it as `grpc-timeout`, and gives up when it is over.
pub(super) async fn call<R, A, F>(
    method: &'static str,
    deadline: Duration,
    secrets: &Secrets,
    message: R,
    send: impl FnOnce(Request<R>) -> F,
) -> Result<A, CallError>
where
    F: Future<Output = Result<Response<A>, Status>>,
{
    let mut request = Request::new(message);
    request.set_timeout(deadline);
    match tokio::time::timeout(deadline, send(request)).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(call_error(method, &status, deadline, secrets)),
        Err(_) => Err(too_late(method, deadline)),
    }
}

fn too_late(method: &'static str, deadline: Duration) -> CallError {
    let message = format!("no answer within {deadline:?}");
    CallError { method, code: Code::DEADLINE_EXCEEDED, message, sent: true }
}

/// Tells the driver's own answers from what the transport made up: only the former have a code that means something.
pub(super) fn call_error(
    method: &'static str,
    status: &Status,
    deadline: Duration,
    secrets: &Secrets,
) -> CallError {
    let mut causes = Vec::new();
    let mut next = status.source();
    while let Some(cause) = next {
        if cause.is::<tonic::TimeoutExpired>() {
            return too_late(method, deadline);
        }
        if cause.is::<Ended>() || cause.is::<tonic::ConnectError>() {
            let message = Ended.to_string();
            return CallError { method, code: Code::UNAVAILABLE, message, sent: false };
        }
        causes.push(cause.to_string());
        next = cause.source();
    }
    if !causes.is_empty() {
        let message = clean(&format!("the connection failed: {}", causes.join(": ")), secrets);
        return CallError { method, code: Code::UNAVAILABLE, message, sent: true };
    }
    // An answer that is too large, cut off or no message was an OK: what it did is done, so it must not count as final.
    let unreadable = [
        "Error, decoded message length too large",
        "failed to decode Protobuf message",
        "protocol error",
        "Missing response message",
        "Unexpected EOF decoding stream",
    ];
    let code = if unreadable.iter().any(|text| status.message().starts_with(text)) {
        Code::UNAVAILABLE
    } else {
        Code(i32::from(status.code()))
    };
    CallError { method, code, message: clean(status.message(), secrets), sent: true }
}
