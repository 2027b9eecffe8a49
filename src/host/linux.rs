//! The real host: one root directory, the mount table of the namespace that volumed runs in.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::bind::Refusal;
use super::block::Blocks;
use super::child::{Children, Place};
use super::disk::{DiskGrowth, DiskMounted};
use super::exec::Tools;
use super::mount_table::{Shared, Watch};
use super::path::Root;
use super::pool::Pool;
use super::uevents::Uevents;
use super::unmounter::Unmounters;
use super::wanted::Waits;
use super::{
    Bind, BlockMap, DeviceUsers, Directory, DiskNews, FoundVolume, Holder, Host, HostError, NfsMount,
    Progress, Removal, Seen, Tree, Unmount, Usages, empty_dir, loops, lun, on_disk, startup, token, unmount,
    users,
};
use crate::BoxFuture;
use crate::model::{
    BootId, DiskIdentity, DiskMount, Formatted, FsGrowth, Inspected, Intent, Millis, MountIdentity,
    MountTable, MountsAt, Ownership, RootPath, has_server,
};

/// How long a call on a local file system may take (design 5, "Deadlines").
const LIMIT: Duration = Duration::from_secs(30);

/// How long one removal of an emptyDir may take; what is left then is removed by the next try.
pub(super) const EMPTY_DIR_LIMIT: Duration = Duration::from_secs(110);

/// The root's own directories (kubelet.md 3).
const OF_THE_ROOT: [&str; 3] = ["pods", "plugins", "plugins_registry"];

/// The kernel below one root directory.
#[derive(Debug)]
pub struct Linux {
    root: Arc<Root>,
    boot: BootId,
    table: Shared,
    watch: Watch,
    local: Pool,
    children: Pool,
    network: Pool,
    unmounters: Arc<Unmounters>,
    looks: users::Looks,
    blocks: Blocks,
    programs: Children,
    /// What is connected and disconnected one after the other.
    targets: lun::Targets,
    /// Where the tools for disks are looked for.
    tools_in: Vec<PathBuf>,
    /// `None`: they cannot be heard.
    uevents: Option<Uevents>,
}

impl Linux {
    /// Makes the root directory and its own directories where they are missing, and opens them. To be called in a tokio
    /// runtime.
    ///
    /// # Errors
    /// `Io`, naming the root: also for a kernel older than 5.12. Directories made so far stay.
    pub fn open(root: &Path) -> Result<Self, HostError> {
        const BOOT: &str = "/proc/sys/kernel/random/boot_id";
        let boot = std::fs::read_to_string(BOOT).map_err(|source| HostError::Io {
            doing: "read",
            path: BOOT.into(),
            source,
        })?;
        Self::with_boot(root, BootId(boot.trim().to_owned()))
    }

    /// As `open`, but takes this for the present boot: tests reboot with it.
    ///
    /// # Errors
    /// As `open`.
    pub fn with_boot(root: &Path, boot: BootId) -> Result<Self, HostError> {
        let failed = |doing| move |source: io::Error| HostError::Io { doing, path: root.to_owned(), source };
        startup::check_kernel().map_err(failed("use the root directory"))?;
        let table = Shared::open()?;
        let watch = table.watch().map_err(failed("watch the mount table for"))?;
        let root = Root::open(root)?;
        let directories = OF_THE_ROOT.into_iter().filter_map(RootPath::new);
        let tree = Tree {
            directories: directories.map(|path| Directory { path, mode: 0o750, exact: false }).collect(),
            files: Vec::new(),
        };
        root.create(&tree)?;
        let root = Arc::new(root);
        let unmounters = Arc::new(Unmounters::new());
        let blocks = Blocks {
            root: Arc::clone(&root),
            table: table.clone(),
            unmounters: Arc::clone(&unmounters),
            at_work: Arc::default(),
        };
        Ok(Self {
            looks: users::Looks::new(root.path().to_owned()),
            root,
            boot,
            table,
            watch,
            local: Pool::new(),
            children: Pool::new(),
            network: Pool::new(),
            unmounters,
            blocks,
            programs: Children::new(),
            targets: lun::Targets::default(),
            tools_in: Tools::usual_directories(),
            uevents: match Uevents::open() {
                Ok(uevents) => Some(uevents),
                Err(e) => {
                    tracing::warn!(
                        "the kernel's words about disks cannot be heard, so no file system grows with its disk at once: {e}"
                    );
                    None
                }
            },
        })
    }

    /// Starts this program for what is done in child processes: a test's own `/proc/self/exe` is not volumed.
    #[must_use]
    pub fn with_child_program(mut self, program: PathBuf) -> Self {
        self.unmounters.set_program(program.clone());
        self.programs = self.programs.with_program(program);
        self
    }

    /// Looks for blkid, mkfs and the other tools for disks in these directories only.
    #[must_use]
    pub fn with_tools_in(mut self, directories: Vec<PathBuf>) -> Self {
        self.tools_in = directories;
        self
    }

