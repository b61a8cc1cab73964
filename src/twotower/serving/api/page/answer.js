// One answer, drawn as two orders of the same items: retrieval's on the left, ranking's on the right.

import { $, el, number, plural, whole } from "./dom.js";
import { focus, glide, join, lists, places, refocus, stages } from "./moves.js";

export const SHOWN = 10;
const WANTED = 100;
const SOURCES = {
  index: "brought by the index",
  new: "put in since the bundle was made",
  popular: "popular",
  pinned: "pinned by a rule",
  given: "named by the caller",
};
const RANKED = {
  null: "The candidates again, by the ranking head: the answer.",
  popular: "The most popular items: neither stage ran.",
  retrieval: "The time was over before ranking: this is the order of retrieval.",
};
const SAME = "The ranking head keeps the order of retrieval: both lists are the same.";
const PARTS = ["queue", "query", "retrieval", "ranking", "explain"];
const BESIDE = 0.25;
const LEAST = 0.1;

const notes = { retrieval: $(".retrieval .stage-note"), ranking: $(".ranking .stage-note") };
let opened = null;
const tellers = new Map(); // Item -> what writes its row anew.

// How many items to ask for: more than are shown, as one that is last in the answer can be first in retrieval.
export const wanted = (info) => Math.min(WANTED, info.limits.k, info.candidates);

// `actions` has `add(item)`, `leaveOut(item)` and `similar(item)`, which the page gives.
export function draw(answer, { info, actions }) {
  const before = places();
  const focused = focus();
  const both = columns(answer);
  const isNobody = answer.fallback === "popular";
  stages.hidden = false;
  stages.classList.toggle("one", isNobody);
  stages.style.setProperty("--rows", Math.max(both.retrieved.length, both.ranked.length, 1));
  tell(answer, { info, both });
  $(".ranking h3").textContent = isNobody ? "Popular" : "Ranking";
  tellers.clear();
  fill(lists.retrieval, isNobody ? [] : both.retrieved, (item) => retrievedRow(item, actions), "retrieval_score");
  fill(lists.ranking, both.ranked, (item) => rankedRow(item, actions), "score");
  refocus(focused);
  join();
  glide(before);
}

function tell({ items, fallback }, { info, both }) {
  const count = Math.max(items.length, items.length < wanted(info) ? 0 : info.candidates);
  const hidden = Math.min(SHOWN, count) - both.retrieved.filter((item) => !item.isBelow).length;
  const gap = hidden > 0 ? ` Ranking put ${hidden} of the first beyond ${whole(items.length)}, unshown.` : "";
  const all = plural(info.counts.items, "item");
  notes.retrieval.textContent = `${plural(count, "candidate")} out of ${all}, by the two towers.${gap}`;
  const isSame = fallback === null && both.ranked.every((item) => item.rank === item.retrieval_rank);
  notes.ranking.textContent = items.length === 0 ? "No item is left." : isSame ? SAME : RANKED[fallback];
}

// Both lists show the same items, the first of either stage; those that only the other has first come below a rule.
function columns({ items }) {
  const first = items.filter((item) => item.rank <= SHOWN || (item.retrieval_rank ?? Infinity) <= SHOWN);
  const ranked = first.map((item) => ({ ...item, isBelow: item.rank > SHOWN, place: item.rank }));
  const retrieved = first
    .filter((item) => item.retrieval_rank !== null)
    .map((item) => ({ ...item, isBelow: item.retrieval_rank > SHOWN, place: item.retrieval_rank }))
    .sort((one, other) => one.place - other.place);
  return { ranked, retrieved };
}

function fill(list, items, row, score) {
  const scores = items.map((item) => item[score]);
  const [low, high] = [Math.min(...scores), Math.max(...scores)];
  const most = Math.max(Math.abs(low), Math.abs(high));
  // Bars begin at zero; where a score lies below it, so far below the least one that this has a bar too.
  const base = low > 0 ? 0 : low - LEAST * (high - low);
  const digits = most < 1 ? 3 : most < 100 ? 2 : 0;
  const rows = items.map((item) => {
    const made = row({ ...item, digits });
    made.dataset.item = item.item_id;
    made.style.setProperty("--share", high > base ? (item[score] - base) / (high - base) : 1);
    return made;
  });
  rows.find((_, place) => items[place].isBelow)?.classList.add("first-below");
  list.replaceChildren(...rows);
}

const rowOf = (item, ...parts) => el("li", { class: item.isBelow ? "row below" : "row" }, ...parts);
const retrievedRow = (item, actions) => rowOf(item, head(item, item.retrieval_score, actions));

function rankedRow(item, actions) {
  const panel = el("div", { class: "panel", hidden: true });
  const why = el("button", { type: "button", class: "why", "aria-expanded": "false" }, "Why");
  why.append(el("span", { class: "hidden" }, ` ${named(item)}`));
  const because = el("p", { class: "because" });
  const row = rowOf(item, head(item, item.score, actions, why), because, panel);
  const show = () => {
    const isOpen = opened === item.item_id;
    why.setAttribute("aria-expanded", String(isOpen));
    panel.hidden = !isOpen;
    panel.replaceChildren(...(isOpen ? details(item, actions) : []));
  };
  why.addEventListener("click", () => {
    opened = panel.hidden ? item.item_id : null;
    for (const each of tellers.values()) each();
    join();
  });
  tellers.set(item.item_id, (explanation = item.explanation) => {
    item.explanation = explanation;
    because.textContent = becauseOf(explanation);
    show();
  });
  tellers.get(item.item_id)();
  return row;
}

