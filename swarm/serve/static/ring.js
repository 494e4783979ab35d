// The ring as a picture: an arc per stage, as long as its layers are many; a gap per edge, with its round trip.

import { arc, pieces, place, point } from "./geometry.js";
import { h, layers, ms, nodeName, percent, plural, rate, s, short } from "./dom.js";

const R = 100;
const WIDTH = 22;

/** The run to show: the newest that is on the ring, else the last one whose nodes are all still there. */
export function shownRun(state) {
  const live = state.runs.find((run) => ["answering", "recovering"].includes(run.state) && run.ring.length);
  if (live) return live;
  const here = new Set(state.nodes.filter((n) => n.state === "serving").map((n) => n.id));
  return state.runs.find((run) => run.state === "done" && run.ring.length && run.ring.every((st) => here.has(st.node)));
}

export const isLive = (run) => Boolean(run) && ["answering", "recovering"].includes(run.state);

export function edgeBetween(state, a, b) {
  return state.edges.find((e) => (e.a === a && e.b === b) || (e.a === b && e.b === a));
}

/** Facts of the edge that leads into piece `index` (or back to the requester, for the last one). */
function edgeInto(state, parts, index) {
  // A node's page speaks of requesters in general, and nobody measured the way to those.
  if (state.role === "node" && (index === 0 || index === parts.length)) return { rtt: null, kind: "" };
  const before = index === 0 ? state.here : parts[index - 1].id;
  const after = index === parts.length ? state.here : parts[index].id;
  const known = before && after ? edgeBetween(state, before, after) : null;
  // A run tells what its requester measured: the way to each stage, so the first and the last edge of the ring.
  const told = index === 0 ? parts[0].stage : index === parts.length ? parts[index - 1].stage : null;
  return { rtt: known?.rtt_ms ?? told?.rtt_ms ?? null, kind: known?.kind || told?.edge || "" };
}

export function ringPicture(state, hue) {
  const run = shownRun(state);
  const parts = state.n_layers ? pieces(state, run) : [];
  const found = state.nodes.length > 0;
  const { arcs, gaps } = place(parts);
  const byId = new Map(state.nodes.map((node) => [node.id, node]));
  const shapes = [];
  if (!found || !parts.length) {
    shapes.push(s("circle", { class: "hollow", r: R, cx: 0, cy: 0 }));
  } else {
    gaps.forEach(([from, to], index) => shapes.push(...edgeShapes(edgeInto(state, parts, index), from, to, parts, index)));
    parts.forEach((part, index) => shapes.push(...stageShapes(part, arcs[index], index, standing(part, byId, run), hue)));
    shapes.push(...requesterShapes(state));
  }
  return s("svg", { class: "ring", viewBox: "-170 -136 340 276", role: "img", "aria-label": describe(state, parts, run) },
    ...shapes,
    s("g", { class: "pulses", "data-own": true, "aria-hidden": "true" }),
    ...centre(state, run));
}

/** "missing", "lost", or the node's own state. The run knows of a loss before the mesh does. */
function standing(part, byId, run) {
  if (part.kind === "missing") return "missing";
  const node = byId.get(part.id);
  return !node || (run && run.state === "recovering" && run.lost === part.id) ? "lost" : node.state;
}

function stageShapes(part, [from, to], index, state, hue) {
  const out = [s("path", { class: `stage ${state} ${part.id ? hue(part.id) : ""}`, d: arc(R, from, to), "stroke-width": WIDTH })];
  const count = part.layers[1] - part.layers[0];
  if (state !== "missing" && (to - from) / count > 1.8) {
    for (let i = 1; i < count; i++) {
      const angle = from + ((to - from) * i) / count;
      const [x1, y1] = point(R - WIDTH / 2, angle);
      const [x2, y2] = point(R + WIDTH / 2, angle);
      out.push(s("line", { class: "tick", x1: x1.toFixed(2), y1: y1.toFixed(2), x2: x2.toFixed(2), y2: y2.toFixed(2) }));
    }
  }
  if (to - from > 9) {
    const [x, y] = point(R, (from + to) / 2);
    out.push(s("circle", { class: `badge ${state}`, cx: x.toFixed(2), cy: y.toFixed(2), r: 8.5 }));
    out.push(s("text", { class: "number", x: x.toFixed(2), y: (y + 3.6).toFixed(2) }, state === "missing" ? "?" : index + 1));
  }
  return out;
}

function edgeShapes(edge, from, to, parts, index) {
  const open = parts[index]?.kind === "missing" || parts[index - 1]?.kind === "missing";
  const [x, y] = point(R + 19, (from + to) / 2);
  const side = index === 0 || x > 12 ? "start" : index === parts.length || x < -12 ? "end" : "middle";
  const [ax, ay] = point(R, to - 1.5);
  const out = [s("path", { class: `edge ${open ? "open" : edge.kind}`, d: arc(R, from + 1, to - 2) })];
  if (!open) {
    out.push(s("path", { class: "head", d: "M-4 -4L2 0L-4 4", transform: `translate(${ax.toFixed(2)} ${ay.toFixed(2)}) rotate(${(to - 1.5).toFixed(1)})` }));
    if (edge.rtt !== null) {
      out.push(s("text", { class: "rtt", x: x.toFixed(2), y: (y + 3).toFixed(2), "text-anchor": side }, ms(edge.rtt)));
      if (edge.kind && edge.kind !== "direct") {
        out.push(s("text", { class: "kind", x: x.toFixed(2), y: (y + 13).toFixed(2), "text-anchor": side }, edge.kind));
      }
    }
  }
  return out;
}

