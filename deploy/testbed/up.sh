#!/usr/bin/env bash
# Brings up a small fleet on this machine: three hosts, each with a Docker engine of its own, three etcd members, and two
# controllers, each in a network namespace of its own on one bridge. For tests, and to look at a fleet.
#
#   deploy/testbed/up.sh DIR                 everything lies below DIR; deploy/testbed/down.sh DIR removes it
#   DEVFLEET_CONTEXT=DIR/context.toml devfleet hosts list
#
#   DEVFLEET_BIN=FOLDER                      where devfleet's programs are (default: target/debug)
#   DEVFLEET_TESTBED_ETCD=3.5                the etcd that fetch.sh fetched, instead of this machine's
#   DEVFLEET_TESTBED_IMAGES="NAME:TAG ..."   what each engine gets (default: python and redis of deploy/images)
set -euo pipefail
umask 022
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
readonly HERE ROOT="$HERE/../.."
# shellcheck source=lib.sh
. "$HERE/lib.sh"
open_testbed "${1:-}"
# Newer programs, where they can be had.
FETCHED="$("$HERE/fetch.sh" 2>/dev/null || true)"
readonly FETCHED
BIN="${DEVFLEET_BIN:-$ROOT/target/debug}"
BIN="$(cd "$BIN" 2>/dev/null && pwd)" || die "there is no folder $BIN" "run: cargo build --bins"
readonly BIN IMAGES="${DEVFLEET_TESTBED_IMAGES:-devfleet-test/python:3.11 devfleet-test/redis:7}"

check() {
    local program
    for program in ip nsenter iptables setsid docker dockerd mkfs.ext4 losetup fsfreeze; do
        command -v "$program" >/dev/null || die "there is no $program on this machine" "run: deploy/setup.sh test"
    done
    for program in devfleet devfleet-controller devfleet-host; do
        [ -x "$BIN/$program" ] || die "there is no $BIN/$program" "run: cargo build --bins"
    done
    if [ "${DEVFLEET_TESTBED_ETCD:-}" = 3.5 ]; then
        ETCD="$FETCHED/bin/etcd"
    else
        ETCD="$(command -v etcd || true)"
    fi
    [ -x "$ETCD" ] || die "there is no etcd" "run: deploy/setup.sh test (or, for 3.5: deploy/testbed/fetch.sh)"
    [ ! -e "$DIR" ] || [ -z "$(ls -A "$DIR")" ] || die "$DIR is not empty" "run: deploy/testbed/down.sh $DIR"
    # A unix socket's path has 107 letters at most, and containerd's lie deep.
    [ "${#DIR}" -le 60 ] || die "the path $DIR is too long: 60 letters at most"
}

# ---- the network ------------------------------------------------------------------------------------------------------

in_node() { nsenter --net="/run/netns/$TAG-$1" "${@:2}"; }

free_net() {
    local number
    for number in $(seq 20 250); do
        ip -4 addr show | grep -q "inet 10\.99\.$number\." || {
            echo "10.99.$number"
            return 0
        }
    done
    die "no network 10.99.N.0/24 is free on this machine"
}

# The bridge has a namespace of its own, where no firewall of this machine sees what passes.
make_hub() {
    ip netns add "$TAG-hub"
    in_node hub ip link add br0 type bridge
    in_node hub ip link set br0 up
    ip link add "$TAG" type veth peer name uplink netns "$TAG-hub"
    in_node hub ip link set dev uplink master br0 up
    ip addr add "$NET.1/24" dev "$TAG"
    ip link set "$TAG" up
}

make_node() { # NODE
    ip netns add "$TAG-$1"
    in_node "$1" ip link set lo up
    in_node "$1" ip link add eth0 type veth peer name "$1" netns "$TAG-hub"
    in_node hub ip link set dev "$1" master br0 up
    in_node "$1" ip addr add "$(address_of "$1")/24" dev eth0
    in_node "$1" ip link set eth0 up
    in_node "$1" ip route add default via "$NET.1"
    mkdir -p "$DIR/$1"
}

# ---- the parts --------------------------------------------------------------------------------------------------------

write_part() { # PART ENVIRONMENT COMMAND...
    local part="$1" variables="$2"
    shift 2
    {
        printf '#!/bin/sh\nexec env %s nsenter --net=/run/netns/%s' "$variables" "$TAG-${part%%.*}"
        printf " '%s'" "$@"
        printf '\n'
    } >"$DIR/run/$part.sh"
    chmod +x "$DIR/run/$part.sh"
}

# Each member's data lie on a small disk of their own, which a test may freeze or fill.
make_member() { # NODE
    local cluster="" node
    truncate -s 192M "$DIR/$1/disk.img"
    mkfs.ext4 -q -F -m 0 "$DIR/$1/disk.img"
    mkdir "$DIR/$1/disk"
    mount -o loop "$DIR/$1/disk.img" "$DIR/$1/disk"
    for node in "${MEMBERS[@]}"; do cluster="$cluster,$node=http://$(address_of "$node"):2380"; done
    write_part "$1.etcd" "ETCD_LOG_LEVEL=warn" "$ETCD" --name "$1" --data-dir "$DIR/$1/disk/data" \
        --listen-client-urls "http://$(address_of "$1"):2379" --advertise-client-urls "http://$(address_of "$1"):2379" \
        --listen-peer-urls "http://$(address_of "$1"):2380" --initial-advertise-peer-urls "http://$(address_of "$1"):2380" \
        --initial-cluster "${cluster#,}" --initial-cluster-token "$TAG" --quota-backend-bytes 33554432
    start_part "$1.etcd"
}

