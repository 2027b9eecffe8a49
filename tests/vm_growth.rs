//! A mounted volume of the bundled driver grows while somebody writes to it, in a machine: there the driver has
//! `CAP_SYS_RESOURCE`, without which no ext4 grows online, and which most hosts of tests do not give.

mod vm;

use vm::Machine;
use vm::host::{IMAGES, MIB, pod, target};
use vm::load::{WRITER, has_written, mount_of, total_of};

#[test]
fn an_ext4_volume_grows_under_its_writer() {
    grows_under_its_writer("an_ext4_volume_grows_under_its_writer", "ext4", [64, 96, 128], "e2fsck -fn");
}

#[test]
fn an_xfs_volume_grows_under_its_writer() {
    grows_under_its_writer("an_xfs_volume_grows_under_its_writer", "xfs", [304, 336, 368], "xfs_repair -n");
}

#[test]
fn a_btrfs_volume_grows_under_its_writer() {
    // To less than 256 MiB Debian 12's kernel grows none (vm_old_kernel.rs).
    let check = "btrfs check --readonly";
    grows_under_its_writer("a_btrfs_volume_grows_under_its_writer", "btrfs", [128, 256, 288], check);
}

/// `sizes` in MiB, the first about as small as the file system may be. `check` looks at an image of it and changes nothing.
fn grows_under_its_writer(test: &str, fs_type: &str, sizes: [u64; 3], check: &str) {
    let Some(mut machine) = Machine::resume(test) else { return };
    machine.start_services();
    machine.create_volume("data", sizes[0], fs_type);
    machine.manifest("web", &pod("web", &["data"]));
    machine.wait_for_pods(&["web"]);
    let path = target("web", "data");
    let mount = mount_of(&mut machine, &path);

    machine.put("/run/writer", WRITER);
    let mut total = total_of(&mut machine, &path);
    for (round, size) in (1..).zip(&sizes[1..]) {
        // Little room is left, so that who writes soon needs what is added. A btrfs cannot give all that it says is free.
        machine.sh(&format!(
            "for left in 4 8 16 32; do
               size=$(($(stat -f -c '%a * %S' {path}) - left * {MIB}))
               fallocate --length $size {path}/ballast{round} && exit
               rm -f {path}/ballast{round}
             done
             exit 1"
        ));
        if round == 1 {
            machine.sh(&format!("systemd-run --quiet --unit=load bash /run/writer {path}"));
        }
        machine.until("it is being written to", &has_written(8 * round - 7));
        machine.resize_volume("data", *size);
        machine.until("it grows", &format!("(($(stat -f -c '%b * %S' {path}) > {total} + 20 * {MIB}))"));
        total = total_of(&mut machine, &path);
        machine.until("what was added is written to", &has_written(24 * round));
    }
    machine.sh("touch /run/stop");
    machine.until("the writer ends", "! systemctl is-active load");
    machine.sh("test $(systemctl show --property=Result --value load) = success");
    assert_eq!(mount_of(&mut machine, &path), mount, "it was never mounted anew");
    let condition = machine.sh("volumectl status pod/web");
    assert!(!condition.contains("blocked"), "{condition}");

    // What was synced is there: now, when it has to be read again, and in the next pod.
    let sums = "sha256sum --check --quiet /run/sums";
    machine.sh(&format!("{sums}; sync; echo 3 >/proc/sys/vm/drop_caches; {sums}"));
    machine.remove_manifests(&["web"]);
    machine.wait_until_released(&["web"]);
    machine.sh(&format!("{check} {IMAGES}/volumes/data/image"));
    machine.manifest("web", &pod("web", &["data"]));
    machine.wait_for_pods(&["web"]);
    machine.sh(sums);
    assert_eq!(total_of(&mut machine, &path), total);
    machine.remove_manifests(&["web"]);
    machine.wait_until_released(&["web"]);
    machine.remove_manifests(&["data"]);
    machine.nothing_is_left();
}
