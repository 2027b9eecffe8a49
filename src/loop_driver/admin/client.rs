//! The calls.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Response, Status};

use super::manifest::{PersistentVolume, quantity};
use super::{AdminError, Content, Created, Deleted, NewVolume, Resized, Snapshot, Source, Volume, names};
use crate::loop_driver::{BACKING, EPHEMERAL};
use crate::proto::csi;
use crate::proto::csi::controller_client::ControllerClient;
use crate::proto::csi::identity_client::IdentityClient;
use crate::proto::csi::volume_capability::access_mode::Mode;
use crate::proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use crate::proto::csi::volume_content_source::{SnapshotSource, Type, VolumeSource};

/// How long an answer that only looks may take.
const LOOK: Duration = Duration::from_secs(30);
/// How long making, copying or deleting may take: a copy reads and writes the whole volume where the host has no reflinks.
const WORK: Duration = Duration::from_secs(60 * 60);
/// How much of a list is asked for at once.
const PAGE: i32 = 100;

/// What a volume is kept in.
const DIRECTORY: &str = "directory";
const IMAGE: &str = "image";

/// A connection to one driver.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    channel: Channel,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there or the caller may not connect.
    pub async fn connect(socket: &Path) -> Result<Self, AdminError> {
        let owned = || socket.to_owned();
        // tonic connects when the first call is made; this look gives the kernel's own reason now.
        if let Err(source) = UnixStream::connect(socket).await {
            return Err(match source.kind() {
                io::ErrorKind::PermissionDenied => AdminError::NotAllowed { socket: owned(), source },
                _ => AdminError::NotRunning { socket: owned(), source },
            });
        }
        let channel = Endpoint::from_shared(format!("unix:{}", socket.display()))
            .map_err(|source| AdminError::BadSocket { socket: owned(), source })?
            .origin(Uri::from_static("http://localhost"))
            .connect_lazy();
        Ok(Self { socket: owned(), channel })
    }

    /// Makes a volume, or finds it made, and returns its PersistentVolume.
    ///
    /// # Errors
    /// When the driver does not answer or refuses.
    pub async fn create(&self, wish: NewVolume) -> Result<Created, AdminError> {
        let what = format!("create the volume {}", wish.name);
        let request = csi::GetPluginInfoRequest {};
        let info = self.identity().get_plugin_info(timed(request, LOOK)).await;
        let driver = self.answer(&what, info)?.name;
        let content = match wish.content {
            Content::FileSystem(None)
                if wish.source.is_none() && wish.backing.as_deref() != Some(DIRECTORY) =>
            {
                Content::FileSystem(Some("ext4".to_owned()))
            }
            content => content,
        };
        let bytes = match (wish.bytes, &wish.source) {
            (None, Some(source)) => Some(self.bytes_of_source(&what, source).await?),
            (said, _) => said,
        };
        let request = csi::CreateVolumeRequest {
            name: wish.name.clone(),
            capacity_range: bytes.map(required),
            volume_capabilities: vec![capability(&content)],
            parameters: [("allocation", wish.allocation), (BACKING, wish.backing)]
                .into_iter()
                .filter_map(|(key, value)| Some((key.to_owned(), value?)))
                .collect(),
            volume_content_source: wish.source.map(content_source),
            ..Default::default()
        };
        let created = self.controller().create_volume(timed(request, WORK)).await;
        let volume = self.answer(&what, created)?.volume;
        let volume =
            volume.ok_or_else(|| AdminError::Incomplete { what: what.clone(), missing: "volume" })?;
        let content = match content {
            // It has the host's, which nobody needs to know.
            Content::FileSystem(None) if volume.volume_context.contains_key(BACKING) => content,
            Content::FileSystem(None) => {
                Content::FileSystem(self.file_system(&what, &volume.volume_id).await?)
            }
            known => known,
        };
        let bytes = u64::try_from(volume.capacity_bytes).unwrap_or(0);
        let topology: Vec<_> = volume.accessible_topology.into_iter().map(|place| place.segments).collect();
        let manifest = PersistentVolume {
            driver: &driver,
            name: &wish.name,
            handle: &volume.volume_id,
            bytes,
            content: &content,
            attributes: &volume.volume_context,
            topology: &topology,
        };
        let other = wish.bytes.filter(|wanted| *wanted != bytes);
        let note =
            |wanted| format!("the volume {} has {}, not {}", wish.name, quantity(bytes), quantity(wanted));
        Ok(Created { manifest: manifest.object(), note: other.map(note) })
    }

    async fn bytes_of_source(&self, what: &str, source: &Source) -> Result<u64, AdminError> {
        match source {
            Source::Volume(handle) => self.bytes_of(what, handle).await,
            Source::Snapshot(handle) => Ok(self.snapshot_of(what, handle).await?.capacity_bytes),
        }
    }

    /// Finds out which file system a copied volume has: the one that the driver would use it with.
    async fn file_system(&self, what: &str, handle: &str) -> Result<Option<String>, AdminError> {
        for fs_type in names::file_systems() {
            let request = csi::ValidateVolumeCapabilitiesRequest {
                volume_id: handle.to_owned(),
                volume_capabilities: vec![capability(&Content::FileSystem(Some(fs_type.to_owned())))],
                ..Default::default()
            };
            let answer = self.controller().validate_volume_capabilities(timed(request, LOOK)).await;
            if self.answer(what, answer)?.confirmed.is_some() {
                return Ok(Some(fs_type.to_owned()));
            }
        }
        Ok(None)
    }

    /// Lists the volumes.
    ///
    /// # Errors
    /// When the driver does not answer or refuses.
    pub async fn volumes(&self) -> Result<Vec<Volume>, AdminError> {
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            let request = csi::ListVolumesRequest { max_entries: PAGE, starting_token: token };
            let answer = self.controller().list_volumes(timed(request, LOOK)).await;
            let page = self.answer("list the volumes", answer)?;
            all.extend(page.entries.into_iter().filter_map(listed));
            token = page.next_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// When the driver does not answer or refuses, or the volume is larger.
    pub async fn resize(&self, handle: &str, bytes: u64) -> Result<Resized, AdminError> {
        let what = format!("resize the volume {handle}");
        let has = self.bytes_of(&what, handle).await?;
        if bytes < has {
            let (has, wanted) = (quantity(has), quantity(bytes));
            return Err(AdminError::Shrink { volume: handle.to_owned(), has, wanted });
        }
        let request = csi::ControllerExpandVolumeRequest {
            volume_id: handle.to_owned(),
            capacity_range: Some(required(bytes)),
            ..Default::default()
        };
        let answer = self.controller().controller_expand_volume(timed(request, WORK)).await;
        let answer = self.answer(&what, answer)?;
        Ok(Resized {
            handle: handle.to_owned(),
            capacity_bytes: u64::try_from(answer.capacity_bytes).unwrap_or(0),
            node_expansion_required: answer.node_expansion_required,
        })
    }

    async fn bytes_of(&self, what: &str, handle: &str) -> Result<u64, AdminError> {
        let request = csi::ControllerGetVolumeRequest { volume_id: handle.to_owned() };
        let answer = self.controller().controller_get_volume(timed(request, LOOK)).await;
        let volume = self.answer(what, answer)?.volume;
        let missing = || AdminError::Incomplete { what: what.to_owned(), missing: "volume" };
        Ok(u64::try_from(volume.ok_or_else(missing)?.capacity_bytes).unwrap_or(0))
    }

    /// Deletes a volume and all that is in it.
    ///
    /// # Errors
    /// When the driver does not answer or refuses, or there is no such volume.
    pub async fn delete(&self, handle: &str) -> Result<Deleted, AdminError> {
        let what = format!("delete the volume {handle}");
        let known = self.bytes_of(&what, handle).await;
        // Also what nobody may use any more: a deletion that broke off is finished.
        let request = csi::DeleteVolumeRequest { volume_id: handle.to_owned(), ..Default::default() };
        let answer = self.controller().delete_volume(timed(request, WORK)).await;
        self.answer(&what, answer)?;
        known.map(|_bytes| Deleted { handle: handle.to_owned() })
    }

    /// Takes a snapshot of a volume, or finds it taken.
    ///
    /// # Errors
    /// When the driver does not answer or refuses.
    pub async fn snapshot(&self, volume: &str, name: &str) -> Result<Snapshot, AdminError> {
        let what = format!("take the snapshot {name} of the volume {volume}");
        let request = csi::CreateSnapshotRequest {
            source_volume_id: volume.to_owned(),
            name: name.to_owned(),
            ..Default::default()
        };
        let answer = self.controller().create_snapshot(timed(request, WORK)).await;
        let taken = self.answer(&what, answer)?.snapshot;
        taken.map(shown).ok_or(AdminError::Incomplete { what, missing: "snapshot" })
    }

    /// Lists the snapshots.
    ///
    /// # Errors
    /// When the driver does not answer or refuses.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, AdminError> {
        self.snapshots_of("list the snapshots", "").await
    }

    /// Deletes a snapshot; volumes that were made from it stay.
    ///
    /// # Errors
    /// When the driver does not answer or refuses, or there is no such snapshot.
    pub async fn delete_snapshot(&self, handle: &str) -> Result<Deleted, AdminError> {
        let what = format!("delete the snapshot {handle}");
        let known = self.snapshot_of(&what, handle).await;
        let request = csi::DeleteSnapshotRequest { snapshot_id: handle.to_owned(), ..Default::default() };
        let answer = self.controller().delete_snapshot(timed(request, WORK)).await;
        self.answer(&what, answer)?;
        known.map(|_snapshot| Deleted { handle: handle.to_owned() })
    }

    async fn snapshot_of(&self, what: &str, handle: &str) -> Result<Snapshot, AdminError> {
        let found = self.snapshots_of(what, handle).await?.into_iter().next();
        let message = format!("there is no snapshot {handle}");
        found.ok_or_else(|| AdminError::Unknown { what: what.to_owned(), message })
    }

    /// Lists the snapshots with a handle; empty: all.
    async fn snapshots_of(&self, what: &str, handle: &str) -> Result<Vec<Snapshot>, AdminError> {
        let mut all = Vec::new();
        let mut token = String::new();
        loop {
            let request = csi::ListSnapshotsRequest {
                max_entries: PAGE,
                starting_token: token,
                snapshot_id: handle.to_owned(),
                ..Default::default()
            };
            let answer = self.controller().list_snapshots(timed(request, LOOK)).await;
            let page = self.answer(what, answer)?;
            all.extend(page.entries.into_iter().filter_map(|entry| entry.snapshot).map(shown));
            token = page.next_token;
            if token.is_empty() {
                return Ok(all);
            }
        }
    }

    fn identity(&self) -> IdentityClient<Channel> {
        IdentityClient::new(self.channel.clone())
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    fn answer<T>(&self, what: &str, answer: Result<Response<T>, Status>) -> Result<T, AdminError> {
        answer.map(Response::into_inner).map_err(|status| AdminError::of(what, &self.socket, &status))
    }
}

