// The page: who asks is told on the left, and each change of it asks the server again.

import { Refusal, ask, holdsKey, keepKey } from "./api.js";
import { SHOWN, draw, explain, named, summarise, wanted } from "./answer.js";
import { offer } from "./choose.js";
import { $, el, plural } from "./dom.js";
import { emptyContext, listColumns, listContext, readContext } from "./fields.js";
import { watch } from "./live.js";
import { offerReading } from "./reader.js";

const FOUND = 12;
const KNOWN = 50;
const SIMILAR = 5;

// What is asked. It stands in the address's fragment, which is never sent, so that a page can be reloaded.
const asked = { user: "", met: [], leftOut: [], filter: "", context: {} };
const titles = new Map();
let info = null;
let turn = null;
let before = [];

async function start() {
  info = await ask("v1/info");
  tellServed();
  recall();
  $("#users").replaceChildren(...info.example_users.map((user) => el("option", { value: user })));
  for (const item of info.example_items) titles.set(item.item_id, item.title);
  listColumns(info.item_columns);
  listContext(info.query_columns);
  $("#main").inert = false;
  watch();
  await answer();
}

function tellServed() {
  const { counts } = info;
  const told = ["item", "user", "interaction"].map((word) => plural(counts[`${word}s`], word));
  $("#served").textContent = `${info.name}: ${told.join(", ")}`;
}

function recall() {
  const told = new URLSearchParams(location.hash.slice(1));
  asked.user = told.get("user") ?? info.example_users[0] ?? "";
  asked.met = told.getAll("met");
  asked.leftOut = told.getAll("without");
  asked.filter = told.get("filter") ?? "";
}

function remember() {
  const told = new URLSearchParams({ user: asked.user });
  for (const item of asked.met) told.append("met", item);
  for (const item of asked.leftOut) told.append("without", item);
  if (asked.filter) told.set("filter", asked.filter);
  history.replaceState(null, "", `#${told}`);
}

function request() {
  const body = { k: wanted(info) };
  if (asked.user) body.user_id = asked.user;
  if (asked.met.length) body.history = asked.met;
  if (asked.leftOut.length) body.exclude = asked.leftOut;
  if (asked.filter) body.filter = asked.filter;
  if (Object.keys(asked.context).length) body.context = asked.context;
  return body;
}

// The newest question counts: one under way is given up.
async function answer() {
  turn?.abort();
  turn = new AbortController();
  const { signal } = turn;
  remember();
  tellAsked();
  $("#answer").setAttribute("aria-busy", "true");
  try {
    const began = performance.now();
    const given = await ask("v1/recommend", request(), { signal });
    const roundTrip = performance.now() - began;
    for (const item of given.items) titles.set(item.item_id, item.title);
    tellFault(null);
    draw(given, { info, actions: { add, leaveOut, similar } });
    summarise(given, { roundTrip });
    say(given.items);
    tellChips();
    await askWhy(given, signal);
  } catch (fault) {
    if (fault.name !== "AbortError") tellFault(fault);
  } finally {
    if (turn.signal === signal) $("#answer").removeAttribute("aria-busy");
  }
}

// A question of its own, so that the times shown are those of an answer as anybody gets it.
async function askWhy({ request_id: requestId }, signal) {
  try {
    explain((await ask("v1/recommend", { ...request(), k: SHOWN, explain: true }, { signal, requestId })).items);
  } catch (fault) {
    if (!(fault instanceof Refusal)) throw fault;
    $("#fault").textContent = fault.message; // The answer itself stays good.
  }
}

function say(items) {
  const now = items.slice(0, 10).map((item) => item.item_id);
  const fresh = now.filter((item) => !before.includes(item)).length;
  const changed = before.length ? ` ${fresh} of the first ${now.length} are new.` : "";
  $("#said").textContent = items.length ? `First is ${named(items[0])}.${changed}` : "No item is left.";
  before = now;
}

// A refused filter is told where it was typed.
function tellFault(fault) {
  if (fault !== null && !(fault instanceof Refusal)) throw fault;
  const line = fault?.message ?? "";
  $("#answer").classList.toggle("stale", fault !== null);
  const isFilter = /^filter\b/.test(line);
  $("#filter-fault").textContent = isFilter ? line : "";
  $("#filter").setAttribute("aria-invalid", String(isFilter));
  $("#fault").textContent = isFilter || fault?.status === 401 ? "" : line;
}

