//! Disks of a machine as volumes: they grow under who writes to them, are pulled and come back, and the power is cut while they are
//! formatted, mounted and written to.
//!
//! `VOLUMED_VM_SEED` is the seed of the moments, printed by every run; `VOLUMED_VM_CUTS` how often the power is cut.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly, it tells figures, and a moment to cut the power at is a time"
)]

mod vm;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vm::Machine;
use vm::host::{MIB, named, pod};
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

/// What goes on until the power is cut: one disk after the other gets its manifest and its pod, and is written to.
const WORK: &str = r#"#!/bin/bash
set -euo pipefail
cut=$1 manifests=/etc/volumed/manifests
shift
tell() { echo "$cut $*" >/dev/ttyS2; }
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
  head --bytes=300000 /dev/urandom >/run/block
  sum=$(sha256sum </run/block)
  dd if=/run/block of="$path/data" conv=fsync status=none
  sync "$path"
  tell wrote "$name" "${sum%% *}"
done
tell end end
"#;

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
    start(&mut machine);
    for cut in 0..cuts {
        let kinds = [("ext4", 64), ("xfs", 320), ("btrfs", 256)];
        let names: Vec<String> = kinds.iter().map(|(kind, _)| format!("{kind}{cut}")).collect();
        for ((kind, size), name) in kinds.iter().zip(&names) {
            machine.add_disk(name, (size + 16) * MIB);
            machine.put(&format!("/run/manifests/{name}-volume"), disk(name, *size, kind, "{}"));
            machine.put(&format!("/run/manifests/{name}"), pod(name, &[name]));
        }
        machine.put("/run/work", WORK);
        machine
            .sh(&format!("sync; systemd-run --quiet --unit=load bash /run/work {cut} {}", names.join(" ")));
        // Nine words are told; the moment is counted from one of them, so that slow machines see the same.
        let words = usize::try_from(1 + below(8)).expect("few");
        let later = Duration::from_millis(below(1500));
        let of_cut = |machine: &Machine| {
            let told = machine.told().into_iter().filter(|line| line.starts_with(&format!("{cut} ")));
            told.collect::<Vec<_>>()
        };
        let deadline = Instant::now() + 2 * vm::PATIENCE;
        while of_cut(&machine).len() < words {
            assert!(Instant::now() < deadline, "the work does not come so far: {:?}", machine.told());
            std::thread::sleep(Duration::from_millis(50));
        }
        std::thread::sleep(later);
        machine.cut_power();
        let told = of_cut(&machine);
        println!(
            "FIGURE: the power was cut {later:?} after {words} words; {} were told: {told:?}",
            told.len()
        );
        machine.boot();
        let wanted: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| told.iter().any(|line| *line == format!("{cut} wanted {name}")))
            .collect();
        machine.until("volumed answers", "volumectl status");
        machine.wait_for_pods(&wanted);
        for line in &told {
            let words: Vec<&str> = line.split(' ').collect();
            if let [_, "wrote", name, sum] = words.as_slice() {
                machine.sh(&format!("sha256sum <{}/data | grep -F {sum}", target(name)));
            }
        }
        // Also the one that was perhaps not told of yet.
        machine.sh(&format!(
            "cd /etc/volumed/manifests; pods=$(ls | sed -n 's/^\\([a-z0-9]*{cut}\\)[.]yaml$/\\1/p')
             volumectl wait $(printf 'pod/%s ' $pods) --timeout 100s
             rm $(printf '%s.yaml ' $pods); volumectl approve
             volumectl wait --for=released {} --timeout 100s; rm -f .new *-volume.yaml
             for disk in {}; do wipefs -n /dev/disk/by-id/virtio-$disk; done",
            named(&wanted),
            names.join(" ")
        ));
        for name in &names {
            machine.remove_disk(name);
        }
    }
}
