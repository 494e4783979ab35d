"""Pages that stay open: several of one browser at once, a gateway that begins anew below them, keys that end."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import pytest_asyncio
from openai import AsyncOpenAI

from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.serve.keys import ApiKey
from tests.swarm.serve import scenes
from tests.swarm.serve.browser import browser
from tests.swarm.serve.conftest import Serve, Served
from tests.swarm.serve.test_dashboard import look, needs_chromium, on_one_loop
from tests.swarm.serve.test_page import hold_after, say
from tests.swarm.serve.tiny import TinyBackend

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

pytest.importorskip("playwright")
pytestmark = [needs_chromium, on_one_loop]
KEPT = "Object.keys(localStorage).filter(key => key.startsWith('wanswarm-chat-')).length"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium() -> AsyncIterator[Browser]:
    async with browser() as running:
        yield running


@pytest.fixture
def backend(tmp_path: Path) -> TinyBackend:
    ready = TinyBackend(tmp_path, manifest=scenes.MANIFEST)
    ready.state, ready.ring, ready.script = scenes.SERVING, scenes.RING, "Round it goes."
    return ready


async def another_tab(page: Page, served: Served) -> Page:
    """With the conversation that the first one shows."""
    other = await page.context.new_page()
    await other.goto(f"{served.url}/#chat")
    await other.get_by_role("button", name="History").click()
    await other.locator(".pick").first.click()
    await other.locator(".mine").first.wait_for()
    return other


async def test_two_tabs_go_on_with_one_conversation(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    async with serve() as served, look(chromium, served, "chat", unknown=True) as page:
        await say(page, "The first")
        await page.locator(".answer.done").wait_for()
        other = await another_tab(page, served)
        await say(page, "The second")
        await other.locator(".mine", has_text="The second").wait_for()
        await other.locator(".answer.done").nth(1).wait_for()
        await say(other, "The third")
        await page.locator(".answer.done").nth(2).wait_for()
        asked = ["The first", "The second", "The third"]
        for each in (page, other):
            await each.reload()
            await each.locator(".mine").nth(2).wait_for()
            assert await each.locator(".mine .said").all_inner_texts() == asked
        assert len(backend.requests) == 3  # reading an answer in two tabs asks for it once
        said = backend.decode(backend.requests[-1].prompt_ids)
        assert all(text in said for text in asked)


async def test_two_tabs_have_conversations_of_their_own(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    async with serve() as served, look(chromium, served, "chat") as page:
        other = await page.context.new_page()
        await other.goto(f"{served.url}/#chat")
        await asyncio.gather(say(page, "Of one"), say(other, "Of the other"))
        for each in (page, other):
            await each.locator(".answer.done").wait_for()
        assert await page.locator(".mine .said").all_inner_texts() == ["Of one"]
        assert await other.locator(".mine .said").all_inner_texts() == ["Of the other"]
        assert await page.evaluate(KEPT) == 2


async def test_what_was_deleted_stays_deleted(chromium: Browser, serve: Serve, backend: TinyBackend) -> None:
    """Though its answer was under way, here or in another tab."""
    gate = hold_after(backend, 5)
    async with serve() as served, look(chromium, served, "chat") as page:
        await say(page, "Does it go?")
        await page.locator(".answer.streaming", has_text="Round").wait_for()
        await page.get_by_role("button", name="History").click()
        await page.get_by_role("button", name="Delete: Does it go?").click()
        await page.get_by_text("None yet.").wait_for()
        await backend.until(runs=0)
        await page.evaluate("new Promise(resolve => setTimeout(resolve, 100))")
        assert await page.evaluate(KEPT) == 0
        await page.keyboard.press("Escape")

        gate.set()
        await say(page, "And now?")
        await page.locator(".answer.streaming", has_text="Round").wait_for()
        other = await another_tab(page, served)
        await other.get_by_role("button", name="History").click()
        await other.get_by_role("button", name="Delete all").click()
        await other.get_by_text("None yet.").wait_for()
        gate.set()
        await page.locator(".answer").filter(has_text="was stopped").or_(page.locator(".answer.done")).wait_for()
        assert await page.evaluate(KEPT) == 0
        gate.set()
        backend.on_token = lambda count: None
        await say(page, "Go on.")  # from what is still in sight, in a conversation of its own
        await page.locator(".answer.done").last.wait_for()
        assert await page.evaluate(KEPT) == 1


@asynccontextmanager
async def serving_at(port: int, backend: TinyBackend, config: GatewayConfig) -> AsyncIterator[Served]:
    """A gateway at a port that was another's before."""

    def verify(receipt: bytes) -> dict[str, Any]:
        return {}

    async with gateway(backend, config, verify, "127.0.0.1", port) as (host, bound):
        url = f"http://{host}:{bound}"
        async with aiohttp.ClientSession(url) as http, AsyncOpenAI(base_url=f"{url}/v1", api_key="unused") as client:
            yield Served(url, backend, http, client)


