//! Disks that are encrypted, in a machine whose kernel has device mapper: most hosts of tests have none. What cryptsetup does is
//! done once as volumed.service lets it be: with its capabilities, system calls and sockets, and with little memory.

mod vm;

use std::time::Duration;

use vm::host::MIB;
use vm::{Machine, PATIENCE};

/// The key. It is in one file of the machine, and nowhere else that anybody looks.
const KEY: &str = "Ohb7aiNg-eiy8Quoh-zu3Aixae-ieG4ahqu";
const KEY_FILE: &str = "/root/key";
const WRONG_KEY_FILE: &str = "/root/wrong-key";

const UUID: &str = "0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0";
const OTHER_UUID: &str = "1f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f1";
const FS_UUID: &str = "2f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f2";

const ROOT: &str = "/var/lib/kubelet";
const PLACE: &str = "plugins/kubernetes.io/local-volume/mounts/pv";

/// Runs a command as the unit of volumed would.
const AS_VOLUMED: &str = r#"#!/bin/bash
set -euo pipefail
unit=/etc/systemd/system/volumed.service
capabilities=$(sed -n 's/^CapabilityBoundingSet=//p' $unit | paste -sd ' ')
keys='NoNewPrivileges|SystemCall.*|Restrict[AN].*|LockPersonality|MemoryDeny.*|ProtectHostname|UMask'
mapfile -t properties < <(sed -nE "s/^($keys)=/--property=\1=/p" $unit)
test ${#properties[@]} -gt 8
exec systemd-run --quiet --wait --pipe --collect --property=MemoryMax=256M \
  --property="CapabilityBoundingSet=$capabilities" "${properties[@]}" "$@"
"#;

/// Looks for the key in the arguments and environments of all processes, again and again.
const WATCH: &str = "#!/bin/bash
while [[ ! -e /run/watch-ends ]]; do
  grep --files-with-matches --no-messages --text --fixed-strings --file=/root/key /proc/[0-9]*/{cmdline,environ} >>/run/seen
  echo >>/run/looks
  sleep 0.3
done
true
";

struct Disks(Machine);

impl Disks {
    fn resume(test: &str) -> Option<Self> {
        let mut machine = Machine::resume(test)?;
        machine.sh("command -v disktool # cargo build --bins --examples");
        machine.put(KEY_FILE, KEY);
        machine.put(WRONG_KEY_FILE, "another key");
        machine.put("/usr/local/bin/as-volumed", AS_VOLUMED);
        machine.sh("chmod 755 /usr/local/bin/as-volumed");
        Some(Self(machine))
    }

    /// Asks for one thing that has to be done; returns what was.
    fn does(&mut self, what: &str) -> String {
        self.0.sh(&format!("disktool {ROOT} {what}")).trim().to_owned()
    }

    /// As `does`, with the rights and the memory that volumed's unit has.
    fn does_as_volumed(&mut self, what: &str) -> String {
        self.0.sh(&format!("as-volumed disktool {ROOT} {what}")).trim().to_owned()
    }

    /// Asks for one thing that has to be refused, and for nothing to have been written; returns why.
    fn refuses(&mut self, what: &str) -> String {
        let ran = self.0.run(&format!("disktool {ROOT} {what}"), PATIENCE);
        assert!(ran.status == 1 && ran.output.trim().ends_with("written: false"), "{what}: {ran:?}");
        assert!(!ran.output.contains(KEY), "{what}: the key is in its words");
        ran.output
    }

    /// Sums up a whole disk.
    fn sum(&mut self, disk: &str) -> String {
        self.0.sh(&format!("sha256sum {}", node(disk)))
    }
}

fn node(disk: &str) -> String {
    format!("/dev/disk/by-id/virtio-{disk}")
}

fn format(disk: &str, begun: &str) -> String {
    format!("luks-format {} {UUID} {KEY_FILE} {begun}", node(disk))
}

fn open(disk: &str) -> String {
    format!("luks-open {} {UUID} pv {KEY_FILE}", node(disk))
}

#[test]
fn an_encrypted_disk_is_made_once_opened_mounted_grown_and_is_there_after_a_reboot() {
    let test = "an_encrypted_disk_is_made_once_opened_mounted_grown_and_is_there_after_a_reboot";
    let Some(mut disks) = Disks::resume(test) else { return };
    disks.0.add_disk("data", 96 * MIB);
    disks.0.put("/run/watch", WATCH);
    disks.0.sh("systemd-run --quiet --unit=watch bash /run/watch");
    let device = node("data");
    let (close, grow) = (format!("luks-close pv {UUID}"), format!("luks-grow pv {UUID} {KEY_FILE}"));

    assert_eq!(disks.does_as_volumed(&format("data", "fresh")), "Made");
    let found = disks.does(&format!("inspect {device}"));
    assert!(found.contains("Foreign") && found.contains("crypto_LUKS"), "{found}");
    assert!(disks.refuses(&format("data", "fresh")).contains("crypto_LUKS"));
    assert!(disks.refuses(&format!("format {device} ext4 {FS_UUID} begun")).contains("crypto_LUKS"));
    // What became of it was lost: it is whole, and left.
    let before = disks.sum("data");
    assert_eq!(disks.does(&format("data", "begun")), "AlreadyThere");
    assert_eq!(disks.sum("data"), before);

    // It opens with its key, once, under its name.
    let wrong = format!("luks-open {device} {UUID} pv {WRONG_KEY_FILE}");
    assert!(disks.refuses(&wrong).contains("the key does not open"));
    let other = format!("luks-open {device} {OTHER_UUID} pv {KEY_FILE}");
    assert!(disks.refuses(&other).contains("has not the encryption that was recorded"));
    disks.0.sh("test ! -e /dev/mapper/pv; test -z \"$(dmsetup ls | grep -v 'No devices')\"");
    assert!(disks.does_as_volumed(&open("data")).contains("already: false"));
    assert!(disks.does(&open("data")).contains("already: true"));
    let twice = format!("luks-open {device} {UUID} another {KEY_FILE}");
    assert!(disks.refuses(&twice).contains("in use"));
    assert!(disks.refuses(&format("data", "begun")).contains("in use"));

    // What is inside is a blank disk like any other.
    let inside = "/dev/mapper/pv";
    assert!(disks.does(&format!("inspect {inside}")).contains("content: Blank"));
    assert_eq!(disks.does(&format!("format {inside} ext4 {FS_UUID} fresh")), "Made");
    disks.0.sh(&format!("mkdir -p {ROOT}/{PLACE}"));
    let mount = format!("mount {inside} ext4 {FS_UUID} {PLACE}");
    disks.does(&mount);
    disks.0.sh(&format!("echo content >{ROOT}/{PLACE}/file"));
    let busy = disks.refuses(&close);
    assert!(busy.contains("in use") && busy.contains("mounted at"), "{busy}");
    assert!(disks.refuses(&format!("luks-close pv {OTHER_UUID}")).contains("is not the open encryption"));

    // It grows with its disk, and the file system in it after that.
    assert!(disks.does(&grow).contains("Enough"));
    disks.0.resize_disk("data", 160 * MIB);
    disks.0.until("the disk has grown", &format!("(($(blockdev --getsize64 {device}) == 160 * {MIB}))"));
    assert!(
        disks.refuses(&format!("luks-grow pv {UUID} {WRONG_KEY_FILE}")).contains("the key does not open")
    );
    assert!(disks.does_as_volumed(&grow).contains("Grown"));
    disks.0.sh(&format!("(($(blockdev --getsize64 {inside}) == (160 - 16) * {MIB}))"));
    assert!(disks.does(&grow).contains("Enough"));
    let grow_inside = format!("grow {inside} ext4 {FS_UUID} {PLACE}");
    assert!(disks.does(&grow_inside).contains("Grown"));

    disks.0.sh(&format!("umount {ROOT}/{PLACE}"));
    disks.does_as_volumed(&close);
    disks.does(&close);
    // Somebody has used it: nothing that was begun explains that.
    let used = disks.refuses(&format("data", "begun"));
    assert!(used.contains("in it the file system ext4"), "{used}");
    disks.0.sh("test ! -e /dev/mapper/pv; test -z \"$(dmsetup ls | grep -v 'No devices')\"");

    // The key was nowhere to be seen; who looked would have seen it.
    let looks = |disks: &mut Disks| disks.0.sh("wc -l </run/looks").trim().parse::<u32>().unwrap_or_default();
    assert!(looks(&mut disks) > 20, "it was hardly looked for");
    disks.0.sh("systemctl is-active watch; test ! -s /run/seen; sync");
    disks.0.sh("! journalctl --no-pager --output=export | grep --text --fixed-strings --file=/root/key");
    disks.0.sh(&format!(
        "! grep --recursive --text --fixed-strings --file=/root/key {ROOT} /etc /run/systemd /run/udev /run/cryptsetup"
    ));
    disks.0.sh("systemd-run --quiet --unit=seen bash -c 'KEY=$(cat /root/key) exec sleep 1000'");
    disks.0.until("who looks sees a key", "test -s /run/seen");

    disks.0.reboot();
    assert!(disks.does(&open("data")).contains("already: false"));
    disks.does(&mount);
    assert_eq!(disks.0.sh(&format!("cat {ROOT}/{PLACE}/file")), "content\n");
}

#[test]
fn whatever_luks_format_left_is_finished_and_nothing_else_is_touched() {
    let test = "whatever_luks_format_left_is_finished_and_nothing_else_is_touched";
    let Some(mut disks) = Disks::resume(test) else { return };
    let name = format!("volumed-new-{UUID}");
    let header = |uuid: &str, more: &str| {
        let fast = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
        format!(
            "cryptsetup luksFormat --batch-mode --type luks2 {fast} --uuid {uuid} $disk {KEY_FILE}; {more}"
        )
    };
    let noise = "dd if=/dev/urandom of=$disk bs=64k seek=1 count=200 conv=fsync status=none";
    for (index, (what, left)) in [
        ("noise without a header", noise.to_owned()),
        ("a header without a key", header(UUID, "cryptsetup luksErase --batch-mode $disk")),
        ("a header whose inside is noise", header(UUID, "")),
        ("one that is open", header(UUID, &format!("cryptsetup open --key-file {KEY_FILE} $disk {name}"))),
        ("headers that are torn", header(UUID, "printf torn | tee >(dd of=$disk bs=1 seek=9000 conv=notrunc,fsync status=none) | dd of=$disk bs=1 seek=25384 conv=notrunc,fsync status=none; sleep 0.2")),
    ]
    .into_iter()
    .enumerate()
    {
        let disk = format!("left{index}");
        disks.0.add_disk(&disk, 48 * MIB);
        disks.0.sh(&format!("# {what}\ndisk={}; {left}", node(&disk)));
        let refused = disks.refuses(&format(&disk, "fresh"));
        assert!(refused.contains("is not formatted") || refused.contains("is in use"), "{what}: {refused}");
        assert_eq!(disks.does(&format(&disk, "begun")), "Made", "{what}");
        disks.0.sh(&format!("test ! -e /dev/mapper/{name}"));
        disks.does(&open(&disk));
        assert!(disks.does("inspect /dev/mapper/pv").contains("content: Blank"), "{what}");
        disks.does(&format!("luks-close pv {UUID}"));
        disks.0.remove_disk(&disk);
    }

    let with_another_key = header(
        UUID,
        &format!("cryptsetup luksChangeKey --batch-mode --key-file {KEY_FILE} $disk {WRONG_KEY_FILE}"),
    );
    for (index, (what, left, why)) in [
        ("somebody's LUKS", header(OTHER_UUID, ""), "crypto_LUKS"),
        ("somebody's key", with_another_key, "the key does not open"),
        ("a file system", "mkfs.ext4 -q $disk".to_owned(), "the file system ext4"),
    ]
    .into_iter()
    .enumerate()
    {
        let disk = format!("other{index}");
        disks.0.add_disk(&disk, 48 * MIB);
        disks.0.sh(&format!("# {what}\ndisk={}; {left}", node(&disk)));
        let before = disks.sum(&disk);
        for begun in ["fresh", "begun"] {
            let refused = disks.refuses(&format(&disk, begun));
            assert!(begun == "fresh" || refused.contains(why), "{what}: {refused}");
        }
        assert_eq!(disks.sum(&disk), before, "{what}");
        disks.0.remove_disk(&disk);
    }

    // As of mkfs, on a disk that can be no other.
    disks.0.add_disk("mkfs", 48 * MIB);
    disks.0.sh(&format!("disk={}; {noise}", node("mkfs")));
    let mkfs = |begun: &str| format!("format {} ext4 {FS_UUID} {begun}", node("mkfs"));
    disks.refuses(&mkfs("fresh"));
    assert_eq!(disks.does(&mkfs("begun")), "Made");
}

#[test]
fn an_encryption_that_is_killed_or_loses_power_is_finished() {
    let test = "an_encryption_that_is_killed_or_loses_power_is_finished";
    let Some(mut disks) = Disks::resume(test) else { return };
    disks.0.add_disk("data", 48 * MIB);
    // How long one takes here, in milliseconds.
    let script = format!("disktool {ROOT} {}", format("data", "fresh"));
    let clock = "$(($(date +%s%N) / 1000000))";
    let took = disks.0.sh(&format!("begin={clock}; {script} >/dev/null; echo $(({clock} - begin))"));
    let took: u64 = took.trim().parse().unwrap_or(2000);
    for (index, part) in [10, 30, 50, 65, 80, 95].into_iter().enumerate() {
        let disk = format!("killed{index}");
        disks.0.add_disk(&disk, 48 * MIB);
        let after = Duration::from_millis(took * part / 100).as_secs_f64();
        let ran = disks.0.run(
            &format!("timeout --signal=KILL {after} disktool {ROOT} {}", format(&disk, "fresh")),
            PATIENCE,
        );
        disks.0.sh(&format!("disktool {ROOT} inspect {}; dmsetup ls; : {}", node(&disk), ran.status));
        finish(&mut disks, &disk);
    }
    for (index, part) in [40, 75].into_iter().enumerate() {
        let disk = format!("cut{index}");
        disks.0.add_disk(&disk, 48 * MIB);
        disks.0.sh(&format!(
            "systemd-run --quiet --unit=cut disktool {ROOT} {}; sleep {}",
            format(&disk, "fresh"),
            Duration::from_millis(took * part / 100).as_secs_f64()
        ));
        disks.0.cut_power();
        disks.0.boot();
        disks.0.sh(&format!("disktool {ROOT} inspect {}", node(&disk)));
        finish(&mut disks, &disk);
    }
}

/// Encrypts what was begun, and looks that it is as it ought to be.
fn finish(disks: &mut Disks, disk: &str) {
    let done = disks.does(&format(disk, "begun"));
    assert!(done == "Made" || done == "AlreadyThere", "{disk}: {done}");
    disks.does(&open(disk));
    assert!(disks.does("inspect /dev/mapper/pv").contains("content: Blank"), "{disk}");
    disks.does(&format!("luks-close pv {UUID}"));
    disks.0.sh("test -z \"$(dmsetup ls | grep -v 'No devices')\"");
    // The machine has few places.
    disks.0.remove_disk(disk);
}
