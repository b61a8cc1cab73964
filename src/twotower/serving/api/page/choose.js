// Finding an item by a part of its title: a combobox, led by the arrow keys as well as by the pointer.

import { $, el } from "./dom.js";
import { named } from "./answer.js";

const PAUSE_MS = 120;

// `find(text)` answers with items; `pick(item)` is called with the one chosen.
export function offer({ find, pick }) {
  const input = $("#search");
  const list = $("#found");
  let items = [];
  let at = -1;
  let waiting = 0;
  let asked = 0;
  let shown = null; // The text that the list answers.

  const close = () => {
    clearTimeout(waiting);
    asked += 1;
    list.hidden = true;
    at = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  };
  const point = (place) => {
    at = place;
    [...list.children].forEach((option, each) => option.setAttribute("aria-selected", String(each === at)));
    list.children[at]?.scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", `found-${at}`);
  };
  const choose = (item) => {
    input.value = "";
    close();
    pick(item);
  };
  const show = async () => {
    const turn = ++asked;
    const text = input.value.trim();
    const found = await find(text);
    if (turn !== asked || document.activeElement !== input) return;
    [items, shown] = [found, text];
    at = -1;
    list.replaceChildren(...(items.length ? items.map(option) : [nothing()]));
    list.hidden = false;
    input.setAttribute("aria-expanded", "true");
    input.removeAttribute("aria-activedescendant");
  };
  const nothing = () => el("li", { class: "none", role: "option", "aria-disabled": "true" }, "no title holds this");
  const option = (item, place) => {
    const shown = el("li", { id: `found-${place}`, role: "option", "aria-selected": "false" }, named(item));
    shown.addEventListener("pointerdown", (event) => {
      event.preventDefault(); // The field keeps the focus.
      choose(item);
    });
    return shown;
  };

  input.addEventListener("click", show);
  input.addEventListener("blur", close);
  input.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, PAUSE_MS);
  });
  input.addEventListener("keydown", async (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (list.hidden) await show();
      if (items.length) point(at < 0 ? (step > 0 ? 0 : items.length - 1) : (at + step + items.length) % items.length);
    } else if (event.key === "Enter" && !(list.hidden && input.value.trim() === "")) {
      if (list.hidden || shown !== input.value.trim()) await show();
      if (!list.hidden && items.length) choose(items[Math.max(at, 0)]);
    } else if (event.key === "Escape") {
      close();
    }
  });
}
