// A relay that is made up: the page as it is in the sources, and answers that look like those of a busy one.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";

const html = readFileSync(new URL("../../src/admin/page.html", import.meta.url), "utf8");
const hash = tag => `'sha256-${createHash("sha256").update(html.split(`<${tag}>`)[1].split(`</${tag}>`)[0]).digest("base64")}'`;
const policy = `default-src 'none'; script-src ${hash("script")}; style-src ${hash("style")}; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'`;

const row = make => Array.from({ length: 300 }, (_, i) => make(i));
const wave = (i, long, short) => Math.sin(i / 41) * long + Math.sin(i / 5.3) * short + Math.sin(i * 2.7) * short / 2;

function status() {
  const burst = i => Math.max(0, 1 - Math.abs(i - 190) / 22);
  return {
    name: "shop", instance: "relay-1:1:5f0c21ab", version: "0.1.0", capture: "table", table: "outbox.events", sink: "kafka",
    state: "active", state_age_seconds: 93_412, turn_age_seconds: 0.01, live: true, ready: true, why: null,
    lease_held: true, active_instance: "relay-1:1:5f0c21ab", position: "48 210 774:48 210 781:48 210 776".replaceAll(" ", ""),
    acknowledged_age_seconds: 0.4, lag: { events: 12, at_least: false, seconds: 0.02 }, wal_lag_bytes: null,
    events_per_second: 1_512.4, latency: { count: 504, p50_ms: 7, p99_ms: 19 },
    published: { transactions: 45_120_334, events: 139_422_120, bytes: 28_400_112_332 }, last_fault: null,
    postgres: { answers: true, why: null }, kafka: { answers: true, why: null },
    oldest_writer: { seconds: 3.2, who: "pid 4711 (shop)" }, slot: null, sample_age_seconds: 0.3,
    history: {
      every_seconds: 1,
      lag_events: row(i => Math.round(Math.max(0, 14 + wave(i, 4, 7) + burst(i) * 420))),
      lag_seconds: row(() => 0),
      events_per_second: row(i => Math.round(1_480 + wave(i, 130, 60) + burst(i - 6) * 900)),
      latency_p50_ms: row(i => Math.round(7 + wave(i, .6, 1) + burst(i) * 9)),
      latency_p99_ms: row(i => Math.round(19 + wave(i, 2, 3) + burst(i) * 44)),
    },
  };
}

export async function serve() {
  let change = () => {}, silent = false;
  const server = createServer((request, response) => {
    if (silent && request.url === "/status") return response.destroy();
    const now = status();
    change(now);
    const [type, body] = request.url === "/status" ? ["application/json", JSON.stringify(now)] : ["text/html; charset=utf-8", html];
    response.writeHead(200, { "content-type": type, "content-security-policy": policy }).end(body);
  });
  await new Promise(done => server.listen(0, "127.0.0.1", done));
  return {
    url: `http://127.0.0.1:${server.address().port}/`,
    change: to => { change = to; },
    silent: is => { silent = is; },
    close: () => { server.closeAllConnections(); server.close(); },
  };
}
