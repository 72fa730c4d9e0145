#!/bin/sh
# Second half of the lab's first process, in the assembled root. See init.sh.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
exec </dev/null >/dev/console 2>&1

port() {
    for p in /sys/class/virtio-ports/*; do
        [ "$(cat "$p/name")" = "$1" ] && echo "/dev/${p##*/}" && return
    done
    echo "lab: no port named $1"
}

finish() {
    sync
    echo o >/proc/sysrq-trigger
    while :; do sleep 60; done
}

mkdir -p /dev/pts /dev/shm
mount -t devpts -o mode=620,gid=5,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o mode=1777 shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
[ -e /dev/fd ] || ln -s /proc/self/fd /dev/fd
ln -sf /proc/self/fd/0 /dev/stdin
ln -sf /proc/self/fd/1 /dev/stdout
ln -sf /proc/self/fd/2 /dev/stderr
for dir in tmp var/tmp home artifacts; do
    mkdir -p "/scratch/$dir"
done
chmod 1777 /scratch/tmp /scratch/var/tmp /scratch/artifacts
mount --bind /scratch/tmp /tmp
mount --bind /scratch/var/tmp /var/tmp

modprobe -q kvm-amd || echo "lab: kvm-amd did not load: /dev/kvm will be missing"
modprobe -q tun
modprobe -q loop
modprobe -q virtio_net
[ -e /dev/kvm ] && chgrp kvm /dev/kvm && chmod 660 /dev/kvm

hostname lab
ip link set lo up
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    ip address add 10.0.2.15/24 dev eth0
    ip route add default via 10.0.2.2
    echo "nameserver 10.0.2.3" >/etc/resolv.conf
fi

. /payload/.lab/environment
if [ "$LAB_USER" = root ]; then
    export HOME=/scratch/home/root XDG_RUNTIME_DIR=/run/user/0
    as=""
else
    export HOME=/scratch/home/lab XDG_RUNTIME_DIR=/run/user/1000
    as="setpriv --reuid=lab --regid=lab --init-groups"
fi
mkdir -p "$HOME" "$XDG_RUNTIME_DIR"
chmod 700 "$XDG_RUNTIME_DIR"
[ "$LAB_USER" = root ] || chown lab:lab "$HOME" "$XDG_RUNTIME_DIR"
export USER="$LAB_USER" LOGNAME="$LAB_USER" TMPDIR=/tmp LAB_ARTIFACTS=/scratch/artifacts
export PATH="/payload/bin:$PATH"
[ -d /payload/guest ] && export BERTH_GUEST_DIR=/payload/guest

# Pipes, not the ports themselves: a port can be opened by one process only, and programs do open /dev/stderr.
mkfifo /run/out /run/err
cat /run/out >"$(port out)" &
out=$!
cat /run/err >"$(port err)" &
err=$!
cd /scratch || finish
echo started >"$(port status)"
$as sh /payload/.lab/command >/run/out 2>/run/err
code=$?

# What the command left running would keep the pipes open for ever; it ends with the machine anyway.
for pid in /proc/[0-9]*; do
    pid=${pid#/proc/}
    case $pid in 1 | "$out" | "$err") continue ;; esac
    [ -n "$(cat "/proc/$pid/cmdline" 2>/dev/null | tr -d '\0')" ] && kill -9 "$pid" 2>/dev/null
done
wait "$out" "$err"
if [ -n "$LAB_WANTS_ARTIFACTS" ]; then
    tar -C /scratch/artifacts -cf - . >"$(port artifacts)"
fi
echo "exit $code" >"$(port status)"
finish
