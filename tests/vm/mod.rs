//! A virtual machine of a test's own: a Debian with systemd and a kernel that has everything (`image.sh`), resumed where it
//! stood after its boot, with this run's programs in it, and nothing left of it afterwards.
//!
//! The test runs on the host and has the machine do things. So it can do to the machine what no program inside can: cut its
//! power, boot it again, give it disks and take them away, make them larger or slow.
//!
//! ```ignore
//! let Some(mut machine) = Machine::resume("a_test") else { return };
//! machine.add_disk("data", 64 << 20);
//! machine.sh("mkfs.ext4 -q /dev/disk/by-id/virtio-data");
//! machine.cut_power();
//! machine.boot();
//! ```

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::needless_pass_by_value,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test's, of which every test program uses a part: it may fail loudly, look at paths and run tools"
)]

pub mod host;
mod image;
pub mod load;
mod qemu;
mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tempfile::TempDir;

use image::Image;
use qemu::{PORTS, Qemu};
pub use wire::Ran;
use wire::Wire;

/// How long a script may take unless it is said. The machine is ten times slower than its host, which may be busy too.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// How long a boot or a shutdown may take.
pub const BOOT: Duration = Duration::from_secs(120);

/// The disk with this run's programs.
const PROGRAMS: &str = "programs";

/// A machine, on or off.
#[derive(Debug)]
pub struct Machine {
    // On, or off. It ends before its files go.
    on: Option<On>,
    disks: Vec<Disk>,
    scripts: u64,
    root: PathBuf,
    directory: TempDir,
    image: Image,
}

#[derive(Debug)]
struct On {
    qemu: Qemu,
    wire: Wire,
}

/// A disk besides the first. In the machine it is `/dev/disk/by-id/virtio-NAME`.
#[derive(Debug, Clone)]
struct Disk {
    name: String,
    file: String,
    port: usize,
    read_only: bool,
}

