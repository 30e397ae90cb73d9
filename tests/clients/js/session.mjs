// Calls a server in every way that @fal-ai/client knows, and prints what came back as one line of JSON.
import { createFalClient } from "@fal-ai/client";
import WebSocket from "ws";

const { VARVEL_URL, FAL_KEY } = process.env;

// The client's realtime host is fixed; only the socket's address is changed.
globalThis.WebSocket = class extends WebSocket {
  constructor(url, protocols) {
    super(url.replace("wss://fal.run", VARVEL_URL.replace("http", "ws") + "/run"), protocols);
  }
};

const fal = createFalClient({
  credentials: FAL_KEY,
  proxyUrl: { url: `${VARVEL_URL}/proxy`, when: "always" },
});

const said = {};
said.run = (await fal.run("me/talker", { input: { name: "run" } }));
const submitted = await fal.queue.submit("me/talker", { input: { name: "queue" } });
said.status = (await fal.queue.status("me/talker", { requestId: submitted.request_id, logs: true })).status;
const updates = [];
const polled = await fal.subscribe("me/talker", {
  input: { name: "polled" }, logs: true, pollInterval: 100,
  onQueueUpdate: (update) => updates.push(update.status),
});
said.polled = polled.data;
said.polledRequestId = polled.requestId;
const streamedUpdates = [];
const streamed = await fal.subscribe("me/talker", {
  input: { name: "streamed" }, logs: true, mode: "streaming",
  onQueueUpdate: (update) => streamedUpdates.push(update.status),
});
said.streamed = streamed.data;
said.lastUpdates = [updates.at(-1), streamedUpdates.at(-1)];
const events = [];
const stream = await fal.stream("me/talker/stream", { input: {} });
for await (const event of stream) events.push(event);
said.events = events;
said.done = await stream.done();
const url = await fal.storage.upload(new Blob(["varvel"], { type: "text/plain" }));
said.uploaded = await (await fetch(url)).text();
try {
  await fal.run("me/talker/strict", { input: { n: "not a number" } });
} catch (error) {
  said.invalid = [error.name, error.status];
}
said.realtime = await new Promise((resolve, reject) => {
  const connection = fal.realtime.connect("me/talker", {
    connectionKey: "test", throttleInterval: 0,
    onResult: (result) => { connection.close(); resolve(result); },
    onError: reject,
  });
  connection.send({ name: "realtime" });
});
console.log(JSON.stringify(said));
process.exit(0);
