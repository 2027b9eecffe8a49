//! `host::Host` over the simulated world.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::{Mutex, watch};
use volumed::BoxFuture;
use volumed::host::{
    Bind, BlockMap, DeviceUsers, DiskGrowth, DiskMounted, FoundVolume, Holder, Host, HostError, NfsMount,
    Part, Progress, Removal, Seen, Tree, Unmount, Usages,
};
use volumed::model::{
    BootId, DiskIdentity, DiskMount, Formatted, FsGrowth, Inspected, Intent, Millis, MountIdentity,
    MountTable, MountsAt, Ownership, PodUid, RootPath, SpecName, VolData,
};

use super::holders::busy;
use super::world::{Node, ROOT, World};

/// One daemon's view of the host.
#[derive(Debug)]
pub struct SimHost {
    pub(super) world: World,
    boot: BootId,
    seen: Mutex<watch::Receiver<u64>>,
}

impl SimHost {
    pub fn new(world: World) -> Self {
        let seen = Mutex::new(world.mounts_version.subscribe());
        Self { boot: world.boot(), world, seen }
    }
}

fn absolute(path: &RootPath) -> PathBuf {
    Path::new(ROOT).join(path.as_path())
}

fn relative(path: &Path) -> Option<RootPath> {
    RootPath::new(path.strip_prefix(ROOT).ok()?)
}

impl Host for SimHost {
    fn boot(&self) -> BootId {
        self.boot.clone()
    }

