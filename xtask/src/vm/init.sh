#!/bin/busybox sh
# The first process of the machine that `cargo xtask vm` boots: mounts what Faultbox looks at, runs the specs, and says how each ended.
/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin NO_COLOR=1 HOME=/
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmp /tmp
mount -t tmpfs run /run
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t tracefs trace /sys/kernel/tracing
chmod 1777 /tmp
ip link set lo up
cat /proc/version
faultbox doctor </dev/null
cd /specs
for spec in kernel/*.star syscall/*.star; do
    faultbox test "$spec" --seed 1 --format json --output /tmp/report </dev/null >/dev/null 2>/tmp/said
    code=$?
    # Beside a spec that is not to pass whole stands its exit code.
    wanted=$(sed -n 's/^exit //p' "${spec%.star}.expected" 2>/dev/null)
    [ "$code" = "${wanted:-0}" ] && code="$code as expected"
    echo "SPEC $spec ended with $code"
    # Whatever did not pass, by name.
    grep -E '"outcome"|^ *"name"|"reason"' /tmp/report | grep -B1 -A1 -E '"outcome": "(failed|error|timeout|inconclusive)"'
    cat /tmp/said
done
echo "ALL SPECS DONE"
poweroff -f
