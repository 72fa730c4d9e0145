# Owners, modes, xattrs and locks: what a container's users may do to each other's files.
from posix_harness import *


@check
def modes_are_shown_as_set():
    write("file")
    os.mkdir("dir")
    for name in ["file", "dir"]:
        for bits in [0o000, 0o400, 0o644, 0o751, 0o777, 0o1755, 0o4755, 0o2755, 0o6711]:
            os.chmod(name, bits)
            same(mode(name), bits, name)
            descriptor = os.open(name, os.O_PATH)
            same(stat.S_IMODE(os.fstat(descriptor).st_mode), bits, name)
            os.close(descriptor)
    os.chmod("dir", 0o755)


@check
def what_is_made_has_the_mode_that_was_asked_for_less_the_umask():
    for mask in [0o022, 0o077, 0o000, 0o027]:
        os.umask(mask)
        os.close(os.open(f"file{mask}", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(f"dir{mask}", 0o777)
        os.mkfifo(f"fifo{mask}", 0o666)
        found = [mode(f"{kind}{mask}") for kind in ("file", "dir", "fifo")]
        same(found, [0o666 & ~mask, 0o777 & ~mask, 0o666 & ~mask])
    os.umask(0o022)
    # A descriptor is for writing, whatever mode the file is made with.
    with opened("read-only", os.O_CREAT | os.O_RDWR, 0o444) as descriptor:
        os.write(descriptor, b"written")
        os.ftruncate(descriptor, 3)
    same((read("read-only"), mode("read-only")), (b"wri", 0o444))


@check
def makers_own_what_they_make():
    me = (os.geteuid(), os.getegid())
    write("file")
    os.mkdir("dir")
    os.symlink("x", "link")
    os.mkfifo("fifo")
    for name in ["file", "dir", "link", "fifo"]:
        found = os.lstat(name)
        same((found.st_uid, found.st_gid), me, name)
    if me[0] != 0:
        with fails("EPERM"):
            os.chown("file", 0, 0)
        with fails("EPERM"):
            os.chown("file", 1, -1)
        os.chown("file", *me)


@check
def xattrs_of_users_are_kept():
    write("file")
    os.setxattr("file", "user.one", b"1")
    os.setxattr("file", "user.two", b"\0\xff" * 500)
    same(sorted(os.listxattr("file")), ["user.one", "user.two"])
    same(os.getxattr("file", "user.two"), b"\0\xff" * 500)
    with fails("EEXIST"):
        os.setxattr("file", "user.one", b"2", os.XATTR_CREATE)
    with fails("ENODATA"):
        os.setxattr("file", "user.three", b"3", os.XATTR_REPLACE)
    os.removexattr("file", "user.one")
    with fails("ENODATA"):
        os.getxattr("file", "user.one")
    # How owners are kept is nobody's business here.
    os.chmod("file", 0o4755)
    same(os.listxattr("file"), ["user.two"])
    with fails("ENODATA", "EOPNOTSUPP"):
        os.getxattr("file", "user.berth.owner")
    with fails("EPERM", "EACCES", "EOPNOTSUPP"):
        os.setxattr("file", "user.berth.owner", b"1:0:0::")
    with fails("EPERM", "EOPNOTSUPP"):
        os.setxattr("file", "trusted.one", b"1")


@check
def posix_locks_exclude_other_processes():
    write("file", b"x" * 100)
    with opened("file", os.O_RDWR) as descriptor:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 20)

        def other():
            with opened("file", os.O_RDWR) as mine:
                with fails("EAGAIN", "EACCES"):
                    fcntl.lockf(mine, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, 29)
                fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)
                fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB, 0, 30)
                # struct flock: type, whence, start, length, pid.
                asked = fcntl.fcntl(mine, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 100, 0))
                kind, _, start, length, pid = struct.unpack("hhqqi4x", asked)
                same((kind, start, length, pid), (fcntl.F_WRLCK, 20, 10, os.getppid()))

        in_child(other)
        # The child's locks ended with it; and any close gives a process's locks up.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(os.open("file", os.O_RDONLY))

        def late():
            with opened("file", os.O_RDWR) as mine:
                fcntl.lockf(mine, fcntl.LOCK_EX | fcntl.LOCK_NB)

        in_child(late)