    fn mounts(&self) -> BoxFuture<'_, Result<Arc<MountTable>, HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            Ok(Arc::new(self.world.table()))
        })
    }

    fn disks_changed(&self) -> BoxFuture<'_, volumed::host::DiskNews> {
        Box::pin(async move {
            self.world.disk_bell.notified().await;
            volumed::host::DiskNews::Changed
        })
    }

    fn mounts_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            if self.seen.lock().await.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }

    fn create(&self, tree: Tree) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            for directory in &tree.directories {
                let path = absolute(&directory.path);
                if self.world.lock().is_mounted(&path) {
                    return Err(HostError::WrongKind {
                        path,
                        found: "a mount point",
                        expected: "a directory",
                    });
                }
                make(&self.world, &path);
            }
            for (path, content, _mode) in &tree.files {
                self.world.pause().await;
                let path = absolute(path);
                if let Some(parent) = path.parent() {
                    make(&self.world, parent);
                }
                self.world.lock().nodes.insert(path, Node::File(content.clone()));
            }
            Ok(())
        })
    }

    fn look(&self, path: RootPath) -> BoxFuture<'_, Result<Seen, HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            let path = absolute(&path);
            let state = self.world.lock();
            Ok(match state.nodes.get(&path) {
                None => Seen::Absent,
                Some(Node::Directory) if state.has_children(&path) => Seen::Directory,
                Some(Node::Directory) => Seen::EmptyDirectory,
                Some(Node::File(content)) if content.is_empty() => Seen::EmptyFile,
                Some(Node::File(_)) => Seen::Other,
            })
        })
    }

    fn remove(&self, removal: Removal) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            for path in &removal.files {
                self.world.pause().await;
                self.world.lock().nodes.remove(&absolute(path));
            }
            for path in &removal.empty_files {
                self.world.pause().await;
                let path = absolute(path);
                let mut state = self.world.lock();
                let is_empty =
                    matches!(state.nodes.get(&path), Some(Node::File(content)) if content.is_empty());
                if is_empty && !state.is_mounted(&path) {
                    state.nodes.remove(&path);
                }
            }
            for path in &removal.directories {
                self.world.pause().await;
                remove(&self.world, &absolute(path))?;
            }
            for path in &removal.if_empty {
                self.world.pause().await;
                let _kept = remove(&self.world, &absolute(path));
            }
            Ok(())
        })
    }

    fn unmount(
        &self,
        path: RootPath,
        expected: MountIdentity,
        how: Unmount,
    ) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            let path = absolute(&path);
            let table = self.world.table();
            match table.at(&path) {
                MountsAt::None => return Ok(()),
                MountsAt::One(mount) if mount.identity() == expected => {}
                MountsAt::One(_) | MountsAt::Stacked(_) => {
                    return Err(HostError::WrongMount { path, found: "another mount".to_owned() });
                }
            }
            if let Some(holder) = self.world.look_for_holder(&path) {
                return Err(busy(&path, &holder));
            }
            self.world.tell(|| format!("volumed unmounts {}", path.display()));
            if !self.world.lock().is_being_undone(&path) {
                self.world.violation(format!("28: {} is unmounted, and nobody undoes it", path.display()));
            }
            let mut wrong = Vec::new();
            self.world.lock().may_be_touched(&path, &mut wrong);
            self.world.violations(wrong);
            if how == Unmount::Forced && !self.world.lock().is_path_forced(&path) {
                self.world.violation(format!("nobody said to lose what {} has not written", path.display()));
            }
            self.world.unmount(&path);
            self.world.nfs_unmounted(path, &expected, how).await
        })
    }

    fn mount_nfs(&self, mount: NfsMount) -> BoxFuture<'_, Result<(), HostError>> {
        let target = absolute(&mount.target);
        Box::pin(self.world.mount_nfs(mount, target))
    }

    fn bind(&self, bind: Bind) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            let (target, source) = (absolute(&bind.target), bind.source.display().to_string());
            if self.world.fault(3) {
                return Err(failed("show", bind.source));
            }
            match self.world.table().at(&target) {
                MountsAt::None => {}
                MountsAt::One(mount) if mount.source == source => return Ok(()),
                MountsAt::One(mount)
                    if bind.staged
                        && matches!(self.world.table().at(&bind.source), MountsAt::One(staged) if staged.source == mount.source) =>
                {
                    return Ok(());
                }
                MountsAt::One(_) | MountsAt::Stacked(_) => {
                    return Err(HostError::WrongMount { path: target, found: "another mount".to_owned() });
                }
            }
            if !self.world.lock().is_to_be_shown(&target) {
                self.world.violation(format!("5: {} is bound without an intent", target.display()));
            }
            if bind.staged {
                let staged = match self.world.table().at(&bind.source) {
                    MountsAt::One(mount) => mount.clone(),
                    MountsAt::None | MountsAt::Stacked(_) => {
                        let found = "not mounted any more".to_owned();
                        return Err(HostError::WrongMount { path: bind.source, found });
                    }
                };
                self.world.mount_again(&target, &staged);
            } else {
                self.world.mount(&target, &source);
            }
            self.world.pause().await;
            if self.world.fault(3) { Err(failed("show", bind.source)) } else { Ok(()) }
        })
    }

    fn remove_empty_dir(&self, path: RootPath) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            let path = absolute(&path);
            if self.world.is_stuck(&path) {
                return Err(HostError::Busy { path, holder: "a shell".to_owned() });
            }
            let mut state = self.world.lock();
            if state.mounts.iter().any(|mount| mount.point.starts_with(&path)) {
                return Err(HostError::Busy { path, holder: "a mount".to_owned() });
            }
            state.nodes.retain(|node, _| !node.starts_with(&path));
            Ok(())
        })
    }

    fn map_block(&self, map: BlockMap) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            let (point, link) = (absolute(&map.map), absolute(&map.link));
            if let Some(parent) = point.parent() {
                make(&self.world, parent);
            }
            self.world.lock().nodes.insert(point.clone(), Node::File(Vec::new()));
            // The very mount that the driver made, once more.
            let published = absolute(&map.published);
            let source = self
                .world
                .lock()
                .mounts
                .iter()
                .rev()
                .find(|m| m.point == published)
                .map(|m| m.source.clone());
            if source.as_deref().is_some_and(|source| !super::wish::is_block(source)) {
                // Somebody's file system lies where the device is to be: the real host finds no device there.
                return Err(HostError::WrongKind {
                    path: published,
                    found: "a directory",
                    expected: "a block device",
                });
            }
            if !self.world.lock().is_mounted(&point) {
                self.world.mount(&point, &source.unwrap_or_else(|| "device".to_owned()));
            }
            self.world.pause().await;
            if let Some(parent) = link.parent() {
                make(&self.world, parent);
            }
            self.world.lock().nodes.insert(link, Node::File(b"link".to_vec()));
            Ok(())
        })
    }

    fn unmap_block(&self, map: BlockMap, users: DeviceUsers) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            let (point, link) = (absolute(&map.map), absolute(&map.link));
            if users == DeviceUsers::Ignored {
                if !self.world.lock().is_map_forced(&point) {
                    self.world.violation(format!("rule 4: nobody said to take {} from all", point.display()));
                }
            } else if let Some(holder) = self.world.look_for_holder(&point) {
                self.world.tell(|| format!("{} is held", point.display()));
                return Err(busy(&point, &holder));
            }
            self.world.lock().nodes.remove(&link);
            self.world.pause().await;
            if self.world.is_stuck(&point) {
                self.world.tell(|| format!("{} cannot be unmounted, its link is gone", point.display()));
                return Err(failed("unmount", point));
            }
            self.world.unmount(&point);
            self.world.pause().await;
            self.world.lock().nodes.remove(&point);
            Ok(())
        })
    }

    fn collect_locks(&self, _known: BTreeSet<RootPath>) -> BoxFuture<'_, Result<Vec<String>, HostError>> {
        Box::pin(std::future::ready(Ok(Vec::new())))
    }

    fn set_ownership(
        &self,
        _path: RootPath,
        _ownership: Ownership,
        progress: Progress,
    ) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            progress.tell("1 file");
            self.world.pause().await;
            Ok(())
        })
    }

    fn holders(&self, path: RootPath, _driver: Option<u32>) -> BoxFuture<'_, Result<Vec<Holder>, HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            let path = absolute(&path);
            if self.world.fault(2) {
                return Err(failed("look for holders of", path));
            }
            let holder = self.world.look_for_holder(&path);
            if let Some(holder) = &holder {
                self.world.tell(|| format!("{} is held: {holder}", path.display()));
            }
            Ok(holder.into_iter().collect())
        })
    }

    fn dead_mounts(
        &self,
        _points: Vec<PathBuf>,
    ) -> BoxFuture<'_, Result<BTreeMap<PathBuf, String>, HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            Ok(BTreeMap::new())
        })
    }

    fn usage(&self, paths: Vec<PathBuf>) -> BoxFuture<'_, Result<Usages, HostError>> {
        Box::pin(self.world.usage(paths))
    }

    fn read_token(&self, _file: PathBuf) -> BoxFuture<'_, Result<(String, Millis), HostError>> {
        Box::pin(std::future::ready(Ok(("token".to_owned(), 0))))
    }

    fn inspect_disk(&self, device: PathBuf) -> BoxFuture<'_, Result<Inspected, HostError>> {
        Box::pin(async move { self.world.inspect(&device).await })
    }

    fn format_disk(&self, device: PathBuf, intent: Intent) -> BoxFuture<'_, Result<Formatted, HostError>> {
        Box::pin(async move { self.world.format(&device, &intent).await })
    }

    fn mount_disk(
        &self,
        device: PathBuf,
        mount: DiskMount,
        at: RootPath,
    ) -> BoxFuture<'_, Result<DiskMounted, HostError>> {
        Box::pin(async move { self.world.mount_disk(&device, &mount, &at).await })
    }

    fn show_disk(
        &self,
        device: PathBuf,
        identity: DiskIdentity,
        at: RootPath,
    ) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move { self.world.show_disk(&device, &identity, &at).await })
    }

    fn grow_disk(&self, growth: DiskGrowth) -> BoxFuture<'_, Result<FsGrowth, HostError>> {
        Box::pin(async move { self.world.grow_disk(&growth).await })
    }

    fn volumes_on_disk(&self) -> BoxFuture<'_, Result<Vec<FoundVolume>, HostError>> {
        Box::pin(async move {
            self.world.pause().await;
            let state = self.world.lock();
            let mut found = Vec::new();
            for path in state.nodes.keys() {
                let parts: Vec<&str> = path.iter().filter_map(|part| part.to_str()).skip(2).collect();
                let publication = match parts.as_slice() {
                    ["pods", pod, "volumes", plugin, spec] => Some((
                        PodUid::new(*pod).expect("the simulation makes good names"),
                        (*plugin).to_owned(),
                        SpecName::new(*spec).expect("the simulation makes good names"),
                    )),
                    ["plugins", "kubernetes.io", "csi", driver, _] if *driver != "volumeDevices" => None,
                    _ => continue,
                };
                let vol_data = match state.nodes.get(&path.join("vol_data.json")) {
                    Some(Node::File(bytes)) => VolData::parse(bytes),
                    Some(Node::Directory) | None => None,
                };
                let empty = !state
                    .nodes
                    .range::<PathBuf, _>(path..)
                    .take_while(|(other, _)| other.starts_with(path))
                    .any(|(_, node)| matches!(node, Node::File(_)));
                let path = relative(path).expect("it is below the root");
                let part = if publication.is_some() { Part::Volume } else { Part::Staging };
                found.push(FoundVolume { part, path, publication, vol_data, empty });
            }
            Ok(found)
        })
    }
}

fn failed(doing: &'static str, path: PathBuf) -> HostError {
    HostError::Io { doing, path, source: std::io::ErrorKind::Other.into() }
}

fn make(world: &World, path: &Path) {
    let mut state = world.lock();
    for ancestor in path.ancestors().filter(|ancestor| ancestor.starts_with(ROOT)) {
        state.nodes.entry(ancestor.to_owned()).or_insert(Node::Directory);
    }
}

fn remove(world: &World, path: &Path) -> Result<(), HostError> {
    let mut state = world.lock();
    if !state.nodes.contains_key(path) {
        return Ok(());
    }
    if state.is_mounted(path) {
        // A mount of this moment is as good as one of the next.
        let is_seen = state.mounts.iter().any(|mount| mount.point == path && state.is_old(mount.id));
        drop(state);
        if is_seen {
            world.violation(format!("rmdir of the mount point {}", path.display()));
        }
        return Err(HostError::NotEmpty { path: path.to_owned() });
    }
    if state.has_children(path) {
        return Err(HostError::NotEmpty { path: path.to_owned() });
    }
    let mut wrong = Vec::new();
    state.may_be_touched(path, &mut wrong);
    state.nodes.remove(path);
    drop(state);
    world.violations(wrong);
    Ok(())
}
