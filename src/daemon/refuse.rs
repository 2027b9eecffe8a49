//! Where volumed does not start, and says why.

use std::io;
use std::path::{Path, PathBuf};

use tokio::net::UnixStream;
use tracing::warn;

use crate::host::{self, Lock};

/// Why volumed refuses to run here.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It could not mount anything.
    #[error("volumed has to run as root: it mounts, and it checks who calls it")]
    NotRoot,
    /// Two would undo each other's work.
    #[error(
        "a kubelet serves {}: {} answers; stop the kubelet, or give volumed another --root-dir",
        root.display(), socket.display()
    )]
    Kubelet {
        /// The root directory.
        root: PathBuf,
        /// The kubelet's socket.
        socket: PathBuf,
    },
    /// The mount namespace does not do, or another instance is at work.
    #[error(transparent)]
    Place(#[from] host::StartError),
}

/// Keeps other instances away for as long as it lives.
#[derive(Debug)]
pub(super) struct Locks {
    _root: Lock,
    _state: Lock,
}

pub(super) fn not_root() -> Result<(), Refusal> {
    if host::is_root() { Ok(()) } else { Err(Refusal::NotRoot) }
}

/// Checks the mount namespace, the root directory and the state directory, and locks the latter two.
pub(super) async fn unsafe_places(
    root: &Path,
    state_dir: &Path,
    allow_private_mounts: bool,
) -> Result<Locks, Refusal> {
    match host::propagates_to_init(root) {
        Err(refusal) if allow_private_mounts => {
            warn!("goes on because of --allow-private-mounts: {refusal}");
        }
        propagates => propagates?,
    }
    let socket = root.join("pod-resources/kubelet.sock");
    match UnixStream::connect(&socket).await {
        Ok(_answers) => return Err(Refusal::Kubelet { root: root.to_owned(), socket }),
        // A full backlog: somebody has it open, though it is slow to answer.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(Refusal::Kubelet { root: root.to_owned(), socket });
        }
        Err(_nobody) => {}
    }
    Ok(Locks { _root: host::lock_root(root)?, _state: host::lock_state(state_dir)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_live_kubelet_is_refused_and_the_socket_of_a_dead_one_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let (root, state) = (directory.path().join("root"), directory.path().join("state"));
        std::fs::create_dir_all(root.join("pod-resources")).unwrap();
        std::fs::create_dir(&state).unwrap();
        let listener = tokio::net::UnixListener::bind(root.join("pod-resources/kubelet.sock")).unwrap();
        let refused = unsafe_places(&root, &state, true).await.unwrap_err();
        assert!(refused.to_string().starts_with("a kubelet serves"), "{refused}");
        drop(listener);
        let locks = unsafe_places(&root, &state, true).await.unwrap();
        let second = unsafe_places(&root, &state, true).await.unwrap_err();
        assert!(second.to_string().contains("another volumed"), "{second}");
        drop(locks);
    }
}
