// Fetches the overview every few seconds and draws it. Names come from other people: they only ever become text.

import { bar, html, short, timeChart } from "./charts.js";

const INTERVAL_MS = 3000;
const STALE_MS = 12000;
const MINUTE = 60e3, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const FEW = 8;

const find = (id) => document.getElementById(id);
let overview = null, received = 0, updates = 0, problem = "";
/** Lists that the reader has opened: drawing anew must not close them. */
const opened = new Set();

function about(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  if (seconds < 90) return `${seconds} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  if (seconds < 63072000) return `${Math.round(seconds / 86400)} days`;
  return `${Math.round(seconds / 31536000)} years`;
}

const count = (number) => number.toLocaleString("en");
const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
const day = (ms) => new Date(ms).toLocaleDateString("en-GB", { day: "numeric", month: "short", year: "numeric" });
const moment = (ms) => new Date(ms).toLocaleString("en-GB", { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", hour12: false });
const milliseconds = (value) => value === null ? "–" : value < 10 ? `${value.toFixed(1)} ms` : value < 10000 ? `${count(Math.round(value))} ms` : `${(value / 1000).toFixed(0)} s`;
/** Per cent, rounded so that neither "all" nor "nothing" is said of what is not. */
function percent(fraction) {
  if (fraction <= 0) return "0 %";
  if (fraction >= 1) return "100 %";
  const digits = fraction < 0.1 || fraction > 0.99 ? 1 : 0;
  const [low, high] = digits ? [0.1, 99.9] : [1, 99];
  return `${Math.min(high, Math.max(low, fraction * 100)).toFixed(digits)} %`;
}

function tile(title, value, note, kind) {
  return html("div", { class: "tile" }, html("h3", {}, title), html("b", { class: kind || "" }, value), html("span", { class: "quiet" }, note));
}

function budgetKind(budget) {
  if (budget.forecast.exhausted) return "critical";
  const soon = budget.forecast.exhausted_at_ms !== null && budget.forecast.exhausted_at_ms - overview.server.now_ms < 7 * DAY;
  return budget.left_fraction < 0.1 || soon ? "warning" : "good";
}

function drawHead() {
  const { server, severity, alerts } = overview;
  find("title").textContent = `Concilium server ${server.index}`;
  const status = find("status");
  const kinds = ["critical", "warning", "notice"].map((kind) => [kind, alerts.filter((alert) => alert.severity === kind).length]);
  const told = kinds.filter(([, number]) => number > 0).map(([kind, number]) => kind === "critical" ? `${number} critical` : plural(number, kind));
  const text = told.length ? told.join(", ") : "all is well";
  if (status.textContent !== text) status.textContent = text;
  status.className = `pill ${severity || "good"}`;
  document.title = `${severity === "critical" ? "⚠ " : ""}${text} · server ${server.index} · Concilium`;
  find("about").textContent = `version ${server.version} · up for ${about(server.uptime_ms)}`;
}

function drawAlerts() {
  const { alerts, server } = overview;
  const items = alerts.map((alert) => html("li", { class: alert.severity },
    html("span", { class: `kind ${alert.severity}` }, alert.severity),
    html("strong", {}, alert.what + (alert.since_ms ? ` (since ${moment(alert.since_ms)}, ${about(server.now_ms - alert.since_ms)})` : "")),
    html("span", { class: "quiet" }, alert.remedy)));
  find("alerts").replaceChildren(...(items.length ? items : [html("li", { class: "good" }, html("span", {}, "Nothing needs attention."))]));
}

function drawServers() {
  const { server, peers, lane, certificate, ledger } = overview;
  const peer = (other) => {
    const kind = other.connected ? "good" : "critical";
    const element = html("div", { class: "tile", "data-peer": other.server, "data-connected": other.connected }, html("h3", {}, `Server ${other.server}`));
    element.append(html("b", { class: kind }, html("span", { class: `dot ${other.connected ? "" : "off"}` }), other.connected ? "connected" : "not connected"),
      html("span", { class: "quiet" }, `for ${about(server.now_ms - other.since_ms)} · ${other.address}`));
    return element;
  };
  const days = Math.floor((certificate.expires_ms - server.now_ms) / DAY);
  const expiry = days < 0 ? ["expired", "critical"] : [plural(days, "day"), days < 30 ? "warning" : "good"];
  const waiting = lane.wait ? `, waits for ${lane.wait.peer === null ? "itself" : `server ${lane.wait.peer}`}` : "";
  const reading = ledger.entries_read < ledger.entries ? `reading its log: ${percent(ledger.entries_read / ledger.entries)}` : `head ${ledger.head.slice(0, 12)}`;
  find("servers").replaceChildren(...peers.map(peer),
    tile("Certificate valid for", expiry[0], `until ${day(certificate.expires_ms)} · authority until ${day(certificate.authority_expires_ms)}`, expiry[1]),
    tile("Batches", count(lane.batches), `${count(lane.failed_batches)} failures since the start${waiting}`),
    tile("Waiting requests", count(server.queued_requests), `of at most ${count(server.most_queued_requests)}`),
    tile("Ledger entries", count(ledger.entries), reading));
}

function selected() {
  const wanted = decodeURIComponent(location.hash.replace(/^#task=/, ""));
  return overview.tasks.find((task) => task.name === wanted) || overview.tasks[0];
}

function drawTasks(current) {
  const list = find("task-list");
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.task : null;
  list.replaceChildren(...overview.tasks.map((task) => {
    const { budget } = task;
    const kind = budgetKind(budget);
    const link = html("a", { href: `#task=${encodeURIComponent(task.name)}`, "data-task": task.name, "aria-current": String(task === current) },
      html("div", { class: "row" }, html("h3", { title: task.name }, task.name), html("span", { class: kind }, `${percent(budget.left_fraction)} left`)),
      bar(`${percent(budget.left_fraction)} of the budget is left`, [{ fraction: budget.left_fraction, kind }]),
      html("span", { class: "quiet" }, budget.forecast.text));
    return link;
  }));
  if (focused !== null) [...list.children].find((link) => link.dataset.task === focused)?.focus();
}

