//! The control socket: systemd's, or our own.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use crate::host;

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
    /// Another volumed answers there.
    #[error("another volumed listens on {}; give this one its own --socket", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there and is no socket; remove it, or give another --socket", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot {doing} the control socket {}", path.display())]
    Io {
        /// "bind", "remove the stale", ...
        doing: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
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
    let failed = |doing| move |source: io::Error| SocketError::Io { doing, path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_socket) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed("remove the stale"))?;
            }
            Err(error) => return Err(failed("ask who listens on")(error)),
            Ok(_answers) => return Err(SocketError::InUse { path: path.to_owned() }),
        },
    }
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    // Until here only root can connect: the umask takes the others' write permission away.
    if let Some(group) = group {
        host::set_group(path, group).map_err(failed("set the group of"))?;
    }
    let mode = std::fs::Permissions::from_mode(0o660);
    std::fs::set_permissions(path, mode).map_err(failed("set the mode of"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/control.sock");
        let first = control(&path, None).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o660);
        let second = control(&path, None).await;
        assert!(matches!(second, Err(SocketError::InUse { .. })), "{second:?}");
        drop(first);
        control(&path, None).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let refused = control(&path, None).await;
        assert!(matches!(refused, Err(SocketError::NotASocket { .. })), "{refused:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }
}
