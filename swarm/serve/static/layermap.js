// The swarm's layers over time: how many nodes held each, and which node held which when.

import { getJson } from "./api.js";
import { h, layers, nodeName, plural, s, short } from "./dom.js";

const AGAIN_MS = 20_000;
const SOON_MS = 2_500; // what just changed has no length yet that could be drawn
const RANGES = [["10 min", 600], ["1 hour", 3600], ["1 day", 86_400]];
const HOW = { held: "serving", taking: "joining", leaving: "draining" };
const ENDS = { lost: "lost", left: "left", moved: "", unseen: "gone while nobody watched" };
let told = null; // as /api/layers has it
let asked = ""; // for which swarm it was asked for
let due = 0;
let range = null; // seconds; null: the shortest that shows all

/** Ask when somebody looks and something changed, or some time went by; `refresh` redraws. */
export async function askForLayers(state, refresh) {
  const now = JSON.stringify([state.model, state.nodes.map((node) => [node.id, node.layers, node.state])]);
  const changed = now !== asked;
  if (!changed && Date.now() < due) return;
  if (told && asked && JSON.parse(asked)[0] !== state.model) told = null;
  asked = now;
  due = Date.now() + (changed ? SOON_MS : AGAIN_MS);
  if (changed) setTimeout(refresh, SOON_MS + 50);
  try {
    told = await getJson(`api/layers?model=${encodeURIComponent(state.model)}`);
  } catch (error) {
    console.debug("layers", error);
  }
  refresh();
}

export function chooseRange(seconds, refresh) {
  range = Number(seconds);
  refresh();
}

/** The panel; null while nothing is known, or too little time went by to draw. */
export function layerMap(state, hue) {
  if (!told || !told.layers || told.now_ms <= told.since_ms) return null;
  const known = (told.now_ms - told.since_ms) / 1000;
  const shown = range ?? (RANGES.find(([, seconds]) => seconds >= known) || RANGES.at(-1))[1];
  const begin = Math.max(told.now_ms - shown * 1000, range === null ? told.since_ms : 0);
  const frame = { begin, end: told.now_ms };
  const names = new Map(state.nodes.map((node) => [node.id, nodeName(node)]));
  const nodes = grouped(frame);
  const lanes = [...nodes].sort(([, a], [, b]) => a.at(-1).first - b.at(-1).first || a[0].begin_ms - b[0].begin_ms);
  return h("section", { class: "panel", id: "layermap" },
    h("h2", {}, "Layers over time", h("span", { class: "aside" }, summary(frame))),
    h("p", { class: "buttons" }, RANGES.map(([name, seconds]) => h("button", { type: "button", class: "quiet", "data-action": "range", "data-seconds": seconds, "aria-pressed": String(shown === seconds) }, name))),
    h("div", { class: "lanes" },
      h("div", { class: "lane tall" }, h("span", { class: "name" }, "holders", h("span", { class: "sub" }, `layers 0–${told.layers - 1}`)), heat(frame)),
      lanes.map(([id, spans]) => h("div", { class: "lane", "data-key": `time-${id}` },
        h("span", { class: "name" }, names.get(id) || spans.at(-1).name || short(id)),
        h("span", { class: "track" }, spans.map((span) => bar(span, frame, hue)))))),
    h("p", { class: "axis" }, h("span", {}, clock(frame.begin)), h("span", {}, "now")),
    h("details", { class: "events" }, h("summary", {}, "As a list"), h("ul", {}, events(frame, names).map((line) => h("li", {}, line)))));
}

const inside = (span, frame) => span.end_ms === null || span.end_ms >= frame.begin;

function grouped(frame) {
  const found = new Map();
  for (const span of told.spans) if (inside(span, frame)) found.set(span.node, [...(found.get(span.node) || []), span]);
  return found;
}

const place = (ms, { begin, end }) => Math.min(100, Math.max(0, (100 * (ms - begin)) / (end - begin)));

function bar(span, frame, hue) {
  const left = place(span.begin_ms, frame);
  const right = place(span.end_ms ?? frame.end, frame);
  const end = ENDS[span.why] || "";
  const words = `layers ${layers([span.first, span.last])}, ${clock(span.begin_ms)} to ${span.end_ms === null ? "now" : clock(span.end_ms)}${end ? `, ${end}` : ""}`;
  return h("span", { class: `span ${HOW[span.how]} ${hue(span.node)} ${span.why === "lost" ? "ends" : ""}`, title: words,
    "data-left": `${left.toFixed(3)}%`, "data-width": `${Math.max(0.3, right - left).toFixed(3)}%` }, right - left > 9 ? layers([span.first, span.last]) : "");
}

/** Time to the right, layers downwards, darker where several nodes held one. */
function heat(frame) {
  const shapes = [];
  for (const part of told.coverage) {
    const x = place(part.begin_ms, frame);
    const width = place(part.end_ms, frame) - x;
    if (width <= 0) continue;
    for (const [first, last, count] of part.held) {
      shapes.push(s("rect", { class: count === 0 ? "none" : count === 1 ? "one" : "more", x: x.toFixed(3), width: width.toFixed(3), y: first, height: last - first }));
    }
  }
  for (const gap of told.gaps) {
    const x = place(gap.begin_ms, frame);
    const width = place(gap.end_ms, frame) - x;
    if (width > 0) shapes.push(s("rect", { class: "unwatched", x: x.toFixed(3), width: width.toFixed(3), y: 0, height: told.layers }));
  }
  return s("svg", { class: "heat", "shape-rendering": "crispEdges", viewBox: `0 0 100 ${told.layers}`, preserveAspectRatio: "none", role: "img", "aria-label": summary(frame) }, ...shapes);
}

function summary(frame) {
  const holes = told.coverage.filter((part) => part.missing.length && part.end_ms > frame.begin);
  if (!holes.length) return "every layer held all the time";
  const seconds = holes.reduce((sum, part) => sum + part.end_ms - Math.max(part.begin_ms, frame.begin), 0) / 1000;
  return `layers missing for ${span(seconds)} of ${span((frame.end - frame.begin) / 1000)}`;
}

/** Newest first. */
function events(frame, names) {
  const lines = [];
  const who = (span) => names.get(span.node) || span.name || short(span.node);
  for (const one of told.spans) {
    const what = { held: "holds", taking: "takes", leaving: "is leaving" }[one.how];
    if (one.begin_ms >= frame.begin) lines.push([one.begin_ms, `${who(one)} ${what} layers ${layers([one.first, one.last])}`]);
    if (one.end_ms !== null && one.end_ms >= frame.begin && one.why !== "moved") {
      lines.push([one.end_ms, `${who(one)} ${one.why === "lost" ? "is lost" : one.why === "left" ? "left" : "went while nobody watched"} (layers ${layers([one.first, one.last])})`]);
    }
  }
  for (const gap of told.gaps) if (gap.end_ms >= frame.begin) lines.push([gap.end_ms, `nobody watched for ${span((gap.end_ms - gap.begin_ms) / 1000)}`]);
  return lines.sort(([a], [b]) => b - a).slice(0, 100).map(([ms, what]) => `${clock(ms)} ${what}`);
}

const clock = (ms) => new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const span = (seconds) => (seconds < 90 ? plural(Math.round(seconds), "second") : seconds < 5400 ? plural(Math.round(seconds / 60), "minute") : plural(Math.round(seconds / 3600), "hour"));