# The last host runs the newer engine, where it was fetched; the others this machine's.
make_engine() { # NODE
    local dockerd path="$PATH"
    dockerd="$(command -v dockerd)"
    if [ "$1" = h3 ] && [ -x "$FETCHED/sbin/dockerd" ]; then
        dockerd="$FETCHED/sbin/dockerd" path="$FETCHED/sbin:$FETCHED/bin:$FETCHED/libexec/docker:$PATH"
    fi
    # In memory: quicker, and gone with one unmount.
    mount -t tmpfs -o size=3g tmpfs "$DIR/$1"
    echo '{}' >"$DIR/$1/daemon.json"
    write_part "$1.dockerd" "PATH=$path" "$dockerd" --config-file "$DIR/$1/daemon.json" --data-root "$DIR/$1/data" \
        --exec-root "$DIR/$1/exec" --pidfile "$DIR/$1/docker.pid" -H "unix://$DIR/$1/docker.sock" \
        --storage-driver overlay2 --live-restore --shutdown-timeout 3
    start_part "$1.dockerd"
}

fill_engine() { # NODE
    await 60 "the engine of $1 (see $DIR/run/$1.dockerd.log)" docker_of "$1" version
    docker_of "$1" load -q -i "$DIR/images.tar" >/dev/null
}

make_host() { # NODE
    (umask 077 && "$BIN/devfleet" join-token create >"$DIR/$1/join-token" 2>"$DIR/run/join.log") ||
        die "no join token for $1:" "$(cat "$DIR/run/join.log")"
    cat >"$DIR/$1/host.toml" <<TOML
data_dir = "$DIR/$1/host"
name = "$1"
engine = "unix://$DIR/$1/docker.sock"
protection_window = "20s"
slots = 30
join_token_file = "$DIR/$1/join-token"
$(host_controllers)
TOML
    write_part "$1.host" "-u DEVFLEET_JOIN_TOKEN" "$BIN/devfleet-host" --config "$DIR/$1/host.toml"
    start_part "$1.host"
}

# The first controller makes the fleet's authority; the others get it before they start, as operators copy it.
make_controller() { # NODE
    mkdir -p "$DIR/ca" "$DIR/files"
    {
        printf 'data_dir = "%s"\nlisten = "0.0.0.0:7443"\nnames = ["%s"]\n' "$DIR/$1/controller" "$(address_of "$1")"
        printf 'max_running = 50\nca_dir = "%s"\nfiles = { kind = "directory", path = "%s" }\n' "$DIR/ca" "$DIR/files"
        printf '[store]\nkind = "etcd"\nendpoints = [%s]\n' "$(endpoints)"
    } >"$DIR/$1/controller.toml"
    write_part "$1.controller" "-u http_proxy -u https_proxy" "$BIN/devfleet-controller" \
        --config "$DIR/$1/controller.toml" --bootstrap-token-file "$DIR/$1/token"
    start_part "$1.controller"
}

endpoints() {
    local node list=""
    for node in "${MEMBERS[@]}"; do list="$list, \"http://$(address_of "$node"):2379\""; done
    printf '%s' "${list#, }"
}

host_controllers() { printf 'controller = "https://%s:7443"\n' "$(address_of c1)"; }

write_context() {
    await 60 "the operator's token (see $DIR/run/c1.controller.log)" test -s "$DIR/c1/token"
    cp "$DIR/c1/token" "$DIR/token"
    cp "$DIR/ca/authority.pem" "$DIR/authority.pem"
    (
        umask 077
        printf 'controller = "https://%s:7443"\ntoken = "%s"\nauthority = """\n%s"""\n' \
            "$(address_of c1)" "$(tr -d '\n' <"$DIR/token")" "$(cat "$DIR/authority.pem")" >"$DIR/context.toml"
    )
    export DEVFLEET_CONTEXT="$DIR/context.toml"
    await 60 "the controller" "$BIN/devfleet" whoami
}

hosts_ready() {
    [ "$("$BIN/devfleet" hosts list --output json | grep -cE '"(ready|connected)": *true')" -ge "${#HOSTS[@]}" ]
}

give_up() {
    printf 'testbed: it did not come up; taking it down\n' >&2
    tail -n 5 "$DIR"/run/*.log >&2 || true
    "$HERE/down.sh" "$DIR"
}

# ---- in order ---------------------------------------------------------------------------------------------------------

check
mkdir -p "$DIR/run" "$DIR/work"
NET="$(free_net)"
printf 'TAG=%s\nNET=%s\n' "$TAG" "$NET" >"$DIR/state"
trap 'exit 130' INT TERM
trap 'give_up' EXIT
# shellcheck disable=SC2086 # a list of names
docker save -o "$DIR/images.tar" $IMAGES || die "the test images are missing" "run: deploy/images/build.sh"
make_hub
for node in "${HOSTS[@]}" "${CONTROLLERS[@]}" "${MEMBERS[@]}"; do make_node "$node"; done
for node in "${MEMBERS[@]}"; do make_member "$node"; done
for node in "${HOSTS[@]}"; do make_engine "$node"; done
make_controller c1
write_context
make_controller c2
filling=()
for node in "${HOSTS[@]}"; do
    fill_engine "$node" &
    filling+=("$!")
done
for pid in "${filling[@]}"; do wait "$pid"; done
for node in "${HOSTS[@]}"; do make_host "$node"; done
await 60 "three ready hosts" hosts_ready
trap - EXIT
echo "testbed: up after $SECONDS s; look at it with: DEVFLEET_CONTEXT=$DIR/context.toml $BIN/devfleet hosts list"
