// The smaller parts: what is under way, who had the GPU for how much, what happened, and the node in a line.

import { swatchClass } from "./colours.js";
import { byId, h, Keyed, setAttribute, setSentence, setText, show } from "./dom.js";
import { clock, percent, plural, rate, said, seconds, size } from "./format.js";
import { state, subscribe } from "./state.js";

const EVENTS_SHOWN = 120;
const CLASS_FORM = { interactive: "full", batch: "hatched" };

let jobs;
let events;
let filter = "";

export function start() {
  jobs = new Keyed(byId("jobs"), makeJob);
  events = new Keyed(byId("events"), makeEvent);
  byId("events-filter").addEventListener("input", (event) => {
    filter = event.target.value.trim().toLowerCase();
    renderEvents();
  });
  subscribe(render);
}

function render() {
  if (!state.node) return;
  renderJobs();
  renderClasses();
  renderEvents();
  renderNode();
}

// -- under way -------------------------------------------------------------------------------------------------------

function renderJobs() {
  const switching = [...state.workloads.values()]
    .filter((w) => w.operation && w.operation.bytes_total && !state.jobs.some((job) => job.subject === w.name))
    .map((w) => ({ ...w.operation, subject: w.name }));
  const all = [...state.jobs, ...switching];
  show(byId("jobs-none"), all.length === 0);
  jobs.update(all, (job) => `${job.kind} ${job.subject}`);
}

function makeJob(job) {
  const progress = h("progress", { max: "1", "aria-label": `${job.kind} ${job.subject}` });
  const text = h("span", { class: "quiet" });
  const element = h("li", {}, h("div", {}, h("b", { text: job.subject }), ` ${job.kind}`), progress, text);
  return {
    element,
    update(now) {
      const parts = [];
      if (now.step) parts.push(now.step);
      if (now.bytes_total) {
        progress.value = Math.min(1, (now.bytes_done ?? 0) / now.bytes_total);
        parts.push(`${size(now.bytes_done)} of ${size(now.bytes_total)}`);
      } else progress.removeAttribute("value");
      if (now.bytes_per_s) parts.push(rate(now.bytes_per_s));
      parts.push(now.seconds_left !== null && now.seconds_left !== undefined ? `${seconds(now.seconds_left)} left` : `for ${seconds(now.seconds)}`);
      setText(text, parts.join(", "));
    },
  };
}

// -- shares ----------------------------------------------------------------------------------------------------------

let sharesFor = null;

function renderClasses() {
  const classes = state.serving?.classes ?? [];
  show(byId("classes-card"), classes.length > 0);
  const staging = state.serving?.staging;
  const now = JSON.stringify([classes, staging, state.serving?.policy]);
  if (now === sharesFor) return;
  sharesFor = now;
  const bar = h("div", { class: "shares", role: "img", "aria-label": classes.map((one) => `${one.klass} ${percent(one.share)}`).join(", ") });
  for (const one of classes) {
    const part = h("i", { class: `share ${CLASS_FORM[one.klass] ?? "full"}`, title: `${one.klass}: ${percent(one.share)}` });
    part.style.width = `${100 * one.share}%`;
    bar.append(part);
  }
  const rows = classes.map((one) =>
    h("li", {}, h("i", { class: `share key ${CLASS_FORM[one.klass] ?? "full"}` }), h("span", { text: one.klass }), h("b", { text: percent(one.share) }), h("span", { class: "quiet", text: `${seconds(one.usage.resident_s)} in VRAM, busy ${seconds(one.usage.busy_s)}` })),
  );
  const tried = staging ? staging.hits + staging.misses : 0;
  const ahead = tried ? h("p", { class: "quiet", text: `Staged ahead: right ${staging.hits} of ${plural(tried, "time")}, ${size(staging.used_bytes)} of ${size(staging.budget_bytes)} in use` }) : null;
  setText(byId("classes-policy"), state.serving ? `policy ${state.serving.policy}` : "");
  byId("classes").replaceChildren(bar, h("ul", { class: "share-list" }, ...rows), ...(ahead ? [ahead] : []));
}

// -- events ----------------------------------------------------------------------------------------------------------

const BAD = /lost|failed|refused|away|out-of-memory|held|left/;

function renderEvents() {
  const all = state.events.filter((event) => !filter || `${event.workload ?? ""} ${event.kind} ${event.text}`.toLowerCase().includes(filter));
  events.update(all.slice(-EVENTS_SHOWN).reverse(), (event) => event.id);
}

function makeEvent(event) {
  const who = event.workload ? [h("i", { class: swatchClass(event.workload) }), h("span", { class: "name", text: event.workload })] : [];
  const element = h(
    "li",
    { class: BAD.test(event.kind) ? "bad" : "" },
    h("time", { text: clock(event.time), datetime: new Date(event.time * 1000).toISOString() }),
    h("div", {}, ...who, ...said(event)),
  );
  return { element, update() {} };
}

// -- the node --------------------------------------------------------------------------------------------------------

function renderNode() {
  const node = state.node;
  const gpus = node.gpus.map((gpu) => gpu.name).join(", ") || "no GPU";
  setText(byId("node-name"), gpus);
  show(byId("simulated"), node.simulated);
  const parts = [`agent ${node.version}, pid ${node.pid}`, node.driver_version ? `driver ${node.driver_version}` : null, state.serving?.listen ? `models on ${state.serving.listen}` : null];
  setSentence(byId("footer"), [...parts, ...node.notes, ...(state.serving?.notes ?? [])].filter(Boolean).join(" · "));
  const live = byId("live");
  setAttribute(live, "data-state", state.connected ? "on" : "off");
  setText(live, state.connected ? "live" : "not connected");
  const trouble = byId("trouble");
  show(trouble, Boolean(state.trouble));
  if (state.trouble) setSentence(trouble, `${state.trouble.message}${state.trouble.hint ? ` (${state.trouble.hint})` : ""}. What is shown is from before.`);
}
