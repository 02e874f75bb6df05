// What switches cost: how long each of the last ones took, and how much of the link it used.

import { swatchClass, colourOf } from "./colours.js";
import { byId, h, setText } from "./dom.js";
import { clock, percent, rate, seconds, size } from "./format.js";
import { state, subscribe } from "./state.js";

const SHOWN = 24;
const LISTED = 6;

let key = null;

export function start() {
  subscribe(render);
}

function limitOf(operation) {
  const field = operation === "pause" ? "to_host" : "to_gpu";
  const known = state.links.map((link) => link[field]).filter((value) => value);
  return known.length ? Math.max(...known) : null;
}

function render() {
  const last = state.switches.slice(-SHOWN);
  const now = `${last.length} ${last.at(-1)?.time} ${JSON.stringify(state.links)} ${state.node?.simulated}`;
  if (now === key) return;
  key = now;
  setText(byId("switches-quiet"), last.length ? `the last ${last.length}` : "");
  if (last.length === 0) {
    byId("switches").replaceChildren(h("p", { class: "empty", text: "None yet. A pause or a resume shows here with what it cost." }));
    return;
  }
  const listed = last.slice(-LISTED).reverse();
  byId("switches").replaceChildren(h("div", { class: "charts" }, costs(last), ...bandwidth(last)), list(listed));
}

function costs(last) {
  const most = Math.max(...last.map((one) => one.seconds), 0.001);
  const median = (operation) => {
    const all = last.filter((one) => one.operation === operation).map((one) => one.seconds).sort((a, b) => a - b);
    return all.length ? all[Math.floor((all.length - 1) / 2)] : null;
  };
  const [out, back] = [median("pause"), median("resume")];
  const words = [out !== null ? `pause ${seconds(out)}` : null, back !== null ? `resume ${seconds(back)}` : null].filter(Boolean).join(", ");
  const bars = last.map((one) => bar(one, one.seconds / most, `${one.operation} of ${one.workload}: ${seconds(one.seconds)}`));
  return chart(`Time each took; medians: ${words}`, `up to ${seconds(most)}`, bars, null);
}

function bandwidth(last) {
  const copied = last.filter((one) => one.bytes_per_s);
  if (copied.length === 0) return [];
  const limits = ["pause", "resume"].map(limitOf).filter((value) => value);
  const limit = limits.length ? Math.max(...limits) : null;
  const most = Math.max(...copied.map((one) => one.bytes_per_s), limit ?? 0);
  const bars = last.map((one) => {
    const share = limitOf(one.operation);
    const of = share && one.bytes_per_s ? `, ${percent(one.bytes_per_s / share)} of the link` : "";
    const text = one.bytes_per_s ? `${one.operation} of ${one.workload}: ${rate(one.bytes_per_s)}${of}` : `${one.operation} of ${one.workload}: nothing copied`;
    return bar(one, (one.bytes_per_s ?? 0) / most, text);
  });
  const simulated = state.node?.simulated ? " (simulated)" : "";
  const words = limit ? `the link's limit is ${rate(limit)}${simulated}` : `the link's limit isn't known${simulated}`;
  return [chart(`Bandwidth of each; ${words}`, `up to ${rate(Math.max(...copied.map((one) => one.bytes_per_s)))}`, bars, limit ? limit / most : null)];
}

function bar(one, share, text) {
  const filled = h("i", { class: share > 0 ? "bar" : "bar none" });
  filled.style.height = `${Math.max(2, 100 * share)}%`;
  // An arrow out of VRAM or into it, so that the two are told apart without a colour.
  return h("div", { class: `c${colourOf(one.workload)}`, title: text }, h("div", {}, filled), h("span", { text: one.operation === "pause" ? "▼" : "▲" }));
}

function chart(title, scale, bars, limit) {
  const picture = h("div", { class: "chart", role: "img", "aria-label": `${title}. ${scale}.` }, ...bars);
  if (limit !== null) {
    const line = h("hr", { class: "limit" });
    line.style.setProperty("--share", String(limit));
    picture.append(line);
  }
  return h("figure", {}, h("figcaption", {}, h("span", { text: title }), h("span", { class: "quiet scale", text: scale })), picture);
}

function list(listed) {
  return h(
    "ul",
    { class: "switch-list", "aria-label": "The last switches" },
    ...listed.map((one) => {
      const limit = limitOf(one.operation);
      const facts = [`${size(one.bytes_copied)} copied`];
      if (one.bytes_clean) facts.push(`${size(one.bytes_clean)} clean`);
      if (one.bytes_zero) facts.push(`${size(one.bytes_zero)} zero`);
      if (one.bytes_per_s) facts.push(rate(one.bytes_per_s) + (limit ? ` (${percent(one.bytes_per_s / limit)} of the link)` : ""));
      return h(
        "li",
        {},
        h("i", { class: swatchClass(one.workload) }),
        h("div", {}, h("span", {}, h("b", { text: one.workload }), ` ${one.operation === "pause" ? "▼ paused" : "▲ resumed"} in ${seconds(one.seconds)}`), h("span", { class: "quiet", text: facts.join(", ") })),
        h("time", { class: "quiet", text: clock(one.time) }),
      );
    }),
  );
}