function figure(id, title, value, keys, content) {
  const caption = html("figcaption", {}, html("span", {}, title), html("span", { class: "value" }, value));
  for (const [kind, text] of keys) caption.append(html("span", { class: `key ${kind}` }, text));
  find(id).replaceChildren(caption, content);
}

const widthOf = (id) => Math.max(240, Math.floor(find(id).clientWidth - 30));
const empty = (text) => html("p", { class: "empty" }, text);

function drawBurnDown(budget) {
  const now = overview.server.now_ms;
  const cap = Number(budget.cap_rho);
  const keys = [["a", "left"]];
  const value = `${budget.left_rho} of ${budget.cap_rho} rho left`;
  if (budget.curve.length < 2) return figure("burn-down", "Budget left", value, [], empty("No data yet: nothing was charged in this epoch."));
  const points = budget.curve.map(([time, spent]) => [time, Math.max(0, cap - spent)]);
  const from = points[0][0];
  const lines = [{ points, kind: "a", area: true }];
  // The past takes at least half of the chart: a forecast for years ahead would hide it.
  const span = Math.max(now - from, MINUTE);
  let to = Math.max(now, from + MINUTE);
  const gone = budget.forecast.exhausted_at_ms;
  if (gone !== null && !budget.forecast.exhausted) {
    to = Math.min(gone, now + span);
    const left = points.at(-1)[1];
    lines.push({ points: [[now, left], [to, left * Math.max(0, gone - to) / Math.max(1, gone - now)]], kind: "forecast" });
    keys.push(["c", "forecast"]);
  }
  const label = `Budget left over time: ${value}; ${budget.forecast.text}`;
  figure("burn-down", "Budget left", `${value} · ${budget.forecast.text}`, keys, timeChart(widthOf("burn-down"), { label, from, to, lines, now, unit: "rho" }));
}

