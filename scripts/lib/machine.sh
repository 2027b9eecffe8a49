# shellcheck shell=bash
# The machine that `scripts/test` runs on: what is missing, what is possible, and what a run has left behind.
# Functions only; the caller has `set -euo pipefail`.
: "${root:?the repository}" "${logs:?a directory}"

have() { command -v "$1" >/dev/null; }

# install_missing STAGE...: installs what these stages need and this machine has not, by apt and only then.
# Prints one line for each command that stays missing: COMMAND: why.
install_missing() {
  local stages=" all $* " stage command package missing=() packages=()
  # Both run tests/vm_*.rs.
  [[ $stages != *" vm "* ]] || stages+="machine "
  while read -r stage command package; do
    [[ $stages == *" $stage "* ]] || continue
    have "$command" && continue
    missing+=("$command")
    packages+=("$package")
  done <<'TABLE'
all cc gcc
all cc libc6-dev
all losetup mount
all unshare util-linux
lint shellcheck shellcheck
lint systemd-analyze systemd
systemd systemd-analyze systemd
systemd jq jq
root mkfs.ext4 e2fsprogs
root mkfs.xfs xfsprogs
root mkfs.btrfs btrfs-progs
root jq jq
drivers go golang-go
drivers go ca-certificates
drivers jq jq
machine qemu-system-x86_64 qemu-system-x86
machine qemu-img qemu-utils
machine mmdebstrap mmdebstrap
machine mkfs.ext4 e2fsprogs
machine cpio cpio
machine xz xz-utils
machine strip binutils
machine setpriv util-linux
vm go golang-go
vm go ca-certificates
vm jq jq
bench fio fio
bench losetup mount
bench fsfreeze util-linux
bench mkfs.ext4 e2fsprogs
bench mkfs.xfs xfsprogs
TABLE
  ((${#missing[@]})) || return 0
  local why="see $logs/apt.log"
  if ! have apt-get; then
    why="this machine has no apt-get"
  elif ((EUID != 0)); then
    why="only root can install ${packages[*]}"
  else
    {
      export DEBIAN_FRONTEND=noninteractive
      apt-get update -qq &&
        apt-get install -qq -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io "${packages[@]}"
    } >"$logs/apt.log" 2>&1 </dev/null || true
  fi
  local command
  for command in $(printf '%s\n' "${missing[@]}" | sort -u); do
    have "$command" || printf '%s: %s\n' "$command" "$why"
  done
}

# why_no_mounts: prints why tests cannot mount in a namespace of their own here, nothing if they can.
why_no_mounts() {
  if ((EUID != 0)); then
    echo "it needs root"
  elif ! unshare --mount --propagation private -- mount -t tmpfs none "$TMPDIR" 2>/dev/null; then
    echo "this machine allows no mount in a private namespace"
  fi
}

# --- what a run leaves behind

# Each prints one sorted line per thing that is there now; the programs are those built in this repository, by process id.
loop_devices() { losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null | sort; }
mounts() { awk '{ print $5, "(" $3 ")" }' /proc/self/mountinfo | sort; }

programs() {
  local dir exe
  for dir in /proc/[0-9]*; do
    exe=$(readlink "$dir/exe" 2>/dev/null) || continue
    [[ $exe != "$root/target/"* || $exe == */build/* ]] || echo "${dir#/proc/}"
  done | sort
}

# take_stock DIR: writes down what is there, to compare with later.
take_stock() {
  loop_devices >"$1/loops"
  mounts >"$1/mounts"
  programs >"$1/programs"
}

# processes_of RUN: prints the ids of the processes that carry VOLUMED_TEST_RUN=RUN in their environment. Only builtins
# are used: a child of this shell would find itself.
processes_of() {
  local dir environment
  for dir in /proc/[0-9]*; do
    environment=()
    { mapfile -d '' -t environment <"$dir/environ"; } 2>/dev/null || continue
    [[ " ${environment[*]} " != *" VOLUMED_TEST_RUN=$1 "* ]] || echo "${dir#/proc/}"
  done | sort
}

# leftovers DIR RUN: prints one line for each loop device, mount, process and file more than take_stock found. A process
# is ours by its mark or, where its environment was cleared, by its program being one that was built here.
# What a test ended needs a moment to go, so this waits for nothing to be left, 5 seconds at most. A line that begins
# with "perhaps" names neither $TMPDIR nor the repository: somebody else on this machine may have made that.
leftovers() {
  local deadline=$((SECONDS + 5)) found pid name
  while :; do
    found=$(
      comm -13 "$1/loops" <(loop_devices) | sed 's/^/loop device /'
      comm -13 "$1/mounts" <(mounts) | sed 's/^/mount /'
      find "$TMPDIR" -mindepth 1 -maxdepth 1 -printf 'file %p\n'
    )
    while read -r pid; do
      { name=$(tr '\0' ' ' <"/proc/$pid/cmdline"); } 2>/dev/null || continue
      found+=$'\n'"process $pid (${name% }), started by the run with $TMPDIR"
    done < <(sort -u <(processes_of "$2") <(comm -13 "$1/programs" <(programs)))
    if [[ -z $found ]] || ((SECONDS >= deadline)); then break; fi
    sleep 0.1
  done
  [[ -z $found ]] || awk -v ours="$TMPDIR" -v root="$root/" \
    'NF { print (index($0, ours) || index($0, root) ? "" : "perhaps ") $0 }' <<<"$found"
}
