// A colour for each workload: the first eight that are seen get different ones, and keep them. The colours are told apart by people
// who see few of them, and nothing is said by colour alone: each has its name beside it.

const COUNT = 8;
const given = new Map();

export function colourOf(name) {
  let index = given.get(name);
  if (index === undefined) {
    const used = new Array(COUNT).fill(0);
    for (const other of given.values()) used[other] += 1;
    index = used.indexOf(Math.min(...used));
    given.set(name, index);
  }
  return index;
}

export function swatchClass(name) {
  return `swatch c${colourOf(name)}`;
}

/** The colours as the stylesheet has them now: they differ by theme. */
export function palette() {
  // A variable's own value has both themes in it; what is computed from it has one.
  const probe = document.createElement("i");
  document.documentElement.append(probe);
  const read = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const found = {
    workloads: Array.from({ length: COUNT }, (_, i) => read(`--c${i}`)),
    ink: read("--ink"),
    quiet: read("--quiet"),
    line: read("--line"),
    surface: read("--surface"),
    raised: read("--raised"),
    accent: read("--accent"),
    bad: read("--bad"),
  };
  probe.remove();
  return found;
}
