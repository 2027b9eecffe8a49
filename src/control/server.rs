//! Serves the control API.

use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request as Call, Response, Status as Refusal};

use super::names::ObjectName;
use super::peer::{Access, Caller, Policy};
use super::views::{self, Scene};
use super::wait::{self, Ending, Goal};
use super::{Approved, Request};
use crate::model::{Ambient, HealthMap, Status};
use crate::proto::control as api;
use crate::proto::control::control_server::{Control, ControlServer};

/// More names than this in one call are a mistake.
pub(super) const MAX_OBJECTS: usize = 10_000;

/// What the server works with.
#[derive(Debug, Clone)]
pub struct Server {
    /// What reconcile publishes.
    pub status: watch::Receiver<Status>,
    /// How full and how well volumes are.
    pub health: watch::Receiver<Arc<HealthMap>>,
    /// Where changes are asked for.
    pub requests: mpsc::Sender<Request>,
    /// Who may call.
    pub policy: watch::Receiver<Policy>,
    /// This node's name.
    pub node: String,
    /// The clock.
    pub ambient: Arc<Ambient>,
    /// Ends waiting calls, and the server.
    pub stop: CancellationToken,
}

/// The control API cannot be served any more.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve the control socket")]
pub struct ServeError {
    source: tonic::transport::Error,
}

impl Server {
    /// Answers calls until it is told to stop.
    ///
    /// # Errors
    /// When the socket cannot be accepted on any more.
    pub async fn serve(self, listener: UnixListener) -> Result<(), ServeError> {
        let stop = self.stop.clone();
        tonic::transport::Server::builder()
            .add_service(ControlServer::new(self))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stop.cancelled_owned())
            .await
            .map_err(|source| ServeError { source })
    }

    async fn allow<T>(&self, call: &Call<T>, access: Access) -> Result<(), Refusal> {
        let policy = *self.policy.borrow();
        let decided = match Caller::of(call) {
            Ok(caller) if policy.is_plain(caller) => policy.allow(caller, access),
            Ok(caller) => tokio::task::spawn_blocking(move || policy.allow(caller, access))
                .await
                .map_err(|_gone| stopping())?,
            Err(unknown) => Err(unknown),
        };
        decided.map_err(|refused| Refusal::permission_denied(refused.to_string()))
    }

    fn scene<'a>(&'a self, health: &'a HealthMap) -> Scene<'a> {
        Scene { node: &self.node, now: self.ambient.now(), health }
    }

    pub(super) async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<T>) -> Request,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_closed| stopping())?;
        answer.await.map_err(|_closed| stopping())
    }
}

#[tonic::async_trait]
impl Control for Server {
    async fn get_status(
        &self,
        call: Call<api::GetStatusRequest>,
    ) -> Result<Response<api::GetStatusResponse>, Refusal> {
        self.allow(&call, Access::Read).await?;
        let objects = parse(&call.get_ref().objects)?;
        let health = Arc::clone(&self.health.borrow());
        let (status, scene) = (self.status.borrow(), self.scene(&health));
        Ok(Response::new(if objects.is_empty() {
            views::status(&status, scene)
        } else {
            views::status_of(&status, scene, &objects)
        }))
    }

    async fn wait(&self, call: Call<api::WaitRequest>) -> Result<Response<api::WaitResponse>, Refusal> {
        self.allow(&call, Access::Read).await?;
        let api::WaitRequest { objects, goal, timeout_ms } = call.into_inner();
        let objects = parse(&objects)?;
        let goal = Goal::from_name(&goal).ok_or_else(|| {
            Refusal::invalid_argument(format!("{goal:?} is not waited for: published or released"))
        })?;
        // A deadline beyond what the clock can say is none.
        let deadline = timeout_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
        let status = self.status.clone();
        let endings = wait::until(status, &self.requests, &self.stop, &objects, goal, deadline)
            .await
            .map_err(|error| Refusal::unavailable(error.to_string()))?;
        let health = Arc::clone(&self.health.borrow());
        let (status, scene) = (self.status.borrow(), self.scene(&health));
        let results = objects.iter().zip(endings).map(|(object, ending)| {
            let why = views::rows_of(&status, object).map(|row| views::volume(&status, row, scene));
            let volumes = if ending == Ending::Reached { Vec::new() } else { why.collect() };
            api::WaitResult { object: object.to_string(), outcome: ending.name().to_owned(), volumes }
        });
        Ok(Response::new(api::WaitResponse { now_ms: self.ambient.now(), results: results.collect() }))
    }

