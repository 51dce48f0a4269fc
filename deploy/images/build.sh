#!/usr/bin/env bash
# Makes the images that tests and the demo use, with or without a container registry.
#
#   deploy/images/build.sh                 all of them; what is unchanged is skipped
#   deploy/images/build.sh python redis    only these (and what they stand on)
#   deploy/images/build.sh --force redis   also when unchanged
#   deploy/images/build.sh --list          their names
#
# Everything stands on one Debian 12 root: pulled when a registry answers, else made by debootstrap from this machine's
# package mirror. Each image carries the digest of its recipe; the same digest means there is nothing to do.
#
#   DEVFLEET_OFFLINE=1           never ask a container registry
#   DEVFLEET_DEBIAN_MIRROR=URL   the Debian mirror to use, instead of what apt on this machine says
set -euo pipefail
umask 022

cd "$(dirname "${BASH_SOURCE[0]}")"
PATH="$PATH:/usr/sbin:/sbin"
readonly PREFIX="devfleet-test"
readonly ROOTFS="$PREFIX/rootfs:12"
readonly SUITE="bookworm"
readonly LABEL="devfleet-test.recipe"
# In building order: what others stand on comes first.
readonly NAMES=(base python ruby node redis postgres plain nogit noshell nopm dnf zypper pacman never-ready)
declare -rA TAGS=([base]=12 [python]=3.11 [ruby]=3.1 [node]=18 [plain]=1 [redis]=7 [postgres]=15 [nogit]=12 [noshell]=1 [nopm]=1 [dnf]=1 [zypper]=1 [pacman]=1 [never-ready]=1)

die() {
    printf 'images: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '        %s\n' "$line" >&2; done
    exit 1
}
report() { printf '%-16s %-6s %3d s\n' "$1" "$2" "$3"; }
exists() { docker image inspect "$1" >/dev/null 2>&1; }

# ---- what this machine knows about reaching packages ----------------------------------------------------------------

# The Debian mirror of one suite as apt on this machine has it; empty on another distribution.
# shellcheck disable=SC2016 # the fields are apt's, not the shell's
mirror_of() { # SUITE
    { apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' 2>/dev/null || true; } |
        awk -v suite="$1" '$1 ~ /^https?:/ && $1 !~ /@/ && $2 == suite && $3 == "main" { sub(/\/$/, "", $1); print $1; exit }'
}

# This machine's suite name, when it runs Debian: any Debian mirror carries every supported suite.
# shellcheck source=/dev/null
own_suite() { (. /etc/os-release && [ "${ID:-}" = debian ] && printf '%s' "${VERSION_CODENAME:-}") || true; }

debian_mirror() {
    if [ -n "${DEVFLEET_DEBIAN_MIRROR:-}" ]; then
        printf '%s' "${DEVFLEET_DEBIAN_MIRROR%/}"
    else
        mirror_of "$(own_suite)"
    fi
}

# Apt settings that a build needs to reach packages from here. A proxy on this machine's own loopback cannot be
# reached from a container, and one with a password would end up in an image: both stay out.
apt_settings() {
    { apt-config dump 2>/dev/null || true; } |
        grep -E '^Acquire::(Check-Valid-Until|Check-Date|ForceIPv[46]|https?::(Proxy|Timeout|Verify-Peer|Verify-Host)(::[^ ]*)?) "[^"]' |
        grep -vE '//[^/"]*@|//(localhost|127\.|\[::1\])' || true
}

pip_settings() {
    local lines
    lines="$({ cat /etc/pip.conf "${XDG_CONFIG_HOME:-$HOME/.config}/pip/pip.conf" "$HOME/.pip/pip.conf" 2>/dev/null || true; } |
        grep -E '^ *(index-url|extra-index-url|trusted-host|proxy) *=' | grep -v '@' || true)"
    printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\ndisable-pip-version-check = true\n%s\n' "$lines"
}

