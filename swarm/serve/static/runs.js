// Runs, their receipts, and what verifying a receipt finds.

import { getBlob, getJson } from "./api.js";
import { ago, h, layers, morph, ms, percent, plural, rate, settle, short } from "./dom.js";
import { replayShown, replayView } from "./replay.js";

const verdicts = new Map();
const pictures = new Map(); // of runs over time: by run, a data URL, "busy" or {error}
const MARKS = { proven: "●", "co-signed": "◉", witnessed: "◎", claimed: "○", "not checked": "–" };
const WORDS = {
  proven: "cryptography or recomputation shows it",
  "co-signed": "both ends of a connection signed the same",
  witnessed: "a third party signed that it saw it",
  claimed: "one party says so",
  "not checked": "could be checked and was not",
};

export function renderRuns(root, state, hue) {
  if (!state.runs.length) {
    morph(root, h("div", { class: "panel" }, h("h2", {}, "Runs"), h("p", { class: "nothing" }, "No answer has been asked for since this gateway started.")));
    return;
  }
  morph(root, h("div", { class: "panel" },
    h("h2", {}, "Runs", state.waiting ? h("span", { class: "aside" }, `${plural(state.waiting, "request")} waiting`) : null),
    h("ol", { class: "runlist" }, state.runs.map((run) => runItem(run, hue)))));
  settle(root);
}

function runItem(run, hue) {
  const figures = [`${plural(run.tokens, "token")}`, run.tokens_per_second ? `${rate(run.tokens_per_second)} tok/s` : null,
    run.tokens ? `${percent(run.foreseen)} foreseen` : null];
  return h("li", { "data-key": `run-${run.key}` }, h("details", { class: `run ${run.state}` },
    h("summary", {},
      h("span", { class: `status ${run.state}` }, run.state),
      h("span", { class: "when" }, ago(run.started)),
      h("span", { class: "figures" }, figures.filter(Boolean).join(" · ")),
      h("span", { class: "strip", "aria-hidden": "true" }, run.ring.map((stage) => h("i", { class: hue(stage.node) })))),
    h("div", { class: "body" }, facts(run), run.error ? h("p", { class: "bad" }, run.error) : null,
      run.state === "waiting" ? h("p", { class: "sub" }, run.awaited) : null, stages(run, hue), receipt(run, hue))));
}

