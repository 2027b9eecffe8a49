//! Disks of a test's own: loop devices over files, and a host to ask about them.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "every test binary uses a part of it, and helper functions are not covered by the allow-in-tests settings"
)]

#[path = "../support/holder.rs"]
pub mod holder;
#[path = "../support/world.rs"]
mod world;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use volumed::host::{DiskError, Host as _, HostError};
use volumed::model::{Content, DiskMount, FileSystem, Formatted, FsKind, FsUuid, Intent};
use world::World;
pub use world::at;

pub const MIB: u64 = 1 << 20;

/// Where a `local` volume is mounted (kubelet.md 4.6).
pub const PLACE: &str = "plugins/kubernetes.io/local-volume/mounts/pv";

/// Where Debian has what the tools of a test are made of.
const SYSTEM: [&str; 2] = ["/usr/sbin", "/usr/bin"];

/// Runs a test alone in new namespaces, and lets go of its loop devices however it ends.
pub fn alone(name: &str, test: impl Future<Output = ()>) {
    world::alone::run(name, test, |top| {
        let file = |name: &str| fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
        let devices =
            || fs::read_dir("/sys/block").unwrap().flatten().filter_map(|e| e.file_name().into_string().ok());
        let below = |name: &String| file(name).is_ok_and(|file| Path::new(file.trim_end()).starts_with(top));
        let ours: Vec<String> = devices().filter(below).collect();
        // First those over one of ours; the kernel may show a path of a mount that is gone.
        let is_over = |name: &String| {
            let file = file(name).unwrap_or_default();
            let over = Path::new(file.trim_end()).file_name().unwrap_or_default();
            ours.iter().any(|our| over == our.as_str())
        };
        for name in devices().filter(is_over).chain(ours.iter().cloned()) {
            let node = Path::new("/dev").join(name);
            // A partition would stay, and be the next one's who gets the device.
            let _none = Command::new("delpart").arg(&node).arg("1").stderr(Stdio::null()).status();
            let _ended = Command::new("losetup").arg("-d").arg(&node).status();
        }
    });
}

/// Runs a command that must succeed; returns what it said.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
    said.trim().to_owned()
}

pub fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A host with a root directory of its own.
pub struct Host {
    pub world: World,
    /// Instead of the system's tools.
    tools: PathBuf,
}

impl Host {
    pub fn new() -> Self {
        Self::with(false)
    }

    /// A host that uses only the tools of a directory, into which those of the system are linked first.
    pub fn with_own_tools() -> Self {
        Self::with(true)
    }

    /// A host whose child processes are this program instead of volumed.
    pub fn with_program(program: PathBuf) -> Self {
        Self::of(false, program)
    }

    fn with(own_tools: bool) -> Self {
        Self::of(own_tools, env!("CARGO_BIN_EXE_volumed").into())
    }

    fn of(own_tools: bool, program: PathBuf) -> Self {
        let tools = std::env::temp_dir().join("tools");
        if own_tools {
            fs::create_dir_all(&tools).unwrap();
            for name in
                ["blkid", "mkfs.ext4", "mkfs.xfs", "mkfs.btrfs", "e2fsck", "fsck.ext4", "xfs_repair", "btrfs"]
            {
                symlink(Self::system(name), tools.join(name)).unwrap();
            }
        }
        let used = own_tools.then(|| tools.clone());
        let world = World::of(|linux| {
            let linux = linux.with_child_program(program);
            match used {
                Some(tools) => linux.with_tools_in(vec![tools]),
                None => linux,
            }
        });
        Self { world, tools }
    }

    fn system(name: &str) -> PathBuf {
        let found = SYSTEM.iter().map(|directory| Path::new(directory).join(name)).find(|path| path.exists());
        found.unwrap_or_else(|| panic!("{name} is not installed"))
    }

