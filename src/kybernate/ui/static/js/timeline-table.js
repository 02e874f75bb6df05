// The timeline as a table, for those who read rather than look.

import { swatchClass } from "./colours.js";
import { byId, h, show } from "./dom.js";
import { clock, place, seconds, size } from "./format.js";
import { placeOf } from "./intervals.js";

const ROWS_MOST = 200;

let shownNow = null;

export function toggleTable() {
  const there = byId("timeline-table");
  show(there, there.hidden);
  byId("timeline-as-table").setAttribute("aria-pressed", String(!there.hidden));
  shownNow = null;
}

export function table(rows) {
  if (byId("timeline-table").hidden) return;
  const all = rows.flatMap((row) => row.intervals).sort((a, b) => b.began - a.began || b.id - a.id).slice(0, ROWS_MOST);
  const key = all.map((one) => `${one.id}:${one.ended}:${one.bytes}`).join();
  if (key === shownNow) return;
  shownNow = key;
  const head = h("tr", {}, ...["Workload", "Where", "From", "To", "For", "VRAM"].map((text) => h("th", { scope: "col", text })));
  const body = all.map((one) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, h("i", { class: swatchClass(one.workload) }), one.workload),
      h("td", { text: place(placeOf(one)) }),
      h("td", { text: clock(one.began) }),
      h("td", { text: one.ended === null ? "now" : clock(one.ended) }),
      h("td", { text: one.ended === null ? "–" : seconds(one.ended - one.began) }),
      h("td", { text: one.bytes ? size(one.bytes) : "–" }),
    ),
  );
  byId("timeline-table").replaceChildren(h("table", { class: "plain" }, h("thead", {}, head), h("tbody", {}, ...body)));
}
