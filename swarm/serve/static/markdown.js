// The part of Markdown that models write, as DOM nodes: nothing in an answer is ever read as HTML.

import { h } from "./dom.js";

const INLINE = /(`+)([\s\S]+?)\1|\*\*([^\s*](?:[\s\S]*?[^\s*])?)\*\*|\*([^\s*](?:[^*]*?[^\s*])?)\*/;

function inline(text) {
  const out = [];
  for (let rest = text; rest; ) {
    const found = INLINE.exec(rest);
    if (!found) {
      out.push(rest);
      break;
    }
    if (found.index) out.push(rest.slice(0, found.index));
    if (found[1]) out.push(h("code", {}, found[2]));
    else if (found[3]) out.push(h("strong", {}, ...inline(found[3])));
    else out.push(h("em", {}, ...inline(found[4])));
    rest = rest.slice(found.index + found[0].length);
  }
  return out;
}

const BULLET = /^\s{0,6}[-*+]\s+(.*)$/;
const NUMBER = /^\s{0,6}(\d{1,6})[.)]\s+(.*)$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const FENCE = /^\s{0,3}(```+|~~~+)\s*([\w+-]*)\s*$/;

/** Blocks of `text`. An unfinished fence (an answer still streaming) runs to the end. */
export function markdown(text) {
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  const out = [];
  let i = 0;
  const until = (stop) => {
    const from = i;
    while (i < lines.length && !stop(lines[i])) i++;
    return lines.slice(from, i);
  };
  while (i < lines.length) {
    const line = lines[i];
    const fence = FENCE.exec(line);
    if (!line.trim()) {
      i++;
    } else if (fence) {
      i++;
      const code = until((l) => l.trim().startsWith(fence[1]) && FENCE.test(l));
      i++;
      out.push(h("pre", {}, h("code", { "data-language": fence[2] || null }, code.join("\n"))));
    } else if (HEADING.test(line)) {
      out.push(h("h4", {}, ...inline(HEADING.exec(line)[2])));
      i++;
    } else if (BULLET.test(line) || NUMBER.test(line)) {
      const kind = BULLET.test(line) ? BULLET : NUMBER;
      const first = kind === NUMBER ? Number(NUMBER.exec(line)[1]) : null;
      const items = until((l) => !kind.test(l) && !/^\s{2,}\S/.test(l)).reduce((list, l) => {
        const found = kind.exec(l);
        if (found) list.push(found[found.length - 1]);
        else list[list.length - 1] += ` ${l.trim()}`;
        return list;
      }, []);
      const body = items.map((item) => h("li", {}, ...inline(item)));
      out.push(kind === NUMBER ? h("ol", { start: first === 1 ? null : first }, body) : h("ul", {}, body));
    } else {
      const paragraph = until((l) => !l.trim() || FENCE.test(l) || HEADING.test(l) || BULLET.test(l) || NUMBER.test(l));
      out.push(h("p", {}, ...inline(paragraph.join("\n"))));
    }
  }
  return out;
}