    /// Puts a script in the place of a tool; in it `$real` is the tool.
    pub fn replace(&self, name: &str, script: &str) {
        let path = self.tools.join(name);
        fs::remove_file(&path).unwrap();
        let real = Self::system(name);
        let path_of_tools = "export PATH=/usr/sbin:/usr/bin:/sbin:/bin";
        fs::write(&path, format!("#!/bin/sh\n{path_of_tools}\nreal={}\n{script}\n", real.display())).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Lets a tool, before it runs, write down which block devices it was given and how they are open: `/dev/loop0 100002`.
    pub fn log_open_devices(&self, name: &str) -> PathBuf {
        let log = self.file("open-devices");
        let script = format!(
            "for fd in /proc/$$/fd/*; do
               target=$(readlink $fd) || continue
               [ ! -b \"$target\" ] || echo $target $(sed -n 's/^flags:[^0-9]*//p' /proc/$$/fdinfo/${{fd##*/}}) >>{}
             done
             exec $real \"$@\"",
            log.display()
        );
        self.replace(name, &script);
        log
    }

    /// Makes room for the tools of another host.
    pub fn remove_tools(&self) {
        fs::remove_dir_all(&self.tools).unwrap();
    }

    pub fn take_away(&self, name: &str) {
        fs::remove_file(self.tools.join(name)).unwrap();
    }

    /// Returns a path for a file of the test's.
    pub fn file(&self, name: &str) -> PathBuf {
        self.world.top.path().join(name)
    }

    pub fn disk(&self, name: &str, bytes: u64) -> Disk {
        Disk::new(&self.file(name), bytes)
    }

    pub async fn content(&self, disk: &Disk) -> Content {
        self.world.linux.inspect_disk(disk.device.clone()).await.unwrap().content
    }

    /// An intent for a disk as it is now.
    pub async fn intent(&self, disk: &Disk, kind: FsKind) -> Intent {
        let found = self.world.linux.inspect_disk(disk.device.clone()).await.unwrap();
        // Of two btrfs with one UUID mkfs refuses the second, whoever's the first is.
        let random = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
        let file_system = FileSystem { kind, uuid: FsUuid::new(random.trim()).unwrap() };
        Intent { file_system, identity: found.identity, least_bytes: 0, begun: false }
    }

    pub async fn format(&self, disk: &Disk, intent: &Intent) -> Result<Formatted, DiskError> {
        disk_error(self.world.linux.format_disk(disk.device.clone(), intent.clone()).await)
    }

    /// Formats a blank disk.
    pub async fn make(&self, disk: &Disk, kind: FsKind) -> Intent {
        let intent = self.intent(disk, kind).await;
        assert_eq!(self.format(disk, &intent).await, Ok(Formatted::Made));
        intent
    }

    /// Asserts that the disk is refused, with this intent and as if it had been begun, and that not a byte was changed.
    pub async fn assert_refused(&self, disk: &Disk, intent: &Intent, why: impl Fn(&DiskError) -> bool) {
        let before = disk.written();
        for begun in [false, true] {
            let refused = self.format(disk, &Intent { begun, ..intent.clone() }).await;
            assert!(
                matches!(&refused, Err(error) if why(error) && !error.may_have_written()),
                "begun {begun}: {refused:?}"
            );
            assert!(disk.written() == before, "the disk was written to");
        }
    }

    /// Asserts that the disk counts as formatted: an intent that was not begun does not touch it.
    pub async fn assert_formatted(&self, disk: &Disk, intent: &Intent) {
        let before = disk.written();
        let refused = self.format(disk, &Intent { begun: false, ..intent.clone() }).await;
        assert!(matches!(refused, Err(DiskError::NotBlank { .. })), "{refused:?}");
        assert!(disk.written() == before, "the disk was written to");
    }

    pub async fn mount(
        &self,
        disk: &Disk,
        intent: &Intent,
        read_only: bool,
        options: &[&str],
    ) -> Result<volumed::host::DiskMounted, DiskError> {
        let mount = DiskMount {
            identity: intent.identity.clone(),
            file_system: intent.file_system.clone(),
            options: options.iter().map(|&option| option.to_owned()).collect(),
            read_only,
        };
        self.world.directory(PLACE);
        disk_error(self.world.linux.mount_disk(disk.device.clone(), mount, at(PLACE)).await)
    }

    /// Where disks are mounted.
    pub fn place(&self) -> PathBuf {
        self.world.root.join(PLACE)
    }

    pub fn is_mounted(&self) -> bool {
        let place = self.place();
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.lines().any(|line| line.split(' ').nth(4) == place.to_str())
    }

    pub fn unmount(&self) {
        run("umount", &[text(&self.place())]);
    }
}

pub fn disk_error<T>(done: Result<T, HostError>) -> Result<T, DiskError> {
    done.map_err(|error| match error {
        HostError::Disk(error) => *error,
        other => panic!("{other:?}"),
    })
}

pub fn uuid(number: u8) -> FsUuid {
    FsUuid::new(&format!("000000{number:02x}-0000-4000-8000-000000000000")).unwrap()
}

/// Returns whether each device of a log was open for writing, by its node.
pub fn open_for_writing(log: &Path) -> std::collections::BTreeMap<String, bool> {
    let text = fs::read_to_string(log).unwrap();
    let lines = text.lines().map(|line| line.split_once(' ').unwrap());
    lines.map(|(node, flags)| (node.to_owned(), u32::from_str_radix(flags, 8).unwrap() & 3 != 0)).collect()
}

/// Returns whether a child process of volumed has a disk open.
pub fn children_with_it_open(disk: &Disk) -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten().map(|process| process.path());
    let named =
        |path: &PathBuf| fs::read_to_string(path.join("comm")).is_ok_and(|n| n.trim() == "volumed-child");
    let open = |path: PathBuf| fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
    let is_it = |fd: fs::DirEntry| fs::read_link(fd.path()).is_ok_and(|target| target == disk.device);
    processes.filter(named).any(|process| open(process).any(is_it))
}

pub fn is_there(path: &Path) -> bool {
    path.try_exists().unwrap()
}

/// Waits until a file exists.
pub async fn appears(path: &Path) {
    let until = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !is_there(path) {
        assert!(tokio::time::Instant::now() < until, "{} does not appear", path.display());
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

/// A loop device over a sparse file.
pub struct Disk {
    pub image: PathBuf,
    pub device: PathBuf,
}

impl Disk {
    pub fn new(image: &Path, bytes: u64) -> Self {
        fs::File::create(image).unwrap().set_len(bytes).unwrap();
        Self::over(image, &[])
    }

    /// A device over a file that is there.
    pub fn over(image: &Path, options: &[&str]) -> Self {
        let arguments = [&["--find", "--show"], options, &[text(image)]].concat();
        Self { image: image.to_owned(), device: run("losetup", &arguments).into() }
    }

    /// Writes to the device.
    pub fn write(&self, at: u64, bytes: &[u8]) {
        let device = OpenOptions::new().write(true).open(&self.device).unwrap();
        device.write_all_at(bytes, at).unwrap();
        device.sync_all().unwrap();
    }

    pub fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        OpenOptions::new().read(true).open(&self.device).unwrap().read_exact_at(&mut bytes, at).unwrap();
        bytes
    }

    /// Returns every block that is not zeros, with where it lies.
    pub fn written(&self) -> Vec<(u64, Vec<u8>)> {
        let image = fs::File::open(&self.image).unwrap();
        let end = image.metadata().unwrap().len();
        let (mut found, mut from) = (Vec::new(), 0);
        while let Ok(start) = rustix::fs::seek(&image, rustix::fs::SeekFrom::Data(from)) {
            let stop = rustix::fs::seek(&image, rustix::fs::SeekFrom::Hole(start)).unwrap_or(end);
            let mut bytes = vec![0; usize::try_from(stop - start).unwrap()];
            image.read_exact_at(&mut bytes, start).unwrap();
            let blocks = (start..).step_by(4096).zip(bytes.chunks(4096));
            let full = blocks.filter(|(_, block)| block.iter().any(|byte| *byte != 0));
            found.extend(full.map(|(at, block)| (at, block.to_vec())));
            from = stop;
        }
        found
    }

    pub fn name(&self) -> &str {
        text(&self.device)
    }

    pub fn detach(&self) {
        run("losetup", &["-d", self.name()]);
    }

    /// Grows the file and the device.
    pub fn grow(&self, bytes: u64) {
        OpenOptions::new().write(true).open(&self.image).unwrap().set_len(bytes).unwrap();
        run("losetup", &["-c", self.name()]);
    }
}
