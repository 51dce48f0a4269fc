#!/usr/bin/env bash
# A second Docker engine beside the machine's own, in a network namespace of its own, for tests against another version.
#
#   deploy/testbed/engine.sh start DIR BIN    start BIN/sbin/dockerd with all its data below DIR; its socket is DIR/docker.sock
#   deploy/testbed/engine.sh images DIR       copy the test images of the machine's own engine into it
#   deploy/testbed/engine.sh space DIR        print its network namespace
#   deploy/testbed/engine.sh stop DIR         end it and remove all that it made; safe to repeat, also after a crash
#
# Takes root. DIR must lie on a file system that overlay2 works on (not on an overlay itself).
set -euo pipefail
readonly ACTION="${1:-}" DIR="${2:-}"
PATH="$PATH:/usr/sbin:/sbin"

say() { printf 'testbed: %s\n' "$*" >&2; }
die() {
    printf 'testbed: %s\n' "$*" >&2
    exit 1
}
usage() { die "usage: deploy/testbed/engine.sh start DIR BIN | images DIR | space DIR | stop DIR"; }

# A short name that belongs to DIR: interface names are 15 characters at most.
name() { printf 'dvf%s' "$(printf '%s' "$DIR" | sha256sum | head -c 8)"; }

docker_there() { docker -H "unix://$DIR/docker.sock" "$@"; }

start() {
    local bin="$1" space octet
    [ -x "$bin/sbin/dockerd" ] || die "there is no $bin/sbin/dockerd"
    stop
    mkdir -p "$DIR"/{data,exec}
    space="$(name)"
    octet=$((0x$(printf '%s' "$space" | sha256sum | head -c 2) % 200 + 20))
    ip netns add "$space"
    ip link add "$space" type veth peer name eth0 netns "$space"
    ip addr add "10.98.$octet.1/30" dev "$space"
    ip link set "$space" up
    nsenter --net="/run/netns/$space" sh -ec "ip addr add 10.98.$octet.2/30 dev eth0; ip link set eth0 up; ip link set lo up; ip route add default via 10.98.$octet.1"
    printf '{}\n' >"$DIR/daemon.json"
    # Not `ip netns exec`: it would hide the control groups.
    PATH="$bin/sbin:$bin/bin:$bin/libexec/docker:$PATH" setsid nsenter --net="/run/netns/$space" dockerd --config-file "$DIR/daemon.json" \
        --data-root "$DIR/data" --exec-root "$DIR/exec" -H "unix://$DIR/docker.sock" --pidfile "$DIR/docker.pid" \
        --storage-driver overlay2 --live-restore --bip 172.31.255.1/24 >"$DIR/dockerd.log" 2>&1 </dev/null &
    local end=$((SECONDS + 60))
    until docker_there version --format '{{.Server.APIVersion}}' >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "dockerd does not answer: $(tail -n 3 "$DIR/dockerd.log")"
        sleep 0.2
    done
    say "Docker $(docker_there version --format '{{.Server.Version}} (API {{.Server.APIVersion}})') answers at $DIR/docker.sock"
}

images() {
    local wanted
    mapfile -t wanted < <(docker images --format '{{.Repository}}:{{.Tag}}' 'devfleet-test/*')
    [ "${#wanted[@]}" -gt 0 ] || die "the machine's own engine has no test images; make them with deploy/images/build.sh"
    docker save "${wanted[@]}" | docker_there load >/dev/null
}

# Ends a process that we started: the pid file must name a program of this name, so that no stranger is hit.
end_process() { # PIDFILE NAME
    local pid end=$((SECONDS + 30))
    pid="$(cat "$1" 2>/dev/null || true)"
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$2" ] || return 0
    kill "$pid"
    while [ "$(awk '{print $3}' "/proc/$pid/stat" 2>/dev/null || true)" != "" ] && [ "$(awk '{print $3}' "/proc/$pid/stat")" != Z ]; do
        [ "$SECONDS" -lt "$end" ] || { kill -9 "$pid" && return 0; }
        sleep 0.1
    done
}

stop() {
    local space mount
    space="$(name)"
    if [ -S "$DIR/docker.sock" ] && docker_there version >/dev/null 2>&1; then
        docker_there ps -aq | xargs -r docker -H "unix://$DIR/docker.sock" rm -f >/dev/null 2>&1 || true
    fi
    end_process "$DIR/docker.pid" dockerd
    end_process "$DIR/exec/containerd/containerd.pid" containerd
    # The deepest first.
    for mount in $(awk -v dir="$DIR/" 'index($2, dir) == 1 {print $2}' /proc/mounts | sort -r); do umount -l "$mount"; done
    [ ! -e "/run/netns/$space" ] || ip netns del "$space"
    [ ! -e "/sys/class/net/$space" ] || ip link del "$space"
    rm -rf "${DIR:?}"/{data,exec,docker.sock,docker.pid,daemon.json}
}

[ -n "$DIR" ] && [ "${DIR#/}" != "$DIR" ] || usage
case "$ACTION" in
start) [ -n "${3:-}" ] || usage; start "$3" ;;
images) images ;;
space) printf '/run/netns/%s\n' "$(name)" ;;
stop) stop ;;
*) usage ;;
esac
