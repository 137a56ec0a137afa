// Checks the status page in a real browser: `node status-page.mjs CHROMIUM URL ROWS`. Prints each fault, and exits 1 if there is one.
import { open } from "./chromium.mjs";

const [program, url, rows] = process.argv.slice(2);
const faults = [];
const expect = (what, found, wanted) => {
  const [a, b] = [found, wanted].map((value) => JSON.stringify(value));
  if (a !== b) faults.push(`${what}: found ${a}, wanted ${b}`);
};

/** Runs in the page: returns texts whose contrast with what is behind them is below 4.5 (WCAG 2.2, 1.4.3). */
const faint = () => {
  const channels = (color) => color.match(/[\d.]+/g).map(Number);
  const luminance = (color) => {
    const [r, g, b] = channels(color).map((value) => value / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (channels(color)[3] !== 0) return color;
    }
    return "rgb(255, 255, 255)";
  };
  const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
  return [...document.body.querySelectorAll("*")].filter(hasText).flatMap((element) => {
    const [one, other] = [luminance(getComputedStyle(element).color), luminance(back(element))].sort((a, b) => b - a);
    const ratio = (one + 0.05) / (other + 0.05);
    return ratio < 4.5 ? [`${element.tagName} ${element.textContent.trim().slice(0, 40)}: ${ratio.toFixed(2)}`] : [];
  });
};

/** Returns the roles and names of the accessibility tree that have these roles, in order. */
async function tree(page, roles) {
  const { nodes } = await page.send("Accessibility.getFullAXTree");
  return nodes.filter((node) => !node.ignored && roles.includes(node.role?.value)).map((node) => `${node.role.value} ${node.name?.value ?? ""}`.trim());
}

const page = await open(program);
try {
  await page.resize(1400, 900);
  await page.navigate(url);
  expect("status", page.events.filter(({ method }) => method === "Network.responseReceived").map(({ params }) => params.response.status), [200]);
  expect("language", await page.evaluate("document.documentElement.lang"), "en");
  expect("scripts", await page.evaluate("document.scripts.length"), 0);
  expect("rows of pods", await page.evaluate(`document.querySelectorAll("section[aria-labelledby=pods] tbody tr").length`), Number(rows));
  // Markup in values would be elements.
  expect("foreign elements", await page.evaluate(`document.querySelectorAll("script, img, iframe, b, i, form, input, object").length`), 0);

  const backs = [];
  for (const scheme of ["light", "dark"]) {
    await page.scheme(scheme);
    backs.push(await page.evaluate("getComputedStyle(document.body).backgroundColor"));
    expect(`faint texts (${scheme})`, await page.evaluate(`(${faint})()`), []);
    for (const width of [320, 360, 768, 1400, 2560]) {
      await page.resize(width, 800);
      const wide = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]");
      if (wide[0] > wide[1]) faults.push(`the page is ${wide[0]} wide at ${width} (${scheme})`);
    }
    await page.resize(360, 800);
    if (Number(rows) > 0) {
      // The table is wider than the page, and scrolls in its own place.
      expect(`scrolls (${scheme})`, await page.evaluate("(() => { const at = document.querySelector('.scroll'); at.scrollLeft = 50; return at.scrollLeft; })()"), 50);
    }
  }
  if (backs[0] === backs[1]) faults.push(`light and dark look the same: ${backs[0]}`);

  const sections = ["Daemon", "Pods", "Rules", "Watch of the pods", "STS errors", "Limits", "Self-test"];
  expect("landmarks", (await tree(page, ["banner", "navigation", "main"])), ["banner", "navigation Sections", "main"]);
  const headings = await tree(page, ["heading"]);
  expect("headings", headings.slice(1), sections.map((name) => `heading ${name}`));
  const regions = await tree(page, ["region"]);
  expect("regions", [...new Set(regions)], sections.map((name) => `region ${name}`));
  if (Number(rows) > 0) {
    const tables = await page.evaluate(`[...document.querySelectorAll("table")].map((table) => [
      table.caption?.textContent.trim().length > 0,
      [...table.tHead.querySelectorAll("th")].every((cell) => cell.scope === "col"),
      [...table.tBodies[0].rows].every((row) => row.cells[0].tagName === "TH" && row.cells[0].scope === "row" && row.cells.length === table.tHead.rows[0].cells.length),
    ])`);
    for (const [at, found] of tables.entries()) expect(`table ${at}: caption, heads of columns, heads of rows`, found, [true, true, true]);
    expect("names of columns", (await tree(page, ["columnheader"])).slice(0, 6).map((name) => name.replace("columnheader ", "")), ["Pod", "Addresses", "Decision", "Role", "Session", "Why"]);
  }

  // By keyboard: the skip link first, which becomes visible, then the navigation, then what scrolls.
  await page.navigate(url);
  await page.resize(360, 800);
  const focused = [];
  for (let step = 0; step < 30; step++) {
    await page.press("Tab");
    const at = await page.evaluate(`(() => { const at = document.activeElement; return at === document.body ? null : [at.className || at.tagName, at.getAttribute("href") ?? at.getAttribute("aria-labelledby")]; })()`);
    if (!at || (step > 0 && at[0] === "skip")) break;
    if (step === 0) expect("the skip link is visible", await page.evaluate("document.activeElement.getBoundingClientRect().left"), 0);
    focused.push(at.join(" "));
  }
  const links = ["daemon", "pods", "rules", "watch", "sts", "limits", "self-test"].map((name) => `A #${name}`);
  expect("order of the focus", focused.slice(0, 9), ["skip #content", ...links, "A /status.json"]);
  expect("what scrolls", focused.slice(9), await page.evaluate(`[...document.querySelectorAll(".scroll")].map((at) => "scroll " + at.getAttribute("aria-labelledby"))`));
  await page.navigate(url);
  await page.press("Tab");
  await page.press("Enter");
  expect("the skip link leads to the content", await page.evaluate("location.hash"), "#content");

  // The JSON opens by its link: a request of the same origin.
  await page.navigate(url);
  await page.send("Runtime.evaluate", { expression: `document.querySelector('a[href="/status.json"]').click()` });
  while ((await page.evaluate("location.pathname + document.readyState")) !== "/status.jsoncomplete");
  expect("the JSON", await page.evaluate("JSON.parse(document.body.innerText).version"), 1);

  const asked = page.events.filter(({ method }) => method === "Network.requestWillBeSent").map(({ params }) => new URL(params.request.url));
  const origin = new URL(url).origin;
  expect("requests elsewhere", asked.filter((to) => to.origin !== origin).map(String), []);
  const refused = page.events.filter(({ method, params }) => method === "Log.entryAdded" && /Content Security Policy/.test(params.entry.text));
  expect("what the policy refused", refused.map(({ params }) => params.entry.text).filter((text) => !text.includes("favicon")), []);
} finally {
  await page.close();
}
for (const fault of faults) console.log(fault);
process.exit(faults.length ? 1 : 0);
