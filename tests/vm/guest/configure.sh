#!/usr/bin/env bash
# configure.sh TREE: run by mmdebstrap when the packages are installed below TREE; the kernel and what makes it a test machine.
set -euo pipefail

tree=$1
here=$(cd "$(dirname "$0")" && pwd)

# The kernel alone: its package would bring a boot loader's and an initrd's tools with it.
# shellcheck disable=SC2016  # expanded by the inner shell
chroot "$tree" bash -euo pipefail -c '
  mkdir /root/kernel && cd /root/kernel
  package=$(apt-cache depends "$KERNEL" | sed -n "s/^ *Depends: \(linux-image-.*\)/\1/p")
  apt-get -o APT::Sandbox::User=root download "$package"
  dpkg-deb -x ./*.deb files
  cp -a files/lib/modules /usr/lib/
  mv files/boot/vmlinuz-* /boot/vmlinuz
  cd / && rm -r /root/kernel
  depmod "$(ls /usr/lib/modules)"'

echo machine >"$tree/etc/hostname"
: >"$tree/etc/fstab"
# Kept over a power cut, for the person who reads of a failure.
mkdir -p "$tree/var/log/journal" "$tree/opt/programs"

install -m 755 "$here/agent.sh" "$tree/usr/local/sbin/test-agent"
install -m 644 "$here/test-agent.service" "$tree/etc/systemd/system/"
systemctl --quiet --root="$tree" enable test-agent.service

# Nothing runs that no test asked for.
systemctl --quiet --root="$tree" mask serial-getty@ttyS0.service getty.target systemd-update-utmp.service \
  apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer dpkg-db-backup.timer systemd-tmpfiles-clean.timer
systemctl --quiet --root="$tree" disable nfs-server.service nfs-client.target rpcbind.service rpcbind.socket \
  nfs-blkmap.service iscsid.service iscsid.socket open-iscsi.service multipathd.service multipathd.socket \
  multipath-tools.service remote-fs.target e2scrub_reap.service 2>/dev/null
