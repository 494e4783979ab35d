// One colour per node, the same in every picture; order by first layer, so that neighbours differ.

const HUES = 8;

export function colours(state) {
  const order = [...state.nodes].sort((a, b) => (a.layers?.[0] ?? 1e9) - (b.layers?.[0] ?? 1e9) || (a.id < b.id ? -1 : 1));
  const known = new Map(order.map((node, index) => [node.id, `hue${index % HUES}`]));
  return (id) => known.get(id) || "hue-none";
}
