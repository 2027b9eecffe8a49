//! The bundled driver with {ext4, xfs, block devices} × {one pod, two pods} × {volumed, the driver, both killed} between each two
//! calls of a volume's life (`support/matrix.rs`): xfs and block devices grow under their pods meanwhile. At the end no mount, loop
//! device or process is left, and no image is in use. `drivers_matrix` has it with csi-driver-host-path.

#![expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::panic,
    reason = "a test: its helpers may fail loudly and start processes of their own"
)]

#[path = "support/foreign.rs"]
mod foreign;
#[path = "support/matrix.rs"]
mod matrix;
mod support;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use foreign::{assert_released, block, claim_of, for_each};
use matrix::{Case, Growth, Subject, assert_precious, cases, outlives};
use support::{Process, TestHost, loop_devices, pod_using, until};

const LOOP: &str = "loop.csi.volumed.io";

/// What is in the volume; its size, and the one that it grows to.
#[derive(Debug, Clone, Copy)]
enum Content {
    /// Where the machine lets it grow at all while it is mounted, it needs a right that not every machine gives.
    Ext4,
    Xfs,
    Block,
}

impl Content {
    fn mebibytes(self) -> (u64, u64) {
        match self {
            Self::Ext4 | Self::Block => (32, 64),
            Self::Xfs => (320, 448),
        }
    }

    fn grows(self) -> bool {
        match self {
            Self::Ext4 => false,
            Self::Xfs | Self::Block => true,
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Ext4 => &["--fs", "ext4"],
            Self::Xfs => &["--fs", "xfs"],
            Self::Block => &["--block"],
        }
    }
}

/// One volume, `data`, and the pods that use it.
struct World {
    host: TestHost,
    content: Content,
}

impl World {
    fn new(content: Content, case: &Case) -> (Self, Process) {
        let world = Self { host: TestHost::new(), content };
        let driver = world.driver();
        world.until_it_listens();
        let size = format!("{}Mi", content.mebibytes().0);
        let arguments = [["create", "data", "--size", &size].as_slice(), content.arguments()].concat();
        world.administer(&arguments);
        world.claim(&size);
        case.write_pods(&world.host);
        (world, driver)
    }

    fn socket(&self) -> PathBuf {
        self.host.root.join("plugins").join(LOOP).join("csi.sock")
    }

    fn until_it_listens(&self) {
        until("the driver listens", || UnixStream::connect(self.socket()).is_ok());
    }

    fn administer(&self, arguments: &[&str]) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_volumed-csi-loop"));
        command.arg("volume").args(arguments).arg("--driver-socket").arg(self.socket());
        let output = command.output().expect("it can be run");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }

    fn claim(&self, size: &str) {
        let claim = claim_of(LOOP, "data", "data").replace("storage: 1Gi", &format!("storage: {size}"));
        let attributes = "volumeAttributes: {colour: blue}";
        let claim = match self.content {
            Content::Ext4 => claim.replace(attributes, "fsType: ext4"),
            Content::Xfs => claim.replace(attributes, "fsType: xfs"),
            Content::Block => block(&claim),
        };
        self.host.manifest("data.yaml", &claim);
    }

    fn volume(&self) -> PathBuf {
        self.host.path("images/volumes/data")
    }

    /// What the pods wrote is there for another pod, or, of a block device, in the image.
    fn assert_kept(&self) {
        if let Content::Block = self.content {
            return assert_precious(&self.volume().join("image"));
        }
        self.host.manifest("later.yaml", &pod_using("later", "uid-later", "data"));
        self.host.wait(&["pod/later"]);
        assert_precious(&self.host.target("uid-later", "data").join("file"));
        self.host.remove_manifest("later.yaml");
        self.host.wait(&["--for=released", "pod/later"]);
        self.assert_off_the_node();
    }

    fn assert_off_the_node(&self) {
        assert_released(&self.host);
        assert_eq!(loop_devices(&self.host.path("")), Vec::<PathBuf>::new(), "a loop device is left");
    }

    /// Returns the command lines of our programs that have something below the host's directory open.
    fn processes(&self) -> Vec<String> {
        let ours = [env!("CARGO_BIN_EXE_volumed"), env!("CARGO_BIN_EXE_volumed-csi-loop")].map(Path::new);
        let below = self.host.path("");
        let processes = fs::read_dir("/proc").expect("proc is mounted").flatten().map(|entry| entry.path());
        let of_this_host = processes.filter(|process| {
            let program = fs::read_link(process.join("exe")).unwrap_or_default();
            let files = || fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            ours.contains(&&*program)
                && files().any(|file| fs::read_link(file.path()).is_ok_and(|to| to.starts_with(&below)))
        });
        of_this_host
            .map(|process| {
                let line = fs::read(process.join("cmdline")).unwrap_or_default();
                format!("{}: {}", process.display(), String::from_utf8_lossy(&line).replace('\0', " "))
            })
            .collect()
    }
}

