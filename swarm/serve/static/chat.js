// The chat: history in this tab, an answer that streams, Escape or the button to stop it.

import { chat } from "./api.js";
import { h, morph, plural, rate } from "./dom.js";
import { markdown } from "./markdown.js";

const turns = [];
let aborting = null;

const log = () => document.getElementById("log");
const field = () => document.getElementById("say");

function turnView(turn, index) {
  if (turn.role === "user") {
    return h("article", { class: "turn mine", "data-key": `turn-${index}` }, h("h3", {}, "You"), h("p", { class: "said" }, turn.text));
  }
  return h("article", { class: `turn answer ${turn.state}`, "data-key": `turn-${index}` },
    h("h3", {}, turn.model || "swarm"),
    h("div", { class: "said" }, markdown(turn.text), turn.state === "streaming" && !turn.text ? h("p", { class: "waiting" }, "thinking") : null),
    turn.error ? h("p", { class: "bad" }, turn.error) : null,
    footer(turn));
}

function footer(turn) {
  if (turn.state === "streaming" || (!turn.facts && turn.state !== "stopped")) return null;
  const facts = turn.facts;
  const words = [turn.state === "stopped" ? "stopped" : null];
  if (facts) {
    words.push(plural(turn.tokens, "token"), `${rate(facts.tokens_per_second)} tok/s`, `${facts.tokens_per_pass.toFixed(1)} tokens per pass`);
    if (facts.recoveries) words.push(plural(facts.recoveries, "recovery", "recoveries"));
  }
  return h("p", { class: "foot" }, words.filter(Boolean).join(" · "),
    facts?.receipt ? [" · ", h("a", { href: "#runs", "data-action": "show-run", "data-id": facts.run_id }, "receipt")] : null);
}

let asked = false;

/** Draw on the next frame, once, and keep the end in sight if it was. */
function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    const box = log();
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    morph(box, turns.length ? turns.map(turnView) : h("p", { class: "hint", "data-key": "hint" },
      h("strong", {}, "Ask something."), " Your words travel the ring; each answer leaves a receipt that anybody can check."));
    if (atEnd) box.scrollTop = box.scrollHeight;
  });
}

function showBusy() {
  const button = document.getElementById("send");
  button.textContent = aborting ? "Stop" : "Send";
  button.classList.toggle("stop", Boolean(aborting));
  log().setAttribute("aria-busy", String(Boolean(aborting)));
}

function messages() {
  const system = document.getElementById("system").value.trim();
  const said = turns.filter((turn) => turn.text).map((turn) => ({ role: turn.role, content: turn.text }));
  return system ? [{ role: "system", content: system }, ...said] : said;
}

async function send() {
  const text = field().value.trim();
  if (!text) return;
  field().value = "";
  grow();
  turns.push({ role: "user", text });
  const body = {
    messages: messages(),
    temperature: Number(document.getElementById("temperature").value) || 0,
    max_tokens: Number(document.getElementById("maximum").value) || 256,
  };
  const turn = { role: "assistant", text: "", state: "streaming", model: "", tokens: 0, facts: null, error: null };
  turns.push(turn);
  aborting = new AbortController();
  showBusy();
  draw();
  log().scrollTop = log().scrollHeight;
  try {
    for await (const chunk of chat(body, aborting.signal)) {
      turn.model = chunk.model;
      turn.text += chunk.choices[0]?.delta.content || "";
      turn.facts = chunk.wanswarm || turn.facts;
      turn.tokens = chunk.usage?.completion_tokens ?? turn.tokens;
      draw();
    }
    turn.state = "done";
  } catch (error) {
    turn.state = aborting.signal.aborted ? "stopped" : "failed";
    if (!aborting.signal.aborted) turn.error = error.message;
  }
  aborting = null;
  showBusy();
  draw();
}

function grow() {
  const box = field();
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 220)}px`;
}

export function startChat() {
  document.getElementById("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (aborting) aborting.abort();
    else send();
  });
  field().addEventListener("input", grow);
  field().addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!aborting) send();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && aborting) aborting.abort();
  });
  draw();
}

export function resetChat() {
  aborting?.abort();
  turns.length = 0;
  draw();
  field().focus();
}
