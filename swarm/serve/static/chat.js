// The chat: conversations that stay, an answer that streams, survives a reload and can be stopped.

import { ApiError, LostError, ask, resume, stop } from "./api.js";
import { h, morph, plural, rate } from "./dom.js";
import { conversations, forget, keep, keepOptions, newId, onElsewhere, options, recall, show, shown, title } from "./keep.js";
import { markdown, parted } from "./markdown.js";
import { waitingFor } from "./waiting.js";

let chat = { id: newId(), updated: 0, turns: [] };
let going = null; // {turn, abort}: the answer under way
let editing = null; // the turn that is being written anew
let seen = null; // the swarm's state

const byId = (id) => document.getElementById(id);
const field = () => byId("say");

function turnView(turn, index) {
  const key = `${chat.id}-${index}`;
  if (turn.role === "user") {
    return h("article", { class: "turn mine", "data-key": key, "aria-label": "You" }, h("h2", {}, "You"),
      h("p", { class: "said", dir: "auto" }, turn.text),
      h("p", { class: "deeds" }, h("button", { type: "button", class: "deed", "data-action": "edit-turn", "data-index": index }, "Edit")));
  }
  const { thought, said } = parted(turn.text);
  const thoughts = [turn.thought, thought].filter(Boolean).join("\n\n");
  const streaming = turn.state === "streaming";
  return h("article", { class: `turn answer ${turn.state}`, "data-key": key, "aria-label": "Answer" },
    h("h2", {}, turn.model || "swarm"),
    thoughts ? h("details", { class: "think" }, h("summary", {}, streaming && !said ? "Thinking" : "Thought"), h("div", { class: "said" }, markdown(thoughts))) : null,
    h("div", { class: "said" }, markdown(said)),
    streaming ? waitingView(turn, said || thoughts) : null,
    turn.error ? h("p", { class: "bad", role: "alert" }, turn.error) : null,
    footer(turn),
    streaming ? null : deeds(turn, index));
}

/** Why nothing comes, where it would stand. */
function waitingView(turn, begun) {
  const why = turn.lost ? "the connection to the gateway is lost, trying again" : waitingFor(seen, turn.request, Boolean(begun));
  return why ? h("p", { class: "waiting", role: "status" }, why) : null;
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

function deeds(turn, index) {
  const last = index === chat.turns.length - 1;
  const deed = (action, text, more) => h("button", { type: "button", class: "deed", "data-action": action, "data-index": index, ...more }, text);
  const count = turn.earlier?.length || 0;
  return h("p", { class: "deeds" },
    turn.text ? deed("copy-turn", "Copy") : null,
    last ? deed("again", "Regenerate") : null,
    count ? [deed("swap", "Other answers", { "aria-label": `Show another of ${count + 1} answers` }), h("span", { class: "sub" }, `${count + 1} answers`)] : null);
}

let asked = false;

/** Draw on the next frame, once, and keep the end in sight if it was. */
function draw() {
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    const box = byId("log");
    const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    morph(box, chat.turns.length ? chat.turns.map(turnView) : h("p", { class: "hint", "data-key": "hint" },
      h("strong", {}, "Ask something."), " Your words travel the ring; each answer leaves a receipt that anybody can check."));
    if (atEnd) box.scrollTop = box.scrollHeight;
  });
}

/** The swarm's state is new: what is awaited may be. */
export function chatSees(state) {
  seen = state;
  if (going) draw();
}

function showBusy() {
  const button = byId("send");
  button.textContent = going ? "Stop" : editing === null ? "Send" : "Send anew";
  button.classList.toggle("stop", Boolean(going));
  byId("log").setAttribute("aria-busy", String(Boolean(going)));
}

function messages(upTo) {
  const system = byId("system").value.trim();
  const said = chat.turns.slice(0, upTo).map((turn) => ({ role: turn.role, content: turn.role === "user" ? turn.text : parted(turn.text).said }))
    .filter((message) => message.content);
  return system ? [{ role: "system", content: system }, ...said] : said;
}

function bodyFor(upTo) {
  const number = (id) => (byId(id).value === "" ? undefined : Number(byId(id).value));
  return { messages: messages(upTo), temperature: number("temperature"), max_tokens: number("maximum") };
}

function send() {
  const text = field().value.trim();
  if (!text) return;
  field().value = "";
  grow();
  if (editing !== null || chat.gone) {
    // What was said stays in the history as it was, or deleted; the conversation goes on in a copy from here.
    keep(chat);
    chat = { id: newId(), updated: 0, turns: chat.turns.slice(0, editing ?? chat.turns.length) };
    editing = null;
    show(chat.id);
  }
  chat.turns.push({ role: "user", text });
  answer([]);
}

/** Ask for the next turn. `earlier`: other answers to the same. */
function answer(earlier) {
  const body = bodyFor(chat.turns.length);
  const turn = { role: "assistant", text: "", thought: "", state: "streaming", model: "", tokens: 0, facts: null, error: null,
    name: newId(), request: `page-${newId()}`, number: 0, earlier };
  chat.turns.push(turn);
  keep(chat);
  follow(chat, turn, (signal) => ask(turn.name, turn.request, body, signal));
  byId("log").scrollTop = byId("log").scrollHeight;
}

