# shellcheck shell=bash
# What up.sh, down.sh and part.sh share: the nodes and parts of a testbed, where they are, and how parts start and end.
#
# A *node* is a network namespace: hub (the bridge), h1-h3 (hosts), c1-c2 (controllers), e1-e3 (etcd members). A *part* is
# a program: h1.dockerd, h1.host, c1.controller, e1.etcd. Each part has DIR/run/PART.{sh,pid,log}.

readonly HOSTS=(h1 h2 h3)
readonly CONTROLLERS=(c1 c2)
readonly MEMBERS=(e1 e2 e3)
PATH="$PATH:/usr/sbin:/sbin"

die() {
    printf 'testbed: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '         %s\n' "$line" >&2; done
    exit 1
}

# Sets DIR; TAG and NET too when the testbed is (or was) up.
open_testbed() { # DIR
    case "${1:-}" in
    /*) DIR="${1%/}" ;;
    *) die "name the testbed's directory with an absolute path" "for example: $0 /tmp/devfleet-testbed" ;;
    esac
    [ "$(id -u)" -eq 0 ] || die "a testbed makes network namespaces and mounts: run this as root"
    # Names come from the directory alone, so that all of them are found again when the state file is gone.
    TAG="dft$(printf '%s' "$DIR" | cksum | awk '{ printf "%05x", $1 % 1048576 }')"
    NET=""
    # shellcheck source=/dev/null
    [ ! -f "$DIR/state" ] || . "$DIR/state"
}

# The last part of each node's address in the testbed's /24; the machine itself is .1.
number_of() { # NODE
    case "$1" in
    h*) echo "10${1#h}" ;;
    c*) echo "1${1#c}" ;;
    e*) echo "2${1#e}" ;;
    esac
}
address_of() { printf '%s.%s' "$NET" "$(number_of "$1")"; }

# The name that the kernel shows for the process of a part (15 letters at most).
comm_of() { # PART
    case "${1#*.}" in
    dockerd) echo dockerd ;;
    etcd) echo etcd ;;
    host) echo devfleet-host ;;
    controller) echo devfleet-contro ;;
    esac
}

# The pid of a part that runs; fails when it does not. A zombie does not run, and a pid that was given anew is not ours.
pid_of() { # PART
    local pid state
    pid="$(cat "$DIR/run/$1.pid" 2>/dev/null)" && [ -n "$pid" ] || return 1
    [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$(comm_of "$1")" ] || return 1
    state="$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$pid/status" 2>/dev/null)"
    [ -n "$state" ] && [ "$state" != Z ] && [ "$state" != X ] || return 1
    echo "$pid"
}

await() { # SECONDS WHAT COMMAND...
    local end=$((SECONDS + $1)) what="$2"
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || die "waited too long for $what"
        sleep 0.1
    done
}

# Removes pid files of processes that ended: where nobody reaps them at once, dockerd takes a zombie for one that lives.
forget_dead() { # PART
    local file state
    [ "${1#*.}" = dockerd ] || return 0
    for file in "$DIR/${1%%.*}"/{docker.pid,exec/containerd/containerd.pid}; do
        state="$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$(cat "$file" 2>/dev/null || echo none)/status" 2>/dev/null || true)"
        case "$state" in "" | Z | X) rm -f "$file" ;; esac
    done
}

start_part() { # PART
    pid_of "$1" >/dev/null && return 0
    rm -f "$DIR/run/$1.pid"
    forget_dead "$1"
    # A leader of its own session: what ends this script does not end the part.
    setsid "$DIR/run/$1.sh" >>"$DIR/run/$1.log" 2>&1 </dev/null &
    echo "$!" >"$DIR/run/$1.pid"
    await 10 "$1 to start (see $DIR/run/$1.log)" pid_of "$1"
}

gone() { ! pid_of "$1"; }

end_part() { # PART SIGNAL
    local pid
    pid="$(pid_of "$1")" || return 0
    kill -CONT "$pid" 2>/dev/null || true
    kill "-$2" "$pid" 2>/dev/null || true
    await 30 "the end of $1" gone "$1"
}

all_parts() {
    local node
    for node in "${CONTROLLERS[@]}"; do echo "$node.controller"; done
    for node in "${HOSTS[@]}"; do printf '%s.host\n%s.dockerd\n' "$node" "$node"; done
    for node in "${MEMBERS[@]}"; do echo "$node.etcd"; done
}

# Docker of one host; never the machine's own.
docker_of() { # HOST ARGUMENTS...
    local host="$1"
    shift
    env -u DOCKER_HOST -u DOCKER_CONTEXT docker -H "unix://$DIR/$host/docker.sock" "$@"
}