@check
def flock_excludes_other_descriptions():
    write("file")
    with opened("file", os.O_RDONLY) as one, opened("file", os.O_RDONLY) as two:
        fcntl.flock(one, fcntl.LOCK_SH)
        fcntl.flock(two, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with fails("EAGAIN"):
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(one, fcntl.LOCK_UN)
        fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with fails("EAGAIN"):
            fcntl.flock(one, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # A copy of a description holds its lock until all are closed.
        copy = os.dup(two)
        fcntl.flock(copy, fcntl.LOCK_UN)
        fcntl.flock(one, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.close(copy)


@check_as_root
def owners_are_shown_as_set():
    write("file")
    os.mkdir("dir")
    os.symlink("file", "link")
    os.mkfifo("fifo")
    for number, name in enumerate(["file", "dir", "link", "fifo"]):
        os.chown(name, 1000 + number, 2000 + number, follow_symlinks=False)
        os.chown(name, -1, 3000 + number, follow_symlinks=False)
    found = [(os.lstat(name).st_uid, os.lstat(name).st_gid) for name in ["file", "dir", "link", "fifo"]]
    same(found, [(1000 + number, 3000 + number) for number in range(4)])
    os.chown("file", 4_000_000_000, 0)
    same(os.stat("file").st_uid, 4_000_000_000)
    os.link("file", "second")
    os.rename("file", "third")
    same((os.stat("second").st_uid, os.stat("third").st_uid), (4_000_000_000, 4_000_000_000))


@check_as_root
def modes_bind_users():
    os.chmod(".", 0o777)
    write("secret", b"secret")
    os.chown("secret", 999, 999)
    os.chmod("secret", 0o640)
    os.mkdir("private")
    os.chown("private", 999, 999)
    os.chmod("private", 0o700)
    write("private/in")
    os.mkdir("sticky")
    os.chown("sticky", 0, 0)
    os.chmod("sticky", 0o1777)
    write("sticky/theirs")
    os.chown("sticky/theirs", 999, 999)

    def stranger():
        for action in [
            lambda: read("secret"),
            lambda: os.truncate("secret", 0),
            lambda: os.stat("private/in"),
            lambda: os.listdir("private"),
            lambda: write("private/new"),
        ]:
            with fails("EACCES"):
                action()
        for action in [
            lambda: os.chmod("secret", 0o666),
            lambda: os.utime("secret", ns=(1, 1)),
            lambda: os.unlink("sticky/theirs"),
            lambda: os.rename("sticky/theirs", "sticky/mine"),
            lambda: os.chown("secret", 1000, 1000),
        ]:
            with fails("EPERM", "EACCES"):
                action()
        same((os.access("secret", os.R_OK), os.access("private", os.X_OK)), (False, False))

    def owner():
        same(read("secret"), b"secret")
        os.chmod("secret", 0o600)
        write("private/mine", b"mine")
        os.unlink("sticky/theirs")
        same(os.stat("private/mine").st_uid, 999)

    in_child(stranger, 1000)
    in_child(owner, 999)
    same((read("private/mine"), mode("secret")), (b"mine", 0o600), "root gets everywhere")


@check_as_root
def a_setuid_program_runs_as_its_owner_until_somebody_writes_to_it():
    write("id", read("/usr/bin/id"))
    os.chown("id", 4242, 4343)
    os.chmod("id", 0o6755)

    def who():
        same(subprocess.check_output(["./id", "-u"]), b"4242\n")
        same(subprocess.check_output(["./id", "-g"]), b"4343\n")

    in_child(who, 1000)
    os.chown("id", 4242, 4343)
    same(mode("id"), 0o755, "chown")
    os.chmod("id", 0o6777)

    def writer():
        with opened("id", os.O_WRONLY) as descriptor:
            os.pwrite(descriptor, b"\x7f", 0)

    in_child(writer, 1000)
    same(mode("id"), 0o777, "write")
    os.chmod("id", 0o6777)
    in_child(lambda: os.truncate("id", 10), 1000)
    same(mode("id"), 0o777, "truncate")


@check_as_root
def a_setgid_directory_hands_its_group_on():
    os.mkdir("dir")
    os.chown("dir", 0, 4343)
    os.chmod("dir", 0o2777)

    def user():
        write("dir/file")
        os.mkdir("dir/below")
        write("dir/below/file")

    in_child(user, 1000)
    for name, uid, gid in [("dir/file", 1000, 4343), ("dir/below", 1000, 4343), ("dir/below/file", 1000, 4343)]:
        found = os.stat(name)
        same((found.st_uid, found.st_gid), (uid, gid), name)
    same(mode("dir/below") & 0o2000, 0o2000)


@check_as_root
def device_nodes_are_refused():
    for kind, major, minor in [(stat.S_IFCHR, 1, 3), (stat.S_IFBLK, 8, 0)]:
        with fails("EPERM"):
            os.mknod("node", kind | 0o600, os.makedev(major, minor))
    same(os.listdir("."), [])
