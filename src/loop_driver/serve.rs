//! The sockets, the signals, and the end.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tracing::{info, warn};

use super::{Config, Driver, OpenError};
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
    /// Its socket is another's.
    #[error("somebody answers on {}; give this driver another --endpoint or --name", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is where the socket is to be.
    #[error("{} is there and is no socket", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// No socket can be had.
    #[error("cannot {doing} the socket {}", path.display())]
    Socket {
        /// "bind", ...
        doing: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
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
    let registration = registry.map(|registry| registry.join(format!("{}-reg.sock", config.name)));
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

/// Listens on a socket for root alone. A stale one is replaced; one on which somebody answers is not.
async fn listen(path: &Path) -> Result<UnixListenerStream, RunError> {
    let failed = |doing| move |source: io::Error| RunError::Socket { doing, path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(RunError::NotASocket { path: path.to_owned() });
        }
        Ok(_socket) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed("remove the stale"))?;
            }
            Err(error) => return Err(failed("ask who listens on")(error)),
            Ok(_answers) => return Err(RunError::InUse { path: path.to_owned() }),
        },
    }
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    // The umask has kept others from connecting until here.
    let mode = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(path, mode).map_err(failed("set the mode of"))?;
    Ok(UnixListenerStream::new(listener))
}

fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!("cannot tell systemd {state:?}: {error}");
    }
}
