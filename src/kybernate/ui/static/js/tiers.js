// The tiers, from VRAM down, with who lies in each.

import { swatchClass, colourOf } from "./colours.js";
import { byId, h, Keyed, setAttribute, setSentence, setText, show } from "./dom.js";
import { percent, plural, size } from "./format.js";
import { state, subscribe } from "./state.js";

const CHIPS_MOST = 10;
let keyed;

export function start() {
  keyed = new Keyed(byId("tiers"), makeTier);
  subscribe(() => state.node && keyed.update(tiers(), (tier) => tier.key));
}

function contentOf(workload) {
  return workload.resident_bytes || workload.host_copy_bytes || workload.last_pause?.bytes_total || 0;
}

function tiers() {
  const node = state.node;
  const workloads = [...state.workloads.values()].sort((a, b) => (a.name < b.name ? -1 : 1));
  const lying = (tier) => workloads.filter((workload) => workload.tier === tier).map((w) => ({ name: w.name, bytes: contentOf(w), staged: w.staged }));
  return [vram(node, workloads), ram(node, workloads), ...["nvme", "object"].map((name) => below(node, name, lying(name)))];
}

function vram(node, workloads) {
  const sum = (field) => node.gpus.reduce((total, gpu) => total + gpu[field], 0);
  const members = workloads.filter((w) => w.tier === "vram" || w.resident_bytes > 0).map((w) => ({ name: w.name, bytes: w.resident_bytes }));
  const total = sum("total_bytes");
  const other = Math.max(0, total - sum("free_bytes") - sum("resident_bytes"));
  const parts = members.filter((m) => m.bytes > 0).map((m) => ({ ...m, kind: "held" }));
  if (other > 0) parts.push({ name: "contexts and others", bytes: other, kind: "other" });
  return {
    key: "vram",
    title: "VRAM",
    where: node.gpus.length === 0 ? "no GPU" : node.gpus.map((gpu) => gpu.name).join(", "),
    used: total - sum("free_bytes"),
    total,
    mark: sum("limit_bytes"),
    markWord: "handed out at most",
    parts,
    members,
    problem: node.gpus.length === 0 ? (node.notes[0] ?? "plain processes only") : null,
  };
}

function ram(node, workloads) {
  const pool = node.pool;
  const members = workloads.filter((w) => w.tier === "ram").map((w) => ({ name: w.name, bytes: w.host_copy_bytes }));
  const parts = workloads
    .filter((w) => w.host_copy_bytes > 0)
    .map((w) => ({ name: w.name, bytes: w.host_copy_bytes, kind: w.tier === "ram" ? "held" : "copy" }));
  const size_ = pool?.size_bytes ?? 0;
  const used = pool ? pool.ready_bytes - pool.free_bytes : 0;
  const known = parts.reduce((total, part) => total + part.bytes, 0);
  if (used > known) parts.push({ name: "others", bytes: used - known, kind: "other" });
  return {
    key: "ram",
    title: "RAM",
    where: hostPool(pool, parts),
    used,
    total: size_,
    parts,
    members,
    staged: workloads.filter((w) => w.staged).map((w) => ({ name: w.name, bytes: w.host_copy_bytes, staged: true })),
    problem: pool ? null : "there is no pool",
  };
}

function hostPool(pool, parts) {
  if (pool && pool.ready_bytes < pool.size_bytes) return `host pool, ${percent(pool.ready_bytes / pool.size_bytes)} made`;
  const copies = parts.filter((part) => part.kind === "copy").reduce((total, part) => total + part.bytes, 0);
  return copies ? `host pool, ${size(copies)} in clean copies` : "host pool";
}

