#!/bin/sh
# Boots a Debian as a container whose first process is systemd; guest.py starts this.
#
#   boot.sh BASE PLACE NAME
#
# BASE is not written to: what changes lies on a tmpfs. PLACE is an empty directory for mounts, NAME names the cgroups. The
# network is the caller's; everything else of the kernel's that systemd could change is read-only or out of its capabilities.
set -eu
base=$1 place=$2 name=$3

if [ "${4:-}" != inside ]; then
  # Where its cgroups begin: below those of the caller (of each controller, in version 1), or at the top (version 2).
  while IFS=: read -r _ controllers path; do
    case $controllers in
      memory | pids | devices | freezer) group=/sys/fs/cgroup/$controllers$path/$name ;;
      name=systemd) group=/sys/fs/cgroup/systemd$path/$name ;;
      '') if [ -d /sys/fs/cgroup/unified ]; then group=/sys/fs/cgroup/unified$path/$name; else group=/sys/fs/cgroup/$name; fi ;;
      *) continue ;;
    esac
    mkdir -p "$group"
    echo $$ >"$group/cgroup.procs"
  done </proc/self/cgroup
  exec unshare --mount --pid --uts --ipc --cgroup --fork --kill-child sh "$0" "$base" "$place" "$name" inside
fi

mount --make-rprivate /
mount -t tmpfs -o size=4G,mode=0755 guest "$place"
mkdir "$place/upper" "$place/work" "$place/root"
root=$place/root
mount -t overlay -o "lowerdir=$base,upperdir=$place/upper,workdir=$place/work" guest "$root"

mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t tmpfs -o mode=0755 run "$root/run"
mount -t tmpfs -o mode=0755 dev "$root/dev"
for node in null zero full random urandom tty; do
  : >"$root/dev/$node"
  mount --bind "/dev/$node" "$root/dev/$node"
done
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t tmpfs -o mode=1777 shm "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666,mode=0620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
ln -s fd/0 "$root/dev/stdin"
ln -s fd/1 "$root/dev/stdout"
ln -s fd/2 "$root/dev/stderr"

if [ "$(stat --file-system --format=%T /sys/fs/cgroup)" = cgroup2fs ]; then
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
  mount -t tmpfs -o mode=0755 cgroups "$root/sys/fs/cgroup"
  for controller in memory pids devices freezer; do
    mkdir "$root/sys/fs/cgroup/$controller"
    mount -t cgroup -o "$controller" cgroup "$root/sys/fs/cgroup/$controller"
  done
  mkdir "$root/sys/fs/cgroup/systemd" "$root/sys/fs/cgroup/unified"
  mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
  mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup/unified"
fi

echo guest >"$root/etc/hostname"
echo '127.0.0.1 localhost guest' >"$root/etc/hosts"
: >"$root/etc/machine-id"
mkdir "$root/old"
cd "$root"
pivot_root . old
cd /
umount -l /old
# As systemd-nspawn does: units' credentials are mounted in one namespace, and are to be seen in others.
mount --make-rshared /
# shellcheck disable=SC2093
exec env -i container=other PATH=/usr/sbin:/usr/bin setpriv --bounding-set -sys_time,-sys_module,-sys_rawio,-wake_alarm,-syslog,-audit_control /sbin/init
