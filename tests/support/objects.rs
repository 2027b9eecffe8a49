//! The objects of a test's manifests: what is the same in all of them. The bench uses them too.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::allow_attributes,
    reason = "every test binary uses a part of it"
)]

/// The name of the example driver.
pub const DRIVER: &str = "fake.csi.volumed.io";

/// A PV of the example driver, the claim bound to it, and a pod that uses it.
pub fn pod_with_claim(pod: &str, uid: &str, volume: &str) -> String {
    format!("{}---\n{}", claim(volume), pod_using(pod, uid, volume))
}

/// A PV of the example driver, and the claim bound to it.
pub fn claim(volume: &str) -> String {
    claim_of(DRIVER, volume, &format!("handle-{volume}"))
}

/// A PV with a driver's handle, and the claim bound to it.
pub fn claim_of(driver: &str, volume: &str, handle: &str) -> String {
    format!(
        "apiVersion: v1
kind: PersistentVolume
metadata: {{name: {volume}}}
spec:
  capacity: {{storage: 1Gi}}
  accessModes: [ReadWriteOnce]
  claimRef: {{namespace: default, name: {volume}}}
  csi:
    driver: {driver}
    volumeHandle: \"{handle}\"
    volumeAttributes: {{colour: blue}}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {{name: {volume}}}
spec:
  accessModes: [ReadWriteOnce]
  volumeName: {volume}
  resources: {{requests: {{storage: 1Gi}}}}
"
    )
}

/// A pod that uses a claim.
pub fn pod_using(pod: &str, uid: &str, volume: &str) -> String {
    pod_of(&format!("name: {pod}, uid: {uid}"), &format!("persistentVolumeClaim: {{claimName: {volume}}}"))
}

/// A pod with this metadata and one volume, `data`, from this source.
pub fn pod_of(metadata: &str, source: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{{metadata}}}
spec:
  containers:
  - name: main
    image: example
    volumeMounts: [{{name: data, mountPath: /data}}]
  volumes:
  - name: data
    {source}
"
    )
}

/// A claim and its PV, as a block device.
pub fn block(claim: &str) -> String {
    claim.replace("  accessModes:", "  volumeMode: Block\n  accessModes:")
}

/// A pod that uses the device of its claim.
pub fn device_user(pod: &str) -> String {
    pod.replace(
        "volumeMounts: [{name: data, mountPath: /data}]",
        "volumeDevices: [{name: data, devicePath: /dev/x}]",
    )
}

/// A driver's CSIDriver object.
pub fn csi_driver(driver: &str, spec: &str) -> String {
    format!(
        "apiVersion: storage.k8s.io/v1\nkind: CSIDriver\nmetadata: {{name: {driver}}}\nspec: {{{spec}}}\n"
    )
}

/// What an attacher writes when it has attached a PV to the test's node.
pub fn attachment(driver: &str, volume: &str, metadata: &str) -> String {
    format!(
        "apiVersion: storage.k8s.io/v1
kind: VolumeAttachment
metadata: {{name: attachment-of-{volume}}}
spec: {{attacher: {driver}, nodeName: test-node, source: {{persistentVolumeName: {volume}}}}}
status: {{attached: true, attachmentMetadata: {{{metadata}}}}}
"
    )
}
