// Orders to the agent: asked for again where they take something away, under way, done, refused.

import { post, workloadPath } from "./api.js";
import { byId, h, sentence } from "./dom.js";
import { place, seconds, size } from "./format.js";
import { changed, state } from "./state.js";

const DONE_MS = 6000;

/** Orders under way, by workload: what the button says meanwhile. */
export const underWay = new Map();

export function toast(kind, title, hint) {
  const close = h("button", { type: "button", class: "ghost close", "aria-label": "Dismiss", text: "×" });
  const box = h("div", { class: `toast ${kind}` }, h("div", {}, h("strong", {}, ...sentence(title)), hint ? h("p", {}, ...sentence(hint)) : null), close);
  const remove = () => box.remove();
  close.addEventListener("click", remove);
  byId("toasts").append(box);
  if (kind === "ok") setTimeout(remove, DONE_MS); // an error stays until it was read
  return box;
}

export function confirmed({ title, text, word }) {
  const dialog = byId("confirm");
  return new Promise((resolve) => {
    const no = h("button", { type: "button", text: "Leave it", onclick: () => dialog.close("no") });
    const yes = h("button", { type: "button", class: "danger", text: word, onclick: () => dialog.close("yes") });
    dialog.replaceChildren(
      h("h2", { id: "confirm-title", text: title }),
      h("p", { id: "confirm-text", text }),
      h("div", { class: "row end" }, no, yes),
    );
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.returnValue = "no";
    dialog.showModal();
    no.focus(); // the harmless one
  });
}

async function order(name, word, path, body, tell) {
  if (underWay.has(name)) return;
  underWay.set(name, word);
  changed();
  try {
    const view = await post(path, body);
    toast("ok", tell(view), view.note && !view.already ? view.note : null);
  } catch (error) {
    toast("bad", error.message, error.hint);
  } finally {
    underWay.delete(name);
    changed();
  }
}

function switched(view, word) {
  if (view.already) return `${view.workload}: ${view.note ?? "is so already"}`;
  let text = `${view.workload}: ${word} in ${seconds(view.seconds)}`;
  if (view.bytes_total) text += `, ${size(view.bytes_copied)} of ${size(view.bytes_total)} copied`;
  return text;
}

function served(name) {
  return state.serving?.served.find((one) => one.name === name);
}

export async function pause(name, { tier = "ram" } = {}) {
  const working = served(name)?.in_flight ?? 0;
  if (tier !== "ram") {
    const text = `Its state goes to ${place(tier)} and its processes end. It comes back from there, as it was, when it is resumed; that takes longer than from RAM.`;
    if (!(await confirmed({ title: `Pause ${name} to ${place(tier)}?`, text, word: `Pause to ${place(tier)}` }))) return;
  } else if (working > 0) {
    const text = `It works on ${working === 1 ? "a request" : `${working} requests`} now. What it works on may have to wait until it is resumed.`;
    if (!(await confirmed({ title: `Pause ${name} in the middle of its work?`, text, word: "Pause" }))) return;
  }
  await order(name, "Pausing", workloadPath(name, "/pause"), { tier }, (view) => switched(view, `paused to ${place(view.tier ?? tier)}`));
}

export async function resume(name) {
  await order(name, "Resuming", workloadPath(name, "/resume"), {}, (view) => switched(view, "resumed"));
}

export async function prefetch(name, { tier = "ram" } = {}) {
  const tell = (view) =>
    view.already ? `${name}: ${view.note ?? "lies there already"}` : `${name}: ${size(view.bytes_total)} in ${place(tier)}, ${seconds(view.seconds)}`;
  if (tier === "ram") await order(name, "Prefetching", workloadPath(name, "/prefetch"), {}, tell);
  else await order(name, "Moving", `/v1/snapshots/${encodeURIComponent(name)}/move`, { tier }, tell);
}

export async function start(name) {
  await order(name, "Starting", `/v1/serving/served/${encodeURIComponent(name)}/start`, {}, () => `${name}: comes as soon as it gets room`);
}

const ENDED = new Set(["exited", "lost"]);

/** What can be ordered of a workload, a model or a job as it is now: word, function, key each. `urgent`: nothing happens without it. */
export function possible(name) {
  const found = [];
  const workload = state.workloads.get(name);
  if (!workload || ENDED.has(workload.state)) {
    if (served(name)?.kind !== undefined && served(name).kind !== "other") found.push({ word: "Start", key: "s", run: () => start(name) });
    return found;
  }
  if (workload.state === "running") {
    found.push({ word: "Pause", key: "p", run: () => pause(workload.name) });
    if (!workload.external) {
      for (const tier of tiersBelowRam()) {
        found.push({ word: `Pause to ${place(tier)}`, more: true, run: () => pause(workload.name, { tier }) });
      }
    }
  }
  if (workload.state === "paused") {
    found.push({ word: "Resume", key: "r", urgent: workload.paused_by === "user", run: () => resume(workload.name) });
    if (workload.tier !== "ram" && !workload.staged) {
      found.push({ word: "Prefetch to RAM", short: "Prefetch", key: "f", run: () => prefetch(workload.name) });
    }
    for (const tier of tiersBelowRam()) {
      if (tier === workload.tier || workload.external) continue;
      const ahead = workload.tier === "object" && tier === "nvme";
      const run = ahead ? () => prefetch(workload.name, { tier }) : () => pause(workload.name, { tier });
      found.push({ word: `${ahead ? "Prefetch" : "Move"} to ${place(tier)}`, more: true, run });
    }
  }
  return found;
}

function tiersBelowRam() {
  return (state.node?.tiers ?? []).filter((tier) => tier.problem === null).map((tier) => tier.tier);
}
