// Numbers, times and events as people read them. Sizes are binary, as everywhere in Kybernate.

import { h, sentence } from "./dom.js";

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];

export function size(bytes) {
  let amount = Math.max(0, bytes || 0);
  let unit = 0;
  while (amount >= 1024 && unit < UNITS.length - 1) {
    amount /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || amount >= 100 ? 0 : 1;
  return `${amount.toFixed(digits).replace(/\.0$/, "")} ${UNITS[unit]}`;
}

export function rate(bytesPerSecond) {
  return `${size(bytesPerSecond)}/s`;
}

export function seconds(s) {
  if (s === null || s === undefined || !Number.isFinite(s)) return "–";
  if (s < 0.0995) return `${Math.round(s * 1000)} ms`;
  if (s < 10) return `${s.toFixed(2)} s`;
  if (s < 60) return `${Math.round(s)} s`;
  const [big, small, unit] = s < 3600 ? ["min", "s", 60] : s < 86400 ? ["h", "min", 3600] : ["d", "h", 86400];
  const whole = Math.floor(s / unit);
  const rest = Math.floor((s % unit) / { s: 1, min: 60, h: 3600 }[small]);
  return rest ? `${whole} ${big} ${rest} ${small}` : `${whole} ${big}`;
}

export function percent(part) {
  return `${Math.round(100 * part)} %`;
}

export function clock(epochSeconds, { fine = false } = {}) {
  const date = new Date(epochSeconds * 1000);
  const two = (n) => String(n).padStart(2, "0");
  const text = `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  return fine ? `${text}.${String(date.getMilliseconds()).padStart(3, "0")}` : text;
}

export function plural(n, one, many = `${one}s`) {
  return `${n} ${n === 1 ? one : many}`;
}

/** What happened: the kind stands out, and many texts begin with its word. */
export function said({ kind, text }) {
  return [h("b", { text: kind }), ...sentence(text.startsWith(`${kind} `) ? text.slice(kind.length) : ` ${text}`)];
}

export const PLACES = {
  vram: "VRAM",
  ram: "RAM",
  nvme: "NVMe",
  object: "object store",
  switching: "switching",
  nothing: "runs, no VRAM",
};

export function place(name) {
  return PLACES[name] ?? String(name ?? "–");
}
