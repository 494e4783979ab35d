// One colour per node, in every picture and for as long as this browser knows the node: whoever comes or goes changes
// nobody else's. Of eight hues the node's own by its id, or the next that no node here has.

const HUES = 8;
const KEY = "wanswarm-hues";
let known = null;

function recalled() {
  try {
    return new Map(JSON.parse(localStorage.getItem(KEY)) || []);
  } catch {
    return new Map();
  }
}

const wanted = (id) => [...id.slice(0, 16)].reduce((sum, letter) => (sum * 31 + letter.charCodeAt(0)) >>> 0, 7) % HUES;

export function colours(state) {
  known ??= recalled();
  const here = [...state.nodes].sort((a, b) => (a.id < b.id ? -1 : 1));
  const fresh = here.filter((node) => !known.has(node.id));
  const taken = new Set(here.filter((node) => known.has(node.id)).map((node) => known.get(node.id)));
  for (const { id } of fresh) {
    let hue = wanted(id);
    for (let i = 0; i < HUES && taken.has(hue); i++) hue = (hue + 1) % HUES;
    taken.add(hue);
    known.set(id, hue);
  }
  if (fresh.length) {
    try {
      localStorage.setItem(KEY, JSON.stringify([...known].slice(-256)));
    } catch {
      // then they last as long as the page
    }
  }
  return (id) => (known.has(id) ? `hue${known.get(id)}` : "hue-none");
}
