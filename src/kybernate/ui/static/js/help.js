// The keys, and the choice to do without those of a single letter.

import { byId, h } from "./dom.js";

const KEY = "kybernate-letters";
const KEYS = [
  ["Tab", "from part to part"],
  ["↑ ↓ Home End", "from workload to workload"],
  ["Enter", "all of a workload, and every order"],
  ["p", "pause the workload in focus"],
  ["r", "resume it"],
  ["f", "prefetch it into RAM"],
  ["s", "start it, if it is a model or a job that has ended or never ran"],
  ["← → Page↑ Page↓", "move the timeline in focus"],
  ["+ −", "zoom it"],
  ["Home End", "its beginning, and now"],
  ["?", "this list"],
  ["Esc", "close"],
];

let letters = true;

export function keysOn() {
  return letters;
}

export function start() {
  try {
    letters = localStorage.getItem(KEY) !== "off";
  } catch {
    letters = true;
  }
  byId("help").addEventListener("click", open);
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof HTMLInputElement;
    if (event.key === "?" && letters && !typing && !document.querySelector("dialog[open]")) open();
  });
}

function open() {
  const dialog = byId("keys");
  const box = h("input", { type: "checkbox", id: "letters", onchange: () => choose(box.checked) });
  box.checked = letters;
  dialog.replaceChildren(
    h("div", { class: "head" }, h("h2", { id: "keys-title", text: "Keys" }), h("span", { class: "grow" }), h("button", { type: "button", class: "ghost close", "aria-label": "Close", text: "×", onclick: () => dialog.close() })),
    h("dl", { class: "keys" }, ...KEYS.flatMap(([key, what]) => [h("dt", {}, ...key.split(" ").map((one) => h("kbd", { text: one }))), h("dd", { text: what })])),
    h("p", {}, box, h("label", { for: "letters", text: " Keys of a single letter" })),
  );
  dialog.showModal();
}

function choose(on) {
  letters = on;
  try {
    localStorage.setItem(KEY, on ? "on" : "off");
  } catch {
    // It holds until the page is loaded again, then.
  }
}
