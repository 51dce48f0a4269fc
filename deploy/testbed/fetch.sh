#!/usr/bin/env bash
# Fetches newer engines and stores than this machine has, to test against both: Docker 26.1 and etcd 3.5 of Debian 13, unpacked
# below target/testbed and installed nowhere. Safe to repeat. Prints the folder with the programs.
#
#   deploy/testbed/fetch.sh          fetch what is missing
#
# Packages come from the mirror that this machine's own apt uses, and are checked against Debian's keys.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
readonly TARGET="${CARGO_TARGET_DIR:-$root/target}/testbed"
readonly SUITE="${DEVFLEET_TESTBED_SUITE:-trixie}"
readonly KEYS="/usr/share/keyrings/debian-archive-keyring.gpg"
readonly PACKAGES=(docker.io docker-cli etcd-server etcd-client)

say() { printf 'testbed: %s\n' "$*" >&2; }
die() {
    printf 'testbed: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '         %s\n' "$line" >&2; done
    exit 1
}

# The mirror that apt is set up with; Debian's own where it says nothing.
mirror() {
    local found
    found="$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
        grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 || true)"
    found="${found% }"
    printf '%s\n' "${found:-http://deb.debian.org/debian}"
}

# An apt of its own: other lists, other cache, no word in the machine's.
prepare_apt() {
    mkdir -p "$TARGET"/apt/{lists/partial,cache/archives/partial,etc}
    printf 'deb [signed-by=%s] %s %s main\n' "$KEYS" "$(mirror)" "$SUITE" >"$TARGET/apt/etc/sources.list"
    cat >"$TARGET/apt/apt.conf" <<CONF
Dir::Etc::SourceList "$TARGET/apt/etc/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$TARGET/apt/lists";
Dir::State::Status "$TARGET/apt/status";
Dir::Cache "$TARGET/apt/cache";
APT::Sandbox::User "root";
CONF
    : >"$TARGET/apt/status"
}

main() {
    local bin="$TARGET/$SUITE/usr"
    if [ -x "$bin/sbin/dockerd" ] && [ -x "$bin/bin/docker" ] && [ -x "$bin/bin/etcd" ]; then
        printf '%s\n' "$bin"
        return 0
    fi
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        die "this takes apt-get and dpkg-deb" "on another distribution give the programs yourself: see deploy/README.md"
    [ -e "$KEYS" ] || die "Debian's keys are missing" "install debian-archive-keyring (deploy/setup.sh test does)"
    say "fetching ${PACKAGES[*]} of Debian $SUITE"
    prepare_apt
    export APT_CONFIG="$TARGET/apt/apt.conf"
    apt-get update -qq </dev/null >/dev/null || die "the package lists of $SUITE cannot be had"
    rm -rf "$TARGET/part" && mkdir -p "$TARGET/part/debs"
    (cd "$TARGET/part/debs" && apt-get download -qq "${PACKAGES[@]}" </dev/null >/dev/null) ||
        die "the packages of $SUITE cannot be had"
    for package in "$TARGET"/part/debs/*.deb; do dpkg-deb -x "$package" "$TARGET/part/tree"; done
    rm -rf "${TARGET:?}/$SUITE" && mv "$TARGET/part/tree" "$TARGET/$SUITE"
    rm -rf "$TARGET/part"
    say "$("$bin/sbin/dockerd" --version), $("$bin/bin/etcd" --version | head -n 1)"
    printf '%s\n' "$bin"
}

main