    pub(super) fn tools_in(&self) -> &[PathBuf] {
        &self.tools_in
    }

    pub(super) fn targets(&self) -> &lun::Targets {
        &self.targets
    }

    pub(super) fn programs(&self) -> &Children {
        &self.programs
    }

    /// Returns the root directory: absolute and without symlinks, as the mount table shows it.
    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// Runs work on the root directory in the pool for local calls.
    async fn local<T: Send + 'static>(
        &self,
        doing: &'static str,
        path: PathBuf,
        work: impl FnOnce(&Root) -> Result<T, HostError> + Send + 'static,
    ) -> Result<T, HostError> {
        let root = Arc::clone(&self.root);
        self.local.run(doing, &path, LIMIT, move || work(&root)).await
    }
}

impl Host for Linux {
    fn boot(&self) -> BootId {
        self.boot.clone()
    }

    fn mounts(&self) -> BoxFuture<'_, Result<Arc<MountTable>, HostError>> {
        Box::pin(self.table.look())
    }

    fn mounts_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.watch.changed())
    }

    fn disks_changed(&self) -> BoxFuture<'_, DiskNews> {
        Box::pin(async {
            match &self.uevents {
                Some(uevents) => uevents.disks_changed().await,
                None => std::future::pending().await,
            }
        })
    }

    fn create(&self, tree: Tree) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            let first =
                tree.directories.first().map(|d| &d.path).or(tree.files.first().map(|(path, ..)| path));
            let Some(first) = first.map(|path| self.root.absolute(path)) else { return Ok(()) };
            self.local("make", first, move |root| root.create(&tree)).await
        })
    }

    fn look(&self, path: RootPath) -> BoxFuture<'_, Result<Seen, HostError>> {
        let absolute = self.root.absolute(&path);
        Box::pin(self.local("look at", absolute, move |root| root.look(&path)))
    }

    fn remove(&self, removal: Removal) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            let files = removal.files.iter().chain(&removal.empty_files);
            let mut all = files.chain(&removal.directories).chain(&removal.if_empty);
            let Some(first) = all.next().map(|path| self.root.absolute(path)) else { return Ok(()) };
            self.local("remove", first, move |root| root.remove(&removal)).await
        })
    }

    fn unmount(
        &self,
        path: RootPath,
        expected: MountIdentity,
        how: Unmount,
    ) -> BoxFuture<'_, Result<(), HostError>> {
        let (root, table) = (Arc::clone(&self.root), self.table.clone());
        let unmounters = Arc::clone(&self.unmounters);
        let absolute = self.root.absolute(&path);
        Box::pin(async move {
            // The work gives itself up at its own limit, with the child; the pool's is only for a queue that does not move.
            let limit = match how {
                Unmount::Plain => unmount::LIMIT,
                Unmount::Forced => unmount::FORCED_LIMIT,
            };
            // What waits for a server takes no place of what waits for a disk.
            let pool = if has_server(&expected.fs_type) { &self.network } else { &self.children };
            let work = move || unmount::unmount(&root, &table, &unmounters, &path, (&expected, how), limit);
            pool.run("unmount", &absolute, limit + LIMIT, work).await
        })
    }

    fn bind(&self, bind: Bind) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            if !bind.may_hang(self.root.path(), &*self.mounts().await?) {
                let asked = bind.clone();
                let (_waits, wanted) = Waits::new();
                let work = move |root: &Root| Ok(asked.show(root, &wanted));
                let shown = self.local("show", bind.source.clone(), work).await?;
                match shown {
                    Ok(()) => return Ok(()),
                    // Where it leads nobody knows.
                    Err(Refusal::Symlink) => {}
                    Err(refusal) => return Err(bind.refused(self.root.path(), refusal)),
                }
            }
            self.programs.bind(self.root.path(), &bind).await
        })
    }

    fn mount_nfs(&self, mount: NfsMount) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move { self.programs.nfs(self.root.path(), &self.tools_in, &mount).await })
    }

    fn remove_empty_dir(&self, path: RootPath) -> BoxFuture<'_, Result<(), HostError>> {
        let absolute = self.root.absolute(&path);
        let root = Arc::clone(&self.root);
        Box::pin(async move {
            let until = tokio::time::Instant::now() + EMPTY_DIR_LIMIT;
            let work = move || empty_dir::remove(&root, &path, until);
            self.children.run("remove the emptyDir", &absolute, EMPTY_DIR_LIMIT + LIMIT, work).await
        })
    }

    fn map_block(&self, map: BlockMap) -> BoxFuture<'_, Result<(), HostError>> {
        let blocks = self.blocks.clone();
        Box::pin(async move {
            let turn = blocks.turn(&map.map)?;
            let absolute = self.root.absolute(&map.map);
            let work = move || {
                let done = blocks.map(&map);
                drop(turn);
                done
            };
            self.children.run("map the device at", &absolute, loops::LIMIT + LIMIT, work).await
        })
    }

    fn unmap_block(&self, map: BlockMap, users: DeviceUsers) -> BoxFuture<'_, Result<(), HostError>> {
        let blocks = self.blocks.clone();
        Box::pin(async move {
            let turn = blocks.turn(&map.map)?;
            let absolute = self.root.absolute(&map.map);
            let work = move || {
                let done = blocks.unmap(&map, users);
                drop(turn);
                done
            };
            // Its two children, for lock and mount, give themselves up at their own limits.
            let limit = loops::LIMIT + unmount::LIMIT + LIMIT;
            self.children.run("unmap the device at", &absolute, limit, work).await
        })
    }

    fn collect_locks(&self, known: BTreeSet<RootPath>) -> BoxFuture<'_, Result<Vec<String>, HostError>> {
        let blocks = self.blocks.clone();
        let work = move || blocks.collect(&known);
        Box::pin(self.children.run("collect the locks below", self.root(), loops::LIMIT + LIMIT, work))
    }

    fn set_ownership(
        &self,
        path: RootPath,
        ownership: Ownership,
        progress: Progress,
    ) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(async move {
            let place = Place::of(&*self.mounts().await?, self.root.absolute(&path));
            let absolute = place.path.clone();
            let done = self.programs.set_ownership(&self.root, &path, place, ownership, &progress).await?;
            match done {
                Ok(()) => Ok(()),
                Err(errno) => {
                    // Finds out which component it was.
                    self.local("enter the volume", absolute, move |root| {
                        Err(root.failed("enter the volume", &path, "a directory", errno))
                    })
                    .await
                }
            }
        })
    }

    fn holders(&self, path: RootPath, driver: Option<u32>) -> BoxFuture<'_, Result<Vec<Holder>, HostError>> {
        Box::pin(self.looks.holders(self.root.absolute(&path), driver))
    }

    fn dead_mounts(
        &self,
        points: Vec<PathBuf>,
    ) -> BoxFuture<'_, Result<BTreeMap<PathBuf, String>, HostError>> {
        Box::pin(async move {
            let table = self.mounts().await?;
            let (disks, servers): (Vec<PathBuf>, Vec<PathBuf>) =
                points.into_iter().partition(|point| match table.at(point) {
                    MountsAt::One(mount) => !has_server(&mount.fs_type),
                    MountsAt::None | MountsAt::Stacked(_) => false,
                });
            let mut dead = BTreeMap::new();
            for point in disks {
                if let MountsAt::One(mount) = table.at(&point)
                    && super::disk::is_gone(mount)
                {
                    dead.insert(point, format!("its disk is gone: {}", mount.source));
                }
            }
            if !servers.is_empty() {
                let places = servers.into_iter().map(|point| Place::of(&table, point)).collect();
                drop(table);
                dead.extend(self.programs.dead_mounts(places).await?);
            }
            Ok(dead)
        })
    }

    fn usage(&self, paths: Vec<PathBuf>) -> BoxFuture<'_, Result<Usages, HostError>> {
        Box::pin(async move {
            let table = self.mounts().await?;
            let places = paths.into_iter().map(|path| Place::of(&table, path)).collect();
            drop(table);
            self.programs.usage(places).await
        })
    }

    fn read_token(&self, file: PathBuf) -> BoxFuture<'_, Result<(String, Millis), HostError>> {
        Box::pin(async move {
            let path = file.clone();
            self.local("read the token file", path, move |_root| token::read(&file)).await
        })
    }

    fn inspect_disk(&self, device: PathBuf) -> BoxFuture<'_, Result<Inspected, HostError>> {
        Box::pin(self.inspect(device))
    }

    fn format_disk(&self, device: PathBuf, intent: Intent) -> BoxFuture<'_, Result<Formatted, HostError>> {
        Box::pin(self.format(device, intent))
    }

    fn mount_disk(
        &self,
        device: PathBuf,
        mount: DiskMount,
        at: RootPath,
    ) -> BoxFuture<'_, Result<DiskMounted, HostError>> {
        Box::pin(self.mount(device, mount, at))
    }

    fn show_disk(
        &self,
        device: PathBuf,
        identity: DiskIdentity,
        at: RootPath,
    ) -> BoxFuture<'_, Result<(), HostError>> {
        Box::pin(self.show(device, identity, at))
    }

    fn grow_disk(&self, growth: DiskGrowth) -> BoxFuture<'_, Result<FsGrowth, HostError>> {
        Box::pin(self.grow(growth))
    }

    fn volumes_on_disk(&self) -> BoxFuture<'_, Result<Vec<FoundVolume>, HostError>> {
        Box::pin(self.local("list the volumes below", self.root().to_owned(), on_disk::volumes))
    }
}
