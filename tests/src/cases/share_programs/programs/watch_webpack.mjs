// Serves the bundle of the working directory with webpack-dev-server, and is the browser that has its page open.
//
// Prints "ready" when the first bundle is there, then "bundle" for each that differs from the one before, as the server tells by
// its hash. A path on stdin is got, and answered by "got", the status, and the marks ("mark-…") in what is served there.
import { createInterface } from "node:readline";
import webpack from "webpack";
import WebpackDevServer from "webpack-dev-server";
import WebSocket from "ws";

// By number: of a name with two addresses, both are tried, with little patience.
const HOST = "127.0.0.1";
const PORT = 8080;

const compiler = webpack({
    mode: "development",
    // As it stands in the bundle, and not within an eval().
    devtool: false,
    entry: "./src/main.js",
    infrastructureLogging: { level: "error" },
    stats: "none",
    // Nothing is said of how it watches.
});
// The page's half of it is this program.
const server = new WebpackDevServer({ host: HOST, port: PORT, static: false, client: false }, compiler);
await server.start();
if (compiler.watching?.watchOptions.poll) {
    throw new Error("webpack polls");
}

let hash;
// A browser says so too, and without it the server does not talk.
const socket = new WebSocket(`ws://${HOST}:${PORT}/ws`, { origin: `http://${HOST}:${PORT}` });
socket.on("message", (data) => {
    const message = JSON.parse(data);
    if (message.type === "hash" && message.data !== hash) {
        console.log(hash ? "bundle" : "ready");
        hash = message.data;
    } else if (message.type === "errors") {
        console.log("errors");
    }
});
for await (const path of createInterface({ input: process.stdin })) {
    const answer = await fetch(`http://${HOST}:${PORT}${path}`);
    const marks = (await answer.text()).match(/mark-[a-z]+/g) ?? [];
    console.log("got", answer.status, ...marks);
}
process.exit();
