// The timeline: above, VRAM by who held it; below, a lane for each workload with where it was. What is known as colour is known as form,
// too: VRAM is a full bar, RAM half of one, NVMe a line, the object store a dotted line, switching is hatched.

import { colourOf, palette, swatchClass } from "./colours.js";
import { byId, h, setText, show } from "./dom.js";
import { clock, place, seconds, size } from "./format.js";
import { collect, corners, placeOf, sampled, valueAt } from "./intervals.js";
import { now, state, subscribe } from "./state.js";
import { table, toggleTable } from "./timeline-table.js";
import { follow, range, view, zoomTo } from "./timeline-view.js";

const SPANS = [
  { s: 60, word: "1 min" },
  { s: 300, word: "5 min" },
  { s: 900, word: "15 min" },
  { s: 3600, word: "1 h" },
  { s: 21600, word: "6 h" },
];
const FRAME_MS = 100;
const CALM_MS = 1000; // for those who want little motion
const STACK = 132;
const LANE = 20;
const GAP = 8;
const AXIS = 22;
const NAMES_NARROW = 560;

const still = matchMedia("(prefers-reduced-motion: reduce)");

let canvas;
let context;
let colours;
let drawn = 0;
let lanes = [];
let box = { left: 0, width: 0 };

export function start() {
  const root = byId("timeline");
  canvas = root.querySelector("canvas");
  context = canvas.getContext("2d");
  for (const { s, word } of SPANS) {
    byId("timeline-spans").append(h("button", { type: "button", "data-span": s, "aria-pressed": "false", text: word, onclick: () => zoomTo(s) }));
  }
  byId("timeline-live").addEventListener("click", () => ((view.end = null), redraw()));
  byId("timeline-as-table").addEventListener("click", () => (toggleTable(), redraw()));
  follow(root, { timeAt, get width() { return box.width; } }, redraw);
  new ResizeObserver(redraw).observe(root);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", restyle);
  new MutationObserver(restyle).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  restyle();
  subscribe(redraw);
  requestAnimationFrame(frame);
}

function restyle() {
  colours = palette();
  redraw();
}

function frame(at) {
  const wanted = view.end === null && !document.hidden && at - drawn >= (still.matches ? CALM_MS : FRAME_MS);
  if (wanted || drawn === 0) {
    drawn = at;
    draw();
  }
  requestAnimationFrame(frame);
}

function redraw() {
  drawn = 0;
}

// -- what is shown ---------------------------------------------------------------------------------------------------

function limit() {
  return (state.node?.gpus ?? []).reduce((sum, gpu) => sum + gpu.limit_bytes, 0);
}

// -- drawing ---------------------------------------------------------------------------------------------------------

function draw() {
  if (!canvas || !state.node) return;
  const shown = range();
  const rows = collect(state.intervals.values(), shown);
  const width = canvas.parentElement.clientWidth;
  if (width === 0) return;
  const narrow = width < NAMES_NARROW;
  const lane = narrow ? LANE + 16 : LANE + GAP;
  const height = STACK + GAP * 2 + Math.max(1, rows.length) * lane + AXIS;
  fit(width, height);
  box = { left: narrow ? 0 : Math.min(180, Math.max(96, width * 0.13)), top: 6, width: 0, height };
  box.width = width - box.left - (narrow ? 0 : 8);
  context.clearRect(0, 0, width, height);
  context.font = `12px ${getComputedStyle(document.body).fontFamily}`;
  context.textBaseline = "middle";
  grid(shown, height);
  stack(rows, shown, narrow);
  lanes = [];
  let top = STACK + GAP * 2;
  for (const row of rows) {
    lanes.push({ ...row, top: narrow ? top + 14 : top, height: LANE });
    drawLane(row, shown, { top, narrow });
    top += lane;
  }
  if (rows.length === 0) {
    context.fillStyle = colours.quiet;
    context.fillText("No workload had VRAM in this time.", box.left + 8, top + LANE / 2);
  }
  hover(shown, height);
  setText(byId("timeline-range"), `${clock(shown.from)} – ${view.end === null ? "now" : clock(shown.to)}, ${seconds(view.span)}`);
  for (const button of byId("timeline-spans").children) {
    button.setAttribute("aria-pressed", String(Math.abs(Number(button.dataset.span) - view.span) < 0.5));
  }
  byId("timeline-live").setAttribute("aria-pressed", String(view.end === null));
  legend(rows);
  table(rows);
}

function fit(width, height) {
  const scale = devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    canvas.style.height = `${height}px`;
  }
  context.setTransform(scale, 0, 0, scale, 0, 0);
}