function requesterShapes(state) {
  return [
    s("rect", { class: "requester", x: -7, y: -R - 7, width: 14, height: 14, transform: `rotate(45 0 ${-R})` }),
    s("text", { class: "you", x: 0, y: -R + 25, "text-anchor": "middle" }, state.role === "gateway" ? "gateway" : "requesters"),
  ];
}

function centre(state, run) {
  const lines = [];
  if (state.phase === "empty") {
    lines.push(["word", "empty"], ["fact", "no node holds layers"]);
  } else if (run && run.state === "recovering") {
    lines.push(["word", "rerouting"], ["fact", `${short(run.lost || "a node")} is lost`]);
  } else if (state.phase === "forming") {
    const missing = state.missing.reduce((sum, [a, b]) => sum + b - a, 0);
    lines.push(["figure", `${state.n_layers - missing}/${state.n_layers}`], ["fact", "layers held"], ["fact", `${plural(missing, "layer")} missing`]);
  } else if (isLive(run)) {
    lines.push(["figure", rate(run.tokens_per_second)], ["fact", "tokens per second"], ["fact", `${percent(run.foreseen)} foreseen`]);
    if (run.rows_in_flight) lines.push(["fact", `${run.rows_in_flight} rows in flight`]);
  } else if (run && run.tokens_per_second) {
    lines.push(["word", "ready"], ["fact", `last answer ${rate(run.tokens_per_second)} tok/s`], ["fact", run.tokens_per_pass ? `${run.tokens_per_pass.toFixed(1)} tokens per pass` : ""]);
  } else {
    lines.push(["word", "ready"], ["fact", `${plural(state.n_layers, "layer")} on ${plural(serving(state), "node")}`]);
  }
  let y = lines[0][0] === "figure" ? -2 : 0;
  return lines.filter(([, text]) => text).map(([kind, text], index) => {
    if (index) y += index === 1 ? 20 : 15;
    return s("text", { class: `centre ${kind}`, x: 0, y, "text-anchor": "middle" }, text);
  });
}

const serving = (state) => state.nodes.filter((n) => n.state === "serving" && n.layers).length;

function describe(state, parts, run) {
  if (state.phase === "empty") return "The swarm is empty: no node holds layers.";
  const words = parts.map((part) => part.kind === "missing" ? `layers ${layers(part.layers)} missing` : `layers ${layers(part.layers)} on ${short(part.id)}`);
  return `The ring: ${words.join(", then ")}. ${isLive(run) ? "An answer is streaming." : ""}`;
}

/** The same facts as a table, which is also what a screen reader reads. */
export function stageTable(state, hue) {
  const run = shownRun(state);
  const parts = state.n_layers && state.nodes.length ? pieces(state, run) : [];
  if (!parts.length) return null;
  const byId = new Map(state.nodes.map((node) => [node.id, node]));
  const rows = parts.map((part, index) => {
    if (part.kind === "missing") {
      return h("tr", { class: "missing" }, h("td", {}, h("span", { class: "chip missing" }, "?")),
        h("td", { colspan: 4 }, `layers ${layers(part.layers)} are missing`));
    }
    const node = byId.get(part.id);
    const lost = standing(part, byId, run) === "lost";
    const edge = edgeInto(state, parts, index);
    const perLayer = node?.layer_ms ? node.layer_ms * (part.layers[1] - part.layers[0]) : null;
    const compute = part.stage?.compute_ms || perLayer;
    return h("tr", { class: lost ? "lost" : null },
      h("td", {}, h("span", { class: `chip ${hue(part.id)}` }, index + 1)),
      h("td", { class: "who" }, node ? nodeName(node) : short(part.id), node?.here ? h("span", { class: "tag" }, "this node") : null,
        lost ? h("span", { class: "tag bad" }, "lost") : null,
        h("span", { class: "sub" }, part.stage?.device || node?.device || "")),
      h("td", { class: "n", "data-label": "layers" }, layers(part.layers)),
      h("td", { class: "n", "data-label": "compute" }, compute ? ms(compute) : "–"),
      h("td", { class: "n", "data-label": "round trip in" }, edge.rtt === null ? "–" : ms(edge.rtt),
        edge.kind && edge.kind !== "direct" ? h("span", { class: "sub" }, edge.kind) : null));
  });
  return h("table", { class: "stages" },
    h("caption", { class: "unseen" }, "Stages of the ring in order"),
    h("thead", {}, h("tr", {}, h("th", {}, h("span", { class: "unseen" }, "stage")), h("th", {}, "node"), h("th", { class: "n" }, "layers"),
      h("th", { class: "n" }, "compute"), h("th", { class: "n" }, "round trip"))),
    h("tbody", {}, rows));
}

/** Rows on their way: dots that go round once per pass while an answer streams. */
export function animate(getState) {
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const frame = (now) => {
    const state = getState();
    const run = state && shownRun(state);
    const count = isLive(run) && run.state === "answering" && state.phase !== "empty" ? Math.min(10, run.rows_in_flight || 4) : 0;
    for (const group of document.querySelectorAll(".pulses")) {
      while (group.childNodes.length > count) group.lastChild.remove();
      while (group.childNodes.length < count) group.append(s("circle", { class: "pulse", r: 3.2 }));
      const turn = still.matches ? 0.1 : now / Math.max(1400, run?.pass_ms || 0);
      [...group.childNodes].forEach((dot, index) => {
        const [x, y] = point(R, 360 * ((turn + index / count) % 1));
        dot.setAttribute("cx", x.toFixed(2));
        dot.setAttribute("cy", y.toFixed(2));
      });
    }
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}
