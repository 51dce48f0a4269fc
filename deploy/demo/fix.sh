#!/bin/sh
# Plays the agent when there is no API key: reads the task, sees the test fail, makes the real fix, sees it pass.
# Runs inside the environment, in the checked-out workspace. Leaves its change uncommitted: devfleet commits what is left.
set -eu

say() { printf 'fix: %s\n' "$*"; }

say "task: $(printf '%s\n' "${DEVFLEET_TASK:?there is no task in DEVFLEET_TASK}" | head -n 1)"
say "running the tests to see the failure"
if python -m pytest -q -p no:cacheprovider; then
    say "all tests pass already; there is nothing to fix"
    exit 0
fi

say "reason: Store.add writes a word's count over the old one (hset) where it must increase it (hincrby)"
old='pipe.hset(self._key, word, number)'
new='pipe.hincrby(self._key, word, number)'
grep -qF "$old" tally/store.py || {
    say "tally/store.py has no '$old' to change"
    exit 1
}
sed -i "s/pipe\.hset(self\._key, word, number)/$new/" tally/store.py
say "changed tally/store.py: $(grep -nF "$new" tally/store.py)"

say "running the tests again"
python -m pytest -q -p no:cacheprovider
say "done: the whole suite passes"
