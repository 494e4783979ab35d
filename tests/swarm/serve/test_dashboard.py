"""The dashboard in a real browser: every state, chat, verification, keys; no foreign asset, no overflow on a phone."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from swarm.serve.assets import load_assets
from swarm.serve.keys import ApiKey
from tests.swarm.serve import scenes
from tests.swarm.serve.browser import browser, chromium_path
from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.test_desks import serving
from tests.swarm.serve.tiny import TinyBackend, TinyManifest

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytest.importorskip("playwright")
needs_chromium = pytest.mark.skipif(chromium_path() is None, reason="needs chromium on the PATH")
on_one_loop = pytest.mark.asyncio(loop_scope="module")
SECRET = "0123456789abcdef"
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as running:
        yield running


@pytest.fixture
def backend(tmp_path: Path) -> TinyBackend:
    ready = TinyBackend(tmp_path, manifest=scenes.MANIFEST)
    ready.state, ready.ring, ready.script = scenes.SERVING, scenes.RING, "Round and **round** it goes."
    return ready


@asynccontextmanager
async def look(
    chromium: Browser, served: Served, view: str, size: dict[str, int] = WIDE, unknown: bool = False, **options: Any
) -> AsyncIterator[Page]:
    """A page that must not complain: script errors, policy violations and foreign requests fail the test.

    unknown: it may ask for an answer that the gateway does not know yet, or no more."""
    context = await chromium.new_context(viewport=size, **options)  # type: ignore[arg-type]
    context.set_default_timeout(15_000)
    page = await context.new_page()
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda line: complaints.append(line.text) if line.type == "error" else None)
    page.on("request", lambda asked: asked.url.startswith(served.url) or complaints.append(f"asked for {asked.url}"))
    await page.goto(f"{served.url}/#{view}")
    yield page
    await context.close()
    known = ("401", "404") if unknown else ("401",)
    assert [line for line in complaints if not any(status in line for status in known)] == []


SCENES = [
    ("EMPTY", "empty", "Nobody holds layers yet"),
    ("FORMING", "forming, 10 layers missing", "Layers 20–29 are missing"),
    ("SERVING", "serving", "all 30 held"),
    ("LOST", "serving, a node is lost", "oslo is lost"),
]


@needs_chromium
@on_one_loop
@pytest.mark.parametrize(("scene", "phase", "words"), SCENES)
async def test_each_state_says_what_is_the_matter(
    chromium: Browser, serve: Serve, backend: TinyBackend, scene: str, phase: str, words: str
) -> None:
    backend.state = getattr(scenes, scene)
    async with serve() as served:
        for size in (WIDE, PHONE):
            async with look(chromium, served, "swarm", size, color_scheme="dark") as page:
                await page.get_by_text(words).first.wait_for()
                assert phase in (await page.inner_text("#phase"))
                assert await page.locator("svg.ring").get_attribute("aria-label")
                sizes = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
                assert sizes[0] <= sizes[1], f"{scene} is wider than the screen"
                assert len(await page.screenshot(full_page=True)) > 10_000


CUT = """element => {
    const box = element.getBoundingClientRect(), all = [...element.querySelectorAll(".lamp, .words")];
    const inside = part => part.left >= box.left - 1 && part.right <= box.right + 1 && part.bottom <= box.bottom + 1;
    return all.length < 2 || !all.every(each => inside(each.getBoundingClientRect()))
        || element.scrollWidth > element.clientWidth || box.left < 0 || box.right > innerWidth;
}"""
"""Whether the line of state shows its lamp and all of its words."""


@needs_chromium
@on_one_loop
async def test_the_line_of_state_is_never_cut(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    async with serve() as served, look(chromium, served, "swarm") as page:
        for scene, phase, _ in SCENES:
            backend.state = getattr(scenes, scene)
            await page.locator("#phase").get_by_text(phase, exact=True).wait_for()
            for width in (320, 360, 768, 1280):
                await page.set_viewport_size({"width": width, "height": 740})
                assert not await page.locator("#phase").evaluate(CUT), f"{scene} at {width}"


@needs_chromium
@on_one_loop
async def test_states_look_different(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    pictures = set()
    async with serve() as served:
        for scene, *_ in SCENES:
            backend.state = getattr(scenes, scene)
            async with look(chromium, served, "swarm") as page:
                await page.locator("svg.ring").wait_for()
                pictures.add(hashlib.sha256(await page.locator("svg.ring").screenshot()).hexdigest())
    assert len(pictures) == len(SCENES)


@needs_chromium
@on_one_loop
async def test_the_page_follows_the_swarm(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    async with serve() as served, look(chromium, served, "swarm") as page:
        await page.get_by_text("all 30 held").wait_for()
        backend.state = scenes.FORMING
        await page.get_by_text("20 of 30 held").wait_for()
        backend.state = scenes.SERVING
        await page.get_by_text("all 30 held").wait_for()


@needs_chromium
@on_one_loop
async def test_of_several_models_one_is_chosen(chromium: Browser, tmp_path: Path) -> None:
    small, large = (
        TinyBackend(tmp_path, TinyManifest(name, context=512), state=scenes.SERVING, script=f"I am {name}.")
        for name in ("small", "large")
    )
    async with serving(small, large) as served:
        for size in (WIDE, PHONE):
            async with look(chromium, served, "chat", size) as page:
                await page.get_by_label("Model").select_option("large")
                await page.locator("#phase", has_text="serving").wait_for()
                await page.fill("#say", "Who?")
                await page.press("#say", "Enter")
                await page.get_by_text("I am large.").wait_for()
                widths = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
                assert widths[0] <= widths[1]
                # The state is a whole word beside the choice of models, and what one types into is in sight.
                phase = "document.getElementById('phase')"
                cut = f"{phase}.scrollWidth > {phase}.clientWidth"
                assert size is WIDE or not await page.evaluate(cut)
                sent = await page.locator("#send").bounding_box()
                assert sent is not None and sent["y"] + sent["height"] <= size["height"]
        assert not small.requests and len(large.requests) == 2


@needs_chromium
@on_one_loop
async def test_an_answer_streams_and_can_be_stopped(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.gate = asyncio.Event()
    backend.gate.set()
    backend.on_token = lambda count: backend.gate.clear() if backend.gate and count == 5 else None
    async with serve() as served, look(chromium, served, "chat") as page:
        await page.fill("#say", "Does it go?")
        await page.press("#say", "Enter")
        await page.locator(".answer.streaming", has_text="Round").wait_for()
        await page.locator("#aside svg.ring", has_text="tokens per second").wait_for()
        await page.locator("#aside .pulse").first.wait_for()
        assert await page.inner_text("#send") == "Stop"
        await page.keyboard.press("Escape")
        await page.locator(".answer.stopped").wait_for()
        await backend.until(runs=0)
        backend.on_token = lambda count: None
        backend.gate.set()
        await page.fill("#say", "Go on.")
        await page.click("#send")
        await page.locator(".answer.done strong", has_text="round").wait_for()
        assert "28 tokens" in await page.locator(".answer.done .foot").inner_text()
    said = served.backend.decode(backend.requests[-1].prompt_ids)
    assert "Does it go?" in said and "Go on." in said  # the chat so far went along


@needs_chromium
@on_one_loop
@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
async def test_a_long_answer_scrolls_and_leaves_the_box_to_type_in(
    chromium: Browser, serve: Serve, backend: TinyBackend, size: dict[str, int]
) -> None:
    backend.script = "x\n" * 120
    async with serve() as served, look(chromium, served, "chat", size) as page:
        await page.fill("#say", "Go on and on.")
        await page.press("#say", "Enter")
        await page.locator(".answer.done").wait_for()
        box = await page.locator("#send").bounding_box()
        assert box is not None and box["y"] + box["height"] <= size["height"]
        assert await page.evaluate("document.documentElement.scrollHeight <= innerHeight")
        assert await page.evaluate("log.scrollHeight > log.clientHeight")


@needs_chromium
@on_one_loop
async def test_a_run_that_loses_a_stage_is_seen_rerouting(
    chromium: Browser, serve: Serve, backend: TinyBackend
) -> None:
    backend.gate, backend.recover_after = asyncio.Event(), 5
    backend.gate.set()
    backend.on_token = lambda count: backend.gate.clear() if backend.gate and count == 5 else None
    async with serve() as served, look(chromium, served, "chat") as page:
        await page.fill("#say", "Does it go?")
        await page.press("#say", "Enter")
        await page.locator("#aside svg.ring", has_text="rerouting").wait_for()
        assert await page.locator("#aside .stage.lost").count() == 1
        assert "lost" in await page.locator("#aside .stages tr.lost").inner_text()
        backend.gate.set()
        await page.locator(".answer.done").wait_for()
        await page.locator("#aside svg.ring", has_text="ready").wait_for()


@needs_chromium
@on_one_loop
async def test_html_in_an_answer_stays_text(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    backend.script = "<img src=x onerror=alert(1)> `<b>` [x](javascript:alert(1))\n\n```html\n<script>1</script>\n```"
    async with serve() as served, look(chromium, served, "chat") as page:
        await page.fill("#say", "<b>me</b>")
        await page.press("#say", "Enter")
        await page.locator(".answer.done").wait_for()
        assert await page.locator("#log img, #log b, #log script, .said a").count() == 0
        assert "<script>1</script>" in await page.locator(".answer pre").inner_text()
        assert await page.locator(".mine .said").inner_text() == "<b>me</b>"


@needs_chromium
@on_one_loop
async def test_an_error_is_said_where_the_answer_would_be(
    chromium: Browser, serve: Serve, backend: TinyBackend
) -> None:
    from swarm.base.errors import RunError

    backend.fail, backend.fail_after = RunError("no other route to layers 22-29"), 3
    async with serve() as served, look(chromium, served, "chat") as page:
        await page.fill("#say", "hello")
        await page.press("#say", "Enter")
        await page.locator(".answer.failed .bad", has_text="no other route").wait_for()
        assert await page.inner_text("#send") == "Send"


VERDICT = {
    "level": 1,
    "level_name": "signed and consistent",
    "refusal": None,
    "result": "level 1: signed and consistent",
    "claims": [
        {"standing": "proven", "subject": "signatures", "about": "", "text": "4 of 4 hold"},
        {"standing": "claimed", "subject": "device", "about": "3b7f3b7f", "text": "RTX 4090"},
    ],
}


@needs_chromium
@on_one_loop
async def test_a_receipt_is_verified_claim_by_claim(
    chromium: Browser, serve: Serve, backend: TinyBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.swarm.serve.conftest.fake_verify", lambda receipt: VERDICT)
    async with serve() as served, look(chromium, served, "runs", PHONE) as page:
        await page.get_by_text("No answer has been asked for").wait_for()
        await served.openai.chat.completions.create(model=served.model, messages=[{"role": "user", "content": "x"}])
        await page.click(".run summary")
        assert "computing, " in await page.locator(".run .facts").inner_text()
        await page.click("text=Verify receipt")
        await page.locator(".result", has_text="Level 1: signed and consistent").wait_for()
        assert "4 of 4 hold" in await page.locator(".standing.proven").inner_text()
        assert "RTX 4090" in await page.locator(".standing.claimed").inner_text()
        async with page.expect_download() as download:
            await page.click("text=Download")
        saved = await (await download.value).path()
        assert json.loads(await asyncio.to_thread(saved.read_text))["format"] == "wanswarm-receipt"
        # Live updates must not close what the reader opened.
        await served.openai.chat.completions.create(model=served.model, messages=[{"role": "user", "content": "y"}])
        await page.locator(".runlist > li").nth(1).wait_for()
        assert await page.locator(".standing.proven").is_visible()


@needs_chromium
@on_one_loop
async def test_a_key_is_asked_for_once(chromium: Browser, serve: Serve) -> None:
    keys = (ApiKey("ann", hashlib.sha256(SECRET.encode()).digest()),)
    async with serve(api_keys=keys) as served, look(chromium, served, "chat") as page:
        await page.fill("#key", SECRET)
        await page.press("#key", "Enter")
        await page.locator("#aside svg.ring").wait_for()
        await page.fill("#say", "hello")
        await page.press("#say", "Enter")
        await page.locator(".answer.done").wait_for()
        assert SECRET not in await page.evaluate("JSON.stringify(localStorage)")


@needs_chromium
@on_one_loop
async def test_the_keyboard_reaches_everything(chromium: Browser, serve: Serve) -> None:
    async with serve() as served, look(chromium, served, "chat") as page:
        await page.locator("#aside svg.ring").wait_for()
        reached = []
        for _ in range(9):
            await page.keyboard.press("Tab")
            reached.append(
                await page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")
            )
        assert reached == ["Skip to content", "Chat", "Swarm", "Runs", "say", "Options", "History", "New chat", "send"]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_text_contrasts_with_its_ground_in_both_schemes() -> None:
    css = load_assets()["style.css"].body.decode()
    blocks = re.findall(r":root \{(.*?)\}", css, re.S)
    assert len(blocks) == 2
    for block in blocks:
        colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))
        for text in ("ink", "soft", "accent", "good", "warn", "bad"):
            for ground in ("paper", "surface"):
                assert contrast(colours[text], colours[ground]) >= 4.5, (text, ground)
        assert contrast(colours["on-accent"], colours["accent"]) >= 4.5


def test_no_file_names_a_foreign_address() -> None:
    own = {name: asset for name, asset in load_assets().items() if not name.startswith("vendor/")}
    for name, asset in own.items():  # what the others name they do not ask for: every page's requests are watched
        found = set(re.findall(r"https?://[^\s\"')]+", asset.body.decode()))
        assert found <= {"http://www.w3.org/2000/svg"}, name