    async fn list_drivers(
        &self,
        call: Call<api::ListDriversRequest>,
    ) -> Result<Response<api::ListDriversResponse>, Refusal> {
        self.allow(&call, Access::Read).await?;
        Ok(Response::new(views::drivers(&self.status.borrow(), self.ambient.now())))
    }

    async fn retry(&self, call: Call<api::RetryRequest>) -> Result<Response<api::RetryResponse>, Refusal> {
        self.allow(&call, Access::Change).await?;
        let objects = parse(&call.get_ref().objects)?;
        if objects.is_empty() {
            let steps = self.ask(|reply| Request::Retry { object: None, reply }).await?;
            return Ok(Response::new(api::RetryResponse { steps: count(steps), unknown: Vec::new() }));
        }
        let (mut steps, mut unknown) = (0, Vec::new());
        for object in objects {
            if !views::is_known(&self.status.borrow(), &object) {
                unknown.push(object.to_string());
                continue;
            }
            let object = Some(object.object());
            steps += self.ask(|reply| Request::Retry { object, reply }).await?;
        }
        Ok(Response::new(api::RetryResponse { steps: count(steps), unknown }))
    }

    async fn approve(
        &self,
        call: Call<api::ApproveRequest>,
    ) -> Result<Response<api::ApproveResponse>, Refusal> {
        self.allow(&call, Access::Change).await?;
        let Approved { publications, generation } =
            self.ask(|reply| Request::Approve { reply }).await?.map_err(Refusal::internal)?;
        Ok(Response::new(api::ApproveResponse { approved: count(publications), generation }))
    }

    async fn pause(&self, call: Call<api::PauseRequest>) -> Result<Response<api::PauseResponse>, Refusal> {
        self.allow(&call, Access::Change).await?;
        self.do_pause(call.into_inner()).await.map(Response::new)
    }

    async fn resume(&self, call: Call<api::ResumeRequest>) -> Result<Response<api::ResumeResponse>, Refusal> {
        self.allow(&call, Access::Change).await?;
        self.do_resume(call.into_inner()).await.map(Response::new)
    }

    async fn adopt(&self, call: Call<api::AdoptRequest>) -> Result<Response<api::AdoptResponse>, Refusal> {
        self.allow(&call, Access::Change).await?;
        self.do_adopt(call.into_inner()).await.map(Response::new)
    }

    async fn release(
        &self,
        call: Call<api::ReleaseRequest>,
    ) -> Result<Response<api::ReleaseResponse>, Refusal> {
        self.allow(&call, Access::Change).await?;
        self.do_release(call.into_inner()).await.map(Response::new)
    }

    async fn accept_identity(
        &self,
        call: Call<api::AcceptIdentityRequest>,
    ) -> Result<Response<api::AcceptIdentityResponse>, Refusal> {
        self.allow(&call, Access::Change).await?;
        self.do_accept_identity(call.into_inner()).await.map(Response::new)
    }
}

fn parse(names: &[String]) -> Result<Vec<ObjectName>, Refusal> {
    if names.len() > MAX_OBJECTS {
        return Err(Refusal::invalid_argument(format!("more than {MAX_OBJECTS} names in one call")));
    }
    let parsed: Result<_, _> = names.iter().map(|name| name.parse()).collect();
    parsed.map_err(|bad: super::names::BadName| Refusal::invalid_argument(bad.to_string()))
}

fn stopping() -> Refusal {
    Refusal::unavailable("volumed is stopping")
}

pub(super) fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
