//! Asks a volumed.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Request};

use super::wait::Goal;
use crate::proto::control as api;
use crate::proto::control::control_client::ControlClient;

/// How long an answer that needs no waiting may take.
const ANSWER: Duration = Duration::from_secs(30);

/// The same, where disks are looked at first.
const LOOK: Duration = Duration::from_secs(180);
/// How long a restart of volumed may take in the middle of a wait.
const RESTART: Duration = Duration::from_secs(60);
/// Between two looks whether it is back.
const AGAIN: Duration = Duration::from_millis(100);
/// Ten thousand volumes with their histories.
const LONGEST_ANSWER: usize = 64 << 20;

/// A connection to one volumed.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    calls: ControlClient<Channel>,
}

/// No answer, or a refusal.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("volumed does not listen on {}; is it running (systemctl status volumed)?", socket.display())]
    NotRunning {
        /// Where it was looked for.
        socket: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The socket's file mode forbids it.
    #[error(
        "not allowed to connect to {}: run volumectl as root, or as a member of the group that `group` \
         in volumed.toml names",
        socket.display()
    )]
    NotAllowed {
        /// The socket.
        socket: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The path cannot be used as an address.
    #[error("{} cannot be used as a socket's address", socket.display())]
    BadSocket {
        /// As given.
        socket: PathBuf,
        /// Why.
        source: tonic::transport::Error,
    },
    /// The connection broke, or something else than volumed listens.
    #[error("volumed on {} does not answer: {message}", socket.display())]
    NoAnswer {
        /// The socket.
        socket: PathBuf,
        /// What is known of it.
        message: String,
    },
    /// volumed answered that it does not do it.
    #[error("{message}")]
    Refused {
        /// volumed's words.
        message: String,
    },
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there or the caller may not connect.
    pub async fn connect(socket: &Path) -> Result<Self, ClientError> {
        let owned = || socket.to_owned();
        // tonic connects when the first call is made; this look gives the kernel's own reason now.
        if let Err(source) = UnixStream::connect(socket).await {
            return Err(match source.kind() {
                io::ErrorKind::PermissionDenied => ClientError::NotAllowed { socket: owned(), source },
                _ => ClientError::NotRunning { socket: owned(), source },
            });
        }
        let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .map_err(|source| ClientError::BadSocket { socket: owned(), source })?
            // gRPC servers may refuse a socket's path as :authority.
            .origin(Uri::from_static("http://localhost"))
            .connect_lazy();
        let calls = ControlClient::new(channel).max_decoding_message_size(LONGEST_ANSWER);
        Ok(Self { socket: owned(), calls })
    }

    /// Asks for the status of some objects, or of everything.
    ///
    /// # Errors
    /// When volumed does not answer or refuses.
    pub async fn status(&mut self, objects: Vec<String>) -> Result<api::GetStatusResponse, ClientError> {
        let answer = self.calls.get_status(timed(api::GetStatusRequest { objects }, ANSWER)).await;
        answer.map(tonic::Response::into_inner).map_err(|refusal| self.error(&refusal))
    }

    /// Waits for some objects; a restart of volumed meanwhile only takes its time.
    ///
    /// # Errors
    /// When volumed does not answer or refuses, or is gone for a minute.
    pub async fn wait(
        &mut self,
        objects: Vec<String>,
        goal: Goal,
        timeout: Option<Duration>,
    ) -> Result<api::WaitResponse, ClientError> {
        let begun = Instant::now();
        let mut gone_since: Option<Instant> = None;
        loop {
            let left = timeout.map(|timeout| timeout.saturating_sub(begun.elapsed()));
            let timeout_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX));
            let question =
                api::WaitRequest { objects: objects.clone(), goal: goal.name().to_owned(), timeout_ms };
            let call = match left {
                // The answer says why it took too long; only a daemon that hangs is given up here.
                Some(left) => timed(question, left.saturating_add(ANSWER)),
                None => Request::new(question),
            };
            let asked = Instant::now();
            let refusal = match self.calls.wait(call).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(refusal) => refusal,
            };
            if asked.elapsed() > AGAIN * 10 {
                gone_since = None;
            }
            let gone_for = gone_since.get_or_insert_with(Instant::now).elapsed();
            let in_time = left.is_none_or(|left| !left.is_zero());
            if refusal.code() != Code::Unavailable || gone_for > RESTART || !in_time {
                return Err(self.error(&refusal));
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Asks for the drivers.
    ///
    /// # Errors
    /// When volumed does not answer or refuses.
    pub async fn drivers(&mut self) -> Result<api::ListDriversResponse, ClientError> {
        let answer = self.calls.list_drivers(timed(api::ListDriversRequest {}, ANSWER)).await;
        answer.map(tonic::Response::into_inner).map_err(|refusal| self.error(&refusal))
    }

    /// Has blocked steps tried again at once.
    ///
    /// # Errors
    /// When volumed does not answer or refuses.
    pub async fn retry(&mut self, objects: Vec<String>) -> Result<api::RetryResponse, ClientError> {
        let answer = self.calls.retry(timed(api::RetryRequest { objects }, ANSWER)).await;
        answer.map(tonic::Response::into_inner).map_err(|refusal| self.error(&refusal))
    }

    /// Approves what is held back.
    ///
    /// # Errors
    /// When volumed does not answer, refuses, or could not write it down.
    pub async fn approve(&mut self) -> Result<api::ApproveResponse, ClientError> {
        let answer = self.calls.approve(timed(api::ApproveRequest {}, ANSWER)).await;
        answer.map(tonic::Response::into_inner).map_err(|refusal| self.error(&refusal))
    }

    /// Pauses volumes.
    ///
    /// # Errors
    /// When volumed does not answer, refuses, or could not write it down.
    pub async fn pause(&mut self, scopes: Vec<String>, all: bool) -> Result<api::PauseResponse, ClientError> {
        let answer = self.calls.pause(timed(api::PauseRequest { scopes, all }, ANSWER)).await;
        answer.map(tonic::Response::into_inner).map_err(|refusal| self.error(&refusal))
    }

    /// Takes pauses back.
    ///
    /// # Errors
    /// When volumed does not answer, refuses, or could not write it down.
    pub async fn resume(
        &mut self,
        scopes: Vec<String>,
        all: bool,
    ) -> Result<api::ResumeResponse, ClientError> {
        let answer = self.calls.resume(timed(api::ResumeRequest { scopes, all }, ANSWER)).await;
        answer.map(tonic::Response::into_inner).map_err(|refusal| self.error(&refusal))
    }

    /// Makes a foreign volume volumed's own.
    ///
    /// # Errors
    /// When volumed does not answer or refuses; the reason says what was done.
    pub async fn adopt(&mut self, path: String) -> Result<api::AdoptResponse, ClientError> {
        let answer = self.calls.adopt(timed(api::AdoptRequest { path }, ANSWER)).await;
        answer.map(tonic::Response::into_inner).map_err(|refusal| self.error(&refusal))
    }

    /// Has taken down what is kept though nobody wants it.
    ///
    /// # Errors
    /// When volumed does not answer or refuses; the reason says what was done.
    pub async fn release(&mut self, what: String, force: bool) -> Result<api::ReleaseResponse, ClientError> {
        let answer = self.calls.release(timed(api::ReleaseRequest { what, force }, ANSWER)).await;
        answer.map(tonic::Response::into_inner).map_err(|refusal| self.error(&refusal))
    }

    /// Lets the disks that are there now be those of a pod's or claim's volumes. Looking at a disk takes its time.
    ///
    /// # Errors
    /// When volumed does not answer or refuses; the reason says what was done.
    pub async fn accept_identity(
        &mut self,
        object: String,
    ) -> Result<api::AcceptIdentityResponse, ClientError> {
        let asked = timed(api::AcceptIdentityRequest { object }, LOOK);
        let answer = self.calls.accept_identity(asked).await;
        answer.map(tonic::Response::into_inner).map_err(|refusal| self.error(&refusal))
    }

    fn error(&self, refusal: &tonic::Status) -> ClientError {
        let message = refusal.message().to_owned();
        match refusal.code() {
            Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition | Code::Internal => {
                ClientError::Refused { message }
            }
            _ => ClientError::NoAnswer { socket: self.socket.clone(), message },
        }
    }
}

fn timed<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    request
}
