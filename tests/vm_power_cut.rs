//! The power is cut while volumes of the bundled driver are made, mounted, written to, grown and deleted. What was told to the
//! world before is true after the next boot, nothing half-made is in the way, and all of it can be taken down.
//!
//! `VOLUMED_VM_SEED` is the seed of the moments, printed by every run; `VOLUMED_VM_CUTS` how many each test has.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly, it tells figures, and a moment to cut the power at is a time"
)]

mod vm;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vm::Machine;
use vm::host::{IMAGES, MIB, pod, target};

/// What goes on until the power is cut: volume after volume is made, mounted, written to and grown, and every second one is
/// taken down and deleted. `tell` says what is known for certain by then; a manifest is synced as whoever writes it must.
const WORK: &str = r#"#!/bin/bash
set -euo pipefail
fs=$1 size=$2 cut=$3 manifests=/etc/volumed/manifests
tell() { echo "$cut $*" >/dev/ttyS2; }
install_manifest() {
  cat >"$manifests/.new"
  sync "$manifests/.new"
  mv "$manifests/.new" "$manifests/$1.yaml"
  sync "$manifests"
}
remove_manifest() { rm "$manifests/$1.yaml"; sync "$manifests"; }
for ((number = 0; ; number++)); do
  name=c$cut-$number
  path=/var/lib/kubelet/pods/uid-$name/volumes/kubernetes.io~csi/$name/mount
  tell making "$name"
  { volumed-csi-loop volume create "$name" --size "${size}Mi" --fs "$fs"; sed "s/NAME/$name/g" /run/claim; } >/run/new
  tell made "$name"
  install_manifest "$name-volume" </run/new
  sed "s/NAME/$name/g" /run/pod | install_manifest "$name"
  tell wanted "$name"
  volumectl wait "pod/$name" --timeout 100s
  tell mounted "$name"
  head --bytes=300000 /dev/urandom >/run/block
  sum=$(sha256sum </run/block)
  dd if=/run/block of="$path/data" conv=fsync status=none
  sync "$path"
  tell wrote "$name" "${sum%% *}"
  volumed-csi-loop volume resize "$name" --size "$((size + 16))Mi"
  tell resized "$name"
  sed "/capacity:/,/storage:/s/storage: .*/storage: $((size + 16))Mi/" "$manifests/$name-volume.yaml" >/run/new
  install_manifest "$name-volume" </run/new
  ((number % 2 == 0)) || continue
  tell removing "$name"
  remove_manifest "$name"
  volumectl wait --for=released "pod/$name" --timeout 100s
  remove_manifest "$name-volume"
  volumed-csi-loop volume delete "$name"
  tell deleted "$name"
done
"#;

/// What `WORK` has told of one volume by the end.
#[derive(Debug, Default)]
struct Told {
    made: bool,
    wanted: bool,
    sum: Option<String>,
    resized: bool,
    removing: bool,
    deleted: bool,
}

#[test]
fn what_was_told_of_ext4_volumes_outlives_a_power_cut() {
    outlives_power_cuts("what_was_told_of_ext4_volumes_outlives_a_power_cut", &[("ext4", 16)], 1);
}

#[test]
fn what_was_told_of_xfs_and_btrfs_volumes_outlives_a_power_cut() {
    let test = "what_was_told_of_xfs_and_btrfs_volumes_outlives_a_power_cut";
    outlives_power_cuts(test, &[("xfs", 304), ("btrfs", 128)], 2);
}

fn outlives_power_cuts(test: &str, kinds: &[(&str, u64)], salt: u64) {
    let Some(mut machine) = Machine::resume(test) else { return };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let seed = variable("VOLUMED_VM_SEED", now);
    println!("FIGURE: {test}: VOLUMED_VM_SEED={seed}");
    let mut chance = Chance(seed.wrapping_mul(2).wrapping_add(salt));
    machine.start_services();
    for cut in 0..variable("VOLUMED_VM_CUTS", 1) {
        let at = usize::try_from(cut).expect("few") % kinds.len();
        let (fs_type, size) = kinds[at];
        machine.put("/run/work", WORK);
        machine.put("/run/claim", CLAIM);
        machine.put("/run/pod", pod("NAME", &["NAME"]));
        machine.sh("sync");
        // Three volumes tell some two dozen times. The moment is counted from a word, so that slow machines see the same.
        let words = 2 + chance.below(18);
        let later = Duration::from_millis(chance.below(1500));
        machine.sh(&format!("systemd-run --quiet --unit=load bash /run/work {fs_type} {size} {cut}"));
        wait_for_words(&mut machine, cut, words);
        std::thread::sleep(later);
        machine.cut_power();
        let told = told_of(&machine, cut);
        println!(
            "FIGURE: {fs_type}: the power was cut {later:?} after {words} words; {} were told",
            count(&machine, cut)
        );
        machine.boot();
        machine.driver_is_ready();
        is_true(&mut machine, &told, size + 16);
        take_down(&mut machine);
    }
}

