# Does in a container what the test tells it, one line of python at a time, so that several containers and the host
# can act on the same files in a known order.
#
# Answers each line with one: "= VALUE" as JSON, or "! ERROR", by its name where it is one of the system's.
import errno, fcntl, json, mmap, os, signal, socket, struct, sys

EX, SH, UN, NB = fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN, fcntl.LOCK_NB


def text(path):
    with open(path) as file:
        return file.read()


def put(path, content):
    with open(path, "w") as file:
        file.write(content)


def append(path, line, times):
    """Appends lines, each with a write of its own."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for number in range(times):
        os.write(descriptor, f"{line}-{number}-end\n".encode())
    os.close(descriptor)


def claim(directory, names):
    """Makes those of the files that nobody else has made, and says how many."""
    mine = 0
    for number in range(names):
        try:
            os.close(os.open(f"{directory}/{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            mine += 1
        except FileExistsError:
            pass
    return mine


class Alarm(Exception):
    pass


def interrupted(wait):
    """Whether a signal that comes a moment later ends the wait."""

    def ring(*_):
        raise Alarm

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 1)
    try:
        wait()
        return False
    except Alarm:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


for line in sys.stdin:
    try:
        try:
            code = compile(line, "line", "eval")
        except SyntaxError:
            code = compile(line, "line", "exec")
        value = eval(code, globals())
        print("=", json.dumps(value, default=repr), flush=True)
    except OSError as error:
        print("!", errno.errorcode.get(error.errno, error), flush=True)
    except Exception as error:
        print("!", repr(error), flush=True)
