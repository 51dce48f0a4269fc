#!/usr/bin/env bash
# Runs the host daemon's tests, or other ones, against Docker 26.1 beside the machine's own engine, in that engine's network.
#
#   deploy/testbed/newer.sh                                            the host daemon's contracts, environments, sweeps
#   deploy/testbed/newer.sh -p devfleet-controller --test it e2e       whatever `cargo test` takes
#
# Without arguments the controller's tests of etcd run too, on the newer etcd.
#
# Takes root, and test images (deploy/images/build.sh). Where the newer engine cannot be had it says so and ends well.
set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
cd "$root"
all=""
[ "$#" -gt 0 ] || { all=1 && set -- -p devfleet-host --test it; }
if ! bin="$(deploy/testbed/fetch.sh)"; then
    printf 'testbed: the newer engine cannot be had here; its tests are left out\n' >&2
    exit 0
fi
if [ -n "$all" ]; then
    "$bin/bin/etcd" --version | head -n 1 >&2
    DEVFLEET_TEST_ETCD="$bin/bin/etcd" cargo test -p devfleet-controller --test it etcd:: </dev/null
fi
dir="${CARGO_TARGET_DIR:-$root/target}/testbed/newer"
trap 'deploy/testbed/engine.sh stop "$dir"' EXIT
deploy/testbed/engine.sh start "$dir" "$bin"
deploy/testbed/engine.sh images "$dir"
cargo test --no-run "$@" </dev/null
space="$(basename "$(deploy/testbed/engine.sh space "$dir")")"
DOCKER_HOST="unix://$dir/docker.sock" DEVFLEET_TEST_IMAGES=ready \
    nsenter --net="/run/netns/$space" cargo test --offline --no-fail-fast "$@" </dev/null
