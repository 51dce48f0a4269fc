#!/usr/bin/env bash
# The demo: one job on one machine, from submission to merge request, each command shown before it runs.
#
#   make demo
#
# The sample project has a failing test and a service it needs. Without ANTHROPIC_API_KEY the agent is a script that
# makes a real fix (fix.sh); with it, Claude Code ($CLAUDE_BINARY, or `claude` on the PATH). Ends with an error when the
# job does not succeed or leaves a container, a network or a workspace behind, so it is also a smoke test.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/../.."
readonly DEMO="deploy/demo"
readonly STATE=".devfleet/demo"
readonly DATA="$STATE/data"
readonly REPOSITORY="$PWD/$STATE/tally.git"
readonly UP_LOG="$STATE/up.log"
readonly OURS="label=devfleet.app=devfleet"
DEVFLEET="${CARGO_TARGET_DIR:-target}/debug/devfleet"
# The CLI's context that `devfleet up` writes; the demo does not touch the one in the home folder.
export DEVFLEET_CONTEXT="$PWD/$DATA/context.toml"
up_pid=""

bold="" plain=""
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\033[1m' plain=$'\033[0m'; fi
title() { printf '\n%s== %s%s\n' "$bold" "$*" "$plain"; }
die() {
    printf '\ndemo: %s\n' "$1" >&2
    shift
    for line in "$@"; do printf '      %s\n' "$line" >&2; done
    exit 1
}

# Prints a command as a person would type it, then runs it.
show() {
    printf '\n$'
    printf ' %s' "$@"
    printf '\n'
    "$@"
}
devfleet() { timeout --foreground "${LIMIT:-120}" "$DEVFLEET" "$@"; }

# ---- before -----------------------------------------------------------------------------------------------------------

refuse_second_demo() {
    local pid
    pid="$(cat "$STATE/up.pid" 2>/dev/null || true)"
    [ -n "$pid" ] || return 0
    case "$(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" || true)" in
    *"devfleet up"*"$DATA"*) die "another demo is running here (pid $pid)" "wait for it, or end it: kill $pid" ;;
    esac
}

make_repository() {
    local tree="$STATE/tally"
    cp -r "$DEMO/project" "$tree"
    # Fixed dates: the same files make the same commit, whenever the demo runs.
    (
        cd "$tree"
        export GIT_CONFIG_GLOBAL=/dev/null GIT_AUTHOR_NAME=Tally GIT_AUTHOR_EMAIL=tally@example.com
        export GIT_COMMITTER_NAME=Tally GIT_COMMITTER_EMAIL=tally@example.com
        export GIT_AUTHOR_DATE="2026-01-05T09:00:00Z" GIT_COMMITTER_DATE="2026-01-05T09:00:00Z"
        git init -q -b main
        git add -A
        git commit -q -m "Count words in Redis"
    )
    git clone -q --bare "$tree" "$REPOSITORY"
    rm -rf "$tree"
    echo "a bare repository with one commit: $STATE/tally.git"
}

choose_agent() {
    AGENT="fix"
    [ -n "${ANTHROPIC_API_KEY:-}" ] || {
        echo "no ANTHROPIC_API_KEY: the agent is the script deploy/demo/fix.sh"
        return 0
    }
    CLAUDE_BINARY="${CLAUDE_BINARY:-$(command -v claude || true)}"
    [ -x "$CLAUDE_BINARY" ] || die "ANTHROPIC_API_KEY is set, but there is no Claude Code binary" \
        "set CLAUDE_BINARY to one; for example the one inside the Python package claude-agent-sdk:" \
        "    pip install --target /tmp/claude claude-agent-sdk && find /tmp/claude -type f -name claude" \
        "or unset ANTHROPIC_API_KEY to see the demo with the script"
    CLAUDE_BINARY="$(readlink -f "$CLAUDE_BINARY")"
    AGENT="claude-code"
    echo "ANTHROPIC_API_KEY is set: the agent is Claude Code, $CLAUDE_BINARY"
}

write_project_file() {
    local line
    while IFS= read -r line; do
        case "$line" in
        @FIX@) cat "$DEMO/fix.sh" ;;
        *) printf '%s\n' "${line//@REPOSITORY@/$REPOSITORY}" ;;
        esac
    done <"$DEMO/project.toml" >"$STATE/project.toml"
    if [ "$AGENT" = claude-code ]; then
        sed "s#@CLAUDE_BINARY@#$CLAUDE_BINARY#" "$DEMO/claude-code.toml" >>"$STATE/project.toml"
    fi
}

# ---- devfleet up and down ----------------------------------------------------------------------------------------------