function below(node, name, members) {
  const tier = node.tiers.find((one) => one.tier === name);
  const title = name === "nvme" ? "NVMe" : "Object store";
  if (!tier) return { key: name, title, where: "not set up", used: 0, total: 0, parts: [], members, absent: true };
  const total = tier.budget_bytes ?? (tier.free_bytes === null ? 0 : tier.used_bytes + tier.free_bytes);
  return {
    key: name,
    title,
    where: tier.where + (tier.encrypted ? ", encrypted" : ""),
    used: tier.used_bytes,
    total,
    parts: tier.used_bytes ? [{ name: plural(tier.snapshots, "snapshot"), bytes: tier.used_bytes, kind: "stored" }] : [],
    members,
    snapshots: tier.snapshots,
    problem: tier.problem,
    unused: tier.state === "unused",
  };
}

function makeTier(tier) {
  const amount = h("span", { class: "amount" });
  const where = h("p", { class: "where" });
  const meter = h("div", { class: "meter", role: "meter", "aria-label": tier.title, "aria-valuemin": "0", "aria-valuemax": "100" });
  const mark = h("i", { class: "mark-limit", hidden: true });
  const bar = h("div", { class: "segments" });
  meter.append(bar, mark);
  const segments = new Keyed(bar, makeSegment);
  const list = h("ul", { class: "chips", "aria-label": `Workloads in ${tier.title}` });
  const chips = new Keyed(list, makeChip);
  const problem = h("p", { class: "problem", hidden: true });
  const element = h("article", { class: `card tier ${tier.key}` }, h("div", { class: "head" }, h("h3", { text: tier.title }), h("span", { class: "grow" }), amount), where, meter, problem, list);
  return {
    element,
    update(now) {
      setText(where, now.where);
      setAttribute(where, "title", now.where);
      setText(amount, now.absent || now.unused ? "–" : now.total ? `${size(now.used)} of ${size(now.total)}` : size(now.used));
      setAttribute(meter, "aria-valuenow", String(now.total ? Math.round((100 * now.used) / now.total) : 0));
      setAttribute(meter, "aria-valuetext", now.total ? `${size(now.used)} of ${size(now.total)} in use` : `${size(now.used)} in use`);
      show(meter, now.total > 0); // without a budget there is nothing to be full
      const whole = now.total || 1;
      segments.update(now.parts.map((part) => ({ ...part, share: part.bytes / whole })), (part) => `${part.kind} ${part.name}`);
      show(mark, Boolean(now.mark && now.mark < now.total));
      if (now.mark) {
        mark.style.left = `${(100 * now.mark) / now.total}%`;
        mark.title = `${size(now.mark)} ${now.markWord}`;
      }
      show(problem, Boolean(now.problem));
      setSentence(problem, now.problem ?? "");
      element.classList.toggle("faint", Boolean(now.absent || now.unused) && now.members.length === 0);
      const everybody = [...now.members, ...(now.staged ?? [])];
      const shown = everybody.slice(0, CHIPS_MOST);
      if (everybody.length > CHIPS_MOST) shown.push({ rest: everybody.length - CHIPS_MOST });
      if (everybody.length === 0) shown.push({ nobody: true });
      chips.update(shown, (chip) => chip.name ?? (chip.nobody ? "\nnobody" : "\nmore"));
    },
  };
}

function makeSegment(part) {
  const element = h("i", { class: `segment ${part.kind} ${part.kind === "held" || part.kind === "copy" ? `c${colourOf(part.name)}` : ""}` });
  return {
    element,
    update(now) {
      element.style.width = `${Math.min(100, 100 * now.share)}%`;
      setAttribute(element, "title", `${now.name}: ${size(now.bytes)}${now.kind === "copy" ? ", a clean copy: its next pause needn't copy it" : ""}`);
    },
  };
}

function makeChip(chip) {
  if (chip.nobody) return { element: h("li", { class: "nobody", text: "nobody" }), update() {} };
  if (!chip.name) {
    const element = h("li", { class: "chip" });
    return { element, update: (now) => setText(element, `and ${now.rest} more`) };
  }
  const bytes = h("span", { class: "quiet" });
  const element = h("li", { class: "chip" }, h("i", { class: swatchClass(chip.name) }), h("span", { class: "name", text: chip.name }), bytes);
  return {
    element,
    update(now) {
      setText(bytes, (now.staged ? "staged " : "") + (now.bytes ? size(now.bytes) : ""));
    },
  };
}
