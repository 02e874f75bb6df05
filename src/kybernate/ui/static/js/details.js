// One workload in full: why it is in its state, its numbers, every order that is possible, its last events.

import { get, workloadPath } from "./api.js";
import { possible } from "./actions.js";
import { swatchClass } from "./colours.js";
import { byId, h, sentence } from "./dom.js";
import { clock, place, said, seconds, size } from "./format.js";
import { state } from "./state.js";

const EVENTS = 8;

export async function openDetails(name) {
  const dialog = byId("details");
  const workload = state.workloads.get(name);
  const why = h("div", { class: "why" }, h("p", { class: "quiet", text: "asking why …" }));
  const orders = h("div", { class: "row wrap" });
  for (const order of possible(name)) {
    const run = () => {
      dialog.close();
      order.run();
    };
    orders.append(h("button", { type: "button", class: order.urgent ? "primary" : "", text: order.word, onclick: run }));
  }
  dialog.replaceChildren(
    h("div", { class: "head" }, h("h2", { id: "details-title" }, h("i", { class: swatchClass(name) }), name), h("span", { class: "grow" }), h("button", { type: "button", class: "ghost close", "aria-label": "Close", text: "×", onclick: () => dialog.close() })),
    why,
    ...(orders.childElementCount ? [orders] : []),
    ...(workload ? [facts(workload), ...steps("Last pause", workload.last_pause), ...steps("Last resume", workload.last_resume)] : []),
  );
  dialog.showModal();
  try {
    const view = await get(workloadPath(name, "/explain"));
    const list = view.events.slice(-EVENTS).reverse();
    why.replaceChildren(
      h("p", {}, ...sentence(view.text)),
      h("p", { class: "quiet" }, ...sentence(`Next: ${view.next_step}`)),
    );
    if (list.length) {
      dialog.append(
        h("h3", { text: "Last events" }),
        h("ol", { class: "events" }, ...list.map((event) => h("li", {}, h("time", { text: clock(event.time) }), h("div", {}, ...said(event))))),
      );
    }
  } catch (error) {
    why.replaceChildren(h("p", { class: "problem" }, ...sentence(error.message)), error.hint ? h("p", { class: "quiet" }, ...sentence(error.hint)) : "");
  }
}

function facts(workload) {
  const rows = [
    ["State", `${workload.state} since ${clock(workload.since)}`],
    ["Lies in", workload.tier ? place(workload.tier) + (workload.staged ? ", staged in RAM" : "") : "–"],
    ["VRAM", size(workload.resident_bytes)],
    ["Host copy", size(workload.host_copy_bytes)],
    ["Changed at the last pause", size(workload.dirty_bytes)],
    ["Backend", workload.backend + (workload.depth ? `, depth ${workload.depth}` : "")],
    ["Processes", workload.pids.join(", ") || "–"],
    ["Command", workload.argv.join(" ") || "–"],
    ["Directory", workload.directory || "–"],
  ];
  if (workload.image) rows.push(["Image", workload.image]);
  if (workload.snapshot) rows.push(["Snapshot", workload.snapshot]);
  if (workload.unmanaged_bytes) rows.push(["Without the library", `${size(workload.unmanaged_bytes)}: only the driver moves it, slowly`]);
  if (workload.held_bytes) rows.push(["Given up, but not free", size(workload.held_bytes)]);
  return h("dl", { class: "facts" }, ...rows.flatMap(([key, value]) => [h("dt", { text: key }), h("dd", { text: value })]));
}

function steps(title, view) {
  if (!view) return [];
  const shares = view.steps.map((step) => h("li", {}, h("span", { text: step.step }), h("span", { class: "quiet", text: seconds(step.seconds) })));
  const bytes = view.bytes_total ? `: ${size(view.bytes_copied)} copied, ${size(view.bytes_clean)} clean, ${size(view.bytes_zero)} zero` : "";
  return [h("h3", { text: `${title}: ${seconds(view.seconds)}${bytes}` }), h("ul", { class: "steps" }, ...shares)];
}
