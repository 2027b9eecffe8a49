//! The sockets, the signals, and the end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{info, warn};

use super::config::registration_socket;
use super::{Config, Driver, OpenError};
use crate::error::Chain;
use crate::host::{self, ListenError, StartError};
use crate::proto::csi::controller_server::ControllerServer;
use crate::proto::csi::group_controller_server::GroupControllerServer;
use crate::proto::csi::identity_server::IdentityServer;
use crate::proto::csi::node_server::NodeServer;
use crate::proto::registration::registration_server::RegistrationServer;

/// How long calls that are under way may go on after SIGTERM.
const LAST_CALLS: Duration = Duration::from_secs(30);

/// How long connections may take to close.
const CLOSE: Duration = Duration::from_secs(2);

/// How the driver ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// It was told to. Whatever is mounted stays.
    Stopped,
    /// A call broke: it has to be started again.
    Broken,
}

/// The driver cannot run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It has no runtime.
    #[error("cannot start")]
    Start(#[source] io::Error),
    /// Its directory cannot be used.
    #[error("cannot use the directory {}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: OpenError,
    },
    /// No socket can be had.
    #[error("cannot listen; --endpoint and --name give a driver sockets of its own")]
    Listen(#[from] ListenError),
    /// It cannot serve any more.
    #[error("cannot serve")]
    Serve(#[source] tonic::transport::Error),
}

/// Runs the driver until SIGTERM or SIGINT. Nothing is unmounted at the end, nor at the beginning.
///
/// # Errors
/// When it cannot begin or go on.
pub fn run(config: &Config) -> Result<Ending, RunError> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(RunError::Start)?;
    let ended = runtime.block_on(serve(config));
    // A thread in the kernel for good must not keep the driver from ending.
    runtime.shutdown_timeout(CLOSE);
    ended
}

async fn serve(config: &Config) -> Result<Ending, RunError> {
    // Before READY: a stop that comes early is one too.
    let mut terminate = signal(SignalKind::terminate()).map_err(RunError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(RunError::Start)?;
    warn_of_private_mounts(config);
    let failed = |source| RunError::Open { path: config.dir.clone(), source };
    let driver = Driver::open(config.clone()).await.map_err(failed)?;
    let stop = CancellationToken::new();
    let calls = Server::builder()
        .add_service(IdentityServer::new(driver.clone()))
        .add_service(ControllerServer::new(driver.clone()))
        .add_service(GroupControllerServer::new(driver.clone()))
        .add_service(NodeServer::new(driver.clone()))
        .serve_with_incoming_shutdown(listen(&config.endpoint).await?, stop.clone().cancelled_owned());
    let registry = config.plugins_registry.as_ref();
    let registration = registry.map(|registry| registration_socket(registry, &config.name));
    // After the driver's own socket: who learns of the driver calls it at once.
    let registering = match &registration {
        Some(path) => Some(listen(path).await?),
        None => None,
    };
    let registering = async {
        let Some(listener) = registering else { return Ok(()) };
        let service = RegistrationServer::new(driver.clone());
        let stopped = stop.clone().cancelled_owned();
        Server::builder().add_service(service).serve_with_incoming_shutdown(listener, stopped).await
    };
    info!(name = %config.name, dir = %config.dir.display(), endpoint = %config.endpoint.display(), "ready");
    notify(&[NotifyState::Ready]);
    let serving = async { tokio::try_join!(calls, registering).map(drop) };
    tokio::pin!(serving);
    // Cancel-safe: signals are kept, and the servers are polled on below.
    let ending = tokio::select! {
        served = &mut serving => {
            served.map_err(RunError::Serve)?;
            Ending::Broken
        }
        () = driver.inner.broken.cancelled() => Ending::Broken,
        _ = terminate.recv() => Ending::Stopped,
        _ = interrupt.recv() => Ending::Stopped,
    };
    notify(&[NotifyState::Stopping]);
    // The registration first: nobody new is to come.
    for path in registration.iter().chain([&config.endpoint]) {
        if let Err(error) = std::fs::remove_file(path) {
            warn!("the socket {} stays: {error}", path.display());
        }
    }
    stop.cancel();
    driver.inner.calls.close();
    if tokio::time::timeout(LAST_CALLS, driver.inner.calls.wait()).await.is_err() {
        warn!("calls that are still under way are given up; the next start puts in order what they leave");
    }
    let _late = tokio::time::timeout(CLOSE, &mut serving).await;
    info!("stopped; mounts stay");
    Ok(ending)
}

/// Says it where what this process mounts reaches nobody else: a pod would find an empty directory in a volume's place, though
/// every call was answered OK.
fn warn_of_private_mounts(config: &Config) {
    /// Where a kubelet or volumed has its pods, unless the registry says it.
    const ROOT: &str = "/var/lib/kubelet";
    let root = config.plugins_registry.as_deref().and_then(Path::parent).unwrap_or(Path::new(ROOT));
    match host::propagates_to_init(root) {
        Ok(()) => {}
        Err(StartError::OtherNamespace { root }) => warn!(
            "neither volumed nor a kubelet sees what this driver mounts below {}: it runs in a mount namespace whose mounts do \
             not reach PID 1's; take the directives out of its unit that give it one (PrivateTmp=, ProtectSystem=, \
             PrivateMounts= and the like), or start it without unshare",
            root.display()
        ),
        Err(error) => warn!("what this driver mounts may not be seen where it is used: {}", Chain(&error)),
    }
}

/// Listens on a socket for root alone.
async fn listen(path: &Path) -> Result<UnixListenerStream, ListenError> {
    host::listen(path, 0o600, None).await.map(UnixListenerStream::new)
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot tell systemd {state:?}: {error}");
    }
}
