#!/bin/sh
# A database with the user that the environment names, made at the first start.
set -e
bin=$(echo /usr/lib/postgresql/*/bin)
data=/var/lib/postgresql/data
as_postgres="setpriv --reuid=postgres --regid=postgres --clear-groups"
install -d -o postgres -g postgres /run/postgresql
if [ ! -s $data/PG_VERSION ]; then
    install -d -o postgres -g postgres -m 0700 $data
    echo "$POSTGRES_PASSWORD" > /run/password
    chown postgres /run/password
    $as_postgres "$bin/initdb" -D $data --username="$POSTGRES_USER" --pwfile=/run/password -A scram-sha-256 --no-sync
    rm /run/password
    echo "host all all all scram-sha-256" >> $data/pg_hba.conf
    echo "listen_addresses = '*'" >> $data/postgresql.conf
fi
exec $as_postgres "$bin/postgres" -D $data
