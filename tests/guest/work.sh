#!/bin/sh
# What the guest does, on its root disk, until it is told to stop: makes, copies, renames, rewrites and removes files whose
# checksums it keeps, and verifies old ones that it has forgotten. Whatever it finds wrong it says with `BROKEN`.

say() { echo "GUEST $*" >/dev/console; }

# Verifies a directory against its checksums, from the disk.
verify() {
  echo 3 >/proc/sys/vm/drop_caches
  sha256sum -c -s "$1" || say "BROKEN $1 in round $round"
}

# A directory of new files, some of them hard links and copies.
fill() {
  mkdir -p "$1/below"
  for file in 1 2 3 4; do
    dd if=/dev/urandom of="$1/$file" bs=$((RANDOM % 4000 + 97)) count=$((RANDOM % 60 + 1)) 2>/dev/null
  done
  cp "$1/1" "$1/below/copy"
  ln "$1/2" "$1/below/link"
  mv "$1/3" "$1/below/renamed"
}

# Rewrites a piece in the middle of a large file, without a change of its length.
rewrite() {
  dd if=/dev/urandom of=/data/large bs=4096 seek=$((RANDOM % 2000)) count=$((RANDOM % 40 + 1)) conv=notrunc 2>/dev/null
  sha256sum /data/large >/data/large.new
  mv /data/large.new /data/large.sums
}

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
mkdir -p /data
dd if=/dev/zero of=/data/large bs=4096 count=2048 2>/dev/null
round=0
(read -r _ </dev/console && touch /run/stop) &
say READY
while [ ! -e /run/stop ]; do
  round=$((round + 1))
  directory=/data/$((round % 8))
  rm -rf "$directory" "$directory.sums"
  fill "$directory"
  find "$directory" -type f -exec sha256sum {} + >"$directory.new"
  mv "$directory.new" "$directory.sums"
  rewrite
  [ $((round % 3)) != 0 ] || sync
  old=/data/$(((round + RANDOM) % 8)).sums
  [ ! -e "$old" ] || verify "$old"
  say "ROUND $round $(awk '$4 == "vda" { print $3 }' /proc/partitions)"
done

sync
for sums in /data/*.sums; do
  verify "$sums"
done
dmesg | grep -iE 'i/o error|ext4-fs (error|warning)|remounting' | while read -r line; do
  say "BROKEN $line"
done
cp /data/large.sums /run
mount -o remount,ro / || say 'BROKEN remount'
say "DONE $round"
poweroff -f
