# What is in a file: holes, sizes, maps, and descriptors that outlive the file's name.
from posix_harness import *

SEEK_DATA, SEEK_HOLE = os.SEEK_DATA, os.SEEK_HOLE
KEEP_SIZE, PUNCH_HOLE = 1, 2
MIB = 1 << 20


def name_it(descriptor, path):
    """Gives an open file a name; os.link() does not follow the link that leads to it."""
    follow = 0x400
    libc("linkat", AT_FDCWD, f"/proc/self/fd/{descriptor}".encode(), AT_FDCWD, path, follow)


def fallocate(descriptor, how, offset, length):
    libc("fallocate", descriptor, how, ctypes.c_long(offset), ctypes.c_long(length))


@check
def an_unlinked_file_lives_while_it_is_open():
    write("file", b"0123456789")
    with opened("file", os.O_RDWR) as descriptor:
        os.unlink("file")
        with fails("ENOENT"):
            os.stat("file")
        write("file", b"another")
        same(os.pread(descriptor, 20, 0), b"0123456789")
        os.pwrite(descriptor, b"abc", 10)
        os.ftruncate(descriptor, 12)
        same((os.fstat(descriptor).st_size, os.fstat(descriptor).st_nlink), (12, 0))
        os.fchmod(descriptor, 0o600)
        os.utime(descriptor, ns=(5, 7))
        same((stat.S_IMODE(os.fstat(descriptor).st_mode), os.fstat(descriptor).st_mtime_ns), (0o600, 7))
        with opened(f"/proc/self/fd/{descriptor}", os.O_RDONLY) as again:
            same(os.read(again, 20), b"0123456789ab")
    same(read("file"), b"another")


@check
def a_file_replaced_by_rename_lives_while_it_is_open():
    write("new", b"new")
    write("old", b"old")
    with opened("old", os.O_RDONLY) as descriptor:
        os.rename("new", "old")
        same(os.read(descriptor, 10), b"old")
        same(os.fstat(descriptor).st_nlink, 0)
    same(read("old"), b"new")
    same(os.listdir("."), ["old"])


@check
def a_file_without_a_name_can_be_given_one():
    with opened(".", os.O_TMPFILE | os.O_RDWR, 0o640) as descriptor:
        os.write(descriptor, b"content")
        same(os.listdir("."), [])
        same(os.fstat(descriptor).st_nlink, 0)
        name_it(descriptor, b"named")
        same(os.fstat(descriptor).st_nlink, 1)
    same((read("named"), mode("named")), (b"content", 0o640))
    with opened(".", os.O_TMPFILE | os.O_EXCL | os.O_RDWR) as descriptor:
        with fails("ENOENT"):
            name_it(descriptor, b"other")


@check
def open_flags_mean_what_they_say():
    write("file", b"12345")
    os.symlink("nowhere", "dangling")
    os.symlink("file", "link")
    os.mkdir("dir")
    for name in ["file", "dangling", "link", "dir"]:
        with fails("EEXIST"):
            os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    with fails("ELOOP"):
        os.open("link", os.O_RDONLY | os.O_NOFOLLOW)
    with fails("ENOTDIR"):
        os.open("file", os.O_RDONLY | os.O_DIRECTORY)
    with fails("ENOTDIR"):
        os.stat("file/below")
    with fails("EISDIR"):
        os.open("dir", os.O_WRONLY)
    with fails("ENOENT"):
        os.open("", os.O_RDONLY)
    with opened("file", os.O_WRONLY) as descriptor:
        with fails("EBADF"):
            os.read(descriptor, 1)
    with opened("file", os.O_RDONLY) as descriptor:
        with fails("EBADF"):
            os.write(descriptor, b"x")
        with fails("EINVAL", "EBADF"):
            os.ftruncate(descriptor, 0)
    os.close(os.open("dangling", os.O_CREAT | os.O_WRONLY))
    same(os.path.lexists("nowhere"), True, "made through the link")
    os.close(os.open("file", os.O_WRONLY | os.O_TRUNC))
    same(os.stat("file").st_size, 0)