function facts(run) {
  const all = [["prompt", plural(run.prompt_tokens, "token")], ["passes", run.passes], ["tokens per pass", run.tokens_per_pass?.toFixed(2)],
    ["pass", run.pass_ms ? ms(run.pass_ms) : null], ["of it", partsOf(run)], ["rows accepted", run.acceptance === null ? null : percent(run.acceptance)], ["speculation", run.speculation], ["drafter", run.drafter], ["time", run.seconds ? `${run.seconds.toFixed(2)} s` : null],
    ["ended by", run.finish_reason], ["recoveries", run.recoveries || null]];
  return h("dl", { class: "facts" }, all.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

/** Where a pass spent its time, in words; null while nothing was measured. */
function partsOf(run) {
  const { queue, compute, network } = run.parts_ms ?? {};
  return compute === undefined ? null : `${ms(compute)} computing, ${ms(network)} on the way, ${ms(queue)} waiting`;
}

const stages = (run, hue) => run.ring.length ? h("p", { class: "route" }, run.ring.map((stage, index) => [
  index ? h("span", { class: "to", "aria-label": "then" }, " → ") : null,
  h("span", { class: "hop" }, h("span", { class: `dot ${hue(stage.node)}` }), `${short(stage.node)} `, h("span", { class: "sub" }, `${layers(stage.layers)}`))])) : null;

function receipt(run, hue) {
  if (!run.receipt) return run.state === "done" ? h("p", { class: "sub" }, "This run left no receipt.") : null;
  const verdict = verdicts.get(run.run_id);
  return h("div", { class: "receipt" },
    h("p", { class: "buttons" },
      h("button", { type: "button", class: "main", "data-action": "verify", "data-id": run.run_id, disabled: verdict === "busy" }, verdict === "busy" ? "Verifying…" : verdict ? "Verify again" : "Verify receipt"),
      h("button", { type: "button", class: "quiet", "data-action": "timeline", "data-id": run.run_id, "aria-expanded": String(pictures.has(run.run_id)) },
        pictures.has(run.run_id) ? "Hide timeline" : "Timeline"),
      run.recoveries ? h("button", { type: "button", class: "quiet", "data-action": "replay", "data-id": run.run_id, "aria-expanded": String(replayShown(run.run_id)) },
        replayShown(run.run_id) ? "Hide recovery" : "Replay recovery") : null,
      h("button", { type: "button", class: "quiet", "data-action": "download", "data-id": run.run_id }, "Download"),
      h("code", { class: "id" }, run.run_id)),
    pictureView(run),
    replayView(run, hue),
    verdict && verdict !== "busy" ? verdictView(verdict) : null);
}

function pictureView(run) {
  const picture = pictures.get(run.run_id);
  if (!picture) return null;
  if (picture.error) return h("p", { class: "bad", role: "status" }, picture.error);
  if (picture === "busy") return h("p", { class: "waiting", role: "status" }, "drawing");
  const lost = run.recoveries ? `, ${plural(run.recoveries, "recovery", "recoveries")} among it` : "";
  return h("div", { class: "wide timeline", tabindex: "0", role: "region", "aria-label": "Timeline" },
    h("img", { src: picture, alt: `The run over time: ${plural(run.ring.length, "stage")}, ${plural(run.tokens, "token")}${lost}` }));
}

/** Show the run over time, drawn by the gateway from the receipt, or put the picture away. */
export async function toggleTimeline(id, refresh) {
  if (pictures.delete(id)) return refresh();
  pictures.set(id, "busy");
  refresh();
  try {
    const blob = await getBlob(`api/timeline/${encodeURIComponent(id)}`);
    const reader = new FileReader(); // an image of its own could not show its key
    reader.readAsDataURL(blob);
    await new Promise((resolve) => reader.addEventListener("load", resolve, { once: true }));
    pictures.set(id, reader.result);
  } catch (error) {
    pictures.set(id, { error: error.message });
  }
  refresh();
}

function verdictView(verdict) {
  if (verdict.error) return h("p", { class: "bad", role: "status" }, verdict.error);
  const refused = Boolean(verdict.refusal);
  const groups = Object.keys(MARKS).map((standing) => [standing, verdict.claims.filter((claim) => claim.standing === standing)]);
  return h("div", { class: "verdict" },
    h("p", { class: `result ${refused ? "refused" : "held"}`, role: "status" },
      h("strong", {}, refused ? "Refused" : `Level ${verdict.level}: ${verdict.level_name}`), verdict.result.toLowerCase() === `level ${verdict.level}: ${verdict.level_name}` ? null : h("span", {}, verdict.result)),
    groups.filter(([, claims]) => claims.length).map(([standing, claims]) => h("section", { class: `standing ${standing.replace(" ", "-")}` },
      h("h3", {}, h("span", { class: "glyph", "aria-hidden": "true" }, MARKS[standing]), standing, h("span", { class: "sub" }, WORDS[standing])),
      h("ul", {}, claims.map((claim) => h("li", {}, h("span", { class: "subject" }, claim.subject), claim.about ? h("span", { class: "about mono" }, short(claim.about)) : null, h("span", { class: "claim" }, claim.text)))))));
}

/** Ask the gateway to verify; `refresh` redraws. */
export async function verify(id, refresh) {
  verdicts.set(id, "busy");
  refresh();
  try {
    verdicts.set(id, await getJson(`api/verify/${encodeURIComponent(id)}`));
  } catch (error) {
    verdicts.set(id, { error: error.message });
  }
  refresh();
}

export async function download(id, refresh) {
  try {
    await save(id);
  } catch (error) {
    verdicts.set(id, { error: error.message });
    refresh();
  }
}

async function save(id) {
  const url = URL.createObjectURL(await getBlob(`v1/receipts/${encodeURIComponent(id)}`));
  const link = h("a", { href: url, download: `${id}.json` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}