function tellAsked() {
  $("#user").value = asked.user;
  $("#filter").value = asked.filter;
  tellChips();
}

function tellChips() {
  renew($("#met"), asked.met.toReversed().map((item) => chip(item, "Take back", () => forget(item))));
  renew($("#left-out ul"), asked.leftOut.map((item) => chip(item, "Let in again", () => letIn(item))));
  $("#left-out").hidden = asked.leftOut.length === 0;
}

// Who takes a chip away by the keyboard stays among the chips.
function renew(list, chips) {
  const at = [...list.querySelectorAll("button")].indexOf(document.activeElement);
  list.replaceChildren(...chips);
  if (at >= 0) (list.querySelectorAll("button")[Math.min(at, chips.length - 1)] ?? $("#search")).focus();
}

function chip(item, verb, act) {
  const title = titles.get(item) ?? item;
  const label = `${verb}: ${title}`;
  const button = el("button", { type: "button", "aria-label": label, title: verb, onclick: act }, "\u00d7");
  return el("li", {}, el("span", {}, title), button);
}

function add(item) {
  titles.set(item.item_id, item.title);
  asked.met = [...asked.met.filter((met) => met !== item.item_id), item.item_id];
  answer();
}

function forget(item) {
  asked.met = asked.met.filter((met) => met !== item);
  answer();
}

function leaveOut(item) {
  asked.leftOut = [...asked.leftOut, item.item_id];
  answer();
}

function letIn(item) {
  asked.leftOut = asked.leftOut.filter((out) => out !== item);
  answer();
}

async function similar({ item_id }) {
  try {
    return (await ask("v1/similar", { item_id, k: SIMILAR })).items;
  } catch (fault) {
    tellFault(fault);
    return [];
  }
}

async function find(text) {
  if (text === "") return info.example_items;
  try {
    return (await ask("v1/search", { text, k: FOUND })).items;
  } catch (fault) {
    tellFault(fault);
    return [];
  }
}

function becomes(user) {
  asked.user = user;
  asked.context = {};
  emptyContext();
  tellKnown();
  answer();
}

// What the server knows of the user, beside what was clicked together here.
async function tellKnown() {
  const known = $("#known");
  known.hidden = true;
  if (!asked.user) return;
  const user = asked.user;
  let items = [];
  try {
    ({ items } = await ask("v1/history", { user_id: user, k: KNOWN }));
  } catch (fault) {
    tellFault(fault);
  }
  if (user !== asked.user || items.length === 0) return;
  const count = plural(items.length, "item");
  $("summary", known).textContent = items.length < KNOWN ? `${count} met before` : `The last ${count} met`;
  $("ol", known).replaceChildren(...items.map((item) => el("li", {}, named(item), met(item))));
  known.hidden = false;
}

function met({ timestamp }) {
  const day = new Date(timestamp / 1000);
  return el("time", { datetime: day.toISOString() }, day.toLocaleDateString("en", { dateStyle: "medium" }));
}

function somebodyElse() {
  const others = info.example_users.filter((user) => user !== asked.user);
  becomes(others[Math.floor(Math.random() * others.length)] ?? "");
}

function nobody() {
  Object.assign(asked, { met: [], leftOut: [], filter: "" });
  becomes("");
}

function onSubmit(form, act) {
  $(form).addEventListener("submit", (event) => {
    event.preventDefault();
    act();
  });
}

function run() {
  start().then(tellKnown, tellFault);
}

document.addEventListener("locked", ({ detail }) => {
  if (!$("#door").hidden) return;
  $("#main").inert = true;
  $("#door").hidden = false;
  $("#door-fault").textContent = holdsKey() ? detail : "";
  $("#key").focus();
});
onSubmit("#door", () => {
  keepKey($("#key").value.trim());
  $("#key").value = "";
  $("#door").hidden = true;
  run();
});
onSubmit("#user-form", () => becomes($("#user").value.trim()));
onSubmit("#filter-form", () => {
  asked.filter = $("#filter").value.trim();
  answer();
});
onSubmit("#context-form", () => {
  asked.context = readContext();
  answer();
});
$("#another").addEventListener("click", somebodyElse);
$("#nobody").addEventListener("click", nobody);
addEventListener("hashchange", () => {
  if (!new URLSearchParams(location.hash.slice(1)).has("user")) return;
  recall();
  tellKnown();
  answer();
});
offer({ find, pick: add });
offerReading({ tell: tellFault });
run();