@check
def what_is_appended_goes_to_the_end():
    with opened("file", os.O_CREAT | os.O_RDWR | os.O_APPEND) as first, opened("file", os.O_WRONLY) as second:
        os.write(first, b"aa")
        os.pwrite(second, b"bbbb", 0)
        os.lseek(first, 0, os.SEEK_SET)
        os.write(first, b"cc")
        # Linux appends here too (pwrite(2), "BUGS").
        os.pwrite(first, b"dd", 1)
        fcntl.fcntl(first, fcntl.F_SETFL, 0)
        os.pwrite(first, b"e", 0)
        fcntl.fcntl(second, fcntl.F_SETFL, os.O_APPEND)
        os.write(second, b"f")
    same(read("file"), b"ebbbccddf")


@check
def truncating_and_growing_leave_zeros():
    write("file", b"x" * 10000)
    os.truncate("file", 5000)
    os.truncate("file", 9000)
    same(read("file"), b"x" * 5000 + bytes(4000))
    with opened("file", os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"y", 20000)
        os.ftruncate(descriptor, 100)
        os.pwrite(descriptor, b"z", 200)
    same(read("file"), b"x" * 100 + bytes(100) + b"z")
    with fails("EINVAL"):
        os.truncate("file", -1)
    with fails("EISDIR"):
        os.truncate(".", 0)


@check
def holes_are_found_and_made():
    with opened("file", os.O_CREAT | os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"a" * 65536, 4 * MIB)
        os.ftruncate(descriptor, 8 * MIB)
        same(os.lseek(descriptor, 0, SEEK_DATA), 4 * MIB)
        same(os.lseek(descriptor, 0, SEEK_HOLE), 0)
        same(os.lseek(descriptor, 4 * MIB, SEEK_HOLE), 4 * MIB + 65536)
        same(os.lseek(descriptor, 8 * MIB - 1, SEEK_HOLE), 8 * MIB - 1)
        for offset, whence in [(5 * MIB, SEEK_DATA), (8 * MIB, SEEK_DATA), (8 * MIB, SEEK_HOLE)]:
            with fails("ENXIO"):
                os.lseek(descriptor, offset, whence)
        fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, 4 * MIB, 32768)
        same(os.pread(descriptor, 32769, 4 * MIB), bytes(32768) + b"a")
        same(os.lseek(descriptor, 0, SEEK_DATA), 4 * MIB + 32768)
        fallocate(descriptor, KEEP_SIZE, 8 * MIB, MIB)
        same(os.fstat(descriptor).st_size, 8 * MIB)
        fallocate(descriptor, 0, 8 * MIB, MIB)
        same(os.fstat(descriptor).st_size, 9 * MIB)
        os.posix_fallocate(descriptor, 0, MIB)
        same(os.pread(descriptor, MIB, 0), bytes(MIB))


@check
def a_file_may_be_larger_than_4_gib():
    end = 5 << 30
    with opened("file", os.O_CREAT | os.O_RDWR) as descriptor:
        os.pwrite(descriptor, b"low", 7)
        os.pwrite(descriptor, b"high", end - 4)
        same(os.fstat(descriptor).st_size, end)
        same(os.pread(descriptor, 100, end - 8), bytes(4) + b"high")
        # Where the offset's upper half would be lost.
        same(os.pread(descriptor, 3, (4 << 30) + 7), bytes(3))
        same(os.lseek(descriptor, 1 << 20, SEEK_DATA) >= end - 65536, True, "a hole of 5 GiB")
        # 64 KiB blocks are the largest a file system of the host has.
        same(os.fstat(descriptor).st_blocks * 512 <= 4 * 65536, True, "takes no space")
        with mmap.mmap(descriptor, 4096, offset=end - 4096) as area:
            same(area[-4:], b"high")
        os.ftruncate(descriptor, end - 2)
        same(os.pread(descriptor, 100, end - 4), b"hi")


