//! iSCSI volumes with the kernel's own target (LIO), open-iscsi and multipathd, all in one machine.

#![expect(clippy::print_stdout, clippy::expect_used, reason = "a test: it tells figures and may fail loudly")]

mod vm;

use vm::Machine;
use vm::host::MIB;

const IQN: &str = "iqn.2026-11.io.volumed:one";
const FOREIGN: &str = "iqn.2026-11.io.volumed:foreign";
const PASSWORD: &str = "correct-horse-4711";

/// Makes the targets, again after a reboot. The first has two portals, two LUNs and a password; the other one none.
const TARGETS: &str = r#"
    modprobe -a target_core_iblock iscsi_target_mod iscsi_tcp dm_multipath
    mountpoint -q /sys/kernel/config || mount -t configfs configfs /sys/kernel/config
    ip addr add 10.9.0.1/32 dev lo; ip addr add 10.9.0.2/32 dev lo; ip addr add 10.9.0.3/32 dev lo
    cd /sys/kernel/config/target
    disk() {
      mkdir -p core/iblock_$1/$2
      echo udev_path=/dev/disk/by-id/virtio-$2,readonly=0 >core/iblock_$1/$2/control
      echo 5f1e000$1 >core/iblock_$1/$2/wwn/vpd_unit_serial
      echo 1 >core/iblock_$1/$2/enable
    }
    lun() { mkdir -p iscsi/$1/tpgt_1/lun/lun_$2; ln -s core/iblock_$3/$4 iscsi/$1/tpgt_1/lun/lun_$2/$4; }
    open() {
      echo 1 >iscsi/$1/tpgt_1/attrib/generate_node_acls
      echo 0 >iscsi/$1/tpgt_1/attrib/demo_mode_write_protect
      echo 1 >iscsi/$1/tpgt_1/attrib/cache_dynamic_acls
      echo $2 >iscsi/$1/tpgt_1/attrib/authentication
      echo 1 >iscsi/$1/tpgt_1/enable
    }
    disk 0 one; disk 1 two; disk 2 three
    mkdir -p iscsi/IQN/tpgt_1 iscsi/FOREIGN/tpgt_1
    lun IQN 0 0 one; lun IQN 1 1 two; lun FOREIGN 0 2 three
    mkdir -p iscsi/IQN/tpgt_1/np/10.9.0.1:3260 iscsi/IQN/tpgt_1/np/10.9.0.2:3260 iscsi/FOREIGN/tpgt_1/np/10.9.0.3:3260
    echo -n me >iscsi/IQN/tpgt_1/auth/userid; echo -n PASSWORD >iscsi/IQN/tpgt_1/auth/password
    open IQN 1; open FOREIGN 0
"#;

/// Notes the arguments of every iscsiadm.
const WITNESS: &str = "
    mv /usr/sbin/iscsiadm /usr/sbin/iscsiadm.real
    printf '#!/bin/sh\\necho \"$@\" >>/run/arguments\\nexec /usr/sbin/iscsiadm.real \"$@\"\\n' >/usr/sbin/iscsiadm
    chmod 755 /usr/sbin/iscsiadm";

fn targets(machine: &mut Machine) {
    let script = TARGETS.replace("IQN", IQN).replace("FOREIGN", FOREIGN).replace("PASSWORD", PASSWORD);
    machine.sh(&script);
}

/// A PersistentVolume with this source, and its claim.
fn volume(name: &str, mebibytes: u64, more: &str, source: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {name}}}
spec:
  capacity: {{storage: {mebibytes}Mi}}
  accessModes: [ReadWriteOnce]
  {more}
  iscsi: {{{source}}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {name}}}
spec:
  accessModes: [ReadWriteOnce]
  {more}
  volumeName: {name}
  storageClassName: ''
  resources: {{requests: {{storage: 1Mi}}}}
---
"
    )
}

/// A pod whose volume `data` has this source, used as `usage` says.
fn pod(name: &str, usage: &str, source: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, uid: uid-{name}}}
spec:
  containers: [{{name: main, image: none, {usage}}}]
  volumes: [{{name: data, {source}}}]
---
"
    )
}