const x = (t, { from, to }) => box.left + ((t - from) / (to - from)) * box.width;

function timeAt(offset) {
  const { from, to } = range();
  return from + ((offset - box.left) / box.width) * (to - from);
}

const STEPS = [0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];

function grid(shown, height) {
  const wanted = Math.max(2, box.width / 110);
  const step = STEPS.find((s) => view.span / s <= wanted) ?? 7200;
  context.strokeStyle = colours.line;
  context.fillStyle = colours.quiet;
  context.lineWidth = 1;
  context.textAlign = "center";
  const offset = new Date().getTimezoneOffset() * 60;
  for (let t = Math.ceil((shown.from - offset) / step) * step + offset; t <= shown.to; t += step) {
    const at = Math.round(x(t, shown)) + 0.5;
    context.beginPath();
    context.moveTo(at, 4);
    context.lineTo(at, height - AXIS + 2);
    context.stroke();
    if (at < box.left + 24 || at > box.left + box.width - 24) continue;
    context.fillText(step < 1 ? clock(t, { fine: true }).slice(3, 10) : clock(t), at, height - AXIS / 2);
  }
  context.textAlign = "left";
}

function stack(rows, shown, narrow) {
  const most = limit();
  const all = rows.map((row) => ({ name: row.name, points: corners(row.intervals, shown.to) }));
  const times = sampled(all, shown, Math.max(200, Math.round(box.width) * 2));
  const cursors = all.map(() => ({ i: 0 }));
  const sums = new Float64Array(times.length);
  const layers = all.map(({ name }) => ({ name, low: new Float64Array(times.length), high: new Float64Array(times.length) }));
  times.forEach((t, i) => {
    const values = all.map(({ points }, k) => valueAt(points, t, cursors[k]));
    const held = values.reduce((sum, [still]) => sum + still, 0);
    const moving = values.reduce((sum, [, moves]) => sum + moves, 0);
    // An interval says the most that it held, and of those on the move nobody knows how much is there at a moment. Together they
    // never have more than there is.
    const shrink = most > 0 && held > most ? most / held : 1;
    const squeeze = moving > 0 && most > 0 ? Math.min(1, Math.max(0, most - held) / moving) : 1;
    values.forEach(([still, moves], k) => {
      layers[k].low[i] = sums[i];
      sums[i] += still * shrink + moves * squeeze;
      layers[k].high[i] = sums[i];
    });
  });
  const highest = Math.max(most, ...sums, 1);
  const y = (bytes) => 8 + (STACK - 8) * (1 - bytes / (highest * 1.04));
  context.save();
  context.beginPath();
  context.rect(box.left, 0, box.width, STACK + 1);
  context.clip();
  for (const { name, low, high } of layers) {
    context.beginPath();
    times.forEach((t, i) => context.lineTo(x(t, shown), y(high[i])));
    for (let i = times.length - 1; i >= 0; i -= 1) context.lineTo(x(times[i], shown), y(low[i]));
    context.closePath();
    context.fillStyle = colours.workloads[colourOf(name)];
    context.fill();
  }
  context.restore();
  context.strokeStyle = colours.quiet;
  context.setLineDash([4, 4]);
  context.beginPath();
  context.moveTo(box.left, Math.round(y(most)) + 0.5);
  context.lineTo(box.left + box.width, Math.round(y(most)) + 0.5);
  context.stroke();
  context.setLineDash([]);
  context.beginPath();
  context.strokeStyle = colours.line;
  context.moveTo(box.left, STACK + 0.5);
  context.lineTo(box.left + box.width, STACK + 0.5);
  context.stroke();
  context.fillStyle = colours.quiet;
  if (!narrow) {
    context.textAlign = "right";
    context.fillText(size(most), box.left - 8, y(most));
    if (y(0) - y(most) > 60) context.fillText(size(most / 2), box.left - 8, y(most / 2));
    context.fillText("0", box.left - 8, STACK - 2);
    context.textAlign = "left";
  } else {
    badge(`${size(most)} to hand out`, box.left + 4, y(most) + 11);
  }
}

function badge(text, left, middle) {
  const width = context.measureText(text).width;
  context.fillStyle = colours.surface;
  context.globalAlpha = 0.85;
  context.fillRect(left - 3, middle - 8, width + 6, 16);
  context.globalAlpha = 1;
  context.fillStyle = colours.quiet;
  context.fillText(text, left, middle);
}

