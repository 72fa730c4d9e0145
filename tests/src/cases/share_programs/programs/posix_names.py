# Names: of files, directories, links, FIFOs and sockets; renaming, listing, and what may not be.
from posix_harness import *

NOREPLACE, EXCHANGE = 1, 2


def renameat2(old, new, flags):
    libc("renameat2", AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags)


@check
def a_name_is_any_bytes_up_to_255():
    names = [
        b"n" * 255,
        b"\xff\xfe not utf-8",
        b"new\nline",
        b" ",
        b"-rf",
        b"..." * 85,
        bytes(range(1, 47)),
        bytes(range(48, 256)),
        "é".encode(),
        "e\u0301".encode(),
        b"Case",
        b"case",
    ]
    for name in names:
        write(name, name)
        same(os.stat(name).st_size, len(name), name)
    same(sorted(os.listdir(b".")), sorted(names))
    for name in names:
        same(read(name), name)
        os.rename(name, b"moved")
        os.rename(b"moved", name)
    with fails("ENAMETOOLONG"):
        write(b"n" * 256)
    with fails("ENAMETOOLONG"):
        os.mkdir(b"n" * 256)
    # The first two are left for the host to look at.
    for name in names[2:]:
        os.unlink(name)
    same(sorted(os.listdir(b".")), sorted(names[:2]))


@check
def a_path_may_be_longer_than_a_call_takes():
    for _ in range(20):
        os.mkdir(b"d" * 250)
        os.chdir(b"d" * 250)
    write("deep", b"deep")
    same(read("deep"), b"deep")
    for _ in range(20):
        os.chdir("..")
    with fails("ENAMETOOLONG"):
        os.stat((b"d" * 250 + b"/") * 20 + b"deep")
    subprocess.check_call(["rm", "-r", "d" * 250])


@check
def rename_replaces_what_it_may():
    os.makedirs("full/in")
    for name in ["dir", "empty"]:
        os.mkdir(name)
    write("file", b"file")
    write("dir/below")
    with fails("ENOTEMPTY", "EEXIST"):
        os.rename("dir", "full")
    with fails("ENOTDIR"):
        os.rename("dir", "file")
    with fails("EISDIR"):
        os.rename("file", "empty")
    with fails("EINVAL"):
        os.rename("full", "full/in/self")
    with fails("ENOENT"):
        os.rename("absent", "file")
    os.rename("dir", "empty")
    same(sorted(os.listdir("empty")), ["below"])
    os.link("file", "same")
    os.rename("file", "same")
    same(sorted(os.listdir(".")), ["empty", "file", "full", "same"], "two links of one file both stay")
    os.chdir("full")
    os.rename("../full", "../renamed")
    same(os.path.basename(os.getcwd()), "renamed")


@check
def rename_can_refuse_to_replace_and_can_exchange():
    write("one", b"one")
    os.mkdir("two")
    write("two/in", b"in")
    with fails("EEXIST"):
        renameat2("one", "two", NOREPLACE)
    renameat2("one", "three", NOREPLACE)
    renameat2("three", "two", EXCHANGE)
    same((read("two"), read("three/in")), (b"one", b"in"))
    with fails("ENOENT"):
        renameat2("two", "absent", EXCHANGE)


@check
def hard_links_are_one_file():
    write("one", b"1")
    os.mkdir("dir")
    os.link("one", "dir/two")
    first, second = os.stat("one"), os.stat("dir/two")
    same((first.st_ino, first.st_dev, first.st_nlink), (second.st_ino, second.st_dev, 2))
    with open("dir/two", "ab") as file:
        file.write(b"2")
    same((read("one"), os.stat("one").st_size), (b"12", 2))
    os.chmod("dir/two", 0o604)
    same(mode("one"), 0o604)
    os.unlink("one")
    same((os.stat("dir/two").st_nlink, read("dir/two")), (1, b"12"))
    with fails("EPERM"):
        os.link("dir", "link")
    with fails("EEXIST"):
        os.link("dir/two", "dir")
    os.symlink("nowhere", "dangling")
    os.link("dangling", "again", follow_symlinks=False)
    same(os.readlink("again"), "nowhere")


@check
def symbolic_links_keep_their_target():
    targets = {b"long": b"t" * 4095, b"bytes": b"\xff/\xfe", b"up": b"../..", b"root": b"/etc/passwd"}
    for name, target in targets.items():
        os.symlink(target, name)
        same((os.readlink(name), os.lstat(name).st_size, mode(name)), (target, len(target), 0o777))
    same(read("root")[:5], b"root:", "an absolute target is the container's")
    os.symlink("b", "a")
    os.symlink("a", "b")
    with fails("ELOOP"):
        os.stat("a")
    with fails("EINVAL"):
        os.readlink(".")
    with fails("ENAMETOOLONG"):
        os.symlink(b"t" * 4096, "longer")
    os.unlink("a")
    same(os.path.lexists("b"), True)


