// The ring as numbers: which pieces there are and where they lie. Pure.

/** Pieces of the ring, in layer order: {kind: "stage" | "missing", node, layers: [a, b), stage}. */
export function pieces(state, run) {
  if (run && run.ring.length) {
    return run.ring.map((stage) => ({ kind: "stage", id: stage.node, layers: stage.layers, stage }));
  }
  const out = [];
  let at = 0;
  const usable = state.nodes.filter((n) => n.layers && n.state === "serving");
  while (at < state.n_layers) {
    // Of the nodes that hold this layer, the one that reaches furthest.
    const best = usable.filter((n) => n.layers[0] <= at && n.layers[1] > at).sort((a, b) => b.layers[1] - a.layers[1])[0];
    if (best) {
      out.push({ kind: "stage", id: best.id, layers: [at, best.layers[1]], stage: null });
      at = best.layers[1];
      continue;
    }
    const next = Math.min(state.n_layers, ...usable.map((n) => n.layers[0]).filter((first) => first > at));
    out.push({ kind: "missing", id: null, layers: [at, next], stage: null });
    at = next;
  }
  return out;
}

/** Angles in degrees, clockwise from the top: one arc per piece, one gap per edge, the requester in the first gap's start. */
export function place(parts) {
  const edges = parts.length + 1;
  const gap = Math.min(30, 132 / edges);
  const requester = 0;
  const total = parts.reduce((sum, part) => sum + part.layers[1] - part.layers[0], 0) || 1;
  const room = 360 - gap * edges - requester;
  let at = requester / 2;
  const arcs = [];
  const gaps = [];
  for (const part of parts) {
    gaps.push([at, at + gap]);
    at += gap;
    const size = (room * (part.layers[1] - part.layers[0])) / total;
    arcs.push([at, at + size]);
    at += size;
  }
  gaps.push([at, at + gap]);
  return { arcs, gaps };
}

export function point(radius, degrees) {
  const angle = ((degrees - 90) * Math.PI) / 180;
  return [radius * Math.cos(angle), radius * Math.sin(angle)];
}

const fix = (value) => value.toFixed(2);

/** A path along the circle. */
export function arc(radius, from, to) {
  const [x1, y1] = point(radius, from);
  const [x2, y2] = point(radius, to);
  return `M${fix(x1)} ${fix(y1)}A${radius} ${radius} 0 ${to - from > 180 ? 1 : 0} 1 ${fix(x2)} ${fix(y2)}`;
}
