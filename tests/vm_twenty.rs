//! Twenty volumes of the bundled driver in a machine: what they cost volumed, that its limit of memory is a real one, and that a
//! kill and a reboot change nothing about them.

#![expect(
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a test: its helpers may fail loudly, and it tells figures"
)]

mod vm;

use vm::Machine;
use vm::host::{MIB, named, pod, target};

const PODS: usize = 10;

/// Each pod has two volumes; most are ext4, one is xfs and one btrfs.
fn volumes() -> Vec<(String, u64, &'static str)> {
    let of = |number| match number {
        0 => (304, "xfs"),
        1 => (128, "btrfs"),
        _ => (16, "ext4"),
    };
    (0..2 * PODS).map(|number| (format!("v{number}"), of(number).0, of(number).1)).collect()
}

fn pods() -> Vec<String> {
    (0..PODS).map(|number| format!("p{number}")).collect()
}

/// The paths of all volumes, as words.
fn paths() -> String {
    let one = |(number, volume): (usize, &(String, u64, _))| target(&format!("p{}", number / 2), &volume.0);
    volumes().iter().enumerate().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn twenty_volumes_outlive_a_want_of_memory_and_a_reboot() {
    let Some(mut machine) = Machine::resume("twenty_volumes_outlive_a_want_of_memory_and_a_reboot") else {
        return;
    };
    machine.start_services();
    for (name, size, fs_type) in volumes() {
        machine.create_volume(&name, size, fs_type);
    }
    let (pods, paths) = (pods(), paths());
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    for (number, name) in pods.iter().enumerate() {
        machine.manifest(name, &pod(name, &[&format!("v{}", 2 * number), &format!("v{}", 2 * number + 1)]));
    }
    machine.wait_for_pods(&pods);
    machine.sh(&format!(
        "for path in {paths}; do
           head --bytes=100000 /dev/urandom >$path/data
           sha256sum $path/data >>/var/lib/sums
         done
         sync"
    ));

    let anonymous = figures(&mut machine);
    assert!(anonymous < 40 * MIB, "volumed has {anonymous} bytes of its own for twenty volumes");

    // A limit below what volumed has for itself, which the kernel can take from it only by killing it.
    let table = "awk '/kubelet/ { print $1, $3, $5 }' /proc/1/mountinfo | sort";
    let mounts = machine.sh(table);
    assert_eq!(mounts.lines().filter(|line| line.contains("/pods/")).count(), 2 * PODS, "{mounts}");
    let limit = "systemctl set-property --runtime volumed.service";
    machine.sh(&format!("{limit} MemorySwapMax=0 MemoryMax={}", anonymous / 4));
    machine.until(
        "the kernel kills volumed for its memory, and systemd starts it again",
        "grep -q 'oom-kill' < <(journalctl --boot --unit=volumed.service --output=cat)
         (($(systemctl show --property=NRestarts --value volumed.service) > 0))",
    );
    assert_eq!(machine.sh(table), mounts, "the mounts are others after the kill");
    machine.sh(&format!("{limit} MemoryMax=infinity"));
    machine.until("volumed is back", "systemctl is-active volumed.service && volumectl list");
    machine.wait_for_pods(&pods);
    assert_eq!(machine.sh(table), mounts, "volumed mounted anew what was mounted");

    let before = machine.sh("cat /proc/sys/kernel/random/boot_id");
    let took = machine.reboot();
    println!("FIGURE: a reboot of the machine with twenty volumes took {} s", took.as_secs());
    assert_ne!(machine.sh("cat /proc/sys/kernel/random/boot_id"), before, "it is the same boot");
    machine.wait_for_pods(&pods);
    machine.sh("sha256sum --check --quiet /var/lib/sums");
    for path in paths.split(' ') {
        machine.sh(&format!("test $(grep --count ' {path} ' /proc/1/mountinfo) = 1"));
    }
    machine.sh("systemctl is-system-running || systemctl --failed --no-legend | { ! grep volumed; }");
    let all: Vec<String> = volumes().into_iter().map(|volume| volume.0).collect();
    machine.remove_manifests(&pods);
    // The brake holds what all goes at once.
    machine.until(
        "all is released",
        &format!("volumectl approve; volumectl wait --for=released {} --timeout 5s", named(&pods)),
    );
    machine.remove_manifests(&all.iter().map(String::as_str).collect::<Vec<_>>());
    machine.nothing_is_left();
}

/// Tells what volumed's control group has; returns how much of it is nobody else's and cannot be read again, in bytes.
fn figures(machine: &mut Machine) -> u64 {
    let group = "/sys/fs/cgroup/system.slice/volumed.service";
    let text = machine
        .sh(&format!("awk '$1 == \"anon\" {{ print $2 }}' {group}/memory.stat; cat {group}/memory.peak"));
    let numbers: Vec<u64> = text.split_whitespace().map(|word| word.parse().expect("a number")).collect();
    let (anonymous, peak) = (numbers.first().expect("a number"), numbers.last().expect("a number"));
    println!(
        "FIGURE: volumed.service with twenty volumes: {} KiB of its own, at most {} KiB with the files that it read",
        anonymous / 1024,
        peak / 1024
    );
    *anonymous
}