/** Read an answer to its end, over as many connections as it takes. */
async function follow(where, turn, open) {
  const mine = { turn, abort: new AbortController(), left: false };
  going = mine;
  showBusy();
  draw();
  const { signal } = mine.abort;
  let pause = 500;
  let kept = Date.now();
  for (;;) {
    try {
      for await (const { chunk, number } of open(signal)) {
        pause = 500;
        turn.lost = false;
        if (number <= turn.number) continue;
        turn.number = number;
        take(turn, chunk);
        if (Date.now() - kept > 1000) {
          kept = Date.now();
          keep(where);
        }
        draw();
      }
      turn.state = "done";
      break;
    } catch (error) {
      if (mine.left) return; // it goes on at the gateway, and is read on when it is shown again
      if (signal.aborted) {
        turn.state = "stopped";
        break;
      }
      if (error instanceof ApiError) {
        turn.state = "failed";
        turn.error = error.code === "answer_not_found" ? "The gateway knows nothing of this answer any more; regenerate it." : error.message;
        break;
      }
      console.debug("answer", error instanceof LostError ? "cut" : error);
      turn.lost = true;
      draw();
      await passed(pause, signal);
      pause = Math.min(pause * 2, 8000);
      open = (again) => resume(turn.name, turn.number, again);
    }
  }
  keep(where);
  if (going === mine) going = null;
  showBusy();
  draw();
}

/** So many milliseconds, or until the signal. */
const passed = (ms, signal) => new Promise((resolve) => {
  const timer = setTimeout(resolve, ms);
  signal.addEventListener("abort", () => resolve(clearTimeout(timer)), { once: true });
});

function take(turn, chunk) {
  const delta = chunk.choices[0]?.delta || {};
  turn.model = chunk.model;
  turn.text += delta.content || "";
  turn.thought += delta.reasoning_content || "";
  turn.facts = chunk.wanswarm || turn.facts;
  turn.tokens = chunk.usage?.completion_tokens ?? turn.tokens;
}

function stopAnswer() {
  if (!going) return;
  stop(going.turn.name);
  going.abort.abort();
}

function grow() {
  const box = field();
  box.style.height = "auto";
  box.style.height = `${Math.min(box.scrollHeight, 220)}px`;
}

/** Read no more of the answer under way, without stopping it. */
function leave() {
  if (!going) return;
  keep(chat);
  going.left = true;
  going.abort.abort();
  going = null;
}

/** Show a conversation, and go on with its answer if that was under way. */
function enter(found) {
  chat = found;
  editing = null;
  show(chat.id);
  const last = chat.turns[chat.turns.length - 1];
  if (last?.state === "streaming") follow(chat, last, (signal) => resume(last.name, last.number, signal));
  showBusy();
  draw();
  requestAnimationFrame(() => requestAnimationFrame(() => {
    byId("log").scrollTop = byId("log").scrollHeight;
  }));
}

export function resetChat() {
  stopAnswer();
  going = null;
  keep(chat);
  enter({ id: newId(), updated: 0, turns: [] });
  field().focus();
}

function drawHistory() {
  const all = conversations();
  morph(byId("past"), all.length ? all.map((one) => h("li", { "data-key": one.id },
    h("button", { type: "button", class: "pick", "data-action": "pick", "data-id": one.id, "aria-current": one.id === chat.id ? "true" : null },
      h("span", { dir: "auto" }, title(one)), h("span", { class: "sub" }, new Date(one.updated).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }))),
    h("button", { type: "button", class: "deed", "data-action": "forget", "data-id": one.id, "aria-label": `Delete: ${title(one)}` }, "Delete")))
    : h("li", { class: "nothing" }, "None yet."));
}

/** What another tab made of the conversation shown here: gone on with it, or deleted it. */
function elsewhere(id, found) {
  if (id !== chat.id) return;
  if (!found) chat.gone = true;
  else if (!going && editing === null) enter(found);
}

function drop(id) {
  forget(id);
  if (id === chat.id) {
    chat.gone = true; // its answer may be kept once more when it ends
    stopAnswer();
    going = null;
    enter({ id: newId(), updated: 0, turns: [] });
  }
  drawHistory();
}

/** What buttons of the chat do. */
export const chatActions = {
  reset: resetChat,
  history: () => {
    drawHistory();
    byId("history").showModal();
  },
  "close-history": () => byId("history").close(),
  pick: (button) => {
    const found = recall(button.dataset.id);
    byId("history").close();
    if (!found || found.id === chat.id) return;
    leave();
    enter(found);
  },
  forget: (button) => drop(button.dataset.id),
  "forget-all": () => conversations().forEach((one) => drop(one.id)),
  "edit-turn": (button) => {
    editing = Number(button.dataset.index);
    field().value = chat.turns[editing].text;
    grow();
    showBusy();
    field().focus();
  },
  again: () => {
    if (going) return;
    const { earlier, ...old } = chat.turns.pop();
    answer([...(earlier || []), old].filter((one) => one.text));
  },
  swap: (button) => {
    const index = Number(button.dataset.index);
    const { earlier, ...now } = chat.turns[index];
    const [next, ...rest] = earlier;
    chat.turns[index] = { ...next, earlier: [...rest, now] };
    keep(chat);
    draw();
  },
};

export const textOf = (button) => parted(chat.turns[Number(button.dataset.index)].text).said.trim();

export function startChat() {
  for (const [id, value] of Object.entries(options())) if (byId(id)) byId(id).value = value;
  for (const id of ["system", "temperature", "maximum"]) {
    byId(id).addEventListener("change", () => keepOptions(Object.fromEntries(["system", "temperature", "maximum"].map((name) => [name, byId(name).value]))));
  }
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (going) stopAnswer();
    else send();
  });
  field().addEventListener("input", grow);
  field().addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      if (!going) send();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
    if (going) stopAnswer();
    else if (editing !== null) {
      editing = null;
      field().value = "";
      showBusy();
    }
  });
  onElsewhere(elsewhere);
  const before = shown();
  const found = before && recall(before);
  if (found) enter(found);
  else show(chat.id);
  draw();
}
