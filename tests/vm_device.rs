//! Disks of a machine as volumes: they grow under who writes to them, are pulled and come back, and the power is cut while they are
//! formatted, mounted, written to and grown.
//!
//! `VOLUMED_VM_SEED` is the seed of the moments, printed by every run; `VOLUMED_VM_CUTS` how often the power is cut.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly, it tells figures, and a moment to cut the power at is a time"
)]

mod vm;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vm::Machine;
use vm::host::{MIB, pod};
use vm::load::{WRITER, has_written, mount_of, total_of};

/// The `PersistentVolume` of a disk, by its name that lasts, and a claim for it.
fn disk(name: &str, mebibytes: u64, fs_type: &str, annotations: &str) -> String {
    at(&format!("/dev/disk/by-id/virtio-{name}"), name, mebibytes, fs_type, annotations)
}

fn at(path: &str, name: &str, mebibytes: u64, fs_type: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}, annotations: {annotations}}}
spec:
  capacity: {{storage: {mebibytes}Mi}}
  accessModes: [ReadWriteOnce]
  local: {{path: {path}, fsType: {fs_type}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: \"\"
  volumeName: {name}
  resources: {{requests: {{storage: 1Mi}}}}
"
    )
}

fn target(name: &str) -> String {
    format!("/var/lib/kubelet/pods/uid-{name}/volumes/kubernetes.io~local-volume/{name}")
}

fn start(machine: &mut Machine) {
    let units = "volumed.socket volumed.service";
    machine.sh(&format!("systemctl enable --quiet --no-reload {units}; systemctl start {units}"));
}

/// Takes pods down and their volumes with them; nothing of ours is left in the mount table.
fn take_down(machine: &mut Machine, names: &[&str]) {
    machine.remove_manifests(names);
    machine.sh("volumectl approve");
    machine.wait_until_released(names);
    machine.until(
        "nothing is left",
        "! grep -F /var/lib/kubelet/ /proc/1/mountinfo; ! ls /var/lib/volumed/volumes | grep .",
    );
}

#[test]
fn a_disk_s_file_system_grows_under_its_writer() {
    let Some(mut machine) = Machine::resume("a_disk_s_file_system_grows_under_its_writer") else { return };
    start(&mut machine);
    for (fs_type, sizes, check) in [
        ("ext4", [64, 96], "e2fsck -fn"),
        ("xfs", [304, 336], "xfs_repair -n"),
        ("btrfs", [256, 288], "btrfs check --readonly"),
    ] {
        let path = target(fs_type);
        machine.add_disk(fs_type, sizes[0] * MIB);
        let volume = format!("{fs_type}-volume");
        machine.manifest(&volume, &disk(fs_type, sizes[0], fs_type, "{volumed.io/auto-grow: \"true\"}"));
        machine.manifest(fs_type, &pod(fs_type, &[fs_type]));
        machine.wait_for_pods(&[fs_type]);
        let mount = mount_of(&mut machine, &path);
        machine.put("/run/writer", WRITER);
        machine.sh(&format!(
            "rm -f /run/stop /run/sums; systemd-run --quiet --unit=load bash /run/writer {path}"
        ));
        machine.until("it is being written to", &has_written(1));
        let total = total_of(&mut machine, &path);
        // Nobody tells volumed: the kernel does.
        machine.resize_disk(fs_type, sizes[1] * MIB);
        machine.until("it grows", &format!("(($(stat -f -c '%b * %S' {path}) > {total} + 20 * {MIB}))"));
        machine.until("the writer goes on", &has_written(12));
        machine.sh("touch /run/stop");
        machine.until("the writer ends", "! systemctl is-active load");
        machine.sh("test $(systemctl show --property=Result --value load) = success");
        assert_eq!(mount_of(&mut machine, &path), mount, "it was never mounted anew");
        let sums = "sha256sum --check --quiet /run/sums";
        machine.sh(&format!("{sums}; sync; echo 3 >/proc/sys/vm/drop_caches; {sums}"));
        take_down(&mut machine, &[fs_type]);
        machine.sh(&format!("{check} /dev/disk/by-id/virtio-{fs_type}"));
        machine.remove_manifests(&[&volume]);
    }
}

