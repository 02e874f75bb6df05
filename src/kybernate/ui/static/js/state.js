// What the page knows of the node, kept in step with the agent; whoever draws it is told at most once a frame.

import { follow, get, ApiError } from "./api.js";
import { colourOf } from "./colours.js";

const EVENTS_MOST = 300;
const HISTORY_S = 6 * 3600;
const POLL_MS = 1000;
const AWAY_MS = [500, 1000, 2000, 4000, 8000];
const SILENCE_MS = 25_000; // the agent says something every ten seconds

export const state = {
  node: null,
  workloads: new Map(),
  events: [],
  jobs: [],
  serving: null,
  intervals: new Map(),
  switches: [],
  links: [],
  complete: 0,
  connected: false,
  trouble: null,
  behind: 0, // the agent's clock minus this browser's, seconds
};

const listeners = new Set();
let asked = false;

export function subscribe(listener) {
  listeners.add(listener);
}

export function changed() {
  if (asked) return;
  asked = true;
  // A page that isn't looked at gets no frames, but must not pile up work either.
  requestAnimationFrame(() => {
    asked = false;
    for (const listener of listeners) listener(state);
  });
}

export function now() {
  return Date.now() / 1000 + state.behind;
}

function onEvent(kind, data) {
  if (kind === "node") state.node = data;
  else if (kind === "workload") state.workloads.set(data.name, data);
  else if (kind === "gone") state.workloads.delete(data.workload);
  else if (kind === "jobs") state.jobs = data.jobs;
  else if (kind === "event") addEvents([data]);
  else return;
  changed();
}

function addEvents(events) {
  const known = new Set(state.events.map((event) => event.id));
  state.events.push(...events.filter((event) => !known.has(event.id)));
  state.events.sort((a, b) => a.id - b.id);
  state.events.splice(0, Math.max(0, state.events.length - EVENTS_MOST));
}

let lastLook = null;

async function lookAtHistory(signal) {
  const since = lastLook === null ? Date.now() / 1000 - HISTORY_S : lastLook - 2;
  const view = await get(`/v1/history?since=${since.toFixed(3)}`, { signal });
  const first = lastLook === null;
  lastLook = view.now;
  state.behind = view.now - Date.now() / 1000;
  state.links = view.links;
  if (first) {
    state.complete = view.since;
    state.intervals.clear();
    state.switches = [];
  }
  for (const interval of view.intervals) state.intervals.set(interval.id, interval);
  const newest = state.switches.length ? state.switches[state.switches.length - 1].time : 0;
  state.switches.push(...view.switches.filter((one) => one.time > newest));
  const oldest = view.now - HISTORY_S;
  for (const [id, interval] of state.intervals) {
    if (interval.ended !== null && interval.ended < oldest) state.intervals.delete(id);
  }
  while (state.switches.length && state.switches[0].time < oldest) state.switches.shift();
}

let servingThere = false;

/** An agent without models has no such path, and asking in vain is an error in the browser's log. */
async function findServing(signal) {
  const { paths } = await get("/openapi.json", { signal });
  servingThere = "/v1/serving" in paths;
  if (!servingThere) state.serving = null;
}

async function lookAtServing(signal) {
  if (servingThere) state.serving = await get("/v1/serving", { signal });
}

/** In the order of names, so that a page that is loaded again looks the same. */
function nameColours() {
  const past = [...state.intervals.values()].map((interval) => interval.workload);
  for (const name of [...new Set([...state.workloads.keys(), ...past])].sort()) colourOf(name);
}

const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });

/** Until `signal`; throws only for a token that isn't right. */
export async function watch(signal) {
  let failures = 0;
  while (!signal.aborted) {
    const round = new AbortController();
    const stop = () => round.abort();
    signal.addEventListener("abort", stop, { once: true });
    let heard = performance.now();
    const silence = setInterval(() => performance.now() - heard > SILENCE_MS && round.abort(), 1000);
    try {
      lastLook = null;
      const past = await get("/v1/events?count=200", { signal: round.signal });
      const all = await get("/v1/workloads", { signal: round.signal });
      state.events = [];
      addEvents(past.events);
      state.workloads = new Map(all.workloads.map((workload) => [workload.name, workload]));
      await findServing(round.signal);
      await lookAtHistory(round.signal);
      await lookAtServing(round.signal);
      nameColours();
      const stream = follow("/v1/stream", {
        signal: round.signal,
        opened: () => {
          failures = 0;
          state.connected = true;
          state.trouble = null;
          changed();
        },
        on: onEvent,
        heard: () => (heard = performance.now()),
      });
      const polls = (async () => {
        while (!round.signal.aborted) {
          await pause(document.hidden ? 5 * POLL_MS : POLL_MS, round.signal);
          if (round.signal.aborted) return;
          await lookAtHistory(round.signal);
          await lookAtServing(round.signal);
          changed();
        }
      })();
      for (const one of [stream, polls]) one.catch(() => {}); // the one that is not first is cut off below
      await Promise.race([stream, polls]);
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) throw error;
      if (error.name !== "AbortError") state.trouble = error;
    } finally {
      clearInterval(silence);
      signal.removeEventListener("abort", stop);
      round.abort();
    }
    if (signal.aborted) break;
    state.connected = false;
    state.trouble ??= new ApiError(0, { message: "the connection to the agent ended", hint: "trying again" });
    changed();
    await pause(AWAY_MS[Math.min(failures, AWAY_MS.length - 1)], signal);
    failures += 1;
  }
  state.connected = false;
}
