//! volumed and its bundled driver in a machine, as an operator has them: their systemd units, manifests, and their commands.

use super::Machine;

pub const MIB: u64 = 1 << 20;

/// The directory of the driver's volumes.
pub const IMAGES: &str = "/var/lib/volumed-csi-loop/loop.csi.volumed.io";

const MANIFESTS: &str = "/etc/volumed/manifests";

/// The driver as volumed knows it.
const DRIVER: &str = "apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: loop.csi.volumed.io}
spec: {attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Persistent, Ephemeral]}
";

impl Machine {
    /// Starts volumed and the driver, now and at every boot, and waits until they know each other.
    pub fn start_services(&mut self) {
        self.manifest("driver", DRIVER);
        let units = "volumed.socket volumed.service volumed-csi-loop.service";
        self.sh(&format!("systemctl enable --quiet --no-reload {units}; systemctl start {units}"));
        self.driver_is_ready();
    }

    pub fn driver_is_ready(&mut self) {
        self.until(
            "volumed knows the driver",
            "volumectl drivers | grep -F loop.csi.volumed.io | grep -qw ready",
        );
    }

    /// Writes a manifest, which appears whole.
    pub fn manifest(&mut self, name: &str, content: &str) {
        self.put(&format!("{MANIFESTS}/{name}.yaml"), content);
    }

    /// Removes manifests, all of them at once.
    pub fn remove_manifests(&mut self, names: &[&str]) {
        let files: Vec<String> = names.iter().map(|name| format!("{MANIFESTS}/{name}.yaml")).collect();
        self.sh(&format!("rm {}", files.join(" ")));
    }

    /// Makes a volume with the driver's own command and gives volumed its `PersistentVolume` and a claim for it.
    pub fn create_volume(&mut self, name: &str, mebibytes: u64, fs_type: &str) {
        self.sh(&format!(
            "volumed-csi-loop volume create {name} --size {mebibytes}Mi --fs {fs_type} >/run/{name}.yaml
             cat >>/run/{name}.yaml <<'CLAIM'\n---\n{}CLAIM
             mv /run/{name}.yaml {MANIFESTS}/.{name}.yaml
             mv {MANIFESTS}/.{name}.yaml {MANIFESTS}/{name}.yaml",
            claim(name)
        ));
    }

    /// Makes a volume larger as the README says: with the driver's command, and then in its manifest.
    pub fn resize_volume(&mut self, name: &str, mebibytes: u64) {
        self.sh(&format!(
            "volumed-csi-loop volume resize {name} --size {mebibytes}Mi
             sed '/capacity:/,/storage:/s/storage: .*/storage: {mebibytes}Mi/' {MANIFESTS}/{name}.yaml >{MANIFESTS}/.{name}.yaml
             mv {MANIFESTS}/.{name}.yaml {MANIFESTS}/{name}.yaml"
        ));
    }

    /// Waits until pods have all their volumes.
    pub fn wait_for_pods(&mut self, pods: &[&str]) {
        self.sh(&format!("volumectl wait {} --timeout 100s", named(pods)));
    }

    /// Waits until nothing is left of pods.
    pub fn wait_until_released(&mut self, pods: &[&str]) {
        self.sh(&format!("volumectl wait --for=released {} --timeout 100s", named(pods)));
    }

    /// Looks that the driver has no loop device, PID 1 no mount of ours and the root no pod.
    pub fn nothing_is_left(&mut self) {
        self.until(
            "nothing is left",
            &format!(
                "losetup --list --noheadings --output BACK-FILE >/run/left
                 grep -F '/var/lib/kubelet/' /proc/1/mountinfo >>/run/left || true
                 find /var/lib/kubelet/pods -mindepth 1 2>/dev/null >>/run/left || true
                 ls /var/lib/volumed/volumes >>/run/left
                 cat /run/left
                 ! grep -q . /run/left || {{ echo 'left, below {IMAGES} or elsewhere'; exit 1; }}"
            ),
        );
    }
}

/// Where a pod has its volume. Its UID is set in `pod`.
pub fn target(pod: &str, volume: &str) -> String {
    format!("/var/lib/kubelet/pods/uid-{pod}/volumes/kubernetes.io~csi/{volume}/mount")
}

/// The manifest of a pod with these claims, each by the name of its volume.
pub fn pod(name: &str, claims: &[&str]) -> String {
    let mounts: Vec<String> = claims.iter().map(|it| format!("{{name: {it}, mountPath: /{it}}}")).collect();
    let volumes: Vec<String> = claims
        .iter()
        .map(|it| format!("{{name: {it}, persistentVolumeClaim: {{claimName: {it}}}}}"))
        .collect();
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: {name}, uid: uid-{name}}}
spec:
  containers: [{{name: main, image: none, volumeMounts: [{}]}}]
  volumes: [{}]
",
        mounts.join(", "),
        volumes.join(", ")
    )
}

fn claim(volume: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {volume}}}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: \"\"
  volumeName: {volume}
  resources: {{requests: {{storage: 1Mi}}}}
"
    )
}

/// Returns pods as volumectl has them.
pub fn named(pods: &[&str]) -> String {
    pods.iter().map(|pod| format!("pod/{pod}")).collect::<Vec<_>>().join(" ")
}
