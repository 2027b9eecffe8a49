//! Unix sockets to serve on: a stale one is replaced, a live one is its owner's.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixStream};

use super::set_group;

/// No socket can be had.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody answers there.
    #[error("somebody listens on {}", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{} is there and is no socket", path.display())]
    NotASocket {
        /// What is there.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("cannot {doing} the socket {}", path.display())]
    Io {
        /// "bind", "remove the stale", ...
        doing: &'static str,
        /// The socket.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Listens on a socket with this mode, of this group if one is given; its directory is made where it is missing. A stale socket
/// is removed only if nobody answers on it.
///
/// # Errors
/// Nothing of others is removed.
pub async fn listen(path: &Path, mode: u32, group: Option<u32>) -> Result<UnixListener, ListenError> {
    let failed = |doing| move |source: io::Error| ListenError::Io { doing, path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed("make the directory of"))?;
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
        Ok(there) if !there.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        Ok(_socket) => match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(failed("remove the stale"))?;
            }
            Err(error) => return Err(failed("ask who listens on")(error)),
            Ok(_answers) => return Err(ListenError::InUse { path: path.to_owned() }),
        },
    }
    let listener = UnixListener::bind(path).map_err(failed("bind"))?;
    // Until here only root can connect: the umask takes the others' write permission away.
    if let Some(group) = group {
        set_group(path, group).map_err(failed("set the group of"))?;
    }
    let mode = std::fs::Permissions::from_mode(mode);
    std::fs::set_permissions(path, mode).map_err(failed("set the mode of"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/some.sock");
        let first = listen(&path, 0o640, None).await.unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        let second = listen(&path, 0o600, None).await;
        assert!(matches!(&second, Err(ListenError::InUse { path: told }) if *told == path), "{second:?}");
        drop(first);
        listen(&path, 0o600, None).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_no_socket_is_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        std::fs::write(&path, "data").unwrap();
        let refused = listen(&path, 0o600, None).await;
        assert!(matches!(refused, Err(ListenError::NotASocket { .. })), "{refused:?}");
        assert_eq!(std::fs::read(&path).unwrap(), b"data");
    }

    #[tokio::test]
    async fn what_the_kernel_refuses_is_told_with_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s".repeat(200));
        let refused = listen(&path, 0o600, None).await.unwrap_err();
        assert_eq!(refused.to_string(), format!("cannot bind the socket {}", path.display()));
    }
}
