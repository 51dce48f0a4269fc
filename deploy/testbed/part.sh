#!/usr/bin/env bash
# Starts or ends one program of a testbed.
#
#   deploy/testbed/part.sh DIR start PART      PART: h1.dockerd h1.host c1.controller e1.etcd and so on
#   deploy/testbed/part.sh DIR stop PART       asks it to end (SIGTERM), waits until it is gone
#   deploy/testbed/part.sh DIR kill PART       SIGKILL
#   deploy/testbed/part.sh DIR pid PART        prints its pid; fails if it does not run
#   deploy/testbed/part.sh DIR list            every part, with its pid
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
open_testbed "${1:-}"
[ -d "$DIR/run" ] || die "no testbed is up in $DIR" "run: deploy/testbed/up.sh $DIR"
verb="${2:-list}" part="${3:-}"
if [ "$verb" = list ]; then
    for part in $(all_parts); do printf '%-16s %s\n' "$part" "$(pid_of "$part" || echo -)"; done
    exit 0
fi
[ -x "$DIR/run/$part.sh" ] || die "there is no part '$part'" "the parts are:" "$(all_parts | tr '\n' ' ')"
case "$verb" in
start) start_part "$part" ;;
stop) end_part "$part" TERM ;;
kill) end_part "$part" KILL ;;
pid) pid_of "$part" ;;
*) die "unknown verb '$verb'" "usage: part.sh DIR start|stop|kill|pid|list [PART]" ;;
esac
