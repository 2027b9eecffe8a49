//! An encrypted disk as a volume, end to end: encrypted at its first use with the key of a Secret or of a systemd credential, open while
//! its pods are there, closed when they go, there again after a reboot; and the key nowhere to be seen.

mod vm;

use vm::Machine;
use vm::host::{MIB, pod};
use vm::load::{mount_of, total_of};

const KEY: &str = "correct-horse-battery-staple-4711";

fn volume(name: &str, mebibytes: u64, key: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolume
metadata:
  name: {name}
  annotations:
    volumed.io/encryption: luks2
    volumed.io/encryption-key: {key}
    volumed.io/auto-grow: \"true\"
spec:
  capacity: {{storage: {mebibytes}Mi}}
  accessModes: [ReadWriteOnce]
  local: {{path: /dev/disk/by-id/virtio-{name}, fsType: ext4}}
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

fn secret(key: &str) -> String {
    format!("apiVersion: v1\nkind: Secret\nmetadata: {{name: disk}}\nstringData: {{key: {key}}}\n")
}

fn target(name: &str) -> String {
    format!("/var/lib/kubelet/pods/uid-{name}/volumes/kubernetes.io~local-volume/{name}")
}

#[test]
fn an_encrypted_disk_is_a_volume() {
    let Some(mut machine) = Machine::resume("an_encrypted_disk_is_a_volume") else { return };
    machine.add_disk("data", 96 * MIB);
    machine.add_disk("other", 64 * MIB);
    machine.put("/run/key", KEY);
    machine.sh("mkdir -p /etc/credstore /etc/systemd/system/volumed.service.d
         cp /run/key /etc/credstore/disk-key
         printf '[Service]\\nLoadCredential=disk-key\\n' >/etc/systemd/system/volumed.service.d/key.conf
         systemctl daemon-reload
         systemctl enable --quiet --no-reload volumed.socket volumed.service
         systemctl start volumed.socket volumed.service");
    machine.manifest("secret", &secret(KEY));
    machine.manifest("data-volume", &volume("data", 64, "secret/default/disk"));
    machine.manifest("other-volume", &volume("other", 32, "credential/disk-key"));
    for name in ["data", "other"] {
        machine.manifest(name, &pod(name, &[name]));
    }
    machine.wait_for_pods(&["data", "other"]);
    let path = target("data");
    machine.sh(&format!("echo mine >{path}/file; sync -f {path}"));
    // What is on the disk is no file system, and what the pod has is.
    machine.sh("test $(blkid -p -o value -s TYPE /dev/disk/by-id/virtio-data) = crypto_LUKS
         if grep -q mine /dev/disk/by-id/virtio-data; then exit 7; fi
         cryptsetup luksDump /dev/disk/by-id/virtio-data | grep 'Version:.*2' >/dev/null
         lsblk --raw --noheadings --output TYPE,MOUNTPOINTS | grep 'crypt.*local-volume/mounts/data' >/dev/null");
    // It grows with its disk.
    let (mount, total) = (mount_of(&mut machine, &path), total_of(&mut machine, &path));
    machine.resize_disk("data", 160 * MIB);
    machine.until("it grows", &format!("(($(stat -f -c '%b * %S' {path}) > {total} + 20 * {MIB}))"));
    assert_eq!(mount_of(&mut machine, &path), mount, "it was never mounted anew");
    // The key is in the manifest and in the credential, and nowhere else that a person could look. grep has it from a file, so as not
    // to find its own command line; what it found counts, not its status: it also fails over a process that has ended.
    machine.sh("seen=$(grep -rsl --text -F -f /run/key /var/lib/volumed /run/volumed /run/cryptsetup \\
           /proc/[0-9]*/{cmdline,environ} || true)
         if [[ -n $seen ]]; then echo $seen; exit 3; fi
         if journalctl --boot | grep -F -f /run/key; then exit 4; fi
         if volumectl status -o json | grep -F -f /run/key; then exit 5; fi");
    machine.reboot();
    machine.until("volumed answers", "volumectl status");
    machine.wait_for_pods(&["data", "other"]);
    machine.sh(&format!("grep mine {path}/file"));
    // When the pods go it is closed; with another key it stays so, and nothing is lost.
    machine.remove_manifests(&["data", "other"]);
    machine.sh("volumectl approve");
    machine.wait_until_released(&["data", "other"]);
    machine.until("it is closed", "! lsblk --noheadings --output TYPE | grep crypt");
    machine.manifest("secret", &secret("another-key"));
    machine.manifest("data", &pod("data", &["data"]));
    machine.until("the key is refused", "volumectl explain pod/data | grep wrong-key");
    machine.sh("if lsblk --noheadings --output TYPE | grep crypt; then exit 8; fi");
    machine.manifest("secret", &secret(KEY));
    machine.wait_for_pods(&["data"]);
    machine.sh(&format!("grep mine {path}/file"));
    machine.remove_manifests(&["data"]);
    machine.wait_until_released(&["data"]);
    machine.until("it is closed", "! lsblk --noheadings --output TYPE | grep crypt");
    // Without the annotation it is not taken for another disk's, nor formatted.
    let plain = volume("data", 64, "x")
        .replace("    volumed.io/encryption: luks2\n    volumed.io/encryption-key: x\n", "");
    machine.manifest("data-volume", &plain);
    machine.manifest("data", &pod("data", &["data"]));
    machine.until("it is refused", "volumectl explain pod/data | grep encryption-mismatch");
    machine.sh("test $(blkid -p -o value -s TYPE /dev/disk/by-id/virtio-data) = crypto_LUKS");
    machine.remove_manifests(&["data"]);
    machine.sh("volumectl approve");
    machine.wait_until_released(&["data"]);
    machine.until(
        "nothing is left",
        "! grep -F /var/lib/kubelet/ /proc/1/mountinfo; ! ls /var/lib/volumed/volumes | grep .",
    );
}
