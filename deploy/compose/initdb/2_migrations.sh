#!/bin/sh
# Run every migration, in order. Each can run again: on an existing database, run this file by hand.
set -eu
for file in "${MIGRATIONS:-/migrations}"/*.sql; do
    echo "Running $file"
    psql --no-psqlrc --quiet --set ON_ERROR_STOP=1 --username "${POSTGRES_USER:-postgres}" \
        --dbname "${POSTGRES_DB:-postgres}" --file "$file"
done
