# Makes a tree on the container's own file system, brings it to the directory that is the argument by tar and by cp,
# and lists all three. Holes stay holes.
set -e
cd /tmp
python3 /programs/tree.py make /tmp/source
tar --create --format=posix --sparse --xattrs --file=source.tar -C source .
mkdir "$1" "$1/tar" "$1/cp"
tar --extract --same-permissions --xattrs --file=source.tar -C "$1/tar"
cp --archive source/. "$1/cp"
tar --diff --file=source.tar -C "$1/tar"
for tree in /tmp/source "$1/tar" "$1/cp"; do
    python3 /programs/tree.py list "$tree"
    echo
done
