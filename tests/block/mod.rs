//! What the tests of block volumes share: a root directory, a published block volume, and loop devices to be one.
//!
//! Each test runs again as a process of its own in its own mount and process namespaces, so that it sees its own processes and
//! mounts only. Loop devices are the whole kernel's: each test looks at those that hold its own files and devices only, and
//! lets them go however it ends.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::disallowed_methods,
    clippy::unwrap_used,
    clippy::panic,
    reason = "every test binary uses a part of it, and helper functions are not covered by the allow-in-tests settings"
)]

#[path = "../support/holder.rs"]
mod holder;
#[path = "../support/world.rs"]
mod world;

use std::cell::RefCell;
use std::ffi::OsStr;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use volumed::host::{BlockMap, DeviceUsers, Host, Linux};
use volumed::model::MountsAt;

pub use holder::Holder;
use world::unmount_below;
pub use world::{NONE, at, isolated};

const DEADLINE: Duration = Duration::from_secs(20);
const PUBLISH: &str = "plugins/kubernetes.io/csi/volumeDevices/publish/pv-blk";
const DEV: &str = "plugins/kubernetes.io/csi/volumeDevices/pv-blk/dev";
pub const DATA: &str = "plugins/kubernetes.io/csi/volumeDevices/pv-blk/data";

/// A loop device of the test's own, on a file of its own, without autoclear.
#[derive(Debug, Clone)]
pub struct Device {
    pub path: PathBuf,
    pub file: PathBuf,
    read_only: bool,
}

impl Device {
    pub fn number(&self) -> u64 {
        std::fs::metadata(&self.path).unwrap().rdev()
    }

    /// What it is backed by now.
    pub fn backing(&self) -> Option<PathBuf> {
        backing(&self.path)
    }
}

/// A root directory in a mount namespace of its own. Dropped, it lets go of everything it made.
pub struct World {
    pub linux: Linux,
    pub root: PathBuf,
    pub top: tempfile::TempDir,
    devices: RefCell<Vec<Device>>,
    others: RefCell<Vec<PathBuf>>,
    /// Device and inode of the nodes that were seen mapped, to know their locks when the nodes are gone.
    nodes: RefCell<Vec<(u64, u64)>>,
}

/// Opens a root whose child processes are the real ones.
pub fn open(root: &Path) -> Linux {
    Linux::open(root).unwrap().with_child_program(env!("CARGO_BIN_EXE_volumed").into())
}

impl World {
    pub fn new() -> Self {
        let top = tempfile::tempdir().unwrap();
        let linux = open(&top.path().join("root"));
        let root = linux.root().to_owned();
        let (devices, others, nodes) = Default::default();
        Self { linux, root, top, devices, others, nodes }
    }

    pub fn device(&self) -> Device {
        self.make_device(false)
    }

    pub fn read_only_device(&self) -> Device {
        self.make_device(true)
    }

    fn make_device(&self, read_only: bool) -> Device {
        let file = self.top.path().join(format!("image{}", self.devices.borrow().len()));
        std::fs::File::create(&file).unwrap().set_len(16 << 20).unwrap();
        let path = losetup(&file, read_only);
        let device = Device { path, file, read_only };
        self.devices.borrow_mut().push(device.clone());
        device
    }

    /// A lock as a kubelet makes it.
    pub fn kubelet_lock(&self, path: &Path) -> Device {
        let lock = losetup(path, false);
        self.others.borrow_mut().push(lock.clone());
        Device { path: lock, file: path.to_owned(), read_only: false }
    }

    pub fn block(&self) -> BlockMap {
        BlockMap {
            published: at(format!("{PUBLISH}/u1")),
            map: at(format!("{DEV}/u1")),
            link: at("pods/u1/volumeDevices/kubernetes.io~csi/pv-blk"),
        }
    }

    /// The same volume in another pod.
    pub fn other_pod(&self) -> BlockMap {
        BlockMap {
            published: at(format!("{PUBLISH}/u2")),
            map: at(format!("{DEV}/u2")),
            link: at("pods/u2/volumeDevices/kubernetes.io~csi/pv-blk"),
        }
    }

    pub fn published(&self) -> PathBuf {
        self.root.join(self.block().published.as_path())
    }

    pub fn map(&self) -> PathBuf {
        self.root.join(self.block().map.as_path())
    }

    pub fn link(&self) -> PathBuf {
        self.root.join(self.block().link.as_path())
    }

    /// Takes the first pod's map down, which must succeed.
    pub async fn unmap(&self) {
        self.linux.unmap_block(self.block(), DeviceUsers::Count { driver: None }).await.unwrap();
    }

    pub fn make_published_parent(&self) {
        std::fs::create_dir_all(self.published().parent().unwrap()).unwrap();
    }

    /// As csi-driver-host-path publishes: the device bound on a file.
    pub fn publish_bind(&self, device: &Device) {
        bind(&device.path, &self.published());
    }

