// A recovery played step by step: who held which layers when a node was lost, who took over, when answers went on.

import { getJson } from "./api.js";
import { h, layers, ms, plural, short } from "./dom.js";

const replays = new Map(); // by run: "busy", {error}, or {layers, recoveries, why, at: [recovery, step], timer}
const LEAST_MS = 900; // of a step that is played
const MOST_MS = 3000;

export const replayShown = (id) => replays.has(id);

/** Show the recoveries of a run, or put them away. */
export async function toggleReplay(id, refresh) {
  const shown = replays.get(id);
  if (shown) {
    clearTimeout(shown.timer);
    replays.delete(id);
    return refresh();
  }
  replays.set(id, "busy");
  refresh();
  try {
    replays.set(id, { ...(await getJson(`api/recoveries/${encodeURIComponent(id)}`)), at: [0, 0], timer: 0 });
  } catch (error) {
    replays.set(id, { error: error.message });
  }
  refresh();
}

/** To another step: `move` is "next", "back", "play", or a pair "recovery.step". */
export function replayTo(id, move, refresh) {
  const shown = replays.get(id);
  if (!shown?.at) return;
  const playing = shown.timer;
  clearTimeout(shown.timer);
  shown.timer = 0;
  const count = shown.recoveries[shown.at[0]].steps.length;
  if (move === "next") shown.at[1] = Math.min(count - 1, shown.at[1] + 1);
  else if (move === "back") shown.at[1] = Math.max(0, shown.at[1] - 1);
  else if (move === "play" && !playing) {
    if (shown.at[1] === count - 1) shown.at[1] = 0;
    shown.timer = setTimeout(() => play(id, refresh), pause(shown));
  } else if (move.includes(".")) shown.at = move.split(".").map(Number);
  refresh();
}

function play(id, refresh) {
  const shown = replays.get(id);
  if (!shown?.timer) return;
  const { steps } = shown.recoveries[shown.at[0]];
  shown.at[1] += 1;
  shown.timer = shown.at[1] < steps.length - 1 ? setTimeout(() => play(id, refresh), pause(shown)) : 0;
  refresh();
}

/** As long as it took, within what one can follow. */
function pause({ recoveries, at: [which, step] }) {
  const { steps } = recoveries[which];
  const took = step + 1 < steps.length ? steps[step + 1].at_ms - steps[step].at_ms : 0;
  return Math.min(MOST_MS, Math.max(LEAST_MS, took));
}

export function replayView(run, hue) {
  const shown = replays.get(run.run_id);
  if (!shown) return null;
  if (shown === "busy") return h("p", { class: "waiting", role: "status" }, "looking");
  if (shown.error) return h("p", { class: "bad", role: "status" }, shown.error);
  if (!shown.recoveries.length) return h("p", { class: "sub", role: "status" }, shown.why || "Nothing was lost in this run.");
  return h("section", { class: "replay", "aria-label": "Recovery" }, shown.recoveries.map((one, which) => recovery(run, shown, one, which, hue)));
}

function recovery(run, shown, one, which, hue) {
  const here = shown.at[0] === which;
  const at = here ? shown.at[1] : 0;
  const step = one.steps[at];
  const title = one.whole_ms === null ? "not healed" : `healed in ${ms(one.whole_ms)}, ${plural(one.rows_again, "row")} made again`;
  const button = (move, name, off) => h("button", { type: "button", class: "quiet", "data-action": "replay-to", "data-id": run.run_id,
    "data-move": here ? move : `${which}.0`, disabled: here && off }, name);
  return h("div", { class: "recovery" },
    h("h3", {}, `Recovery ${which + 1}`, h("span", { class: "sub" }, title)),
    h("div", { class: "lanes" }, step.parts.map((part) => h("div", { class: "lane" },
      h("span", { class: "name" }, short(part.node)),
      h("span", { class: "track" }, h("span", { class: `span ${part.state} ${hue(part.node)}`,
        "data-left": percent(part.layers[0], shown.layers), "data-width": percent(part.layers[1] - part.layers[0], shown.layers) },
        layers(part.layers), part.state === "serving" ? "" : ` ${WORDS[part.state]}`))))),
    h("p", { class: "buttons" },
      button("back", "Back", at === 0), button("play", here && shown.timer ? "Pause" : "Play"), button("next", "Next", at === one.steps.length - 1),
      h("span", { class: "sub", role: "status" }, `step ${at + 1} of ${one.steps.length}`)),
    h("ol", { class: "steps" }, one.steps.map((each, place) => h("li", { class: `${each.kind} ${place <= at ? "" : "later"}`, "aria-current": place === at ? "step" : null },
      h("button", { type: "button", "data-action": "replay-to", "data-id": run.run_id, "data-move": `${which}.${place}` },
        h("span", { class: "n" }, `+${ms(each.after_ms)}`), h("span", {}, each.what))))));
}

const WORDS = { lost: "lost", joining: "taking over" };
const percent = (part, whole) => `${((100 * part) / whole).toFixed(3)}%`;