@check
def directories_say_what_they_have():
    kinds = {
        "file": stat.S_IFREG,
        "dir": stat.S_IFDIR,
        "link": stat.S_IFLNK,
        "fifo": stat.S_IFIFO,
        "socket": stat.S_IFSOCK,
    }
    write("file")
    os.mkdir("dir")
    os.symlink("file", "link")
    os.mkfifo("fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
    with os.scandir(".") as entries:
        found = {
            entry.name: (entry.inode(), entry.is_file(follow_symlinks=False), entry.is_dir(follow_symlinks=False))
            for entry in entries
        }
    same(sorted(found), sorted(kinds))
    for name, kind in kinds.items():
        status = os.lstat(name)
        same(stat.S_IFMT(status.st_mode), kind, name)
        same(found[name], (status.st_ino, kind == stat.S_IFREG, kind == stat.S_IFDIR), name)
    with fails("ENOTEMPTY", "EEXIST"):
        os.rmdir("..")
    with fails("EINVAL"):
        os.rmdir("dir/.")
    with fails("ENOTDIR"):
        os.rmdir("file")
    with fails("EISDIR"):
        os.unlink("dir")
    with fails("EEXIST"):
        os.mkdir("link")
    os.chdir("dir")
    os.rmdir("../dir")
    with fails("ENOENT"):
        write("late")
    same(os.listdir("."), [])


@check
def a_large_directory_is_listed_once_and_emptied_while_it_is_read():
    names = {f"entry-{number:05}-{'x' * (number % 90)}" for number in range(3000)}
    for name in names:
        write(name)
    found = os.listdir(".")
    same((len(found), set(found) == names), (len(names), True))
    with os.scandir(".") as entries:
        for entry in entries:
            os.unlink(entry.name)
    same(os.listdir("."), [])


@check
def fifos_and_sockets_connect_processes():
    os.mkfifo("fifo", 0o600)

    def writer():
        write("fifo", b"through")

    thread = threading.Thread(target=lambda: in_child(writer))
    thread.start()
    same(read("fifo"), b"through")
    thread.join()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        listener.listen()

        def client():
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect("socket")
                stream.sendall(b"hello")

        thread = threading.Thread(target=lambda: in_child(client))
        thread.start()
        with listener.accept()[0] as stream:
            same(stream.recv(5), b"hello")
        thread.join()
        with fails("EADDRINUSE"):
            with socket.socket(socket.AF_UNIX) as second:
                second.bind("socket")
    with fails("ECONNREFUSED"):
        client()


@check
def times_are_kept_to_the_nanosecond():
    write("file")
    os.mkdir("dir")
    for at in [1_700_000_000_123_456_789, 1, 0, -1, -86_400_000_000_001, 4_102_444_800_999_999_999]:
        for name in ["file", "dir"]:
            os.utime(name, ns=(at + 1000, at))
            found = os.stat(name)
            same((found.st_atime_ns, found.st_mtime_ns), (at + 1000, at), name)
    now_or_omit = struct.pack("4q", 0, (1 << 30) - 2, 77, 88)
    libc("utimensat", AT_FDCWD, b"file", now_or_omit, 0)
    same((os.stat("file").st_atime_ns, os.stat("file").st_mtime_ns), (4_102_444_801_000_000_999, 77_000_000_088))
    libc("utimensat", AT_FDCWD, b"file", struct.pack("4q", 5, 6, 0, (1 << 30) - 1), 0)
    same(os.stat("file").st_atime_ns, 5_000_000_006)
    same(os.stat("file").st_mtime_ns > 1_700_000_000_000_000_000, True, "UTIME_NOW")
    os.symlink("file", "link")
    os.utime("link", ns=(1, 2), follow_symlinks=False)
    same((os.lstat("link").st_mtime_ns, os.stat("link").st_mtime_ns > 2), (2, True))


@check
def changes_move_the_times_they_should():
    write("file", b"1")

    def moved(action, name="file"):
        os.utime(name, ns=(1, 1))
        before = os.stat(name)
        action()
        after = os.stat(name)
        return after.st_mtime_ns != before.st_mtime_ns, after.st_ctime_ns >= before.st_ctime_ns

    same(moved(lambda: write("file", b"2")), (True, True), "write")
    same(moved(lambda: os.truncate("file", 5)), (True, True), "truncate")
    same(moved(lambda: os.chmod("file", 0o600)), (False, True), "chmod")
    same(moved(lambda: read("file")), (False, True), "read")
    same(moved(lambda: os.link("file", "second")), (False, True), "link")
    for what, action in [
        ("create", lambda: write("new")),
        ("unlink", lambda: os.unlink("new")),
        ("mkdir", lambda: os.mkdir("dir")),
        ("rename", lambda: os.rename("dir", "moved")),
        ("symlink", lambda: os.symlink("x", "link")),
    ]:
        same(moved(action, "."), (True, True), what)