function drawTraffic(traffic) {
  const minutes = Number(document.querySelector("input[name=window]:checked").value);
  const now = overview.server.now_ms;
  const to = (Math.floor(now / MINUTE) + 1) * MINUTE, from = to - minutes * MINUTE;
  const shown = traffic.minutes.filter((minute) => minute.start_ms >= from);
  const since = overview.server.history_since_ms;
  const note = since > from ? `since the start ${about(now - since)} ago` : `last ${minutes / 60} h`;
  if (!shown.length) {
    const text = `No data yet: no request ${since > from ? note : `in the ${note}`}.`;
    figure("requests", "Queries per minute", "", [], empty(text));
    return figure("latency", "Latency", "", [], empty(text));
  }
  const total = shown.reduce((sum, minute) => sum + minute.answered, 0), refused = shown.reduce((sum, minute) => sum + minute.refused, 0);
  const reasons = traffic.refusals.map(([reason, number]) => `${number} ${reason}`).join(", ");
  const value = `${count(total)} answered, ${count(refused)} refused, ${note}`;
  const chart = timeChart(widthOf("requests"), { label: `Queries per minute: ${value}`, from, to, unit: "queries", whole: true,
    blocks: shown.map((minute) => ({ time: minute.start_ms, width: MINUTE, parts: [[minute.answered, "a"], [minute.refused, "c"]] })) });
  figure("requests", "Queries per minute", value, [["a", "answered"], ["c", "refused"]],
    html("div", {}, chart, reasons ? html("p", { class: "quiet" }, `Refused since the start: ${reasons}`) : null));
  const answered = shown.filter((minute) => minute.p50_ms !== null);
  if (!answered.length) return figure("latency", "Latency", "", [], empty("No data yet: no request was answered."));
  const last = answered.at(-1);
  const middle = (minute) => minute.start_ms + MINUTE / 2;
  const latency = `latest minute: p50 ${milliseconds(last.p50_ms)}, p95 ${milliseconds(last.p95_ms)}`;
  figure("latency", "Latency", latency, [["a", "p50"], ["b", "p95"]], timeChart(widthOf("latency"), { label: `Latency of answers, ${latency}`, from, to, unit: "ms",
    lines: [["b", "p95_ms"], ["a", "p50_ms"]].map(([kind, key]) => ({ kind, gap: 1.5 * MINUTE, points: answered.map((minute) => [middle(minute), minute[key]]) })) }));
}

/** A list of which the first few are shown and the rest can be opened. */
function list(id, items, rest) {
  const box = html("div", {}, html("ul", { class: "bars" }, ...items.slice(0, FEW)));
  if (items.length > FEW) {
    const more = html("details", {}, html("summary", {}, `${count(items.length - FEW + rest)} more`), html("ul", { class: "bars" }, ...items.slice(FEW)));
    more.open = opened.has(id);
    more.addEventListener("toggle", () => more.open ? opened.add(id) : opened.delete(id));
    if (rest) more.append(html("p", { class: "quiet" }, `${count(rest)} are not sent to this page; concilium-operator shows them.`));
    box.append(more);
  }
  return box;
}

const row = (name, value, ...rest) => html("li", {}, html("div", { class: "row" }, html("span", { title: name }, name), html("span", {}, value)), ...rest);

function drawModels(models) {
  const all = models.ready + models.staged + models.rejected + models.retired;
  const value = `${plural(all, "model")} of ${plural(models.owners.length + models.owners_left_out, "owner")}`;
  if (!all) return figure("models", "Models", "", [], empty("No data yet: no owner has shared a model."));
  const told = ["ready", "staged", "rejected", "retired"].filter((state) => models[state]).map((state) => `${count(models[state])} ${state}`).join(", ");
  const kinds = [["ready", "good", "d"], ["staged", "warning", "e"], ["rejected", "critical", "c"]];
  // Those that need attention first, then those with the most models.
  const owners = [...models.owners].sort((a, b) => b.rejected - a.rejected || b.staged - a.staged || b.ready - a.ready || a.owner.localeCompare(b.owner));
  const most = Math.max(...owners.map((owner) => owner.ready + owner.staged + owner.rejected));
  const items = owners.map((owner) => {
    const parts = kinds.filter(([state]) => owner[state]);
    const text = ["ready", "staged", "rejected", "retired"].filter((state) => owner[state]).map((state) => `${owner[state]} ${state}`).join(", ");
    const bound = owner.bound ? html("span", { class: "quiet" }, owner.bound) : null;
    return row(owner.owner, text, bar(text, parts.map(([state, kind]) => ({ fraction: owner[state] / most, kind }))), bound, owner.reason ? html("span", { class: "critical" }, owner.reason) : null);
  });
  const content = html("div", {}, bar(told, kinds.map(([state, kind]) => ({ fraction: models[state] / all, kind }))), html("p", { class: "quiet" }, told), list("owners", items, models.owners_left_out));
  figure("models", "Models", value, kinds.map(([state, , key]) => [key, state]), content);
}

