// Markdown as models write it, as DOM nodes. markdown-it reads it (HTML in an answer stays text, a picture becomes a link,
// since nothing outside is asked for), DOMPurify looks over what came out, and what the page's policy forbids (style attributes) is a class.

import "./vendor/markdown-it-15.0.3.min.js";
import "./vendor/dompurify-3.5.0.min.js";
import { h } from "./dom.js";

const { markdownit, DOMPurify } = globalThis;

const TAGS = ("p br hr strong em s code pre h1 h2 h3 h4 h5 h6 blockquote ul ol li table thead tbody tr th td a").split(" ");
const ATTRIBUTES = ["href", "title", "start", "class"];
const HEADINGS = "h1, h2, h3, h4, h5, h6";
const BLOCKS = `p, ul, ol, blockquote, table, ${HEADINGS}`; // each is set in the direction of its own first words
const HIGHEST = 3; // headings of an answer stand below the page's own

const reader = markdownit({ html: false, linkify: true, breaks: true });
reader.renderer.rules.image = (tokens, index, options, env, self) => {
  const words = reader.utils.escapeHtml(self.renderInlineAsText(tokens[index].children, options, env) || "picture");
  const depth = tokens.slice(0, index).reduce((sum, { type }) => sum + (type === "link_open") - (type === "link_close"), 0);
  return depth ? words : `<a href="${reader.utils.escapeHtml(tokens[index].attrGet("src"))}">${words}</a>`;
};
reader.linkify.set({ fuzzyLink: false, fuzzyEmail: false });
for (const cell of ["th_open", "td_open"]) {
  reader.renderer.rules[cell] = (tokens, index, options, env, self) => {
    const style = /text-align:(left|center|right)/.exec(tokens[index].attrGet("style") || "");
    tokens[index].attrs = style ? [["class", `to-${style[1]}`]] : null;
    return self.renderToken(tokens, index, options);
  };
}

/** The blocks of `text`. An unfinished fence (an answer still streaming) runs to the end. */
export function markdown(text) {
  const clean = DOMPurify.sanitize(reader.render(text), { ALLOWED_TAGS: TAGS, ALLOWED_ATTR: ATTRIBUTES, ALLOW_DATA_ATTR: false, RETURN_DOM_FRAGMENT: true });
  const box = document.createElement("div");
  box.append(document.importNode(clean, true));
  const headings = [...box.querySelectorAll(HEADINGS)];
  const levels = [...new Set(headings.map((heading) => heading.tagName))].sort();
  for (const heading of headings) {
    heading.replaceWith(h(`h${Math.min(6, HIGHEST + levels.indexOf(heading.tagName))}`, {}, [...heading.childNodes]));
  }
  for (const pre of box.querySelectorAll("pre")) pre.dir = "ltr";
  for (const block of box.querySelectorAll(BLOCKS)) if (!block.parentElement.closest("[dir]")) block.dir = "auto";
  for (const link of box.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer nofollow";
  }
  for (const table of box.querySelectorAll("table")) {
    const wide = h("div", { class: "wide", tabindex: "0", role: "region", "aria-label": "Table" });
    table.replaceWith(wide);
    wide.append(table);
  }
  for (const pre of box.querySelectorAll("pre")) {
    const language = /language-([\w+#.-]+)/.exec(pre.firstElementChild?.className || "");
    pre.tabIndex = 0;
    const block = h("div", { class: "code" }, h("div", { class: "codehead" }, h("span", {}, language ? language[1] : "code"),
      h("button", { type: "button", class: "quiet", "data-action": "copy-code" }, "Copy")));
    pre.replaceWith(block);
    block.append(pre);
  }
  return [...box.childNodes].filter((node) => node.nodeType !== 3 || node.data.trim());
}

const THOUGHT = /^\s*<think>([\s\S]*?)(?:<\/think>|$)/;

/** {thought, said}: a thought that the answer begins with stands apart, closed or not yet. */
export function parted(text) {
  const found = THOUGHT.exec(text);
  return found ? { thought: found[1].trim(), said: text.slice(found[0].length) } : { thought: "", said: text };
}
