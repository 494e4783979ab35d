// Wires state, views and actions together.

import { choose, follow } from "./api.js";
import { chatActions, chatSees, startChat, textOf } from "./chat.js";
import { copyFrom } from "./clipboard.js";
import { colours } from "./colours.js";
import { h, morph, plural } from "./dom.js";
import { animate } from "./ring.js";
import { askForLayers, chooseRange } from "./layermap.js";
import { replayTo, toggleReplay } from "./replay.js";
import { download, renderRuns, toggleTimeline, verify } from "./runs.js";
import { askForInvite } from "./invite.js";
import { asideContent, renderSwarm } from "./swarm.js";

let state = null;
const VIEWS = ["chat", "swarm", "runs"];
const section = (name) => document.getElementById(`view-${name}`);

function view() {
  const asked = location.hash.slice(1);
  const fallback = state?.role === "node" ? "swarm" : "chat";
  return VIEWS.includes(asked) && !(asked !== "swarm" && state?.role === "node") ? asked : fallback;
}

function phase() {
  const serving = state.nodes.filter((n) => n.state === "serving" && n.layers).length;
  const lost = state.nodes.some((n) => n.state === "lost");
  const missing = state.missing.reduce((sum, [a, b]) => sum + b - a, 0);
  const words = { empty: "empty", forming: `forming, ${plural(missing, "layer")} missing`, serving: lost ? "serving, a node is lost" : "serving" };
  return [h("span", { class: `lamp ${state.phase} ${lost ? "lost" : ""}` }), h("span", { class: "words" }, words[state.phase]),
    h("span", { class: "sub" }, [state.model, state.phase === "empty" ? null : plural(serving, "node")].filter(Boolean).join(" · "))];
}

/** A choice where the gateway serves several models. */
function offer() {
  const select = document.getElementById("model");
  const names = state.models || [];
  select.hidden = names.length < 2;
  if (select.hidden || document.activeElement === select) return;
  morph(select, names.map((name) => h("option", { value: name }, name)));
  select.value = state.model;
}

function draw() {
  if (!state) return;
  offer();
  const hue = colours(state);
  const now = view();
  morph(document.getElementById("phase"), phase());
  for (const name of VIEWS) section(name).hidden = name !== now;
  for (const tab of document.querySelectorAll(".tabs a")) {
    tab.hidden = state.role === "node" && tab.dataset.view !== "swarm";
    if (tab.dataset.view === now) tab.setAttribute("aria-current", "page");
    else tab.removeAttribute("aria-current");
  }
  if (now === "chat") morph(document.getElementById("aside"), asideContent(state, hue));
  if (now === "swarm") {
    renderSwarm(section("swarm"), state, hue);
    askForLayers(state, draw);
  }
  if (now === "runs") renderRuns(section("runs"), state, hue);
  document.body.dataset.phase = state.phase;
}

const actions = {
  ...chatActions,
  copy: (button) => copyFrom(button, button.dataset.text),
  "copy-code": (button) => copyFrom(button, button.closest(".code").querySelector("pre").textContent),
  "copy-turn": (button) => copyFrom(button, textOf(button)),
  verify: (button) => verify(button.dataset.id, draw),
  range: (button) => chooseRange(button.dataset.seconds, draw),
  replay: (button) => toggleReplay(button.dataset.id, draw),
  "replay-to": (button) => replayTo(button.dataset.id, button.dataset.move, draw),
  timeline: (button) => toggleTimeline(button.dataset.id, draw),
  download: (button) => download(button.dataset.id, draw),
  "show-run": (link) => requestAnimationFrame(() => {
    const run = state.runs.find((r) => r.run_id === link.dataset.id);
    const item = run && document.querySelector(`[data-key="run-${run.key}"] details`);
    if (item) item.open = true;
  }),
};

document.addEventListener("click", (event) => {
  const source = event.target.closest("[data-action]");
  if (source) actions[source.dataset.action]?.(source);
});
addEventListener("hashchange", draw);
document.getElementById("model").addEventListener("change", (event) => {
  event.target.blur();
  choose(event.target.value);
});

startChat();
setInterval(draw, 20_000); // what is drawn over time goes on though nothing changes
animate(() => state);
follow(
  (fresh) => {
    state = fresh;
    chatSees(state);
    askForInvite(state, draw);
    document.body.classList.remove("cut");
    draw();
  },
  () => {
    document.body.classList.add("cut");
    morph(document.getElementById("phase"), h("span", { class: "lamp cut" }), h("span", { class: "words" }, "connection lost, trying again"));
  },
);
