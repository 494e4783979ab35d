// The swarm view: the ring, who holds which layers, every node.

import { bytes, h, layers, memory, morph, ms, nodeName, percent, plural, settle, short } from "./dom.js";
import { invite } from "./invite.js";
import { layerMap } from "./layermap.js";
import { ringPicture, stageTable } from "./ring.js";

/** What to do next, in words; null when all is well. */
export function advice(state) {
  const lost = state.nodes.filter((node) => node.state === "lost");
  if (state.phase === "empty") {
    return h("div", { class: "advice" },
      h("p", {}, h("strong", {}, "Nobody holds layers yet."), " Start the first node on any machine:"),
      joining("swarm join"),
      state.nodes.length ? h("p", { class: "sub" }, `${plural(state.nodes.length, "node")} known, none serving.`) : null);
  }
  if (state.phase === "forming") {
    const ranges = state.missing.map(layers).join(", ");
    const holes = state.missing.length;
    const need = state.missing_bytes ? ` with about ${memory(state.missing_bytes)} of free memory${holes > 1 ? " in all" : ""}` : "";
    const more = holes === 1 ? `One more node${need} completes` : `${holes} more nodes${need} complete`;
    const coming = state.nodes.filter((node) => node.state === "joining" && node.layers);
    const taken = coming.map((node) => h("p", {}, `${nodeName(node)} is taking layers ${layers(node.layers)}.`));
    const covered = (layer) => coming.some((node) => node.layers[0] <= layer && layer < node.layers[1]);
    if (state.holders.every((count, layer) => count || covered(layer))) {
      return h("div", { class: "advice" }, h("p", {}, h("strong", {}, `Layers ${ranges} are missing.`)), taken,
        h("p", { class: "sub" }, "Then the ring is complete."));
    }
    return h("div", { class: "advice" },
      taken,
      h("p", {}, h("strong", {}, `Layers ${ranges} are missing.`), ` ${more} the ring:`),
      joining(null));
  }
  if (lost.length) {
    return h("div", { class: "advice" }, h("p", {}, h("strong", {}, `${lost.map(nodeName).join(", ")} ${lost.length > 1 ? "are" : "is"} lost.`),
      " Every layer is still held by another node, so answers go on."));
  }
  return null;
}

/** How one more machine comes in: the command with its invite where the gateway tells it, else how to get one. */
function joining(otherwise) {
  const told = invite();
  if (told?.command) return command(told.command);
  if (otherwise) return command(otherwise);
  return [h("p", {}, "On a machine that is in the swarm, this prints the command for the new one:"), command("swarm invite"),
    told?.why ? h("p", { class: "sub" }, told.why) : null];
}

const command = (text) => h("p", { class: "command" }, h("code", {}, text), h("button", { type: "button", class: "quiet", "data-action": "copy", "data-text": text }, "Copy"));

/** One line per node over the axis of layers; above it, how many hold each layer. */
export function layerChart(state, hue) {
  if (!state.n_layers) return null;
  const cells = state.holders.map((count, layer) =>
    h("span", { class: `cell ${count === 0 ? "none" : count === 1 ? "one" : "more"}`, title: `layer ${layer}: ${plural(count, "node")}` }));
  const at = (layer) => `${((100 * layer) / state.n_layers).toFixed(3)}%`;
  const rows = [...state.nodes].filter((n) => n.layers).sort((a, b) => a.layers[0] - b.layers[0] || a.layers[1] - b.layers[1])
    .map((node) => h("div", { class: "lane", "data-key": `lane-${node.id}` },
      h("span", { class: "name" }, nodeName(node)),
      h("span", { class: "track" }, h("span", { class: `span ${node.state} ${hue(node.id)}`, "data-left": at(node.layers[0]), "data-width": at(node.layers[1] - node.layers[0]) },
        layers(node.layers)))));
  const held = state.holders.filter(Boolean).length;
  return h("section", { class: "panel" },
    h("h2", {}, "Layers", h("span", { class: "aside" }, state.missing.length ? `${held} of ${state.n_layers} held` : `all ${state.n_layers} held`)),
    h("div", { class: "lanes" },
      h("div", { class: "lane" }, h("span", { class: "name" }, "holders"),
        h("span", { class: "track cells", role: "img", "aria-label": coverageWords(state) }, cells)),
      rows),
    h("p", { class: "legend" }, h("span", { class: "cell one" }), "one node", h("span", { class: "cell more" }), "several", h("span", { class: "cell none" }), "missing"));
}

