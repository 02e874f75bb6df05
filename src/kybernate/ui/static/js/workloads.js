// The workloads: state, queue, memory, what a switch costs, and the buttons. Rows are told apart by name and stay where they are, so
// that focus does, too.

import { possible, underWay } from "./actions.js";
import { swatchClass } from "./colours.js";
import { byId, focusNow, h, Keyed, setAttribute, setSentence, setText, show, withoutMarks } from "./dom.js";
import { openDetails } from "./details.js";
import { place, rate, seconds, size } from "./format.js";
import { state, subscribe } from "./state.js";
import { keysOn } from "./help.js";

const RANK = { interactive: 0, batch: 1 };
const ENDED = new Set(["exited", "lost"]);
const BY_ORDER = new Set(["order", "agent"]);
const COLUMNS = ["Workload", "State", "Queue", "VRAM", "Costs", "Orders"];

let keyed;
let body;
let tableElement;
let empty;
let fold;
let unfolded = false;

export function start() {
  body = h("div", { role: "rowgroup", class: "rows" });
  const header = h("div", { role: "row", class: "row-head" }, ...COLUMNS.map((text) => h("span", { role: "columnheader", text })));
  tableElement = h("div", { role: "table", class: "workloads", "aria-labelledby": "workloads-title" }, h("div", { role: "rowgroup" }, header), body);
  empty = h("p", { class: "empty" }, "No workload yet. ", h("code", { text: "kybernate run NAME -- COMMAND" }), " starts one.");
  fold = h("button", { type: "button", class: "ghost fold", "aria-expanded": "false", onclick: () => ((unfolded = !unfolded), render()) });
  byId("workloads").append(tableElement, fold, empty);
  keyed = new Keyed(body, makeRow);
  body.addEventListener("keydown", onKey);
  subscribe(render);
}

function rows() {
  const served = new Map((state.serving?.served ?? []).map((one) => [one.name, one]));
  const names = new Set([...state.workloads.keys(), ...served.keys()]);
  const all = [...names].map((name) => ({ name, workload: state.workloads.get(name) ?? null, served: served.get(name) ?? null }));
  const rank = (row) => (failed(row) ? -1 : row.workload && ENDED.has(row.workload.state) ? 9 : (RANK[row.served?.klass] ?? 2));
  return all.sort((a, b) => rank(a) - rank(b) || (b.served?.priority ?? 0) - (a.served?.priority ?? 0) || (a.name < b.name ? -1 : 1));
}

/** What should be there and isn't, or is lost: not what has done its work, nor what somebody stopped. */
function failed({ workload, served }) {
  if (workload?.state === "lost" || served?.failing) return true;
  return workload?.state === "exited" && workload.exit_status !== 0 && workload.exit_status !== null && !BY_ORDER.has(workload.ended_by);
}

/** Of what has ended and won't come back by itself, people want to see that it is there, not to scroll past it. */
function foldable(row) {
  return row.workload !== null && ENDED.has(row.workload.state) && !failed(row) && (row.served === null || row.served.kind === "other");
}

function render() {
  const everything = rows();
  const ended = everything.filter(foldable).length;
  const all = unfolded ? everything : everything.filter((row) => !foldable(row));
  show(fold, ended > 0);
  setText(fold, unfolded ? `Hide ${ended} ended` : `Show ${ended} ended`);
  setAttribute(fold, "aria-expanded", String(unfolded));
  show(tableElement, all.length > 0);
  show(empty, everything.length === 0);
  tableElement.classList.toggle("serving", (state.serving?.served ?? []).some((one) => one.kind === "model"));
  setText(byId("workloads-count"), all.length ? String(all.length) : "");
  keyed.update(all, (row) => row.name);
  if (!body.querySelector('[tabindex="0"]') && body.firstElementChild) body.firstElementChild.tabIndex = 0;
}

