// Conversations, kept in this browser and nowhere else: one entry each, so that two tabs do not write over each other.

const PREFIX = "wanswarm-chat-";
const OPTIONS = "wanswarm-options";
const MOST = 100;

export const newId = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key));
  } catch {
    return null; // of another version, or no storage at all
  }
}

/** Write; where the browser has no room the oldest conversations go. */
function write(key, value) {
  const text = JSON.stringify(value);
  for (;;) {
    try {
      localStorage.setItem(key, text);
      return;
    } catch {
      const oldest = conversations().filter((chat) => PREFIX + chat.id !== key).pop();
      if (!oldest) return;
      forget(oldest.id);
    }
  }
}

/** Call `heard` with the id and the content (null: deleted) of a conversation that another tab wrote. */
export function onElsewhere(heard) {
  addEventListener("storage", ({ key }) => {
    if (key?.startsWith(PREFIX)) heard(key.slice(PREFIX.length), read(key));
  });
}

/** All of them, the latest first: {id, updated, turns}; one with `gone` was deleted and is not kept again. */
export function conversations() {
  const found = [];
  try {
    for (let i = 0; i < localStorage.length; i++) {
      const key = localStorage.key(i);
      const chat = key.startsWith(PREFIX) ? read(key) : null;
      if (chat && Array.isArray(chat.turns)) found.push(chat);
    }
  } catch {
    return [];
  }
  return found.sort((a, b) => b.updated - a.updated);
}

export function keep(chat) {
  if (!chat.turns.length || chat.gone) return;
  chat.updated = Date.now();
  write(PREFIX + chat.id, chat);
  for (const old of conversations().slice(MOST)) forget(old.id);
}

export const recall = (id) => read(PREFIX + id);

export function forget(id) {
  try {
    localStorage.removeItem(PREFIX + id);
  } catch {
    // nothing was kept
  }
}

export const title = (chat) => (chat.turns[0]?.text || "").replace(/\s+/g, " ").slice(0, 80);

export const options = () => read(OPTIONS) || {};
export const keepOptions = (value) => write(OPTIONS, value);

/** Which conversation this tab shows; survives its reload. */
export const shown = () => sessionStorage.getItem("wanswarm-shown");
export const show = (id) => sessionStorage.setItem("wanswarm-shown", id);
