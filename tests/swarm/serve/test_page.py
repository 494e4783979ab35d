"""What a page of the gateway keeps and shows: Markdown whole, conversations that stay, answers that survive a reload,
why one waits, and what axe-core finds wrong for people who cannot see it as others do."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from swarm.base.errors import RunError
from swarm.serve.keys import ApiKey
from tests.swarm.serve import scenes
from tests.swarm.serve.browser import browser
from tests.swarm.serve.conftest import Serve
from tests.swarm.serve.test_dashboard import PHONE, WIDE, look, needs_chromium, on_one_loop
from tests.swarm.serve.tiny import TinyBackend
from tests.swarm.serve.traced import SPARE, write_beside

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytest.importorskip("playwright")
pytestmark = [needs_chromium, on_one_loop]
TABLET = {"width": 768, "height": 1024}
MARKDOWN = """# Rings

| hop | ms |
| :-- | --: |
| ghent | 18 |

1. first
   - nested
     ```python
     print("in a list")
     ```
2. second

> quoted

---

A [link](https://example.org/x) and https://example.com/y, ~~gone~~ **strong**.
![no picture](https://example.org/p.png)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as running:
        yield running


@pytest.fixture
def backend(tmp_path: Path) -> TinyBackend:
    ready = TinyBackend(tmp_path, manifest=scenes.MANIFEST)
    ready.state, ready.ring, ready.script = scenes.SERVING, scenes.RING, "Round it goes."
    return ready


async def say(page: Page, text: str) -> None:
    await page.fill("#say", text)
    await page.press("#say", "Enter")


def hold_after(backend: TinyBackend, tokens: int) -> asyncio.Event:
    """A gate that shuts once so many tokens came."""
    gate = backend.gate = asyncio.Event()
    gate.set()
    backend.on_token = lambda count: gate.clear() if count == tokens else None
    return gate


async def test_markdown_is_shown_whole(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.script = MARKDOWN
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "Explain.")
        said = page.locator(".answer.done > .said")
        await said.wait_for()
        assert await said.locator("table td.to-right").inner_text() == "18"
        assert await said.locator("ol > li > ul > li .code pre").inner_text() == 'print("in a list")\n'
        assert await said.locator("blockquote").inner_text() == "quoted"
        assert await said.locator("hr").count() == 1 and await said.locator("s").inner_text() == "gone"
        assert await said.locator("h3").inner_text() == "Rings"
        links = await said.locator("a").evaluate_all("all => all.map(a => [a.href, a.rel])")
        assert [href for href, _ in links[:2]] == ["https://example.org/x", "https://example.com/y"]
        assert all("noopener" in rel and "noreferrer" in rel for _, rel in links)
        assert await said.locator("img").count() == 0  # nothing outside is asked for


async def test_code_is_copied_as_it_was_written(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.script = "```sh\necho  <b>\n```"
    async with serve() as served:
        permitted = {"permissions": ["clipboard-read", "clipboard-write"]}
        async with look(chromium, served, "chat", **permitted) as page:
            await say(page, "How?")
            await page.locator(".answer.done .code button").click()
            await page.locator(".code button", has_text="Copied").wait_for()
            assert await page.evaluate("navigator.clipboard.readText()") == "echo  <b>\n"


async def test_a_thought_is_folded_away(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.script = "<think>Hm, *what*?</think>It is four."
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "2+2?")
        await page.locator(".answer.done").wait_for()
        assert await page.locator(".answer > .said").inner_text() == "It is four."
        assert not await page.locator(".think .said").is_visible()
        await page.locator(".think summary").click()
        assert await page.locator(".think .said em").inner_text() == "what"


async def test_an_answer_survives_a_reload(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    gate = hold_after(backend, 5)
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "Does it go?")
        await page.locator(".answer.streaming", has_text="Round").wait_for()
        await page.reload()
        await page.locator(".answer.streaming", has_text="Round").wait_for()
        assert backend.open_runs == 1 and backend.cancelled == 0
        gate.set()
        await page.locator(".answer.done", has_text="Round it goes.").wait_for()
        assert await page.locator(".mine .said").inner_text() == "Does it go?"
        assert len(backend.requests) == 1


async def test_conversations_stay_and_can_be_had_again(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "The first one")
        await page.locator(".answer.done").wait_for()
        await page.get_by_role("button", name="New chat").click()
        await page.locator(".hint").wait_for()
        await say(page, "The second one")
        await page.locator(".answer.done").wait_for()
        await page.reload()
        await page.locator(".mine", has_text="The second one").wait_for()
        await page.get_by_role("button", name="History").click()
        await page.locator(".pick", has_text="The first one").click()
        await page.locator(".mine", has_text="The first one").wait_for()
        await page.get_by_role("button", name="History").click()
        await page.get_by_role("button", name="Delete all").click()
        await page.get_by_text("None yet.").wait_for()
        kept = "Object.keys(localStorage).filter(key => key.startsWith('wanswarm-chat-')).length"
        assert await page.evaluate(kept) == 0


async def test_an_answer_is_had_anew_and_the_old_one_stays(
    chromium: Browser, serve: Serve, backend: TinyBackend
) -> None:
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "Well?")
        await page.locator(".answer.done", has_text="Round it goes.").wait_for()
        backend.script = "Another way."
        await page.get_by_role("button", name="Regenerate").click()
        await page.locator(".answer.done", has_text="Another way.").wait_for()
        await page.get_by_text("Other answers").click()
        await page.locator(".answer.done", has_text="Round it goes.").wait_for()
        assert await page.locator(".turn").count() == 2
        first, second = (backend.decode(request.prompt_ids) for request in backend.requests)
        assert first == second


async def test_what_was_asked_is_edited_and_the_old_conversation_stays(
    chromium: Browser, serve: Serve, backend: TinyBackend
) -> None:
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "Teh first")
        await page.locator(".answer.done").wait_for()
        await page.get_by_role("button", name="Edit").click()
        assert await page.input_value("#say") == "Teh first"
        await say(page, "The first")
        await page.locator(".answer.done").wait_for()
        assert await page.locator(".mine .said").all_inner_texts() == ["The first"]
        assert "Teh" not in backend.decode(backend.requests[-1].prompt_ids)
        await page.get_by_role("button", name="History").click()
        assert sorted(await page.locator(".pick > span:first-child").all_inner_texts()) == ["Teh first", "The first"]


async def test_why_one_waits_is_said_where_the_answer_will_be(
    chromium: Browser, serve: Serve, backend: TinyBackend
) -> None:
    gate = hold_after(backend, 1)
    gate.clear()
    async with serve(max_running=1) as served:
        async with look(chromium, served, "chat") as one, look(chromium, served, "chat") as other:
            await say(one, "First?")
            await one.locator(".answer .waiting", has_text="of the prompt").wait_for()
            await say(other, "Second?")
            await other.locator(".answer .waiting", has_text="waiting for its turn").wait_for()
            backend.recover_after = 1
            gate.set()
            await one.locator(".answer .waiting", has_text="oslo is lost, looking for another way").wait_for()
            gate.set()
            await one.locator(".answer.done").wait_for()


async def test_an_answer_that_nobody_follows_is_told_to_have_stopped(
    chromium: Browser, serve: Serve, backend: TinyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("swarm.serve.lasting.ALONE_S", 0.1)
    hold_after(backend, 5)
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "Does it go?")
        await page.locator(".answer.streaming", has_text="Round").wait_for()
        await page.goto("about:blank")
        await backend.until(runs=0)
        await page.goto(f"{served.url}/#chat")
        await page.locator(".answer.failed .bad", has_text="was stopped").wait_for()


async def test_a_run_that_failed_shows_nothing_green(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.fail, backend.fail_after = RunError("no other route to layers 22-29"), 3
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "hello")
        await page.locator(".answer.failed").wait_for()
        await page.goto(f"{served.url}/#runs")
        await page.locator(".run.failed").wait_for()
        bad = await page.evaluate("getComputedStyle(document.querySelector('.turn .bad')).color")
        shown = "all => all.map(one => [getComputedStyle(one).color, getComputedStyle(one).backgroundColor])"
        status = await page.locator(".run.failed .status").evaluate_all(shown)
        strip = await page.locator(".run.failed .strip i").evaluate_all(shown)
        assert [colour for colour, _ in status] == [bad]
        assert strip and all(ground == "rgba(0, 0, 0, 0)" for _, ground in strip)


async def test_a_node_keeps_its_colour_whoever_comes_and_goes(
    chromium: Browser, serve: Serve, backend: TinyBackend
) -> None:
    hue = "name => document.querySelector(`[data-key='node-${name}'] .dot`).className"
    async with serve() as served, look(chromium, served, "swarm") as page:
        ids = scenes.IDS[:3]
        for node in ids:
            await page.locator(f"[data-key='node-{node}']").wait_for()
        before = [await page.evaluate(hue, node) for node in ids]
        assert len(set(before)) == 3
        backend.state = replace(scenes.SERVING, nodes=scenes.SERVING.nodes[1:])
        await page.locator(f"[data-key='node-{ids[0]}']").wait_for(state="detached")
        assert [await page.evaluate(hue, node) for node in ids[1:]] == before[1:]
        await page.reload()
        backend.state = scenes.SERVING
        await page.locator(f"[data-key='node-{ids[0]}']").wait_for()
        assert [await page.evaluate(hue, node) for node in ids] == before


async def violations(page: Page) -> list[Any]:
    """What axe-core finds: the rules of WCAG 2.2 A and AA and its best practices, landmarks among them."""
    await page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
    found = await page.evaluate("axe.run(document, {resultTypes: ['violations', 'incomplete']})")
    told: list[Any] = [(rule["id"], [node["html"][:160] for node in rule["nodes"]]) for rule in found["violations"]]
    return told


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.soak)])
async def test_axe_finds_nothing_wrong(chromium: Browser, serve: Serve, backend: TinyBackend, scheme: str) -> None:
    pytest.importorskip("axe_playwright_python")
    backend.script = "<think>So.</think>" + MARKDOWN
    async with serve() as served:
        for size in (WIDE, TABLET, PHONE):
            async with look(chromium, served, "chat", size, color_scheme=scheme) as page:
                await say(page, "Explain.")
                await page.locator(".answer.done").wait_for()
                await page.locator(".think summary").click()
                assert await violations(page) == [], ("chat", size)
                await page.get_by_role("button", name="History").click()
                assert await violations(page) == [], ("history", size)
                await page.keyboard.press("Escape")
                for view in ("swarm", "runs"):
                    await page.goto(f"{served.url}/#{view}")
                    await page.locator(f"#view-{view} .panel").first.wait_for()
                    if view == "runs":
                        await page.locator(".run summary").first.click()
                    assert await violations(page) == [], (view, size)
                widths = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
                assert widths[0] <= widths[1]
        for scene in (scenes.EMPTY, scenes.FORMING, scenes.LOST):
            backend.state = scene
            async with look(chromium, served, "swarm", color_scheme=scheme) as page:
                await page.locator("svg.ring").wait_for()
                assert await violations(page) == []


