# What a package manager for JavaScript does to a file system when it installs, without being one: the real ones are
# larger than everything else in the image together. Modelled on npm (cache by content, staging directories, links in
# .bin, times of 1985, a lock file that is replaced) and on pnpm (hard links out of a store).
#
# Arguments: the project's directory and how many packages. Prints what it made; ends with an error when something is
# not as it was written.
import hashlib, os, shutil, stat, sys

PROJECT, COUNT = sys.argv[1], int(sys.argv[2])
FILES = 25
# The time that npm gives every file of a package.
LONG_AGO = 499_162_500 * 10**9


def content(package, version, number):
    return f"module.exports = {package * 1000 + number};\n// {version}\n".encode() * (1 + number % 7 * 20)


def name(package):
    return f"@scope/package-{package}" if package % 5 == 0 else f"package-{package}"


def replace(path, data):
    """Writes a file as programs do that must not leave half of it."""
    temporary = f"{path}.{os.getpid()}"
    with open(temporary, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(temporary, path)


def stored(data):
    """The file in the store that has this content."""
    digest = hashlib.sha512(data).hexdigest()
    path = f".store/content/{digest[:2]}/{digest[2:4]}/{digest[4:]}"
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.makedirs(".store/tmp", exist_ok=True)
        with open(f".store/tmp/{digest[:16]}", "xb") as file:
            file.write(data)
        os.rename(f".store/tmp/{digest[:16]}", path)
    return path


def unpack(package, version, into):
    os.makedirs(f"{into}/lib/deep/er")
    for number in range(FILES):
        path = f"{into}/{['', 'lib/', 'lib/deep/', 'lib/deep/er/'][number % 4]}file-{number}.js"
        data = content(package, version, number)
        if number % 6 == 0:
            os.link(stored(data), path)
        else:
            with open(path, "xb") as file:
                file.write(data)
            os.utime(path, ns=(LONG_AGO, LONG_AGO))
    replace(f"{into}/package.json", f'{{"name": "{name(package)}", "version": "{version}"}}'.encode())
    with open(f"{into}/cli.sh", "x") as file:
        file.write(f"#!/bin/sh\necho {name(package)} {version}\n")
    os.chmod(f"{into}/cli.sh", 0o755)
    # A dependency of its own.
    os.makedirs(f"{into}/node_modules/nested")
    with open(f"{into}/node_modules/nested/index.js", "x") as file:
        file.write("nested\n")


def install(version):
    os.makedirs("node_modules/.bin", exist_ok=True)
    os.makedirs("node_modules/@scope", exist_ok=True)
    for package in range(COUNT):
        target = f"node_modules/{name(package)}"
        staging = f"node_modules/.{os.path.basename(target)}-{os.urandom(4).hex()}"
        unpack(package, version, staging)
        retired = None
        if os.path.exists(target):
            retired = f"{staging}-old"
            os.rename(target, retired)
        os.rename(staging, target)
        if retired:
            shutil.rmtree(retired)
        link = f"node_modules/.bin/tool-{package}"
        if os.path.lexists(link):
            os.unlink(link)
        os.symlink(f"../{name(package)}/cli.sh", link)
        replace("package-lock.json", f'{{"installed": {package + 1}, "version": "{version}"}}'.encode())


def verify(version):
    files = 0
    for package in range(COUNT):
        target = f"node_modules/{name(package)}"
        for number in range(FILES):
            path = f"{target}/{['', 'lib/', 'lib/deep/', 'lib/deep/er/'][number % 4]}file-{number}.js"
            with open(path, "rb") as file:
                assert file.read() == content(package, version, number), path
            found = os.stat(path)
            assert (found.st_nlink > 1) == (number % 6 == 0), path
            assert number % 6 == 0 or found.st_mtime_ns == LONG_AGO, path
            files += 1
        # As the resolution of modules looks: up the tree until it is there.
        for missing in ["lib/deep/er/node_modules", "lib/deep/node_modules", "lib/node_modules"]:
            assert not os.path.exists(f"{target}/{missing}/nested")
        assert os.path.isfile(f"{target}/node_modules/nested/index.js")
        assert stat.S_IMODE(os.stat(f"node_modules/.bin/tool-{package}").st_mode) == 0o755
    printed = os.popen("node_modules/.bin/tool-3").read()
    assert printed == f"{name(3)} {version}\n", printed
    left = [entry for entry in os.listdir("node_modules") if entry.startswith(".") and entry != ".bin"]
    assert not left, left
    owners = {os.lstat(os.path.join(top, entry)).st_uid for top, _, entries in os.walk(".") for entry in entries}
    assert owners == {os.geteuid()}, owners
    return files


os.umask(0o022)
os.chdir(PROJECT)
install("1.0.0")
verify("1.0.0")
install("2.0.0")
files = verify("2.0.0")
# The clean install: everything goes first.
shutil.rmtree("node_modules")
install("2.0.0")
assert verify("2.0.0") == files
print("files", files)
