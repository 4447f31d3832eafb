#!/bin/sh
# customize.sh ROOT PUBLIC_KEY: makes a stock Debian system below ROOT a machine that the tests can reach.
# Nothing is added that UMS could depend on: ssh for root, two network cards, a console.
set -e
root=$1
key=$(cat "$2")

printf '127.0.0.1 localhost\n::1 localhost\n' >"$root/etc/hosts"
printf '/dev/vda / ext4 errors=remount-ro 0 1\n' >"$root/etc/fstab"
install -d -m 700 "$root/root/.ssh"
echo "$key" >"$root/root/.ssh/authorized_keys"

# The first card leads to the host, for ssh alone.
cat >"$root/etc/systemd/network/10-host.network" <<N
[Match]
MACAddress=52:54:00:aa:00:01
[Network]
DHCP=ipv4
N

# The second card is the link between the machines: its address, and the machine's name, stand on the
# kernel's command line.
cat >"$root/usr/local/sbin/vm-link" <<'N'
#!/bin/sh
for word in $(cat /proc/cmdline); do
    case $word in vm.address=*) address=${word#*=} ;; vm.name=*) hostname "${word#*=}" ;; esac
done
for _ in $(seq 600); do
    for card in /sys/class/net/en*; do
        case $(cat "$card/address") in 52:54:00:bb:*) link=${card##*/} ;; esac
    done
    if [ -n "$link" ]; then
        ip link set "$link" up
        ip address replace "$address" dev "$link"
        exit 0
    fi
    sleep 0.1
done
echo "no card for the link between the machines" >&2
exit 1
N
chmod 755 "$root/usr/local/sbin/vm-link"
cat >"$root/etc/systemd/system/vm-link.service" <<N
[Unit]
Description=Link between the virtual machines
Before=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/vm-link
[Install]
WantedBy=multi-user.target
N

# Root logs in on the serial console without a password: for a machine that ssh does not reach.
console=$root/etc/systemd/system/serial-getty@ttyS0.service.d
mkdir -p "$console"
printf '[Service]\nExecStart=\nExecStart=-/sbin/agetty -a root --keep-baud 115200 ttyS0 vt220\n' >"$console/autologin.conf"

chroot "$root" systemctl enable systemd-networkd vm-link.service ssh serial-getty@ttyS0.service
# What works in the background would take the one processor there is at moments of its own choosing.
chroot "$root" systemctl mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer \
    e2scrub_all.timer fstrim.timer logrotate.timer man-db.timer
