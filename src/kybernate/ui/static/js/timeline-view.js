// Which part of the past the timeline shows, and how keys, wheel and fingers change that.

import { now } from "./state.js";

const LEAST_S = 2;
const MOST_S = 21600;

export const view = { span: 300, end: null, hover: null };

let canvas;
let layout;
let redraw;

/** `shown` tells how it is laid out now: `timeAt(x)` and `width` of what stands for time; `changed` is called after each change. */
export function follow(root, shown, changed) {
  canvas = root.querySelector("canvas");
  layout = shown;
  redraw = changed;
  root.addEventListener("keydown", onKey);
  root.addEventListener("wheel", onWheel, { passive: false });
  root.addEventListener("dblclick", (event) => zoomAt(0.5, layout.timeAt(event.offsetX)));
  root.addEventListener("pointerdown", onDown);
  root.addEventListener("pointermove", onMove);
  root.addEventListener("pointerup", onUp);
  root.addEventListener("pointercancel", onUp);
  root.addEventListener("pointerleave", () => ((view.hover = null), redraw()));
}

export function range() {
  const end = view.end ?? now();
  return { from: end - view.span, to: end };
}

export function zoomTo(span) {
  view.span = Math.min(MOST_S, Math.max(LEAST_S, span));
  redraw();
}

function zoomAt(factor, t) {
  const { to } = range();
  const span = Math.min(MOST_S, Math.max(LEAST_S, view.span * factor));
  if (view.end !== null) view.end = t + (to - t) * (span / view.span);
  view.span = span;
  settle();
}

function move(by) {
  view.end = (view.end ?? now()) + by;
  settle();
}

function settle() {
  if (view.end !== null && view.end >= now() - view.span * 0.01) view.end = null;
  if (view.end !== null) view.end = Math.max(view.end, now() - MOST_S + view.span);
  redraw();
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  const { from, to } = range();
  const middle = view.end === null ? to : (from + to) / 2;
  const does = {
    ArrowLeft: () => move(-view.span / 8),
    ArrowRight: () => move(view.span / 8),
    PageUp: () => move(-view.span),
    PageDown: () => move(view.span),
    "+": () => zoomAt(0.5, middle),
    "=": () => zoomAt(0.5, middle),
    "-": () => zoomAt(2, middle),
    End: () => ((view.end = null), redraw()),
    Home: () => ((view.end = now() - MOST_S + view.span), settle()),
    Escape: () => ((view.hover = null), redraw()),
  }[event.key];
  if (!does) return;
  event.preventDefault();
  does();
}

function onWheel(event) {
  // A plain wheel scrolls the page, as everywhere.
  if (event.ctrlKey || event.metaKey) {
    event.preventDefault();
    zoomAt(Math.exp(event.deltaY * 0.004), layout.timeAt(at(event).x));
  } else if (event.shiftKey || Math.abs(event.deltaX) > Math.abs(event.deltaY)) {
    event.preventDefault();
    move(((event.deltaX || event.deltaY) / layout.width) * view.span);
  }
}

const pointers = new Map();

function at(event) {
  const rectangle = canvas.getBoundingClientRect();
  return { x: event.clientX - rectangle.left, y: event.clientY - rectangle.top };
}

function onDown(event) {
  if (event.button !== 0) return;
  pointers.set(event.pointerId, at(event));
  event.currentTarget.setPointerCapture(event.pointerId);
}

function onMove(event) {
  const here = at(event);
  const before = pointers.get(event.pointerId);
  view.hover = here;
  if (before) {
    const others = [...pointers.entries()].filter(([id]) => id !== event.pointerId);
    if (others.length === 1) {
      const other = others[0][1].x;
      const was = Math.abs(before.x - other);
      const is = Math.abs(here.x - other);
      if (was > 8 && is > 8) zoomAt(was / is, layout.timeAt((here.x + other) / 2));
    } else if (others.length === 0 && here.x !== before.x) move(((before.x - here.x) / layout.width) * view.span);
    pointers.set(event.pointerId, here);
  }
  redraw();
}

function onUp(event) {
  pointers.delete(event.pointerId);
}
