# The first process of every step: takes its variables from standard input, so that no secret passes through the engine.
# Frame: a random marker line, `export NAME='value'` lines, the marker line again. POSIX sh: dash, busybox and bash read it.
devfleet_frame= devfleet_piece= devfleet_marker= devfleet_line= devfleet_count= devfleet_whole=
IFS= read -r devfleet_marker || devfleet_marker=
if [ -n "$devfleet_marker" ]; then
    while IFS= read -r devfleet_line; do
        if [ "$devfleet_line" = "$devfleet_marker" ]; then
            devfleet_whole=yes
            break
        fi
        # In pieces: appending each line to the whole would take minutes for a long value.
        devfleet_count=x$devfleet_count
        devfleet_piece="$devfleet_piece$devfleet_line
"
        if [ "${#devfleet_count}" -ge 100 ]; then
            devfleet_frame="$devfleet_frame$devfleet_piece"
            devfleet_piece= devfleet_count=
        fi
    done
fi
if [ -z "$devfleet_whole" ]; then
    echo 'devfleet: no frame arrived' >&2
    exit 125
fi
eval "$devfleet_frame$devfleet_piece"
unset devfleet_frame devfleet_piece devfleet_marker devfleet_line devfleet_count devfleet_whole
exec "$@" </dev/null
