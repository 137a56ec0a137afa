// Drives a headless Chromium over a pipe (Chrome DevTools Protocol), with nothing but Node.js. The browser reaches only loopback: names are
// not resolved, and everything else is sent to a closed port.
import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

const ARGUMENTS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--disable-extensions",
  "--disable-dev-shm-usage",
  "--hide-scrollbars",
  "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
  "--proxy-server=http://127.0.0.1:9",
  "--remote-debugging-pipe",
];

/** Starts the browser, and returns one empty page of it. */
export async function open(program) {
  const profile = mkdtempSync(join(tmpdir(), "rolegate-browser-"));
  const child = spawn(program, [...ARGUMENTS, `--user-data-dir=${profile}`, "about:blank"], {
    stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"],
  });
  const waiting = new Map();
  const events = [];
  let [number, received] = [0, ""];
  const ended = new Promise((_, reject) => child.once("exit", (code) => reject(new Error(`Chromium ended (${code})`))));
  ended.catch(() => {});
  child.stdio[4].setEncoding("utf8").on("data", (text) => {
    received += text;
    for (let end; (end = received.indexOf("\0")) >= 0; received = received.slice(end + 1)) {
      const message = JSON.parse(received.slice(0, end));
      if (message.id === undefined) events.push(message);
      waiting.get(message.id)?.(message);
    }
  });
  const send = (method, params = {}, sessionId = undefined) => {
    const id = ++number;
    const answer = new Promise((resolve, reject) => {
      waiting.set(id, ({ result, error }) => (error ? reject(new Error(`${method}: ${error.message}`)) : resolve(result)));
    });
    child.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + "\0");
    return Promise.race([answer, ended]);
  };
  const { targetId } = await send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await send("Target.attachToTarget", { targetId, flatten: true });
  const page = {
    events,
    send: (method, params) => send(method, params, sessionId),
    /** Evaluates an expression in the page, beside its own policy. */
    async evaluate(expression) {
      const { result, exceptionDetails } = await page.send("Runtime.evaluate", { expression, returnByValue: true, awaitPromise: true });
      if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
      return result.value;
    },
    async resize(width, height) {
      await page.send("Emulation.setDeviceMetricsOverride", { width, height, deviceScaleFactor: 1, mobile: false });
    },
    async scheme(value) {
      await page.send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value }] });
    },
    async navigate(url) {
      const loads = () => events.filter(({ method }) => method === "Page.loadEventFired").length;
      const before = loads();
      const { errorText } = await page.send("Page.navigate", { url });
      if (errorText) throw new Error(`${url}: ${errorText}`);
      while (loads() === before) await page.send("Runtime.evaluate", { expression: "0" });
    },
    async press(key) {
      for (const type of ["rawKeyDown", "keyUp"]) {
        await page.send("Input.dispatchKeyEvent", { type, key, code: key, windowsVirtualKeyCode: key === "Tab" ? 9 : 13 });
      }
    },
    async picture(height = undefined) {
      if (height) await page.resize(await page.evaluate("innerWidth"), height);
      const { data } = await page.send("Page.captureScreenshot", { format: "png" });
      return Buffer.from(data, "base64");
    },
    async close() {
      await send("Browser.close").catch(() => {});
      if (child.exitCode === null) await new Promise((resolve) => child.once("exit", resolve));
      rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
    },
  };
  for (const domain of ["Page", "Runtime", "Network", "Log", "Accessibility"]) await page.send(`${domain}.enable`);
  return page;
}
