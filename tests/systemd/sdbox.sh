#!/usr/bin/env bash
# tests/systemd/sdbox.sh WORK [SECONDS]: boots a real systemd as PID 1 on this kernel, without a virtual machine.
#
# The box is an overlay of the machine's own root, in namespaces of its own (process ids, mounts, host name, IPC, network,
# cgroups). It gets
#   WORK          at /host, writable: how anything comes in and out
#   WORK/units/   copied into /etc/systemd/system
#   WORK/run.sh   run by e2e.service once basic.target is reached, at every boot; its output goes to WORK/out.log
# and this script ends with run.sh's exit status, or 137 when a boot took longer than SECONDS (default 120).
#
# `systemctl reboot` in the box boots it again on the same overlay, so /var stays and mounts go. Each boot has a new boot
# id. Nothing stays behind: the mounts live in this process's namespace, the processes in a cgroup that is killed at the end.
# (Where this script itself is killed with SIGKILL an empty directory and an empty cgroup called sdbox.* do.)
set -euo pipefail
export LC_ALL=C

work=$(realpath "$1")
limit=${2:-120}

# Everything below runs in a mount namespace that ends with this process; and this process ends, in order, with the one
# that started it, even where that was killed.
if [[ -z ${SDBOX_NAMESPACE:-} ]]; then
  SDBOX_NAMESPACE=1 exec setpriv --pdeathsig TERM unshare --mount --propagation private -- "$0" "$work" "$limit"
fi

die() {
  printf 'sdbox.sh: %s\n' "$1" >&2
  exit 99
}

base=$(mktemp -d "${TMPDIR:-/tmp}/sdbox.XXXXXX")
cgroup=

# shellcheck disable=SC2317  # the trap calls it
cleanup() {
  if [[ -n $cgroup ]]; then
    echo 1 >"$cgroup/cgroup.kill"
    # A killed process leaves its cgroup when it is reaped, which nobody tells us of.
    local deadline=$((SECONDS + 10))
    until find "$cgroup" -depth -type d -exec rmdir {} + 2>/dev/null; [[ ! -e $cgroup ]]; do
      ((SECONDS < deadline)) || die "the cgroup $cgroup is still busy"
      sleep 0.05
    done
  fi
  # The mounts in it are this namespace's: unmounted here only so that the directory can go.
  if mountpoint -q "$base/root"; then umount "$base/root"; fi
  if mountpoint -q "$base"; then umount "$base"; fi
  rmdir "$base"
}
trap cleanup EXIT
trap 'exit 143' TERM
trap 'exit 130' INT HUP

# --- the root

root=$base/root
mount -t tmpfs -o size=2G,mode=0755 sdbox "$base"
mkdir "$base/upper" "$base/work" "$root"
mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" sdbox "$root" || die "no overlay of / is possible here"

# What the machine may have of ours or of its own: the box starts without it. These make holes in the overlay only.
etc=$root/etc/systemd/system
rm -rf --one-file-system "$etc" "$root/etc/volumed" "$root/var/lib/volumed" "$root/var/lib/kubelet" "$root/var/log/journal"
mkdir -p "$etc/multi-user.target.wants" "$root/host" "$root/var/log/journal"
: >"$root/etc/fstab"
echo sdbox >"$root/etc/hostname"
rm -f "$root/etc/machine-id"
echo 0123456789abcdef0123456789abcdef >"$root/etc/machine-id"

# Units that want hardware, a network or a terminal.
for unit in console-getty.service e2scrub_reap.service getty.target getty@tty1.service systemd-binfmt.service \
  systemd-logind.service systemd-modules-load.service systemd-networkd.service systemd-random-seed.service \
  systemd-remount-fs.service systemd-resolved.service systemd-sysctl.service systemd-timesyncd.service \
  systemd-udev-trigger.service systemd-udevd.service; do
  ln -s /dev/null "$etc/$unit"
done
ln -s /lib/systemd/system/multi-user.target "$etc/default.target"
if [[ -d $work/units ]]; then cp -r "$work/units/." "$etc/"; fi

cat >"$etc/e2e.service" <<UNIT
[Unit]
Description=The test that this box is for
After=basic.target dbus.service
Wants=dbus.service
SuccessAction=exit
FailureAction=exit
[Service]
Type=oneshot
TimeoutStartSec=$limit
StandardOutput=append:/host/out.log
StandardError=inherit
ExecStart=/bin/bash /host/run.sh
UNIT
ln -s ../e2e.service "$etc/multi-user.target.wants/"
: >"$work/out.log"

# --- the boots

hierarchy=/sys/fs/cgroup/unified
[[ ! -e /sys/fs/cgroup/cgroup.controllers ]] || hierarchy=/sys/fs/cgroup
cgroup=$hierarchy$(sed -n 's/^0:://p' /proc/self/cgroup)/${base##*/}
mkdir "$cgroup" || { cgroup=; die "no cgroup can be made below $hierarchy"; }

# Runs in the namespaces, as the process that becomes PID 1.
# shellcheck disable=SC2016  # expanded there
init='set -eu
  root=$0 work=$1
  mount -t proc proc "$root/proc"
  mount -t sysfs sysfs "$root/sys"
  mount -t tmpfs tmpfs "$root/run"
  mount -t tmpfs tmpfs "$root/tmp"
  mount -t devtmpfs dev "$root/dev"
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
  mount -t tmpfs tmpfs "$root/dev/shm"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  mount --bind "$work" "$root/host"
  cat /proc/sys/kernel/random/uuid >"$root/run/boot_id"
  mount --bind "$root/run/boot_id" "$root/proc/sys/kernel/random/boot_id"
  cd "$root"
  pivot_root . .
  umount -l .
  # On a host systemd does this itself; it does not where it takes itself to be in a container.
  mount --make-rshared /
  exec env -i container=sdbox PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd systemd.show_status=0'

boot() {
  # In the background, so that a signal to this script is acted on at once.
  (
    echo "$BASHPID" >"$cgroup/cgroup.procs"
    # Each ends with the one before it, down to PID 1 (--kill-child), should this script be killed.
    exec setpriv --pdeathsig KILL timeout --signal=KILL "$limit" \
      setpriv --pdeathsig KILL unshare --fork --kill-child --pid --mount --uts --ipc --net --cgroup \
      --propagation private -- /bin/bash -c "$init" "$root" "$work"
  ) &
  wait "$!"
}

# reboot(2) in a pid namespace ends its PID 1 with SIGHUP, which unshare reports as 129.
for ((boots = 0; boots < 10; boots++)); do
  status=0
  boot || status=$?
  ((status == 129)) || break
done
exit "$status"
