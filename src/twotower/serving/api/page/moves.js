// What moves between the two lists: lines from place to place, the light on an item, rows that glide, the focus.

import { $, svg } from "./dom.js";

const GLIDE = { duration: 260, easing: "ease-out" };

export const stages = $("#stages");
export const lists = { retrieval: $(".retrieval .rows"), ranking: $(".ranking .rows") };
let lit = null;

// Lines between the two places of each item; they follow when rows open, and when the window is resized.
export function join() {
  const drawing = $("#moves");
  const frame = drawing.getBoundingClientRect();
  const middles = (list) => new Map([...list.children].map((row) => [row.dataset.item, middle(row, frame)]));
  const [from, to] = [middles(lists.retrieval), middles(lists.ranking)];
  drawing.replaceChildren(
    ...[...to].filter(([item]) => from.has(item)).map(([item, end]) => line(item, from.get(item), end, frame.width)),
  );
  relight();
}

function middle(row, frame) {
  const place = $(".place", row).getBoundingClientRect();
  return place.top + place.height / 2 - frame.top;
}

function line(item, start, end, width) {
  const ranked = rowIn("ranking", item);
  const kind = $(".move", ranked)?.classList[1] ?? "same";
  const bend = width / 2;
  return svg("path", {
    d: `M0 ${start} C${bend} ${start} ${bend} ${end} ${width} ${end}`,
    class: ranked.classList.contains("below") ? `${kind} below` : kind,
    "data-item": item,
  });
}

const rowIn = (stage, item) => $(`[data-item="${CSS.escape(item)}"]`, lists[stage]);

new ResizeObserver(join).observe(stages);

// An item lights up in both lists, with its line, under the pointer and under the keyboard's focus.
function light({ type, target }) {
  if (type === "focusin" && !target.matches(":focus-visible")) return;
  lit = target.closest("[data-item]")?.dataset.item ?? null;
  relight();
}

function relight() {
  for (const each of stages.querySelectorAll("[data-item]")) each.classList.toggle("lit", each.dataset.item === lit);
  stages.classList.toggle("lighting", stages.querySelector(".lit") !== null);
}

function darken() {
  lit = null;
  relight();
}

for (const kind of ["pointerover", "focusin"]) stages.addEventListener(kind, light);
for (const kind of ["pointerleave", "focusout"]) stages.addEventListener(kind, darken);

// Stage and item -> where its row stands.
export function places() {
  const found = new Map();
  for (const [stage, list] of Object.entries(lists))
    for (const row of list.children) found.set(`${stage} ${row.dataset.item}`, row.getBoundingClientRect().top);
  return found;
}

// Rows glide from where they were, so that one sees what a click changed; new ones fade in.
export function glide(before) {
  if (before.size === 0 || matchMedia("(prefers-reduced-motion: reduce)").matches) return;
  for (const [key, top] of places()) {
    const [stage] = key.split(" ", 1);
    const was = before.get(key);
    const from = was === undefined ? { opacity: 0 } : { transform: `translateY(${was - top}px)` };
    if (was !== top) rowIn(stage, key.slice(stage.length + 1)).animate(from, GLIDE);
  }
}

// Who clicks a title by the keyboard stays where they were, though another item may stand there now.
export function focus() {
  const active = document.activeElement;
  const row = active.closest(".row");
  return row && { list: row.parentElement, at: [...row.parentElement.children].indexOf(row), by: active.classList[0] };
}

export function refocus(focused) {
  if (focused === null) return;
  const { list, at, by } = focused;
  const row = list.children[Math.min(at, list.children.length - 1)];
  if (row) ($(`.${by}`, row) ?? $(".title", row)).focus({ preventScroll: true });
}