function makeRow({ name }) {
  const under = h("span", { class: "quiet under" });
  const label = h("span", { class: "name", text: name });
  const first = h("div", { role: "rowheader", class: "cell who" }, h("i", { class: swatchClass(name) }), h("div", {}, label, under));
  const pill = h("span", { class: "pill" });
  const reason = h("span", { class: "quiet under" });
  const progress = h("progress", { max: "1", hidden: true, "aria-label": `${name}: how far the switch is` });
  const second = h("div", { role: "cell", class: "cell state" }, pill, progress, reason);
  const queue = h("div", { role: "cell", class: "cell queue", "data-label": "Queue" });
  const vram = h("div", { role: "cell", class: "cell number", "data-label": "VRAM" });
  const costs = h("div", { role: "cell", class: "cell costs", "data-label": "Costs" });
  const orders = h("div", { role: "cell", class: "cell orders" });
  const element = h("div", { role: "row", class: "row-one", tabindex: "-1", "data-name": name, "aria-label": name }, first, second, queue, vram, costs, orders);
  const buttons = makeButtons(orders, name);
  return {
    element,
    update({ workload, served }) {
      setText(under, subtitle(workload, served));
      const bad = failed({ workload, served });
      const stands = bad && workload?.state !== "lost" ? "failed" : (workload?.state ?? served?.state ?? "stopped");
      setText(pill, stands);
      setAttribute(pill, "data-state", stands);
      element.classList.toggle("failed", bad);
      tellProgress(workload, { progress, reason, served });
      tellQueue(queue, served);
      const held = vramOf(workload, served);
      setText(vram, held);
      vram.toggleAttribute("data-empty", held === "–");
      tellCosts(costs, workload, served);
      buttons();
      element.classList.toggle("ended", Boolean(workload && ENDED.has(workload.state)));
    },
  };
}

function subtitle(workload, served) {
  const parts = [];
  if (served && served.kind !== "other") parts.push(`${served.klass} ${served.kind}${served.priority ? `, priority ${served.priority}` : ""}`);
  else if (workload?.argv.length) parts.push(command(workload.argv));
  return parts.join(" · ");
}

function command([program, ...rest]) {
  return [program.slice(program.lastIndexOf("/") + 1), ...rest].join(" ");
}

function tellProgress(workload, { progress, reason, served }) {
  const operation = workload?.operation;
  const total = operation?.bytes_total;
  show(progress, Boolean(total));
  if (total) progress.value = Math.min(1, (operation.bytes_done ?? 0) / total);
  let text = served?.reason || workload?.reason || "";
  if (workload?.state === "exited" && workload.exit_status !== null && !served?.reason) text = `exit status ${workload.exit_status}`;
  if (operation && total) {
    text = `${size(operation.bytes_done)} of ${size(total)}`;
    if (operation.bytes_per_s) text += `, ${rate(operation.bytes_per_s)}`;
    if (operation.seconds_left !== null && operation.seconds_left !== undefined) text += `, ${seconds(operation.seconds_left)} left`;
  } else if (workload?.state === "paused") {
    text = `${workload.staged ? "staged in RAM" : `in ${place(workload.tier)}`}${text ? ` · ${text}` : ""}`;
  }
  setSentence(reason, text);
  setAttribute(reason, "title", withoutMarks(text));
}

function tellQueue(element, served) {
  const key = served ? `${served.waiting} ${served.in_flight} ${served.oldest_wait_s} ${served.kind}` : "";
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.toggleAttribute("data-empty", served?.kind !== "model");
  if (!served || served.kind !== "model") {
    element.replaceChildren(h("span", { class: "quiet", text: "–" }));
    return;
  }
  if (!served.waiting && !served.in_flight) {
    element.replaceChildren(h("span", { class: "quiet", text: "idle" }));
    return;
  }
  const oldest = served.oldest_wait_s === null ? null : h("span", { class: "quiet", text: `oldest ${seconds(served.oldest_wait_s)}` });
  element.replaceChildren(
    h("span", { class: served.waiting ? "count waiting" : "count", text: `${served.waiting} waiting` }),
    h("span", { class: served.in_flight ? "count flying" : "count", text: `${served.in_flight} in flight` }),
    ...(oldest ? [oldest] : []),
  );
}

