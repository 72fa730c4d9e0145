# What every file of checks stands on: what a check is, and how all of them are made in one directory.
import contextlib, ctypes, errno, fcntl, hashlib, mmap, os, socket, stat, struct, subprocess, sys, threading, traceback

CHECKS = []
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100


def check(function):
    """A check that anybody can make."""
    CHECKS.append((function, False))
    return function


def check_as_root(function):
    """A check that only root can make."""
    CHECKS.append((function, True))
    return function


def brief(value):
    text = repr(value)
    return text if len(text) < 400 else f"{text[:200]}…{text[-200:]}"


def same(found, expected, what=""):
    if found != expected:
        raise AssertionError(f"{what}: expected {brief(expected)}, found {brief(found)}")


@contextlib.contextmanager
def fails(*names):
    """What is inside has to fail with one of these errors."""
    try:
        yield
    except OSError as error:
        if error.errno not in [getattr(errno, name) for name in names]:
            raise AssertionError(f"expected {' or '.join(names)}, found {error!r}") from error
    else:
        raise AssertionError(f"expected {' or '.join(names)}, and it worked")


def libc(name, *arguments):
    """Calls a function of the C library that python does not have."""
    result = getattr(LIBC, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def write(path, data=b""):
    with open(path, "wb") as file:
        file.write(data)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def mode(path):
    return stat.S_IMODE(os.lstat(path).st_mode)


@contextlib.contextmanager
def opened(path, flags, permissions=0o644):
    descriptor = os.open(path, flags, permissions)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def in_child(function, uid=None):
    """Runs a function in a process of its own, as this user; what it raises is raised here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        message = b""
        try:
            os.close(reader)
            if uid is not None:
                os.setgroups([])
                os.setresgid(uid, uid, uid)
                os.setresuid(uid, uid, uid)
            function()
        except BaseException:
            message = traceback.format_exc().encode()
        with contextlib.suppress(OSError):
            os.write(writer, message[-4000:])
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        message = pipe.read()
    os.waitpid(pid, 0)
    if message:
        raise AssertionError("in the child: " + message.decode(errors="replace"))


def main():
    root, top = os.geteuid() == 0, os.path.abspath(sys.argv[1])
    failed = made = 0
    for function, needs_root in CHECKS:
        if needs_root and not root:
            continue
        directory = os.path.join(top, function.__name__)
        os.mkdir(directory)
        # What a user is to find there it has to get at.
        os.chmod(directory, 0o755)
        os.chdir(directory)
        made += 1
        try:
            function()
            print("ok", function.__name__, flush=True)
        except BaseException:
            failed += 1
            print("FAILED", function.__name__, traceback.format_exc(), flush=True)
    print(f"{made} checks, {failed} failed", flush=True)
    sys.exit(1 if failed else 0)
