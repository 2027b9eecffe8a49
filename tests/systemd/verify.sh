#!/usr/bin/env bash
# tests/systemd/verify.sh: whether systemd has anything to say about the units.
#
# `systemd-analyze verify` in a staged root that holds the units, the programs ($VOLUMED and $VOLUMED_CSI_LOOP, by default
# those of target/debug) and the machine's own targets, slices and tools: exit status and output of verify are no measure
# by themselves (it only warns of a directive it does not know and exits 0), so any output at all is a failure.
#
# And whether a service has a directive that would give it a mount namespace of its own (peers.md 5.3); what a running unit
# shares with PID 1 is asked by scenarios/1-start.sh and 10-csi-loop.sh.
set -euo pipefail
export LC_ALL=C

cd "$(dirname "$0")/../.."
volumed=${VOLUMED:-target/debug/volumed}
csi_loop=${VOLUMED_CSI_LOOP:-target/debug/volumed-csi-loop}
units=/usr/lib/systemd/system

if [[ $volumed$csi_loop == *target/debug/* && ! (-x $volumed && -x $csi_loop) ]]; then
  cargo build --locked --quiet --bins
fi
for program in "$volumed" "$csi_loop"; do
  if [[ ! -x $program ]]; then
    printf 'verify.sh: there is no program %s; build it with: cargo build --bins\n' "$program" >&2
    exit 66
  fi
done

stage=$(mktemp -d "${TMPDIR:-/tmp}/volumed-verify.XXXXXX")
trap 'rm -rf --one-file-system "$stage"' EXIT

mkdir -p "$stage/usr/bin" "$stage/bin" "$stage$units" "$stage/etc/systemd/system"
cp "$volumed" "$stage/usr/bin/volumed"
cp "$csi_loop" "$stage/usr/bin/volumed-csi-loop"
cp /bin/kill "$stage/bin/kill"
cp -a "$units"/*.target "$units"/*.slice "$stage$units/"
cp systemd/* "$stage/etc/systemd/system/"

private='PrivateTmp|PrivateDevices|PrivateMounts|PrivateIPC|PrivatePIDs|PrivateUsers|PrivateNetwork|NetworkNamespacePath'
private+='|IPCNamespacePath|DynamicUser|ProtectSystem|ProtectHome|ProtectProc|ProcSubset|ProtectKernelTunables'
private+='|ProtectKernelModules|ProtectKernelLogs|ProtectControlGroups|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths'
private+='|Bind(ReadOnly)?Paths|TemporaryFileSystem|MountImages|Extension(Images|Directories)|Root[A-Za-z]+|LogNamespace|MountFlags'
if found=$(grep -nE "^($private)=" systemd/*.service); then
  printf 'not ok - a directive hides mounts from the host:\n%s\n' "$found"
  exit 1
fi
echo "ok - no service has a directive that would hide its mounts"

names=(systemd/*)
names=("${names[@]#systemd/}")
output=$(systemd-analyze verify --root="$stage" --man=no "${names[@]}" 2>&1) || output+=" (status $?)"
if [[ -n $output ]]; then
  printf 'not ok - systemd-analyze verify has something to say:\n%s\n' "$output"
  exit 1
fi
echo "ok - systemd-analyze verify is silent about ${names[*]}"
