# shellcheck shell=bash
# What the scenarios in tests/systemd/scenarios are written with; read by them inside the box. Each check waits for a
# state, for $patience at most, and prints one line: "ok - ..." or "not ok - ..." with what was seen instead.
set -uo pipefail
export LC_ALL=C SYSTEMD_PAGER='' SYSTEMD_COLORS=0

patience=30       # seconds; a slow machine with two cores needs a tenth of it
broken=0
driver=fake.csi.volumed.io
manifests=/etc/volumed/manifests

pass() { printf 'ok - %s\n' "$1"; }

# not_passed WHAT SEEN: a check that failed.
not_passed() {
  broken=$((broken + 1))
  printf 'not ok - %s\n' "$1"
  [[ -z $2 ]] || printf '%s\n' "$2" | sed 's/^/    /'
}

# check WHAT COMMAND...: the command succeeds now.
check() {
  local what=$1 output
  shift
  if output=$("$@" 2>&1); then pass "$what"; else not_passed "$what" "$* (status $?): $output"; fi
}

# reaches WHAT COMMAND...: the command succeeds before long.
reaches() {
  local what=$1 output status deadline=$((SECONDS + patience))
  shift
  while :; do
    status=0
    output=$("$@" 2>&1) || status=$?
    if ((status == 0)); then
      pass "$what"
      return
    fi
    if ((SECONDS >= deadline)); then break; fi
    sleep 0.05
  done
  not_passed "$what" "$* (status $status after $patience s): $output"
  return 1
}

# same WHAT WANTED SEEN: two texts are equal.
same() {
  if [[ $2 == "$3" ]]; then pass "$1"; else not_passed "$1" "wanted '$2', seen '$3'"; fi
}

# differ WHAT A B: two texts are there and not equal.
differ() {
  if [[ -n $2 && -n $3 && $2 != "$3" ]]; then pass "$1"; else not_passed "$1" "'$2' and '$3'"; fi
}

# says WORDS COMMAND...: the command's output has the words, an extended regular expression.
says() {
  local words=$1
  shift
  "$@" | grep -E -- "$words"
}

# ends_with STATUS COMMAND...: the command's exit status is that one.
ends_with() {
  local wanted=$1 status=0
  shift
  "$@" || status=$?
  ((status == wanted))
}

# finish: ends the scenario.
finish() {
  echo "end of scenario"
  exit $((broken > 0))
}

# --- units

property() { systemctl show --property="$1" --value "${2:-volumed.service}"; }
is_state() { [[ $(property ActiveState "$2") == "$1" ]]; }
main_process() { property MainPID "${1:-volumed.service}"; }

restarts() { property NRestarts "${1:-volumed.service}"; }
has_restarted() { (($(restarts "$1") == $2)); }
has_status() { [[ $(property StatusText) =~ $1 ]]; }

# journal_has WHAT WORDS [UNIT]: the unit's journal of this boot has the words, an extended regular expression.
journal_has() { reaches "$1" in_journal "$2" "${3:-volumed.service}"; }
# No pipe: grep ends at the first hit, and the SIGPIPE that journalctl then gets would count for all of it.
in_journal() { grep -qE -- "$1" < <(journalctl --boot --unit "$2" --output=cat); }

# drop_in UNIT LINE...: gives the unit more settings.
drop_in() {
  local directory=/etc/systemd/system/$1.d
  shift
  mkdir -p "$directory"
  printf '%s\n' "$@" >"$directory/test.conf"
  systemctl daemon-reload
}

# start_all: enables and starts everything as an operator would.
start_all() {
  systemctl enable --quiet volumed.socket volumed.service fakecsi.service
  check "volumed.service starts" systemctl start volumed.socket volumed.service
  check "the driver's unit starts" systemctl start fakecsi.service
}

# reboot: boots the box again; run.sh starts anew there.
reboot() {
  systemctl start --no-block reboot.target
  exec sleep infinity 2>/dev/null
}

# --- pods and volumes

# write_pod NAME: writes the manifest of a pod with one volume on the fake driver, a claim and a volume bound to each other.
write_pod() {
  mkdir -p "$manifests"
  cat >"$manifests/.$1.yaml" <<MANIFEST
apiVersion: v1
kind: PersistentVolume
metadata:
  name: $1-data
spec:
  capacity:
    storage: 1Gi
  accessModes: [ReadWriteOnce]
  persistentVolumeReclaimPolicy: Retain
  storageClassName: ""
  claimRef:
    namespace: default
    name: $1-data
  csi:
    driver: $driver
    volumeHandle: $1-data
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata:
  name: $1-data
  namespace: default
spec:
  accessModes: [ReadWriteOnce]
  storageClassName: ""
  volumeName: $1-data
  resources:
    requests:
      storage: 1Gi
---
apiVersion: v1
kind: Pod
metadata:
  name: $1
  namespace: default
spec:
  containers:
    - name: main
      image: none
      volumeMounts:
        - name: data
          mountPath: /data
  volumes:
    - name: data
      persistentVolumeClaim:
        claimName: $1-data
MANIFEST
  mv "$manifests/.$1.yaml" "$manifests/$1.yaml"
}

# bring_up NAME: a pod's manifest becomes a mounted volume.
bring_up() {
  write_pod "$1"
  check "volumectl wait says that pod/$1 has its volume" volumectl wait "pod/$1" --timeout 30s
}

# Each line of PID 1's mount table for the volume of a pod: its id and its path. A mount made again has another id, or is
# listed behind what was mounted since; the path alone would not tell.
mounts_of() { awk -v name="/volumes/kubernetes.io~csi/$1-data/mount" 'index($5, name) { print $1, $5 }' /proc/1/mountinfo; }
path_of() { mounts_of "$1" | cut -d' ' -f2; }
is_mounted() { [[ $(mounts_of "$1" | wc -l) == 1 ]]; }
is_gone() { [[ -z $(mounts_of "$1") ]]; }

# calls_of NAME: the driver's own list of the calls for a pod's volume that have an effect.
calls_of() {
  jq --raw-output --arg volume "$1-data" \
    'select(.event == "begin" and .volume == $volume) | .method | select(test("Stage|Unstage|Publish|Unpublish"))' /var/lib/fakecsi.calls
}

# holds NAME TEXT: the volume's file has the text.
holds() { [[ $(cat "$(path_of "$1")/file") == "$2" ]]; }
