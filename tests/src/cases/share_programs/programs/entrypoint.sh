# What runs as root in PostgreSQL's container: gives the directory to the database's user, and becomes it.
set -e
mkdir -p "$PGDATA"
chmod 700 "$PGDATA"
find "$PGDATA" '!' -user postgres -exec chown postgres:postgres '{}' +
exec setpriv --reuid=postgres --regid=postgres --clear-groups sh /programs/serve.sh