const coverageWords = (state) => state.missing.length
  ? `Layers ${state.missing.map(layers).join(", ")} are missing`
  : `Every layer is held by at least ${plural(Math.min(...state.holders), "node")}`;

function nodeTable(state, hue) {
  if (!state.nodes.length) return null;
  const rows = state.nodes.map((node) => h("tr", { "data-key": `node-${node.id}`, class: node.state },
    h("td", { class: "who" }, h("span", { class: `dot ${hue(node.id)}` }), nodeName(node), node.here ? h("span", { class: "tag" }, "this node") : null,
      h("span", { class: "sub" }, [node.name ? short(node.id) : null, node.owner].filter(Boolean).join(" · "))),
    h("td", { "data-label": "state" }, h("span", { class: `status ${node.state}` }, node.state)),
    h("td", { "data-label": "device" }, node.device || "–"),
    h("td", { class: "n", "data-label": "layers" }, node.layers ? layers(node.layers) : "–"),
    h("td", { class: "n", "data-label": "per layer" }, ms(node.layer_ms)),
    h("td", { class: "n", "data-label": "queue" }, ms(node.queue_ms)),
    h("td", { class: "n", "data-label": "sessions" }, node.sessions ?? "–"),
    h("td", { class: "n", "data-label": "memory" }, node.kv_budget ? `${percent((node.kv_used || 0) / node.kv_budget)} of ${bytes(node.kv_budget)}` : "–")));
  return h("section", { class: "panel" }, h("h2", {}, "Nodes"),
    h("div", { class: "wide" }, h("table", { class: "nodes" },
      h("thead", {}, h("tr", {}, h("th", {}, "node"), h("th", {}, "state"), h("th", {}, "device"), h("th", { class: "n" }, "layers"),
        h("th", { class: "n" }, "per layer"), h("th", { class: "n" }, "queue"), h("th", { class: "n" }, "sessions"), h("th", { class: "n" }, "session memory"))),
      h("tbody", {}, rows))));
}

function edgeTable(state) {
  if (!state.edges.length) return null;
  const names = new Map(state.nodes.map((node) => [node.id, nodeName(node)]));
  const name = (id) => names.get(id) || (id === state.here ? state.role : short(id));
  const rows = [...state.edges].sort((a, b) => (a.rtt_ms ?? 1e9) - (b.rtt_ms ?? 1e9)).map((edge) =>
    h("tr", { "data-key": `edge-${edge.a}-${edge.b}` }, h("td", { class: "who" }, `${name(edge.a)} – ${name(edge.b)}`),
      h("td", { "data-label": "path" }, edge.kind || "–"), h("td", { class: "n", "data-label": "round trip" }, ms(edge.rtt_ms))));
  return h("section", { class: "panel" }, h("h2", {}, "Paths"),
    h("table", { class: "edges" }, h("thead", {}, h("tr", {}, h("th", {}, "between"), h("th", {}, "path"), h("th", { class: "n" }, "round trip"))), h("tbody", {}, rows)));
}

function modelFacts(state) {
  if (!state.model) return null;
  const facts = [["model", state.model], ["layers", state.n_layers], ["context", state.context ? `${state.context} tokens` : null],
    ["digest", state.digest ? h("code", { title: state.digest }, state.digest.slice(0, 16)) : null]];
  return h("dl", { class: "facts" }, facts.filter(([, value]) => value).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

export function steps(state) {
  const log = state.progress;
  if (!log?.steps || (!log.steps.length && !log.notices.length)) return null;
  return h("section", { class: "panel" }, h("h2", {}, "Under way"),
    log.steps.map((step) => h("p", { class: "step" }, `${step.step} ${step.what}`,
      h("progress", { max: step.total || null, value: step.total ? step.done : null, "aria-label": `${step.step} ${step.what}` }))),
    log.notices.length ? h("p", { class: "sub" }, log.notices[log.notices.length - 1].text) : null);
}

/** The narrow column beside the chat. */
export const asideContent = (state, hue) => [ringPicture(state, hue), advice(state), stageTable(state, hue)];

export function renderSwarm(root, state, hue) {
  morph(root,
    h("div", { class: "hero" },
      h("div", { class: "panel picture" }, ringPicture(state, hue)),
      h("div", { class: "panel facing" }, advice(state), stageTable(state, hue), modelFacts(state))),
    steps(state), layerChart(state, hue), layerMap(state, hue), nodeTable(state, hue), edgeTable(state));
  settle(root);
}