fn timed<T>(message: T, within: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(within);
    request
}

fn required(bytes: u64) -> csi::CapacityRange {
    csi::CapacityRange { required_bytes: i64::try_from(bytes).unwrap_or(i64::MAX), limit_bytes: 0 }
}

/// ReadWriteOnce, as a driver with SINGLE_NODE_MULTI_WRITER is told it (csi.md 3).
fn capability(content: &Content) -> csi::VolumeCapability {
    let access = match content {
        Content::Block => AccessType::Block(BlockVolume {}),
        Content::FileSystem(fs_type) => AccessType::Mount(MountVolume {
            fs_type: fs_type.clone().unwrap_or_default(),
            ..Default::default()
        }),
    };
    csi::VolumeCapability {
        access_type: Some(access),
        access_mode: Some(AccessMode { mode: i32::from(Mode::SingleNodeMultiWriter) }),
    }
}

fn content_source(source: Source) -> csi::VolumeContentSource {
    let source = match source {
        Source::Volume(volume_id) => Type::Volume(VolumeSource { volume_id }),
        Source::Snapshot(snapshot_id) => Type::Snapshot(SnapshotSource { snapshot_id }),
    };
    csi::VolumeContentSource { r#type: Some(source) }
}

fn listed(entry: csi::list_volumes_response::Entry) -> Option<Volume> {
    let volume = entry.volume?;
    let condition = entry.status.and_then(|status| status.volume_condition);
    let source = volume.content_source.and_then(|source| source.r#type).map(|source| match source {
        Type::Volume(volume) => Source::Volume(volume.volume_id),
        Type::Snapshot(snapshot) => Source::Snapshot(snapshot.snapshot_id),
    });
    Some(Volume {
        backing: volume.volume_context.get(BACKING).cloned().unwrap_or_else(|| IMAGE.to_owned()),
        ephemeral: volume.volume_context.get(EPHEMERAL).is_some_and(|value| value == "true"),
        handle: volume.volume_id,
        capacity_bytes: u64::try_from(volume.capacity_bytes).unwrap_or(0),
        source,
        abnormal: condition.as_ref().is_some_and(|condition| condition.abnormal),
        condition: condition.map(|condition| condition.message).unwrap_or_default(),
    })
}

fn shown(snapshot: csi::Snapshot) -> Snapshot {
    let at = snapshot.creation_time.unwrap_or_default();
    let at = jiff::Timestamp::new(at.seconds, at.nanos).unwrap_or_default();
    Snapshot {
        handle: snapshot.snapshot_id,
        volume: snapshot.source_volume_id,
        capacity_bytes: u64::try_from(snapshot.size_bytes).unwrap_or(0),
        created: at.to_string(),
    }
}
