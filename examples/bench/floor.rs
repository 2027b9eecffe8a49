//! The floor: what has to be done for a volume whoever does it, and nothing else.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};
use volumed::model::{
    DriverName, Layout, Lifecycle, Plugin, PodUid, PublicationId, SpecName, VOL_DATA, VolData,
};
use volumed::proto::csi::node_client::NodeClient;
use volumed::proto::csi::volume_capability::{AccessMode, AccessType, MountVolume};
use volumed::proto::csi::{
    NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest, NodeUnstageVolumeRequest,
    VolumeCapability,
};

use crate::objects::DRIVER;
use crate::world::{NODE, Pods, World};

/// As many calls at a time as volumed makes to one driver.
pub(crate) const AT_A_TIME: usize = 16;

/// Does by itself what the measured volumed does, beside it and with the same driver.
#[derive(Debug)]
pub(crate) struct Floor {
    calls: NodeClient<Channel>,
    root: PathBuf,
    records: PathBuf,
    /// What a record holds.
    pub(crate) record: Vec<u8>,
}

/// What there is of one volume.
#[derive(Debug, Clone)]
struct Volume {
    handle: String,
    staging: PathBuf,
    publication: PathBuf,
    staging_data: Vec<u8>,
    publication_data: Vec<u8>,
    record: PathBuf,
}

impl Floor {
    /// Connects to the driver, once.
    pub(crate) async fn new(world: &World) -> anyhow::Result<Self> {
        let channel = Endpoint::from_shared(format!("unix:{}", world.driver_socket().display()))?
            .origin(Uri::from_static("http://localhost"))
            .connect()
            .await
            .context("connect to the driver")?;
        let (root, records) = (world.path("floor-root"), world.path("floor-state"));
        fs::create_dir(&root)?;
        fs::create_dir(&records)?;
        Ok(Self { calls: NodeClient::new(channel), root, records, record: Vec::new() })
    }

    /// Brings the volumes of some pods up and down; returns how long each took.
    pub(crate) async fn measure(&self, pods: &Pods) -> anyhow::Result<(Duration, Duration)> {
        let volumes: Result<Arc<[Volume]>, _> = pods.names().map(|name| self.volume(&name)).collect();
        let volumes = volumes?;
        let begun = Instant::now();
        self.each(&volumes, true).await?;
        let up = begun.elapsed();
        let begun = Instant::now();
        self.each(&volumes, false).await?;
        Ok((up, begun.elapsed()))
    }

    fn volume(&self, name: &str) -> anyhow::Result<Volume> {
        let handle = world_handle(name);
        let layout = Layout::new(&self.root);
        let driver = DriverName::new(DRIVER)?;
        let id = PublicationId { pod: PodUid::new(name)?, plugin: Plugin::Csi, spec: SpecName::new(name)? };
        Ok(Volume {
            staging: layout.absolute(&layout.csi_staging(&driver, &handle)),
            publication: layout.absolute(&layout.publication(&id)),
            staging_data: VolData::staging(&driver, &handle).to_bytes(),
            publication_data: VolData::publication(&id, &driver, &handle, NODE, Lifecycle::Persistent)
                .to_bytes(),
            record: self.records.join(name),
            handle,
        })
    }

    async fn each(&self, volumes: &Arc<[Volume]>, up: bool) -> anyhow::Result<()> {
        if let [volume] = &**volumes {
            return self.one(volume, up, false).await;
        }
        let next = Arc::new(AtomicUsize::new(0));
        let mut workers = JoinSet::new();
        for _ in 0..AT_A_TIME {
            let (volumes, next) = (Arc::clone(volumes), Arc::clone(&next));
            let floor = Self {
                calls: self.calls.clone(),
                root: self.root.clone(),
                records: self.records.clone(),
                record: self.record.clone(),
            };
            workers.spawn(async move {
                while let Some(volume) = volumes.get(next.fetch_add(1, Ordering::Relaxed)) {
                    floor.one(volume, up, true).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = workers.join_next().await {
            ended??;
        }
        Ok(())
    }

    async fn one(&self, volume: &Volume, up: bool, beside_others: bool) -> anyhow::Result<()> {
        let mut calls = self.calls.clone();
        if !up {
            calls.node_unpublish_volume(volume.unpublish()).await?;
            calls.node_unstage_volume(volume.unstage()).await?;
        }
        if beside_others {
            // Only so do 16 syncs go on at a time.
            let (volume, record) = (volume.clone(), self.record.clone());
            spawn_blocking(move || if up { volume.make(&record) } else { volume.remove() }).await??;
        } else if up {
            volume.make(&self.record)?;
        } else {
            volume.remove()?;
        }
        if up {
            calls.node_stage_volume(volume.stage()).await?;
            calls.node_publish_volume(volume.publish()).await?;
        }
        Ok(())
    }
}

fn world_handle(name: &str) -> String {
    format!("floor-{name}")
}

impl Volume {
    /// One synced record, the directories, both `vol_data.json`.
    fn make(&self, record: &[u8]) -> io::Result<()> {
        write_record(&self.record, record)?;
        let mut directories = DirBuilder::new();
        directories.recursive(true).mode(0o750);
        directories.create(&self.staging)?;
        fs::write(parent(&self.staging).join(VOL_DATA), &self.staging_data)?;
        directories.create(&self.publication)?;
        fs::write(self.publication.join(VOL_DATA), &self.publication_data)
    }

    /// All of it away; the pod's own directories too.
    fn remove(&self) -> io::Result<()> {
        fs::remove_file(self.publication.join(VOL_DATA))?;
        for directory in self.publication.ancestors().take(4) {
            fs::remove_dir(directory)?;
        }
        fs::remove_dir(&self.staging)?;
        fs::remove_file(parent(&self.staging).join(VOL_DATA))?;
        fs::remove_dir(parent(&self.staging))?;
        fs::remove_file(&self.record)
    }

    fn target(&self) -> String {
        self.publication.join("mount").display().to_string()
    }

    fn stage(&self) -> NodeStageVolumeRequest {
        NodeStageVolumeRequest {
            volume_id: self.handle.clone(),
            staging_target_path: self.staging.display().to_string(),
            volume_capability: Some(capability()),
            ..Default::default()
        }
    }

    fn publish(&self) -> NodePublishVolumeRequest {
        NodePublishVolumeRequest {
            volume_id: self.handle.clone(),
            staging_target_path: self.staging.display().to_string(),
            target_path: self.target(),
            volume_capability: Some(capability()),
            ..Default::default()
        }
    }

    fn unpublish(&self) -> NodeUnpublishVolumeRequest {
        NodeUnpublishVolumeRequest { volume_id: self.handle.clone(), target_path: self.target() }
    }

    fn unstage(&self) -> NodeUnstageVolumeRequest {
        NodeUnstageVolumeRequest {
            volume_id: self.handle.clone(),
            staging_target_path: self.staging.display().to_string(),
        }
    }
}

fn capability() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: 1 }),
    }
}

/// Writes a record that is synced before something is done.
pub(crate) fn write_record(path: &Path, record: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary)?;
    file.write_all(record)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(parent(path))?.sync_all()
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}
