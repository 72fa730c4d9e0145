# What runs as the database's user: makes the data directory if it is empty, and serves.
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    initdb --username=postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 --data-checksums --no-instructions
fi
exec postgres -c listen_addresses= -c unix_socket_directories=/tmp -c shared_buffers=32MB