function vramOf(workload, served) {
  if (workload?.resident_bytes) return size(workload.resident_bytes);
  const needs = served?.bytes || workload?.last_pause?.bytes_total || 0;
  return needs ? `(${size(needs)})` : "–";
}

function tellCosts(element, workload, served) {
  const out = served?.cost.leave_s ?? workload?.last_pause?.seconds ?? null;
  const back = served?.cost.come_s ?? workload?.last_resume?.seconds ?? null;
  const key = `${out} ${back}`;
  if (element.dataset.key === key) return;
  element.dataset.key = key;
  element.toggleAttribute("data-empty", out === null && back === null);
  if (out === null && back === null) {
    element.replaceChildren(h("span", { class: "quiet", text: "–" }));
    return;
  }
  element.replaceChildren(
    h("span", { title: "Pause: VRAM is given back" }, h("span", { class: "quiet", text: "out " }), seconds(out)),
    h("span", { title: "Resume: back in VRAM" }, h("span", { class: "quiet", text: "in " }), seconds(back)),
  );
}

function makeButtons(parent, name) {
  let key = null;
  let instead = null; // what has the focus while there is no button at its place, as in the midst of a switch
  let place = null; // and that place
  return () => {
    const busy = underWay.get(name) ?? null;
    const orders = possible(name).filter((order) => !order.more);
    const now = JSON.stringify([busy, orders.map((order) => [order.word, order.urgent ?? false])]);
    if (now === key) return;
    key = now;
    const active = document.activeElement;
    const focused = !parent.contains(active) && active !== instead ? null : active === instead ? place : active.dataset.place;
    const made = orders.map((order, i) =>
      h("button", {
        type: "button",
        "data-place": String(i),
        class: order.urgent ? "primary" : "",
        "aria-label": `${order.word} ${name}`,
        "aria-disabled": busy ? "true" : null,
        text: order.short ?? order.word,
        onclick: () => !underWay.has(name) && order.run(),
      }),
    );
    if (busy) made.splice(0, made.length, h("button", { type: "button", "data-place": "0", "aria-disabled": "true", "aria-busy": "true", text: `${busy}…` }));
    made.push(h("button", { type: "button", "data-place": "more", class: "ghost", "aria-haspopup": "dialog", "aria-label": `More of ${name}`, text: "More", onclick: () => openDetails(name) }));
    parent.replaceChildren(...made);
    instead = place = null;
    if (focused === null) return;
    const there = parent.querySelector(`[data-place="${focused}"]`);
    if (!there) [instead, place] = [parent.firstElementChild ?? parent.closest(".row-one"), focused];
    focusNow(there ?? instead);
  };
}

// -- keys: only while a row, or something in it, has the focus ----------------------------------------------------------

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const row = event.target.closest(".row-one");
  if (!row) return;
  const go = { ArrowDown: row.nextElementSibling, ArrowUp: row.previousElementSibling, Home: body.firstElementChild, End: body.lastElementChild }[event.key];
  if (event.key in { ArrowDown: 1, ArrowUp: 1, Home: 1, End: 1 }) {
    event.preventDefault();
    if (go) focusRow(go);
    return;
  }
  if (event.key === "Enter" && event.target === row) {
    event.preventDefault();
    openDetails(row.dataset.name);
    return;
  }
  if (!keysOn()) return;
  const { name } = row.dataset;
  const order = !underWay.has(name) && possible(name).find((one) => one.key === event.key);
  if (order) {
    event.preventDefault();
    order.run();
  }
}

function focusRow(row) {
  for (const other of body.querySelectorAll('[tabindex="0"].row-one')) other.tabIndex = -1;
  row.tabIndex = 0;
  focusNow(row);
}