# Writes the folder that the base image's recipe copies in.
machine_files() { # FOLDER
    local folder="$1" mirror security certificate
    mkdir -p "$folder/etc/apt/apt.conf.d"
    apt_settings >"$folder/etc/apt/apt.conf.d/80machine"
    pip_settings >"$folder/etc/pip.conf"
    mirror="$(debian_mirror)"
    if [ -n "$mirror" ]; then
        printf 'deb %s %s main\n' "$mirror" "$SUITE" >"$folder/etc/apt/sources.list"
        security="$(mirror_of "$(own_suite)-security")"
        [ -z "$security" ] || printf 'deb %s %s-security main\n' "$security" "$SUITE" >>"$folder/etc/apt/sources.list"
    fi
    for certificate in /usr/local/share/ca-certificates/*.crt; do
        [ -s "$certificate" ] || continue
        mkdir -p "$folder/certs"
        cp "$certificate" "$folder/certs/"
    done
}

# ---- the root everything stands on ----------------------------------------------------------------------------------

pull_root() {
    [ "${DEVFLEET_OFFLINE:-}" != 1 ] || return 1
    exists debian:12 || timeout 20 docker pull -q debian:12 >/dev/null 2>&1 </dev/null || return 1
    docker tag debian:12 "$ROOTFS"
}

bootstrap_root() {
    command -v debootstrap >/dev/null 2>&1 ||
        die "no container registry answers, and debootstrap is not installed" "run: deploy/setup.sh test"
    [ "$(id -u)" -eq 0 ] || die "no container registry answers, and debootstrap must run as root" \
        "run once: sudo deploy/images/build.sh"
    local root="$SCRATCH/root" mirror arguments proxy=""
    mirror="$(debian_mirror)"
    eval "$(apt-config shell proxy Acquire::http::Proxy 2>/dev/null || true)"
    arguments=(--variant=minbase --include=ca-certificates "$SUITE" "$root")
    [ -z "$mirror" ] || arguments+=("$mirror")
    http_proxy="${http_proxy:-$proxy}" debootstrap "${arguments[@]}" >"$SCRATCH/log" 2>&1 </dev/null || {
        tail -n 15 "$SCRATCH/log" >&2
        die "debootstrap could not make a Debian root" \
            "if the mirror is wrong for Debian $SUITE, name one: DEVFLEET_DEBIAN_MIRROR=URL deploy/images/build.sh"
    }
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/* "$root"/var/log/*
    tar -C "$root" --numeric-owner --exclude=./dev/* -c . | docker import --change 'CMD ["bash"]' - "$ROOTFS" >/dev/null
    rm -rf --one-file-system "$root"
}

ensure_root() {
    exists "$ROOTFS" && return 0
    local start="$SECONDS"
    pull_root || bootstrap_root
    report rootfs:12 built "$((SECONDS - start))"
}

# ---- one image ------------------------------------------------------------------------------------------------------

parents() { sed -nE "s#^FROM $PREFIX/([a-z-]+):.*#\1#p" "$1/Dockerfile" | grep -vx rootfs || true; }

folder_digest() { (cd "$1" && find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum); }

# The digest of everything that goes into an image: its folder, what it stands on, and this machine's settings.
recipe_digest() { # NAME
    local parent
    {
        folder_digest "$1"
        for parent in $(parents "$1"); do recipe_digest "$parent"; done
        [ "$1" != base ] || folder_digest "$SCRATCH/machine"
    } | sha256sum | cut -d' ' -f1
}

declare -A finished=()
make_image() { # NAME FORCE
    local name="$1" force="$2" tag="$1:${TAGS[$1]}" start="$SECONDS" digest parent
    [ -z "${finished[$name]:-}" ] || return 0
    finished[$name]=yes
    digest="$(recipe_digest "$name")"
    if [ "$force" = no ] &&
        [ "$(docker image inspect --format "{{index .Config.Labels \"$LABEL\"}}" "$PREFIX/$tag" 2>/dev/null)" = "$digest" ]; then
        report "$tag" cached 0
        return 0
    fi
    for parent in $(parents "$name"); do make_image "$parent" no; done
    [ "$name" != base ] || ensure_root
    start="$SECONDS"
    rm -rf "$SCRATCH/context"
    cp -r "$name" "$SCRATCH/context"
    [ "$name" != base ] || cp -r "$SCRATCH/machine" "$SCRATCH/context/machine"
    # The classic builder needs no plugin and sees images that exist only on this engine.
    DOCKER_BUILDKIT=0 docker build --force-rm --no-cache --pull=false --label "$LABEL=$digest" \
        --build-arg http_proxy --build-arg https_proxy --build-arg no_proxy \
        --tag "$PREFIX/$tag" "$SCRATCH/context" >"$SCRATCH/log" 2>&1 </dev/null || {
        tail -n 30 "$SCRATCH/log" >&2
        die "could not build $PREFIX/$tag; the end of its build log is above"
    }
    report "$tag" built "$((SECONDS - start))"
}

# ---- arguments ------------------------------------------------------------------------------------------------------

force=no
wanted=()
for argument in "$@"; do
    case "$argument" in
    --list)
        for name in "${NAMES[@]}"; do printf '%s/%s:%s\n' "$PREFIX" "$name" "${TAGS[$name]}"; done
        exit 0
        ;;
    --force) force=yes ;;
    -*) die "unknown option '$argument'" "usage: deploy/images/build.sh [--list] [--force] [NAME...]" ;;
    *)
        name="${argument#"$PREFIX/"}"
        name="${name%%:*}"
        [ -n "${TAGS[$name]:-}" ] || die "there is no image '$argument'" "known: ${NAMES[*]}"
        wanted+=("$name")
        ;;
    esac
done
[ "${#wanted[@]}" -gt 0 ] || wanted=("${NAMES[@]}")
timeout 15 docker version >/dev/null 2>&1 </dev/null || die "the Docker engine does not answer" "run: deploy/setup.sh run"

# Two builds at once would only do the same work twice.
exec 9>"${TMPDIR:-/tmp}/devfleet-test-images.$(id -u).lock"
flock 9
SCRATCH="$(mktemp -d)"
readonly SCRATCH
trap 'rm -rf --one-file-system "$SCRATCH"' EXIT
machine_files "$SCRATCH/machine"
for name in "${wanted[@]}"; do make_image "$name" "$force"; done
# Replaced images and building stages are left without a name; both are ours by their label.
for label in "$LABEL" devfleet-test.stage; do
    docker image prune --force --filter "label=$label" >/dev/null 2>&1 </dev/null || true
done
