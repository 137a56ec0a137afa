#!/usr/bin/env node
// Takes pictures of the status page of a running daemon, light and dark, with a headless Chromium:
//
//     scripts/status-picture http://127.0.0.1:9543/status docs/images/status [WIDTH]
//
// writes docs/images/status-light.png and docs/images/status-dark.png. WIDTH is 1400 by default, and added to the names if it is given.
import { writeFileSync } from "node:fs";
import { open } from "../tests/browser/chromium.mjs";

const [url, target, width] = process.argv.slice(2);
const page = await open(process.env.CHROMIUM ?? "chromium");
try {
  await page.resize(Number(width ?? 1400), 900);
  await page.navigate(url);
  for (const scheme of ["light", "dark"]) {
    await page.scheme(scheme);
    const file = `${target}-${scheme}${width ? `-${width}` : ""}.png`;
    writeFileSync(file, await page.picture(await page.evaluate("document.documentElement.scrollHeight")));
    console.log(`wrote ${file}`);
  }
} finally {
  await page.close();
}
