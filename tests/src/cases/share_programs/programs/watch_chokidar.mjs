// Prints what chokidar is told of the working directory, a line each, after the line "ready".
import { relative, resolve } from "node:path";
import { watch } from "chokidar";

const watcher = watch(".", { usePolling: false, ignoreInitial: true });
// Some of the paths are absolute.
watcher.on("all", (event, path) => console.log(event, relative(".", resolve(path))));
watcher.on("ready", () => console.log("ready"));
