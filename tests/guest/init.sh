#!/bin/busybox sh
# The first program of the guest: loads what its disk needs and goes on from there.
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in $(/bin/busybox cat /modules/order); do
  /bin/busybox insmod "/modules/$module" || echo "GUEST BROKEN module $module" >/dev/console
done
/bin/busybox mount -t ext4 /dev/vda /disk || echo 'GUEST BROKEN no root' >/dev/console
/bin/busybox mount --move /dev /disk/dev
exec /bin/busybox switch_root /disk /bin/busybox sh /work.sh