#[test]
fn a_disk_that_is_pulled_is_told_and_comes_back_with_its_files() {
    let Some(mut machine) = Machine::resume("a_disk_that_is_pulled_is_told_and_comes_back_with_its_files")
    else {
        return;
    };
    start(&mut machine);
    for name in ["pulled", "other"] {
        machine.add_disk(name, 48 * MIB);
        machine.manifest(&format!("{name}-volume"), &disk(name, 32, "ext4", "{}"));
        machine.manifest(name, &pod(name, &[name]));
    }
    machine.wait_for_pods(&["pulled", "other"]);
    let path = target("pulled");
    machine.sh(&format!("echo mine >{path}/file; sync -f {path}"));
    let other = mount_of(&mut machine, &target("other"));
    let disk_of_pulled = machine.keep_disk("pulled");
    machine.until(
        "it is told that its disk is gone",
        "volumectl explain pod/pulled | grep device-missing; volumectl explain pod/pulled | grep 'connect the disk'",
    );
    machine.sh("volumectl status pod/pulled | grep 'its disk is gone'");
    assert_eq!(mount_of(&mut machine, &target("other")), other, "the other stays as it is");
    machine.add_kept_disk("pulled", &disk_of_pulled);
    machine.wait_for_pods(&["pulled"]);
    machine.sh(&format!("grep mine {path}/file"));
    // Another disk in its place is told from it.
    machine.remove_manifests(&["pulled"]);
    machine.sh("volumectl approve");
    machine.wait_until_released(&["pulled"]);
    machine.remove_disk("pulled");
    machine.add_disk("stranger", 48 * MIB);
    machine.sh("ln -sfn virtio-stranger /dev/disk/by-id/virtio-pulled");
    machine.manifest("pulled", &pod("pulled", &["pulled"]));
    machine.until("it is refused", "volumectl explain pod/pulled | grep other-disk");
    machine
        .sh("test -z \"$(blkid -p /dev/disk/by-id/virtio-stranger)\"; volumectl accept-identity pod/pulled");
    machine.wait_for_pods(&["pulled"]);
    // A disk whose first sector cannot be read is not blank.
    machine.add_disk("broken", 48 * MIB);
    machine.sh(
        "sectors=$(blockdev --getsz /dev/disk/by-id/virtio-broken)
         printf '0 8 error\\n8 %s linear /dev/disk/by-id/virtio-broken 8\\n' $((sectors - 8)) | dmsetup create broken
         sha256sum </dev/disk/by-id/virtio-broken >/run/before",
    );
    machine.manifest("broken-volume", &at("/dev/mapper/broken", "broken", 32, "ext4", "{}"));
    machine.manifest("broken", &pod("broken", &["broken"]));
    machine.until(
        "it is not formatted",
        "volumectl explain pod/broken | grep -F 'cannot read /dev/mapper/broken: Input/output'",
    );
    machine.sh("sha256sum </dev/disk/by-id/virtio-broken | cmp - /run/before");
    take_down(&mut machine, &["pulled", "other", "broken"]);
}

/// What goes on until the power is cut: one disk after the other gets its manifest and its pod, is written to, and grows while
/// files are added. Every file is synced before it is told of.
const WORK: &str = r#"#!/bin/bash
set -euo pipefail
cut=$1 growth=$2 manifests=/etc/volumed/manifests
shift 2
tell() { echo "$cut $*" >/dev/ttyS2; }
# The last cut may have left half a line there.
echo >/dev/ttyS2
size() { echo $(($(stat -f -c '%b * %S' "$path"))); }
add_file() {
  head --bytes=300000 /dev/urandom >/run/block
  sum=$(sha256sum </run/block)
  dd if=/run/block of="$path/$1" conv=fsync status=none
  sync "$path"
  tell file "$name" "$1" "${sum%% *}"
}
for name in "$@"; do
  for file in "$name-volume" "$name"; do
    cp "/run/manifests/$file" "$manifests/.new"
    sync "$manifests/.new"
    mv "$manifests/.new" "$manifests/$file.yaml"
    sync "$manifests"
  done
  tell wanted "$name"
  volumectl wait "pod/$name" --timeout 100s
  tell mounted "$name"
  path=/var/lib/kubelet/pods/uid-$name/volumes/kubernetes.io~local-volume/$name
  add_file 0
  full=$(($(size) + growth))
  # Whoever reads this makes the disk larger.
  tell growing "$name" "$full"
  for ((number = 1; $(size) < full; number++)); do add_file "$number"; done
  tell grown "$name"
done
"#;

/// By how much a disk is made larger.
const ADDED: u64 = 32 * MIB;

/// By how much its file system says that it grew, at least: it has some of it for itself, which is less than the last of the groups
/// by which an ext4 grows.
const GROWTH: u64 = 28 * MIB;

/// The file systems, the size of a disk for each in MiB, and what looks at one and changes nothing.
const KINDS: [(&str, u64, &str); 3] =
    [("ext4", 80, "e2fsck -fn"), ("xfs", 336, "xfs_repair -n"), ("btrfs", 272, "btrfs check --readonly")];

