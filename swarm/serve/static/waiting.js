// Why an answer is not there yet, in words. Pure.

import { nodeName, plural, short } from "./dom.js";

/** What the run of this request waits for; null while words come. `begun`: whether some have. */
export function waitingFor(state, request, begun) {
  const run = state?.runs.find((one) => one.request === request);
  if (!run) return begun ? null : "asking the gateway";
  switch (run.state) {
    case "queued":
      return `waiting for its turn${state.waiting > 1 ? `, ${plural(state.waiting, "request")} in the queue` : ""}`;
    case "opening":
      return "opening a ring";
    case "waiting":
      return run.awaited || "waiting for nodes that hold the missing layers";
    case "recovering": {
      const node = state.nodes.find((one) => one.id === run.lost);
      return `${node ? nodeName(node) : run.lost ? short(run.lost) : "a node"} is lost, looking for another way round`;
    }
    default:
      return begun ? null : `reading the ${plural(run.prompt_tokens, "token")} of the prompt`;
  }
}
