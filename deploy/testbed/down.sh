#!/usr/bin/env bash
# Takes a testbed down and removes everything that it made. Safe to repeat, and after a crash of anything.
#
#   deploy/testbed/down.sh DIR
#
# Touches only what carries the testbed's directory or tag: pids from its own pid files, processes that have the directory
# in their command line, control groups of containers below it, mounts below it, its namespaces.
set -uo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
open_testbed "${1:-}"

# Prints the pids of our kinds of programs that have the testbed's directory in their command line: above all containerd
# and its shims, which have no pid file of ours.
pids_by_directory() {
    local file pid
    for file in /proc/[0-9]*/comm; do
        pid="${file#/proc/}" pid="${pid%/comm}"
        case "$(cat "$file")" in
        containerd | containerd-shim* | dockerd | runc | etcd | devfleet-*) ;;
        *) continue ;;
        esac
        ! tr '\0' '\n' <"/proc/$pid/cmdline" | grep -qE "(^|=|://)$DIR/[hec][0-9]/" || echo "$pid"
    done 2>/dev/null
}

# Ends what runs in the control groups of our containers, thawing the frozen ones first: a frozen process does not die.
end_containers() {
    local folder id group pid
    for folder in "$DIR"/h?/data/containers/*/; do
        [ -d "$folder" ] || continue
        id="$(basename "$folder")"
        for group in /sys/fs/cgroup/freezer/docker/"$id" /sys/fs/cgroup/docker/"$id" \
            /sys/fs/cgroup/system.slice/docker-"$id".scope; do
            [ -d "$group" ] || continue
            [ ! -w "$group/freezer.state" ] || echo THAWED >"$group/freezer.state"
            [ ! -w "$group/cgroup.freeze" ] || echo 0 >"$group/cgroup.freeze"
            while read -r pid; do kill -KILL "$pid"; done <"$group/cgroup.procs"
        done
    done 2>/dev/null
}

remove_control_groups() {
    local folder group
    for folder in "$DIR"/h?/data/containers/*/; do
        [ -d "$folder" ] || continue
        for group in /sys/fs/cgroup/*/docker/"$(basename "$folder")"; do rmdir "$group"; done
    done 2>/dev/null
}

unmount_all() {
    local mount
    for mount in "$DIR"/e?/disk "$DIR"/h?/disk; do
        [ ! -d "$mount" ] || fsfreeze -u "$mount" 2>/dev/null
    done
    awk -v dir="$DIR/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | LC_ALL=C sort -r | while read -r mount; do
        umount "$mount" 2>/dev/null || umount -l "$mount"
    done
}

detach_loops() {
    local image
    for image in "$DIR"/e?/disk.img "$DIR"/h?/disk.img; do
        [ -f "$image" ] || continue
        losetup -j "$image" 2>/dev/null | cut -d: -f1 | while read -r loop; do losetup -d "$loop"; done
    done
}

remove_namespaces() {
    local node
    for node in hub "${HOSTS[@]}" "${CONTROLLERS[@]}" "${MEMBERS[@]}"; do
        [ ! -e "/run/netns/$TAG-$node" ] || ip netns del "$TAG-$node"
    done
    [ ! -e "/sys/class/net/$TAG" ] || ip link del "$TAG"
}

for mount in "$DIR"/e?/disk; do [ ! -d "$mount" ] || fsfreeze -u "$mount" 2>/dev/null; done
for part in $(all_parts); do
    pid="$(pid_of "$part")" || continue
    kill -CONT "$pid" 2>/dev/null
    kill -KILL "$pid" 2>/dev/null
done
# A dockerd that is killed leaves its containerd, the shims and the containers.
for _ in 1 2 3 4 5; do
    end_containers
    left="$(pids_by_directory)"
    [ -n "$left" ] || break
    for pid in $left; do kill -KILL "$pid" 2>/dev/null; done
    sleep 0.2
done
remove_control_groups
unmount_all
detach_loops
remove_namespaces
# Only what a testbed has in it: a directory that was named by mistake loses nothing else.
rm -rf --one-file-system "$DIR"/[hec][0-9] "$DIR"/{run,work,ca,files,state,images.tar,context.toml,authority.pem,token}
[ ! -d "$DIR" ] || rmdir "$DIR" 2>/dev/null

left="$(pids_by_directory)$(grep -o " $DIR/[^ ]*" /proc/self/mountinfo)$(ip netns | grep -o "^$TAG[^ ]*")"
[ -z "$left" ] && [ ! -e "$DIR" ] || die "something of the testbed resists:" "$left" "$(ls "$DIR" 2>/dev/null)"
