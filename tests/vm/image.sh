#!/usr/bin/env bash
# tests/vm/image.sh DIRECTORY | --why-not: makes what tests/vm_*.rs boot, below DIRECTORY, and lets DIRECTORY/current point at it:
#
#   vmlinuz, initrd.img, root.img    Debian's kernel for clouds, and this host's release of Debian with systemd on it
#
# From Debian's packages alone, by mmdebstrap, which needs root. The release is the host's own, so that programs built here
# find their C library there. What was made before is kept as long as neither these scripts nor the packages' versions
# changed; tests that run from another one meanwhile keep theirs (they hold a lock on its file `lock`). --why-not prints
# why it cannot be made here, nothing if it can.
set -euo pipefail
export LC_ALL=C

here=$(cd "$(dirname "$0")" && pwd)

# What is in it besides the essential packages. NFS, iSCSI, multipath, dm-crypt and device mapper are there for tests that want them;
# their services are not started at boot.
packages=(systemd systemd-sysv dbus udev kmod iproute2 procps psmisc jq netbase mount util-linux
  e2fsprogs xfsprogs btrfs-progs cryptsetup-bin dmsetup nfs-kernel-server nfs-common open-iscsi multipath-tools
  busybox-static)
kernel=linux-image-cloud-amd64

# shellcheck source=/dev/null
release=$(. /etc/os-release && [[ ${ID:-} == debian ]] && echo "${VERSION_CODENAME:-}") || true

# why_not: prints why the machine cannot be made here, nothing if it can.
why_not() {
  local command
  if [[ -z $release || $(uname -m) != x86_64 ]]; then
    echo "the machine is made from Debian's packages for x86_64, and this host is not that"
  elif ((EUID != 0)); then
    echo "mmdebstrap needs root"
  else
    for command in qemu-system-x86_64 qemu-img mmdebstrap mkfs.ext4 cpio xz strip setpriv; do
      command -v "$command" >/dev/null || echo "$command is missing"
    done | paste -sd ,
  fi
}

reason=$(why_not)
if [[ ${1:-} == --why-not ]]; then
  printf '%s' "$reason"
  exit
fi
if [[ -n $reason ]]; then
  printf 'image.sh: %s\n' "$reason" >&2
  exit 69
fi
mkdir -p "$1"
directory=$(realpath "$1")

# The host's own sources of Debian's packages; none: mmdebstrap knows some.
sources=()
for file in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do
  [[ ! -s $file ]] || { sources=("$file") && break; }
done

# The machine's path is in its key because its disks name each other by it.
key=$({
  echo "$directory" "$release" "${sources[@]}"
  cat "$here/image.sh" "$here"/guest/*
  apt-cache policy "${packages[@]}" libc6 "$kernel" | grep -E '^[^ ]|Candidate'
  apt-cache depends "$kernel"
  qemu-system-x86_64 --version
} | sha256sum | cut -c -16)

exec 9>"$directory/lock"
flock 9

temporary=
trap '[[ -z $temporary ]] || rm -rf --one-file-system "$temporary"' EXIT

# make_image: the directory $key, whole or not at all.
make_image() {
  local tree
  temporary=$(mktemp -d "$directory/new.XXXXXX")
  tree=$temporary/tree
  KERNEL=$kernel mmdebstrap --quiet --mode=root --variant=minbase --format=directory \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --include="$(IFS=, && echo "${packages[*]}")" --customize-hook="$here/guest/configure.sh" \
    "$release" "$tree" "${sources[@]}"
  # Without one every boot would be the first one, which enables all services. mmdebstrap leaves none.
  echo 0123456789abcdef0123456789abcdef >"$tree/etc/machine-id"
  mv "$tree/boot/vmlinuz" "$temporary/vmlinuz"
  "$here/guest/initrd.sh" "$tree" >"$temporary/initrd.img"
  truncate --size=8G "$temporary/root.img"
  mkfs.ext4 -q -E nodiscard -d "$tree" "$temporary/root.img"
  rm -rf --one-file-system "$tree"
  touch "$temporary/lock"
  mv "$temporary" "$directory/$key"
  temporary=
}

# remove_others: what nobody runs any more.
remove_others() {
  local other
  for other in "$directory"/*/; do
    other=${other%/}
    [[ -L $other || ${other##*/} == "$key" ]] && continue
    if [[ ! -e $other/lock ]] || flock --nonblock --exclusive "$other/lock" true; then
      rm -rf --one-file-system "$other"
    fi
  done
}

if [[ -e $directory/$key/lock ]]; then
  printf 'the machine %s is there\n' "$key"
else
  time make_image
fi
ln -sfn "$key" "$directory/current"
remove_others
du -sh --apparent-size "$directory/$key"/* | sed 's/^/  /'