@check
def large_writes_come_back():
    data = b"".join(hashlib.sha256(struct.pack("I", number)).digest() for number in range(300_000))
    write("file", data)
    with opened("file", os.O_RDWR) as descriptor:
        os.fsync(descriptor)
        os.fdatasync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        same(os.preadv(descriptor, [bytearray(1), bytearray(70000)], 4095), 70001)
        os.pwrite(descriptor, b"patch", 1_234_567)
    found = read("file")
    same(found == data[:1_234_567] + b"patch" + data[1_234_572:], True, "content")
    same(os.stat("file").st_size, len(data))
    with opened(".", os.O_RDONLY) as directory:
        os.fsync(directory)
        libc("syncfs", directory)


@check
def direct_io_goes_past_the_page_cache_and_agrees_with_it():
    block = mmap.mmap(-1, 8192)
    block[:] = b"d" * 8192
    write("file", b"c" * 16384)
    with opened("file", os.O_RDWR | os.O_DIRECT) as direct, opened("file", os.O_RDWR) as cached:
        same(os.pread(cached, 16384, 0), b"c" * 16384)
        same(os.pwritev(direct, [block], 4096), 8192)
        same(os.pread(cached, 16384, 0), b"c" * 4096 + b"d" * 8192 + b"c" * 4096)
        os.pwrite(cached, b"e" * 4096, 0)
        same(os.preadv(direct, [block], 0), 8192)
        same(block[:], b"e" * 4096 + b"d" * 4096)


@check
def maps_share_with_each_other_and_with_reads_and_writes():
    write("file", b"." * 10000)
    with opened("file", os.O_RDWR) as descriptor:
        one, two = (mmap.mmap(descriptor, 10000) for _ in range(2))
        private = mmap.mmap(descriptor, 10000, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        one[5000:5003] = b"one"
        same((two[5000:5003], os.pread(descriptor, 3, 5000)), (b"one", b"one"))
        os.pwrite(descriptor, b"write", 0)
        same((one[:5], two[:5]), (b"write", b"write"))
        private[0:7] = b"private"
        same((two[:5], read("file")[:5]), (b"write", b"write"))
        one.flush()

        def in_another_process():
            with opened("file", os.O_RDWR) as other, mmap.mmap(other, 10000) as area:
                same(area[5000:5003], b"one")
                area[9990:9995] = b"child"

        in_child(in_another_process)
        same(two[9990:9995], b"child")
        for area in (one, two, private):
            area.close()
    same(read("file")[9990:9995], b"child")
    with opened("file", os.O_RDONLY) as descriptor:
        with fails("EACCES"):
            mmap.mmap(descriptor, 4096)


@check
def bytes_are_copied_between_files_by_the_kernel():
    write("from", b"x" * MIB + b"end")
    with opened("from", os.O_RDONLY) as source, opened("to", os.O_CREAT | os.O_RDWR) as target:
        same(os.copy_file_range(source, target, MIB, 3, 1), MIB)
        same(os.copy_file_range(source, target, 100, MIB, MIB + 1), 3)
        same(os.sendfile(target, source, 0, 2), 2)
    same(read("to"), b"x" * (MIB - 2) + b"endend")


@check
def a_script_and_a_program_run():
    write("script", b"#!/bin/sh\necho script $1\n")
    with fails("EACCES"):
        subprocess.run(["./script"])
    os.chmod("script", 0o755)
    same(subprocess.check_output(["./script", "one"]), b"script one\n")
    write("echo", read("/usr/bin/echo"))
    os.chmod("echo", 0o755)
    same(subprocess.check_output(["./echo", "two"]), b"two\n")
    with subprocess.Popen(["./script"], stdout=subprocess.PIPE) as process:
        process.communicate()


@check
def what_has_no_meaning_here_is_refused():
    write("file")
    with opened("file", os.O_RDWR) as descriptor:
        # FS_IOC_GETVERSION, and one that nobody has.
        for request in [0x80087601, 0x1234]:
            with fails("ENOTTY", "EOPNOTSUPP"):
                fcntl.ioctl(descriptor, request, bytes(8))
    found = os.statvfs(".")
    same((found.f_namemax, found.f_blocks > 0, found.f_bfree <= found.f_blocks), (255, True, True))
