#!/usr/bin/env bash
# Makes a fresh Debian or Ubuntu machine ready for devfleet. Safe to repeat; installs only what is missing.
#
#   deploy/setup.sh build    what building needs: a C compiler, protoc, git; checks the Rust toolchain
#   deploy/setup.sh run      what running needs: git and a Docker engine that answers
#   deploy/setup.sh test     both, debootstrap for test images on a machine without a container registry, what the
#                            testbed stands on, a server that speaks S3, and Claude Code for the tests that run it (they are left out where it
#                            cannot be had)
#   deploy/setup.sh claude   only Claude Code for tests
#   deploy/setup.sh bench    what building, running and test images need, and docker-compose and etcd to compare with
set -euo pipefail

readonly MODE="${1:-test}"
building=no running=no imaging=no claude=no
case "$MODE" in
build) building=yes ;;
run) running=yes ;;
test) building=yes running=yes imaging=yes claude=yes ;;
bench) building=yes running=yes imaging=yes ;;
claude) ;;
*)
    printf 'setup: unknown mode %s\n       usage: deploy/setup.sh build|run|test|bench|claude\n' "'$MODE'" >&2
    exit 2
    ;;
esac
# Where Debian keeps debootstrap and dockerd, which not everybody has on the PATH.
PATH="$PATH:/usr/sbin:/sbin"
readonly CARGO_LEAST="1.90"
readonly ENGINE_API_LEAST="1.41"
readonly ENGINE_LOG="/var/log/devfleet-dockerd.log"

say() { printf 'setup: %s\n' "$*"; }
die() {
    printf 'setup: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '       %s\n' "$line" >&2; done
    exit 1
}

# True when dotted version $1 is at least $2.
at_least() { [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]; }

has() { command -v "$1" >/dev/null 2>&1; }

missing=()
need() { # PROGRAM PACKAGE...
    local program="$1"
    shift
    has "$program" || missing+=("$@")
}

collect_missing() {
    need git git
    [ -e /etc/ssl/certs/ca-certificates.crt ] || missing+=(ca-certificates)
    if [ "$building" = yes ]; then
        need curl curl
        need cc gcc libc6-dev
        # Debian keeps the well-known types that our messages import in a package of their own.
        need protoc protobuf-compiler libprotobuf-dev
    fi
    if [ "$running" = yes ]; then
        # An engine elsewhere (DOCKER_HOST) still needs the client here.
        need docker docker.io
    fi
    if [ "$imaging" = yes ]; then
        need debootstrap debootstrap
        # Without Debian's keys debootstrap on another distribution would not check what it gets.
        [ -e /usr/share/keyrings/debian-archive-keyring.gpg ] || missing+=(debian-archive-keyring)
    fi
    if [ "$MODE" = test ]; then
        # Tests pull private images from a registry of their own.
        need docker-registry docker-registry
        # What people bring up with compose is compared with what devfleet brings up.
        need docker-compose docker-compose
        # The testbed: namespaces, firewalls, small disks, a store of three members.
        need ip iproute2
        need iptables iptables
        need nsenter util-linux
        need mkfs.ext4 e2fsprogs
        need etcdctl etcd-client
        # A storage that speaks S3 comes from Python's package index, into an environment of its own.
        python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
    fi
    if [ "$MODE" = bench ]; then need docker-compose docker-compose; fi
    if [ "$MODE" = test ] || [ "$MODE" = bench ]; then need etcd etcd-server; fi
}

install_missing() {
    [ "${#missing[@]}" -gt 0 ] || return 0
    has apt-get || die "missing: ${missing[*]}" \
        "this machine has no apt-get (not Debian or Ubuntu): install these with its own package manager, then run this again"
    [ "$(id -u)" -eq 0 ] || die "missing: ${missing[*]}" \
        "run this as root, or install them yourself:" \
        "    sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null || say "apt-get update had trouble; going on with the lists at hand"
    # Newer releases ship the client apart from the engine.
    if [[ " ${missing[*]} " == *" docker.io "* ]] && apt-cache show docker-cli >/dev/null 2>&1; then
        missing+=(docker-cli)
    fi
    apt-get install -y -qq --no-install-recommends -o DPkg::Lock::Timeout=120 -o Dpkg::Use-Pty=0 "${missing[@]}" \
        </dev/null >/dev/null ||
        die "apt-get could not install ${missing[*]}" "run 'apt-get install ${missing[*]}' by hand to see why"
}

check_rust() {
    export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    has cargo || die "no Rust toolchain: devfleet needs cargo $CARGO_LEAST or newer" \
        "install one with rustup, the Rust project's installer, open a new shell, and run this again"
    local version
    # The toolchain that the repository gets is what counts, so ask from its root.
    version="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && cargo --version | awk '{print $2}')"
    at_least "$version" "$CARGO_LEAST" || die "cargo $version is too old: devfleet needs $CARGO_LEAST or newer" \
        "with rustup: rustup update stable"
    say "cargo $version, $(protoc --version)"
}

engine_api() { timeout 15 docker version --format '{{.Server.APIVersion}}' 2>/dev/null </dev/null; }

