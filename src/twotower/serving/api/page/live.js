// Live figures from the server's own metrics, asked for while the tab is looked at.

import { read } from "./api.js";
import { $, el, number, svg } from "./dom.js";

const ROUTE = "/v1/recommend";
const EVERY_MS = 2000;
const WINDOW = 15; // Readings that a figure is taken over: half a minute.
const KEPT = 60;

const readings = [];
const drawn = new Map();
let watching = false;

// `[{ name, labels, value }]` of the Prometheus text format.
export function parse(text) {
  return text
    .split("\n")
    .map((line) => /^([\w:]+)(?:\{(.*)\})? (\S+)/.exec(line))
    .filter((found) => found !== null)
    .map(([, name, labels = "", value]) => ({ name, labels: labelsOf(labels), value: valueOf(value) }));
}

function labelsOf(text) {
  const pairs = text.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g);
  const plain = (value) => value.replace(/\\(.)/g, (_, letter) => (letter === "n" ? "\n" : letter));
  return Object.fromEntries([...pairs].map(([, name, value]) => [name, plain(value)]));
}

const valueOf = (text) => ({ "+Inf": Infinity, "-Inf": -Infinity })[text] ?? Number(text);

// Upper bound -> how many observations between two readings are at most that, then the quantile, even within a bucket.
export function quantile(counts, share) {
  const bounds = [...counts].sort(([one], [other]) => one - other);
  const wanted = share * (bounds.at(-1)?.[1] ?? 0);
  if (wanted === 0) return null;
  let [below, counted] = [0, 0];
  for (const [bound, count] of bounds) {
    const part = (wanted - counted) / (count - counted);
    if (count >= wanted) return bound === Infinity ? below : below + part * (bound - below);
    [below, counted] = [bound, count];
  }
  return below;
}

function take(samples) {
  const sum = (name, counts = () => true) =>
    samples.reduce((total, each) => total + (each.name === name && counts(each.labels) ? each.value : 0), 0);
  const buckets = new Map();
  for (const { name, labels, value } of samples) {
    if (name !== "twotower_request_seconds_bucket" || labels.route !== ROUTE) continue;
    const bound = valueOf(labels.le);
    buckets.set(bound, (buckets.get(bound) ?? 0) + value);
  }
  return {
    at: performance.now() / 1000,
    answers: sum("twotower_recommendations_total"),
    fallbacks: sum("twotower_recommendations_total", ({ fallback }) => fallback !== "none"),
    shed: sum("twotower_shed_total"),
    memory: sum("process_resident_memory_bytes"),
    buckets,
  };
}

// The figures that a reader looks for, over the window: name -> [value or null, how it is told].
function figures() {
  const now = readings.at(-1);
  const then = readings.at(-1 - WINDOW) ?? readings[0];
  const seconds = now.at - then.at;
  const answers = now.answers - then.answers;
  const fallbacks = answers > 0 ? (100 * (now.fallbacks - then.fallbacks)) / answers : null;
  const counts = new Map([...now.buckets].map(([bound, count]) => [bound, count - (then.buckets.get(bound) ?? 0)]));
  const ms = (share) => {
    const found = quantile(counts, share);
    return found === null ? null : found * 1000;
  };
  return {
    "answers/s": [seconds > 0 ? answers / seconds : null, (value) => number(value, 1)],
    p50: [ms(0.5), (value) => `${number(value, 1)} ms`],
    p99: [ms(0.99), (value) => `${number(value, 1)} ms`],
    fallbacks: [fallbacks, (value) => `${number(value, 0)} %`],
    "sent away": [now.shed - then.shed, (value) => number(value, 0)],
    memory: [now.memory || null, (value) => `${number(value / 1e6, 0)} MB`],
  };
}

function show() {
  for (const [name, [value, told]] of Object.entries(figures())) {
    if (!drawn.has(name)) drawn.set(name, figure(name));
    const { text, line, values } = drawn.get(name);
    text.textContent = value === null ? "\u2013" : told(value);
    values.push(value ?? 0);
    if (values.length > KEPT) values.shift();
    const high = Math.max(...values, 1e-9);
    const start = KEPT - values.length;
    line.setAttribute("points", values.map((each, at) => `${start + at},${10 - (9 * each) / high}`).join(" "));
  }
}

// A name, its value, and a line of the last two minutes.
function figure(name) {
  const [text, line] = [el("b"), svg("polyline")];
  const frame = { viewBox: `0 0 ${KEPT - 1} 10`, preserveAspectRatio: "none", "aria-hidden": "true" };
  $("#live dl").append(el("div", {}, el("dt", {}, name), el("dd", {}, text, svg("svg", frame, line))));
  return { text, line, values: [] };
}

async function look() {
  if (document.hidden) return;
  try {
    const now = take(parse(await read("metrics")));
    if (now.answers < readings.at(-1)?.answers) readings.length = 0; // Another process counts from nought.
    readings.push(now);
    if (readings.length > KEPT) readings.shift();
    $("#live").hidden = false;
    show();
  } catch {
    $("#live").hidden = true; // Without the right to read them there are none; the rest of the page does without.
  }
}

export function watch() {
  if (watching) return;
  watching = true;
  look();
  setInterval(look, EVERY_MS);
  document.addEventListener("visibilitychange", look);
}