const MOUNTED: &str = "volumeMounts: [{name: data, mountPath: /data}]";
const RAW: &str = "volumeDevices: [{name: data, devicePath: /dev/data}]";

fn claim(name: &str) -> String {
    format!("persistentVolumeClaim: {{claimName: {name}}}")
}

/// What a source says of the target with the password.
fn source(lun: u32, more: &str) -> String {
    format!(
        "targetPortal: 10.9.0.1, iqn: '{IQN}', lun: {lun}, chapAuthSession: true, secretRef: {{name: chap}}{more}"
    )
}

/// The volume of the first disk, and its pod.
fn one(mebibytes: u64) -> String {
    volume("one", mebibytes, "", &source(0, ", fsType: ext4")) + &pod("one", MOUNTED, &claim("one"))
}

fn secret(password: &str) -> String {
    format!(
        "apiVersion: v1
kind: Secret
metadata: {{name: chap}}
type: kubernetes.io/iscsi-chap
stringData: {{node.session.auth.username: me, node.session.auth.password: {password}}}
"
    )
}

fn target(pod: &str, name: &str) -> String {
    format!("/var/lib/kubelet/pods/uid-{pod}/volumes/kubernetes.io~iscsi/{name}")
}

/// A script that succeeds when volumectl says this of a pod.
fn says(pod: &str, words: &str) -> String {
    format!("volumectl explain pod/{pod} | tr '\\n' ' ' | tee /dev/stderr | grep -q '{words}'")
}

/// The sessions that there are, each with its portal.
fn sessions(machine: &mut Machine) -> Vec<String> {
    let listed = machine.sh("iscsiadm.real -m session 2>/dev/null | sort || true");
    listed.lines().map(str::to_owned).collect()
}

#[test]
fn iscsi_volumes_come_and_go_with_their_sessions() {
    let test = "iscsi_volumes_come_and_go_with_their_sessions";
    let Some(mut machine) = Machine::resume(test) else { return };
    for name in ["one", "two", "three"] {
        machine.add_disk(name, 64 * MIB);
    }
    targets(&mut machine);
    machine.sh(WITNESS);
    let units = "volumed.socket volumed.service";
    machine.sh(&format!("systemctl enable --quiet --no-reload {units}; systemctl start {units}"));
    a_wrong_password_is_told_and_the_right_one_works(&mut machine);
    two_disks_of_a_target_share_its_session(&mut machine);
    a_disk_grows_while_its_pod_runs(&mut machine);
    a_restart_changes_nothing(&mut machine);
    a_target_goes_down_and_comes_back(&mut machine);
    the_session_ends_with_its_last_disk(&mut machine);
    others_sessions_stay(&mut machine);
    paths_are_joined_by_multipathd(&mut machine);
    no_password_was_seen(&mut machine);
    they_come_up_after_a_reboot(&mut machine);
}