async def test_a_page_outlives_its_gateway(chromium: Browser, backend: TinyBackend) -> None:
    """It says what is lost, and goes on with the next one by itself."""
    config = GatewayConfig(default_temperature=0.0)
    hold_after(backend, 5)
    context = await chromium.new_context()
    context.set_default_timeout(30_000)
    page = await context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    async with serving_at(0, backend, config) as served:
        port = int(served.url.rpartition(":")[2])
        await page.goto(f"{served.url}/#chat")
        await say(page, "Does it go?")
        await page.locator(".answer.streaming", has_text="Round").wait_for()
    await page.locator("#phase", has_text="connection lost").wait_for()
    backend.on_token = lambda count: None
    assert backend.gate is not None
    backend.gate.set()
    async with serving_at(port, backend, config):
        await page.locator(".answer.failed .bad").wait_for()
        await page.locator("#phase", has_text="serving").wait_for()
        assert "Round" in await page.locator(".answer > .said").inner_text()  # what had come is still there
        await page.get_by_role("button", name="Regenerate").click()
        await page.locator(".answer.done", has_text="Round it goes.").wait_for()
    await context.close()
    assert faults == []


async def test_an_answer_is_stopped_while_the_gateway_is_away(chromium: Browser, backend: TinyBackend) -> None:
    hold_after(backend, 5)
    context = await chromium.new_context()
    page = await context.new_page()
    async with serving_at(0, backend, GatewayConfig()) as served:
        await page.goto(f"{served.url}/#chat")
        await say(page, "Does it go?")
        await page.locator(".answer.streaming", has_text="Round").wait_for()
        # The answer's connection ends in the middle, and nobody answers any more.
        await context.set_offline(True)
    await page.locator(".answer.streaming .waiting, .answer.failed").first.wait_for()
    await page.click("#send")
    await page.locator(".answer:not(.streaming)").wait_for()
    assert await page.inner_text("#send") == "Send"
    await context.close()


async def test_a_key_that_is_withdrawn_is_told_and_asked_for_anew(chromium: Browser, backend: TinyBackend) -> None:
    def of(*secrets: str) -> GatewayConfig:
        return GatewayConfig(
            api_keys=tuple(ApiKey(f"user{n}", hashlib.sha256(s.encode()).digest()) for n, s in enumerate(secrets))
        )

    old, new = "0123456789abcdef", "fedcba9876543210"
    context = await chromium.new_context()
    page = await context.new_page()
    refused = page.locator("#refused")
    async with serving_at(0, backend, of(old)) as served:
        port = int(served.url.rpartition(":")[2])
        await page.goto(f"{served.url}/#chat")
        await page.locator("#ask[open]").wait_for()
        assert not await refused.is_visible()
        await page.fill("#key", "mistyped-0123456")
        await page.press("#key", "Enter")
        await refused.wait_for(state="visible")
        assert await page.input_value("#key") == ""
        await page.fill("#key", old)
        await page.press("#key", "Enter")
        await page.locator("#aside svg.ring").wait_for()
        assert not await page.locator("#ask").is_visible()
        await say(page, "hello")
        await page.locator(".answer.done").wait_for()
    async with serving_at(port, backend, of(new)):
        await refused.wait_for(state="visible")
        await page.fill("#key", new)
        await page.press("#key", "Enter")
        await page.locator("#phase", has_text="serving").wait_for()
        assert await page.locator("#ask").count() == 1 and not await page.locator("#ask").is_visible()
        await say(page, "hello again")
        await page.locator(".answer.done").nth(1).wait_for()
        kept = await page.evaluate("JSON.stringify({...localStorage})")
        assert old not in kept and new not in kept
    await context.close()
