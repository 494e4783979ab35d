// Talking to the gateway: one place for the key, for errors and for server-sent events.

const KEY = "wanswarm-key";

export class ApiError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

let asking = null;

/** Ask the person for a key; resolves when there is one. One dialog at a time. `refused`: the key that was not taken. */
function askForKey(refused) {
  asking ??= new Promise((resolve) => {
    document.getElementById("refused").hidden = !refused;
    const dialog = document.getElementById("ask");
    const field = document.getElementById("key");
    field.value = "";
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, field.value.trim());
      asking = null;
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

async function send(path, options = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(options.headers || {}), ...(key ? { Authorization: `Bearer ${key}` } : {}) };
    const response = await fetch(path, { ...options, headers });
    if (response.status === 401) {
      if (key === sessionStorage.getItem(KEY)) await askForKey(key); // else another request asked meanwhile
      continue;
    }
    if (!response.ok) {
      const body = await response.json().catch(() => ({}));
      const error = body.error || {};
      throw new ApiError(response.status, error.message || `the gateway answered ${response.status}`, error.code);
    }
    return response;
  }
}

export const getJson = async (path) => (await send(path)).json();
export const getBlob = async (path) => (await send(path)).blob();

/** Server-sent events of a response as {event, data, id} objects. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const blocks = held.split("\n\n");
      held = blocks.pop();
      for (const block of blocks) {
        const found = { event: "message", data: "" };
        for (const line of block.split("\n")) {
          if (line.startsWith("event: ")) found.event = line.slice(7);
          else if (line.startsWith("data: ")) found.data += line.slice(6);
          else if (line.startsWith("id: ")) found.id = Number(line.slice(4));
        }
        if (found.data) yield found;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

let model = null; // the one that is shown and asked; null: the gateway's first
let watching = null;

/** Show and ask this model from now on. */
export function choose(name) {
  model = name;
  watching?.abort();
}

/** Call `onState` with every new state, for ever; `onLost` when the connection is gone, before trying again. */
export async function follow(onState, onLost) {
  let pause = 500;
  for (;;) {
    watching = new AbortController();
    const { signal } = watching;
    try {
      const path = model === null ? "api/events" : `api/events?model=${encodeURIComponent(model)}`;
      for await (const { event, data } of events(await send(path, { signal }))) {
        pause = 500;
        if (event === "state") onState(JSON.parse(data));
      }
    } catch (error) {
      console.debug("live state", error);
    }
    if (signal.aborted) continue;
    onLost();
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, 8000);
  }
}

/**
 * A streamed chat answer: {chunk, number} as the API gives them. `name`: under which the gateway keeps it, `request`: the
 * id that its run has in the state. Throws ApiError, also for errors in mid-stream.
 */
export async function* ask(name, request, body, signal) {
  const response = await send(`api/answers/${name}`, {
    method: "POST",
    headers: { "Content-Type": "application/json", "X-Request-Id": request },
    body: JSON.stringify({ ...(model === null ? {} : { model }), ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  yield* chunks(response);
}

/** What came after event number `after` of an answer that this page, or this page before it was loaded again, asked for. */
export async function* resume(name, after, signal) {
  yield* chunks(await send(`api/answers/${name}?after=${after}`, { signal }));
}

/** Tell the gateway that nobody waits for this answer. */
export const stop = (name) => send(`api/answers/${name}`, { method: "DELETE" }).catch(() => {});

async function* chunks(response) {
  for await (const { data, id } of events(response)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(503, chunk.error.message, chunk.error.code);
    yield { chunk, number: id };
  }
  throw new LostError();
}

/** The connection ended before the answer did. */
export class LostError extends Error {}
