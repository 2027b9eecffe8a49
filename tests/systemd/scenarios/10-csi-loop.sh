# shellcheck shell=bash disable=SC2154
# The bundled driver's unit: its hardening leaves it all that it needs, what it mounts is the host's, and it comes back.

driver=loop.csi.volumed.io
unit=volumed-csi-loop.service
cli=volumed-csi-loop

driver_is_ready() { volumectl drivers | grep -F "$driver" | grep -qw ready; }
mounts_here() { grep -F "/$1/mount " /proc/1/mountinfo; }
size_of() { stat --file-system --format='%b' "$1"; }
is_larger() { (($(size_of "$1") > $2)); }
no_loop_device() { ! grep -qF /var/lib/volumed-csi-loop/ < <(losetup --list --noheadings --output BACK-FILE); }
no_process_but() { test "$(pgrep --exact volumed-csi-loo)" = "$1"; }

systemctl enable --quiet volumed.socket volumed.service "$unit"
check "volumed.service starts" systemctl start volumed.socket volumed.service
check "systemctl start returns when the driver is ready" systemctl start "$unit"
pid=$(main_process "$unit")
same "it shares the mount namespace of PID 1" "$(readlink /proc/1/ns/mnt)" "$(readlink "/proc/$pid/ns/mnt")"
same "it cannot gain privileges" 1 "$(awk '/^NoNewPrivs:/ { print $2 }' "/proc/$pid/status")"
same "its system calls are filtered" 2 "$(awk '/^Seccomp:/ { print $2 }' "/proc/$pid/status")"
same "its images are for root only" 700 "$(stat -c %a /var/lib/volumed-csi-loop)"
reaches "volumed knows it" driver_is_ready

# Without a word about sockets: the command finds the unit's.
check "a volume is made" "$cli" volume create data --size 320Mi --fs xfs
mkdir -p "$manifests"
"$cli" volume create data --size 320Mi --fs xfs >"$manifests/pv.yaml"
cat >"$manifests/web.yaml" <<MANIFEST
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: data
  resources: {requests: {storage: 320Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers: [{name: main, image: none, volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]
---
apiVersion: storage.k8s.io/v1
kind: CSIDriver
metadata: {name: $driver}
spec: {attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: [Persistent, Ephemeral]}
---
apiVersion: v1
kind: Pod
metadata: {name: scratch}
spec:
  securityContext: {fsGroup: 4711}
  containers: [{name: main, image: none, volumeMounts: [{name: scratch, mountPath: /data}]}]
  volumes: [{name: scratch, csi: {driver: $driver, volumeAttributes: {size: 32Mi, fsType: ext4}}}]
MANIFEST
check "volumectl wait says that both pods have their volumes" volumectl wait pod/web pod/scratch --timeout 30s
web=$(mounts_here data)
path=$(awk '{ print $5 }' <<<"$web")
scratch=$(mounts_here scratch | awk '{ print $5 }')
differ "PID 1 sees a mount of each" "$path" "$scratch"
same "the pod's group has the second" "4711 2775" "$(stat -c '%g %a' "$scratch")"
echo "written by a service" >/run/words
check "any other service can write into it" systemd-run --quiet --wait cp /run/words "$path/file"

size=$(size_of "$path")
check "it is made larger" "$cli" volume resize data --size 512Mi
sed -i 's/storage: .*/storage: 512Mi/' "$manifests/pv.yaml"
reaches "and grows while it is mounted" is_larger "$path" "$((size + size / 4))"
check "a snapshot of it is taken" "$cli" volume snapshot data monday
check "and restored" "$cli" volume create restored --from-snapshot monday
check "it is written to afterwards" touch "$path/after"

check "systemctl restart of the driver" systemctl restart "$unit"
kill -KILL "$(main_process "$unit")"
reaches "killed, the driver is started again" has_restarted "$unit" 1
reaches "volumed knows it again" driver_is_ready
same "the mount is the same one" "$web" "$(mounts_here data)"
same "the data is there" "written by a service" "$(cat "$path/file")"

rm "$manifests"/*.yaml
check "volumectl wait --for=released" volumectl wait --for=released pod/web pod/scratch --timeout 30s
for volume in data restored; do check "the volume $volume is deleted" "$cli" volume delete "$volume"; done
check "the snapshot is deleted" "$cli" snapshot delete monday
reaches "no loop device is left" no_loop_device
reaches "nor a process but the driver" no_process_but "$(main_process "$unit")"
check "it stops" systemctl stop "$unit"
same "in order" success "$(property Result "$unit")"
finish
