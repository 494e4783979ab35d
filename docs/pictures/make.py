"""The README's pictures, from a real swarm on this machine.

python docs/pictures/make.py [--out docs/pictures] [--rtt 50]

Starts three nodes of the default model with emulated distance, asks them in a terminal and in a browser, and writes
terminal.svg, dashboard-light.png, dashboard-dark.png, swarm-dark.png and phone.png. Needs chromium and playwright.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

from receipts.check.verify import verify
from swarm.base.config import MemberConfig
from swarm.client.client import Requester, RequesterConfig
from swarm.serve.config import GatewayConfig
from swarm.serve.gateway import gateway
from swarm.terminal.progress import reporter
from swarm.testbed.cluster import LocalSwarm, local_ring, split_layers

COLUMNS = 100
QUESTION = "Why does ice float on water?"
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync")


async def said_by(command: Sequence[str]) -> str:
    """What a command prints, colours included, without the lines about loading."""
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    lines = output.decode("utf-8", "replace").splitlines()
    return "\n".join(line for line in lines if not line.startswith(("load ", "probe ", "download ", "warm-up ")))


def picture(shown: Sequence[tuple[str, str]], path: Path) -> None:
    """Commands and what they printed, as one SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for command, output in shown:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        console.print(Text.from_ansi(output.strip()))
        console.print()
    # Rich's own frame fetches its font from the web; a reader's monospace font does as well.
    frame = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.S)
    console.save_svg(str(path), title="wanswarm", code_format=frame.replace("Fira Code, ", ""))


async def browse(url: str, out: Path) -> None:
    """The dashboard while an answer streams, and the pages around it."""
    from playwright.async_api import async_playwright

    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    async with async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=chromium, args=list(FLAGS))
        for scheme in ("light", "dark"):
            page = await _page(browser, scheme, 1280, 800)
            await page.goto(f"{url}/#chat")
            await page.locator("#aside svg.ring").wait_for()
            await page.fill("#say", QUESTION)
            await page.press("#say", "Enter")
            said = page.locator(".answer .said", has_text=re.compile(r"[\s\S]{160}"))
            await said.wait_for(timeout=240_000)
            await page.screenshot(path=out / f"dashboard-{scheme}.png")
            await page.locator(".answer.done").wait_for(timeout=240_000)
        page = await _page(browser, "dark", 1280, 800)
        await page.goto(f"{url}/#swarm")
        await page.locator(".nodes").wait_for()
        await page.screenshot(path=out / "swarm-dark.png")
        page = await _page(browser, "light", 390, 844)
        await page.goto(f"{url}/#runs")
        await page.locator(".run summary").first.click()
        await page.get_by_text("Verify receipt").first.click()
        await page.locator(".verdict").wait_for()
        await page.screenshot(path=out / "phone.png")
        await browser.close()


async def _page(browser: Any, scheme: str, width: int, height: int) -> Any:
    context = await browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": height}, device_scale_factor=2
    )
    return await context.new_page()


async def main(out: Path, rtt_ms: float) -> None:
    async with AsyncExitStack() as stack:
        report = stack.enter_context(reporter(json_lines=False, out=sys.stderr))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="swarm-pictures-")))
        ring = await stack.enter_async_context(
            local_ring(LocalSwarm(folder, rtt_ms=rtt_ms), split_layers(30, 3), report)
        )
        swarm = str(Path(sys.executable).with_name("swarm"))
        state = ["--no-lan", "--state", str(folder / "asking")]
        receipt = folder / "receipt.json"
        words = ["--swarm", ring.invite, *state, "--max-tokens", "60", "--color", "always", "--receipt", str(receipt)]
        shown = [
            (f'swarm generate "{QUESTION}"', await said_by([swarm, "generate", QUESTION, *words])),
            ("swarm verify receipt.json", await said_by([swarm, "verify", str(receipt)])),
        ]
        picture([(command, text.replace(str(folder) + "/", "")) for command, text in shown], out / "terminal.svg")
        models = MemberConfig(folder / "browsing", Path(_models()), ring.invite, lan=False)
        requester = await stack.enter_async_context(await Requester.connect(RequesterConfig(models), report))
        host, port = await stack.enter_async_context(
            gateway(requester, GatewayConfig(), lambda data: verify(data).as_json(), "127.0.0.1", 0)
        )
        await browse(f"http://{host}:{port}", out)


def _models() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("wanswarm") / "models"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--rtt", type=float, default=50.0, help="milliseconds between any two (default: %(default)s)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    asyncio.run(main(arguments.out, arguments.rtt))
