// What the bundle's columns give: names for the filter, and fields for what is known of who asks.

import { $, el } from "./dom.js";

// Each name goes into the filter where the cursor stands.
export function listColumns(columns) {
  const insert = (name) => {
    const input = $("#filter");
    input.setRangeText(name, input.selectionStart, input.selectionEnd, "end");
    input.focus();
  };
  const named = ({ name, type }) =>
    el("li", {}, el("button", { type: "button", class: "plain", onclick: () => insert(name) }, name), ` ${type}`);
  $("#columns ul").replaceChildren(...columns.map(named));
}

export function listContext(columns) {
  const field = (name, place) => {
    const id = `context-${place}`;
    return el("p", {}, el("label", { for: id }, name), el("input", { id, "data-column": name, autocomplete: "off" }));
  };
  $("#context-form").hidden = columns.length === 0;
  $("#context").replaceChildren(...columns.map(field));
}

const contextInputs = () => [...$("#context").querySelectorAll("input")];

// Numbers go out as numbers; a field left empty says nothing.
export function readContext() {
  const told = contextInputs().filter((input) => input.value.trim() !== "");
  return Object.fromEntries(told.map(({ value, dataset }) => [dataset.column, valueOf(value.trim())]));
}

const valueOf = (text) => (Number.isFinite(Number(text)) ? Number(text) : text);

export function emptyContext() {
  for (const input of contextInputs()) input.value = "";
}
