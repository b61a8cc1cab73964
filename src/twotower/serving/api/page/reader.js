// The bundle's report and card, over the page.

import { read } from "./api.js";
import { $, el } from "./dom.js";

const dialog = $("#reader");
const body = $("#reader-body");

function open(title, content) {
  $("#reader-title").textContent = title;
  body.replaceChildren(content);
  if (!dialog.open) dialog.showModal();
}

async function openReport() {
  const report = await read("v1/report");
  const frame = el("iframe", { title: "The bundle's report", sandbox: "allow-scripts", src: "page/report.html" });
  // The frame has no origin of its own, so there is none to name.
  frame.addEventListener("load", () => frame.contentWindow.postMessage(report, "*"), { once: true });
  open("Report", frame);
}

async function openCard() {
  open("Model card", el("pre", { tabindex: "0" }, await read("v1/card")));
}

// `tell(fault)` says why one of them cannot be shown.
export function offerReading({ tell }) {
  $("#open-report").addEventListener("click", () => openReport().catch(tell));
  $("#open-card").addEventListener("click", () => openCard().catch(tell));
  $("#reader-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.addEventListener("close", () => body.replaceChildren());
}