impl Machine {
    /// Resumes a machine with this run's programs and units installed and nothing started. Says NOT-RUN where there is no
    /// image of one.
    pub fn resume(test: &str) -> Option<Self> {
        let image = Image::find(test)?;
        let directory = tempfile::Builder::new().prefix("vm").tempdir().expect("a directory");
        let root = image.saved(directory.path());
        let mut machine = Self { on: None, disks: Vec::new(), scripts: 1, root, directory, image };
        machine.disks.push(Disk {
            name: PROGRAMS.to_owned(),
            file: image::programs(),
            port: 0,
            read_only: true,
        });
        machine.start(true);
        // systemd finds new units by itself: telling it to reload costs seconds here. After a power cut it waits 90 s for a disk where
        // it is not told otherwise, which is not much of an emulated machine on a busy host.
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        machine.sh(&format!(
            "date --set=@{now} >/dev/null
             {}
             echo '/dev/disk/by-id/virtio-{PROGRAMS} /opt/programs ext4 ro,x-systemd.device-timeout=10min 0 0' >/etc/fstab
             mount /opt/programs
             ln -s /opt/programs/bin/* /usr/bin/
             cp /opt/programs/units/* /etc/systemd/system/",
            wait_for_disk(PROGRAMS)
        ));
        Some(machine)
    }

    // --- what runs in it

    /// Runs a script with bash, which has to succeed, and returns its output. It ends with the first command that fails.
    pub fn sh(&mut self, script: &str) -> String {
        let ran = self.run(script, PATIENCE);
        assert_eq!(ran.status, 0, "this failed in the machine:\n{script}\n--- it said:\n{}", ran.output);
        ran.output
    }

    /// Runs a script with bash for so long at most.
    pub fn run(&mut self, script: &str, patience: Duration) -> Ran {
        let on = self.on.as_mut().expect("the machine is on");
        self.scripts += 1;
        let began = Instant::now();
        let ran = on
            .wire
            .run(&format!("set -euo pipefail\n{script}"), patience)
            .unwrap_or_else(|error| panic!("{error}, running in the machine:\n{script}"));
        // For the reader of a failure, or of where the time goes.
        let first = script.trim().lines().next().unwrap_or_default();
        println!("{:7.2} s  {:.120}", began.elapsed().as_secs_f64(), first.trim());
        ran
    }

    /// Waits until a script succeeds in the machine.
    pub fn until(&mut self, what: &str, script: &str) {
        let seconds = PATIENCE.as_secs();
        let ran = self.run(
            &format!(
                "# until {what}
                 end=$((SECONDS + {seconds}))
                 until bash -euo pipefail >/run/until 2>&1 <<'SCRIPT'\n{script}\nSCRIPT
                 do
                   if ((SECONDS >= end)); then cat /run/until; exit 1; fi
                   sleep 0.3
                 done"
            ),
            2 * PATIENCE,
        );
        assert_eq!(ran.status, 0, "{what}: not within {seconds} s:\n{script}\n--- it said:\n{}", ran.output);
    }

    /// Makes a file in the machine, with the directories above it; it appears whole.
    pub fn put(&mut self, path: &str, content: impl AsRef<[u8]>) {
        self.sh(&format!(
            "mkdir -p \"$(dirname '{path}')\"
             base64 --decode >'{path}~' <<'CONTENT'\n{}\nCONTENT
             mv '{path}~' '{path}'",
            BASE64.encode(content)
        ));
    }

    /// Returns a file of the machine.
    pub fn get(&mut self, path: &str) -> Vec<u8> {
        let text = self.sh(&format!("base64 --wrap=0 '{path}'"));
        BASE64.decode(text.trim()).expect("base64")
    }

    /// Returns the lines that programs in the machine wrote to `/dev/ttyS2`, those of earlier boots first. It outlives a power
    /// cut: what is in it had been told to the world.
    pub fn told(&self) -> Vec<String> {
        let told = fs::read(self.directory.path().join("told")).expect("what was told");
        let told = String::from_utf8_lossy(&told);
        // A line that has no end was still on its way.
        told.split_inclusive('\n')
            .filter_map(|line| Some(line.strip_suffix('\n')?.trim().to_owned()))
            .collect()
    }

    // --- its disks

    /// Plugs an empty disk in, in the running machine and in its later boots.
    pub fn add_disk(&mut self, name: &str, size: u64) {
        let file = self.directory.path().join(format!("{name}.disk"));
        fs::File::create_new(&file).and_then(|file| file.set_len(size)).expect("a disk");
        self.plug_in(name, file);
    }

    fn plug_in(&mut self, name: &str, file: PathBuf) {
        let port = (0..PORTS).find(|port| self.disks.iter().all(|disk| disk.port != *port));
        let port = port.expect("a place for another disk");
        let disk = Disk { name: name.to_owned(), file: file.display().to_string(), port, read_only: false };
        if let Some(on) = &mut self.on {
            plug(&mut on.qemu, &disk);
        }
        self.disks.push(disk);
        if self.on.is_some() {
            self.sh(&wait_for_disk(name));
        }
    }

    /// Pulls a disk out, whether it is in use or not, and forgets it.
    pub fn remove_disk(&mut self, name: &str) {
        let qemu = self.qemu();
        qemu.ask("device_del", json!({ "id": name }));
        qemu.wait_for("DEVICE_DELETED", name);
        qemu.ask("blockdev-del", json!({ "node-name": name }));
        self.disks.retain(|disk| disk.name != name);
    }

    /// Pulls a disk out and keeps it; it comes back with `add_kept_disk`.
    pub fn keep_disk(&mut self, name: &str) -> PathBuf {
        let file = self.disks.iter().find(|disk| disk.name == name).expect("there is one").file.clone();
        self.remove_disk(name);
        file.into()
    }

    /// Plugs a disk in again.
    pub fn add_kept_disk(&mut self, name: &str, file: &Path) {
        self.plug_in(name, file.to_owned());
    }

    /// Makes a disk larger while the machine runs.
    pub fn resize_disk(&mut self, name: &str, size: u64) {
        self.qemu().ask("block_resize", json!({ "node-name": name, "size": size }));
    }

    /// Lets a disk do so many reads and writes in a second; 0: as many as it can.
    pub fn throttle_disk(&mut self, name: &str, operations: u32) {
        let limits = json!({ "id": name, "iops": operations, "iops_rd": 0, "iops_wr": 0, "bps": 0, "bps_rd": 0, "bps_wr": 0 });
        self.qemu().ask("block_set_io_throttle", limits);
    }

    /// Returns the answer to a command of QEMU's monitor (QMP).
    pub fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        self.qemu().ask(command, arguments)
    }

    // --- off and on

    /// Cuts the power: what is in memory is gone, and so is what no disk was told to keep.
    pub fn cut_power(&mut self) {
        drop(self.on.take().expect("the machine is on"));
    }

    /// Boots the machine that is off, from its own disks. Returns how long that took.
    pub fn boot(&mut self) -> Duration {
        assert!(self.on.is_none(), "the machine is on");
        let began = Instant::now();
        self.start(false);
        began.elapsed()
    }

    /// Shuts the machine down in order and boots it again, as `systemctl reboot` does.
    pub fn reboot(&mut self) -> Duration {
        let began = Instant::now();
        self.sh("systemctl --no-block reboot");
        // It would boot by itself; here the reset ends QEMU, and another one boots.
        self.qemu().wait_for_end(BOOT);
        self.on = None;
        self.boot();
        began.elapsed()
    }

    fn start(&mut self, resume: bool) {
        let directory = self.directory.path();
        let mut qemu = Qemu::start(directory, &self.image.directory, &self.root, resume);
        for disk in &self.disks {
            plug(&mut qemu, disk);
        }
        let mut wire = Wire::new(qemu.wire(directory), self.scripts << 20);
        qemu.go();
        if !resume && let Err(error) = wire.ready(BOOT) {
            panic!("the machine does not boot: {error}; its console:\n{}", tail(directory, "console"));
        }
        self.on = Some(On { qemu, wire });
    }

    fn qemu(&mut self) -> &mut Qemu {
        &mut self.on.as_mut().expect("the machine is on").qemu
    }
}

impl Drop for Machine {
    /// Shows what the machine has to say about a test that failed.
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        println!("--- the machine's console\n{}", tail(self.directory.path(), "console"));
        println!("--- qemu\n{}", tail(self.directory.path(), "qemu.log"));
        let journal = "journalctl --boot --no-hostname --output=short-precise --lines=200; losetup --list
                       grep -E 'volumed|kubelet' /proc/1/mountinfo; volumectl list; volumectl status";
        if let Some(on) = &mut self.on {
            match on.wire.run(journal, Duration::from_secs(30)) {
                Ok(ran) => println!("--- its journal, loop devices and mounts\n{}", ran.output),
                Err(error) => println!("--- no journal: {error}"),
            }
        }
    }
}

fn plug(qemu: &mut Qemu, disk: &Disk) {
    let Disk { name, file, port, read_only } = disk;
    let file = json!({ "driver": "file", "filename": file });
    let node = json!({ "driver": "raw", "node-name": name, "read-only": read_only, "discard": "unmap", "file": file });
    qemu.ask("blockdev-add", node);
    let bus = format!("port{port}");
    let device = json!({ "driver": "virtio-blk-pci", "id": name, "drive": name, "serial": name, "bus": bus });
    qemu.ask("device_add", device);
}

fn wait_for_disk(name: &str) -> String {
    format!("until [ -b /dev/disk/by-id/virtio-{name} ]; do sleep 0.02; done")
}

fn tail(directory: &Path, name: &str) -> String {
    let text = fs::read(directory.join(name)).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
