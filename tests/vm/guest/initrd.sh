#!/usr/bin/env bash
# initrd.sh TREE: prints an initrd for the one kernel below TREE. It knows the machine's disks and nothing else, mounts the
# one that is called root and goes on with the system there.
set -euo pipefail

tree=$1
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
mkdir "$temporary"/{dev,modules,proc,root,sys}
cp "$tree/bin/busybox" "$temporary/busybox"

# Each with those that it needs before it; what the kernel has built in has no file.
version=$(ls "$tree/usr/lib/modules")
number=10
while read -r word file; do
  [[ $word == insmod ]] || continue
  case $file in
    *.xz) xz --decompress --stdout "$tree$file" ;;
    *) cat "$tree$file" ;;
  esac >"$temporary/modules/$((number++))"
done < <(chroot "$tree" modprobe --set-version="$version" --show-depends --all virtio_pci virtio_blk | awk '!seen[$0]++')

cat >"$temporary/init" <<'INIT'
#!/busybox sh
b=/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
for module in /modules/*; do $b insmod "$module"; done
serial=$($b grep -lx root /sys/block/vd*/serial)
disk=${serial%/serial}
$b mount -t ext4 -o noatime "/dev/${disk##*/}" /root
$b mount -o move /dev /root/dev
$b umount /proc /sys
exec $b switch_root /root /sbin/init
INIT
chmod 755 "$temporary/init"
(cd "$temporary" && find . | cpio --quiet --create --format=newc) | gzip -1
