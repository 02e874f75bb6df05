// Makes and updates elements. Whatever comes from outside becomes text or an attribute's value, never markup.

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function byId(id) {
  return document.getElementById(id);
}

export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sentences of the agent: what stands between backticks is code. As elements and texts, never as markup. */
export function sentence(text) {
  const parts = String(text ?? "").split("`");
  if (parts.length % 2 === 0) parts.push(`\`${parts.pop()}`); // one that has no partner is a character
  return parts.map((part, i) => (i % 2 ? h("code", { text: part }) : part)).filter((part) => part !== "");
}

export function setSentence(element, text) {
  if (element.dataset.said === text) return;
  element.dataset.said = text;
  element.replaceChildren(...sentence(text));
}

/** The same where there can be no elements. */
export function withoutMarks(text) {
  return String(text ?? "").replaceAll("`", "");
}

/** Within a container whose width decides about styles, what was just put in has none before the layout, and takes no focus. */
export function focusNow(element) {
  element?.getBoundingClientRect();
  element?.focus();
}

export function setAttribute(element, name, value) {
  if (value === null) element.removeAttribute(name);
  else if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

export function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}

/** Keeps `parent`'s children in step with `items`: made once by key, updated in place, so that focus stays where it is, also in one
 * that has to move, which would take it away. */
export class Keyed {
  constructor(parent, make) {
    this.parent = parent;
    this.make = make;
    this.parts = new Map();
  }

  update(items, keyOf) {
    const focused = this.parent.contains(document.activeElement) ? document.activeElement : null;
    const keys = new Set(items.map(keyOf));
    for (const [key, part] of this.parts) {
      if (keys.has(key)) continue;
      part.element.remove();
      this.parts.delete(key);
    }
    const wanted = new Set();
    let next = this.parent.firstElementChild;
    for (const item of items) {
      const key = keyOf(item);
      if (wanted.has(key)) continue;
      wanted.add(key);
      let part = this.parts.get(key);
      if (!part) {
        part = this.make(item);
        this.parts.set(key, part);
      }
      part.update(item);
      if (part.element === next) next = next.nextElementSibling;
      else this.parent.insertBefore(part.element, next);
    }
    if (focused?.isConnected && document.activeElement === document.body) focusNow(focused);
  }
}