    /// Returns the loop devices that hold this device, by the inode of a node of it.
    pub fn locks(&self, device: &Device) -> Vec<PathBuf> {
        let nodes = [device.path.clone(), self.map(), self.published()];
        let nodes: Vec<(u64, u64)> = nodes
            .iter()
            .filter_map(|path| std::fs::symlink_metadata(path).ok())
            .filter(|meta| meta.file_type().is_block_device() && meta.rdev() == device.number())
            .map(|meta| (meta.dev(), meta.ino()))
            .chain(self.nodes.borrow().iter().copied())
            .collect();
        let columns = ["--list", "--raw", "--noheadings", "-O", "NAME,BACK-MAJ:MIN,BACK-INO"].map(OsStr::new);
        let mut found = Vec::new();
        for line in run("losetup", &columns).lines() {
            // Numbers are padded with escaped blanks. Others' devices come and go meanwhile: their columns may be empty.
            let line = line.replace("\\x20", "");
            let [name, on, inode] = line.split(' ').collect::<Vec<_>>()[..] else { continue };
            let Some((major, minor)) = on.split_once(':') else { continue };
            let (Ok(major), Ok(minor), Ok(inode)) = (major.parse(), minor.parse(), inode.parse()) else {
                continue;
            };
            if nodes.contains(&(rustix::fs::makedev(major, minor), inode)) {
                found.push(PathBuf::from(name));
            }
        }
        found.sort();
        found
    }

    /// Lets the locks of a device go. Another test's look at all loop devices can delay that.
    pub fn clear_locks(&self, device: &Device) {
        self.locks(device).iter().for_each(losetup_d);
        wait_until("the locks go", || self.locks(device).is_empty());
    }

    pub async fn mounts_at(&self, path: &Path) -> usize {
        match self.linux.mounts().await.unwrap().at(path) {
            MountsAt::None => 0,
            MountsAt::One(_) => 1,
            MountsAt::Stacked(mounts) => mounts.len(),
        }
    }

    /// The mode of the map file itself, under its mount.
    fn map_mode(&self) -> u32 {
        let beneath = self.top.path().join("beneath");
        std::fs::create_dir_all(&beneath).unwrap();
        mount(Some(&self.root), &beneath, NONE, MsFlags::MS_BIND, NONE).unwrap();
        let mode = std::fs::metadata(beneath.join(self.block().map.as_path())).unwrap().mode();
        umount2(&beneath, MntFlags::empty()).unwrap();
        mode
    }

    /// Asserts that the map shows the device and that one lock as a kubelet's holds it; returns the lock.
    pub async fn assert_mapped(&self, device: &Device) -> PathBuf {
        assert_eq!(self.mounts_at(&self.map()).await, 1);
        let meta = std::fs::metadata(self.map()).unwrap();
        assert!(meta.file_type().is_block_device());
        assert_eq!(self.map_mode(), 0o100_750);
        assert_eq!(meta.rdev(), device.number());
        // A node of /dev may be another test's next device; one of the root directory is this one's.
        if meta.dev() == std::fs::metadata(&self.root).unwrap().dev() {
            self.nodes.borrow_mut().push((meta.dev(), meta.ino()));
        }
        let locks = self.locks(device);
        let [lock] = &locks[..] else { panic!("{locks:?}") };
        assert_eq!(backing(lock), Some(self.map()), "where a kubelet looks for it");
        let said = |name: &str| {
            let name = format!("/sys/block/{}/{name}", lock.file_name().unwrap().to_str().unwrap());
            std::fs::read_to_string(name).unwrap().trim().to_owned()
        };
        for name in ["loop/autoclear", "loop/offset", "loop/sizelimit", "loop/partscan"] {
            assert_eq!(said(name), "0", "{name}");
        }
        assert_eq!(said("ro"), if device.read_only { "1" } else { "0" });
        lock.clone()
    }

    /// Asserts that nothing of the first pod's map is left.
    pub fn assert_unmapped(&self, device: &Device) {
        assert_eq!(self.locks(device), Vec::<PathBuf>::new());
        assert!(!self.map().try_exists().unwrap());
        assert!(std::fs::symlink_metadata(self.link()).is_err());
        if let Some(directory) = self.map().parent().filter(|d| d.is_dir()) {
            assert_eq!(names(directory), Vec::<String>::new());
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let mut loops = self.others.take();
        let devices = self.devices.take();
        loops.extend(devices.iter().flat_map(|device| self.locks(device)));
        unmount_below(self.top.path());
        loops.extend(devices.into_iter().filter(|d| d.backing() == Some(d.file.clone())).map(|d| d.path));
        for path in loops.iter().filter(|path| backing(path).is_some()) {
            let _done = Command::new("losetup").arg("-d").arg(path).status();
        }
    }
}

pub fn run(program: &str, arguments: &[&OsStr]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Makes a loop device. Other processes take free ones too.
fn losetup(file: &Path, read_only: bool) -> PathBuf {
    let end = Instant::now() + DEADLINE;
    loop {
        let mut command = Command::new("losetup");
        command.args(["--show", "-f"]).args(read_only.then_some("-r")).arg(file);
        let output = command.output().unwrap();
        if output.status.success() {
            return String::from_utf8(output.stdout).unwrap().trim().into();
        }
        assert!(Instant::now() < end, "{}", String::from_utf8_lossy(&output.stderr));
    }
}

pub fn losetup_d(device: impl AsRef<Path>) {
    run("losetup", &["-d".as_ref(), device.as_ref().as_os_str()]);
}

/// Binds a device on a file, as drivers do.
pub fn bind(device: &Path, on: &Path) {
    std::fs::create_dir_all(on.parent().unwrap()).unwrap();
    std::fs::write(on, "").unwrap();
    mount(Some(device), on, NONE, MsFlags::MS_BIND, NONE).unwrap();
}

/// What a loop device is backed by, as the kernel shows it.
pub fn backing(device: &Path) -> Option<PathBuf> {
    let name = device.file_name().unwrap().to_str().unwrap();
    let text = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file")).ok()?;
    Some(text.trim_end_matches('\n').into())
}

pub fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < end, "{what}");
        std::thread::yield_now();
    }
}