async def test_everything_is_done_by_keyboard_alone(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.script = "```sh\nls\n```"
    async with serve() as served, look(chromium, served, "chat") as page:
        await page.locator("#aside svg.ring").wait_for()

        async def tab_to(words: str) -> None:
            focused = "(document.activeElement.id || document.activeElement.textContent).trim()"
            for _ in range(30):
                await page.keyboard.press("Tab")
                if await page.evaluate(focused) == words:
                    return
            raise AssertionError(f"the keyboard does not reach {words}")

        await tab_to("say")
        await page.keyboard.type("How?")
        await page.keyboard.press("Enter")
        await page.locator(".answer.done").wait_for()
        await tab_to("Regenerate")
        await page.keyboard.press("Enter")
        await page.get_by_text("2 answers").wait_for()
        await tab_to("History")
        await page.keyboard.press("Enter")
        await page.locator("#history[open]").wait_for()
        await page.keyboard.press("Escape")
        await page.locator("#history").wait_for(state="hidden")
        assert await page.evaluate("document.activeElement.textContent") == "History"


async def test_a_run_is_shown_over_time(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "Well?")
        await page.locator(".answer.done").wait_for()
        await page.goto(f"{served.url}/#runs")
        await page.locator(".run summary").click()
        await page.get_by_role("button", name="Timeline").click()
        picture = page.locator(".timeline img")
        await picture.wait_for()
        size = await picture.evaluate(
            "async image => (await image.decode(), [image.naturalWidth, image.naturalHeight])"
        )
        assert size[0] > 600 and size[1] > 100
        assert "3 stages" in (await picture.get_attribute("alt") or "")
        await page.get_by_role("button", name="Hide timeline").click()
        await picture.wait_for(state="detached")
        assert await page.get_by_role("button", name="Replay recovery").count() == 0


async def test_a_recovery_is_played_step_by_step(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.recover_after, backend.example = 2, backend.example.with_name("recovered.json")
    async with serve() as served, look(chromium, served, "chat", PHONE) as page:
        await say(page, "Well?")
        await page.locator(".answer.done").wait_for()
        write_beside(backend.receipts_dir / "run1.json")
        await page.goto(f"{served.url}/#runs")
        await page.locator(".run summary").click()
        await page.get_by_role("button", name="Replay recovery").click()
        now = page.locator(".steps [aria-current]")
        await now.wait_for()
        assert "+0.0 ms" in await now.inner_text() and "the connection was lost" in await now.inner_text()
        assert await page.locator(".replay .span.lost").count() == 1
        await page.get_by_role("button", name="Next", exact=True).click()
        await page.locator(".replay .span.joining", has_text="10–19").wait_for()
        assert f"{SPARE.hex()[:8]} takes layers 10-19" in await now.inner_text()
        assert await page.evaluate("document.activeElement.textContent") == "Next"  # it stays under the finger
        await page.get_by_role("button", name="Play").click()
        await page.get_by_text("step 5 of 5").wait_for()
        assert "the next token" in await now.inner_text()
        assert await page.locator(".replay .span.serving").count() == 3
        await page.get_by_role("button", name="Timeline").click()
        await page.locator(".timeline img").wait_for()
        pytest.importorskip("axe_playwright_python")
        assert await violations(page) == []
        async with served.http.get("/api/timeline/run1") as drawn:
            assert "style-src 'unsafe-inline'" in drawn.headers["Content-Security-Policy"]
            assert "takes layers 10-19" in await drawn.text()
        (backend.receipts_dir / "run1.trace.json").write_text("{}")
        async with served.http.get("/api/recoveries/run1") as asked:
            told = await asked.json()
        assert told["recoveries"] == [] and "is not drawn: expected a trace of a run" in told["why"]
        async with served.http.get("/api/recoveries/none") as asked:
            assert asked.status == 404


async def test_layers_are_drawn_over_time(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    async with serve() as served, look(chromium, served, "swarm", PHONE) as page:
        lane = page.locator("#layermap .lane")
        await lane.nth(4).wait_for()
        assert "every layer held all the time" in await page.inner_text("#layermap h2")
        backend.state = scenes.LOST
        await page.locator("#layermap .span.ends").wait_for()
        backend.state = scenes.FORMING
        await page.locator("#layermap h2", has_text="layers missing for").wait_for()
        await page.get_by_role("button", name="1 hour").click()
        await page.locator("#layermap [aria-pressed=true]", has_text="1 hour").wait_for()
        await page.get_by_text("As a list").click()
        assert "oslo is lost (layers 22–29)" in await page.inner_text("#layermap .events")
        sizes = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert sizes[0] <= sizes[1]
        pytest.importorskip("axe_playwright_python")
        assert await violations(page) == []


async def test_another_users_passes_are_not_shown(serve: Serve, backend: TinyBackend) -> None:
    backend.example = backend.example.with_name("recovered.json")
    keys = {name: f"sk-{name}-secret-key" for name in ("ann", "bob")}
    async with serve(
        keys["ann"], api_keys=tuple(ApiKey(name, hashlib.sha256(key.encode()).digest()) for name, key in keys.items())
    ) as served:
        await served.openai.chat.completions.create(model=served.model, messages=[{"role": "user", "content": "Hi"}])
        write_beside(backend.receipts_dir / "run1.json")
        for name, seen in (("ann", True), ("bob", False)):
            headers = {"Authorization": f"Bearer {keys[name]}"}
            async with served.http.get("/api/recoveries/run1", headers=headers) as asked:
                told = await asked.json()
            assert bool(told["recoveries"]) == seen and ("whoever asked for it" in told["why"]) != seen
            async with served.http.get("/api/timeline/run1", headers=headers) as drawn:
                assert ("takes layers 10-19" in await drawn.text()) == seen


async def test_copy_copies_a_real_invite(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.state = scenes.FORMING
    backend.told = ("swarm1real", True)
    permitted = {"permissions": ["clipboard-read", "clipboard-write"]}
    async with serve() as served, look(chromium, served, "swarm", **permitted) as page:
        await page.get_by_text("keeps the gateway's own invite to itself").first.wait_for()
        assert "swarm1real" not in await page.content()
    async with serve(share_invite=True) as served, look(chromium, served, "swarm", **permitted) as page:
        await page.locator("#view-swarm .command code", has_text="swarm1real").wait_for()
        await page.locator("#view-swarm .command button").click()
        await page.locator(".command button", has_text="Copied").wait_for()
        assert await page.evaluate("navigator.clipboard.readText()") == "swarm join --swarm swarm1real"