// Explanations come after the answer, as they take longer.
export function explain(items) {
  for (const { item_id, explanation } of items) tellers.get(item_id)?.(explanation);
  join();
}

function head(item, score, actions, why) {
  const title = el("button", { type: "button", class: "title", "aria-describedby": "title-hint" }, named(item));
  title.addEventListener("click", () => actions.add(item));
  return el(
    "div",
    { class: "head" },
    el("span", { class: "place" }, whole(item.place)),
    title,
    why && move(item),
    el("span", { class: "score" }, number(score, item.digits)),
    why,
  );
}

function move({ rank, retrieval_rank: from }) {
  if (from === null) return null;
  const by = from - rank;
  const kind = by > 0 ? "up" : by < 0 ? "down" : "same";
  const sign = { up: "\u25b2", down: "\u25bc", same: "=" }[kind];
  const said = by === 0 ? "as retrieval had it" : `${plural(Math.abs(by), "place")} ${kind} from retrieval`;
  const mark = el("span", { "aria-hidden": "true" }, by === 0 ? sign : `${sign}${whole(Math.abs(by))}`);
  return el("span", { class: `move ${kind}`, title: said }, mark, el("span", { class: "hidden" }, said));
}

// What pulled most, in one line, and the second where it did not pull far less.
function becauseOf(explanation) {
  if (explanation === null) return "";
  const pulled = explanation.because.slice(0, 2).filter((met, _, [first]) => met.effect >= BESIDE * first.effect);
  const because = pulled.length ? [`because of ${pulled.map(named).join(" and ")}`] : [];
  return [...because, ...explanation.rules].join("; ");
}

function details(item, actions) {
  const met = item.explanation?.because ?? [];
  const most = met[0]?.effect;
  const at = (place, score) => `place ${whole(place)}, ${number(score, 4)}`;
  const facts = [
    ["in the answer", at(item.rank, item.score)],
    item.retrieval_rank !== null && ["in retrieval", at(item.retrieval_rank, item.retrieval_score)],
    ...Object.entries(item.labels).map(([label, value]) => [label, number(value, 3)]),
    item.explanation && ["source", SOURCES[item.explanation.source] ?? item.explanation.source],
    item.explanation?.rules.length > 0 && ["rules", item.explanation.rules.join("; ")],
    ["item", item.item_id],
  ].filter(Boolean);
  const near = el("ul", { class: "near", "aria-label": "Similar items", "aria-live": "polite" });
  const more = el("button", { type: "button", class: "plain" }, "Similar items");
  more.addEventListener("click", async () => {
    near.replaceChildren(...(await actions.similar(item)).map((other) => similar(other, actions)));
    join();
  });
  const out = el("button", { type: "button", class: "plain" }, "Leave it out");
  out.addEventListener("click", () => actions.leaveOut(item));
  return [
    el("dl", {}, ...facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
    met.length ? el("h4", {}, "By how much its score would fall without") : null,
    met.length ? el("ul", { class: "effects" }, ...met.map((each) => effect(each, most))) : null,
    el("div", { class: "line" }, more, out),
    near,
  ].filter(Boolean);
}

function effect(met, most) {
  const bar = el("span", { class: "effect", "--share": met.effect / most });
  return el("li", {}, el("span", {}, named(met)), bar, el("span", { class: "score" }, number(met.effect, 3)));
}

function similar(other, actions) {
  const title = el("button", { type: "button", class: "title", onclick: () => actions.add(other) }, named(other));
  return el("li", {}, title, el("span", { class: "score" }, number(other.score)));
}

export const named = (item) => item.title ?? item.item_id;

// Who answered, how long each part took, and what the caller should know.
export function summarise(answer, { roundTrip }) {
  const { total, ...parts } = answer.timings_ms;
  const shown = PARTS.filter((part) => parts[part] !== undefined).map((part) => [part, parts[part]]);
  const rest = total - shown.reduce((sum, [, ms]) => sum + ms, 0);
  if (rest > 0) shown.push(["rest", rest]);
  const words = shown.map(([part, ms]) =>
    el("span", { class: `part ${part}` }, el("i", { "aria-hidden": "true" }), `${part} ${number(ms)}`),
  );
  const bars = shown.map(([part, ms]) => el("i", { class: part, "--ms": ms }));
  const there = ` in the server, ${number(roundTrip, 0)} ms to this browser and back`;
  $("#summary").replaceChildren(
    el("p", { class: "took" }, el("b", {}, `${number(total)} ms`), there),
    el("div", { class: "bar", "aria-hidden": "true" }, ...bars),
    el("p", { class: "parts" }, ...words),
    el("p", { class: "quiet by" }, `${answer.bundle} \u00b7 variant ${answer.variant}`),
  );
  $("#notes").replaceChildren(...answer.notes.map((note) => el("li", {}, note)));
}
