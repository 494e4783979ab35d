// What lets one more machine in: asked of the gateway once it is needed.

import { getJson } from "./api.js";

let asked = null; // for which model, since it last needed none
let told = null; // {command} or {why}

/** Ask, once per model, while the swarm lacks nodes; `refresh` redraws. */
export async function askForInvite(state, refresh) {
  if (state.role !== "gateway" || state.phase === "serving") asked = null; // next time it may be another
  if (state.role !== "gateway" || state.phase === "serving" || asked === state.model) return;
  asked = state.model;
  told = null;
  try {
    told = await getJson(`api/invite?model=${encodeURIComponent(state.model)}`);
  } catch (error) {
    console.debug("invite", error);
  }
  refresh();
}

export const invite = () => told;
