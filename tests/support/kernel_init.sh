#!/bin/sh
# Process 1 of a guest: lays a file system in memory over the machine's root, runs the job, says how it ended.
# EXCHANGE is the folder shared with the outside, from the kernel's command line.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LC_ALL=C.UTF-8
off() { sync; echo o >/proc/sysrq-trigger; sleep 60; }
fail() { echo "guest: cannot mount $1" >/dev/console; off; }

mount -t proc proc /proc
top=/mnt root=/mnt/root
mount -t tmpfs -o size=90%,mode=755 memory $top || fail "memory"
mkdir $top/upper $top/work $root
mount -t overlay -o lowerdir=/,upperdir=$top/upper,workdir=$top/work root $root || fail "the root"
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t devtmpfs devtmpfs $root/dev
mkdir -p $root/dev/pts $root/dev/shm $root/dev/mqueue
mount -t devpts -o ptmxmode=666,gid=5,mode=620 devpts $root/dev/pts
mount -t mqueue mqueue $root/dev/mqueue
mount -t cgroup2 -o nsdelegate cgroup2 $root/sys/fs/cgroup || fail "cgroup2"
mount -t bpf bpf $root/sys/fs/bpf
# An overlay takes no overlay as its upper layer: where containers and tests write is memory outright.
for folder in /dev/shm /run /tmp /var/lib/shoal /var/lib/shoal-lab; do
    mkdir -p $root$folder
    mount -t tmpfs -o mode=1777 memory $root$folder || fail $folder
done
mkdir -p $root/run/lock $root/old $root$EXCHANGE
mount -t hostfs -o $EXCHANGE hostfs $root$EXCHANGE || fail "the exchange folder"
ln -sfn /proc/self/fd $root/dev/fd
ln -sfn fd/0 $root/dev/stdin
ln -sfn fd/1 $root/dev/stdout
ln -sfn fd/2 $root/dev/stderr
cd $root && pivot_root . old || fail "the new root"
exec chroot . /bin/sh -c '
    umount -l /old && rmdir /old
    hostname guest
    ip link set lo up
    setsid sh "$EXCHANGE/job" </dev/null >"$EXCHANGE/said" 2>&1
    echo $? >"$EXCHANGE/status.part"
    mv "$EXCHANGE/status.part" "$EXCHANGE/status"
    sync; echo o >/proc/sysrq-trigger; sleep 60'
