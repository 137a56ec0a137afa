// Node's http with an agent that keeps connections, and undici with a pool: the modes `poll` and `chunked`, which run.sh
// describes.
import http from "node:http";
import { Readable } from "node:stream";
import { setTimeout as pause } from "node:timers/promises";
import { Agent, request } from "undici";

const ENDPOINT = "http://169.254.169.254";
const TOKEN_PATH = "/latest/api/token";
const TTL = { "X-aws-ec2-metadata-token-ttl-seconds": "60" };
const TIME_LIMIT_MS = 5_000;

let connections = 0;

// Each client is a function (method, path, headers, isChunked) that returns { status, text }.
const clients = {
  "node-http": () => {
    const agent = new http.Agent({ keepAlive: true });
    return (method, path, headers, isChunked) =>
      new Promise((resolve, reject) => {
        const sent = http.request(ENDPOINT + path, { method, headers, agent, timeout: TIME_LIMIT_MS }, (answer) => {
          let text = "";
          answer.on("data", (data) => (text += data));
          answer.on("end", () => resolve({ status: answer.statusCode, text }));
        });
        sent.on("error", reject);
        sent.on("timeout", () => sent.destroy(new Error("no answer")));
        sent.on("socket", () => {
          if (!sent.reusedSocket) connections += 1;
        });
        // Without this, Node knows that there is no body before it sends the head.
        if (isChunked) sent.flushHeaders();
        sent.end();
      });
  },
  undici: () => {
    // Its default of 4 s is for servers that close idle connections early.
    const dispatcher = new Agent({ keepAliveTimeout: 60_000, headersTimeout: TIME_LIMIT_MS });
    dispatcher.on("connect", () => (connections += 1));
    return async (method, path, headers, isChunked) => {
      const body = isChunked ? Readable.from([]) : null;
      const answer = await request(ENDPOINT + path, { method, headers, body, dispatcher });
      return { status: answer.statusCode, text: await answer.body.text() };
    };
  },
};

async function poll(send, path, tokens, ...pauses) {
  const [statuses, errors, headers] = [[], [], {}];
  if (tokens === "tokens") headers["X-aws-ec2-metadata-token"] = (await send("PUT", TOKEN_PATH, TTL)).text;
  for (const milliseconds of ["0", ...pauses]) {
    await pause(Number(milliseconds));
    try {
      statuses.push((await send("GET", path, headers)).status);
    } catch (error) {
      errors.push(String(error));
    }
  }
  return { statuses, errors, connections };
}

async function chunked(send, path) {
  const token = await send("PUT", TOKEN_PATH, TTL, true);
  const role = await send("GET", path, { "X-aws-ec2-metadata-token": token.text });
  return { statuses: [token.status, role.status] };
}

const [client, mode, ...args] = process.argv.slice(2);
console.log(JSON.stringify(await { poll, chunked }[mode](clients[client](), ...args)));
process.exit(0);
