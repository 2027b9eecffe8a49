//! The control socket: systemd's, or our own.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

use crate::host::{self, ListenError};

/// The name of the socket in `volumed.socket` (FileDescriptorName=).
const NAME: &str = "control";

/// A listening control socket.
#[derive(Debug)]
pub(super) struct ControlSocket {
    pub(super) listener: UnixListener,
    /// Where it was bound by us, to be removed at the end.
    pub(super) bound: Option<PathBuf>,
}

/// No control socket can be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// None can be bound.
    #[error("cannot listen for volumectl; --socket gives a volumed a socket of its own")]
    Listen(#[from] ListenError),
    /// systemd passed something that cannot be used.
    #[error("the socket that systemd passed as `control` cannot be used")]
    Passed {
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Takes the socket that systemd passed, or binds one: 0660, root and the group. A stale socket is removed only if nobody
/// answers on it.
///
/// # Errors
/// When there is none to be had; nothing of others is removed.
pub(super) async fn control(path: &Path, group: Option<u32>) -> Result<ControlSocket, SocketError> {
    if let Some(listener) = passed().map_err(|source| SocketError::Passed { source })? {
        return Ok(ControlSocket { listener, bound: None });
    }
    let listener = host::listen(path, 0o660, group).await?;
    Ok(ControlSocket { listener, bound: Some(path.to_owned()) })
}

fn passed() -> io::Result<Option<UnixListener>> {
    let Some((fd, _)) = sd_notify::listen_fds_with_names()?.find(|(_, name)| name == NAME) else {
        return Ok(None);
    };
    let listener = std::os::unix::net::UnixListener::from(host::inherited(fd)?);
    listener.set_nonblocking(true)?;
    UnixListener::from_std(listener).map(Some)
}
