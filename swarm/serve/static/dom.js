// Building, reconciling and wording. Nothing here knows the swarm.

const SVG = "http://www.w3.org/2000/svg";

function make(create, tag, props, children) {
  const node = create(tag);
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

/** An HTML element. Events go through `data-action` and one listener on the document, so `morph` need not move them. */
export const h = (tag, props, ...children) => make((t) => document.createElement(t), tag, props, children);

/** An SVG element. */
export const s = (tag, props, ...children) => make((t) => document.createElementNS(SVG, t), tag, props, children);

/** Make `parent` hold `children` while keeping every node that can stay: focus, selection and open details survive. */
export function morph(parent, ...children) {
  reconcile(parent, children.flat(Infinity).filter((c) => c !== null && c !== undefined && c !== false)
    .map((c) => (c instanceof Node ? c : document.createTextNode(String(c)))));
}

function reconcile(parent, wanted) {
  let at = parent.firstChild;
  for (const next of wanted) {
    if (at && same(at, next)) {
      update(at, next);
      at = at.nextSibling;
      continue;
    }
    const key = next.nodeType === 1 && next.getAttribute("data-key");
    const kept = key ? [...parent.children].find((c) => c.getAttribute("data-key") === key && c.tagName === next.tagName) : null;
    if (kept) {
      parent.insertBefore(kept, at);
      update(kept, next);
    } else {
      parent.insertBefore(next, at);
    }
  }
  while (at) {
    const gone = at;
    at = at.nextSibling;
    gone.remove();
  }
}

const same = (a, b) =>
  a.nodeType === b.nodeType && a.nodeName === b.nodeName &&
  (a.nodeType !== 1 || a.getAttribute("data-key") === b.getAttribute("data-key"));

function update(old, next) {
  if (old.nodeType === 3) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    if (!next.hasAttribute(name) && !(old.nodeName === "DETAILS" && name === "open")) old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (!old.hasAttribute("data-own")) reconcile(old, [...next.childNodes]);
}

/** Lay out what has a place of its own. The page's policy forbids style attributes; setting properties is allowed. */
export function settle(root) {
  for (const span of root.querySelectorAll("[data-left]")) {
    span.style.left = span.dataset.left;
    span.style.width = span.dataset.width;
  }
}

export const plural = (n, one, many = one + "s") => `${n} ${n === 1 ? one : many}`;

export function ms(value) {
  if (value === null || value === undefined) return "–";
  return value < 10 ? `${value.toFixed(1)} ms` : value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`;
}

export function bytes(value) {
  for (const [scale, unit] of [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"]]) {
    if (value >= scale) return `${(value / scale).toFixed(value < 10 * scale ? 1 : 0)} ${unit}`;
  }
  return `${value} B`;
}

/** Free memory that is asked for, in the words of the command line. */
export function memory(value) {
  if (value >= 5e7) return `${(value / 1e9).toFixed(value < 1e10 ? 1 : 0)} GB`;
  return `${Math.max(value / 1e6, 1).toFixed(0)} MB`;
}

export const percent = (share) => `${Math.round(share * 100)}%`;
export const rate = (value) => (value >= 100 ? value.toFixed(0) : value.toFixed(1));

/** Layers [first, last) as people count them: "0–9". */
export const layers = ([first, last]) => (last - first === 1 ? `${first}` : `${first}–${last - 1}`);

export const short = (id) => id.slice(0, 8);
export const nodeName = (node) => node.name || short(node.id);

export function ago(seconds) {
  const passed = Math.max(0, Date.now() / 1000 - seconds);
  if (passed < 60) return "just now";
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  return new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}
