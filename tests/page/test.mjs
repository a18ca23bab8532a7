// Looks at the status page with a browser: plots are drawn, light and dark, on a phone, without a word to anybody else, and a relay
// that does not answer is seen. See README.md.
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { chromium } from "playwright-core";
import { serve } from "./relay.mjs";

const PICTURE = new URL("../../docs/status-page.png", import.meta.url).pathname;
const given = process.argv[2];
const executablePath = process.env.CHROMIUM ?? ["/usr/bin/chromium", "/usr/bin/chromium-headless-shell"].find(existsSync);
if (!executablePath) {
  console.error("no Chromium: install one (Debian: chromium-headless-shell) and name it in CHROMIUM");
  process.exit(2);
}
const relay = given ? null : await serve();
const url = given ?? relay.url;
const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
let passed = 0;

async function test(name, options, body) {
  const context = await browser.newContext({ viewport: { width: 1100, height: 780 }, ...options });
  const page = await context.newPage();
  const strangers = [], complaints = [];
  page.on("request", request => { if (!request.url().startsWith(url) && !request.url().startsWith("data:")) strangers.push(request.url()); });
  page.on("console", message => { if (message.type() === "error") complaints.push(message.text()); });
  page.on("pageerror", error => complaints.push(String(error)));
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("state").textContent !== "…");
  await body(page, complaints);
  assert.deepEqual(strangers, [], `${name}: asks elsewhere`);
  assert.deepEqual(complaints, [], `${name}: complains`);
  await context.close();
  passed += 1;
  console.log("ok", name);
}

const ground = page => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
const wide = page => page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
const lines = page => page.$$eval("section:not([hidden]) path.line", paths => paths.map(path => (path.getAttribute("d") ?? "").length));

try {
  let light;
  await test("plots are drawn in light colours", { colorScheme: "light" }, async page => {
    await page.waitForFunction(() => document.querySelector("#plot-lag path.line")?.getAttribute("d")?.includes("L"));
    const drawn = await lines(page);
    assert.equal(drawn.length, 4);
    assert.ok(drawn[0] > 10 && drawn[1] > 10, `lag and throughput are drawn: ${drawn}`);
    if (!given) assert.ok(drawn.every(length => length > 100), `all are drawn: ${drawn}`);
    light = await ground(page);
    for (const fact of ["Active instance", "Position", "Oldest open writer"]) {
      assert.ok((await page.textContent("#facts")).includes(fact), fact);
    }
    assert.equal(await page.isVisible("#silent"), false);
    if (!given) await page.screenshot({ path: PICTURE });
  });
  await test("dark where that is preferred", { colorScheme: "dark" }, async page => {
    assert.notEqual(await ground(page), light);
  });
  for (const [width, height] of [[360, 740], [412, 900]]) {
    await test(`fits a phone of ${width} pixels`, { viewport: { width, height }, isMobile: true, hasTouch: true }, async page => {
      assert.equal(await wide(page), 0, "nothing sticks out");
      const below = await page.$$eval("section:not([hidden])", all => all.map(one => one.getBoundingClientRect().left));
      assert.equal(new Set(below).size, 1, "one below the other");
    });
  }
  await test("the value under the pointer is told", {}, async page => {
    const plot = await page.$("#plot-lag");
    await plot.hover();
    assert.match(await page.textContent("section h2 span"), /ago$/);
  });
  if (relay) {
    await test("names with markup stay text", {}, async page => {
      relay.change(status => { status.last_fault = { text: "<img src=x onerror=alert(1)>", age_seconds: 1 }; });
      await page.waitForFunction(() => document.getElementById("facts").textContent.includes("<img"));
      assert.equal(await page.$("#facts img"), null);
      relay.change(() => {});
    });
    await test("another process is told to be the active one", {}, async page => {
      relay.change(status => { status.state = "standby"; status.active_instance = "other:7:1"; });
      await page.waitForFunction(() => document.getElementById("state").textContent === "standing by");
      assert.ok((await page.textContent("#facts")).includes("other:7:1"));
      relay.change(() => {});
    });
    await test("parked transactions are plotted where there are any", {}, async page => {
      assert.equal(await page.isVisible("#plot-parked"), false);
      relay.change(status => {
        status.parked = { transactions: 1, held_transactions: 4, events: 9, seconds: 95 };
        status.history.parked_transactions = Array(300).fill(0).fill(1, 205);
      });
      await page.waitForSelector("#plot-parked");
      assert.ok((await lines(page))[4] > 100);
      assert.ok((await page.textContent("#plots")).includes("4 more wait behind"));
      relay.change(() => {});
    });
    await test("what could not be told is no silence", {}, async page => {
      relay.change(status => {
        status.parked = null;
        status.history.parked_transactions = Array(300).fill(1);
        status.slot = { active: true, wal_status: "unreserved", safe_wal_bytes: -5_242_880, retained_wal_bytes: 0, inactive_seconds: null };
      });
      await page.waitForFunction(() => document.getElementById("plots").textContent.includes("not known"));
      await page.waitForFunction(() => document.getElementById("facts").textContent.includes("-5.0 MiB"));
      assert.equal(await page.isVisible("#silent"), false);
      relay.change(() => {});
    });
    await test("a relay that does not answer is seen", {}, async (page, complaints) => {
      relay.silent(true);
      await page.waitForSelector("#silent:not([hidden])");
      assert.match(await page.textContent("#silent"), /does not answer/);
      assert.equal(await page.textContent("#state"), "no answer");
      relay.silent(false);
      await page.waitForSelector("#silent", { state: "hidden" });
      complaints.length = 0;
    });
  }
  console.log(`${passed} passed`);
} finally {
  await browser.close();
  relay?.close();
}
