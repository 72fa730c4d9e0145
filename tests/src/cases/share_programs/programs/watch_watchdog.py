# Prints what watchdog is told of the working directory, a line each, after the line "ready".
import sys

from watchdog.events import FileSystemEventHandler
from watchdog.observers import Observer


class Print(FileSystemEventHandler):
    def on_any_event(self, event):
        # A move has two paths.
        paths = [event.src_path, event.dest_path]
        print(event.event_type, *[path.removeprefix("./") for path in paths if path], flush=True)


observer = Observer()
assert type(observer).__name__ == "InotifyObserver", observer
observer.schedule(Print(), ".", recursive=True)
# When this has returned, all directories are watched.
observer.start()
print("ready", flush=True)
sys.stdin.read()
