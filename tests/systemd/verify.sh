#!/usr/bin/env bash
# tests/systemd/verify.sh [PROGRAM]: whether systemd has anything to say about the units.
#
# `systemd-analyze verify` in a staged root that holds the units, the program (default $VOLUMED, else
# target/debug/volumed) and the machine's own targets, slices and tools: exit status and output of verify are no measure
# by themselves (it only warns of a directive it does not know and exits 0), so any output at all is a failure.
#
# And whether volumed.service has a directive that would give it a mount namespace of its own (peers.md 5.3); what a
# running unit shares with PID 1 is asked by scenarios/1-start.sh.
set -euo pipefail
export LC_ALL=C

cd "$(dirname "$0")/../.."
program=${1:-${VOLUMED:-target/debug/volumed}}
units=/usr/lib/systemd/system

if [[ ! -x $program && $program == target/debug/volumed ]]; then
  cargo build --locked --quiet --bin volumed
fi
if [[ ! -x $program ]]; then
  printf 'verify.sh: there is no program %s; build it with: cargo build --bins\n' "$program" >&2
  exit 66
fi

stage=$(mktemp -d "${TMPDIR:-/tmp}/volumed-verify.XXXXXX")
trap 'rm -rf --one-file-system "$stage"' EXIT

mkdir -p "$stage/usr/bin" "$stage/bin" "$stage$units" "$stage/etc/systemd/system"
cp "$program" "$stage/usr/bin/volumed"
cp /bin/kill "$stage/bin/kill"
cp -a "$units"/*.target "$units"/*.slice "$stage$units/"
cp systemd/volumed.service systemd/volumed.socket "$stage/etc/systemd/system/"

private='PrivateTmp|PrivateDevices|PrivateMounts|PrivateIPC|PrivatePIDs|PrivateUsers|PrivateNetwork|NetworkNamespacePath'
private+='|IPCNamespacePath|DynamicUser|ProtectSystem|ProtectHome|ProtectProc|ProcSubset|ProtectKernelTunables'
private+='|ProtectKernelModules|ProtectKernelLogs|ProtectControlGroups|(ReadOnly|ReadWrite|Inaccessible|Exec|NoExec)Paths'
private+='|Bind(ReadOnly)?Paths|TemporaryFileSystem|MountImages|Extension(Images|Directories)|Root[A-Za-z]+|LogNamespace|MountFlags'
if found=$(grep -nE "^($private)=" systemd/volumed.service); then
  printf 'not ok - a directive hides the mounts of volumed from the host:\n%s\n' "$found"
  exit 1
fi
echo "ok - volumed.service has no directive that would hide its mounts"

output=$(systemd-analyze verify --root="$stage" --man=no volumed.service volumed.socket 2>&1) || output+=" (status $?)"
if [[ -n $output ]]; then
  printf 'not ok - systemd-analyze verify has something to say:\n%s\n' "$output"
  exit 1
fi
echo "ok - systemd-analyze verify is silent about volumed.service and volumed.socket"
