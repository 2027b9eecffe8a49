//! The ways that volumed goes where the kernel lacks what newer ones have: Debian 12's 6.1 has no listmount, no statmount and no
//! fanotify events about mounts, and grows no btrfs to less than 256 MiB. Bring-up, the repair of what drifts, restarts and removal
//! work on it like on any other.

#![expect(clippy::print_stdout, reason = "a test: it tells what it ran on")]

mod vm;

use vm::Machine;
use vm::host::{pod, target};

#[test]
fn volumes_come_are_repaired_and_go_without_the_kernel_s_newer_calls() {
    let test = "volumes_come_are_repaired_and_go_without_the_kernel_s_newer_calls";
    let Some(mut machine) = Machine::resume(test) else { return };
    let kernel = machine.sh(
        "uname -r; grep --count -E ' __x64_sys_(listmount|statmount|open_tree_attr)$' /proc/kallsyms || true",
    );
    println!("FIGURE: kernel and its newer calls: {}", kernel.replace('\n', " "));
    machine.start_services();
    for (name, fs_type, size) in [("data", "ext4", 16), ("logs", "xfs", 304)] {
        machine.create_volume(name, size, fs_type);
    }
    machine.manifest("web", &pod("web", &["data", "logs"]));
    machine.wait_for_pods(&["web"]);
    let (data, logs) = (target("web", "data"), target("web", "logs"));
    machine.sh(&format!("echo kept >{data}/file; echo kept >{logs}/file; sync"));

    // What vanished comes back.
    machine.sh(&format!("umount {data}"));
    machine.until(
        "it is published again",
        &format!("grep -q ' {data} ' /proc/1/mountinfo; grep -qx kept {data}/file"),
    );

    // What somebody covered is left alone and told, and taken up again when he went.
    machine.sh(&format!("mount -t tmpfs somebody {data}"));
    machine.until("volumectl tells of it", "volumectl status pod/web | grep -F 'another mount lies on top'");
    machine.sh(&format!("test $(grep --count ' {data} ' /proc/1/mountinfo) = 2; umount {data}"));
    machine.wait_for_pods(&["web"]);
    machine.sh(&format!("grep -qx kept {data}/file"));

    // Neither a restart nor a kill of either mounts anything anew.
    let table = "awk '/kubelet/ { print $1, $3, $5 }' /proc/1/mountinfo";
    let mounts = machine.sh(table);
    machine.sh("systemctl restart volumed-csi-loop.service volumed.service");
    machine.sh("systemctl kill --signal=KILL volumed.service volumed-csi-loop.service");
    machine.until(
        "both are back",
        "systemctl is-active volumed.service volumed-csi-loop.service; volumectl list",
    );
    machine.driver_is_ready();
    machine.wait_for_pods(&["web"]);
    assert_eq!(machine.sh(table), mounts);

    machine.remove_manifests(&["web"]);
    machine.wait_until_released(&["web"]);
    machine.remove_manifests(&["data", "logs"]);
    machine.nothing_is_left();
    machine.sh("volumed-csi-loop volume delete data; volumed-csi-loop volume delete logs");
    machine.sh("systemctl stop volumed.service volumed-csi-loop.service");
    machine.sh("test \"$(systemctl show --property=Result --value volumed volumed-csi-loop | sort -u)\" = \"$(printf '\\nsuccess')\"");
}

#[test]
fn a_btrfs_that_the_kernel_does_not_grow_is_told_of_and_comes_up_as_it_was() {
    let test = "a_btrfs_that_the_kernel_does_not_grow_is_told_of_and_comes_up_as_it_was";
    let Some(mut machine) = Machine::resume(test) else { return };
    machine.start_services();
    machine.create_volume("data", 128, "btrfs");
    machine.manifest("web", &pod("web", &["data"]));
    machine.wait_for_pods(&["web"]);
    let path = target("web", "data");
    let has = |mebibytes| format!("(($(stat -f -c '%b * %S' {path}) == {mebibytes} * 1024 * 1024))");
    machine.resize_volume("data", 160);
    machine.until(
        "it grows, or volumectl says why not",
        &format!("{} || volumectl status pod/web | grep -F 'less than 256 MiB'", has(160)),
    );
    // The wish that cannot be met is nobody's reason to be without the volume, and with one that can it grows.
    for (size, grown) in [(160, &has(128)), (256, &has(256))] {
        machine.resize_volume("data", size);
        machine.remove_manifests(&["web"]);
        machine.wait_until_released(&["web"]);
        machine.manifest("web", &pod("web", &["data"]));
        machine.wait_for_pods(&["web"]);
        machine.sh(&format!("{grown} || {}", has(size)));
    }
}
