//! One connection to one process behind a unix socket, checked before a byte is sent and known to be over when it is.
//!
//! tonic's own connector would connect again by itself, to whoever listens then. Here a channel has exactly one connection:
//! a call after its end fails at once and was not sent, and a new process is a new connection that is checked again (design
//! rule 9). The end is told by dropping the stream, which hyper does when it reads the end of it.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::codegen::Service;
use tonic::codegen::http::Uri;
use tonic::transport::{Channel, Endpoint};

/// The longest socket path, in bytes: the kernel takes 107, drivers less (csi.md 1.3).
pub(super) const LONGEST_PATH: usize = 104;

/// A connection.
#[derive(Debug)]
pub(super) struct Connection {
    /// What is called.
    pub(super) channel: Channel,
    /// The process that began to listen on the socket, as the kernel knows it: a supervisor's where that made the socket.
    pub(super) pid: Option<u32>,
    /// Cancelled when the connection is over.
    pub(super) closed: CancellationToken,
    /// The socket it was made to.
    pub(super) socket: SocketId,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("the socket path {} is longer than {LONGEST_PATH} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("cannot look at {}", path.display())]
    Look { path: PathBuf, source: io::Error },
    #[error("{} is not a socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("{} belongs to user {owner}, and only root's sockets are trusted", path.display())]
    Owner { path: PathBuf, owner: u32 },
    #[error("{} is in a directory that other users can write to", path.display())]
    Directory { path: PathBuf },
    #[error("cannot connect to {}", path.display())]
    Connect { path: PathBuf, source: io::Error },
    #[error("{} is served by a process of user {user}, and only root's are trusted", path.display())]
    Peer { path: PathBuf, user: u32 },
    #[error("cannot speak HTTP/2 at {}", path.display())]
    Handshake { path: PathBuf, source: tonic::transport::Error },
}

impl DialError {
    /// Returns whether nothing helps before the socket, its owner or its directory changes, which inotify tells.
    pub(super) fn stands(&self) -> bool {
        match self {
            Self::TooLong { .. }
            | Self::NotASocket { .. }
            | Self::Owner { .. }
            | Self::Directory { .. }
            | Self::Peer { .. } => true,
            Self::Look { source, .. } | Self::Connect { source, .. } => {
                source.kind() == io::ErrorKind::NotFound
            }
            Self::Handshake { .. } => false,
        }
    }

    /// Returns whether nobody is there who could be asked, which may change at any moment.
    pub(super) fn is_absence(&self) -> bool {
        match self {
            Self::Look { source, .. } => source.kind() == io::ErrorKind::NotFound,
            Self::Connect { .. } | Self::Handshake { .. } => true,
            Self::TooLong { .. }
            | Self::NotASocket { .. }
            | Self::Owner { .. }
            | Self::Directory { .. }
            | Self::Peer { .. } => false,
        }
    }

    /// Returns whether nobody accepts at the moment: between bind and listen, or with a full queue.
    fn is_early(&self) -> bool {
        matches!(self, Self::Connect { source, .. }
            if matches!(source.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::WouldBlock))
    }
}

/// Which socket file it is. A path that is bound again is another socket, also where the inode number is used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SocketId {
    device: u64,
    inode: u64,
    owner: u32,
    /// Time of birth, or of the last change where the file system keeps none.
    born: (i64, i64),
}

impl SocketId {
    /// Returns which file this is the metadata of.
    pub(super) fn new(file: &std::fs::Metadata) -> Self {
        let born = file.created().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        let born =
            born.and_then(|at| Some((i64::try_from(at.as_secs()).ok()?, i64::from(at.subsec_nanos()))));
        Self {
            device: file.dev(),
            inode: file.ino(),
            owner: file.uid(),
            born: born.unwrap_or((file.ctime(), file.ctime_nsec())),
        }
    }

    /// Returns which socket is at `path` now; `None` when it cannot be looked at.
    pub(super) async fn at(path: &Path) -> Option<Self> {
        tokio::fs::metadata(path).await.ok().map(|file| Self::new(&file))
    }
}

/// Connects to the socket at `path`, which must be served by root or by `uid`, within `limit`.
///
/// Nobody listening yet is tried again until the limit; any other error ends it at once.
pub(super) async fn dial(path: &Path, uid: u32, limit: Duration) -> Result<Connection, DialError> {
    let until = tokio::time::Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        match dial_once(path, uid).await {
            Err(error) if error.is_early() && tokio::time::Instant::now() + pause < until => {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(500));
            }
            result => return result,
        }
    }
}

/// Connects once, without waiting for a listener.
pub(super) async fn dial_once(path: &Path, uid: u32) -> Result<Connection, DialError> {
    let socket = trusted(path, uid).await?;
    let at = || path.to_owned();
    let stream =
        UnixStream::connect(path).await.map_err(|source| DialError::Connect { path: at(), source })?;
    let peer = stream.peer_cred().map_err(|source| DialError::Connect { path: at(), source })?;
    if peer.uid() != 0 && peer.uid() != uid {
        return Err(DialError::Peer { path: at(), user: peer.uid() });
    }
    // 0: a process of a pid namespace that is not ours. Who made the socket listen need not be the driver: with a systemd
    // socket it is PID 1, from whom everybody descends.
    let others = [0, 1, std::os::unix::process::parent_id()];
    let pid = peer.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| !others.contains(pid));
    let closed = CancellationToken::new();
    let stream = Watched { stream, _ended: closed.clone().drop_guard() };
    let connector = Once(Some(TokioIo::new(stream)));
    // The authority a kubelet sends: some servers refuse a socket's path there (csi.md 1.3).
    let channel = Endpoint::from_static("http://localhost")
        .connect_with_connector(connector)
        .await
        .map_err(|source| DialError::Handshake { path: at(), source })?;
    Ok(Connection { channel, pid, closed, socket })
}

/// Checks who owns the socket and who could replace it.
async fn trusted(path: &Path, uid: u32) -> Result<SocketId, DialError> {
    let at = || path.to_owned();
    if path.as_os_str().len() > LONGEST_PATH {
        return Err(DialError::TooLong { path: at() });
    }
    let look = |source| DialError::Look { path: at(), source };
    let file = tokio::fs::metadata(path).await.map_err(look)?;
    if !file.file_type().is_socket() {
        return Err(DialError::NotASocket { path: at() });
    }
    if file.uid() != 0 && file.uid() != uid {
        return Err(DialError::Owner { path: at(), owner: file.uid() });
    }
    let directory = tokio::fs::metadata(path.parent().unwrap_or(Path::new("/"))).await.map_err(look)?;
    if directory.mode() & 0o002 != 0 {
        return Err(DialError::Directory { path: at() });
    }
    Ok(SocketId::new(&file))
}

/// Says why a channel does not connect a second time.
#[derive(Debug, thiserror::Error)]
#[error("the connection to the driver has ended")]
pub(super) struct Ended;

/// Gives out its stream once; tonic asks again when the connection is over.
struct Once(Option<TokioIo<Watched>>);

impl Service<Uri> for Once {
    type Response = TokioIo<Watched>;
    type Error = Ended;
    type Future = std::future::Ready<Result<TokioIo<Watched>, Ended>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        std::future::ready(self.0.take().ok_or(Ended))
    }
}

/// A stream that tells when it is dropped.
#[derive(Debug)]
struct Watched {
    stream: UnixStream,
    _ended: DropGuard,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
