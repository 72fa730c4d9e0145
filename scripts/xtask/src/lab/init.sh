#!/bin/busybox sh
# The first process of the lab's outer machine. It assembles the root (the read-only image under a tmpfs), mounts what
# the run brought along, loads KVM, runs the one command with its output on virtio ports, reports its exit code on a
# port of its own, and powers off. Anything that fails before the command says so on the console and reports nothing,
# which the host tells apart from every exit code.
export PATH=/bin
/bin/busybox --install -s /bin

fail() {
    echo "lab: $*" >/dev/console
    poweroff -f
    sleep 60
}

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys
for module in /modules/*; do
    insmod "$module" || fail "cannot load $module"
done

# Disks are told apart by serial: their order is the host's business.
disk() {
    for d in /sys/block/vd*; do
        [ "$(cat "$d/serial")" = "$1" ] && echo "/dev/${d##*/}" && return
    done
    fail "no disk with the serial $1"
}

mkdir -p /image /top
mount -t erofs -o ro "$(disk lab-root)" /image || fail "cannot mount the root image"
mount -t tmpfs -o size=25% top /top && mkdir /top/upper /top/work
mount -t overlay -o lowerdir=/image,upperdir=/top/upper,workdir=/top/work root /root || fail "cannot assemble the root"
mkdir -p /root/payload /root/scratch
mount -t erofs -o ro "$(disk lab-payload)" /root/payload || fail "cannot mount the payload"
mount -t ext4 -o noatime,nobarrier "$(disk lab-scratch)" /root/scratch || fail "cannot mount the scratch disk"
mount --move /dev /root/dev
mount --move /sys /root/sys
mount --move /proc /root/proc
exec switch_root /root /bin/sh /payload/.lab/main.sh
