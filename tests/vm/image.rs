//! What a machine is started from: the image that `image.sh` made, the saved machine that every test resumes, and a disk with
//! the programs of this run.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use sha2::{Digest as _, Sha256};

use super::qemu::{self, Qemu};
use super::wire::Wire;
use super::{BOOT, tail};

/// Names the directory with the image; `scripts/test machine` and `vm` set it.
const VARIABLE: &str = "VOLUMED_TEST_VM";

/// A program of `examples/` that the machine has, if it was built.
const EXAMPLE: &str = "disktool";

/// The image. As long as it is held, `image.sh` does not remove it.
#[derive(Debug)]
pub struct Image {
    pub directory: PathBuf,
    _lock: File,
}

impl Image {
    /// Says NOT-RUN where there is none.
    pub fn find(test: &str) -> Option<Self> {
        let Some(directory) = std::env::var_os(VARIABLE) else {
            println!("NOT-RUN: {test}: {VARIABLE} is not set; scripts/test makes the machine and sets it");
            return None;
        };
        let directory = fs::canonicalize(directory).expect("the directory that VOLUMED_TEST_VM names");
        let lock = File::open(directory.join("lock")).expect("the lock of the machine's image");
        lock.lock_shared().expect("a lock");
        Some(Self { directory, _lock: lock })
    }

    /// Copies the disk with the saved machine: booted, with nothing to do, and all disks' places empty. The first who asks
    /// saves it.
    pub fn saved(&self, directory: &Path) -> PathBuf {
        let hardware = Sha256::digest(qemu::hardware().join(" "));
        let hardware: String = hardware.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let saved = self.directory.join(format!("saved-{hardware}.qcow2"));
        let lock = File::create(self.directory.join("saving")).expect("a lock");
        lock.lock().expect("a lock");
        if !saved.try_exists().expect("the image's directory can be read") {
            self.save(directory, &saved);
        }
        drop(lock);
        let copy = directory.join("root.qcow2");
        fs::copy(saved, &copy).expect("the saved machine is copied");
        copy
    }

    fn save(&self, directory: &Path, saved: &Path) {
        let new = saved.with_extension("new");
        let create = ["create", "-q", "-f", "qcow2", "-F", "raw", "-b"];
        run("qemu-img", create.map(OsStr::new).into_iter().chain([self.root().as_os_str(), new.as_os_str()]));
        let mut qemu = Qemu::start(directory, &self.directory, &new, false);
        let mut wire = Wire::new(qemu.wire(directory), 0);
        qemu.go();
        if let Err(error) = wire.ready(BOOT) {
            panic!("the machine does not boot: {error}; its console:\n{}", tail(directory, "console"));
        }
        let settle = "systemctl is-system-running --wait; sync; echo 3 >/proc/sys/vm/drop_caches";
        let state = wire.run(settle, BOOT).expect("the machine settles");
        assert_eq!(state.output.trim(), "running", "the machine booted with failures");
        qemu.tell(&format!("savevm {}", qemu::SAVED));
        drop(qemu);
        fs::rename(new, saved).expect("it is kept");
    }

    fn root(&self) -> PathBuf {
        self.directory.join("root.img")
    }
}

/// A read-only disk with the programs of this run and the units of this repository; made once for all of a test program's
/// machines.
///
/// Its file has no name any more, so that nothing is left of it: QEMU opens it by our descriptor.
pub fn programs() -> String {
    static DISK: OnceLock<File> = OnceLock::new();
    let disk = DISK.get_or_init(make_programs);
    format!("/proc/{}/fd/{}", std::process::id(), disk.as_raw_fd())
}

fn make_programs() -> File {
    let directory = tempfile::tempdir().expect("a directory");
    let bin = directory.path().join("tree/bin");
    fs::create_dir_all(&bin).expect("a directory");
    let built = [
        ("volumed", env!("CARGO_BIN_EXE_volumed")),
        ("volumectl", env!("CARGO_BIN_EXE_volumectl")),
        ("volumed-csi-loop", env!("CARGO_BIN_EXE_volumed-csi-loop")),
    ];
    // What a debugger wants is most of a debug build, and the machine reads it all through an emulated disk.
    let strip = |name: &str, program: &Path| {
        run("strip", [OsStr::new("-o"), bin.join(name).as_os_str(), program.as_os_str()]);
    };
    for (name, program) in built {
        strip(name, Path::new(program));
    }
    // Nothing that is installed. `cargo test --test` builds no example.
    let example = Path::new(env!("CARGO_BIN_EXE_volumed")).with_file_name("examples").join(EXAMPLE);
    if example.exists() {
        strip(EXAMPLE, &example);
    }
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    run("cp", [OsStr::new("-r"), units.as_os_str(), directory.path().join("tree/units").as_os_str()]);
    let disk = directory.path().join("disk");
    let file = File::create(&disk).expect("a disk");
    file.set_len(512 << 20).expect("a disk");
    let tree = directory.path().join("tree");
    let options = ["-q", "-O", "^has_journal", "-d"].map(OsStr::new);
    run("mkfs.ext4", options.into_iter().chain([tree.as_os_str(), disk.as_os_str()]));
    File::open(&disk).expect("the disk")
}

fn run<'a>(program: &str, arguments: impl IntoIterator<Item = &'a OsStr>) {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program}: {output:?}");
}