impl Subject for World {
    fn host(&self) -> &TestHost {
        &self.host
    }

    fn driver(&self) -> Process {
        fs::create_dir_all(self.socket().parent().expect("it has one")).expect("the plugin's directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_volumed-csi-loop"));
        command.args(["--node-id", "n1"]).arg("--dir").arg(self.host.path("images"));
        command.arg("--endpoint").arg(self.socket());
        command.arg("--plugins-registry").arg(self.host.root.join("plugins_registry"));
        self.host.spawn(command, "driver.log")
    }

    /// One staging and one device for all pods; of block devices the driver binds one file for each, and volumed another.
    fn assert_shown(&self, pods: usize) {
        assert_eq!(loop_devices(&self.host.path("images")).len(), 1, "one device for one volume");
        let staged = match self.content {
            Content::Ext4 | Content::Xfs => 1 + pods,
            Content::Block => 2 * pods,
        };
        assert_eq!(self.host.mounts().len(), staged, "{:?}", self.host.mounts());
    }

    fn grow(&self) -> Option<Growth<'_>> {
        if !self.content.grows() {
            return None;
        }
        let (before, after) = self.content.mebibytes();
        let size = format!("{after}Mi");
        self.administer(&["resize", "data", "--size", &size]);
        self.claim(&size);
        Some(Box::new(move |place| (before + 1..=after).contains(&mebibytes(place))))
    }
}

/// Returns the size of a device, or of the file system at a directory.
fn mebibytes(place: &Path) -> u64 {
    let mut command = if place.is_dir() { Command::new("stat") } else { Command::new("blockdev") };
    if place.is_dir() {
        command.args(["-f", "-c", "%b %S"])
    } else {
        command.arg("--getsize64")
    };
    let output = command.arg(place).output().expect("it can be run");
    assert!(output.status.success(), "{place:?}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.split_whitespace().map(|number| number.parse::<u64>().expect("a number")).product::<u64>() >> 20
}

fn comes_and_goes(content: Content, case: &Case) {
    let (world, driver) = World::new(content, case);
    let (driver, daemon) = outlives(case, &world, driver);
    world.assert_off_the_node();
    world.assert_kept();
    // Only an image that nothing has goes. Who was started last was perhaps not needed before.
    world.until_it_listens();
    world.administer(&["delete", "data"]);
    assert!(!world.volume().exists(), "something of the volume is left");
    for process in [daemon, driver] {
        process.kill();
    }
    until("no process is left", || world.processes().is_empty());
}

fn matrix(content: Content) {
    let cases = cases(matches!(content, Content::Block), content.grows());
    for_each(&cases, |case| comes_and_goes(content, case));
}

#[test]
fn whoever_is_killed_between_two_calls_an_ext4_comes_and_goes() {
    matrix(Content::Ext4);
}

#[test]
fn whoever_is_killed_between_two_calls_an_xfs_comes_grows_and_goes() {
    matrix(Content::Xfs);
}

#[test]
fn whoever_is_killed_between_two_calls_a_block_device_comes_grows_and_goes() {
    matrix(Content::Block);
}
