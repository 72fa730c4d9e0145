# Prints what watchfiles is told of the working directory, a line each, after the line "ready". What tells it is notify, the
# library in Rust that watchexec and cargo-watch stand on.
import os

from watchfiles import watch

HERE = os.getcwd()
ready = False
for changes in watch(HERE, force_polling=False, rust_timeout=200, yield_on_timeout=True):
    # A wait that has ended without a change: so it is watching.
    if not changes and not ready:
        print("ready", flush=True)
        ready = True
    for change, path in sorted(changes):
        print(change.name, os.path.relpath(path, HERE), flush=True)
