#!/bin/sh
# Makes the database on first start, then serves it. Nothing listens on the network before it is ready.
set -eu

[ "${1:-}" = postgres ] || exec "$@"

user="${POSTGRES_USER:-postgres}"
database="${POSTGRES_DB:-$user}"
method=scram-sha-256

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ "${POSTGRES_HOST_AUTH_METHOD:-}" = trust ]; then
        method=trust
    elif [ -z "${POSTGRES_PASSWORD:-}" ]; then
        echo 'Error: Database is uninitialized and superuser password is not specified.' >&2
        echo '       You must specify POSTGRES_PASSWORD to a non-empty value for the superuser.' >&2
        echo '       You may also use POSTGRES_HOST_AUTH_METHOD=trust to allow all connections without a password.' >&2
        exit 1
    fi
    umask 077
    password_file="$(mktemp)"
    printf '%s\n' "${POSTGRES_PASSWORD:-unused}" > "$password_file"
    initdb --no-sync --username="$user" --pwfile="$password_file" --auth-local=trust --auth-host="$method" \
        --encoding=UTF8 --locale=C.UTF-8 -D "$PGDATA" > /dev/null
    rm -f "$password_file"
    echo "host all all all $method" >> "$PGDATA/pg_hba.conf"
    if [ "$database" != postgres ]; then
        printf 'CREATE DATABASE "%s"\n' "$database" | postgres --single -D "$PGDATA" postgres > /dev/null
    fi
    echo "database '$database' made for user '$user'"
fi
unset POSTGRES_PASSWORD
exec postgres -D "$PGDATA" -c listen_addresses='*' -c fsync=off -c jit=off