function drawLane({ name, intervals }, shown, { top, narrow }) {
  const colour = colours.workloads[colourOf(name)];
  const bar = narrow ? top + 14 : top;
  if (narrow) {
    context.fillStyle = colour;
    context.fillRect(0, top + 2, 8, 8);
    context.fillStyle = colours.ink;
    context.fillText(clipped(name, box.width - 16), 13, top + 6);
  } else {
    context.fillStyle = colour;
    context.fillRect(0, top + LANE / 2 - 5, 10, 10);
    context.fillStyle = colours.ink;
    context.fillText(clipped(name, box.left - 26), 16, top + LANE / 2);
  }
  context.save();
  context.beginPath();
  context.rect(box.left, bar, box.width, LANE);
  context.clip();
  context.fillStyle = colours.raised;
  context.fillRect(box.left, bar, box.width, LANE);
  for (const one of intervals) {
    const left = Math.max(x(one.began, shown), box.left - 2);
    const right = Math.min(x(one.ended ?? shown.to, shown), box.left + box.width + 2);
    shape(placeOf(one), colour, left, bar, Math.max(right - left, 1.2));
  }
  context.restore();
}

function shape(where, colour, left, top, width) {
  context.fillStyle = colour;
  const middle = top + LANE / 2;
  if (where === "nothing") {
    context.strokeStyle = colour;
    context.lineWidth = 1;
    context.strokeRect(left + 0.5, top + 0.5, width - 1, LANE - 1);
  } else if (where === "vram") context.fillRect(left, top, width, LANE);
  else if (where === "ram") {
    context.globalAlpha = 0.55;
    context.fillRect(left, middle - 4, width, 8);
    context.globalAlpha = 1;
  } else if (where === "nvme") context.fillRect(left, middle - 1, width, 2);
  else if (where === "object") for (let at = left; at < left + width; at += 6) context.fillRect(at, middle - 1, 2, 2);
  else {
    context.save();
    context.beginPath();
    context.rect(left, top, width, LANE);
    context.clip();
    context.globalAlpha = 0.3;
    context.fillRect(left, top, width, LANE);
    context.globalAlpha = 1;
    context.strokeStyle = colour;
    context.lineWidth = 1.6;
    context.beginPath();
    for (let at = Math.floor((left - LANE) / 6) * 6; at < left + width; at += 6) {
      context.moveTo(at, top + LANE);
      context.lineTo(at + LANE, top);
    }
    context.stroke();
    context.restore();
  }
}

function clipped(text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && context.measureText(`${text.slice(0, end)}…`).width > width) end -= 1;
  return `${text.slice(0, end)}…`;
}

// -- legend and tip --------------------------------------------------------------------------------------------------

let legendFor = null;

function legend(rows) {
  const key = rows.map((row) => `${row.name} ${colourOf(row.name)}`).join("\n");
  if (key === legendFor) return;
  legendFor = key;
  byId("timeline-legend").replaceChildren(
    ...["vram", "ram", "nvme", "object", "switching"].map((where) => h("span", {}, h("i", { class: `form ${where}` }), place(where))),
  );
}

function hover(shown, height) {
  const tip = canvas.parentElement.querySelector(".tip");
  if (view.hover === null || view.hover.x < box.left || view.hover.x > box.left + box.width) {
    show(tip, false);
    return;
  }
  const t = timeAt(view.hover.x);
  context.strokeStyle = colours.accent;
  context.beginPath();
  context.moveTo(Math.round(view.hover.x) + 0.5, 2);
  context.lineTo(Math.round(view.hover.x) + 0.5, height - AXIS);
  context.stroke();
  const lines = [h("div", { class: "quiet", text: clock(t, { fine: view.span < 120 }) })];
  const under = lanes.find((lane) => view.hover.y >= lane.top && view.hover.y <= lane.top + lane.height);
  for (const lane of under ? [under] : lanes) {
    const one = lane.intervals.find((i) => i.began <= t && t < (i.ended ?? Infinity));
    if (!one || (!under && placeOf(one) !== "vram" && one.place !== "switching")) continue;
    const how = under ? `${place(placeOf(one))} for ${seconds((one.ended ?? now()) - one.began)}` : place(one.place);
    const much = one.bytes ? `, ${size(one.bytes)}` : "";
    lines.push(h("div", {}, h("i", { class: swatchClass(lane.name) }), h("b", { text: lane.name }), ` ${how}${much}`));
  }
  if (lines.length === 1) lines.push(h("div", { text: t < state.complete ? "not known any more" : "nobody held VRAM" }));
  tip.replaceChildren(...lines);
  show(tip, true);
  const half = tip.offsetWidth / 2;
  const wide = canvas.parentElement.clientWidth;
  tip.style.left = `${Math.min(Math.max(view.hover.x - half, 0), Math.max(0, wide - 2 * half))}px`;
  tip.style.top = `${Math.min(view.hover.y + 18, height - 20)}px`;
}