/// Looks at everything that was told.
fn is_true(machine: &mut Machine, told: &BTreeMap<String, Told>, grown: u64) {
    let listed = machine.sh("volumed-csi-loop volume list -o name");
    let listed: BTreeSet<&str> = listed.lines().map(|line| line.rsplit('/').next().unwrap_or(line)).collect();
    let manifests = machine.sh("ls /etc/volumed/manifests");
    for (name, told) in told {
        let what = format!("{name}: {told:?}; the driver has {listed:?}; manifests: {manifests}");
        if told.made && !told.removing {
            assert!(listed.contains(name.as_str()), "a volume is lost: {what}");
        }
        if told.deleted {
            assert!(!listed.contains(name.as_str()), "a deleted volume is there again: {what}");
        }
        let wanted = manifests.lines().any(|line| line == format!("{name}.yaml"));
        assert!(wanted || !told.wanted || told.removing, "a manifest is lost: {what}");
        if !wanted {
            continue;
        }
        machine.wait_for_pods(&[name]);
        let path = target(name, name);
        if let Some(sum) = &told.sum {
            let seen = machine.sh(&format!("sha256sum <{path}/data"));
            assert_eq!(seen.split(' ').next(), Some(sum.as_str()), "data that was synced is lost: {what}");
        }
        if told.resized {
            let size = machine.sh(&format!("stat --format=%s {IMAGES}/volumes/{name}/image"));
            let size: u64 = size.trim().parse().expect("a number");
            assert!(size >= grown * MIB, "a volume is as small as it was: {size}, {what}");
        }
    }
}

/// Takes all down that is there and deletes it: what the cut left behind is in nobody's way.
fn take_down(machine: &mut Machine) {
    machine.sh(
        "cd /etc/volumed/manifests
         pods=$(ls | sed -n 's/^\\(c[0-9]*-[0-9]*\\)[.]yaml$/\\1/p')
         for pod in $pods; do rm $pod.yaml; done
         volumectl approve
         for pod in $pods; do volumectl wait --for=released pod/$pod --timeout 100s; done
         rm -f c*-volume.yaml .new
         for volume in $(volumed-csi-loop volume list -o name); do volumed-csi-loop volume delete ${volume##*/}; done
         test -z \"$(volumed-csi-loop volume list -o name)\"",
    );
    machine.nothing_is_left();
}

const CLAIM: &str = "---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: NAME}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: \"\"
  volumeName: NAME
  resources: {requests: {storage: 1Mi}}
";

/// The words of one cut's work: what, of which volume, and its sum.
fn words_of(machine: &Machine, cut: u64) -> Vec<Vec<String>> {
    let words = machine.told().into_iter().map(|line| line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    words.filter(|words| words.len() > 2 && words[0] == cut.to_string()).collect()
}

fn count(machine: &Machine, cut: u64) -> usize {
    words_of(machine, cut).len()
}

fn told_of(machine: &Machine, cut: u64) -> BTreeMap<String, Told> {
    let mut all: BTreeMap<String, Told> = BTreeMap::new();
    for words in words_of(machine, cut) {
        let told = all.entry(words[2].clone()).or_default();
        match words[1].as_str() {
            "made" => told.made = true,
            "wanted" => told.wanted = true,
            "wrote" => told.sum = words.get(3).cloned(),
            "resized" => told.resized = true,
            "removing" => told.removing = true,
            "deleted" => told.deleted = true,
            _ => {}
        }
    }
    all
}

fn wait_for_words(machine: &mut Machine, cut: u64, words: u64) {
    let deadline = Instant::now() + 3 * vm::PATIENCE;
    for round in 1_u64.. {
        if count(machine, cut) >= usize::try_from(words).expect("few") {
            return;
        }
        assert!(Instant::now() < deadline, "the work does not come so far: {:?}", machine.told());
        std::thread::sleep(Duration::from_millis(100));
        if round.is_multiple_of(100) {
            machine.sh("systemctl is-active load");
        }
    }
}

fn variable<T: FromStr<Err: Debug>>(name: &str, default: T) -> T {
    std::env::var(name).map_or(default, |text| text.parse().expect(name))
}

/// Numbers by chance, the same ones for the same seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}