#[test]
fn what_was_synced_to_a_disk_outlives_a_power_cut_at_every_moment() {
    let test = "what_was_synced_to_a_disk_outlives_a_power_cut_at_every_moment";
    let Some(mut machine) = Machine::resume(test) else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let seed: u64 = std::env::var("VOLUMED_VM_SEED").map_or(now, |text| text.parse().expect("a seed"));
    let cuts: u64 = std::env::var("VOLUMED_VM_CUTS").map_or(2, |text| text.parse().expect("a number"));
    println!("FIGURE: {test}: VOLUMED_VM_SEED={seed}");
    let mut chance = seed;
    let mut below = |end: u64| {
        // Numerical Recipes' generator: moments need no better one.
        chance = chance.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (chance >> 16) % end
    };
    let first = below(4);
    start(&mut machine);
    for cut in 0..cuts {
        // A disk's four words are told; the moment is counted from one of them, so that slow machines see the same. Four cuts
        // come after each of the four.
        let words = usize::try_from(1 + (first + cut) % 4 + 4 * below(3)).expect("few");
        let later = Duration::from_millis(below(1500));
        work(&mut machine, cut);
        let larger = grow_until(&mut machine, cut, words);
        std::thread::sleep(later);
        machine.cut_power();
        let told = told_of(&machine, cut);
        let steps = words_of(&told);
        println!(
            "FIGURE: the power was cut {later:?} after {words} words; made larger: {larger:?}; told were {steps:?} and {} files",
            told.len() - steps.len()
        );
        machine.boot();
        machine.until("volumed answers", "volumectl status");
        is_true(&mut machine, &told, &larger);
        take_all_down(&mut machine, cut, &told);
    }
}

/// Plugs a disk of each kind in and has them worked with.
fn work(machine: &mut Machine, cut: u64) {
    let mut names = Vec::new();
    for (kind, size, _) in KINDS {
        let name = format!("{kind}{cut}");
        machine.add_disk(&name, size * MIB);
        let volume = disk(&name, size - 16, kind, "{volumed.io/auto-grow: \"true\"}");
        machine.put(&format!("/run/manifests/{name}-volume"), volume);
        machine.put(&format!("/run/manifests/{name}"), pod(&name, &[&name]));
        names.push(name);
    }
    machine.put("/run/work", WORK);
    let names = names.join(" ");
    machine.sh(&format!("sync; systemd-run --quiet --unit=load bash /run/work {cut} {GROWTH} {names}"));
}

/// Makes each disk larger when that is asked for, until so many words were told. Returns which ones it made larger.
fn grow_until(machine: &mut Machine, cut: u64, words: usize) -> Vec<String> {
    let mut larger: Vec<String> = Vec::new();
    let deadline = Instant::now() + 3 * vm::PATIENCE;
    loop {
        let told = told_of(machine, cut);
        let told = words_of(&told);
        for name in told.iter().take(words).filter_map(|line| line.strip_prefix("growing ")) {
            let name = name.split(' ').next().expect("a name").to_owned();
            if !larger.contains(&name) {
                let (_, size, _) = KINDS.iter().find(|kind| name.starts_with(kind.0)).expect("a kind");
                machine.resize_disk(&name, size * MIB + ADDED);
                larger.push(name);
            }
        }
        if told.len() >= words {
            return larger;
        }
        assert!(Instant::now() < deadline, "the work does not come so far: {:?}", machine.told());
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What one cut's work has told.
fn told_of(machine: &Machine, cut: u64) -> Vec<String> {
    let ours = format!("{cut} ");
    machine.told().iter().filter_map(|line| line.strip_prefix(&ours).map(str::to_owned)).collect()
}

/// The four of each disk: its files are not counted.
fn words_of(told: &[String]) -> Vec<&str> {
    told.iter().map(String::as_str).filter(|line| !line.starts_with("file ")).collect()
}

fn wanted(told: &[String]) -> Vec<&str> {
    told.iter().filter_map(|line| line.strip_prefix("wanted ")).collect()
}

/// Looks at everything that was told: what was wanted comes up, with its files, and as large as its disk.
fn is_true(machine: &mut Machine, told: &[String], larger: &[String]) {
    machine.wait_for_pods(&wanted(told));
    let mut sums = String::new();
    for line in told {
        match line.split(' ').collect::<Vec<_>>().as_slice() {
            ["file", name, file, sum] => sums.push_str(&format!("{sum}  {}/{file}\n", target(name))),
            ["growing", name, full] if larger.iter().any(|one| one == name) => {
                let (total, full) = (total_of(machine, &target(name)), full.parse().expect("a number"));
                assert!(total >= full, "{name} has {total} bytes of {full}: its growth is not finished");
            }
            _ => {}
        }
    }
    if !sums.is_empty() {
        machine.put("/run/sums", sums);
        machine.sh("sha256sum --check --quiet /run/sums");
    }
}

/// Takes all down that is there, also the one that was perhaps not told of yet, and finds all file systems whole.
fn take_all_down(machine: &mut Machine, cut: u64, told: &[String]) {
    let pods = machine
        .sh(&format!("cd /etc/volumed/manifests; ls | sed -n 's/^\\([a-z0-9]*{cut}\\)[.]yaml$/\\1/p'"));
    let pods: Vec<&str> = pods.lines().collect();
    assert!(wanted(told).iter().all(|name| pods.contains(name)), "a manifest is lost: {pods:?} of {told:?}");
    machine.wait_for_pods(&pods);
    take_down(machine, &pods);
    for (kind, _, check) in KINDS {
        let name = format!("{kind}{cut}");
        if pods.contains(&name.as_str()) {
            machine.sh(&format!("{check} /dev/disk/by-id/virtio-{name}"));
        }
        machine.remove_disk(&name);
    }
    machine.sh("cd /etc/volumed/manifests; rm -f .new *-volume.yaml");
}