function drawClients(budget) {
  const whose = budget.cap_per_client_rho ? `each may spend ${budget.cap_per_client_rho} rho` : "part of the task's budget; clients have no caps of their own";
  if (!budget.clients.length) return figure("clients", "Spent by client", "", [], empty("No data yet: no client was charged."));
  const items = budget.clients.map((client) => {
    const kind = client.exhausted ? "critical" : client.spent_fraction > 0.9 ? "warning" : "accent";
    const text = `${percent(client.spent_fraction)} · ${client.spent_rho} rho${client.exhausted ? " · used up" : ""}`;
    return row(client.client, text, bar(text, [{ fraction: client.spent_fraction, kind }]));
  });
  figure("clients", "Spent by client", whose, [], list("clients", items, budget.clients_left_out));
}

/** What is left of the spending window: no tile without one. */
function windowTile(window) {
  if (!window) return [];
  const full = window.next_row_at_ms !== null;
  const next = full ? `next row in ${about(window.next_row_at_ms - overview.server.now_ms)}, ${moment(window.next_row_at_ms)}` : "a row fits now";
  return [tile(`Window of ${about(window.length_ms)}`, `${percent(window.left_fraction)} left`, `${window.spent_rho} of ${window.cap_rho} rho spent · ${next}`, full ? "warning" : "good")];
}

function drawDetail(task) {
  const { budget, models, traffic } = task;
  find("detail-title").textContent = `Task ${task.name}`;
  find("detail-about").textContent = `epoch ${task.epoch} · releases ${task.release} · ${task.mechanism} · a row costs ${budget.row_rho} rho${task.declaration ? ` · ${task.declaration}` : ""}`;
  const kind = budgetKind(budget);
  const gone = budget.forecast.exhausted ? "gone" : budget.forecast.exhausted_at_ms === null ? "no forecast" : about(budget.forecast.exhausted_at_ms - overview.server.now_ms);
  find("detail-tiles").replaceChildren(
    tile("Budget left", percent(budget.left_fraction), `${plural(budget.rows_left, "row")} · spent ${budget.spent_rho} rho`, kind),
    tile("Gone in", gone, budget.forecast.text, kind),
    ...windowTile(budget.window),
    tile("Epsilon spent", short(budget.spent_epsilon), `of ${short(budget.cap_epsilon)} at delta ${short(budget.delta)}`),
    tile("Rows charged", count(budget.rows), `in ${plural(budget.requests, "request")}`),
    tile("Latency, 1 h", milliseconds(traffic.hour.p50_ms), `p95 ${milliseconds(traffic.hour.p95_ms)}`),
    tile("Models ready", count(models.ready), `noise ready for ${count(task.noise_rows_ready)} of ${plural(task.noise_rows_wanted, "row")}`));
  drawBurnDown(budget);
  drawTraffic(traffic);
  drawModels(models);
  drawClients(budget);
}

function draw() {
  if (!overview) return;
  const current = selected();
  drawHead();
  drawAlerts();
  drawServers();
  drawTasks(current);
  find("detail").hidden = !current;
  if (current) drawDetail(current);
}

function drawAge() {
  const old = Date.now() - received > STALE_MS;
  const state = overview === null ? (problem ? "stale" : "loading") : old ? "stale" : "ready";
  const stale = find("stale");
  stale.hidden = state !== "stale";
  if (state === "stale") {
    const what = overview === null ? "There is nothing to show yet" : `What you see is from ${new Date(received).toLocaleTimeString("en-GB", { hour12: false })}`;
    const text = `The server does not answer (${problem || "no reply"}). ${what}.`;
    if (stale.textContent !== text) stale.textContent = text;
  }
  Object.assign(document.documentElement.dataset, { state, updates });
}

async function update() {
  try {
    const answer = await fetch("/api/overview", { cache: "no-store", signal: AbortSignal.timeout(STALE_MS) });
    if (!answer.ok) throw new Error((await answer.text()).trim() || `status ${answer.status}`);
    overview = await answer.json();
    [received, problem] = [Date.now(), ""];
    updates += 1;
    draw();
  } catch (error) {
    problem = error.message;
  }
  drawAge();
  setTimeout(update, INTERVAL_MS);
}

addEventListener("hashchange", draw);
addEventListener("resize", draw);
find("window").addEventListener("change", draw);
setInterval(drawAge, 1000);
update();
