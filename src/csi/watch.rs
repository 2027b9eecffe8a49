//! Sockets that appear, go and are replaced, told by inotify. An event is only a reason to look again (dependencies.md 7).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use inotify::{EventMask, EventStream, Inotify, WatchMask, Watches};
use tokio_stream::StreamExt as _;

use super::connection::SocketId;

/// Room for about a hundred events; what does not fit is read the next time.
type Buffer = Vec<u8>;
const BUFFER: usize = 8192;
/// How long to wait where the kernel gives no watch (out of instances, no such directory).
const BLIND: Duration = Duration::from_secs(1);
/// Deeper directories below `plugins_registry` are not looked at.
const DEPTH: usize = 16;

/// A registration socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    /// Which socket file it is.
    pub(super) id: SocketId,
    /// When it was made (its ctime), seconds and nanoseconds: the newest instance of a driver is used.
    pub(super) made: (i64, i64),
}

impl Found {
    fn new(file: &Metadata) -> Self {
        Self { id: SocketId::new(file), made: (file.ctime(), file.ctime_nsec()) }
    }
}

/// The registration sockets below a directory.
pub(super) struct Registrations {
    root: PathBuf,
    stream: Option<EventStream<Buffer>>,
    /// Something happened since the last look.
    stale: bool,
}

impl Registrations {
    /// Takes the directory; it is made when it is not there.
    pub(super) fn new(root: PathBuf) -> Self {
        Self { root, stream: None, stale: true }
    }

    /// Waits for a change and returns all sockets there are; at once the first time.
    ///
    /// Cancel safe: a change that was noticed and not yet looked at is looked at by the next call.
    pub(super) async fn next(&mut self) -> BTreeMap<PathBuf, Found> {
        loop {
            if !self.stale {
                self.event().await;
                self.stale = true;
            }
            match self.look().await {
                Ok(found) => {
                    self.stale = false;
                    return found;
                }
                Err(error) => {
                    tracing::warn!(directory = %self.root.display(), %error, "cannot watch for drivers");
                    self.stream = None;
                    tokio::time::sleep(BLIND).await;
                }
            }
        }
    }

    /// Waits for an event that is a reason to look.
    async fn event(&mut self) {
        let Some(stream) = &mut self.stream else { return };
        match stream.next().await {
            Some(Ok(event)) => {
                // The root itself is gone or moved, or events were lost: begin anew.
                if event.mask.intersects(
                    EventMask::Q_OVERFLOW
                        | EventMask::IGNORED
                        | EventMask::DELETE_SELF
                        | EventMask::MOVE_SELF,
                ) {
                    self.stream = None;
                }
            }
            Some(Err(_)) | None => self.stream = None,
        }
    }

    async fn look(&mut self) -> io::Result<BTreeMap<PathBuf, Found>> {
        let stream = match self.stream.take() {
            Some(stream) => stream,
            None => Inotify::init()?.into_event_stream(vec![0; BUFFER])?,
        };
        let watches = stream.watches();
        self.stream = Some(stream);
        let root = self.root.clone();
        tokio::task::spawn_blocking(move || {
            DirBuilder::new().mode(0o755).recursive(true).create(&root)?;
            let mut found = BTreeMap::new();
            scan(&root, watches, &mut found)?;
            Ok(found)
        })
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

/// Watches, then lists, each directory; what appears meanwhile makes an event.
fn scan(root: &Path, mut watches: Watches, found: &mut BTreeMap<PathBuf, Found>) -> io::Result<()> {
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR
        | WatchMask::DONT_FOLLOW;
    let mut directories = vec![(root.to_owned(), 0)];
    while let Some((directory, depth)) = directories.pop() {
        let listed = watches.add(&directory, mask).and_then(|_| std::fs::read_dir(&directory));
        let entries = match listed {
            Ok(entries) => entries,
            // A directory below may go while we look; its going is an event.
            Err(_) if depth > 0 => continue,
            Err(error) => return Err(error),
        };
        for entry in entries {
            let Ok(entry) = entry else { continue };
            // The registrar makes its socket under another name first in some versions; a kubelet skips these too.
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let Ok(file) = entry.metadata() else { continue };
            if file.is_dir() && depth < DEPTH {
                directories.push((entry.path(), depth + 1));
            } else if file.file_type().is_socket() {
                found.insert(entry.path(), Found::new(&file));
            }
        }
    }
    Ok(())
}

/// Waits for changes of one path that need not exist: the socket of a driver.
pub(super) struct PathWatch {
    path: PathBuf,
    names: BTreeSet<std::ffi::OsString>,
    /// The watch, and whether it is on the path's own directory or only on one above it.
    stream: Option<(EventStream<Buffer>, bool)>,
}

impl PathWatch {
    /// Watches the directory of the path, or the nearest one above it that exists.
    pub(super) fn new(path: &Path) -> Self {
        let names = path.iter().map(ToOwned::to_owned).collect();
        let mut watch = Self { path: path.to_owned(), names, stream: None };
        watch.arm();
        watch
    }

    fn arm(&mut self) {
        self.stream = Inotify::init()
            .and_then(|inotify| {
                let own = nearest(&self.path, &mut inotify.watches())?;
                Ok((inotify.into_event_stream(vec![0; BUFFER])?, own))
            })
            .ok();
    }

    /// Waits until something of this name was made, removed, moved or given another owner or mode. May return without a reason, but not often.
    pub(super) async fn changed(&mut self) {
        loop {
            let Some((stream, own)) = &mut self.stream else {
                tokio::time::sleep(BLIND).await;
                self.arm();
                return;
            };
            let own = *own;
            match stream.next().await {
                Some(Ok(event)) => {
                    if event.name.as_ref().is_some_and(|name| !self.names.contains(name)) {
                        continue;
                    }
                    // A directory came or went: watch the nearest one again.
                    if !own || event.name.is_none() {
                        self.arm();
                    }
                    return;
                }
                Some(Err(_)) | None => {
                    self.stream = None;
                    return;
                }
            }
        }
    }
}

/// Adds a watch on the nearest directory above `path` that exists; returns whether it is the path's own.
fn nearest(path: &Path, watches: &mut Watches) -> io::Result<bool> {
    let mask = WatchMask::CREATE
        | WatchMask::DELETE
        | WatchMask::MOVED_TO
        | WatchMask::MOVED_FROM
        | WatchMask::ATTRIB
        | WatchMask::DELETE_SELF
        | WatchMask::MOVE_SELF
        | WatchMask::ONLYDIR;
    let directories: Vec<&Path> = path.ancestors().skip(1).collect();
    // Watch first, then look again whether a nearer one was made meanwhile.
    let mut last = None;
    loop {
        let mut now = None;
        for (steps, directory) in directories.iter().enumerate() {
            match watches.add(directory, mask) {
                Ok(_) => {
                    now = Some(steps);
                    break;
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        match now {
            None => return Err(io::ErrorKind::NotFound.into()),
            Some(steps) if steps == 0 || last == now => return Ok(steps == 0),
            Some(_) => last = now,
        }
    }
}