fn a_wrong_password_is_told_and_the_right_one_works(machine: &mut Machine) {
    machine.manifest("secret", &secret("wrong-horse-0815"));
    machine.manifest("one", &one(48));
    let words = "target-refuses.*authorization failure.*Secret";
    machine.until("the wrong password is told", &says("one", words));
    machine.sh(&format!(
        "! grep -rq wrong-horse /etc/iscsi; test -z \"$(ls /etc/iscsi/nodes/{IQN} 2>/dev/null)\""
    ));
    machine.manifest("secret", &secret(PASSWORD));
    machine.wait_for_pods(&["one"]);
    let mount = target("one", "one");
    machine.sh(&format!(
        "echo kept >{mount}/file; sync {mount}/file
         test $(findmnt --noheadings --output FSTYPE {mount}) = ext4
         findmnt '/var/lib/kubelet/plugins/kubernetes.io/iscsi/iface-default/10.9.0.1:3260-{IQN}-lun-0'
         test $(cat /sys/class/iscsi_session/*/ifacename) = volumed
         test $(stat --format=%a /etc/iscsi/nodes/{IQN}/10.9.0.1,3260,1/volumed) = 600
         grep -qx 'node.startup = manual' /etc/iscsi/nodes/{IQN}/10.9.0.1,3260,1/volumed
         test -z \"$(ls /etc/iscsi/send_targets)\"
         lsblk | tee /dev/stderr | grep -c '^sd' | grep -qx 1"
    ));
}

fn two_disks_of_a_target_share_its_session(machine: &mut Machine) {
    let inline = format!("iscsi: {{{}}}", source(1, ""));
    machine.manifest("two", &pod("two", MOUNTED, &inline));
    machine.wait_for_pods(&["two"]);
    let of = sessions(machine);
    assert_eq!(of.len(), 1, "{of:?}");
    machine.sh(&format!("echo two >{}/file", target("two", "data")));
    machine.remove_manifests(&["two"]);
    machine.wait_until_released(&["two"]);
    assert_eq!(sessions(machine), of);
    machine.sh(&format!("grep -qx kept {}/file; lsblk | grep -c '^sd' | grep -qx 1", target("one", "one")));
    // Raw, with what the pod before wrote.
    let raw = volume("two", 48, "volumeMode: Block", &source(1, ""));
    machine.manifest("two", &(raw + &pod("two", RAW, &claim("two"))));
    machine.wait_for_pods(&["two"]);
    machine.sh("test -b /var/lib/kubelet/pods/uid-two/volumeDevices/kubernetes.io~iscsi/two
         blkid -p -s TYPE -o value $(readlink -f /var/lib/kubelet/pods/uid-two/volumeDevices/kubernetes.io~iscsi/two) | grep -qx ext4");
    assert_eq!(sessions(machine), of);
}

fn a_disk_grows_while_its_pod_runs(machine: &mut Machine) {
    let size = |machine: &mut Machine| -> u64 {
        let said = machine.sh(&format!("df --output=size -B1 {} | tail -1", target("one", "one")));
        said.trim().parse().expect("a number")
    };
    let before = size(machine);
    machine.resize_disk("one", 128 * MIB);
    machine.until("the target has it", "test $(blockdev --getsize64 /dev/disk/by-id/virtio-one) = 134217728");
    machine.manifest("one", &one(120));
    let grown = format!("(($(df --output=size -B1 {} | tail -1) > 110 << 20))", target("one", "one"));
    machine.until("it grew", &grown);
    println!("grew from {before} to {} bytes", size(machine));
}

fn a_restart_changes_nothing(machine: &mut Machine) {
    let mounts = "grep -F /var/lib/kubelet /proc/1/mountinfo | sort";
    let (before, of) = (machine.sh(mounts), sessions(machine));
    machine.sh("systemctl restart volumed");
    machine.wait_for_pods(&["one", "two"]);
    assert_eq!(machine.sh(mounts), before);
    assert_eq!(sessions(machine), of);
}

fn a_target_goes_down_and_comes_back(machine: &mut Machine) {
    let enable = format!("/sys/kernel/config/target/iscsi/{IQN}/tpgt_1/enable");
    machine.sh(&format!("echo 0 >{enable}"));
    machine.until("the session is lost", "grep -qx FAILED /sys/class/iscsi_session/*/state");
    // A second pod of the volume waits, and is told why; the first keeps it.
    machine.manifest("late", &pod("late", MOUNTED, &claim("one")));
    machine.until("it is told", &says("late", "session-lost.*FAILED.*10.9.0.1:3260"));
    machine.sh(&format!("echo 1 >{enable}"));
    machine.wait_for_pods(&["late", "one"]);
    machine.sh(&format!(
        "grep -qx kept {}/file; touch {}/after",
        target("late", "one"),
        target("one", "one")
    ));
    machine.remove_manifests(&["late"]);
    machine.wait_until_released(&["late"]);
}

fn they_come_up_after_a_reboot(machine: &mut Machine) {
    machine.sh("systemctl stop multipathd.socket multipathd");
    machine.manifest("one", &one(120));
    machine.wait_for_pods(&["one"]);
    println!("the reboot took {:?}", machine.reboot());
    machine.until("volumed runs", "volumectl status");
    // The kernel's modules are not loaded yet, nothing listens, and iscsid does not run.
    machine.until("it is told", &says("one", "target-unreachable.*10.9.0.1:3260"));
    targets(machine);
    machine.sh("volumectl retry pod/one || true");
    machine.wait_for_pods(&["one"]);
    machine.sh(&format!("grep -qx kept {}/file", target("one", "one")));
    assert_eq!(sessions(machine).len(), 1);
    machine.remove_manifests(&["one"]);
    machine.wait_until_released(&["one"]);
    machine.until("nothing is left of it", "! iscsiadm.real -m session; ! lsblk | grep '^sd'");
}

fn the_session_ends_with_its_last_disk(machine: &mut Machine) {
    // Both at once.
    machine.sh("volumectl approve 2>/dev/null || true");
    machine.remove_manifests(&["one", "two"]);
    machine.wait_until_released(&["one", "two"]);
    machine.until("nothing is left of it", "! iscsiadm.real -m session; ! lsblk | grep '^sd'");
    machine.sh(&format!(
        "! ls -d /etc/iscsi/nodes/{IQN}; ! grep -rq {PASSWORD} /etc/iscsi
         ! grep -F /var/lib/kubelet /proc/1/mountinfo
         ! ls /var/lib/kubelet/plugins/kubernetes.io/iscsi/iface-default/*"
    ));
}

fn others_sessions_stay(machine: &mut Machine) {
    machine.sh(&format!(
        "iscsiadm.real -m discovery -t st -p 10.9.0.3 -o new
         iscsiadm.real -m node -T {FOREIGN} -p 10.9.0.3 --login"
    ));
    let of = sessions(machine);
    let inline = format!("iscsi: {{targetPortal: '10.9.0.3:3260', iqn: '{FOREIGN}', lun: 0, fsType: xfs}}");
    machine.manifest("three", &pod("three", MOUNTED, &inline));
    machine.until(
        "64 MiB are too few for XFS, or enough",
        "volumectl explain pod/three | grep -qE 'mkfs|published|ready'",
    );
    // It has the name of our interface record, which iscsiadm takes for whoever names none.
    machine.sh("cat /sys/class/iscsi_session/*/ifacename | grep -qx volumed");
    machine.remove_manifests(&["three"]);
    machine.wait_until_released(&["three"]);
    machine.until("it is let go of", &format!("! grep -rqF {FOREIGN} /var/lib/volumed/volumes"));
    assert_eq!(sessions(machine), of);
    machine.sh(&format!(
        "lsblk | grep -q '^sd'; ls /etc/iscsi/nodes/{FOREIGN}
         iscsiadm.real -m node -T {FOREIGN} -p 10.9.0.3 --logout"
    ));
}

fn paths_are_joined_by_multipathd(machine: &mut Machine) {
    machine.sh(
        "printf 'defaults {\\n find_multipaths yes\\n user_friendly_names yes\\n}\\n' >/etc/multipath.conf
         systemctl start multipathd",
    );
    let two = source(0, ", portals: ['10.9.0.2:3260', '10.9.0.66:3260']");
    let inline = format!("iscsi: {{{two}}}");
    machine.manifest("joined", &pod("joined", MOUNTED, &inline));
    machine.wait_for_pods(&["joined"]);
    let mount = target("joined", "data");
    // It is the disk that it was by its one path, and what was on it is there.
    machine.sh(&format!(
        "grep -qx kept {mount}/file
         grep -q ^mpath- /sys/class/block/$(basename $(findmnt --noheadings --output SOURCE {mount}))/dm/uuid
         journalctl --sync; grep -q 'portal 10.9.0.66:3260 is not used' < <(journalctl --unit=volumed)"
    ));
    assert_eq!(sessions(machine).len(), 2);
    machine.remove_manifests(&["joined"]);
    machine.wait_until_released(&["joined"]);
    machine.until(
        "nothing is left of it",
        "! iscsiadm.real -m session; ! lsblk | grep '^sd'; ! dmsetup ls | grep mpath",
    );
}

fn no_password_was_seen(machine: &mut Machine) {
    machine.sh(&format!(
        "grep -q -- --login /run/arguments; ! grep -F -e {PASSWORD} -e wrong-horse /run/arguments
         ! journalctl --boot | grep -F -e {PASSWORD} -e wrong-horse | grep -v test-agent
         ! grep -rF -e {PASSWORD} -e wrong-horse /var/lib/volumed"
    ));
}
