// Serves the working directory with vite, and is the browser that has its page open.
//
// Prints "ready", then what it is told by the server: "update PATH" for hot module replacement, or other messages by their kind.
// A path on stdin is got, and answered by "got", the status, and the marks ("mark-…") in what is served there, when the server
// would tell of another edit: of those within DEAF_MS of one that it told of, chokidar drops all, on every host.
import { once } from "node:events";
import { createInterface } from "node:readline";
import { createServer } from "vite";
import WebSocket from "ws";

// By number: of a name with two addresses, both are tried, with little patience.
const HOST = "127.0.0.1";
const PORT = 5173;
const DEAF_MS = 50;

const server = await createServer({
    configFile: false,
    cacheDir: "/tmp/vite",
    logLevel: "warn",
    // Nothing is said of how it watches.
    server: { host: HOST, port: PORT, strictPort: true },
});
const watching = once(server.watcher, "ready");
await server.listen();
await watching;
if (server.watcher.options.usePolling) {
    throw new Error("vite polls");
}

// chokidar's timer of the same length began before, so it is over before.
let hears = Promise.resolve();
server.watcher.on("change", () => {
    hears = new Promise((resolve) => setTimeout(resolve, DEAF_MS));
});

async function get(path) {
    const answer = await fetch(`http://${HOST}:${PORT}${path}`);
    return [answer.status, await answer.text()];
}

// Gets a module and all that it imports, and so on: from this the server knows who imports what.
async function load(path) {
    const [, text] = await get(path);
    for (const [, imported, file] of text.matchAll(/"((\/src\/[^"?]+)[^"]*)"/g)) {
        // Its own path stands in it too.
        if (!path.startsWith(file)) {
            await load(imported);
        }
    }
}

async function told(message) {
    if (message.type === "connected") {
        await load("/src/main.js");
        console.log("ready");
    } else if (message.type === "update") {
        for (const update of message.updates) {
            await load(`${update.acceptedPath}?t=${update.timestamp}`);
            console.log(`update ${update.path}`);
        }
    } else {
        console.log(message.type, message.path ?? "");
    }
}

// One message after the other.
let done = Promise.resolve();
const socket = new WebSocket(`ws://${HOST}:${PORT}/`, "vite-hmr");
socket.on("message", (data) => {
    done = done.then(() => told(JSON.parse(data)));
});
for await (const path of createInterface({ input: process.stdin })) {
    const [status, text] = await get(path);
    for (let heard; heard !== hears; await heard) {
        heard = hears;
    }
    console.log("got", status, ...(text.match(/mark-[a-z]+/g) ?? []));
}
process.exit();