wait_for_engine() { # SECONDS [PID: no use in waiting when it is gone]
    local end=$((SECONDS + $1))
    while [ "$SECONDS" -lt "$end" ]; do
        [ -n "$(engine_api || true)" ] && return 0
        [ -z "${2:-}" ] || kill -0 "$2" 2>/dev/null || return 1
        sleep 0.5
    done
    return 1
}

start_engine() {
    if [ -n "${DOCKER_HOST:-}" ]; then
        die "the Docker engine at DOCKER_HOST=$DOCKER_HOST does not answer" "start it there, or unset DOCKER_HOST"
    fi
    if [ "$(id -u)" -ne 0 ]; then
        if [ -S /var/run/docker.sock ] && [ ! -w /var/run/docker.sock ]; then
            die "$(id -un) may not use the Docker engine" \
                "join its group and log in again: sudo usermod -aG docker $(id -un)"
        fi
        die "the Docker engine does not answer" "start it: sudo systemctl start docker   (or: sudo service docker start)"
    fi
    say "the Docker engine does not answer; starting it"
    if [ -d /run/systemd/system ]; then
        timeout 60 systemctl start docker </dev/null && wait_for_engine 20 && return 0
    elif [ -x /etc/init.d/docker ]; then
        timeout 60 service docker start </dev/null >/dev/null 2>&1 && wait_for_engine 20 && return 0
    fi
    has dockerd || die "there is no Docker engine here: the client is installed, dockerd is not" \
        "install one: apt-get install docker.io"
    say "no service manager started it; running dockerd itself, log in $ENGINE_LOG"
    setsid nohup dockerd >"$ENGINE_LOG" 2>&1 </dev/null &
    wait_for_engine 30 "$!" || die "dockerd does not come up; the end of $ENGINE_LOG says:" \
        "$(tail -n 3 "$ENGINE_LOG" 2>/dev/null)"
}

check_engine() {
    [ -n "$(engine_api || true)" ] || start_engine
    local api
    api="$(engine_api)"
    at_least "$api" "$ENGINE_API_LEAST" || die \
        "the Docker engine is too old: it speaks API $api, devfleet needs $ENGINE_API_LEAST or newer (Docker 20.10)" \
        "upgrade the engine, or point DOCKER_HOST at a newer one"
    say "Docker engine answers, API $api"
}

# Hosts take nothing on past 85 % of a disk, so tests with real ones cannot go well there. Said before anything is built.
check_room() {
    local root path used available need=3
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    [ -d "${CARGO_TARGET_DIR:-$root/target}/debug" ] || need=12
    for path in "$root" "$(docker info --format '{{.DockerRootDir}}' 2>/dev/null </dev/null || true)"; do
        [ -d "$path" ] || continue
        read -r used available < <(df -Pk "$path" | awk 'END { print $3, $4 }')
        [ $(((used + need * 1048576) * 100)) -lt $(((used + available) * 85)) ] || die \
            "the disk at $path is too full for the tests: they need $need GiB below 85 % of it" \
            "free some: 'docker system df' and 'du -sh $root/target' show where it is"
    done
}

# Claude Code's program is part of its Python SDK's wheel. Nothing depends on it but tests, so no trouble here is fatal.
fetch_claude() {
    local root target part
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    target="${CARGO_TARGET_DIR:-$root/target}/claude"
    [ ! -x "$target/claude" ] || return 0
    say "fetching Claude Code for tests"
    mkdir -p "$target" && part="$(mktemp -d "$target/part.XXXXXX")" || return 0
    if timeout 300 python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$part" claude-agent-sdk \
        </dev/null >/dev/null 2>&1 &&
        python3 -m zipfile -e "$part"/claude_agent_sdk-*.whl "$part/wheel" &&
        chmod 755 "$part/wheel/claude_agent_sdk/_bundled/claude"; then
        mv "$part/wheel/claude_agent_sdk/_bundled/claude" "$target/claude"
        say "Claude Code is at $target/claude"
    else
        say "Claude Code cannot be had (it takes python3 with pip, and a package index); tests that need it are left out"
    fi
    rm -rf "$part"
}

# A server that speaks the protocol of S3, below target/moto, for tests of logs and diffs in a bucket.
fetch_moto() {
    local root target
    root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
    target="${CARGO_TARGET_DIR:-$root/target}/moto"
    [ ! -x "$target/bin/moto_server" ] || return 0
    say "fetching moto, a server that speaks S3, for tests"
    rm -rf "$target"
    { python3 -m venv "$target" &&
        "$target/bin/pip" install --quiet --disable-pip-version-check 'moto[server,s3]==5.2.*' </dev/null >/dev/null; } || {
        rm -rf "$target"
        die "moto cannot be had (it takes python3 with venv, and a package index)" \
            "by hand: python3 -m venv $target && $target/bin/pip install 'moto[server,s3]'"
    }
}

if [ "$MODE" = claude ]; then
    fetch_claude
    exit 0
fi
collect_missing
install_missing
[ "$building" = no ] || check_rust
[ "$running" = no ] || check_engine
[ "$MODE" != test ] || check_room
[ "$claude" = no ] || fetch_claude
[ "$MODE" != test ] || fetch_moto
