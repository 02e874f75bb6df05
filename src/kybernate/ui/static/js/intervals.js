// Where workloads were when, made ready to be drawn: pure functions.

/** Intervals by workload, oldest first; those that touch the range. */
export function collect(intervals, { from, to }) {
  const found = new Map();
  for (const interval of intervals) {
    if (interval.began > to || (interval.ended ?? Infinity) < from) continue;
    if (!found.has(interval.workload)) found.set(interval.workload, []);
    found.get(interval.workload).push(interval);
  }
  for (const list of found.values()) list.sort((a, b) => a.began - b.began || a.id - b.id);
  return [...found.entries()].map(([name, intervals]) => ({ name, intervals })).sort((a, b) => (a.name < b.name ? -1 : 1));
}

/** VRAM of a workload over time, as corners [time, bytes held, bytes on the move]: switching goes evenly from what was to what comes. */
export function corners(intervals, to) {
  const points = [];
  for (let i = 0; i < intervals.length; i += 1) {
    const one = intervals[i];
    const end = one.ended ?? to;
    if (one.place === "vram") points.push([one.began, one.bytes, 0], [end, one.bytes, 0]);
    else if (one.place === "switching") {
      const before = intervals[i - 1]?.place === "vram" ? intervals[i - 1].bytes : 0;
      const next = intervals[i + 1];
      const goal = next ? (next.place === "vram" ? next.bytes : 0) : before ? 0 : one.bytes;
      const share = one.ended === null && before ? 0.5 : 1;
      points.push([one.began, 0, before], [end, 0, before + (goal - before) * share]);
    } else points.push([one.began, 0, 0], [end, 0, 0]);
  }
  return points;
}

const NOTHING = [0, 0];

/** [held, on the move] at a moment that is not before the cursor's. */
export function valueAt(points, t, cursor) {
  while (cursor.i + 1 < points.length && points[cursor.i + 1][0] <= t) cursor.i += 1;
  const here = points[cursor.i];
  const next = points[cursor.i + 1];
  if (!here || t < here[0] || !next) return NOTHING;
  const part = next[0] === here[0] ? 1 : (t - here[0]) / (next[0] - here[0]);
  return [here[1] + (next[1] - here[1]) * part, here[2] + (next[2] - here[2]) * part];
}

/** Moments at which something changes, each twice (just before, just after); evenly spaced where there are more than can be seen. */
export function sampled(all, { from, to }, most) {
  const edges = new Set([from, to]);
  for (const { points } of all) for (const [t] of points) if (t > from && t < to) edges.add(t);
  if (edges.size > most) return Array.from({ length: most + 1 }, (_, i) => from + ((to - from) * i) / most);
  const tiny = (to - from) * 1e-7;
  return [...edges].sort((a, b) => a - b).flatMap((t) => [t - tiny, t]);
}

/** A program that runs and holds no VRAM is no bar of it. */
export function placeOf({ place: where, bytes }) {
  return where === "vram" && !bytes ? "nothing" : where;
}
