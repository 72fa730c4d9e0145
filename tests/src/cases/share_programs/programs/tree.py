# A tree with everything that archives and copies have to keep, and what is in a tree.
#
# `make DIRECTORY` makes it; `list DIRECTORY` prints it as JSON: for each path its kind, mode, owner, size, time,
# target, content, xattrs, and the first path that is the same file. Bytes that are no text are shown as the
# characters with their numbers.
import hashlib, json, os, stat, sys

KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}


def make(top):
    os.umask(0)
    os.mkdir(top)
    os.chdir(top)
    root = os.geteuid() == 0
    for number in range(120):
        directory = f"many/{number % 12}/{number % 5}"
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/file-{number}", "wb") as file:
            file.write(hashlib.sha256(bytes([number])).digest() * (number * 11))
    for bits in [0o400, 0o600, 0o644, 0o755, 0o777, 0o4755, 0o2755]:
        with open(f"mode-{bits:o}", "w") as file:
            file.write(f"{bits:o}\n")
        os.chmod(f"mode-{bits:o}", bits)
    for bits in [0o700, 0o755, 0o1777, 0o2775]:
        os.mkdir(f"dir-{bits:o}")
        os.chmod(f"dir-{bits:o}", bits)
    for name in [b"\xff\xfe", b"new\nline", "größe".encode(), b"n" * 255, b"-n"]:
        with open(name, "wb") as file:
            file.write(name)
    os.symlink(b"many/0", b"link")
    os.symlink(b"/etc/passwd", b"absolute")
    os.symlink(b"nowhere/\xff", b"dangling")
    os.symlink(b"t" * 2000, b"long")
    os.link("many/1/1/file-1", "hard")
    os.link("many/1/1/file-1", "many/harder")
    os.mkfifo("fifo", 0o620)
    with open("empty", "w"):
        pass
    with open("sparse", "wb") as file:
        file.seek(20 << 20)
        file.write(b"end")
    os.setxattr("empty", "user.note", b"kept \xff")
    if root:
        with open("private", "w") as file:
            file.write("private")
        os.chmod("private", 0)
        os.mkdir("theirs")
        owners = {"theirs": (33, 33), "mode-644": (999, 0), "fifo": (65534, 100), "link": (1000, 1000), "private": (5, 5)}
        for name, owner in owners.items():
            os.chown(name, *owner, follow_symlinks=False)
    at = 1_500_000_000_000_000_001
    for directory, directories, files in os.walk(b".", topdown=False):
        for name in files + directories:
            os.utime(os.path.join(directory, name), ns=(at, at), follow_symlinks=False)
            at += 86_399_123_456_789
    os.utime("empty", ns=(1, -1_000_000_001))
    os.utime("mode-600", ns=(1, 5_000_000_000_999_999_999))


def listed(top):
    os.chdir(top)
    found, first = {}, {}
    for directory, directories, files in os.walk(b"."):
        directories.sort()
        for name in sorted(files + directories):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            kind = KINDS[stat.S_IFMT(status.st_mode)]
            shown = path.decode("latin-1")
            entry = {"kind": kind, "mode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid}
            entry["mtime"] = str(status.st_mtime_ns)
            if kind == "file":
                entry["size"] = status.st_size
                with open(path, "rb") as file:
                    entry["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
                names = [name for name in os.listxattr(path) if name.startswith("user.")]
                entry["xattrs"] = {name: os.getxattr(path, name).hex() for name in names}
                if status.st_nlink > 1:
                    entry["same"] = first.setdefault(status.st_ino, shown)
            elif kind == "link":
                entry["target"] = os.readlink(path).decode("latin-1")
            found[shown] = entry
    return found


if sys.argv[1] == "make":
    make(sys.argv[2])
else:
    json.dump(listed(sys.argv[2]), sys.stdout)
