#!/bin/bash
# Install Debian packages without starting, stopping or enabling any service.
#
#   install-debian-packages.sh PACKAGE...        as root
#
# Debian starts a server as soon as its package is installed. While this script runs,
# /usr/sbin/policy-rc.d forbids that; one that was there is kept aside and put back, also after a
# failure or an interrupt. What the packages enabled for the next boot is disabled again, and an
# epmd that was not there before is ended.
set -euo pipefail

POLICY=${TRELLIS_POLICY_FILE:-/usr/sbin/policy-rc.d}
KEPT="$POLICY.kept-by-trellis"
MARK="# written by Trellis's set-up, for its duration"
UNITS=/etc/systemd/system
RUNLEVELS="/etc/rc2.d /etc/rc3.d /etc/rc4.d /etc/rc5.d"
EPMD_PORT_HEX=1111   # 4369
LOCK_TIMEOUT_S=300

ours() { [ -f "$POLICY" ] && grep -qxF "$MARK" "$POLICY"; }

restore_policy() {
    if [ -e "$KEPT" ] || [ -L "$KEPT" ]; then
        mv -f "$KEPT" "$POLICY"
    elif ours; then
        rm -f "$POLICY"
    fi
}

forbid_services() {
    # A run that was killed hard left its own policy in place and the first one aside.
    if ours; then restore_policy; fi
    if [ -e "$POLICY" ] || [ -L "$POLICY" ]; then mv "$POLICY" "$KEPT"; fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$MARK" > "$POLICY"
    chmod 755 "$POLICY"
}

enabled_units() { { find "$UNITS" -type l 2>/dev/null || true; } | sort; }

started_at_boot() {
    # shellcheck disable=SC2086
    { find $RUNLEVELS -name 'S*' 2>/dev/null || true; } | sed 's,.*/S[0-9]*,,' | sort -u
}

epmd_listens() { cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -qi ":$EPMD_PORT_HEX [0-9A-F]*:0000 0A"; }

disable_new_units() {
    local link name
    comm -13 "$work/units" <(enabled_units) | while read -r link; do
        name=$(basename "$link")
        case "$name" in
            rabbitmq-server*|redis-server*|redis.service|epmd*) ;;
            *) continue ;;
        esac
        case "$link" in
            *.wants/*|*.requires/*) systemctl disable --quiet "$name" 2>/dev/null || true ;;
        esac
        # Where systemctl is not there to do it; and a unit's second name beside the unit.
        rm -f "$link"
    done
    comm -13 "$work/boot" <(started_at_boot) | while read -r name; do
        case "$name" in
            rabbitmq-server*|redis-server*|epmd*) update-rc.d "$name" disable || true ;;
        esac
    done
}

if [ "$(id -u)" != 0 ]; then
    echo "install-debian-packages.sh: must be run as root: sudo $0 $*" >&2
    exit 1
fi
exec 9>/var/lock/trellis-packages.lock
flock -w "$LOCK_TIMEOUT_S" 9 || { echo "another set-up is installing packages" >&2; exit 1; }

work=$(mktemp -d)
finish() {
    status=$?
    trap '' INT TERM HUP
    restore_policy
    rm -rf "$work"
    exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
trap 'exit 129' HUP

enabled_units > "$work/units"
started_at_boot > "$work/boot"
if epmd_listens; then epmd_was_there=yes; else epmd_was_there=no; fi
forbid_services

export DEBIAN_FRONTEND=noninteractive
# The lists of a fresh machine are empty; one broken source among many is no reason to stop.
apt-get update -q || echo "apt-get update failed; trying with the lists that are there" >&2
# The lock's descriptor is closed for apt, so that nothing it leaves behind can hold it.
apt-get install -q -y --no-install-recommends --no-upgrade "$@" 9>&-

disable_new_units
if [ "$epmd_was_there" = no ] && epmd_listens; then
    epmd -kill >/dev/null 2>&1 || echo "an epmd listens on port 4369 and could not be ended" >&2
fi
