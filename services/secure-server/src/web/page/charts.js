// SVG charts without a library. Every text goes in as a text node, never as markup.

const SVG = "http://www.w3.org/2000/svg";
const MINUTE = 60e3, HOUR = 60 * MINUTE, DAY = 24 * HOUR;
const STEPS = [MINUTE, 5 * MINUTE, 10 * MINUTE, 30 * MINUTE, HOUR, 3 * HOUR, 6 * HOUR, 12 * HOUR, DAY, 2 * DAY, 7 * DAY,
  14 * DAY, 30 * DAY, 91 * DAY, 365 * DAY, 3650 * DAY, 36500 * DAY];

/** An HTML element with attributes and children, which may be texts. */
export function html(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A number with as many digits as fit beside an axis. */
export function short(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-3) return value.toExponential(1).replace("e+", "e");
  if (size >= 1e3) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(3)));
}

/** Round values from 0 to at least `top`. */
function ticks(top, whole) {
  if (!(top > 0)) return [0, 1];
  const power = 10 ** Math.floor(Math.log10(top / 4));
  let step = [1, 2, 5, 10].map((factor) => factor * power).find((candidate) => top / candidate <= 4.001);
  if (whole) step = Math.max(1, Math.round(step));
  const values = [0];
  while (values.at(-1) < top * 0.999) values.push(values.length * step);
  return values;
}

function timeTicks(from, to, room) {
  const step = STEPS.find((candidate) => (to - from) / candidate <= room) || STEPS.at(-1);
  // Local midnight, so that steps of hours and days fall where people expect them.
  const zone = new Date(from).getTimezoneOffset() * MINUTE;
  const first = Math.ceil((from - zone) / step) * step + zone;
  const values = [];
  for (let time = first; time <= to; time += step) values.push(time);
  return { step, values };
}

function timeText(time, step) {
  const date = new Date(time);
  if (step >= 300 * DAY) return String(date.getFullYear());
  if (step >= DAY) return date.toLocaleDateString("en-GB", { day: "numeric", month: "short" });
  const clock = date.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit", hour12: false });
  const midnight = date.getHours() === 0 && date.getMinutes() === 0;
  return midnight ? date.toLocaleDateString("en-GB", { day: "numeric", month: "short" }) : clock;
}

/**
 * A chart over time. `lines` are {points: [[time, value]], kind, area, gap}: a line is broken where two points
 * are further apart than `gap`. `blocks` are {time, width, parts: [[value, kind]]}, stacked. `now` draws a line.
 */
export function timeChart(width, { label, from, to, lines = [], blocks = [], now, unit, whole }) {
  const height = width < 480 ? 170 : 200;
  const tops = blocks.map((block) => block.parts.reduce((sum, [value]) => sum + value, 0));
  for (const line of lines) for (const [, value] of line.points) tops.push(value);
  const values = ticks(Math.max(0, ...tops), whole);
  const labels = values.map(short);
  const box = { left: 14 + 7 * Math.max(...labels.map((text) => text.length)), right: width - 12, top: 22, bottom: height - 24 };
  const x = (time) => box.left + (time - from) / (to - from || 1) * (box.right - box.left);
  const y = (value) => box.bottom - value / values.at(-1) * (box.bottom - box.top);
  const at = ([time, value]) => `${x(time).toFixed(1)} ${y(value).toFixed(1)}`;

  const chart = svg("svg", { class: "chart", role: "img", "aria-label": label, viewBox: `0 0 ${width} ${height}`,
    width, height });
  chart.append(svg("text", { x: 0, y: 11 }, unit));
  values.forEach((value, index) => {
    chart.append(svg("line", { class: "grid", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
    chart.append(svg("text", { x: box.left - 6, y: y(value) + 4, "text-anchor": "end" }, labels[index]));
  });
  const times = timeTicks(from, to, Math.max(2, Math.floor((box.right - box.left) / 80)));
  for (const time of times.values) {
    const anchor = x(time) > box.right - 24 ? "end" : x(time) < box.left + 16 ? "start" : "middle";
    chart.append(svg("text", { x: x(time), y: height - 6, "text-anchor": anchor }, timeText(time, times.step)));
  }
  for (const block of blocks) {
    let sum = 0;
    const wide = Math.max(1.5, x(block.time + block.width) - x(block.time) - 1);
    for (const [value, kind] of block.parts) {
      if (value <= 0) continue;
      const [low, high] = [y(sum), y(sum += value)];
      chart.append(svg("rect", { class: `block ${kind}`, x: x(block.time).toFixed(1), y: high.toFixed(1), width: wide.toFixed(1),
        height: Math.max(1, low - high).toFixed(1) }));
    }
  }
  for (const { points, kind, area, gap } of lines) {
    const runs = [];
    for (const point of points) {
      const run = runs.at(-1);
      if (run && (!gap || point[0] - run.at(-1)[0] <= gap)) run.push(point); else runs.push([point]);
    }
    for (const run of runs) {
      if (run.length === 1) {
        chart.append(svg("circle", { class: `point ${kind}`, cx: x(run[0][0]), cy: y(run[0][1]), r: 3 }));
        continue;
      }
      const path = `M${run.map(at).join("L")}`;
      if (area) chart.append(svg("path", { class: "area", d: `${path}L${x(run.at(-1)[0])} ${y(0)}L${x(run[0][0])} ${y(0)}Z` }));
      chart.append(svg("path", { class: `line ${kind}`, d: path, "data-points": run.length }));
    }
  }
  if (now > from && now < to) {
    chart.append(svg("line", { class: "now", x1: x(now), x2: x(now), y1: box.top, y2: box.bottom }));
    chart.append(svg("text", { x: x(now) + 4, y: box.top + 4 }, "now"));
  }
  return chart;
}

/** A bar of parts, each {fraction, kind} of one. */
export function bar(label, parts) {
  const element = html("div", { class: "bar", role: "img", "aria-label": label });
  for (const { fraction, kind } of parts) {
    const part = html("i", { class: kind });
    part.style.width = `${Math.min(100, Math.max(0, fraction * 100))}%`;
    element.append(part);
  }
  return element;
}