stop() {
    [ -n "$up_pid" ] || return 0
    kill -TERM "$up_pid" 2>/dev/null || true
    for _ in $(seq 1 100); do
        kill -0 "$up_pid" 2>/dev/null || break
        sleep 0.1
    done
    kill -KILL "$up_pid" 2>/dev/null || true
    wait "$up_pid" 2>/dev/null || true
    up_pid=""
    rm -f "$STATE/up.pid"
}

# Repeats a command until its output matches, for at most so many seconds; ends the demo when devfleet is gone.
await() { # SECONDS WHAT PATTERN COMMAND...
    local end=$((SECONDS + $1)) what="$2" pattern="$3"
    shift 3
    until "$@" 2>/dev/null | grep -qiE "$pattern"; do
        kill -0 "$up_pid" 2>/dev/null || die "devfleet stopped while waiting for $what; its log ends:" "$(tail -n 15 "$UP_LOG")"
        [ "$SECONDS" -lt "$end" ] || die "waited too long for $what; devfleet's log ends:" "$(tail -n 15 "$UP_LOG")"
        sleep 0.3
    done
}

start() {
    printf '\n$ devfleet up --data-dir %s &\n' "$DATA"
    "$DEVFLEET" up --data-dir "$DATA" >"$UP_LOG" 2>&1 </dev/null &
    up_pid=$!
    echo "$up_pid" >"$STATE/up.pid"
    await 60 "a ready host" '"ready"(: *true|[^:]|$)' devfleet hosts list --output json
    show devfleet hosts list
}

# ---- after ------------------------------------------------------------------------------------------------------------

left_of_job() {
    local of_job="label=devfleet.job=$JOB"
    docker ps -aq --filter "$OURS" --filter "$of_job"
    docker network ls -q --filter "$OURS" --filter "$of_job"
    docker volume ls -q --filter "$OURS" --filter "$of_job"
}

show_what_is_left() {
    local end=$((SECONDS + 30))
    # A job does not wait for its own clean-up, so look until it is through.
    while [ -n "$(left_of_job)" ] && [ "$SECONDS" -lt "$end" ]; do sleep 0.3; done
    show docker ps -a --filter "$OURS"
    show docker network ls --filter "$OURS"
    show docker volume ls --filter "$OURS"
    [ -z "$(left_of_job)" ] || die "the job left something behind (above)"
    echo
    echo "No container, network or workspace is left. Kept on purpose, as caches for the next job:"
    echo "  volumes listed above, if any (dependency caches of the project)"
    echo "  the mirror of the repository, below $DATA"
    echo "  images:"
    docker images --filter "$OURS" --format '    {{.Repository}}:{{.Tag}}  {{.Size}}'
    echo "To remove all of it: rm -rf $STATE, and 'docker image rm' for the images."
}

# ---- the demo -----------------------------------------------------------------------------------------------------------

title "Setting up"
refuse_second_demo
deploy/setup.sh test
export PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
rm -rf "$STATE"
mkdir -p "$STATE"
# The images are made while the code compiles: one waits for the network, the other for the processor.
deploy/images/build.sh python redis >"$STATE/images.log" 2>&1 </dev/null &
images_pid=$!
cargo build --bins
wait "$images_pid" || die "the images could not be made:" "$(cat "$STATE/images.log")"
cat "$STATE/images.log"
make_repository
choose_agent
write_project_file

title "devfleet, on this machine"
trap stop EXIT
trap 'exit 130' INT TERM
start

title "A project and a job"
show devfleet projects apply "$STATE/project.toml"
submit=(devfleet submit --project tally --agent "$AGENT" --task-file "$DEMO/task.md" --plan-file "$DEMO/plan.md")
printf '\n$ %s\n' "${submit[*]}"
answer="$("${submit[@]}" --output json)"
JOB="$(printf '%s' "$answer" | grep -oE '"(id|job|job_id)": *"[^"]+"' | head -n 1 | sed -E 's/.*"([^"]+)"$/\1/')"
[ -n "$JOB" ] || die "devfleet submit named no job; it said:" "$answer"
echo "job $JOB"

title "The environment, derived from .gitlab-ci.yml"
await 60 "the plan" 'awaiting.?approval|ended' devfleet jobs show "$JOB" --output json
show devfleet env show "$JOB" --report
show devfleet env show "$JOB" --dockerfile

title "Approved by a person"
show devfleet approve "$JOB" --yes

title "The job at work"
LIMIT=900 show devfleet logs -f "$JOB"
outcome=0
LIMIT=900 show devfleet jobs watch "$JOB" || outcome=$?
[ "$outcome" -eq 0 ] || die "the job did not succeed (exit code $outcome); devfleet's log ends:" "$(tail -n 15 "$UP_LOG")"

title "The merge request"
show devfleet diff "$JOB"

title "What is left"
show_what_is_left
stop
title "devfleet stopped. That was one job, from submission to merge request, in $SECONDS s"
